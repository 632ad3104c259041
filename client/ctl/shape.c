/* SPDX-License-Identifier: Apache-2.0 */
#include "shape.h"

#include <stdio.h>

#include "names.h"

#define BYTES_MAX (1ull << 46)

/* a * b * c, or BYTES_MAX when that is smaller. */
static uint64_t capped(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t product;

    if (__builtin_mul_overflow(a, b, &product) || __builtin_mul_overflow(product, c, &product))
        return BYTES_MAX;
    return product < BYTES_MAX ? product : BYTES_MAX;
}

/* Puts an operand `lead` elements into a region of `region` elements between two guards. */
static bool place(struct shape_operand *operand, uint64_t element, uint64_t lead, uint64_t region)
{
    uint64_t bytes = capped(region, element, 1);

    if (bytes >= BYTES_MAX)
        return false;
    operand->offset_bytes = SHAPE_GUARD_BYTES + (region > 0 ? lead * element : 0);
    operand->buffer_bytes = 2 * SHAPE_GUARD_BYTES + bytes;
    return true;
}

/* Rows of `width` elements, `pitch` apart, that begin `lead` elements into the pitch; dimension 1 innermost. */
static bool place_rows(struct shape_operand *operand, uint64_t element, uint64_t dim0, uint64_t dim1, uint64_t width,
                       uint64_t lead, uint64_t pitch)
{
    uint64_t step = capped(dim1, pitch, 1);

    if (step >= BYTES_MAX || pitch >= BYTES_MAX)
        return false;
    *operand = (struct shape_operand){.shape = {dim0, dim1, width}, .strides = {(int64_t)step, (int64_t)pitch, 1}};
    return place(operand, element, lead, capped(dim0, dim1, pitch));
}

/* Dimension 0 innermost: what a batched product over the heads leaves behind. */
static bool place_head_major(struct shape_operand *operand, uint64_t element, uint64_t dim0, uint64_t dim1,
                             uint64_t width)
{
    uint64_t step = capped(dim0, width, 1);

    if (step >= BYTES_MAX)
        return false;
    *operand = (struct shape_operand){.shape = {dim0, dim1, width}, .strides = {(int64_t)width, (int64_t)step, 1}};
    return place(operand, element, 0, capped(dim0, dim1, width));
}

/*
 * Strided, as the model runners call:
 *   k_nope  the left part of each row of the up-projection's output [N, H, P + V]
 *   k_rope  the tail of the down-projection's row [N, lead + R]
 *   a       head-major: [D1, D0, A] seen as [D0, D1, A]
 *   b       the tail of each row of q [D0, D1, lead + B]
 */
bool shape_layout(const struct shape *shape, struct shape_layout *layout)
{
    const struct op_name *op = names_op(shape->op);
    uint64_t element = names_dtype_bytes(shape->dtype);
    uint64_t lead = shape->strided ? shape->lead : 0;
    uint64_t behind = shape->strided ? shape->v : 0;
    struct shape_operand *operand = layout->operand;

    layout->element_bytes = element;
    if (!place_rows(&operand[SHAPE_OUT], element, shape->dim0, shape->dim1, shape->first + shape->second, 0,
                    shape->first + shape->second + shape->gap))
        return false;
    if (!place_rows(&operand[SHAPE_SECOND], element, shape->dim0, op->broadcast ? 1 : shape->dim1, shape->second, lead,
                    lead + shape->second))
        return false;
    if (shape->strided && !op->broadcast)
        return place_head_major(&operand[SHAPE_FIRST], element, shape->dim0, shape->dim1, shape->first);
    return place_rows(&operand[SHAPE_FIRST], element, shape->dim0, shape->dim1, shape->first, 0,
                      shape->first + (op->broadcast ? behind : 0));
}

uint64_t shape_bytes(const struct shape *shape)
{
    uint64_t rows = shape->dim0 * shape->dim1;
    uint64_t second_rows = names_op(shape->op)->broadcast && shape->dim1 > 0 ? shape->dim0 : rows;

    return (rows * (2 * shape->first + shape->second) + second_rows * shape->second) * names_dtype_bytes(shape->dtype);
}

void shape_text(const struct shape *shape, char *text, size_t bytes)
{
    snprintf(text, bytes, "[%llu,%llu,%llu+%llu]", (unsigned long long)shape->dim0, (unsigned long long)shape->dim1,
             (unsigned long long)shape->first, (unsigned long long)shape->second);
}
