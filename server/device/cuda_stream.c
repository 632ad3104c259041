/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_stream.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "cuda_device.h"
#include "cuda_memory.h"

/* Calls that a stream holds; a power of two. */
#define STREAM_CALLS 128
/* Launches of one long call that the GPU has at a time. */
#define LAUNCHES_AHEAD 2

struct flight {
    void *cookie;
    struct device_memory *memory[OP_OPERANDS];
    uint64_t last_launch; /* its number: when the stream's own fence has it the call is done */
    bool ends_in_words;   /* not there, but when the fence of the words has `sequence` */
    bool tell_done;
    uint64_t sequence;
    uint64_t bytes;
    struct error error; /* a later launch of the call failed */
};

struct device_stream {
    struct device *device;
    struct cuda_stream *stream;
    struct cuda_fence *fence;
    const uint64_t *words_fence; /* NULL: no words */
    cuda_address words_fence_address;
    cuda_address words_done_address;
    uint32_t head; /* calls completed and submitted; both count up and wrap */
    uint32_t tail;
    bool unfinished; /* the newest call has launches left: `next`, and what `plan` has */
    struct concat_mla_launch next;
    struct concat_mla_plan plan;
    uint64_t ahead_bytes;   /* of the calls in flight */
    uint64_t fence_seen;    /* by poll: both fences together */
    uint64_t fence_seen_ns; /* when it last moved, or the device was found alive; 0: nothing was in flight */
    struct error lost;      /* why it has ended, if it has */
    struct flight flights[STREAM_CALLS];
};

static struct flight *newest(struct device_stream *stream)
{
    return &stream->flights[(stream->tail - 1) % STREAM_CALLS];
}

static enum mlacat_status lose(struct device_stream *stream, int result, const char *call)
{
    cuda_device_fail(stream->device, &stream->lost, result, call, "the stream has ended");
    stream->lost.scope = MLACAT_SCOPE_DEVICE;
    return stream->lost.code;
}

/* ------------------------------------------------------------------------------------------------------ open, close */

enum mlacat_status cuda_stream_open(struct device *device, const struct device_words *words,
                                    struct device_stream **stream, struct error *err)
{
    struct device_stream *made = calloc(1, sizeof(*made));
    if (!made) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service is out of memory: close streams");
    }
    made->device = device;
    cuda_device_enter(device);
    if (cuda_fence_take(&device->fences, &made->fence, err) != MLACAT_OK) {
        free(made);
        return err->code;
    }
    int result = device->cuda->cuStreamCreate(&made->stream, CUDA_STREAM_NON_BLOCKING);
    if (result != CUDA_RESULT_OK) {
        cuda_device_fail(device, err, result, "cuStreamCreate", "another stream");
        cuda_fence_give(&device->fences, made->fence);
        free(made);
        return err->code;
    }
    if (words) {
        made->words_fence = words->fence;
        made->words_fence_address = cuda_pages_address(words->fence_pages, words->fence);
        made->words_done_address = cuda_pages_address(words->done_pages, words->done);
    }
    *stream = made;
    return MLACAT_OK;
}

static void unpin(struct flight *flight)
{
    for (int k = 0; k < OP_OPERANDS; k++) {
        if (flight->memory[k]) {
            cuda_memory_unpin(flight->memory[k]);
        }
    }
}

void cuda_stream_close(struct device_stream *stream)
{
    struct device *device = stream->device;
    cuda_device_enter(device);
    int result = device->cuda->cuStreamDestroy(stream->stream);
    if (result != CUDA_RESULT_OK) {
        struct error err;
        cuda_device_fail(device, &err, result, "cuStreamDestroy", "a stream");
    }
    while (stream->head != stream->tail) { /* the device is lost: they will never end */
        unpin(&stream->flights[stream->head++ % STREAM_CALLS]);
    }
    cuda_fence_give(&device->fences, stream->fence);
    free(stream);
}

/* ------------------------------------------------------------------------------------------------------ launching */

static void *address_of(const struct device_call *call, int operand)
{
    uint64_t address = call->memory[operand]->base + call->plan.offset_bytes[operand];
    return (void *)(uintptr_t)address;
}

static struct concat_mla_args kernel_args(const struct device_call *call)
{
    const struct op_plan *plan = &call->plan;
    struct concat_mla_args args = {
        .out = address_of(call, OP_OUT),
        .dim0 = plan->dim0,
        .dim1 = plan->dim1,
        .out_stride0 = plan->stride_bytes[OP_OUT][0],
        .out_stride1 = plan->stride_bytes[OP_OUT][1],
        .a_bytes = plan->width_bytes[OP_FIRST],
        .b_bytes = plan->width_bytes[OP_SECOND],
    };
    if (plan->copy[OP_FIRST]) {
        args.a = address_of(call, OP_FIRST);
        args.a_stride0 = plan->stride_bytes[OP_FIRST][0];
        args.a_stride1 = plan->stride_bytes[OP_FIRST][1];
    }
    if (plan->copy[OP_SECOND]) {
        args.b = address_of(call, OP_SECOND);
        args.b_stride0 = plan->stride_bytes[OP_SECOND][0];
        args.b_stride1 = plan->stride_bytes[OP_SECOND][1];
    }
    return args;
}

