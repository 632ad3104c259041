/* SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "ring_stream.h"

static void stream_free(struct stream *stream)
{
    engine_release_worker(stream->engine, stream->worker);
    if (stream->ring) {
        doorbell_forget(&stream->worker->doorbell, stream->ring->doorbell_fd);
        stream->ring_calls_total = atomic_load_explicit(&stream->ring->calls_total, memory_order_relaxed);
        ring_stream_free(stream->ring);
        stream->ring = NULL; /* on_gone may let the rings go */
    }
    stream->handlers->on_gone(stream);
    free(stream->calls);
    free(stream);
}

static void run_close(struct control_job *job)
{
    struct stream *stream = LIST_ENTRY(job, struct stream, job);
    stream->engine->ops->stream_close(stream->device_stream);
}

static void on_close_done(struct control_job *job)
{
    stream_free(LIST_ENTRY(job, struct stream, job));
}

/* The worker does not look at a stream that has no calls (turn.c: post_ended), so the control thread has it to
 * itself. */
static void close_if_unused(struct stream *stream)
{
    if (stream->state != STREAM_CLOSING || stream->calls_used > 0 || stream->at_control ||
        (stream->ring && stream->ring->attached)) {
        return;
    }
    stream->at_control = true;
    stream->job = (struct control_job){.run = run_close, .done = on_close_done, .lane = stream->lane};
    list_init(&stream->job.link);
    control_post(&stream->engine->control, &stream->job);
}

static void run_open(struct control_job *job)
{
    struct stream *stream = LIST_ENTRY(job, struct stream, job);
    struct engine *engine = stream->engine;
    if (!stream->ring) {
        engine->ops->stream_open(engine->device, NULL, &stream->device_stream, &stream->error);
        return;
    }
    enum device_answer answer = rings_share_register(stream->ring->share, &stream->error);
    job->again = answer == DEVICE_AGAIN;
    if (answer == DEVICE_OK) {
        struct device_words words = ring_stream_words(stream->ring);
        engine->ops->stream_open(engine->device, &words, &stream->device_stream, &stream->error);
    }
}

/* The first stream with a ring brings the registration of the pages, which holds others up as an import does. */
static bool is_import(const struct stream *stream)
{
    if (!stream->ring || stream->ring->share->asked) {
        return false;
    }
    stream->ring->share->asked = true;
    return stream->engine->ops->import_holds_up;
}

static void attach(struct stream *stream)
{
    stream->ring->attached = true;
    stream->ring->stream = stream;
    worker_attach(stream->worker, &stream->ring->attach_mail);
}

static void on_open_done(struct control_job *job)
{
    struct stream *stream = LIST_ENTRY(job, struct stream, job);
    bool wanted = stream->state == STREAM_OPENING;
    stream->at_control = false;
    if (!stream->device_stream) {
        if (stream->ring) {
            stream->ring->share->asked = false; /* perhaps it was the pages: the next stream tries again */
        }
        if (wanted) {
            stream->handlers->on_opened(stream);
        }
        stream_free(stream);
    } else if (wanted) {
        stream->state = STREAM_OPEN;
        if (stream->ring) {
            attach(stream);
        }
        stream->handlers->on_opened(stream);
    } else {
        close_if_unused(stream);
    }
}

static void init_lists(struct stream *stream)
{
    list_init(&stream->link);
    list_init(&stream->free);
    list_init(&stream->live);
    list_init(&stream->held);
    list_init(&stream->active_link);
    list_init(&stream->queue);
    list_init(&stream->launched);
}

enum mlacat_status stream_open(struct engine *engine, struct control_lane *lane, uint32_t calls_nr,
                               struct ring_stream *ring, const struct stream_handlers *handlers, void *owner,
                               struct stream **stream, struct error *err)
{
    struct stream *made = aligned_alloc(_Alignof(struct stream), sizeof(*made));
    struct call *calls = calloc(calls_nr, sizeof(*calls));
    if (!made || !calls) {
        free(made);
        free(calls);
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for a stream of %u calls",
                         calls_nr);
    }
    memset(made, 0, sizeof(*made));
    made->worker = engine_assign_worker(engine);
    if (ring && doorbell_watch(&made->worker->doorbell, ring->doorbell_fd, err) != MLACAT_OK) {
        engine_release_worker(engine, made->worker);
        free(made);
        free(calls);
        return err->code;
    }
    made->engine = engine;
    made->lane = lane;
    made->ring = ring;
    made->handlers = handlers;
    made->owner = owner;
    made->calls = calls;
    made->calls_nr = calls_nr;
    made->at_control = true;
    init_lists(made);
    made->job = (struct control_job){.run = run_open, .done = on_open_done, .lane = lane, .is_import = is_import(made)};
    list_init(&made->job.link);
    control_post(&engine->control, &made->job);
    *stream = made;
    return MLACAT_OK;
}

