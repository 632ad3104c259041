/* SPDX-License-Identifier: Apache-2.0 */
#include "stream_order.h"

#include <time.h>

#include "cuda_current.h"
#include "cuda_export.h"
#include "sized.h"
#include "slot.h"
#include "submit.h"
#include "timing.h"

#define SETTLE_NS (2000 * TIMING_MS)

/* ---------------------------------------------------------------------------------------------------- checks */

static enum mlacat_status check_arguments(const struct mlacat_stream *stream, const struct mlacat_call *call)
{
    if (call == NULL || call->done != NULL) {
        return error_fail(MLACAT_INVALID_ARGUMENT,
                          call == NULL ? "call is NULL"
                                       : "a stream-ordered call has no callback; leave `done` NULL and let the CUDA "
                                         "stream tell");
    }
    if (stream->on_host) {
        return error_fail(MLACAT_UNIMPLEMENTED,
                          "the stream is on the host device, which no CUDA stream waits for; use mlacat_submit");
    }
    if (stream->ring == NULL) {
        return error_fail(MLACAT_FAILED_PRECONDITION,
                          "the stream has no ring; open it with MLACAT_TRANSPORT_RING to learn why");
    }
    return MLACAT_OK;
}

static enum mlacat_status fail_driver(const char *call, int result, struct error *err)
{
    return error_set(err, MLACAT_INTERNAL, "the CUDA driver failed: %s: %d; nothing was submitted", call, result);
}

static enum mlacat_status ask_capturing(const struct cuda_driver *cuda, void *cu_stream, int *capturing,
                                        struct error *err)
{
    int is = 0;
    int result = cuda->cuStreamIsCapturing(cu_stream, &is);
    *capturing = is != 0 || result == CUDA_RESULT_CAPTURE_IMPLICIT;
    return *capturing != 0 || result == CUDA_RESULT_OK ? MLACAT_OK : fail_driver("cuStreamIsCapturing", result, err);
}

/* What belongs into a graph would happen once, now. */
static enum mlacat_status check_capture(const struct cuda_driver *cuda, void *cu_stream, struct error *err)
{
    int capturing;
    if (ask_capturing(cuda, cu_stream, &capturing, err) != MLACAT_OK) {
        return err->code;
    }
    return capturing == 0
               ? MLACAT_OK
               : error_set(err, MLACAT_FAILED_PRECONDITION,
                           "the CUDA stream is being captured into a graph, where a call of the service cannot "
                           "be: submit outside of the capture");
}

/* Two CUDA streams on one line of calls would wait for each other's work. */
static enum mlacat_status check_bound(const struct ring *ring, uint64_t cuda_stream_id, struct error *err)
{
    if (ring->bound && ring->cuda_stream_id != cuda_stream_id) {
        return error_set(err, MLACAT_FAILED_PRECONDITION,
                         "the stream is bound to the CUDA stream with id %llu, this one has id %llu; open one for each",
                         (unsigned long long)ring->cuda_stream_id, (unsigned long long)cuda_stream_id);
    }
    return MLACAT_OK;
}

/* ---------------------------------------------------------------------------------------------------- submitting */

struct order {
    const struct cuda_driver *cuda;
    void *cu_stream;
    uint64_t cuda_stream_id;
};

/* Where the CUDA stream finds the ring's words. */
static enum mlacat_status find_words(struct ring *ring, const struct order *order, struct error *err)
{
    unsigned long long address = 0;
    if (ring->words_address != 0) {
        return MLACAT_OK;
    }
    void *context = NULL;
    int result = order->cuda->cuStreamGetCtx(order->cu_stream, &context);
    if (result == 0) {
        result = order->cuda->cuCtxPushCurrent(context);
    }
    if (result != 0) {
        return fail_driver("cuStreamGetCtx", result, err);
    }
    result = order->cuda->cuMemHostGetDevicePointer(&address, ring->pages->client, 0);
    order->cuda->cuCtxPopCurrent(&context);
    if (result != 0) {
        return fail_driver("cuMemHostGetDevicePointer", result, err);
    }
    ring->words_address = address + (uint64_t)ring->index * ring->pages->client_stride;
    return MLACAT_OK;
}

/* Whether all is written that CUDA streams were told to write for this ring. The value of a call that ended early may
 * be to come, and would take `ready` back behind that of another CUDA stream. With the lock. */
