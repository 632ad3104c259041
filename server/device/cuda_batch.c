/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_batch.h"

#include "cuda_device.h"
#include "cuda_footprint.h"

/* A call in company has ended when all of it has: the launch takes this part of a millisecond at most. */
#define BATCH_PARTS 16

void cuda_batch_begin(struct cuda_batch *batch, uint64_t launch_bytes)
{
    batch->pending = false;
    batch->more = false;
    batch->calls_nr = 0;
    batch->launch_bytes = launch_bytes;
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

int cuda_batch_launch(struct cuda_batch *batch, const struct cuda_lane *lane)
{
    const struct cuda_api *cuda = lane->device->cuda;
    const struct cuda_kernels *kernels = &lane->device->kernels;
    struct concat_mla_launch *one = &batch->launch;
    int result;
    if (batch->calls_nr > 1) {
        void *parameters[] = {&batch->many.args};
        result = cuda->cuLaunchKernel(kernels->many, batch->many.grid, 1, 1, CONCAT_MLA_MANY_THREADS, 1, 1, 0,
                                      lane->stream, parameters, NULL);
    } else {
        void *parameters[] = {&one->args, &one->range};
        result = cuda->cuLaunchKernel(cuda_kernels_find(kernels, one), one->grid, 1, 1, one->block, 1, 1, 0,
                                      lane->stream, parameters, NULL);
    }
    batch->pending = batch->more && result == CUDA_RESULT_OK;
    batch->more = false;
    if (batch->pending) {
        batch->launch = batch->after;
        batch->more = concat_mla_plan_next(&batch->plan, &batch->after);
    }
    return result;
}