/* Calls come into use from the start of the pool and are used again last in, first out: an idle stream's pool stays
 * untouched memory. */
struct call *stream_fresh_call(struct stream *stream)
{
    struct list_node *node = list_take(&stream->free);
    if (node) {
        return LIST_ENTRY(node, struct call, link);
    }
    if (stream->calls_touched == stream->calls_nr) {
        return NULL;
    }
    struct call *call = &stream->calls[stream->calls_touched++];
    call->stream = stream;
    list_init(&call->link);
    list_init(&call->hold_link);
    list_init(&call->queue_link);
    return call;
}

struct call *stream_get_call(struct stream *stream)
{
    struct call *call = stream_fresh_call(stream);
    if (!call) {
        return NULL;
    }
    call_set_state(call, CALL_BOUND);
    stream->calls_used++;
    list_append(&stream->live, &call->link);
    atomic_store_explicit(&call->claim, CALL_WAITING, memory_order_relaxed);
    call->imports_pending = 0;
    call->deadline_ns = 0;
    call->gated_ns = 0;
    call->ask_ns = 0;
    call->launched_ns = 0;
    call->ended_ns = 0;
    call->error.code = MLACAT_OK;
    call->event = NULL;
    for (int i = 0; i < OP_OPERANDS; i++) {
        call->buffer[i] = NULL;
    }
    return call;
}

void stream_put_call(struct stream *stream, struct call *call)
{
    call_set_state(call, CALL_FREE);
    list_remove(&call->link);
    /* At the front: the next call finds it in the cache. */
    list_prepend(&stream->free, &call->link);
    stream->calls_used--;
    close_if_unused(stream);
}

void stream_submit(struct stream *stream, struct call *call)
{
    call_set_state(call, CALL_SUBMITTED);
    worker_post(stream->worker, call);
}

void stream_end_call(struct stream *stream, struct call *call)
{
    call_set_state(call, CALL_DONE);
    list_remove(&call->link);
    stream->handlers->on_call_done(stream, call);
}

void stream_fail_call(struct stream *stream, struct call *call, const struct error *err)
{
    assert(call->state == CALL_BOUND);
    call->error = *err;
    list_remove(&call->hold_link);
    stream_end_call(stream, call);
}

bool stream_withdraw(struct stream *stream, struct call *call, enum call_claim why)
{
    if (call->state == CALL_DONE || !call_withdraw(call, why)) {
        return false;
    }
    if (call->state == CALL_SUBMITTED) {
        worker_withdrawn(stream->worker);
        return true;
    }
    struct error err;
    call_withdrawn_error(why, &err);
    stream_fail_call(stream, call, &err);
    return true;
}

/* Sequentially consistent, like all that a worker looks at before it sleeps (doorbell.h). */
static void order_ring(struct stream *stream, enum ring_order order)
{
    if (stream->ring && atomic_load_explicit(&stream->ring->order, memory_order_relaxed) < (uint32_t)order) {
        atomic_store(&stream->ring->order, order);
        doorbell_ring(&stream->worker->doorbell);
    }
}

void stream_close(struct stream *stream)
{
    assert(stream->state != STREAM_CLOSING);
    stream->state = STREAM_CLOSING;
    order_ring(stream, RING_FINISH);
    close_if_unused(stream);
}

void stream_drop_ring(struct stream *stream)
{
    order_ring(stream, RING_DROP);
}

void stream_take_report(struct stream *stream, const struct ring_report *report)
{
    if (!report->detached) {
        stream->handlers->on_broken(stream, &stream->ring->broken_why);
        return;
    }
    stream->ring->attached = false;
    close_if_unused(stream);
}
