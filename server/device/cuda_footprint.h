/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which bytes a call reads and writes, as far as it matters to calls beside it: two calls may run together, or in the
 * other order, if neither writes what the other one touches. Bounds of the operands, not their rows: when in doubt
 * there is a conflict. Private to the device layer and its tests.
 *
 * Two operands are the same bytes
 *   - by IPC handle: where their addresses are equal. This process has one mapping of an allocation, whoever registered
 *     it and however often (cuda_segments.h), and a call in flight keeps it;
 *   - as chunks: where their addresses are equal, in one buffer. Those of two buffers may be the same chunk, mapped
 *     twice, and no driver tells: they are taken for the same bytes;
 *   - never, if one is this and the other one that: a handle is of cudaMalloc, a chunk of cuMemCreate.
 *
 * Owns:     nothing.
 * Thread:   any.
 * Lifetime: as long as the call is in flight.
 * Errors:   none; the call was proven good (server/model/op.h).
 */
#ifndef MLACAT_DEVICE_CUDA_FOOTPRINT_H
#define MLACAT_DEVICE_CUDA_FOOTPRINT_H

#include <stdbool.h>

#include "cuda_api.h"
#include "device.h"

struct cuda_extent {
    cuda_address begin;
    cuda_address end; /* 0: nothing of the operand is touched */
};

struct cuda_footprint {
    struct cuda_extent extent[OP_OPERANDS];          /* OP_OUT is written, the others are read */
    const struct device_memory *chunks[OP_OPERANDS]; /* what is touched, if it is a buffer of chunks */
    bool has_chunks;
};

/* Where an operand's element [0,0,0] is. */
cuda_address cuda_operand_address(const struct device_call *call, int operand);

/* Of a call that copies nothing: none. */
void cuda_footprint_init(struct cuda_footprint *footprint, const struct device_call *call);

static inline bool cuda_extents_meet(const struct cuda_extent *x, const struct cuda_extent *y)
{
    return x->begin < y->end && y->begin < x->end;
}

bool cuda_footprints_share_chunks(const struct cuda_footprint *x, const struct cuda_footprint *y);

static inline bool cuda_footprints_conflict(const struct cuda_footprint *x, const struct cuda_footprint *y)
{
    const struct cuda_extent *a = x->extent;
    const struct cuda_extent *b = y->extent;
    if (cuda_extents_meet(&a[OP_OUT], &b[OP_OUT]) || cuda_extents_meet(&a[OP_OUT], &b[OP_FIRST]) ||
        cuda_extents_meet(&a[OP_OUT], &b[OP_SECOND]) || cuda_extents_meet(&a[OP_FIRST], &b[OP_OUT]) ||
        cuda_extents_meet(&a[OP_SECOND], &b[OP_OUT])) {
        return true;
    }
    return x->has_chunks && y->has_chunks && cuda_footprints_share_chunks(x, y);
}

#endif
