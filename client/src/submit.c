/* SPDX-License-Identifier: Apache-2.0 */
/* Calls on their way out: what only the library can check, slots, packets. */
#include "submit.h"

#include <errno.h>
#include <string.h>

#include "callback.h"
#include "memory_watch.h"
#include "reconnect.h"
#include "ring.h"
#include "sized.h"
#include "slot.h"
#include "timing.h"
#include "transport.h"

/* Calls of one submit: an array whose elements may be of another size than ours. */
struct batch {
    const char *calls;
    size_t stride;
    size_t nr;
    uint64_t *ids; /* NULL: nobody asks */
};

/* Call `index`, in `copy` where its struct is not of our size. NULL: `err` says why. */
static const struct mlacat_call *read_call(const struct batch *batch, size_t index, struct mlacat_call *copy,
                                           struct error *err)
{
    const struct mlacat_call *given = (const void *)(batch->calls + index * batch->stride);
    if (given->size != batch->stride) {
        error_set(err, MLACAT_INVALID_ARGUMENT,
                  "size of struct mlacat_call %zu is %zu, of the first one %zu; make them equal", index, given->size,
                  batch->stride);
        return NULL;
    }
    if (given->size == sizeof(*given)) {
        return given;
    }
    return sized_read(copy, sizeof(*copy), given, SIZED_CALL, "mlacat_call", err) == MLACAT_OK ? copy : NULL;
}

static enum mlacat_status check_wait(const struct mlacat_stream *stream, const struct mlacat_call *call,
                                     struct error *err)
{
    const struct mlacat_event *event = call->wait;
    if (event == NULL) {
        return MLACAT_OK;
    }
    if (event->client != stream->client) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "`wait` is an event of another client; use one of the client of the stream");
    }
    if (stream->ring != NULL) {
        return error_set(err, MLACAT_FAILED_PRECONDITION,
                         "a call of a stream with a ring cannot wait for an event; open the stream with "
                         "MLACAT_TRANSPORT_MESSAGE, or leave `wait` NULL and use mlacat_submit_on_stream");
    }
    if (event->broken.code != MLACAT_OK) {
        *err = event->broken;
        return err->code;
    }
    return MLACAT_OK;
}

enum mlacat_status submit_check(const struct mlacat_stream *stream, const struct mlacat_call *call, struct error *err)
{
    static const char *const names[] = {"output", "first input", "second input"};
    for (int i = 0; i < 3; i++) {
        const struct mlacat_buffer *buffer = call->operand[i].buffer;
        if (buffer == NULL) {
            return error_set(err, MLACAT_INVALID_ARGUMENT, "operand %d (%s) has no buffer; set operand[%d].buffer", i,
                             names[i], i);
        }
        if (buffer->client != stream->client) {
            return error_set(err, MLACAT_INVALID_ARGUMENT,
                             "operand %d (%s) is a buffer of another client; use one of the client of the stream", i,
                             names[i]);
        }
        if (buffer->broken.code != MLACAT_OK) {
            error_set(err, buffer->broken.code, "operand %d (%s): %.200s", i, names[i], buffer->broken.message);
            err->scope = buffer->broken.scope;
            return err->code;
        }
        if (memory_watch_refuse(buffer, i, names[i], err) != MLACAT_OK) {
            return err->code;
        }
    }
    return check_wait(stream, call, err);
}

/* How many calls of the batch, from the first, can go into one packet now; err->code: why not all of them, or OK. */
static size_t count_sendable(struct mlacat_stream *stream, const struct batch *batch, struct error *err)
{
    struct mlacat_call copy;
    size_t nr = batch->nr < WIRE_PACKET_CALLS ? batch->nr : WIRE_PACKET_CALLS;
    err->code = MLACAT_OK;
    for (size_t i = 0; i < nr; i++) {
        if (stream->taken + i >= stream->limit) {
            error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                      "%u calls of the stream are in flight or not waited for, which is its limit; wait for one first",
                      stream->limit);
            return i;
        }
        const struct mlacat_call *call = read_call(batch, i, &copy, err);
        if (call == NULL || submit_check(stream, call, err) != MLACAT_OK ||
            (call->done != NULL && callback_prepare(stream->client, err) != MLACAT_OK)) {
            return i;
        }
    }
    return nr;
}