static bool is_settled(const struct ring *ring)
{
    uint64_t told = __atomic_load_n(&ring->pages->watched->awaited[ring->index], __ATOMIC_RELAXED);
    return ring->bound || (int64_t)(mlacat_ring_ready(ring->client) - told) >= 0;
}

/* Gives the last user's CUDA stream time until `until`. Without locks. */
static enum mlacat_status await_settled(int64_t until, struct error *err)
{
    const struct timespec step = timing_spec(TIMING_MS);
    if (timing_now() >= until) {
        return error_set(err, MLACAT_UNAVAILABLE,
                         "the CUDA stream of a closed stream, whose ring this one has, has not come to its last call "
                         "for %d ms; submit again when it has run",
                         (int)(SETTLE_NS / TIMING_MS));
    }
    nanosleep(&step, NULL);
    return MLACAT_OK;
}

/* The word that another CUDA stream took may be of another context, where this one cannot write. But one that the ring
 * is not bound to gets none. With the lock. */
static bool must_take_word(const struct ring *ring, const struct order *order)
{
    bool asked = ring->ready_asked && ring->ready_stream_id == order->cuda_stream_id;
    return !asked && (!ring->bound || ring->cuda_stream_id == order->cuda_stream_id);
}

/* Without locks. */
static void take_ready_word(struct mlacat_stream *stream, const struct order *order)
{
    struct ring *ring = stream->ring;
    struct ready_word word = ready_word_take(stream, order->cuda, order->cu_stream);
    pthread_mutex_lock(&ring->lock);
    if (must_take_word(ring, order)) {
        ring->ready_asked = true;
        ring->ready_written = false;
        ring->ready_stream_id = order->cuda_stream_id;
        ring->ready_word = word;
        ring->ready_begin = ring->sequence + 1;
    }
    pthread_mutex_unlock(&ring->lock);
}

/* Whether the daemon may look at the word: before the CUDA stream has come to its first write it may hold anything. */
static bool is_ready_word_written(struct ring *ring)
{
    ring->ready_written = ring->ready_written || (int64_t)(mlacat_ring_ready(ring->client) - ring->ready_begin) >= 0;
    return ring->ready_written;
}

/* The ring's lock, of a ring that CUDA knows and that has room for one call more. Not OK: without the lock. */
static enum mlacat_status enter(struct mlacat_stream *stream, const struct order *order, struct error *err)
{
    struct ring *ring = stream->ring;
    struct ring_look look = {.sequence = UINT64_MAX};
    int64_t until = timing_now() + SETTLE_NS;
    for (;;) {
        if (ring_enter(stream, err) != MLACAT_OK) {
            return err->code;
        }
        bool watched = __atomic_load_n(&ring->pages->watched, __ATOMIC_ACQUIRE) != NULL;
        bool settled = watched && is_settled(ring);
        bool asked = !must_take_word(ring, order);
        if (settled && asked && ring_has_room(stream) && stream->failure.code == MLACAT_OK) {
            return MLACAT_OK;
        }
        /* Calls that ended and that nobody has waited for: no time brings their slots back. */
        bool stuck = settled && asked && stream->flying == 0 && stream->taken >= stream->limit;
        if (settled && asked && !stuck) {
            ring_pause(stream, &look, TIMING_NEVER);
        }
        ring_leave(stream);
        if (stuck) {
            return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                             "%u calls of the stream have ended and were not waited for, which is its limit; wait for "
                             "one first",
                             stream->limit);
        }
        if (!watched && order_watch_start(stream, order->cuda, order->cu_stream, err) != MLACAT_OK) {
            return err->code;
        }
        if (watched && !settled && await_settled(until, err) != MLACAT_OK) {
            return err->code;
        }
        if (watched && settled && !asked) {
            take_ready_word(stream, order);
        }
    }
}

/* The call is on its way, and its CUDA stream has not taken its part of it: without that it would wait for ever. */
static enum mlacat_status withdraw(struct mlacat_stream *stream, uint64_t id, uint64_t sequence, int result,
                                   struct error *err)
{
    struct error outcome;
    error_set(err, MLACAT_INTERNAL,
              "the CUDA driver failed: cuStreamBatchMemOp: %d; the call was cancelled: close the stream", result);
    err->scope = MLACAT_SCOPE_STREAM;
    stream->failure = *err;
    __atomic_store_n(&stream->ring->pages->watched->awaited[stream->ring->index], sequence - 1, __ATOMIC_RELEASE);
    ring_cancel(stream, id, &outcome); /* it has not ended before: nobody else could let it begin */
    return err->code;
}

