/* SPDX-License-Identifier: Apache-2.0 */
#include "ring.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "reconnect.h"
#include "slot.h"
#include "timing.h"

/* How long a completion is waited for that the daemon gives right after it has let the CUDA stream go. */
#define OWED_NS (20 * TIMING_MS)

/* ---------------------------------------------------------------------------------------------------- up and down */

struct ring *ring_new(void)
{
    struct ring *ring = calloc(1, sizeof(*ring));
    if (ring != NULL) {
        pthread_mutex_init(&ring->lock, NULL);
        timing_cond_init(&ring->changed);
        STAILQ_INIT(&ring->due);
        ring->doorbell = -1;
    }
    return ring;
}

static void drop_doorbell(struct ring *ring)
{
    if (ring->doorbell >= 0) {
        close(ring->doorbell);
    }
    ring->doorbell = -1;
}

void ring_free(struct ring *ring)
{
    if (ring != NULL) {
        drop_doorbell(ring);
        ring_pages_put(ring->pages);
        pthread_cond_destroy(&ring->changed);
        pthread_mutex_destroy(&ring->lock);
        free(ring);
    }
}

void ring_offer(struct mlacat_stream *stream, uint32_t index, uint64_t sequence, int doorbell)
{
    struct ring *ring = stream->ring;
    pthread_mutex_lock(&ring->lock);
    drop_doorbell(ring);
    ring->index = index;
    ring->sequence = sequence;
    ring->doorbell = doorbell;
    pthread_mutex_unlock(&ring->lock);
}

void ring_withdraw(struct mlacat_stream *stream)
{
    pthread_mutex_lock(&stream->ring->lock);
    drop_doorbell(stream->ring);
    pthread_mutex_unlock(&stream->ring->lock);
}

void ring_attach(struct mlacat_stream *stream, struct ring_pages *pages)
{
    struct ring *ring = stream->ring;
    pthread_mutex_lock(&ring->lock);
    ring->pages = ring_pages_get(pages);
    ring->client = ring_pages_client(pages, ring->index);
    ring->daemon = ring_pages_daemon(pages, ring->index);
    ring->submissions = ring_pages_submissions(pages, ring->index);
    ring->completions = ring_pages_completions(pages, ring->index);
    ring->messages = ring_pages_messages(pages, ring->index);
    ring->mask = pages->entries - 1;
    ring->tail = ring->published = ring->head = (uint32_t)ring->sequence;
    ring->failed_seen = ring->failed_taken = mlacat_ring_failed(ring->daemon);
    ring->parked = 0;
    ring->checked_ns = timing_now();
    ring->draining = false;
    ring->words_address = 0;
    ring->ready_asked = false;
    ring->ready_word.buffer = NULL;
    pthread_mutex_unlock(&ring->lock);
}

/* ---------------------------------------------------------------------------------------------------- entering */

/* Brings the ring up. Without its lock. */
static enum mlacat_status make_ready(struct mlacat_stream *stream, bool draining, struct error *err)
{
    struct mlacat_client *client = stream->client;
    pthread_mutex_lock(&client->lock);
    client->draining |= draining && client->fd >= 0;
    enum mlacat_status status = reconnect_ready(client, true, err);
    if (status == MLACAT_OK && stream->broken.code != MLACAT_OK) {
        status = error_set(err, MLACAT_FAILED_PRECONDITION,
                           "the stream could not be opened again after a restart: %.120s; open another",
                           stream->broken.message);
    }
    pthread_mutex_unlock(&client->lock);
    return status;
}

static enum mlacat_status check_stream(const struct mlacat_stream *stream, struct error *err)
{
    if (stream->closing) {
        return error_set(err, MLACAT_FAILED_PRECONDITION, "the stream is being closed; open another");
    }
    if (stream->failure.code != MLACAT_OK) {
        *err = stream->failure;
        return err->code;
    }
    return MLACAT_OK;
}

/* A time a little after `now` is one that was read on another CPU. A daemon with another clock (a time namespace) is as
 * one that does not tell. */
static bool has_just_looked(const struct ring *ring, int64_t now)
{
    int64_t ago = (int64_t)((uint64_t)now - mlacat_ring_looked(ring->daemon));
    return ago < RING_PAUSE_NS && ago > -RING_PAUSE_NS;
}

/* Whether the daemon must be looked for before a call is given to the ring: a connection that has ended unseen would
 * cost the call. A worker that sleeps costs a system call anyway. */
static bool must_check(struct ring *ring, int64_t now)
{
    bool paused = now - ring->entered_ns >= RING_PAUSE_NS;
    ring->entered_ns = now;
    if (mlacat_ring_daemon_slept(ring->daemon) || (paused && !has_just_looked(ring, now))) {
        return true;
    }
    ring->alive |= paused;
    if (ring->alive) {
        ring->alive = false;
        ring->checked_ns = now;
    }
    return now - ring->checked_ns >= RING_CHECK_NS;
}

