/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CPU as a device. It has no engine of its own: the worker thread that polls a stream does the work, in slices, so
 * that it can look after its other streams in between.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "clock.h"
#include "concat_mla_host.h"
#include "device.h"
#include "host_guard.h"
#include "host_memory.h"

#define HOST_UUID "host"
/* Calls that a stream holds; a power of two. */
#define STREAM_CALLS 64
/* Bytes read and written that a stream takes ahead: a call behind a long one still waits in its queue, where it can be
 * cancelled. */
#define AHEAD_BYTES ((uint64_t)4 << 20)
/* How long one poll works. What a row costs depends on its bytes, strides and pages, so a poll goes in steps of at most
 * so many rows and bytes and looks at the clock after each. */
#define POLL_NS 500000
#define STEP_ROWS 256
#define STEP_BYTES ((uint64_t)256 << 10)

struct device {
    uint64_t streaming_bytes;
};

/* The CPU writes where the caller does. */
struct device_pages {
    char unused;
};

struct device_stream {
    struct device *device;
    bool has_words;
    struct device_words words;
    uint32_t head;      /* calls begun and finished; both count up and wrap */
    uint32_t tail;      /* calls submitted */
    uint64_t rows_run;  /* of the call at the head */
    uint64_t bytes_run; /* of the row that is wider than a step */
    uint64_t held_bytes;
    struct device_call calls[STREAM_CALLS];
};

static enum device_answer host_open(const char *uuid, struct device **device, struct device_info *info,
                                    struct error *err)
{
    if (uuid && strcmp(uuid, HOST_UUID) != 0) {
        error_set(err, MLACAT_NOT_FOUND, "there is no host device \"%.64s\": its name is \"%s\"", uuid, HOST_UUID);
        return DEVICE_NODEV;
    }
    struct device *made = calloc(1, sizeof(*made));
    if (!made) {
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "no memory for the host device");
        return DEVICE_ERROR;
    }
    if (host_guard_install(err) != MLACAT_OK) {
        free(made);
        return DEVICE_ERROR;
    }
    made->streaming_bytes = concat_mla_host_streaming_bytes();
    struct utsname system;
    memset(info, 0, sizeof(*info));
    memcpy(info->uuid, HOST_UUID, sizeof(HOST_UUID));
    snprintf(info->name, sizeof(info->name), "host CPU, %.64s, %ld online", uname(&system) == 0 ? system.machine : "?",
             sysconf(_SC_NPROCESSORS_ONLN));
    info->kind = device_host_ops.kind;
    *device = made;
    return DEVICE_OK;
}

static void host_close(struct device *device)
{
    free(device);
}

static enum mlacat_status host_mem_import(struct device *device, struct memory_request *request,
                                          struct device_memory **memory, struct memory_info *info, struct error *err)
{
    (void)device;
    return host_memory_import(request, memory, info, err);
}

static void host_mem_release(struct device *device, struct device_memory *memory)
{
    (void)device;
    host_memory_release(memory);
}

/* Nothing is kept open. */
static void host_mem_closed(const struct device *device, uint64_t *released, uint64_t *closed)
{
    (void)device;
    *released = *closed = 0;
}

static uint64_t host_tend(struct device *device, struct error *err)
{
    (void)err;
    (void)device;
    return DEVICE_TEND_LATER;
}

static enum mlacat_status host_event_import(struct device *device, const uint8_t handle[MEMORY_HANDLE_BYTES],
                                            struct device_event **event, struct error *err)
{
    (void)device;
    (void)handle;
    (void)event;
    return error_set(err, MLACAT_UNIMPLEMENTED,
                     "the host device has no events: submit when the operands are ready, and wait for nothing");
}

/* No event can be imported, so neither of these is ever called. */
static void host_event_release(struct device *device, struct device_event *event)
{
    (void)device;
    (void)event;
}

static enum device_answer host_event_query(struct device_event *event, struct error *err)
{
    (void)event;
    (void)err;
    return DEVICE_OK;
}

static enum device_answer host_pages_register(struct device *device, void *address, size_t bytes,
                                              struct device_pages **pages, struct error *err)
{
    static struct device_pages all;
    (void)device;
    (void)address;
    (void)bytes;
    (void)err;
    *pages = &all;
    return DEVICE_OK;
}

