/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     the extents of one call, and where its three operands lie in their buffers.
 * Thread:   any; plain values, pure functions.
 * Lifetime: -
 * Errors:   shape_layout is false when the sizes do not fit: nothing else can go wrong.
 */
#ifndef MLACAT_CTL_SHAPE_H
#define MLACAT_CTL_SHAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mlacat/mlacat.h"

/* Each operand has a buffer of its own with so many bytes of guard before and behind what the operand spans. */
#define SHAPE_GUARD_BYTES 256u

enum { SHAPE_OUT, SHAPE_FIRST, SHAPE_SECOND, SHAPE_OPERANDS };

/* In elements. */
struct shape {
    enum mlacat_op op;
    enum mlacat_dtype dtype;
    uint64_t dim0, dim1;
    uint64_t first, second; /* widths */
    uint64_t gap;           /* between output rows */
    bool strided;           /* inputs lie as in real callers: shape.c says how */
    uint64_t v;             /* strided K: width of v behind each row of k_nope */
    uint64_t lead;          /* strided: width before each row of the second input */
};

struct shape_operand {
    uint64_t shape[3];
    int64_t strides[3];    /* elements */
    uint64_t offset_bytes; /* of element [0, 0, 0] in its buffer */
    uint64_t buffer_bytes; /* guards included */
};

struct shape_layout {
    struct shape_operand operand[SHAPE_OPERANDS];
    uint64_t element_bytes;
};

/* False: a buffer would need 2^46 bytes or more. */
bool shape_layout(const struct shape *shape, struct shape_layout *layout);

/* Bytes that the call reads and writes, each once. */
uint64_t shape_bytes(const struct shape *shape);

/* "[4096,128,128+64]" */
void shape_text(const struct shape *shape, char *text, size_t bytes);

#endif
