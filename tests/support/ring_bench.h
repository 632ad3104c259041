/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What most tests of rings begin with: a client with one ring, a small trial, and its memory, which is registered.
 *
 * Owns:     the client and its memory.
 * Thread:   one.
 * Lifetime: bench_open -> bench_close.
 * Errors:   a failed check (require.h).
 */
#ifndef MLACAT_TESTS_RING_BENCH_H
#define MLACAT_TESTS_RING_BENCH_H

#include "raw_ring.h"
#include "server.h"
#include "trial.h"

struct bench {
    struct raw raw;
    struct raw_rings rings;
    struct raw_ring ring;
    struct trial trial;
    struct ref buffer;
};

void bench_open(struct bench *bench, const struct server *server);
void bench_close(struct bench *bench);

/* The trial's call as an entry. */
struct mlacat_ring_submission bench_entry(const struct bench *bench, uint64_t id);
/* Runs the trial anew on the ring; it must be right. */
void bench_work(struct bench *bench, uint64_t id);

/* An entry that asks to cancel a call. */
struct mlacat_ring_submission cancel_entry(uint64_t id, uint64_t call_id);
/* What the client's GPU would do. */
void bench_set_ready(struct bench *bench, uint64_t value);
uint64_t bench_done(const struct bench *bench);

/* Waits until the daemon has taken all entries. */
void bench_wait_taken(const struct raw_ring *ring);

#endif