static enum mlacat_status launch(struct device_stream *stream, struct concat_mla_launch *launch, struct error *err)
{
    struct device *device = stream->device;
    void *parameters[] = {&launch->args, &launch->range};
    int result = device->cuda->cuLaunchKernel(cuda_kernels_find(&device->kernels, launch), launch->grid, 1, 1,
                                              launch->block, 1, 1, 0, stream->stream, parameters, NULL);
    if (result != CUDA_RESULT_OK) {
        cuda_device_fail(device, err, result, "cuLaunchKernel", "the call was not launched");
        if (cuda_error_is_lost(result)) {
            stream->lost = *err;
        }
        return err->code;
    }
    return MLACAT_OK;
}

/* After all that was launched before. */
static enum mlacat_status write_word(struct device_stream *stream, cuda_address address, uint64_t value)
{
    int result = stream->device->cuda->cuStreamWriteValue64(stream->stream, address, value, 0);
    /* A kernel may run, and nobody will ever know when it has ended: neither its memory nor its stream can go. */
    return result == CUDA_RESULT_OK ? MLACAT_OK : lose(stream, result, "cuStreamWriteValue64");
}

static enum mlacat_status write_step(struct device_stream *stream, struct flight *flight)
{
    if (write_word(stream, stream->fence->address, stream->fence->written + 1) != MLACAT_OK) {
        return stream->lost.code;
    }
    flight->last_launch = ++stream->fence->written;
    return MLACAT_OK;
}

static enum mlacat_status write_done(struct device_stream *stream, const struct flight *flight)
{
    return flight->tell_done ? write_word(stream, stream->words_done_address, flight->sequence) : MLACAT_OK;
}

/* The end of a call, for those who look at the words. */
static enum mlacat_status write_end(struct device_stream *stream, struct flight *flight)
{
    if (write_done(stream, flight) != MLACAT_OK ||
        write_word(stream, stream->words_fence_address, flight->sequence) != MLACAT_OK) {
        return stream->lost.code;
    }
    flight->ends_in_words = true;
    return MLACAT_OK;
}

/* One launch of the newest call, and the word that tells of it. */
static enum mlacat_status launch_next(struct device_stream *stream, struct error *err)
{
    struct flight *flight = newest(stream);
    if (launch(stream, &stream->next, err) != MLACAT_OK) {
        return err->code;
    }
    stream->unfinished = concat_mla_plan_next(&stream->plan, &stream->next);
    bool end = !stream->unfinished && stream->words_fence;
    return end ? write_end(stream, flight) : write_step(stream, flight);
}

/*
 * Launches of the newest call what may be given ahead: one launch runs, one waits behind it, so that the GPU is never
 * idle and never far ahead of us. `least`: so many in any case.
 */
static enum mlacat_status advance(struct device_stream *stream, int least, struct error *err)
{
    uint64_t seen = atomic_load_explicit(stream->fence->word, memory_order_acquire);
    while (stream->unfinished && (least-- > 0 || stream->fence->written - seen < LAUNCHES_AHEAD)) {
        enum mlacat_status status = launch_next(stream, err);
        if (status != MLACAT_OK) {
            stream->unfinished = false;
            err->scope = MLACAT_SCOPE_SESSION; /* other launches of the call may have written */
            return status;
        }
    }
    return MLACAT_OK;
}

static bool pin(const struct device_call *call, struct flight *flight, struct error *err)
{
    for (int k = 0; k < OP_OPERANDS; k++) {
        flight->memory[k] = call->memory[k];
        if (!cuda_memory_pin(call->memory[k])) {
            while (k > 0) {
                cuda_memory_unpin(flight->memory[--k]);
            }
            error_set_scoped(err, MLACAT_FAILED_PRECONDITION, MLACAT_SCOPE_BUFFER,
                             "the memory of a buffer was freed since it was registered, and its place has other "
                             "memory now: register the buffer again");
            return false;
        }
    }
    return true;
}

/* A call may wait behind as much as the GPU does in a moment, not behind more: it could not be withdrawn any more. And
 * not behind one that failed and is not reported: the fence would pass it. */
static bool is_full(const struct device_stream *stream)
{
    uint32_t nr = stream->tail - stream->head;
    return nr == STREAM_CALLS || stream->unfinished || stream->ahead_bytes >= stream->device->launch_bytes ||
           (nr > 0 && stream->flights[(stream->tail - 1) % STREAM_CALLS].error.code != MLACAT_OK);
}

/* false: nothing of the call was launched, `err` says why. */
static bool begin(struct device_stream *stream, const struct device_call *call, struct flight *flight,
                  struct error *err)
{
    uint64_t before = stream->fence->written;
    if (call->signal_only || !call->plan.copy[OP_OUT]) {
        if (stream->words_fence) {
            write_end(stream, flight);
        }
        return true;
    }
    struct concat_mla_args args = kernel_args(call);
    concat_mla_plan_init(&stream->plan, &args, stream->device->launch_bytes);
    stream->unfinished = concat_mla_plan_next(&stream->plan, &stream->next);
    if (advance(stream, 1, &flight->error) == MLACAT_OK || stream->lost.code != MLACAT_OK) {
        return true;
    }
    if (stream->fence->written == before) {
        *err = flight->error;
        err->scope = MLACAT_SCOPE_CALL;
        return false;
    }
    write_done(stream, flight);
    return true;
}