static void host_pages_release(struct device *device, struct device_pages *pages)
{
    (void)device;
    (void)pages;
}

static enum mlacat_status host_stream_open(struct device *device, const struct device_words *words,
                                           struct device_stream **stream, struct error *err)
{
    struct device_stream *made = calloc(1, sizeof(*made));
    if (!made) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the daemon is out of memory: close streams");
    }
    made->device = device;
    if (words) {
        made->has_words = true;
        made->words = *words;
    }
    *stream = made;
    return MLACAT_OK;
}

static void host_stream_close(struct device_stream *stream)
{
    free(stream);
}

/* op_validate proved that the product fits: the extents lie in a buffer, and a call of no bytes has no rows here. */
static uint64_t rows_to_run(const struct device_call *call)
{
    const struct op_plan *plan = &call->plan;
    return !call->signal_only && plan->copy[OP_OUT] ? plan->dim0 * plan->dim1 : 0;
}

static uint64_t bytes_of(const struct device_call *call)
{
    return call->signal_only ? 0 : call->plan.bytes;
}

static enum device_answer host_submit(struct device_stream *stream, const struct device_call *calls, uint32_t *nr,
                                      struct error *err)
{
    uint32_t taken = 0;
    while (taken < *nr && stream->tail - stream->head < STREAM_CALLS && stream->held_bytes < AHEAD_BYTES) {
        const struct device_call *call = &calls[taken++];
        stream->held_bytes += bytes_of(call);
        stream->calls[stream->tail++ % STREAM_CALLS] = *call;
    }
    *nr = taken;
    if (taken == 0) {
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the device stream holds %u calls: poll it first",
                  stream->tail - stream->head);
        return DEVICE_AGAIN;
    }
    return DEVICE_OK;
}

static struct concat_mla_args kernel_args(const struct device_call *call)
{
    const struct op_plan *plan = &call->plan;
    struct concat_mla_args args = {
        .out = call->memory[OP_OUT]->base + plan->offset_bytes[OP_OUT],
        .dim0 = plan->dim0,
        .dim1 = plan->dim1,
        .out_stride0 = plan->stride_bytes[OP_OUT][0],
        .out_stride1 = plan->stride_bytes[OP_OUT][1],
        .a_bytes = plan->width_bytes[OP_FIRST],
        .b_bytes = plan->width_bytes[OP_SECOND],
    };
    if (plan->copy[OP_FIRST]) {
        args.a = call->memory[OP_FIRST]->base + plan->offset_bytes[OP_FIRST];
        args.a_stride0 = plan->stride_bytes[OP_FIRST][0];
        args.a_stride1 = plan->stride_bytes[OP_FIRST][1];
    }
    if (plan->copy[OP_SECOND]) {
        args.b = call->memory[OP_SECOND]->base + plan->offset_bytes[OP_SECOND];
        args.b_stride0 = plan->stride_bytes[OP_SECOND][0];
        args.b_stride1 = plan->stride_bytes[OP_SECOND][1];
    }
    return args;
}

static void fail_on_fault(const struct device_call *call, uintptr_t fault, struct error *err)
{
    const struct op_info *info = op_find(call->plan.op);
    for (int k = 0; k < OP_OPERANDS; k++) {
        if (!call->plan.copy[k]) {
            continue;
        }
        uintptr_t base = (uintptr_t)call->memory[k]->base;
        if (fault >= base && fault - base < call->memory[k]->size_bytes) {
            error_set(err, MLACAT_DATA_LOSS,
                      "the page at byte %" PRIuPTR " of the buffer of %s is gone (SIGBUS): the output is undefined; "
                      "connect again with new buffers",
                      fault - base, info ? info->operand[k] : "an operand");
            return;
        }
    }
    error_set(err, MLACAT_DATA_LOSS,
              "a page of the call's buffers is gone (SIGBUS): the output is undefined; connect again with new buffers");
}

