/* SPDX-License-Identifier: Apache-2.0 */
/* The smallest call through the service, one in flight, beside a launch of the same kernel on the same memory in this
 * process, whose end is asked for until it is there. */
#include <stdio.h>

#include "bench.h"
#include "in_process.h"
#include "random.h"
#include "reference.h"

#define BURST 64
/* Of the area, for each operand with its guards. */
#define OPERAND_BYTES 16384u

struct latency {
    struct bench *bench;
    struct area area;
    struct shape_layout layout;
    struct mlacat_call call;
    struct concat_mla_launch launch;
    struct in_process process;
};

static const struct shape shape = {
    .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16, .dim0 = 1, .dim1 = 16, .first = 128, .second = 64};

static bool run_in_service(struct latency *latency)
{
    enum mlacat_status status = mlacat_run(latency->bench->stream, &latency->call, NULL);

    return status == MLACAT_OK || (ctl_fail("call", status), false);
}

static bool run_in_process(struct latency *latency)
{
    return in_process_run(&latency->process, &latency->launch);
}

/* The first one does not count: without MPS the GPU changes over from the other process to ours. */
static bool burst(struct latency *latency, struct samples *samples, bool (*once)(struct latency *latency))
{
    if (!once(latency))
        return false;
    for (int i = 0; i < BURST; i++) {
        uint64_t begin = measure_now_ns();

        if (!once(latency))
            return false;
        samples_add(samples, (double)(measure_now_ns() - begin) / 1e3);
    }
    return true;
}

static bool service_side(void *context, struct samples *samples)
{
    return burst(context, samples, run_in_service);
}

static bool process_side(void *context, struct samples *samples)
{
    return burst(context, samples, run_in_process);
}

/* Poisons the output, runs once, and looks at every byte. */
static bool run_checked(struct latency *latency, const char *name, bool (*once)(struct latency *latency))
{
    struct area_device *device = &latency->bench->device;
    uint8_t *data[SHAPE_OPERANDS];
    struct difference difference;
    char text[256];
    enum mlacat_status status;

    for (unsigned i = 0; i < SHAPE_OPERANDS; i++)
        data[i] = latency->area.data + i * (size_t)OPERAND_BYTES;
    random_fill(latency->bench->options->seed, shape.dtype, latency->area.data, latency->area.bytes);
    reference_poison(&shape, &latency->layout, data);
    status = area_upload(device, &latency->area, latency->area.bytes);
    if (status == MLACAT_OK && !once(latency))
        return false;
    if (status == MLACAT_OK)
        status = area_download(device, &latency->area, latency->area.bytes);
    if (status != MLACAT_OK) {
        ctl_fail_for(name, status, area_message(device));
        return false;
    }
    if (reference_check(&shape, &latency->layout, data, &difference))
        return true;
    reference_text(&difference, text, sizeof(text));
    fprintf(stderr, "mlacatctl: %s: the result is wrong: %s\n", name, text);
    return false;
}

static bool open_latency(struct latency *latency)
{
    struct area_device *device = &latency->bench->device;
    struct concat_mla_args args;
    uint8_t *data[SHAPE_OPERANDS];
    enum mlacat_status status = area_new(device, SHAPE_OPERANDS * (size_t)OPERAND_BYTES, &latency->area);

    if (status != MLACAT_OK) {
        ctl_fail_for("cannot make a buffer", status, area_message(device));
        return false;
    }
    if (!shape_layout(&shape, &latency->layout))
        return false;
    latency->call = (struct mlacat_call){.size = sizeof(latency->call), .op = shape.op, .dtype = shape.dtype};
    for (unsigned i = 0; i < SHAPE_OPERANDS; i++) {
        size_t at = i * (size_t)OPERAND_BYTES;

        latency->call.operand[i] = ctl_tensor(&latency->layout.operand[i], latency->area.buffer);
        latency->call.operand[i].offset_bytes += at;
        data[i] = (uint8_t *)(uintptr_t)latency->area.address + at;
    }
    args = bench_kernel_args(&shape, &latency->layout, data);
    in_process_plan(&args, &latency->launch);
    return in_process_open(&latency->process, &device->gpu, &latency->launch);
}

bool bench_cuda_latency(struct bench *bench, struct bench_row *row)
{
    struct latency latency = {.bench = bench};
    bool good;

    row->note = in_process_missing();
    if (row->note)
        return true;
    good = open_latency(&latency) && run_checked(&latency, row->name, run_in_service) &&
           run_checked(&latency, row->name, run_in_process) &&
           bench_pairs(bench, row, service_side, process_side, &latency);
    bench_remark_p99(row);
    in_process_close(&latency.process);
    area_free(&bench->device, &latency.area);
    return good;
}
