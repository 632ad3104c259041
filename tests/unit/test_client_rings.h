/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rings of the fake daemon: a worker that takes entries, holds them or ends them, sleeps and is woken as
 * mlacat_ring.h says, and runs nothing.
 *
 * Owns:     both pages of one connection, the doorbells, a thread.
 * Thread:   any.
 * Lifetime: rings_new -> rings_free.
 * Errors:   what a client may not write aborts the test program with a message.
 */
#ifndef TEST_CLIENT_RINGS_H
#define TEST_CLIENT_RINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "mlacat_abi.h"
#include "test_client_say.h"

#define RINGS_NR 3
#define RINGS_ENTRIES 16
/* The number of the last entry before the first, so that the 32-bit indices wrap soon. */
#define RINGS_BEGIN ((uint64_t)UINT32_MAX - 20)

struct rings;

struct rings *rings_new(void);
/* As if the daemon were gone. NULL is fine. */
void rings_free(struct rings *rings);
const struct say_rings *rings_told(const struct rings *rings);
/* Gives the stream the first ring that none has. False: all are taken. */
bool rings_take(struct rings *rings, uint32_t stream, struct say_ring *ring);
/* The stream is closed: its ring, if it has one, is free, and its numbers stay. */
void rings_put(struct rings *rings, uint32_t stream);

struct rings_mode {
    bool hold;  /* end no call until rings_release */
    bool blind; /* take no entry */
    bool awake; /* never sleep */
    bool late;  /* write fences, but completions only after the next rings_set without it */
    enum mlacat_status code;
    enum mlacat_scope scope;
    const char *text;
};
void rings_set(struct rings *rings, struct rings_mode mode);
/* Ends so many of the oldest held calls of a ring. */
void rings_release(struct rings *rings, uint32_t index, unsigned nr);

struct rings_seen {
    unsigned calls;
    unsigned cancels;
    unsigned bells; /* doorbells that woke it */
    struct mlacat_ring_submission last;
};
struct rings_seen rings_seen(struct rings *rings);
/* Waits until it has taken so many calls; until it sleeps; until a thread of the client sleeps on a ring. */
void rings_await_calls(struct rings *rings, unsigned calls);
void rings_await_sleep(struct rings *rings);
void rings_await_parked(struct rings *rings, uint32_t index);
/* What the daemon says of its last look into a ring: 0 at first, and never anything by itself. */
void rings_tell_look(struct rings *rings, uint32_t index, uint64_t now_ns);
/* The client's words, as the daemon sees them. */
struct mlacat_ring_client *rings_client(struct rings *rings, uint32_t index);
uint64_t rings_done(struct rings *rings, uint32_t index);
/* The daemon's. */
uint64_t rings_fence(struct rings *rings, uint32_t index);
uint32_t rings_failed(struct rings *rings, uint32_t index);

#endif
