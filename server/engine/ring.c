/* SPDX-License-Identifier: Apache-2.0 */
#include "ring.h"

#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mlacat_ring.h"

_Static_assert(ERROR_MESSAGE_BYTES <= MLACAT_ABI_MESSAGE_BYTES, "every text fits");

#define broken(err, ...) error_set_scoped(err, MLACAT_INVALID_ARGUMENT, MLACAT_SCOPE_SESSION, __VA_ARGS__)

void ring_init(struct ring *ring, const struct ring_pages *pages, uint32_t index, uint64_t sequence)
{
    size_t first = (size_t)index * pages->entries;
    uint32_t count = (uint32_t)sequence; /* each entry counts once in all indices */
    *ring = (struct ring){.entries = pages->entries,
                          .most = pages->calls + 1,
                          .submit_head = count,
                          .submit_seen = count,
                          .read_seen = count,
                          .complete_tail = count,
                          .published = count,
                          .sequence = sequence};
    ring->client = (struct mlacat_ring_client *)(void *)pages->client + index;
    ring->daemon = (struct mlacat_ring_daemon *)(void *)pages->daemon + index;
    ring->submissions =
        (const struct mlacat_ring_submission *)(const void *)(pages->client + pages->submissions_offset) + first;
    ring->completions = (struct mlacat_ring_completion *)(void *)(pages->daemon + pages->completions_offset) + first;
    ring->messages = (char(*)[MLACAT_ABI_MESSAGE_BYTES])(pages->daemon + pages->messages_offset) + first;
    ring->client->submit_tail = ring->client->complete_head = count;
    ring->client->waiting = 0;
    ring->daemon->submit_head = ring->daemon->complete_tail = count;
    ring->daemon->sleeping = 0;
    ring->daemon->fence = sequence;
}

static uint32_t held(const struct ring *ring, uint32_t read)
{
    return ring->in_flight + (ring->complete_tail - read);
}

/* Looks how far the client has read only when it matters: its line is then fetched from another CPU. */
static enum ring_answer make_room(struct ring *ring, struct error *err)
{
    if (held(ring, ring->read_seen) < ring->most) {
        return RING_TAKEN;
    }
    uint32_t read = mlacat_ring_completions_read_up_to(ring->client);
    if (ring->published - read > ring->entries) {
        broken(err, "complete_head is %u, but completions up to %u of a ring of %u entries are written: count up to it",
               read, ring->published, ring->entries);
        return RING_BROKEN;
    }
    ring->read_seen = read;
    return held(ring, read) < ring->most ? RING_TAKEN : RING_FULL;
}

enum ring_answer ring_take(struct ring *ring, struct mlacat_ring_submission *entry, struct error *err)
{
    if (ring->submit_head == ring->submit_seen) {
        uint32_t written = mlacat_ring_submitted(ring->client);
        if (written - ring->submit_head > ring->entries) {
            broken(err, "submit_tail is %u, but entries up to %u of a ring of %u entries are taken: count up from it",
                   written, ring->submit_head, ring->entries);
            return RING_BROKEN;
        }
        ring->submit_seen = written;
        if (written == ring->submit_head) {
            return RING_EMPTY;
        }
    }
    enum ring_answer room = make_room(ring, err);
    if (room != RING_TAKEN) {
        return room;
    }
    mlacat_ring_copy(entry, &ring->submissions[ring->submit_head & (ring->entries - 1)]);
    ring->submit_head++;
    ring->in_flight++;
    ring->sequence++;
    return RING_TAKEN;
}

void ring_put_back(struct ring *ring)
{
    ring->submit_head--;
    ring->in_flight--;
    ring->sequence--;
}

void ring_release_taken(struct ring *ring)
{
    mlacat_ring_take_up_to(ring->daemon, ring->submit_head);
}

bool ring_has_more(const struct ring *ring)
{
    /* The last look counts: a client that has counted back since cannot make ring_take find what is not announced. */
    if (ring->submit_head == ring->submit_seen && mlacat_ring_submitted(ring->client) == ring->submit_head) {
        return false;
    }
    if (held(ring, ring->read_seen) < ring->most) {
        return true;
    }
    uint32_t read = mlacat_ring_completions_read_up_to(ring->client);
    return ring->published - read > ring->entries || held(ring, read) < ring->most;
}

void ring_count_failed(struct ring *ring)
{
    mlacat_ring_count_failed(ring->daemon);
}

void ring_complete(struct ring *ring, uint64_t call_id, const struct error *outcome, uint64_t queue_ns,
                   uint64_t device_ns)
{
    uint32_t place = ring->complete_tail & (ring->entries - 1);
    bool ok = outcome->code == MLACAT_OK;
    if (!ok) {
        memcpy(ring->messages[place], outcome->message, strnlen(outcome->message, ERROR_MESSAGE_BYTES - 1) + 1);
    }
    ring->completions[place] = (struct mlacat_ring_completion){
        .call_id = call_id,
        .status = (uint16_t)outcome->code,
        .scope = ok ? (uint16_t)MLACAT_SCOPE_NONE : (uint16_t)outcome->scope,
        .queue_ns = queue_ns,
        .device_ns = device_ns,
    };
    ring->complete_tail++;
    ring->in_flight--;
}

void ring_publish(struct ring *ring)
{
    if (ring->published == ring->complete_tail) {
        return;
    }
    ring->published = ring->complete_tail;
    mlacat_ring_complete(ring->daemon, ring->published);
    if (mlacat_ring_client_waits(ring->client)) {
        syscall(SYS_futex, &ring->daemon->complete_tail, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
}
