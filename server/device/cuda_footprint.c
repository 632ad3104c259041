/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_footprint.h"

#include <string.h>

#include "cuda_memory.h"

cuda_address cuda_operand_address(const struct device_call *call, int operand)
{
    return call->memory[operand]->base + call->plan.offset_bytes[operand];
}

/* The output's width is that of whole rows: what of them is in its place already counts as written. */
static void measure(struct cuda_extent *extent, const struct device_call *call, int operand)
{
    const struct op_plan *plan = &call->plan;
    const uint64_t dim[2] = {plan->dim0, plan->dim1};
    extent->begin = cuda_operand_address(call, operand);
    extent->end = extent->begin + plan->width_bytes[operand];
    for (int d = 0; d < 2; d++) {
        /* Unsigned: a negative stride wraps, and so moves the beginning back. */
        uint64_t reach = (dim[d] - 1) * (uint64_t)plan->stride_bytes[operand][d];
        if (plan->stride_bytes[operand][d] < 0) {
            extent->begin += reach;
        } else {
            extent->end += reach;
        }
    }
}

void cuda_footprint_init(struct cuda_footprint *footprint, const struct device_call *call)
{
    memset(footprint, 0, sizeof(*footprint));
    if (call->signal_only || !call->plan.copy[OP_OUT]) {
        return;
    }
    for (int k = 0; k < OP_OPERANDS; k++) {
        if (call->plan.copy[k]) {
            measure(&footprint->extent[k], call, k);
            footprint->chunks[k] = call->memory[k]->segment ? NULL : call->memory[k];
            footprint->has_chunks |= footprint->chunks[k] != NULL;
        }
    }
}

static bool may_be_same(const struct device_memory *x, const struct device_memory *y)
{
    return x && y && x != y;
}

bool cuda_footprints_share_chunks(const struct cuda_footprint *x, const struct cuda_footprint *y)
{
    bool shared = false;
    for (int k = 0; k < OP_OPERANDS; k++) {
        shared |= may_be_same(x->chunks[OP_OUT], y->chunks[k]) || may_be_same(x->chunks[k], y->chunks[OP_OUT]);
    }
    return shared;
}
