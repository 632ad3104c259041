/* SPDX-License-Identifier: Apache-2.0 */
/* A launch of the concat-MLA kernels, row by row on the CPU: where concat_mla.cu would read and write, by its rules. */
#include <stdint.h>

#include "concat_mla_host.h"
#include "fake_inside.h"

/* The thread map of concat_mla.cu. */
#define FLAT_THREADS 128
#define WINDOW_THREADS 256
#define WARP_THREADS 32
#define LAUNCH_BYTES_MAX ((uint64_t)FAKE_MEMORY_CLOCK_KHZ * 2 * FAKE_MEMORY_BUS_BITS / 8) /* in 1 ms */

static bool is_flat(unsigned vector_bytes)
{
    return vector_bytes >= 8;
}

/* Vectors that a thread copies. */
static unsigned vectors_of(unsigned vector_bytes)
{
    return vector_bytes == 16 ? 2 : vector_bytes == 8 ? 4 : vector_bytes == 4 ? 3 : 6;
}

static uint64_t row_units(const struct fake_op *op)
{
    unsigned vector = op->function->vector_bytes;
    uint64_t vectors = (op->args.a_bytes + op->args.b_bytes) / vector;
    uint64_t window = WARP_THREADS * vectors_of(vector);
    return is_flat(vector) ? vectors : (vectors + window - 1) / window;
}

static uint64_t units_of_block(unsigned vector)
{
    return is_flat(vector) ? FLAT_THREADS * vectors_of(vector) : WINDOW_THREADS / WARP_THREADS;
}

void fake_check_launch(const struct fake_op *op)
{
    const struct cuda_function *function = op->function;
    unsigned vector = function->vector_bytes;
    uint64_t threads = is_flat(vector) ? FLAT_THREADS : WINDOW_THREADS;
    uint64_t row_bytes = op->args.a_bytes + op->args.b_bytes;
    if (op->block > threads) {
        fake_break("a kernel for vectors of %u bytes was launched with blocks of %u threads", vector, op->block);
    }
    if (op->range.units == 0) {
        return;
    }
    if (op->block != threads || op->grid * units_of_block(vector) < op->range.units) {
        fake_break("a launch of %u blocks of %u threads does not cover %u units", op->grid, op->block, op->range.units);
    }
    if (row_bytes == 0 || op->args.a_bytes % vector != 0 || op->args.b_bytes % vector != 0) {
        fake_break("widths of %llu and %llu bytes with vectors of %u", op->args.a_bytes, op->args.b_bytes, vector);
    }
    if (function->widths && (op->args.a_bytes != function->a_bytes || op->args.b_bytes != function->b_bytes)) {
        fake_break("the kernel for %u+%u bytes was launched for %llu+%llu", function->a_bytes, function->b_bytes,
                   op->args.a_bytes, op->args.b_bytes);
    }
    uint64_t rows = op->range.units / row_units(op);
    if (fake.behaviour.daemon && rows > 1 && rows * row_bytes * 2 > LAUNCH_BYTES_MAX) {
        fake_break("a launch reads and writes %llu bytes: that is longer than 1 ms",
                   (unsigned long long)(rows * row_bytes * 2));
    }
}

/* Where the row (q, carry) of an operand begins, as at_row of concat_mla.cu. */
static cuda_address at_row(const void *base, uint64_t q, uint64_t carry, long long stride0, long long stride1,
                           uint64_t dim1)
{
    uint64_t step0 = (uint64_t)stride0 - dim1 * (uint64_t)stride1;
    return (cuda_address)(uintptr_t)base + q * (uint64_t)stride1 + carry * step0;
}

static int run_row(const struct fake_op *op, uint64_t q)
{
    const struct concat_mla_args *args = &op->args;
    const struct concat_mla_range *range = &op->range;
    unsigned vector = op->function->vector_bytes;
    uint64_t carry = ((range->first_j + q) * range->dim1_multiplier) >> range->dim1_shift;
    cuda_address out = at_row(args->out, q, carry, args->out_stride0, args->out_stride1, args->dim1);
    cuda_address a = at_row(args->a, q, carry, args->a_stride0, args->a_stride1, args->dim1);
    cuda_address b = at_row(args->b, q, carry, args->b_stride0, args->b_stride1, args->dim1);
    if (out % vector != 0 || a % vector != 0 || (args->b_bytes != 0 && b % vector != 0)) {
        return RESULT_MISALIGNED_ADDRESS;
    }
    struct concat_mla_args row = {
        .out = fake_reach(out, args->a_bytes + args->b_bytes),
        .a = args->a_bytes ? fake_reach(a, args->a_bytes) : NULL,
        .b = args->b_bytes ? fake_reach(b, args->b_bytes) : NULL,
        .dim0 = 1,
        .dim1 = 1,
        .a_bytes = args->a_bytes,
        .b_bytes = args->b_bytes,
    };
    if (!row.out || (args->a_bytes && !row.a) || (args->b_bytes && !row.b)) {
        return RESULT_ILLEGAL_ADDRESS;
    }
    concat_mla_host(&row, 0, 1, 0);
    return CUDA_RESULT_OK;
}

int fake_run_kernel(const struct fake_op *op)
{
    int result = CUDA_RESULT_OK;
    if (op->range.units == 0) {
        return result;
    }
    uint64_t rows = op->range.units / row_units(op);
    for (uint64_t q = 0; q < rows && result == CUDA_RESULT_OK; q++) {
        result = run_row(op, q);
    }
    return result;
}
