/* SPDX-License-Identifier: Apache-2.0 */
#include "op.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "op_overlap.h"

#define SECOND_BROADCAST true
#define SECOND_PER_ROW false

static const struct op_info op_table[] = {
#define MLACAT_OP(number, enum_name, name, out, first, second, second_rows, dim0, dim1, w1, w2) \
    {number, #name, {#out, #first, #second}, SECOND_##second_rows},
#include "mlacat_ops.def"
};

static const struct dtype_info {
    uint32_t number;
    uint32_t bytes;
    const char *name;
} dtype_table[] = {
#define MLACAT_DTYPE(number, enum_name, name, bytes) {number, bytes, #name},
#include "mlacat_dtypes.def"
};

#define OPS_NR ((uint32_t)(sizeof(op_table) / sizeof(op_table[0])))
#define DTYPES_NR ((uint32_t)(sizeof(dtype_table) / sizeof(dtype_table[0])))

/* Long enough for "[a, b, c]" of any numbers. */
#define SHAPE_TEXT_BYTES 72

/* One operand during validation, in bytes. */
struct operand {
    const char *name;
    const struct op_view *view;
    const struct op_memory *memory;
    uint64_t width;           /* of a row */
    int64_t stride[2];        /* 0 where the extent is 1 */
    int64_t begin;            /* the span that its rows lie in, from the start of the buffer */
    int64_t end;              /* 0 = no byte of it is touched */
    struct overlap_rows rows; /* its rows in the allocation */
};

const struct op_info *op_at(uint32_t index)
{
    return index < OPS_NR ? &op_table[index] : NULL;
}

const struct op_info *op_find(uint32_t number)
{
    for (uint32_t i = 0; i < OPS_NR; i++) {
        if (op_table[i].number == number) {
            return &op_table[i];
        }
    }
    return NULL;
}

static const struct dtype_info *dtype_find(uint32_t number)
{
    for (uint32_t i = 0; i < DTYPES_NR; i++) {
        if (dtype_table[i].number == number) {
            return &dtype_table[i];
        }
    }
    return NULL;
}

uint32_t dtype_bytes(uint32_t dtype)
{
    const struct dtype_info *info = dtype_find(dtype);
    return info ? info->bytes : 0;
}

const char *dtype_name(uint32_t dtype)
{
    const struct dtype_info *info = dtype_find(dtype);
    return info ? info->name : "unknown";
}

static const char *shape_text(const uint64_t shape[OP_DIMS], char *text)
{
    snprintf(text, SHAPE_TEXT_BYTES, "[%" PRIu64 ", %" PRIu64 ", %" PRIu64 "]", shape[0], shape[1], shape[2]);
    return text;
}

/* "k_nope shape [4, 128, 127] does not match k shape [4, 128, 192]: its last extent must be 128" */
static enum mlacat_status refuse_shape(const struct operand *input, const struct operand *out, const char *which,
                                       uint64_t value, struct error *err)
{
    char has[SHAPE_TEXT_BYTES];
    char against[SHAPE_TEXT_BYTES];
    return error_set(err, MLACAT_INVALID_ARGUMENT, "%s shape %s does not match %s shape %s: its %s %" PRIu64,
                     input->name, shape_text(input->view->shape, has), out->name, shape_text(out->view->shape, against),
                     which, value);
}

static enum mlacat_status check_shapes(const struct op_info *info, const struct operand operand[OP_OPERANDS],
                                       struct error *err)
{
    static const char *const which[] = {"first extent must be", "second extent must be"};
    const struct operand *out = &operand[OP_OUT];
    const uint64_t *shape = out->view->shape;
    for (int k = OP_FIRST; k <= OP_SECOND; k++) {
        for (int d = 0; d < 2; d++) {
            uint64_t want = k == OP_SECOND && d == 1 && info->second_broadcast ? 1 : shape[d];
            if (operand[k].view->shape[d] != want) {
                return refuse_shape(&operand[k], out, which[d], want, err);
            }
        }
    }
    uint64_t second = operand[OP_SECOND].view->shape[2];
    if (second > shape[2]) {
        return refuse_shape(&operand[OP_SECOND], out, "last extent must be at most", shape[2], err);
    }
    if (operand[OP_FIRST].view->shape[2] != shape[2] - second) {
        return refuse_shape(&operand[OP_FIRST], out, "last extent must be", shape[2] - second, err);
    }
    return MLACAT_OK;
}

/* Strides in bytes and the span of bytes that the rows lie in. False: a number does not fit 64 bits. */
static bool measure(struct operand *x, uint32_t element_bytes)
{
    int64_t width;
    int64_t allocation_start;
    if (!checked_u64_to_i64(x->view->offset_bytes, &x->begin) || !checked_u64_to_i64(x->width, &width) ||
        !checked_add_i64(x->begin, width, &x->end)) {
        return false;
    }
    for (int d = 0; d < 2; d++) {
        int64_t steps;
        int64_t extent;
        if (x->view->shape[d] <= 1) {
            x->stride[d] = 0; /* whatever was given: it is never stepped over */
            continue;
        }
        if (!checked_mul_i64(x->view->stride[d], element_bytes, &x->stride[d]) ||
            !checked_u64_to_i64(x->view->shape[d] - 1, &steps) || !checked_mul_i64(x->stride[d], steps, &extent)) {
            return false;
        }
        int64_t *edge = extent < 0 ? &x->begin : &x->end;
        if (!checked_add_i64(*edge, extent, edge)) {
            return false;
        }
    }
    if (!checked_u64_to_i64(x->memory->allocation_offset_bytes, &allocation_start) ||
        !checked_add_i64(allocation_start, (int64_t)x->view->offset_bytes, &x->rows.start) ||
        !checked_add_i64(allocation_start, x->end, &allocation_start)) {
        return false;
    }
    x->rows.width = x->width;
    for (int d = 0; d < 2; d++) {
        x->rows.count[d] = x->view->shape[d];
        x->rows.stride[d] = x->stride[d];
    }
    return true;
}

/* Everything that can be said of one operand alone. */
static enum mlacat_status check_operand(struct operand *x, uint32_t element_bytes, struct error *err)
{
    const struct op_view *view = x->view;
    char shape[SHAPE_TEXT_BYTES];
    if (view->shape[2] > 1 && view->stride[2] != 1) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "%s has stride %" PRId64 " in its last dimension of extent %" PRIu64 ": it must be 1", x->name,
                         view->stride[2], view->shape[2]);
    }
    if (!measure(x, element_bytes)) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "%s with offset %" PRIu64 ", shape %s, strides [%" PRId64 ", %" PRId64
                         "] reaches past 64 bits: correct them",
                         x->name, view->offset_bytes, shape_text(view->shape, shape), view->stride[0], view->stride[1]);
    }
    if (x->begin < 0 || (uint64_t)x->end > x->memory->size_bytes) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "%s needs bytes [%" PRId64 ", %" PRId64 ") of a buffer of %" PRIu64
                         " bytes: correct its shape %s, strides [%" PRId64 ", %" PRId64 "] or offset",
                         x->name, x->begin, x->end, x->memory->size_bytes, shape_text(view->shape, shape),
                         view->stride[0], view->stride[1]);
    }
    return MLACAT_OK;
}

