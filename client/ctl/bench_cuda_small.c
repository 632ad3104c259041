/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many small calls that have nothing to do with each other, submitted one by one through one stream, beside as many
 * launches of the same kernel on the same memory in this process. Every byte of all outputs is checked for both.
 */
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "in_process.h"
#include "random.h"
#include "reference.h"

#define CALLS 4096u
#define CALLS_QUICK 256u
#define IN_FLIGHT_MAX 128u
/* Of the area, for each call, and in it for the operands with their guards: 6656, 4608 and 640 bytes. */
#define CALL_BYTES 12288u

static const size_t operand_at[SHAPE_OPERANDS] = {0, 6656, 11264};

static const struct shape shape = {
    .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16, .dim0 = 1, .dim1 = 16, .first = 128, .second = 64};

struct small {
    struct bench *bench;
    struct mlacat_stream *stream;
    struct area area;
    struct shape_layout layout;
    struct in_process process;
    unsigned calls_nr;
    unsigned in_flight; /* at most */
    struct mlacat_call calls[CALLS];
    struct concat_mla_launch launches[CALLS];
    uint64_t ids[IN_FLIGHT_MAX];
};

static bool failed(const struct small *small, const char *what, enum mlacat_status status)
{
    ctl_fail_for(what, status, area_message(&small->bench->device));
    return false;
}

static void operands_of(unsigned call, uint8_t *base, uint8_t *data[SHAPE_OPERANDS])
{
    for (int i = 0; i < SHAPE_OPERANDS; i++)
        data[i] = base + call * (size_t)CALL_BYTES + operand_at[i];
}

/* The window slides: the oldest call ends, one more is sent. */
static bool run_in_service(struct small *small)
{
    enum mlacat_status status = MLACAT_OK;

    for (unsigned i = 0; i < small->calls_nr + small->in_flight && status == MLACAT_OK; i++) {
        uint64_t *id = &small->ids[i % small->in_flight];

        if (i >= small->in_flight)
            status = mlacat_wait(small->stream, *id, -1, NULL);
        if (status == MLACAT_OK && i < small->calls_nr)
            status = mlacat_submit(small->stream, &small->calls[i], id);
    }
    if (status != MLACAT_OK)
        ctl_fail("many small calls", status);
    return status == MLACAT_OK;
}

static bool run_in_process(struct small *small)
{
    for (unsigned i = 0; i < small->calls_nr; i++)
        if (!in_process_launch(&small->process, &small->launches[i]))
            return false;
    return in_process_wait(&small->process);
}

static void add_time(const struct small *small, struct samples *samples, uint64_t begin)
{
    samples_add(samples, (double)(measure_now_ns() - begin) / 1e3 / small->calls_nr);
}

/* One that does not count comes first: it wakes the worker, and without MPS the GPU changes over to its process. */
static bool service_side(void *context, struct samples *samples)
{
    struct small *small = context;
    enum mlacat_status status = mlacat_run(small->stream, &small->calls[0], NULL);
    uint64_t begin = measure_now_ns();

    if (status != MLACAT_OK) {
        ctl_fail("small call", status);
        return false;
    }
    if (!run_in_service(small))
        return false;
    add_time(small, samples, begin);
    return true;
}

static bool process_side(void *context, struct samples *samples)
{
    struct small *small = context;
    bool good = in_process_run(&small->process, &small->launches[0]);
    uint64_t begin = measure_now_ns();

    if (!good || !run_in_process(small))
        return false;
    add_time(small, samples, begin);
    return true;
}

static bool check_outputs(const struct small *small, const char *name)
{
    uint8_t *data[SHAPE_OPERANDS];
    struct difference difference;
    char text[256];

    for (unsigned i = 0; i < small->calls_nr; i++) {
        operands_of(i, small->area.data, data);
        if (reference_check(&shape, &small->layout, data, &difference))
            continue;
        reference_text(&difference, text, sizeof(text));
        fprintf(stderr, "mlacatctl: %s: the result of call %u is wrong: %s\n", name, i, text);
        return false;
    }
    return true;
}

/* Poisons the outputs, runs all once, and looks at every byte. */
static bool run_checked(struct small *small, const char *name, bool (*run)(struct small *small))
{
    struct area_device *device = &small->bench->device;
    uint8_t *data[SHAPE_OPERANDS];
    enum mlacat_status status;

    random_fill(small->bench->options->seed, shape.dtype, small->area.data, small->area.bytes);
    for (unsigned i = 0; i < small->calls_nr; i++) {
        operands_of(i, small->area.data, data);
        reference_poison(&shape, &small->layout, data);
    }
    status = area_upload(device, &small->area, small->area.bytes);
    if (status != MLACAT_OK)
        return failed(small, name, status);
    if (!run(small))
        return false;
    status = area_download(device, &small->area, small->area.bytes);
    return status == MLACAT_OK ? check_outputs(small, name) : failed(small, name, status);
}

static void make_call(struct small *small, unsigned index)
{
    struct mlacat_call *call = &small->calls[index];
    uint8_t *data[SHAPE_OPERANDS];
    struct concat_mla_args args;

    *call = (struct mlacat_call){.size = sizeof(*call), .op = shape.op, .dtype = shape.dtype};
    for (int i = 0; i < SHAPE_OPERANDS; i++) {
        call->operand[i] = ctl_tensor(&small->layout.operand[i], small->area.buffer);
        call->operand[i].offset_bytes += index * (uint64_t)CALL_BYTES + operand_at[i];
    }
    operands_of(index, (uint8_t *)(uintptr_t)small->area.address, data);
    args = bench_kernel_args(&shape, &small->layout, data);
    in_process_plan(&args, &small->launches[index]);
}

static bool open_small(struct small *small)
{
    struct area_device *device = &small->bench->device;
    uint32_t most = small->bench->server.max_stream_calls;
    enum mlacat_status status = area_stream_open(device, MLACAT_TRANSPORT_AUTO, &small->stream);

    if (status != MLACAT_OK)
        return failed(small, "cannot open a stream", status);
    status = area_new(device, small->calls_nr * (size_t)CALL_BYTES, &small->area);
    if (status != MLACAT_OK)
        return failed(small, "cannot make a buffer", status);
    if (!shape_layout(&shape, &small->layout))
        return false;
    /* A ring takes one less than the service allows. */
    small->in_flight = most <= 1 ? 1 : most <= IN_FLIGHT_MAX ? most - 1 : IN_FLIGHT_MAX;
    for (unsigned i = 0; i < small->calls_nr; i++)
        make_call(small, i);
    return in_process_open(&small->process, &device->gpu, &small->launches[0]);
}

bool bench_cuda_small(struct bench *bench, struct bench_row *row)
{
    struct small *small;
    bool good;

    row->note = in_process_missing();
    if (row->note)
        return true;
    small = calloc(1, sizeof(*small));
    if (!small) {
        fprintf(stderr, "mlacatctl: %s: no memory\n", row->name);
        return false;
    }
    small->bench = bench;
    small->calls_nr = bench->options->quick ? CALLS_QUICK : CALLS;
    good = open_small(small) && run_checked(small, row->name, run_in_service) &&
           run_checked(small, row->name, run_in_process) && bench_pairs(bench, row, service_side, process_side, small);
    if (good && bench->options->quick)
        snprintf(row->remark, sizeof(row->remark), "%u calls: --quick", small->calls_nr);
    mlacat_stream_close(small->stream);
    in_process_close(&small->process);
    area_free(&bench->device, &small->area);
    free(small);
    return good;
}