/* Takes slots for `nr` calls and sends them in one packet. Nothing is taken unless it returns TRANSPORT_SENT. */
static enum transport_sent send_calls(struct mlacat_stream *stream, const struct batch *batch, size_t nr)
{
    struct mlacat_client *client = stream->client;
    struct slot *slots[WIRE_PACKET_CALLS];
    struct mlacat_call copy;
    struct error none; /* count_sendable has read them all */
    for (size_t i = 0; i < nr; i++) {
        slots[i] = slot_take(stream, read_call(batch, i, &copy, &none));
    }
    uint8_t *end = client->outgoing + WIRE_PACKET_BYTES;
    uint8_t *at = end;
    for (size_t i = nr; i-- > 0;) {
        const struct mlacat_call *call = read_call(batch, i, &copy, &none);
        struct wire_ref buffers[3];
        for (int k = 0; k < 3; k++) {
            buffers[k] = call->operand[k].buffer->ref;
        }
        const struct wire_ref *event = call->wait == NULL ? NULL : &call->wait->ref;
        at = wire_put_call(at, call, buffers, event, slot_call_id(slots[i]));
    }
    at = wire_put_submit_head(at, end, stream->ref);
    enum transport_sent sent = transport_send(client, at, (size_t)(end - at), NULL);
    if (sent == TRANSPORT_SENT) {
        for (size_t i = 0; batch->ids != NULL && i < nr; i++) {
            batch->ids[i] = slot_call_id(slots[i]);
        }
        return sent;
    }
    int error = errno;
    for (size_t i = nr; i-- > 0;) {
        slot_give_back(slots[i]);
    }
    errno = error;
    return sent;
}

/* Sends as much of the batch as one packet takes; *sent_nr calls were taken, also with an error. With the lock. */
static enum mlacat_status submit_packet(struct mlacat_stream *stream, const struct batch *batch, size_t *sent_nr,
                                        struct error *err)
{
    struct mlacat_client *client = stream->client;
    for (;;) {
        *sent_nr = 0;
        if (reconnect_ready(client, true, err) != MLACAT_OK) {
            return err->code;
        }
        if (stream->closing || stream->broken.code != MLACAT_OK) {
            return error_set(err, MLACAT_FAILED_PRECONDITION, "the stream %s%.120s; open another",
                             stream->closing ? "is being closed" : "could not be opened again after a restart: ",
                             stream->closing ? "" : stream->broken.message);
        }
        size_t nr = count_sendable(stream, batch, err);
        if (nr == 0) {
            return err->code;
        }
        enum transport_sent sent = send_calls(stream, batch, nr);
        if (sent == TRANSPORT_SENT) {
            *sent_nr = nr;
            if (client->thread_idle && client->flying_callbacks > 0) {
                callback_announce(client);
            }
            return err->code;
        }
        if (transport_recover(client, sent, TIMING_NEVER, err) != MLACAT_OK) {
            return err->code;
        }
    }
}

/* What the driver says about the operands of a batch. */
struct memory_check {
    struct cuda_asking asking;
    const struct mlacat_buffer *same[3]; /* the last three that were asked about and have not changed */
    unsigned next;
    struct mlacat_buffer *freed; /* the first one whose memory was freed since it was registered; NULL: none */
};

static enum mlacat_status check_buffer(struct memory_check *check, struct mlacat_buffer *buffer, struct error *err)
{
    int result;
    if (buffer == check->same[0] || buffer == check->same[1] || buffer == check->same[2]) {
        return MLACAT_OK;
    }
    switch (memory_watch_ask(&check->asking, buffer, &result)) {
    case CUDA_MEMORY_FREED:
        check->freed = buffer;
        break;
    case CUDA_MEMORY_UNKNOWN:
        return error_set(err, MLACAT_FAILED_PRECONDITION,
                         "the CUDA driver cannot tell whether the memory at 0x%llx still is what was registered "
                         "(cuPointerGetAttribute: %d); has CUDA failed or ended in this process?",
                         (unsigned long long)buffer->device_memory->pieces[0].address, result);
    default:
        check->same[check->next++ % 3] = buffer;
    }
    return MLACAT_OK;
}