enum mlacat_status ring_enter(struct mlacat_stream *stream, struct error *err)
{
    struct ring *ring = stream->ring;
    int64_t now = timing_now();
    for (bool checked = false;; checked = true) {
        pthread_mutex_lock(&ring->lock);
        if (ring->bound) {
            ring_collect(stream); /* nobody waits for stream-ordered calls, so that one that failed is seen here */
        }
        if (!checked && ring->pages != NULL && must_check(ring, now)) {
            ring_check(stream, now);
        }
        enum mlacat_status status = check_stream(stream, err); /* last: the check lets go of the lock */
        if (status == MLACAT_OK && ring->pages != NULL && !ring->draining) {
            return MLACAT_OK;
        }
        bool draining = ring->draining;
        ring->draining = false;
        pthread_mutex_unlock(&ring->lock);
        if (status != MLACAT_OK || make_ready(stream, draining, err) != MLACAT_OK) {
            return err->code;
        }
    }
}

void ring_leave(struct mlacat_stream *stream)
{
    ring_publish(stream->ring);
    pthread_mutex_unlock(&stream->ring->lock);
}

/* ---------------------------------------------------------------------------------------------------- submitting */

bool ring_has_room(struct mlacat_stream *stream)
{
    const struct ring *ring = stream->ring;
    if (stream->taken >= stream->limit || ring->tail - ring->head >= stream->limit) {
        ring_collect(stream);
    }
    return stream->taken < stream->limit && ring->tail - ring->head < stream->limit;
}

/* Waits where it is only a matter of time: for the completions of calls that were waited for by the fence. */
static enum mlacat_status make_room(struct mlacat_stream *stream, struct error *err)
{
    struct ring *ring = stream->ring;
    struct ring_look look = {.sequence = UINT64_MAX};
    while (!ring_has_room(stream)) {
        if (stream->taken >= stream->limit) {
            return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                             "%u calls of the stream are in flight or not waited for, which is its limit; wait for one "
                             "first",
                             stream->limit);
        }
        ring_publish(ring);
        ring_pause(stream, &look, TIMING_NEVER);
        if (ring->pages == NULL) {
            return error_set(err, MLACAT_UNAVAILABLE, "the connection ended while the ring was full; submit again");
        }
        if (check_stream(stream, err) != MLACAT_OK) {
            return err->code;
        }
    }
    return MLACAT_OK;
}

static void write_entry(struct ring *ring, const struct mlacat_ring_submission *entry, uint64_t call_id)
{
    struct mlacat_ring_submission *at = &ring->submissions[ring->tail & ring->mask];
    *at = *entry;
    at->call_id = call_id;
    ring->tail++;
    ring->sequence++;
}

void ring_write(struct slot *slot, const struct mlacat_ring_submission *entry)
{
    struct ring *ring = slot->stream->ring;
    write_entry(ring, entry, slot_call_id(slot));
    slot->sequence = ring->sequence;
    slot->failed_before = ring->failed_seen;
}

enum mlacat_status ring_put(struct mlacat_stream *stream, const struct mlacat_call *call, uint64_t *id,
                            struct error *err)
{
    struct mlacat_ring_submission entry;
    struct error refusal;
    if (make_room(stream, err) != MLACAT_OK) {
        return err->code;
    }
    struct slot *slot = slot_take(stream, call);
    *id = slot_call_id(slot);
    if (slot->done != NULL) {
        pthread_cond_broadcast(&stream->ring->changed); /* the thread of the callbacks has one more to wait for */
    }
    if (ring_encode(call, &entry, &refusal) == MLACAT_OK) {
        ring_write(slot, &entry);
    } else {
        slot_end(slot, &(struct wire_completion){.code = refusal.code,
                                                 .scope = refusal.scope,
                                                 .message = refusal.message,
                                                 .message_bytes = strlen(refusal.message)});
    }
    return MLACAT_OK;
}

void ring_publish(struct ring *ring)
{
    if (ring->published == ring->tail) {
        return;
    }
    ring->published = ring->tail;
    mlacat_ring_submit(ring->client, ring->tail);
    if (mlacat_ring_daemon_sleeps(ring->daemon)) {
        const uint64_t one = 1;
        /* Fails only when the counter is full, and then the worker is awake already. */
        ssize_t written = write(ring->doorbell, &one, sizeof(one));
        (void)written;
    }
}

enum mlacat_status ring_put_cancel(struct ring *ring, uint64_t target, struct error *err)
{
    if (ring->tail - ring->head > ring->mask) {
        return error_set(err, MLACAT_INTERNAL, "the ring has no entry left for a cancel");
    }
    ring->cancel = (struct ring_cancelling){.busy = true, .id = (uint32_t)(ring->cancel.id + 1)};
    write_entry(ring, &(struct mlacat_ring_submission){.flags = MLACAT_RING_SUBMIT_CANCEL, .ready = target},
                ring->cancel.id);
    ring_publish(ring);
    return MLACAT_OK;
}

