/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The calls of a client of the bare protocol through rings: with MLACAT_TEST_TRANSPORT=ring in the environment raw.c
 * asks here, and a suite that was written for packets runs as it is.
 *
 * Owns:     the client's rings, with raw->by_ring.
 * Thread:   one thread or process for a client.
 * Lifetime: made with the client's first stream -> by_ring_end.
 * Errors:   a failed check (require.h); by_ring_open and by_ring_cancel: what the daemon says.
 */
#ifndef MLACAT_TESTS_RAW_BY_RING_H
#define MLACAT_TESTS_RAW_BY_RING_H

#include "raw_ring.h"

struct outcome by_ring_open(struct raw *raw, struct ref *stream);
/* Takes in what the stream's calls have left, once the daemon has closed it. */
void by_ring_closed(struct raw *raw, struct ref stream);
/* NULL: the stream has none. */
struct raw_ring *by_ring_find(struct raw *raw, struct ref stream);

/* Waits for room, as a client has to, and returns when the daemon has taken all: what is said in packets from then on
 * comes behind them. */
void by_ring_submit(struct raw *raw, struct raw_ring *ring, const struct call *calls, size_t calls_nr);
struct outcome by_ring_cancel(struct raw *raw, struct raw_ring *ring, uint64_t call_id);

/* Takes in the completions that have come, as if they were the socket's. */
void by_ring_collect(struct raw *raw);
/* The same until there is one, or the socket has something to read. */
void by_ring_wait(struct raw *raw);
void by_ring_end(struct raw *raw);

#endif
