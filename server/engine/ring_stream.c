/* SPDX-License-Identifier: Apache-2.0 */
#include "ring_stream.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clock.h"
#include "mlacat_ring.h"
#include "ring_call.h"
#include "stream.h"
#include "worker.h"

/* Entries taken from one ring in a row: then the others have their turn. */
#define TAKE_MOST DEVICE_BATCH

/* ------------------------------------------------------------------------------------------------------ loop */

enum mlacat_status ring_stream_new(struct rings *rings, struct engine *engine, struct ring_stream **ring,
                                   struct error *err)
{
    uint32_t index;
    if (rings_get(rings, &index, err) != MLACAT_OK) {
        return err->code;
    }
    struct ring_stream *made = aligned_alloc(_Alignof(struct ring_stream), sizeof(*made));
    int doorbell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!made || doorbell_fd < 0) {
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "cannot make the doorbell of another stream: %s; raise LimitNOFILE",
                  strerror(errno));
        free(made);
        rings_put(rings, index, rings->sequence[index]);
        return err->code;
    }
    memset(made, 0, sizeof(*made));
    made->rings = rings;
    made->share = rings_share_with(rings, engine);
    made->index = index;
    made->doorbell_fd = doorbell_fd;
    made->broken.ring = made;
    made->detached.ring = made;
    made->detached.detached = true;
    list_init(&made->link);
    ring_init(&made->ring, rings->pages, index, rings->sequence[index]);
    *ring = made;
    return MLACAT_OK;
}

void ring_stream_free(struct ring_stream *ring)
{
    assert(!ring->attached);
    rings_put(ring->rings, ring->index, ring->ring.sequence);
    close(ring->doorbell_fd);
    free(ring);
}

struct device_words ring_stream_words(const struct ring_stream *ring)
{
    return (struct device_words){.fence = &ring->ring.daemon->fence,
                                 .fence_pages = ring->share->daemon_pages,
                                 .done = &ring->ring.client->done,
                                 .ready = &ring->ring.client->ready,
                                 .client_pages = ring->share->client_pages};
}

/* ------------------------------------------------------------------------------------------------------ the pool */

static void count_call(struct worker *worker, struct ring_stream *ring, int change)
{
    uint32_t calls_nr = atomic_load_explicit(&ring->calls_nr, memory_order_relaxed) + (uint32_t)change;
    atomic_store_explicit(&ring->calls_nr, calls_nr, memory_order_relaxed);
    worker->ring_calls_now += (uint32_t)change;
}

/* There is one: the ring takes no more entries than the pool has calls. */
static struct call *get_call(struct worker *worker, struct stream *stream)
{
    struct call *call = stream_fresh_call(stream);
    struct ring_stream *ring = stream->ring;
    uint64_t total = atomic_load_explicit(&ring->calls_total, memory_order_relaxed);
    assert(call);
    atomic_store_explicit(&ring->calls_total, total + 1, memory_order_relaxed);
    count_call(worker, ring, 1);
    call->sequence = ring->ring.sequence;
    return call;
}

static void put_call(struct worker *worker, struct call *call)
{
    ring_call_unbind(worker, call);
    count_call(worker, call->stream->ring, -1);
    list_prepend(&call->stream->free, &call->link);
}

/* ------------------------------------------------------------------------------------------------------ reports */

static void report(struct worker *worker, struct ring_report *what)
{
    mailbox_post(&worker->reports, &what->mail);
    worker->posted = true;
}

static void report_broken(struct worker *worker, struct ring_stream *ring, const struct error *why)
{
    if (!ring->reported) {
        ring->reported = true;
        ring->broken_why = *why;
        report(worker, &ring->broken);
    }
}

/* Nothing of the stream is touched after it. */
static void detach(struct worker *worker, struct ring_stream *ring)
{
    list_remove(&ring->link);
    list_remove(&ring->stream->active_link);
    report(worker, &ring->detached);
}

/* ------------------------------------------------------------------------------------------------------ ends */

void ring_stream_publish(struct stream *stream)
{
    ring_publish(&stream->ring->ring);
}

bool ring_stream_signals(struct call *call)
{
    if (call->signal_only || !call->tell_done || call->stream->lost) {
        return false;
    }
    ring_count_failed(&call->stream->ring->ring);
    call->signal_only = true;
    return true;
}

void ring_stream_end_call(struct worker *worker, struct call *call)
{
    struct ring_stream *ring = call->stream->ring;
    const struct error *outcome = &call->error;
    if (outcome->code != MLACAT_OK && !call->signal_only) {
        ring_count_failed(&ring->ring);
    }
    bool ran = call->launched_ns != 0 && call->ended_ns != 0 && !call->signal_only;
    counters_add(&worker->counters, call);
    ring_complete(&ring->ring, call->call_id, outcome, ran ? call->launched_ns - call->received_ns : 0,
                  ran ? call->ended_ns - call->launched_ns : 0);
    if (outcome->code != MLACAT_OK && outcome->scope >= MLACAT_SCOPE_SESSION) {
        ring->unreadable |= outcome->scope == MLACAT_SCOPE_SESSION;
        report_broken(worker, ring, outcome);
    }
    put_call(worker, call);
}

