/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A call as a ring's entry. An entry has four extents where a call has nine, so that what contradicts itself is seen
 * here; all the rest is the daemon's to check.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "ring.h"

#define SHAPE_TEXT_BYTES 72
#define OPERANDS 3

enum second_rows { PER_ROW, BROADCAST };

struct op_row {
    uint32_t number;
    enum second_rows second_rows;
    const char *operand[OPERANDS];
};

static const struct op_row ops[] = {
#define MLACAT_OP(number, enum_name, name, out, first, second, second_rows, dim0, dim1, w1, w2) \
    {number, second_rows, {#out, #first, #second}},
#include "mlacat_ops.def"
};

#define OPS_NR (sizeof(ops) / sizeof(ops[0]))

static const struct op_row *find_op(uint32_t number)
{
    for (size_t i = 0; i < OPS_NR; i++) {
        if (ops[i].number == number) {
            return &ops[i];
        }
    }
    return NULL;
}

static const char *shape_text(const struct mlacat_tensor *tensor, char text[SHAPE_TEXT_BYTES])
{
    snprintf(text, SHAPE_TEXT_BYTES, "[%" PRIu64 ", %" PRIu64 ", %" PRIu64 "]", tensor->shape[0], tensor->shape[1],
             tensor->shape[2]);
    return text;
}

static enum mlacat_status refuse_shape(const struct op_row *op, const struct mlacat_call *call, int operand,
                                       const char *which, uint64_t value, struct error *err)
{
    char has[SHAPE_TEXT_BYTES];
    char against[SHAPE_TEXT_BYTES];
    return error_set(err, MLACAT_INVALID_ARGUMENT, "%s shape %s does not match %s shape %s: its %s %" PRIu64,
                     op->operand[operand], shape_text(&call->operand[operand], has), op->operand[0],
                     shape_text(&call->operand[0], against), which, value);
}

static enum mlacat_status check_shapes(const struct op_row *op, const struct mlacat_call *call, struct error *err)
{
    static const char *const which[] = {"first extent must be", "second extent must be"};
    const uint64_t *out = call->operand[0].shape;
    for (int k = 1; k < OPERANDS; k++) {
        for (int d = 0; d < 2; d++) {
            uint64_t want = k == 2 && d == 1 && op->second_rows == BROADCAST ? 1 : out[d];
            if (call->operand[k].shape[d] != want) {
                return refuse_shape(op, call, k, which[d], want, err);
            }
        }
    }
    uint64_t second = call->operand[2].shape[2];
    if (second > out[2]) {
        return refuse_shape(op, call, 2, "last extent must be at most", out[2], err);
    }
    if (call->operand[1].shape[2] != out[2] - second) {
        return refuse_shape(op, call, 1, "last extent must be", out[2] - second, err);
    }
    return MLACAT_OK;
}

/* Of an empty output nothing but shapes is looked at. */
static enum mlacat_status check_last_strides(const struct op_row *op, const struct mlacat_call *call, struct error *err)
{
    const uint64_t *out = call->operand[0].shape;
    for (int k = 0; k < OPERANDS && out[0] != 0 && out[1] != 0 && out[2] != 0; k++) {
        const struct mlacat_tensor *tensor = &call->operand[k];
        if (tensor->shape[2] > 1 && tensor->strides[2] != 1) {
            return error_set(err, MLACAT_INVALID_ARGUMENT,
                             "%s has stride %" PRId64 " in its last dimension of extent %" PRIu64 ": it must be 1",
                             op->operand[k], tensor->strides[2], tensor->shape[2]);
        }
    }
    return MLACAT_OK;
}

enum mlacat_status ring_encode(const struct mlacat_call *call, struct mlacat_ring_submission *entry, struct error *err)
{
    const struct op_row *op = find_op((uint32_t)call->op);
    if (op == NULL) {
        return error_set(err, MLACAT_UNIMPLEMENTED, "there is no op %u: this library has ops %u to %u",
                         (uint32_t)call->op, ops[0].number, ops[OPS_NR - 1].number);
    }
    if ((uint32_t)call->dtype > UINT16_MAX) {
        return error_set(err, MLACAT_INVALID_ARGUMENT, "there is no dtype %u: use %s (%d) to %s (%d)",
                         (uint32_t)call->dtype, mlacat_dtype_name(MLACAT_DTYPE_BF16), (int)MLACAT_DTYPE_BF16,
                         mlacat_dtype_name(MLACAT_DTYPE_END_ - 1), (int)MLACAT_DTYPE_END_ - 1);
    }
    err->code = MLACAT_OK;
    if (check_shapes(op, call, err) != MLACAT_OK || check_last_strides(op, call, err) != MLACAT_OK) {
        return err->code;
    }
    *entry = (struct mlacat_ring_submission){.op = (uint16_t)call->op,
                                             .dtype = (uint16_t)call->dtype,
                                             .deadline_us = call->deadline_us,
                                             .dim0 = call->operand[0].shape[0],
                                             .dim1 = call->operand[0].shape[1],
                                             .width_first = call->operand[1].shape[2],
                                             .width_second = call->operand[2].shape[2]};
    for (int k = 0; k < OPERANDS; k++) {
        const struct mlacat_tensor *tensor = &call->operand[k];
        entry->buffer[k] = (struct mlacat_ring_buffer){tensor->buffer->ref.id, tensor->buffer->ref.generation};
        entry->offset_bytes[k] = tensor->offset_bytes;
        entry->stride[k][0] = tensor->strides[0];
        entry->stride[k][1] = tensor->strides[1];
    }
    return MLACAT_OK;
}
