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
    uint64_t last_launch; /* its number: when the fence has it the call is done */
    uint64_t bytes;
    struct error error; /* a later launch of the call failed */
};

struct device_stream {
    struct device *device;
    struct cuda_stream *stream;
    struct cuda_fence *fence;
    uint32_t head; /* calls completed and submitted; both count up and wrap */
    uint32_t tail;
    bool unfinished; /* the newest call has launches left: `next`, and what `plan` has */
    struct concat_mla_launch next;
    struct concat_mla_plan plan;
    uint64_t ahead_bytes;   /* of the calls in flight */
    uint64_t fence_seen;    /* by poll */
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

enum mlacat_status cuda_stream_open(struct device *device, struct device_stream **stream, struct error *err)
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
    made->fence_seen = made->fence->written;
    *stream = made;
    return MLACAT_OK;
}

static void unpin(struct flight *flight)
{
    for (int k = 0; k < OP_OPERANDS; k++) {
        cuda_memory_unpin(flight->memory[k]);
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

/* One kernel, and its number into the fence word. The write waits for the kernel, and for nothing else. */
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
    result = device->cuda->cuStreamWriteValue64(stream->stream, stream->fence->address, stream->fence->written + 1, 0);
    if (result != CUDA_RESULT_OK) {
        /* The kernel runs, and nobody will ever know when it has ended: neither its memory nor its stream can go. */
        return lose(stream, result, "cuStreamWriteValue64");
    }
    stream->fence->written++;
    return MLACAT_OK;
}

/*
 * Launches of the newest call what may be given ahead: one launch runs, one waits behind it, so that the GPU is never
 * idle and never far ahead of us. `least`: so many in any case.
 */
static enum mlacat_status advance(struct device_stream *stream, int least, struct error *err)
{
    uint64_t seen = atomic_load_explicit(stream->fence->word, memory_order_acquire);
    while (stream->unfinished && (least-- > 0 || stream->fence->written - seen < LAUNCHES_AHEAD)) {
        enum mlacat_status status = launch(stream, &stream->next, err);
        if (status != MLACAT_OK) {
            stream->unfinished = false;
            err->scope = MLACAT_SCOPE_SESSION; /* other launches of the call may have written */
            return status;
        }
        newest(stream)->last_launch = stream->fence->written;
        stream->unfinished = concat_mla_plan_next(&stream->plan, &stream->next);
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

/* A call may wait behind as much as the GPU does in a moment, not behind more: it could not be withdrawn any more. */
static bool is_full(const struct device_stream *stream)
{
    return stream->tail - stream->head == STREAM_CALLS || stream->unfinished ||
           stream->ahead_bytes >= stream->device->launch_bytes;
}

enum device_answer cuda_stream_submit(struct device_stream *stream, const struct device_call *call, struct error *err)
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
    if (!pin(call, flight, err)) {
        return DEVICE_ERROR;
    }
    cuda_device_enter(stream->device);
    uint64_t before = stream->fence->written;
    flight->cookie = call->cookie;
    flight->last_launch = before;
    flight->bytes = call->plan.bytes;
    flight->error.code = MLACAT_OK;
    stream->tail++;
    stream->ahead_bytes += flight->bytes;
    if (call->plan.copy[OP_OUT]) {
        struct concat_mla_args args = kernel_args(call);
        concat_mla_plan_init(&stream->plan, &args, stream->device->launch_bytes);
        stream->unfinished = concat_mla_plan_next(&stream->plan, &stream->next);
        if (advance(stream, 1, &flight->error) != MLACAT_OK && stream->lost.code == MLACAT_OK &&
            stream->fence->written == before) {
            *err = flight->error; /* nothing of it was launched */
            err->scope = MLACAT_SCOPE_CALL;
            stream->tail--;
            stream->ahead_bytes -= flight->bytes;
            unpin(flight);
            return DEVICE_ERROR;
        }
    }
    return DEVICE_OK;
}

/* ---------------------------------------------------------------------------------------------------- completing */

static bool is_done(const struct device_stream *stream, const struct flight *flight, uint64_t seen)
{
    return seen >= flight->last_launch && !(stream->unfinished && stream->tail - stream->head == 1);
}

static int reap(struct device_stream *stream, struct device_completion *done, int max, uint64_t seen)
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
    uint64_t seen = atomic_load_explicit(stream->fence->word, memory_order_acquire);
    if (seen != stream->fence_seen) {
        stream->fence_seen = seen;
        stream->fence_seen_ns = 0;
    } else if (seen != stream->fence->written) {
        check_alive(stream);
    }
    if (stream->unfinished) {
        cuda_device_enter(stream->device);
        advance(stream, 0, &newest(stream)->error);
    }
    if (stream->lost.code != MLACAT_OK) {
        *err = stream->lost;
        return -1;
    }
    return reap(stream, done, max, seen);
}