static enum mlacat_status check_call_memory(const struct mlacat_stream *stream, const struct mlacat_call *call,
                                            struct memory_check *check, struct error *err)
{
    enum mlacat_status status = MLACAT_OK;
    for (int k = 0; k < 3 && status == MLACAT_OK && check->freed == NULL; k++) {
        struct mlacat_buffer *buffer = call->operand[k].buffer;
        if (buffer != NULL && buffer->client == stream->client && buffer->device_memory != NULL) {
            status = check_buffer(check, buffer, err);
        }
    }
    return status;
}

/* Ends the questions, and breaks what they found freed. True: they did. */
static bool end_check(struct memory_check *check)
{
    cuda_asking_end(&check->asking);
    if (check->freed == NULL) {
        return false;
    }
    struct mlacat_client *client = check->freed->client;
    pthread_mutex_lock(&client->lock);
    reconnect_settle(client);
    memory_watch_break(check->freed);
    pthread_mutex_unlock(&client->lock);
    return true;
}

enum mlacat_status submit_check_memory(const struct mlacat_stream *stream, const struct mlacat_call *call,
                                       struct error *err)
{
    struct memory_check check = {.freed = NULL};
    enum mlacat_status status = check_call_memory(stream, call, &check, err);
    end_check(&check);
    return status;
}

static enum mlacat_status check_batch_memory(const struct mlacat_stream *stream, const struct batch *batch,
                                             struct error *err)
{
    struct memory_check check = {.freed = NULL};
    enum mlacat_status status = MLACAT_OK;
    for (size_t i = 0; i < batch->nr && status == MLACAT_OK && check.freed == NULL; i++) {
        struct mlacat_call copy;
        struct error later; /* what is wrong with a call is said when its turn comes */
        const struct mlacat_call *call = read_call(batch, i, &copy, &later);
        if (call != NULL) {
            status = check_call_memory(stream, call, &check, err);
        }
    }
    end_check(&check);
    return status;
}

/* ---------------------------------------------------------------------------------------------------- both ways */

/* All of the batch goes into the ring, without the client's lock; *sent_nr calls were taken, also with an error. */
static enum mlacat_status submit_ring(struct mlacat_stream *stream, const struct batch *batch, size_t *sent_nr,
                                      struct error *err)
{
    struct mlacat_call copy;
    *sent_nr = 0;
    if (ring_enter(stream, err) != MLACAT_OK) {
        return err->code;
    }
    err->code = MLACAT_OK;
    for (; *sent_nr < batch->nr; ++*sent_nr) {
        const struct mlacat_call *call = read_call(batch, *sent_nr, &copy, err);
        uint64_t id;
        if (call == NULL || submit_check(stream, call, err) != MLACAT_OK ||
            (call->done != NULL && ring_callback_prepare(stream, err) != MLACAT_OK) ||
            ring_put(stream, call, &id, err) != MLACAT_OK) {
            break;
        }
        if (batch->ids != NULL) {
            batch->ids[*sent_nr] = id;
        }
    }
    ring_leave(stream);
    return err->code;
}

/* The same in packets, with the lock for all of them. */
static enum mlacat_status submit_messages(struct mlacat_stream *stream, const struct batch *batch, size_t *sent_nr,
                                          struct error *err)
{
    struct batch rest = *batch;
    enum mlacat_status status = MLACAT_OK;
    *sent_nr = 0;
    pthread_mutex_lock(&stream->client->lock);
    while (status == MLACAT_OK && rest.nr > 0) {
        size_t sent;
        status = submit_packet(stream, &rest, &sent, err);
        *sent_nr += sent;
        rest.nr -= sent;
        rest.calls += sent * rest.stride;
        rest.ids = rest.ids == NULL ? NULL : rest.ids + sent;
    }
    pthread_mutex_unlock(&stream->client->lock);
    return status;
}

