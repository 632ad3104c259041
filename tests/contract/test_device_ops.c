/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every op of mlacat_ops.def in every dtype of mlacat_dtypes.def over the layouts that callers have: the result is
 * exact to the bit, and not one byte beside the output's rows changes.
 */
#include "device_row.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define SMALL_BYTES 65536
#define LARGE_BYTES (3 << 20)
#define GUARD_BYTES 96 /* before the lowest byte of each operand */

enum layout {
    PACKED,
    GAPS,         /* rows apart from each other, by odd numbers of elements */
    HEAD_MAJOR,   /* dimension 1 is the outer one */
    INPUTS_ONCE,  /* stride 0 in the inputs' dimension 0 */
    BACKWARDS,    /* negative strides */
    ODD_ADDRESS,  /* off by one byte */
    FIRST_PLACED, /* the input is where it is to be copied to */
    SECOND_PLACED,
    LAYOUTS
};

static const uint64_t shapes[][4] = {
    /* dim0, dim1, widths */
    {0, 8, 16, 8},   {3, 0, 16, 8}, {1, 1, 128, 64}, {1, 1, 1, 1}, {3, 5, 7, 3},
    {2, 8, 128, 64}, {4, 3, 0, 6},  {4, 3, 6, 0},    {2, 2, 0, 0}, {5, 1, 33, 31},
};

/* Rows that a device may copy in pieces: longer than any piece, in the first input, in both, in the second one. */
static const uint64_t wide_shapes[][4] = {
    {2, 2, 140001, 70003},
    {1, 3, 300001, 5},
    {2, 1, 262144, 262144},
    {1, 2, 3, 400000},
};

static size_t buffer_bytes; /* of each operand's buffer */

struct call {
    struct op_request request;
    struct imported *memory[OP_OPERANDS];
    struct op_plan plan;
};

static uint32_t element_of(const struct call *call)
{
    return dtype_bytes(call->request.dtype);
}

/* Puts one operand into its buffer, by layout, GUARD_BYTES from the start. */
static void lay_out(struct op_view *view, enum layout layout, bool is_output, uint32_t element)
{
    int64_t gap = layout == GAPS ? 3 : 0;
    int64_t row_step = (int64_t)view->shape[2] + gap;
    int inner = layout == HEAD_MAJOR ? 0 : 1;
    view->stride[2] = 1;
    view->stride[inner] = row_step;
    view->stride[1 - inner] = row_step * (int64_t)view->shape[inner] + 2 * gap;
    view->offset_bytes = GUARD_BYTES + (layout == ODD_ADDRESS ? 1 : 0);
    if (layout == INPUTS_ONCE && !is_output) {
        view->stride[0] = 0;
    }
    for (int d = 0; d < 2 && layout == BACKWARDS; d++) {
        if (view->shape[d] > 1) {
            view->offset_bytes += (view->shape[d] - 1) * (uint64_t)view->stride[d] * element;
            view->stride[d] = -view->stride[d];
        }
    }
}

/* False: the op cannot have that layout (a row for all heads is in its place only where there is one head). */
static bool make_call(struct call *call, const struct op_info *op, uint32_t dtype, const uint64_t shape[4],
                      enum layout layout, struct imported buffer[OP_OPERANDS])
{
    uint64_t width[OP_OPERANDS] = {shape[2] + shape[3], shape[2], shape[3]};
    memset(call, 0, sizeof(*call));
    call->request.op = op->number;
    call->request.dtype = dtype;
    for (int k = 0; k < OP_OPERANDS; k++) {
        struct op_view *view = &call->request.view[k];
        view->shape[0] = shape[0];
        view->shape[1] = k == OP_SECOND && op->second_broadcast ? 1 : shape[1];
        view->shape[2] = width[k];
        lay_out(view, layout, k == OP_OUT, dtype_bytes(dtype));
        call->memory[k] = &buffer[k];
    }
    int placed = layout == FIRST_PLACED ? OP_FIRST : layout == SECOND_PLACED ? OP_SECOND : OP_OUT;
    if (placed != OP_OUT) {
        struct op_view *view = &call->request.view[placed];
        memcpy(view->stride, call->request.view[OP_OUT].stride, sizeof(view->stride));
        view->offset_bytes += placed == OP_SECOND ? shape[2] * dtype_bytes(dtype) : 0;
        call->memory[placed] = &buffer[OP_OUT];
    }
    return !(placed == OP_SECOND && op->second_broadcast && shape[1] > 1);
}

static uint64_t row_at(const struct call *call, int k, uint64_t i, uint64_t j)
{
    const struct op_view *view = &call->request.view[k];
    int64_t at = (view->shape[0] > 1 ? (int64_t)i * view->stride[0] : 0) +
                 (view->shape[1] > 1 ? (int64_t)j * view->stride[1] : 0);
    return view->offset_bytes + (uint64_t)(at * (int64_t)element_of(call));
}