/* The part [begin, begin + bytes) of one row as a call of its own; a part lies in one input. */
static struct concat_mla_args part_of_row(const struct concat_mla_args *args, uint64_t row, uint64_t begin,
                                          uint64_t bytes)
{
    int64_t i = (int64_t)(row / args->dim1);
    int64_t j = (int64_t)(row % args->dim1);
    struct concat_mla_args part = {.dim0 = 1, .dim1 = 1, .a_bytes = bytes};
    part.out = (char *)args->out + i * args->out_stride0 + j * args->out_stride1 + begin;
    if (begin < args->a_bytes) {
        part.a = args->a ? (const char *)args->a + i * args->a_stride0 + j * args->a_stride1 + begin : NULL;
    } else {
        begin -= args->a_bytes;
        part.a = args->b ? (const char *)args->b + i * args->b_stride0 + j * args->b_stride1 + begin : NULL;
    }
    return part;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* One step through a row that is wider than a step; the caller guards it. */
static bool step_in_row(struct device_stream *stream, const struct concat_mla_args *args, bool streaming,
                        uintptr_t *fault)
{
    uint64_t begin = stream->bytes_run;
    uint64_t end_of_part = begin < args->a_bytes ? args->a_bytes : args->a_bytes + args->b_bytes;
    uint64_t bytes = least(end_of_part - begin, STEP_BYTES);
    struct concat_mla_args part = part_of_row(args, stream->rows_run, begin, bytes);
    if (!host_guard_copy(&part, 0, 1, streaming, fault)) {
        return false;
    }
    stream->bytes_run += bytes;
    if (stream->bytes_run == args->a_bytes + args->b_bytes) {
        stream->bytes_run = 0;
        stream->rows_run++;
    }
    return true;
}

/* One step of the call at the head; true: the call has ended. */
static bool step(struct device_stream *stream, struct error *err)
{
    const struct device_call *call = &stream->calls[stream->head % STREAM_CALLS];
    const struct op_plan *plan = &call->plan;
    uint64_t rows = rows_to_run(call);
    if (stream->rows_run == rows) {
        return true;
    }
    bool streaming = plan->bytes >= stream->device->streaming_bytes;
    struct concat_mla_args args = kernel_args(call);
    uint64_t row_bytes = plan->width_bytes[OP_OUT];
    uintptr_t fault = 0;
    bool whole;
    if (row_bytes > STEP_BYTES) {
        whole = step_in_row(stream, &args, streaming, &fault);
    } else {
        uint64_t run = least(least(STEP_BYTES / row_bytes, STEP_ROWS), rows - stream->rows_run);
        whole = host_guard_copy(&args, stream->rows_run, stream->rows_run + run, streaming, &fault);
        stream->rows_run += run;
    }
    if (!whole) {
        fail_on_fault(call, fault, err);
    }
    return !whole || stream->rows_run == rows;
}

/* A reader of the fence sees the output too. */
static void tell(const struct device_stream *stream, const struct device_call *call, bool failed)
{
    if (!stream->has_words) {
        return;
    }
    if (call->tell_done) {
        __atomic_store_n(stream->words.done, call->sequence, __ATOMIC_RELEASE);
    }
    if (!failed) {
        __atomic_store_n(stream->words.fence, call->sequence, __ATOMIC_RELEASE);
    }
}

static int host_poll(struct device_stream *stream, struct device_completion *done, int max, struct error *err)
{
    (void)err; /* a CPU is never lost */
    uint64_t start_ns = clock_now_ns();
    int nr = 0;
    bool failed = false;
    while (!failed && nr < max && stream->head != stream->tail && clock_now_ns() - start_ns <= POLL_NS) {
        struct error *ended = &done[nr].error;
        ended->code = MLACAT_OK;
        done[nr].lapsed = false;
        if (!step(stream, ended)) {
            continue;
        }
        const struct device_call *call = &stream->calls[stream->head % STREAM_CALLS];
        failed = ended->code != MLACAT_OK;
        tell(stream, call, failed);
        done[nr++].cookie = call->cookie;
        stream->held_bytes -= bytes_of(call);
        stream->head++;
        stream->rows_run = 0;
        stream->bytes_run = 0;
    }
    return nr;
}

const struct device_ops device_host_ops = {
    .kind = "host",
    .works_in_poll = true,
    .open = host_open,
    .close = host_close,
    .mem_import = host_mem_import,
    .mem_release = host_mem_release,
    .mem_closed = host_mem_closed,
    .event_import = host_event_import,
    .event_release = host_event_release,
    .event_query = host_event_query,
    .tend = host_tend,
    .pages_register = host_pages_register,
    .pages_release = host_pages_release,
    .stream_open = host_stream_open,
    .stream_close = host_stream_close,
    .submit = host_submit,
    .poll = host_poll,
};