static enum device_answer submit_one(struct device_stream *stream, const struct device_call *call, struct error *err)
{
    if (stream->lost.code != MLACAT_OK) {
        *err = stream->lost;
        return DEVICE_ERROR;
    }
    if (is_full(stream)) {
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the device stream has work for a millisecond: poll it first");
        return DEVICE_AGAIN;
    }
    struct flight *flight = &stream->flights[stream->tail % STREAM_CALLS];
    if (!call->signal_only) {
        if (!pin(call, flight, err)) {
            return DEVICE_ERROR;
        }
        flight->bytes = call->plan.bytes;
    } else {
        memset(flight->memory, 0, sizeof(flight->memory));
        flight->bytes = 0;
    }
    flight->cookie = call->cookie;
    flight->last_launch = stream->fence->written;
    flight->ends_in_words = false;
    flight->tell_done = stream->words_fence && call->tell_done;
    flight->sequence = call->sequence;
    flight->error.code = MLACAT_OK;
    cuda_device_enter(stream->device);
    stream->tail++;
    stream->ahead_bytes += flight->bytes;
    if (!begin(stream, call, flight, err)) {
        stream->tail--;
        stream->ahead_bytes -= flight->bytes;
        unpin(flight);
        return DEVICE_ERROR;
    }
    return DEVICE_OK;
}

enum device_answer cuda_stream_submit(struct device_stream *stream, const struct device_call *calls, uint32_t *nr,
                                      struct error *err)
{
    uint32_t taken = 0;
    enum device_answer answer = DEVICE_OK;
    while (taken < *nr && (answer = submit_one(stream, &calls[taken], err)) == DEVICE_OK) {
        taken++;
    }
    *nr = taken;
    return taken > 0 ? DEVICE_OK : answer;
}

/* ---------------------------------------------------------------------------------------------------- completing */

/* What the GPU has written. */
struct seen {
    uint64_t own;
    uint64_t words;
};

static struct seen look(const struct device_stream *stream)
{
    return (struct seen){
        .own = atomic_load_explicit(stream->fence->word, memory_order_acquire),
        .words = stream->words_fence ? __atomic_load_n(stream->words_fence, __ATOMIC_ACQUIRE) : 0,
    };
}

static bool is_done(const struct device_stream *stream, const struct flight *flight, const struct seen *seen)
{
    if (flight->ends_in_words) {
        return seen->words >= flight->sequence;
    }
    return seen->own >= flight->last_launch && !(stream->unfinished && stream->tail - stream->head == 1);
}

static int reap(struct device_stream *stream, struct device_completion *done, int max, const struct seen *seen)
{
    int nr = 0;
    while (nr < max && stream->head != stream->tail) {
        struct flight *flight = &stream->flights[stream->head % STREAM_CALLS];
        if (!is_done(stream, flight, seen)) {
            break;
        }
        unpin(flight);
        stream->ahead_bytes -= flight->bytes;
        done[nr].cookie = flight->cookie;
        done[nr].error = flight->error;
        stream->head++;
        nr++;
    }
    return nr;
}

/* The fence stands still. A kernel that faulted writes nothing; only the driver knows. */
static void check_alive(struct device_stream *stream)
{
    uint64_t now_ns = clock_now_ns();
    if (stream->fence_seen_ns == 0) {
        stream->fence_seen_ns = now_ns;
    }
    if (now_ns - stream->fence_seen_ns < CUDA_FENCE_SILENCE_NS) {
        return;
    }
    stream->fence_seen_ns = now_ns;
    cuda_device_enter(stream->device);
    int result = stream->device->cuda->cuStreamQuery(stream->stream);
    if (result != CUDA_RESULT_OK && result != CUDA_RESULT_NOT_READY) {
        lose(stream, result, "cuStreamQuery");
    }
}

int cuda_stream_poll(struct device_stream *stream, struct device_completion *done, int max, struct error *err)
{
    if (stream->lost.code != MLACAT_OK) {
        *err = stream->lost;
        return -1;
    }
    struct seen seen = look(stream);
    if (seen.own + seen.words != stream->fence_seen) {
        stream->fence_seen = seen.own + seen.words;
        stream->fence_seen_ns = 0;
    } else if (stream->head != stream->tail) {
        check_alive(stream);
    }
    if (stream->unfinished) {
        cuda_device_enter(stream->device);
        if (advance(stream, 0, &newest(stream)->error) != MLACAT_OK && stream->lost.code == MLACAT_OK) {
            write_done(stream, newest(stream));
        }
    }
    if (stream->lost.code != MLACAT_OK) {
        *err = stream->lost;
        return -1;
    }
    return reap(stream, done, max, &seen);
}