static enum mlacat_status check_output_rows(const struct operand *out, struct error *err)
{
    for (int d = 0; d < 2; d++) {
        if (out->view->shape[d] > 1 && out->stride[d] == 0) {
            return error_set(err, MLACAT_INVALID_ARGUMENT,
                             "%s has stride 0 in dimension %d of extent %" PRIu64
                             ": its rows would overwrite each other",
                             out->name, d, out->view->shape[d]);
        }
    }
    enum overlap_answer answer = overlap_within(&out->rows);
    if (answer == OVERLAP_NONE) {
        return MLACAT_OK;
    }
    const char *text = answer == OVERLAP_FOUND ? "rows overlap each other" : "rows cannot be proven disjoint";
    return error_set(err, MLACAT_INVALID_ARGUMENT,
                     "%s %s: rows of %" PRIu64 " bytes with strides of %" PRId64 " and %" PRId64
                     " bytes; give each row bytes of its own",
                     out->name, text, out->width, out->stride[0], out->stride[1]);
}

static bool same_allocation(const struct operand *a, const struct operand *b)
{
    return a->memory->allocation.hi == b->memory->allocation.hi && a->memory->allocation.lo == b->memory->allocation.lo;
}

/* The input's bytes are those of the output that they would be copied to, `at` bytes into the row. */
static bool in_place(const struct operand *input, const struct operand *out, uint64_t at)
{
    return same_allocation(input, out) && input->rows.start == out->rows.start + (int64_t)at &&
           input->stride[0] == out->stride[0] && input->stride[1] == out->stride[1];
}

/* No byte that is written may belong to `input`, which is read. */
static enum mlacat_status check_input_apart(const struct operand *input, const struct operand *out,
                                            const struct overlap_rows *written, struct error *err)
{
    if (!same_allocation(input, out)) {
        return MLACAT_OK;
    }
    enum overlap_answer answer = overlap_between(written, &input->rows);
    if (answer == OVERLAP_NONE) {
        return MLACAT_OK;
    }
    const char *text = answer == OVERLAP_FOUND ? "overlaps" : "cannot be proven disjoint from";
    return error_set(err, MLACAT_INVALID_ARGUMENT,
                     "%s, in bytes [%" PRId64 ", %" PRId64
                     ") of its buffer, %s what is written of %s, in bytes [%" PRId64 ", %" PRId64
                     ") of the same memory: give it bytes of its own",
                     input->name, input->begin, input->end, text, out->name, out->begin, out->end);
}