/* A call on no list that is not launched and never will be. With somebody's GPU waiting for it, it goes to the end of
 * `queue` and tells so in its turn. */
static void refuse(struct worker *worker, struct call *call, struct list_node *behind)
{
    ring_call_unbind(worker, call);
    if (ring_stream_signals(call)) {
        list_append(behind, &call->queue_link);
    } else {
        ring_stream_end_call(worker, call);
    }
}

/* The same for one in the queue, which keeps its place: appending before the one behind it. */
static void withdraw(struct worker *worker, struct call *call, enum call_claim why)
{
    struct list_node *behind = call->queue_link.next;
    call_withdrawn_error(why, &call->error);
    list_remove(&call->queue_link);
    refuse(worker, call, behind);
}

/* ------------------------------------------------------------------------------------------------------ entries */

static void find_call(struct stream *stream, uint64_t call_id, struct call **queued, struct error *err)
{
    for (struct list_node *node = stream->queue.next; node != &stream->queue; node = node->next) {
        struct call *call = LIST_ENTRY(node, struct call, queue_link);
        if (call->call_id == call_id && !call->signal_only) {
            *queued = call;
            err->code = MLACAT_OK;
            return;
        }
    }
    for (struct list_node *node = stream->launched.next; node != &stream->launched; node = node->next) {
        if (LIST_ENTRY(node, struct call, queue_link)->call_id == call_id) {
            error_set(err, MLACAT_FAILED_PRECONDITION, "call %" PRIu64 " is launched or withdrawn already: it will end",
                      call_id);
            return;
        }
    }
    error_set(err, MLACAT_NOT_FOUND, "no call %" PRIu64 " is in flight on stream %u.%u: it has ended, or never was",
              call_id, stream->ref.id, stream->ref.generation);
}

static void cancel(struct worker *worker, struct stream *stream, const struct mlacat_ring_submission *entry)
{
    struct call *queued = NULL;
    struct error outcome;
    find_call(stream, entry->ready, &queued, &outcome);
    if (queued) {
        withdraw(worker, queued, CALL_WITHDRAWN_CANCEL);
    } else {
        ring_count_failed(&stream->ring->ring);
    }
    ring_complete(&stream->ring->ring, entry->call_id, &outcome, 0, 0);
}

void ring_stream_note_deadline(const struct call *call)
{
    struct ring_stream *ring = call->stream->ring;
    if (call->deadline_ns != 0 && (ring->deadline_ns == 0 || call->deadline_ns < ring->deadline_ns)) {
        ring->deadline_ns = call->deadline_ns;
    }
}

static void accept_call(struct worker *worker, struct stream *stream, const struct mlacat_ring_submission *entry,
                        uint64_t now_ns)
{
    struct call *call = get_call(worker, stream);
    ring_call_read(entry, now_ns, call);
    if (worker->drain_seen) {
        error_set(&call->error, MLACAT_UNAVAILABLE, "the service is draining: submit again when it is back");
    } else {
        ring_call_bind(worker, entry, call, &call->error);
    }
    if (call->error.code != MLACAT_OK) {
        refuse(worker, call, &stream->queue);
        return;
    }
    atomic_store_explicit(&call->claim, CALL_WAITING, memory_order_relaxed);
    list_append(&stream->queue, &call->queue_link);
    ring_stream_note_deadline(call);
}

static void take_entries(struct worker *worker, struct stream *stream)
{
    struct ring_stream *ring = stream->ring;
    struct mlacat_ring_submission entry;
    struct error err;
    uint64_t now_ns = 0;
    for (int i = 0; i < TAKE_MOST; i++) {
        enum ring_answer answer = ring_take(&ring->ring, &entry, &err);
        if (answer == RING_BROKEN || (answer == RING_TAKEN && ring_call_check(&entry, &err) != MLACAT_OK)) {
            ring->unreadable = true;
            report_broken(worker, ring, &err);
            break;
        }
        if (answer != RING_TAKEN) {
            break;
        }
        if ((entry.flags & MLACAT_RING_SUBMIT_CANCEL) && stream->armed) {
            ring_put_back(&ring->ring); /* whether the armed call can be cancelled nobody knows for a moment */
            break;
        }
        if (now_ns == 0) {
            now_ns = clock_now_ns();
        }
        if (entry.flags & MLACAT_RING_SUBMIT_CANCEL) {
            cancel(worker, stream, &entry);
            break; /* it has looked through all calls of the stream: now the others have their turn */
        }
        accept_call(worker, stream, &entry, now_ns);
    }
    if (now_ns != 0) {
        worker->moved = true;
        ring_release_taken(&ring->ring);
        ring_publish(&ring->ring);
    }
}

/* ------------------------------------------------------------------------------------------------------ rounds */

bool ring_stream_ready(const struct call *call)
{
    return !call->gated || call->signal_only ||
           (int64_t)(mlacat_ring_ready(call->stream->ring->ring.client) - call->ready) >= 0;
}

