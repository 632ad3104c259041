/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings for a client of the bare protocol, written from proto/ alone. Everything in the client's page can be written,
 * wrong things too.
 *
 * Owns:     the mappings of the two pages, their descriptors, the doorbells.
 * Thread:   one thread or process for a ring.
 * Lifetime: raw_rings_open -> raw_ring_open (its stream closes with the connection) -> raw_ring_close ->
 *           raw_rings_close.
 * Errors:   a failed check (require.h) when the daemon does not answer in time; what it says comes back as an outcome.
 */
#ifndef MLACAT_TESTS_RAW_RING_H
#define MLACAT_TESTS_RAW_RING_H

#include "mlacat_abi.h"
#include "raw.h"

struct raw_rings {
    struct raw *raw;
    Mlacat__V1__RingsOpened opened; /* only its numbers */
    int client_fd;
    int daemon_fd;
    unsigned char *client;
    const unsigned char *daemon;
};

struct raw_ring {
    struct ref stream;
    uint32_t index;
    uint32_t calls; /* of StreamOpened; the daemon holds one entry more: a request to cancel */
    uint32_t entries;
    int doorbell;
    struct mlacat_ring_client *client;
    const struct mlacat_ring_daemon *daemon;
    struct mlacat_ring_submission *submissions;
    const struct mlacat_ring_completion *completions;
    const char (*messages)[MLACAT_ABI_MESSAGE_BYTES];
    uint32_t tail;     /* entries written */
    uint32_t head;     /* completions read */
    uint64_t sequence; /* of the last entry written */
    uint64_t doorbells_rung;
};

struct outcome raw_rings_open(struct raw *raw, struct raw_rings *rings);
void raw_rings_close(struct raw_rings *rings);

/* On the device under test, or another one. */
struct outcome raw_ring_open(struct raw_rings *rings, struct raw_ring *ring);
struct outcome raw_ring_open_on(struct raw_rings *rings, const char *device, struct raw_ring *ring);
void raw_ring_close(struct raw_ring *ring);
/* Both must succeed. */
void raw_ring_must_open(struct raw *raw, struct raw_rings *rings, struct raw_ring *ring);

struct mlacat_ring_submission raw_ring_entry(const struct call *call);

/* Writes one entry, which the daemon sees after raw_ring_submit. */
void raw_ring_write(struct raw_ring *ring, const struct mlacat_ring_submission *entry);
void raw_ring_submit(struct raw_ring *ring);
/* One entry, or some, written and submitted. */
void raw_ring_send(struct raw_ring *ring, const struct mlacat_ring_submission *entry);
void raw_ring_call(struct raw_ring *ring, const struct call *calls, uint32_t calls_nr);

/* True if there is a completion that was not read. */
bool raw_ring_has(const struct raw_ring *ring);
/* The next completion; sleeps on the ring's futex until it is there. */
struct completion raw_ring_next(struct raw_ring *ring);
/* The same, which must be of this call. */
struct outcome raw_ring_wait(struct raw_ring *ring, uint64_t call_id);
uint64_t raw_ring_fence(const struct raw_ring *ring);

#endif
