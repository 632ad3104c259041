/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One large call between two small kernels of this process: what a prefill of DeepSeek-V3 makes of a layer's keys. The
 * kernel before writes the first rows that the call reads, the kernel after reads the last rows that the call writes,
 * and every byte of the call's output is checked.
 */
#include <stdio.h>
#include <string.h>

#include "bench_order.h"
#include "random.h"
#include "reference.h"

#define TOKENS 4096u
#define TOKENS_QUICK 16u
#define HEADS 128u
#define FIRST 128u
#define SECOND 64u
#define ELEMENT_BYTES 2u
/* What the kernel before concatenates is as wide as a row that the call reads. */
#define HALF_BYTES (FIRST / 2 * ELEMENT_BYTES)
#define ALIGN_BYTES 256u

/* Where things are in the area: the source and the result of the small kernels, then the call's operands. */
struct places {
    struct shape shape;
    struct shape_layout layout;
    size_t source;
    size_t second; /* one row */
    size_t result;
    size_t buffer[SHAPE_OPERANDS];  /* with its guards */
    size_t operand[SHAPE_OPERANDS]; /* its first element */
    size_t tail;                    /* the call's last rows, which the kernel after reads */
    size_t bytes;
};

#define SOURCE_BYTES (ORDER_HEADS * HALF_BYTES)
#define SECOND_BYTES (SECOND * ELEMENT_BYTES)
#define ROW_BYTES ((FIRST + SECOND) * ELEMENT_BYTES)
#define RESULT_BYTES (ORDER_HEADS * ROW_BYTES)

static size_t take(size_t *used, size_t bytes)
{
    size_t at = *used;

    *used += (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    return at;
}

static struct places find_places(const struct order *order)
{
    struct places at = {.shape = {.op = MLACAT_OP_CONCAT_MLA_K,
                                  .dtype = MLACAT_DTYPE_BF16,
                                  .dim0 = order->bench->options->quick ? TOKENS_QUICK : TOKENS,
                                  .dim1 = HEADS,
                                  .first = FIRST,
                                  .second = SECOND}};

    shape_layout(&at.shape, &at.layout);
    at.source = take(&at.bytes, SOURCE_BYTES);
    at.second = take(&at.bytes, SECOND_BYTES);
    at.result = take(&at.bytes, RESULT_BYTES);
    for (int i = 0; i < SHAPE_OPERANDS; i++) {
        at.buffer[i] = take(&at.bytes, at.layout.operand[i].buffer_bytes);
        at.operand[i] = at.buffer[i] + at.layout.operand[i].offset_bytes;
    }
    at.tail = at.operand[SHAPE_OUT] + (at.shape.dim0 * HEADS - ORDER_HEADS) * ROW_BYTES;
    return at;
}

static size_t large_bytes(const struct order *order)
{
    return find_places(order).bytes;
}

static void data_of(const struct places *at, uint8_t *base, uint8_t *data[SHAPE_OPERANDS])
{
    for (int i = 0; i < SHAPE_OPERANDS; i++)
        data[i] = base + at->buffer[i];
}

static void make_large(struct order *order)
{
    const struct places at = find_places(order);
    uint8_t *memory = (uint8_t *)(uintptr_t)order->area.address;
    struct mlacat_call *call = &order->calls[0];
    uint8_t *data[SHAPE_OPERANDS];
    struct concat_mla_args args[ORDER_STEPS] = {
        {.out = memory + at.operand[SHAPE_FIRST],
         .a = memory + at.source,
         .b = memory + at.second,
         .dim0 = 1,
         .dim1 = ORDER_HEADS,
         .out_stride1 = (long long)FIRST * ELEMENT_BYTES,
         .a_stride1 = HALF_BYTES,
         .a_bytes = HALF_BYTES,
         .b_bytes = HALF_BYTES},
        [2] = {.out = memory + at.result,
               .a = memory + at.tail,
               .b = memory + at.second,
               .dim0 = 1,
               .dim1 = ORDER_HEADS,
               .out_stride1 = ROW_BYTES,
               .a_stride1 = ROW_BYTES,
               .a_bytes = FIRST * ELEMENT_BYTES,
               .b_bytes = SECOND_BYTES},
    };

    data_of(&at, memory, data);
    args[1] = bench_kernel_args(&at.shape, &at.layout, data);
    for (unsigned step = 0; step < ORDER_STEPS; step++)
        in_process_plan(&args[step], &order->launches[step]);
    *call = (struct mlacat_call){.size = sizeof(*call), .op = at.shape.op, .dtype = at.shape.dtype};
    for (int i = 0; i < SHAPE_OPERANDS; i++) {
        call->operand[i] = ctl_tensor(&at.layout.operand[i], order->area.buffer);
        call->operand[i].offset_bytes += at.buffer[i];
    }
}

static void fill_large(const struct order *order)
{
    const struct places at = find_places(order);
    uint8_t *data[SHAPE_OPERANDS];

    data_of(&at, order->area.data, data);
    random_fill(order->bench->options->seed, MLACAT_DTYPE_BF16, order->area.data, order->area.bytes);
    memset(order->area.data + at.result, ORDER_POISON, RESULT_BYTES);
    reference_poison(&at.shape, &at.layout, data);
}

/* The two small kernels. What the call itself must have written follows from what the first of them wrote. */
static bool check_small(const struct order *order, const struct places *at)
{
    const uint8_t *memory = order->area.data;

    for (size_t row = 0; row < ORDER_HEADS; row++) {
        const uint8_t *input = memory + at->operand[SHAPE_FIRST] + row * FIRST * ELEMENT_BYTES;
        const uint8_t *result = memory + at->result + row * ROW_BYTES;

        if (memcmp(input, memory + at->source + row * HALF_BYTES, HALF_BYTES) != 0 ||
            memcmp(input + HALF_BYTES, memory + at->second, HALF_BYTES) != 0 ||
            memcmp(result, memory + at->tail + row * ROW_BYTES, (size_t)FIRST * ELEMENT_BYTES) != 0 ||
            memcmp(result + (size_t)FIRST * ELEMENT_BYTES, memory + at->second, SECOND_BYTES) != 0)
            return false;
    }
    return true;
}

static bool check_large(const struct order *order, const char *name)
{
    const struct places at = find_places(order);
    uint8_t *data[SHAPE_OPERANDS];
    struct difference difference;
    char text[256];

    data_of(&at, order->area.data, data);
    if (!reference_check(&at.shape, &at.layout, data, &difference)) {
        reference_text(&difference, text, sizeof(text));
        fprintf(stderr, "mlacatctl: %s: the result is wrong: %s\n", name, text);
        return false;
    }
    if (!check_small(order, &at)) {
        fprintf(stderr, "mlacatctl: %s: the kernel before or after the call has not read or written what it must\n",
                name);
        return false;
    }
    return true;
}

bool bench_order_large(struct bench *bench, struct bench_row *row)
{
    static const struct order_case what = {
        .chain = 1, .area_bytes = large_bytes, .make = make_large, .fill = fill_large, .check = check_large};
    const struct order unmade = {.bench = bench, .what = &what};
    size_t free_bytes = 0;

    if (!gpu_free_bytes(&bench->device.gpu, &free_bytes)) {
        fprintf(stderr, "mlacatctl: %s: %s\n", row->name, bench->device.gpu.error);
        return false;
    }
    if (free_bytes / 8 * 7 < large_bytes(&unmade)) {
        row->note = "needs 340 MB of GPU memory: so much is not free";
        return true;
    }
    return bench_order_run(bench, row, &what);
}