/* What the buffers hold after the call, from what they hold now. */
static void reference(const struct call *call, unsigned char *out)
{
    const uint64_t *shape = call->request.view[OP_OUT].shape;
    memcpy(out, call->memory[OP_OUT]->client.bytes, buffer_bytes);
    for (uint64_t i = 0; i < shape[0]; i++) {
        for (uint64_t j = 0; j < shape[1]; j++) {
            unsigned char *to = out + row_at(call, OP_OUT, i, j);
            for (int k = OP_FIRST; k <= OP_SECOND; k++) {
                const unsigned char *from = call->memory[k]->client.bytes + row_at(call, k, i, j);
                uint64_t bytes = call->request.view[k].shape[2] * element_of(call);
                memcpy(to, from, bytes);
                to += bytes;
            }
        }
    }
}

/* Every value of a byte, so that NaN payloads, denormals and infinities are among the elements; the output poisoned. */
static void fill(struct imported buffer[OP_OPERANDS])
{
    static uint64_t seed = 1;
    memset(buffer[OP_OUT].client.bytes, 0xa5, buffer_bytes);
    for (int k = OP_FIRST; k <= OP_SECOND; k++) {
        for (size_t i = 0; i < buffer_bytes; i += sizeof(seed)) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            uint64_t word = seed ^ seed >> 32; /* the low bits of such a sequence hardly change */
            memcpy(buffer[k].client.bytes + i, &word, sizeof(word));
        }
    }
}

static void check_call(struct call *call, struct imported buffer[OP_OPERANDS], const char *name, enum layout layout)
{
    static unsigned char expected[OP_OPERANDS][LARGE_BYTES];
    struct op_memory memory[OP_OPERANDS];
    struct device_call device_call;
    struct error err;
    memset(&device_call, 0, sizeof(device_call));
    for (int k = 0; k < OP_OPERANDS; k++) {
        memory[k] = call->memory[k]->info.memory;
        device_call.memory[k] = call->memory[k]->memory;
        memcpy(expected[k], buffer[k].client.bytes, buffer_bytes);
    }
    reference(call, expected[OP_OUT]);
    if (op_validate(&call->request, memory, &device_call.plan, &err) != MLACAT_OK) {
        fail_msg("%s %s layout %d: %s", name, dtype_name(call->request.dtype), (int)layout, err.message);
    }
    device_call.cookie = call;
    assert_int_equal(row_run(&device_call).error.code, MLACAT_OK);
    for (int k = 0; k < OP_OPERANDS; k++) {
        if (memcmp(expected[k], buffer[k].client.bytes, buffer_bytes) != 0) {
            fail_msg("%s %s layout %d: wrong bytes in the buffer of operand %d", name, dtype_name(call->request.dtype),
                     (int)layout, k);
        }
    }
}

static void make_buffers(struct imported buffer[OP_OPERANDS], size_t bytes)
{
    buffer_bytes = bytes;
    for (int k = 0; k < OP_OPERANDS; k++) {
        buffer[k] = row_memory_new(bytes);
    }
}

static void free_buffers(struct imported buffer[OP_OPERANDS])
{
    for (int k = 0; k < OP_OPERANDS; k++) {
        row_memory_free(&buffer[k]);
    }
}

/* Every op and every layout; returns the number of calls. */
static unsigned check_shape(const uint64_t shape[4], uint32_t dtype, struct imported buffer[OP_OPERANDS])
{
    unsigned calls = 0;
    for (uint32_t o = 0; op_at(o); o++) {
        for (enum layout layout = PACKED; layout < LAYOUTS; layout++) {
            struct call call;
            if (make_call(&call, op_at(o), dtype, shape, layout, buffer)) {
                fill(buffer);
                check_call(&call, buffer, op_at(o)->name, layout);
                calls++;
            }
        }
    }
    return calls;
}

static void test_device_ops_are_exact_in_every_layout(void **state)
{
    (void)state;
    static const uint32_t dtypes[] = {
#define MLACAT_DTYPE(number, enum_name, name, bytes) number,
#include "mlacat_dtypes.def"
    };
    struct imported buffer[OP_OPERANDS];
    unsigned calls = 0;
    make_buffers(buffer, SMALL_BYTES);
    for (size_t d = 0; d < sizeof(dtypes) / sizeof(dtypes[0]); d++) {
        for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
            calls += check_shape(shapes[s], dtypes[d], buffer);
        }
    }
    assert_in_range(calls, 700, 800); /* nothing was left out by mistake */
    free_buffers(buffer);
}

static void test_device_ops_are_exact_in_wide_rows(void **state)
{
    (void)state;
    static const uint32_t dtypes[] = {1, 3}; /* of two bytes, of one */
    struct imported buffer[OP_OPERANDS];
    unsigned calls = 0;
    assert_int_equal(dtype_bytes(dtypes[0]), 2);
    assert_int_equal(dtype_bytes(dtypes[1]), 1);
    make_buffers(buffer, LARGE_BYTES);
    for (size_t d = 0; d < sizeof(dtypes) / sizeof(dtypes[0]); d++) {
        for (size_t s = 0; s < sizeof(wide_shapes) / sizeof(wide_shapes[0]); s++) {
            calls += check_shape(wide_shapes[s], dtypes[d], buffer);
        }
    }
    assert_in_range(calls, 116, 128);
    free_buffers(buffer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ROW_TEST(test_device_ops_are_exact_in_every_layout),
        ROW_TEST(test_device_ops_are_exact_in_wide_rows),
    };
    return ROW_RUN_TESTS("device ops", tests);
}
