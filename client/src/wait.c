/* SPDX-License-Identifier: Apache-2.0 */
/* Calls on their way back: wait, run, cancel. */
#include <string.h>

#include "callback.h"
#include "request.h"
#include "ring.h"
#include "sized.h"
#include "slot.h"
#include "timing.h"
#include "transport.h"

/* Looks and waits until the slot has ended; false: the time is over. */
static bool await_slot(struct mlacat_client *client, struct slot *slot, int64_t timeout_us)
{
    if (slot->state == SLOT_ENDED) {
        return true;
    }
    int64_t deadline = timing_deadline(timeout_us);
    struct waiter waiter = {.runs_callbacks = client->dispatch == MLACAT_DISPATCH_CALLER};
    slot->waiter = &waiter;
    while (slot->state == SLOT_FLYING && transport_step(client, &waiter, deadline)) {
        if (waiter.runs_callbacks && !STAILQ_EMPTY(&client->due)) {
            transport_leave(client);
            callback_run_due(client);
        }
    }
    slot->waiter = NULL;
    transport_leave(client);
    return slot->state == SLOT_ENDED;
}

/* `timed`: the times of the result are wanted. With the stream's lock. */
static enum mlacat_status wait_call(struct mlacat_stream *stream, uint64_t id, int64_t timeout_us, bool timed,
                                    struct mlacat_result *result)
{
    struct slot *slot = slot_find(stream, id);
    if (slot == NULL || slot->done != NULL || slot->detached) {
        return error_fail(MLACAT_NOT_FOUND, "call %#llx of this stream is not there: it %s", (unsigned long long)id,
                          slot == NULL         ? "was waited for, or never submitted"
                          : slot->done != NULL ? "has a callback"
                                               : "is ordered by a CUDA stream: synchronise with that");
    }
    if (slot->waiter != NULL) {
        return error_fail(MLACAT_FAILED_PRECONDITION, "another thread already waits for call %#llx",
                          (unsigned long long)id);
    }
    if (!(stream->ring != NULL ? ring_await(stream, slot, timeout_us, timed)
                               : await_slot(stream->client, slot, timeout_us))) {
        return error_fail(MLACAT_DEADLINE_EXCEEDED, "call %#llx did not end within %lld us; it is still in flight",
                          (unsigned long long)id, (long long)timeout_us);
    }
    slot_take_result(slot, result);
    if (result->status != MLACAT_OK) {
        struct error err = {.code = result->status, .scope = result->scope};
        memcpy(err.message, result->message, sizeof(err.message));
        return error_raise(&err);
    }
    return MLACAT_OK;
}

/* The error that was just raised is about the wait or the submit, not about a call that ended. */
static enum mlacat_status tell_refusal(struct mlacat_result *result, enum mlacat_status status)
{
    if (result != NULL) {
        struct mlacat_result own = {.status = status, .scope = mlacat_error_scope()};
        error_copy_text(own.message, sizeof(own.message), mlacat_error_message());
        sized_write(result, &own, sizeof(own));
    }
    return status;
}

static enum mlacat_status check_result(const struct mlacat_result *result)
{
    return result == NULL ? MLACAT_OK : sized_check(result, SIZED_RESULT, "mlacat_result");
}

enum mlacat_status mlacat_wait(struct mlacat_stream *stream, uint64_t id, int64_t timeout_us,
                               struct mlacat_result *result)
{
    enum mlacat_status status = check_result(result);
    if (status != MLACAT_OK) {
        return status;
    }
    status = client_check(stream != NULL ? stream->client : NULL);
    if (status != MLACAT_OK) {
        return tell_refusal(result, status);
    }
    struct mlacat_result own = {0};
    pthread_mutex_t *lock = stream->ring != NULL ? &stream->ring->lock : &stream->client->lock;
    pthread_mutex_lock(lock);
    status = wait_call(stream, id, timeout_us, result != NULL, &own);
    pthread_mutex_unlock(lock);
    if (!own.ended) {
        return tell_refusal(result, status);
    }
    if (result != NULL) {
        sized_write(result, &own, sizeof(own));
    }
    return status;
}

enum mlacat_status mlacat_run(struct mlacat_stream *stream, const struct mlacat_call *call,
                              struct mlacat_result *result)
{
    uint64_t id;
    /* Before the call runs: its result could not be taken any more. */
    enum mlacat_status status = check_result(result);
    if (status != MLACAT_OK) {
        return status;
    }
    if (call != NULL && call->done != NULL) {
        status =
            error_fail(MLACAT_INVALID_ARGUMENT, "mlacat_run waits by itself; leave `done` NULL or use mlacat_submit");
    } else {
        status = mlacat_submit(stream, call, &id);
    }
    return status != MLACAT_OK ? tell_refusal(result, status) : mlacat_wait(stream, id, -1, result);
}

/* With the lock. */
static enum mlacat_status cancel_by_message(struct mlacat_stream *stream, uint64_t id, struct error *err)
{
    message request = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__Cancel body = MLACAT__V1__CANCEL__INIT;
    Mlacat__V1__StreamRef ref = MLACAT__V1__STREAM_REF__INIT;
    request.body_case = MLACAT__V1__ENVELOPE__BODY_CANCEL;
    request.cancel = &body;
    body.stream = &ref;
    body.call_id = id;
    const struct slot *slot = slot_find(stream, id);
    if (slot == NULL || slot->state != SLOT_FLYING) {
        return error_set(err, MLACAT_NOT_FOUND, "call %#llx of this stream is not in flight", (unsigned long long)id);
    }
    ref.id = stream->ref.id;
    ref.generation = stream->ref.generation;
    return request_make(stream->client, &request, NULL, REQUEST_THIS_CONNECTION, MLACAT__V1__ENVELOPE__BODY_ANSWER,
                        NULL, err);
}

enum mlacat_status mlacat_cancel(struct mlacat_stream *stream, uint64_t id)
{
    enum mlacat_status status = client_check(stream != NULL ? stream->client : NULL);
    if (status != MLACAT_OK) {
        return status;
    }
    struct error err;
    pthread_mutex_t *lock = stream->ring != NULL ? &stream->ring->lock : &stream->client->lock;
    pthread_mutex_lock(lock);
    status = stream->ring != NULL ? ring_cancel(stream, id, &err) : cancel_by_message(stream, id, &err);
    pthread_mutex_unlock(lock);
    return status == MLACAT_OK ? MLACAT_OK : error_raise(&err);
}