/* What there is of the call is over when this returns, and nobody hears of it. With the lock. */
static void take_back(struct mlacat_stream *stream, uint64_t id)
{
    struct error outcome;
    struct mlacat_result result;
    ring_cancel(stream, id, &outcome); /* one that is launched ends by itself */
    struct slot *slot = slot_find(stream, id);
    ring_await(stream, slot, -1, false);
    slot_take_result(slot, &result);
}

/*
 * One call through a ring. The driver is asked when the call is on its way, while the daemon works on it. Memory that
 * was freed the daemon still has open, and until it closes it nobody else gets it, so that the call can do no harm
 * there. But another operand may be memory of the caller, who takes a call that was refused for one that does nothing:
 * it has to be over by then.
 */
static enum mlacat_status submit_one(struct mlacat_stream *stream, const struct mlacat_call *given, uint64_t *id,
                                     struct error *err)
{
    uint64_t sent_id;
    size_t sent_nr;
    struct batch batch = {(const char *)given, given->size, 1, &sent_id};
    if (submit_ring(stream, &batch, &sent_nr, err) != MLACAT_OK) {
        return err->code;
    }
    struct mlacat_call copy;
    struct memory_check check = {.freed = NULL};
    const struct mlacat_call *call = read_call(&batch, 0, &copy, err);
    enum mlacat_status status = check_call_memory(stream, call, &check, err);
    bool freed = end_check(&check);
    if (status != MLACAT_OK || freed) {
        pthread_mutex_lock(&stream->ring->lock);
        take_back(stream, sent_id);
        status = freed ? submit_check(stream, call, err) : status;
        pthread_mutex_unlock(&stream->ring->lock);
        return status;
    }
    *id = sent_id;
    return MLACAT_OK;
}

static enum mlacat_status submit(struct mlacat_stream *stream, struct batch batch, size_t *submitted)
{
    enum mlacat_status status = client_check(stream != NULL ? stream->client : NULL);
    size_t done = 0;
    if (status == MLACAT_OK) {
        struct error err;
        status = check_batch_memory(stream, &batch, &err);
        if (status == MLACAT_OK) {
            status = stream->ring != NULL ? submit_ring(stream, &batch, &done, &err)
                                          : submit_messages(stream, &batch, &done, &err);
        }
        if (status != MLACAT_OK) {
            error_raise(&err);
        }
    }
    if (submitted != NULL) {
        *submitted = done;
    }
    return status;
}

enum mlacat_status mlacat_submit(struct mlacat_stream *stream, const struct mlacat_call *call, uint64_t *id)
{
    if (call == NULL || (call->done == NULL && id == NULL)) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "%s is NULL",
                          call == NULL ? "call" : "call_id, which a call without a callback needs,");
    }
    if (stream != NULL && stream->ring != NULL && call->done == NULL) {
        struct error err;
        enum mlacat_status status = client_check(stream->client);
        if (status == MLACAT_OK && submit_one(stream, call, id, &err) != MLACAT_OK) {
            status = error_raise(&err);
        }
        return status;
    }
    return submit(stream, (struct batch){(const char *)call, call->size, 1, id}, NULL);
}

enum mlacat_status mlacat_submit_batch(struct mlacat_stream *stream, const struct mlacat_call *calls, size_t nr,
                                       uint64_t *call_ids, size_t *submitted)
{
    if (calls == NULL && nr > 0) {
        if (submitted != NULL) {
            *submitted = 0;
        }
        return error_fail(MLACAT_INVALID_ARGUMENT, "calls is NULL and nr is %zu", nr);
    }
    return submit(stream, (struct batch){(const char *)calls, nr > 0 ? calls->size : 0, nr, call_ids}, submitted);
}

struct mlacat_tensor mlacat_tensor_contiguous(struct mlacat_buffer *buffer, uint64_t offset_bytes, uint64_t d0,
                                              uint64_t d1, uint64_t d2)
{
    /* A product that does not fit is no stride of any real tensor; what is left of it is refused by the daemon's
     * bounds. */
    return (struct mlacat_tensor){
        .buffer = buffer,
        .offset_bytes = offset_bytes,
        .shape = {d0, d1, d2},
        .strides = {(int64_t)(d1 * d2), (int64_t)d2, 1},
    };
}
