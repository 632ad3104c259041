/* SPDX-License-Identifier: Apache-2.0 */
#include "raw_by_ring.h"

#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "mlacat_ring.h"
#include "require.h"

#define RINGS_MAX 64
#define EAGER_LOOKS 1000

/* Ids of requests to cancel; the tests' own are small. */
#define CANCEL_ID (UINT64_C(1) << 63)

struct by_ring {
    struct raw_rings rings;
    struct raw_ring ring[RINGS_MAX];
    uint32_t rings_nr;
    uint64_t cancels_nr;
    struct outcome cancelled; /* of the request that was answered last */
    uint64_t cancelled_id;
};

bool raw_by_ring(void)
{
    const char *transport = getenv("MLACAT_TEST_TRANSPORT");
    return transport && strcmp(transport, "ring") == 0;
}

uint64_t raw_by_ring_bytes(const struct raw *raw)
{
    return raw->by_ring ? raw->by_ring->rings.opened.client_bytes + raw->by_ring->rings.opened.daemon_bytes : 0;
}

struct outcome by_ring_open(struct raw *raw, struct ref *stream)
{
    struct by_ring *by_ring = raw->by_ring;
    if (!by_ring) {
        by_ring = calloc(1, sizeof(*by_ring));
        REQUIRE(by_ring != NULL);
        struct outcome outcome = raw_rings_open(raw, &by_ring->rings);
        if (outcome.code != STATUS_OK) {
            free(by_ring);
            return outcome;
        }
        raw->by_ring = by_ring;
    }
    REQUIRE(by_ring->rings_nr < RINGS_MAX);
    struct raw_ring *ring = &by_ring->ring[by_ring->rings_nr];
    struct outcome outcome = raw_ring_open(&by_ring->rings, ring);
    if (outcome.code == STATUS_OK) {
        by_ring->rings_nr++;
        *stream = ring->stream;
    }
    return outcome;
}

void by_ring_closed(struct raw *raw, struct ref stream)
{
    struct raw_ring *ring = by_ring_find(raw, stream);
    if (ring) {
        by_ring_collect(raw);
        REQUIRE(ring->head == ring->tail, "%u of %u calls have ended on a stream that is closed", ring->head,
                ring->tail);
        raw_ring_close(ring);
        *ring = raw->by_ring->ring[--raw->by_ring->rings_nr];
    }
}

struct raw_ring *by_ring_find(struct raw *raw, struct ref stream)
{
    for (uint32_t i = 0; raw->by_ring && i < raw->by_ring->rings_nr; i++) {
        struct raw_ring *ring = &raw->by_ring->ring[i];
        if (ring->stream.id == stream.id && ring->stream.generation == stream.generation) {
            return ring;
        }
    }
    return NULL;
}

static void wait_for_room(struct raw *raw, struct raw_ring *ring)
{
    uint64_t end_ms = now_ms() + WAIT_MS;
    while (ring->tail - ring->head == ring->calls) {
        REQUIRE(now_ms() < end_ms, "a ring with %u calls is full for %d ms", ring->calls, WAIT_MS);
        raw_ring_submit(ring);
        by_ring_collect(raw);
        sched_yield();
    }
}

static void wait_until_taken(const struct raw_ring *ring)
{
    uint64_t end_ms = now_ms() + WAIT_MS;
    while (mlacat_ring_taken(ring->daemon) != ring->tail) {
        REQUIRE(now_ms() < end_ms, "entries up to %u of %u are taken", mlacat_ring_taken(ring->daemon), ring->tail);
        sched_yield();
    }
}

void by_ring_submit(struct raw *raw, struct raw_ring *ring, const struct call *calls, size_t calls_nr)
{
    for (size_t i = 0; i < calls_nr; i++) {
        wait_for_room(raw, ring);
        for (int k = 0; k < 3; k++) {
            REQUIRE(!calls[i].operand[k].is_inline, "a ring has no room for memory that comes with the call");
        }
        REQUIRE(calls[i].wait_event.generation == 0, "a ring has no room for an event");
        struct mlacat_ring_submission entry = raw_ring_entry(&calls[i]);
        raw_ring_write(ring, &entry);
    }
    raw_ring_submit(ring);
    wait_until_taken(ring);
}

struct outcome by_ring_cancel(struct raw *raw, struct raw_ring *ring, uint64_t call_id)
{
    struct by_ring *by_ring = raw->by_ring;
    uint64_t id = CANCEL_ID + ++by_ring->cancels_nr;
    struct mlacat_ring_submission entry = {.call_id = id, .flags = MLACAT_RING_SUBMIT_CANCEL, .ready = call_id};
    uint64_t end_ms = now_ms() + WAIT_MS;
    raw_ring_send(ring, &entry);
    while (by_ring->cancelled_id != id) {
        REQUIRE(now_ms() < end_ms, "a request to cancel is not answered");
        by_ring_collect(raw);
        sched_yield();
    }
    return by_ring->cancelled;
}

void by_ring_collect(struct raw *raw)
{
    struct by_ring *by_ring = raw->by_ring;
    for (uint32_t i = 0; by_ring && i < by_ring->rings_nr; i++) {
        while (raw_ring_has(&by_ring->ring[i])) {
            struct completion completion = raw_ring_next(&by_ring->ring[i]);
            if (completion.call_id < CANCEL_ID) {
                raw_keep(raw, &completion);
            } else {
                by_ring->cancelled = completion.outcome;
                by_ring->cancelled_id = completion.call_id;
            }
        }
    }
}

void by_ring_wait(struct raw *raw)
{
    struct pollfd poll_fd = {.fd = raw->fd, .events = POLLIN};
    uint64_t end_ms = now_ms() + WAIT_MS;
    size_t before_nr = raw->done_nr;
    for (uint32_t looks = 0; raw->by_ring; looks++) {
        /* The socket first: after the end of the connection nothing comes any more. */
        bool socket_has = poll(&poll_fd, 1, looks < EAGER_LOOKS ? 0 : 1) == 1;
        by_ring_collect(raw);
        if (socket_has || raw->done_nr != before_nr) {
            return;
        }
        REQUIRE(now_ms() < end_ms, "the daemon says nothing for %d ms, and its rings neither", WAIT_MS);
        sched_yield();
    }
}

void by_ring_end(struct raw *raw)
{
    struct by_ring *by_ring = raw->by_ring;
    if (by_ring) {
        for (uint32_t i = 0; i < by_ring->rings_nr; i++) {
            raw_ring_close(&by_ring->ring[i]);
        }
        raw_rings_close(&by_ring->rings);
        free(by_ring);
    }
}