/* What the CUDA stream does for the call, in this order; the word in its GPU's memory, if there is one, comes before
 * the one in host memory, so that that one tells of both. */
static int enqueue(const struct ring *ring, const struct order *order, uint64_t sequence, bool has_ready_word)
{
    struct cuda_word_op ops[3];
    unsigned nr = 0;
    if (has_ready_word) {
        ops[nr++] = (struct cuda_word_op){CUDA_WORD_WRITE, .address = ring->ready_word.address, .value = sequence};
    }
    ops[nr++] = (struct cuda_word_op){CUDA_WORD_WRITE,
                                      .address = ring->words_address + offsetof(struct mlacat_ring_client, ready),
                                      .value = sequence};
    ops[nr++] = (struct cuda_word_op){CUDA_WORD_WAIT,
                                      .address = ring->words_address + offsetof(struct mlacat_ring_client, done),
                                      .value = sequence, .flags = CUDA_WAIT_GREATER_OR_EQUAL};
    return order->cuda->cuStreamBatchMemOp(order->cu_stream, nr, ops, 0);
}

/* With the lock and room. Nothing is given to anybody before all is known to be right. */
static enum mlacat_status put(struct mlacat_stream *stream, const struct mlacat_call *call, const struct order *order,
                              uint64_t *id, struct error *err)
{
    struct ring *ring = stream->ring;
    struct mlacat_ring_submission entry;
    if (check_bound(ring, order->cuda_stream_id, err) != MLACAT_OK || submit_check(stream, call, err) != MLACAT_OK ||
        ring_encode(call, &entry, err) != MLACAT_OK || find_words(ring, order, err) != MLACAT_OK) {
        return err->code;
    }
    uint64_t sequence = ring->sequence + 1; /* of the entry to come */
    bool has_ready_word = ready_word_usable(&ring->ready_word);
    struct slot *slot = slot_take(stream, call);
    slot->detached = true;
    *id = slot_call_id(slot);
    ring->bound = true;
    ring->cuda_stream_id = order->cuda_stream_id;
    entry.flags = MLACAT_RING_SUBMIT_READY | MLACAT_RING_SUBMIT_DONE;
    entry.ready = sequence;
    if (has_ready_word && is_ready_word_written(ring)) {
        const struct wire_ref *ref = &ring->ready_word.buffer->ref;
        entry.flags |= MLACAT_RING_SUBMIT_READY_BUFFER;
        entry.ready_buffer = (struct mlacat_ring_buffer){ref->id, ref->generation};
        entry.ready_offset_bytes = ring->ready_word.offset_bytes;
    }
    ring_write(slot, &entry);
    __atomic_store_n(&ring->pages->watched->awaited[ring->index], sequence, __ATOMIC_RELEASE);
    ring_publish(ring); /* first: the worker has things to do with it while the driver has with these */
    int result = enqueue(ring, order, sequence, has_ready_word);
    return result == CUDA_RESULT_OK ? MLACAT_OK : withdraw(stream, *id, sequence, result, err);
}

static enum mlacat_status submit(struct mlacat_stream *stream, const struct mlacat_call *call, struct order *order,
                                 uint64_t *id, struct error *err)
{
    unsigned long long cuda_stream_id = 0;
    if (check_capture(order->cuda, order->cu_stream, err) != MLACAT_OK) {
        return err->code;
    }
    int result = order->cuda->cuStreamGetId(order->cu_stream, &cuda_stream_id);
    if (result != 0) {
        return fail_driver("cuStreamGetId", result, err);
    }
    order->cuda_stream_id = cuda_stream_id;
    if (submit_check_memory(stream, call, err) != MLACAT_OK || enter(stream, order, err) != MLACAT_OK) {
        return err->code;
    }
    enum mlacat_status status = put(stream, call, order, id, err);
    ring_leave(stream);
    return status;
}

