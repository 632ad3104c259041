/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_batch.h"

#include "cuda_device.h"
#include "cuda_footprint.h"
#include "cuda_gated.h"

/* A call in company has ended when all of it has: the launch takes this part of a millisecond at most. */
#define BATCH_PARTS 16

void cuda_batch_begin(struct cuda_batch *batch, uint64_t launch_bytes)
{
    batch->pending = false;
    batch->more = false;
    batch->calls_nr = 0;
    batch->launch_bytes = launch_bytes;
    batch->gate.address = 0;
}

static void *operand_pointer(const struct device_call *call, int operand)
{
    return (void *)(uintptr_t)cuda_operand_address(call, operand);
}

static struct concat_mla_args kernel_args(const struct device_call *call)
{
    const struct op_plan *plan = &call->plan;
    struct concat_mla_args args = {
        .out = operand_pointer(call, OP_OUT),
        .dim0 = plan->dim0,
        .dim1 = plan->dim1,
        .out_stride0 = plan->stride_bytes[OP_OUT][0],
        .out_stride1 = plan->stride_bytes[OP_OUT][1],
        .a_bytes = plan->width_bytes[OP_FIRST],
        .b_bytes = plan->width_bytes[OP_SECOND],
    };
    if (plan->copy[OP_FIRST]) {
        args.a = operand_pointer(call, OP_FIRST);
        args.a_stride0 = plan->stride_bytes[OP_FIRST][0];
        args.a_stride1 = plan->stride_bytes[OP_FIRST][1];
    }
    if (plan->copy[OP_SECOND]) {
        args.b = operand_pointer(call, OP_SECOND);
        args.b_stride0 = plan->stride_bytes[OP_SECOND][0];
        args.b_stride1 = plan->stride_bytes[OP_SECOND][1];
    }
    return args;
}

static void add_first(struct cuda_batch *batch, const struct concat_mla_args *args)
{
    batch->first = *args;
    concat_mla_plan_init(&batch->plan, args, batch->launch_bytes);
    batch->pending = concat_mla_plan_next(&batch->plan, &batch->launch);
    batch->more = batch->pending && concat_mla_plan_next(&batch->plan, &batch->after);
}

bool cuda_batch_add(struct cuda_batch *batch, const struct device_call *call)
{
    if (call->signal_only || !call->plan.copy[OP_OUT]) {
        return true;
    }
    struct concat_mla_args args = kernel_args(call);
    if (batch->calls_nr == 0) {
        add_first(batch, &args);
    } else {
        if (batch->calls_nr == 1) {
            concat_mla_many_init(&batch->many, batch->launch_bytes / BATCH_PARTS);
            if (!concat_mla_many_add(&batch->many, &batch->first)) {
                return false;
            }
        }
        if (!concat_mla_many_add(&batch->many, &args)) {
            return false;
        }
    }
    batch->calls_nr++;
    return true;
}

/* The threads of the block that tells the end of the next launch; 0: it is more than that. */
static unsigned signal_threads(const struct cuda_batch *batch)
{
    return batch->calls_nr > 1 || batch->more ? 0 : concat_mla_signal_threads(&batch->launch);
}

bool cuda_batch_can_wait(const struct cuda_batch *batch, const struct cuda_kernels *kernels)
{
    return batch->pending && !batch->more && (signal_threads(batch) != 0 || cuda_gated_exists(kernels));
}

static int launch_kernel(const struct cuda_lane *lane, struct cuda_function *function, unsigned grid, unsigned block,
                         void **parameters)
{
    return lane->device->cuda->cuLaunchKernel(function, grid, 1, 1, block, 1, 1, 0, lane->stream, parameters, NULL);
}

static int launch_signal(struct cuda_batch *batch, const struct cuda_lane *lane, const struct concat_mla_end *end,
                         unsigned threads)
{
    struct concat_mla_signal signal = {.end = *end, .gate = batch->gate};
    return launch_kernel(lane, cuda_kernels_find_signal(&lane->device->kernels, &batch->launch), 1, threads,
                         (void *[]){&batch->launch.args, &batch->launch.range, &signal});
}

/* What it tells on a lapse is a number that the lane never uses again: so it is the ticket's too. */
static int launch_gated(struct cuda_batch *batch, const struct cuda_lane *lane, const struct concat_mla_end *end,
                        bool *part)
{
    const struct device *device = lane->device;
    struct cuda_gated gated = {.copy = &batch->launch,
                               .gate = batch->gate,
                               .end = *end,
                               .ticket = {.address = lane->fence->ticket, .number = batch->gate.lapsed_value}};
    return cuda_gated_launch(&gated, &device->kernels, device->cuda, lane->stream, part);
}

static int launch_plain(struct cuda_batch *batch, const struct cuda_lane *lane)
{
    const struct cuda_kernels *kernels = &lane->device->kernels;
    struct concat_mla_launch *one = &batch->launch;
    if (batch->calls_nr > 1) {
        return launch_kernel(lane, kernels->many, batch->many.grid, CONCAT_MLA_MANY_THREADS,
                             (void *[]){&batch->many.args});
    }
    return launch_kernel(lane, cuda_kernels_find(kernels, one), one->grid, one->block,
                         (void *[]){&one->args, &one->range});
}

int cuda_batch_launch(struct cuda_batch *batch, const struct cuda_lane *lane, const struct concat_mla_end *end,
                      enum cuda_launched *launched)
{
    unsigned threads = signal_threads(batch);
    bool part = false;
    int result;
    *launched = CUDA_LAUNCHED_TELLS;
    if (threads != 0) {
        result = launch_signal(batch, lane, end, threads);
    } else if (batch->gate.address != 0) {
        result = launch_gated(batch, lane, end, &part);
    } else {
        *launched = CUDA_LAUNCHED;
        result = launch_plain(batch, lane);
    }
    if (result != CUDA_RESULT_OK) {
        *launched = part ? CUDA_LAUNCHED_PART : CUDA_LAUNCHED;
    }
    batch->pending = batch->more && result == CUDA_RESULT_OK;
    batch->more = false;
    if (batch->pending) {
        batch->launch = batch->after;
        batch->more = concat_mla_plan_next(&batch->plan, &batch->after);
    }
    return result;
}