/* ---------------------------------------------------------------------------------------------------- collecting */

/* How an entry ended; the text is the daemon's, and NUL-terminated. */
static void read_completion(const struct ring *ring, uint32_t index, struct wire_completion *completion)
{
    const struct mlacat_ring_completion *entry = &ring->completions[index & ring->mask];
    *completion = (struct wire_completion){.call_id = entry->call_id,
                                           .queue_ns = entry->queue_ns,
                                           .device_ns = entry->device_ns,
                                           .code = entry->status,
                                           .scope = entry->scope};
    if (completion->code != MLACAT_OK) {
        completion->message = ring->messages + (size_t)(index & ring->mask) * MLACAT_ABI_MESSAGE_BYTES;
        completion->message_bytes = strnlen(completion->message, MLACAT_ABI_MESSAGE_BYTES);
    }
}

static void end_cancel(struct ring_cancelling *cancel, const struct wire_completion *completion)
{
    cancel->ended = true;
    cancel->outcome.code = error_status_of(completion->code);
    cancel->outcome.scope = error_scope_of(completion->scope, cancel->outcome.code);
    error_copy_text(cancel->outcome.message, sizeof(cancel->outcome.message), completion->message);
}

static void take_completions(struct mlacat_stream *stream)
{
    struct ring *ring = stream->ring;
    uint32_t tail = ring->pages != NULL ? mlacat_ring_completed(ring->daemon) : ring->head;
    if (tail == ring->head) {
        return;
    }
    ring->alive = true;
    for (; ring->head != tail; ring->head++) {
        struct wire_completion completion;
        read_completion(ring, ring->head, &completion);
        ring->failed_taken += completion.code != MLACAT_OK;
        struct slot *slot = slot_find(stream, completion.call_id);
        if (slot != NULL && slot->state == SLOT_FLYING) {
            ring->draining |= slot_end(slot, &completion);
        } else if (ring->cancel.busy && completion.call_id == ring->cancel.id) {
            end_cancel(&ring->cancel, &completion);
        }
    }
    mlacat_ring_completions_read(ring->client, ring->head);
}

/* A call has failed, and the CUDA stream has passed it as all others, but its completion is not there yet. */
static bool is_owed_failure(const struct ring *ring)
{
    return ring->bound && ring->pages != NULL && ring->failed_taken != mlacat_ring_failed(ring->daemon) &&
           (int64_t)(__atomic_load_n(&ring->client->done, __ATOMIC_ACQUIRE) - ring->sequence) >= 0;
}

void ring_collect(struct mlacat_stream *stream)
{
    take_completions(stream);
    if (is_owed_failure(stream->ring)) {
        /* Who has synchronised with the CUDA stream shall learn of it now; the daemon is about to tell. */
        int64_t until = timing_now() + OWED_NS;
        do {
            sched_yield();
            take_completions(stream);
        } while (is_owed_failure(stream->ring) && timing_now() < until);
    }
}

bool ring_has_passed(struct ring *ring, const struct slot *slot)
{
    if (mlacat_ring_fence(ring->daemon) < slot->sequence) {
        return false;
    }
    uint32_t failed = mlacat_ring_failed(ring->daemon);
    ring->alive = true;
    ring->failed_seen = failed;
    return failed == slot->failed_before;
}

/* ---------------------------------------------------------------------------------------------------- ending */

/* What has passed the fence is done, though its completion was not written any more. */
static void end_passed(struct mlacat_stream *stream)
{
    for (uint32_t i = 0; i < stream->slots_nr && stream->flying > 0; i++) {
        struct slot *slot = &stream->slots[i];
        if (slot->state == SLOT_FLYING && ring_has_passed(stream->ring, slot)) {
            slot_end_ok(slot);
        }
    }
}

void ring_end(struct mlacat_stream *stream, const char *reason)
{
    struct ring *ring = stream->ring;
    pthread_mutex_lock(&ring->lock);
    if (ring->pages != NULL) {
        take_completions(stream); /* no daemon owes any more: it is not waited for */
        end_passed(stream);
        slot_end_all(stream, reason);
        if (ring->cancel.busy && !ring->cancel.ended) {
            ring->cancel.ended = true;
            error_set(&ring->cancel.outcome, MLACAT_UNAVAILABLE, "the connection ended before the answer: %.120s",
                      reason);
            ring->cancel.outcome.scope = MLACAT_SCOPE_SESSION;
        }
        /* Who is about to sleep and misses this sleeps for RING_CHECK_NS. */
        syscall(SYS_futex, &ring->daemon->complete_tail, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
        drop_doorbell(ring);
        ring_pages_put(ring->pages);
        ring->pages = NULL;
        pthread_cond_broadcast(&ring->changed);
    }
    pthread_mutex_unlock(&ring->lock);
}