/* The stream's device in this process, looked for once. */
static int find_device(struct mlacat_stream *stream, const struct cuda_driver *cuda)
{
    int known = __atomic_load_n(&stream->cuda_device, __ATOMIC_RELAXED);
    if (known == CLIENT_CUDA_UNKNOWN) {
        known = cuda_current_find(cuda, stream->device);
        __atomic_store_n(&stream->cuda_device, known, __ATOMIC_RELAXED);
    }
    return known;
}

enum mlacat_status mlacat_submit_on_stream(struct mlacat_stream *stream, const struct mlacat_call *call,
                                           void *cu_stream, uint64_t *call_id)
{
    struct order order = {.cu_stream = cu_stream};
    struct mlacat_call known;
    struct error err;
    uint64_t id = 0;
    enum mlacat_status status = client_check(stream != NULL ? stream->client : NULL);
    if (status == MLACAT_OK && call != NULL &&
        sized_read(&known, sizeof(known), call, SIZED_CALL, "mlacat_call", &err) != MLACAT_OK) {
        status = error_raise(&err);
    }
    if (status == MLACAT_OK) {
        status = check_arguments(stream, call != NULL ? &known : NULL);
    }
    if (status == MLACAT_OK) {
        status = cuda_driver(&order.cuda);
    }
    if (status != MLACAT_OK) {
        return status;
    }
    /* Else a capture of some other stream of this thread would be broken by what follows. */
    struct cuda_asking asking;
    struct cuda_current current;
    cuda_asking_begin(&asking, order.cuda);
    cuda_current_begin(&current, order.cuda, find_device(stream, order.cuda));
    status = submit(stream, &known, &order, &id, &err);
    cuda_current_end(&current);
    cuda_asking_end(&asking);
    if (call_id != NULL) {
        *call_id = id;
    }
    return status == MLACAT_OK ? MLACAT_OK : error_raise(&err);
}

static enum mlacat_status find_device_of(const void *pointer, const struct cuda_driver *cuda, int *device,
                                         struct error *err)
{
    int ordinal = 0;
    int result = cuda->cuPointerGetAttribute(&ordinal, CUDA_POINTER_DEVICE_ORDINAL, (uintptr_t)pointer);
    if (result == CUDA_RESULT_OK) {
        result = cuda->cuDeviceGet(device, ordinal);
    }
    return result == CUDA_RESULT_OK ? MLACAT_OK
                                    : error_set(err, MLACAT_INVALID_ARGUMENT,
                                                "%p is no GPU memory (the driver says %d); give a pointer of the "
                                                "call's memory",
                                                pointer, result);
}

enum mlacat_status mlacat_is_capturing(const void *pointer, void *cu_stream, int *capturing)
{
    const struct cuda_driver *cuda;
    struct error err;
    if (capturing == NULL) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "capturing is NULL; give the address of a variable");
    }
    enum mlacat_status status = cuda_driver(&cuda);
    if (status != MLACAT_OK) {
        return status;
    }
    struct cuda_asking asking;
    struct cuda_current current;
    int device;
    cuda_asking_begin(&asking, cuda);
    status = find_device_of(pointer, cuda, &device, &err);
    if (status == MLACAT_OK) {
        cuda_current_begin(&current, cuda, device);
        status = ask_capturing(cuda, cu_stream, capturing, &err);
        cuda_current_end(&current);
    }
    cuda_asking_end(&asking);
    return status == MLACAT_OK ? MLACAT_OK : error_raise(&err);
}

enum mlacat_status mlacat_stream_status(struct mlacat_stream *stream)
{
    enum mlacat_status status = client_check(stream != NULL ? stream->client : NULL);
    if (status != MLACAT_OK) {
        return status;
    }
    struct error err = {0};
    if (stream->ring != NULL) {
        pthread_mutex_lock(&stream->ring->lock);
        ring_check(stream, timing_now()); /* the CUDA stream may have been let go on because the daemon has exited */
        ring_collect(stream);
        err = stream->failure;
        pthread_mutex_unlock(&stream->ring->lock);
    }
    if (err.code == MLACAT_OK) {
        pthread_mutex_lock(&stream->client->lock);
        if (!stream->client->connecting) { /* else it is being found out */
            err = stream->broken;
        }
        pthread_mutex_unlock(&stream->client->lock);
    }
    return err.code == MLACAT_OK ? MLACAT_OK : error_raise(&err);
}
