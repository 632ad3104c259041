/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Do strided rows of bytes meet? Private to the model layer: op_validate asks, with operands that are known to lie in
 * their buffers.
 *
 * Owns:     nothing.
 * Thread:   any; pure functions.
 * Lifetime: -
 * Errors:   none; OVERLAP_UNPROVEN = the answer would cost more than OVERLAP_WORK steps.
 */
#ifndef MLACAT_MODEL_OP_OVERLAP_H
#define MLACAT_MODEL_OP_OVERLAP_H

#include <stdint.h>

/* Steps that one question may cost; a step is some tens of nanoseconds. Real tensors need fewer than 100. */
#define OVERLAP_WORK 256

enum overlap_answer { OVERLAP_NONE, OVERLAP_FOUND, OVERLAP_UNPROVEN };

/* count[0] * count[1] rows of `width` bytes; row (i, j) starts at start + i * stride[0] + j * stride[1], from the start
 * of the allocation. Counts and width are at least 1 and every byte has a position in [0, 2^63). */
struct overlap_rows {
    int64_t start;
    uint64_t count[2];
    int64_t stride[2];
    uint64_t width;
};

/* Does a row of `a` share a byte with a row of `b`? Both in one allocation. */
enum overlap_answer overlap_between(const struct overlap_rows *a, const struct overlap_rows *b);

/* Do two different rows share a byte? */
enum overlap_answer overlap_within(const struct overlap_rows *rows);

#endif
