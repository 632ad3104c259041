/* SPDX-License-Identifier: Apache-2.0 */
#include "small_calls.h"

#include <stdio.h>
#include <stdlib.h>

#include "random.h"
#include "reference.h"

/* Every operand begins at a multiple of it, so that the kernels copy by their largest vector. */
#define ALIGN_BYTES 256u

static bool failed(const struct small_calls *calls, const char *what, enum mlacat_status status)
{
    ctl_fail_for(what, status, area_message(&calls->bench->device));
    return false;
}

static void operands_of(const struct small_calls *calls, unsigned call, uint8_t *base, uint8_t *data[SHAPE_OPERANDS])
{
    for (int i = 0; i < SHAPE_OPERANDS; i++)
        data[i] = base + call * calls->call_bytes + calls->operand_at[i];
}

const char *small_calls_missing(const struct bench *bench)
{
    return bench->device.on_gpu ? in_process_missing() : NULL;
}

/* ------------------------------------------------------------------------------------------------ making them */

static void lay_out(struct small_calls *calls)
{
    for (int i = 0; i < SHAPE_OPERANDS; i++) {
        size_t bytes = calls->layout.operand[i].buffer_bytes;

        calls->operand_at[i] = calls->call_bytes;
        calls->call_bytes += (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    }
}

static void make_call(struct small_calls *calls, unsigned index)
{
    bool on_gpu = calls->bench->device.on_gpu;
    uint8_t *base = on_gpu ? (uint8_t *)(uintptr_t)calls->area.address : calls->area.data;
    struct mlacat_call *call = &calls->calls[index];
    uint8_t *data[SHAPE_OPERANDS];
    struct concat_mla_args args;

    *call = (struct mlacat_call){.size = sizeof(*call), .op = calls->shape.op, .dtype = calls->shape.dtype};
    for (int i = 0; i < SHAPE_OPERANDS; i++) {
        call->operand[i] = ctl_tensor(&calls->layout.operand[i], calls->area.buffer);
        call->operand[i].offset_bytes += index * (uint64_t)calls->call_bytes + calls->operand_at[i];
    }
    operands_of(calls, index, base, data);
    args = bench_kernel_args(&calls->shape, &calls->layout, data);
    if (on_gpu)
        in_process_plan(&args, &calls->launches[index]);
    else
        calls->launches[index].args = args;
}

bool small_calls_open(struct small_calls *calls, struct bench *bench, const struct shape *shape, unsigned nr)
{
    enum mlacat_status status;

    *calls = (struct small_calls){.bench = bench, .shape = *shape, .nr = nr};
    if (!shape_layout(shape, &calls->layout))
        return false;
    lay_out(calls);
    calls->calls = calloc(nr, sizeof(calls->calls[0]));
    calls->launches = calloc(nr, sizeof(calls->launches[0]));
    if (!calls->calls || !calls->launches) {
        fprintf(stderr, "mlacatctl: no memory for %u calls\n", nr);
        return false;
    }
    status = area_new(&bench->device, nr * calls->call_bytes, &calls->area);
    if (status != MLACAT_OK)
        return failed(calls, "cannot make a buffer", status);
    for (unsigned i = 0; i < nr; i++)
        make_call(calls, i);
    return !bench->device.on_gpu || in_process_missing() ||
           in_process_open(&calls->process, &bench->device.gpu, &calls->launches[0]);
}

void small_calls_close(struct small_calls *calls)
{
    if (!calls->bench)
        return;
    in_process_close(&calls->process);
    area_free(&calls->bench->device, &calls->area);
    free(calls->calls);
    free(calls->launches);
    *calls = (struct small_calls){0};
}

/* ------------------------------------------------------------------------------------------------ doing them */

bool small_calls_in_process(const struct small_calls *calls, unsigned first, unsigned nr)
{
    if (!calls->bench->device.on_gpu) {
        for (unsigned i = first; i < first + nr; i++)
            bench_kernel(&calls->launches[i].args, false);
        return true;
    }
    for (unsigned i = first; i < first + nr; i++)
        if (!in_process_launch(&calls->process, &calls->launches[i]))
            return false;
    return in_process_wait(&calls->process);
}

static bool check_outputs(const struct small_calls *calls, const char *name)
{
    uint8_t *data[SHAPE_OPERANDS];
    struct difference difference;
    char text[256];

    for (unsigned i = 0; i < calls->nr; i++) {
        operands_of(calls, i, calls->area.data, data);
        if (reference_check(&calls->shape, &calls->layout, data, &difference))
            continue;
        reference_text(&difference, text, sizeof(text));
        fprintf(stderr, "mlacatctl: %s: the result of call %u is wrong: %s\n", name, i, text);
        return false;
    }
    return true;
}

bool small_calls_check(const struct small_calls *calls, const char *name, bench_side side, void *context)
{
    struct area_device *device = &calls->bench->device;
    struct samples none = {0}; /* drops what it is given */
    uint8_t *data[SHAPE_OPERANDS];
    enum mlacat_status status;

    random_fill(calls->bench->options->seed, calls->shape.dtype, calls->area.data, calls->area.bytes);
    for (unsigned i = 0; i < calls->nr; i++) {
        operands_of(calls, i, calls->area.data, data);
        reference_poison(&calls->shape, &calls->layout, data);
    }
    status = area_upload(device, &calls->area, calls->area.bytes);
    if (status != MLACAT_OK)
        return failed(calls, name, status);
    if (!side(context, &none))
        return false;
    status = area_download(device, &calls->area, calls->area.bytes);
    return status == MLACAT_OK ? check_outputs(calls, name) : failed(calls, name, status);
}