static void end_late_calls(struct worker *worker, struct stream *stream)
{
    uint64_t now_ns = clock_now_ns();
    uint64_t next_ns = 0;
    struct list_node *node = stream->queue.next;
    if (now_ns < stream->ring->deadline_ns) {
        return;
    }
    while (node != &stream->queue) {
        struct call *call = LIST_ENTRY(node, struct call, queue_link);
        node = node->next;
        if (call->deadline_ns == 0 || call->signal_only) {
            continue;
        }
        if (call->deadline_ns <= now_ns) {
            withdraw(worker, call, CALL_WITHDRAWN_DEADLINE);
        } else if (next_ns == 0 || call->deadline_ns < next_ns) {
            next_ns = call->deadline_ns;
        }
    }
    stream->ring->deadline_ns = next_ns;
    ring_publish(&stream->ring->ring);
}

/* What is not launched. The GPU of a client that has gone may wait for it, with work behind that: it is told, in its
 * turn. */
static void drop_queue(struct worker *worker, struct stream *stream)
{
    struct list_node *node = stream->queue.next;
    while (node != &stream->queue) {
        struct call *call = LIST_ENTRY(node, struct call, queue_link);
        node = node->next;
        if (!call->signal_only) {
            call_withdrawn_error(CALL_WITHDRAWN_GONE, &call->error);
            if (ring_stream_signals(call)) {
                ring_call_unbind(worker, call);
                continue;
            }
            ring_count_failed(&stream->ring->ring); /* a signal behind it moves the fence past it */
        } else if (!stream->lost) {
            continue;
        }
        list_remove(&call->queue_link);
        counters_add(&worker->counters, call);
        put_call(worker, call);
    }
}

/* What was published before the end: a GPU may wait for it. Not more than fits into the ring, for who writes on. */
static void take_rest(struct worker *worker, struct stream *stream)
{
    struct ring_stream *ring = stream->ring;
    bool reported = ring->reported;
    ring->reported = true; /* what is wrong in it matters no more: the session is over */
    for (uint32_t i = 0; i < ring->ring.entries && !ring->unreadable && ring_has_more(&ring->ring); i++) {
        take_entries(worker, stream);
    }
    ring->reported = reported;
    ring->unreadable = true; /* else what is left in it would count as news, and keep the worker from its naps */
}

static void look(struct worker *worker, struct ring_stream *ring)
{
    struct stream *stream = ring->stream;
    enum ring_order order = (enum ring_order)atomic_load_explicit(&ring->order, memory_order_acquire);
    if (order != RING_GO_ON) {
        mlacat_ring_look(ring->ring.daemon, 0); /* nobody is to rely on it any more */
    }
    if (order == RING_DROP) {
        take_rest(worker, stream);
        drop_queue(worker, stream);
    } else if (!ring->unreadable) {
        take_entries(worker, stream);
    }
    if (ring->deadline_ns != 0) {
        end_late_calls(worker, stream);
    }
    if (!list_empty(&stream->queue)) {
        if (list_empty(&stream->active_link)) {
            list_append(&worker->active, &stream->active_link);
        }
    } else if (order != RING_GO_ON && list_empty(&stream->launched) &&
               (ring->unreadable || !ring_has_more(&ring->ring))) {
        detach(worker, ring);
    }
}

void ring_streams_attach(struct worker *worker, struct mail *attach_mail)
{
    list_append(&worker->rings, &LIST_ENTRY(attach_mail, struct ring_stream, attach_mail)->link);
}

void ring_streams_look(struct worker *worker)
{
    struct list_node *node = worker->rings.next;
    while (node != &worker->rings) {
        struct ring_stream *ring = LIST_ENTRY(node, struct ring_stream, link);
        node = node->next;
        look(worker, ring);
    }
}

/* What comes behind an armed call can wait for as long as that does, and a request to cancel must. */
static bool has_news(const struct ring_stream *ring)
{
    bool ordered = list_empty(&ring->stream->active_link) && atomic_load(&ring->order) != RING_GO_ON;
    return ordered || (!ring->unreadable && !ring->stream->armed && ring_has_more(&ring->ring));
}

bool ring_streams_have_news(const struct worker *worker)
{
    for (struct list_node *node = worker->rings.next; node != &worker->rings; node = node->next) {
        if (has_news(LIST_ENTRY(node, struct ring_stream, link))) {
            return true;
        }
    }
    return false;
}

void ring_streams_tell_look(struct worker *worker, uint64_t now_ns)
{
    if (now_ns - worker->told_look_ns < RING_TELL_NS) {
        return;
    }
    worker->told_look_ns = now_ns;
    for (struct list_node *node = worker->rings.next; node != &worker->rings; node = node->next) {
        struct ring_stream *ring = LIST_ENTRY(node, struct ring_stream, link);
        if (atomic_load_explicit(&ring->order, memory_order_relaxed) == RING_GO_ON) {
            mlacat_ring_look(ring->ring.daemon, now_ns);
        }
    }
}

void ring_streams_sleep(const struct worker *worker, bool asleep)
{
    for (struct list_node *node = worker->rings.next; node != &worker->rings; node = node->next) {
        mlacat_ring_sleep(LIST_ENTRY(node, struct ring_stream, link)->ring.daemon, asleep);
    }
}
