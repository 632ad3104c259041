/* SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

static void stream_free(struct stream *stream)
{
    engine_release_worker(stream->engine, stream->worker);
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

/* The worker does not look at a stream that has no calls (worker.c: post_ended), so the control thread has it to
 * itself. */
static void close_if_unused(struct stream *stream)
{
    if (stream->state != STREAM_CLOSING || stream->calls_used > 0 || stream->at_control) {
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
    stream->engine->ops->stream_open(stream->engine->device, NULL, &stream->device_stream, &stream->error);
}

static void on_open_done(struct control_job *job)
{
    struct stream *stream = LIST_ENTRY(job, struct stream, job);
    bool wanted = stream->state == STREAM_OPENING;
    stream->at_control = false;
    if (!stream->device_stream) {
        if (wanted) {
            stream->handlers->on_opened(stream);
        }
        stream_free(stream);
    } else if (wanted) {
        stream->state = STREAM_OPEN;
        stream->handlers->on_opened(stream);
    } else {
        close_if_unused(stream);
    }
}

enum mlacat_status stream_open(struct engine *engine, struct control_lane *lane, uint32_t calls_nr,
                               const struct stream_handlers *handlers, void *owner, struct stream **stream,
                               struct error *err)
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
    made->engine = engine;
    made->lane = lane;
    made->handlers = handlers;
    made->owner = owner;
    made->calls = calls;
    made->calls_nr = calls_nr;
    made->at_control = true;
    list_init(&made->link);
    list_init(&made->free);
    list_init(&made->live);
    list_init(&made->held);
    list_init(&made->active_link);
    list_init(&made->queue);
    list_init(&made->launched);
    made->worker = engine_assign_worker(engine);
    made->job = (struct control_job){.run = run_open, .done = on_open_done, .lane = lane};
    list_init(&made->job.link);
    control_post(&engine->control, &made->job);
    *stream = made;
    return MLACAT_OK;
}

/* Calls come into use from the start of the pool and are used again last in, first out: an idle stream's pool stays
 * untouched memory. */
static struct call *fresh_call(struct stream *stream)
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
    struct call *call = fresh_call(stream);
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

void stream_close(struct stream *stream)
{
    assert(stream->state != STREAM_CLOSING);
    stream->state = STREAM_CLOSING;
    close_if_unused(stream);
}