/* Bytes of an input, those behind a stride of 0 once. */
static uint64_t distinct_bytes(const struct operand *x)
{
    uint64_t bytes = x->width;
    for (int d = 0; d < 2; d++) {
        if (x->stride[d] != 0) {
            bytes *= x->view->shape[d]; /* fits: the shape is no larger than the output's, whose size was counted */
        }
    }
    return bytes;
}

/* Which inputs must be copied; that they are apart from what is written; the sum of the bytes. */
static enum mlacat_status plan_copies(const struct operand operand[OP_OPERANDS], uint64_t rows, struct op_plan *plan,
                                      struct error *err)
{
    const struct operand *out = &operand[OP_OUT];
    struct overlap_rows written = out->rows;
    uint64_t at = 0;
    written.width = 0;
    for (int k = OP_FIRST; k <= OP_SECOND; k++) {
        const struct operand *input = &operand[k];
        plan->copy[k] = input->width > 0 && !in_place(input, out, at);
        if (plan->copy[k]) {
            if (written.width == 0) {
                written.start += (int64_t)at;
            }
            written.width += input->width;
            plan->bytes += distinct_bytes(input);
        }
        at += input->width;
    }
    plan->copy[OP_OUT] = written.width > 0;
    plan->bytes += rows * written.width;
    for (int k = OP_FIRST; k <= OP_SECOND; k++) {
        if (plan->copy[k]) {
            enum mlacat_status status = check_input_apart(&operand[k], out, &written, err);
            if (status != MLACAT_OK) {
                return status;
            }
        }
    }
    return MLACAT_OK;
}

/* The parts that need the operands' memory; the output has at least one byte. */
static enum mlacat_status validate_memory(struct operand operand[OP_OPERANDS], uint32_t element_bytes,
                                          struct op_plan *plan, struct error *err)
{
    const uint64_t *shape = operand[OP_OUT].view->shape;
    uint64_t row_bytes;
    uint64_t rows;
    uint64_t bytes;
    if (!checked_mul_u64(shape[2], element_bytes, &row_bytes) || !checked_mul_u64(shape[0], shape[1], &rows) ||
        !checked_mul_u64(rows, row_bytes, &bytes)) {
        char text[SHAPE_TEXT_BYTES];
        return error_set(err, MLACAT_INVALID_ARGUMENT, "%s shape %s has more bytes than 64 bits can count: correct it",
                         operand[OP_OUT].name, shape_text(shape, text));
    }
    plan->dim0 = shape[0];
    plan->dim1 = shape[1];
    for (int k = 0; k < OP_OPERANDS; k++) {
        struct operand *x = &operand[k];
        x->width = x->view->shape[2] * element_bytes; /* fits: no wider than the output's */
        if (x->width == 0) {
            continue; /* no byte of it is looked at */
        }
        enum mlacat_status status = check_operand(x, element_bytes, err);
        if (status != MLACAT_OK) {
            return status;
        }
        plan->width_bytes[k] = x->width;
        plan->offset_bytes[k] = x->view->offset_bytes;
        plan->stride_bytes[k][0] = x->stride[0];
        plan->stride_bytes[k][1] = x->stride[1];
    }
    enum mlacat_status status = check_output_rows(&operand[OP_OUT], err);
    return status != MLACAT_OK ? status : plan_copies(operand, rows, plan, err);
}

enum mlacat_status op_validate(const struct op_request *request, const struct op_memory memory[OP_OPERANDS],
                               struct op_plan *plan, struct error *err)
{
    const struct op_info *info = op_find(request->op);
    if (!info) {
        return error_set(err, MLACAT_UNIMPLEMENTED,
                         "there is no op %" PRIu32 ": this service has ops 1 to %" PRIu32 "; see `mlacatctl info`",
                         request->op, OP_NUMBER_MAX);
    }
    uint32_t element_bytes = dtype_bytes(request->dtype);
    if (element_bytes == 0) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "there is no dtype %" PRIu32 ": use %s (%" PRIu32 ") to %s (%" PRIu32 ")", request->dtype,
                         dtype_table[0].name, dtype_table[0].number, dtype_table[DTYPES_NR - 1].name,
                         dtype_table[DTYPES_NR - 1].number);
    }
    struct operand operand[OP_OPERANDS];
    memset(operand, 0, sizeof(operand));
    for (int k = 0; k < OP_OPERANDS; k++) {
        operand[k].name = info->operand[k];
        operand[k].view = &request->view[k];
        operand[k].memory = &memory[k];
    }
    memset(plan, 0, sizeof(*plan));
    plan->op = request->op;
    enum mlacat_status status = check_shapes(info, operand, err);
    const uint64_t *shape = request->view[OP_OUT].shape;
    if (status != MLACAT_OK || shape[0] == 0 || shape[1] == 0 || shape[2] == 0) {
        return status;
    }
    return validate_memory(operand, element_bytes, plan, err);
}
