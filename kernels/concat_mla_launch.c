/* SPDX-License-Identifier: Apache-2.0 */
#include "concat_mla_launch.h"

#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* As in concat_mla.cu, where the thread map is explained. */
#define FLAT_THREADS 128
#define WINDOW_THREADS 256
#define WARP_THREADS 32

/* Rows, units and j of a launch are below 2^31 (concat_mla_range). */
#define ROWS_MAX (1ull << 30)
#define UNITS_MAX ((1ull << 31) - 1)

/* A row costs at least what this many bytes cost, and a window what so many cost; measured on large calls. */
#define ROW_COST_BYTES 128
#define WINDOW_COST_BYTES 512

void concat_mla_kernel_name(unsigned vector_bytes, char name[CONCAT_MLA_NAME_BYTES])
{
    snprintf(name, CONCAT_MLA_NAME_BYTES, "concat_mla_%u", vector_bytes);
}

void concat_mla_signal_name(unsigned vector_bytes, char name[CONCAT_MLA_NAME_BYTES])
{
    snprintf(name, CONCAT_MLA_NAME_BYTES, "concat_mla_%u_signal", vector_bytes);
}

void concat_mla_gated_name(unsigned vector_bytes, char name[CONCAT_MLA_NAME_BYTES])
{
    snprintf(name, CONCAT_MLA_NAME_BYTES, "concat_mla_%u_gated", vector_bytes);
}

static unsigned long long divide_up(unsigned long long n, unsigned long long d)
{
    return n / d + (n % d != 0);
}

static unsigned long long smaller(unsigned long long x, unsigned long long y)
{
    return x < y ? x : y;
}

/* Vectors that a thread copies: vectors_of in concat_mla.cu. */
static unsigned vectors_of(unsigned vector_bytes)
{
    return vector_bytes == 16 ? 2 : vector_bytes == 8 ? 4 : vector_bytes == 4 ? 3 : 6;
}

static int is_flat(unsigned vector_bytes)
{
    return vector_bytes >= 8;
}

static unsigned unit_bytes(unsigned vector_bytes)
{
    return is_flat(vector_bytes) ? vector_bytes : WARP_THREADS * vectors_of(vector_bytes) * vector_bytes;
}

/* The largest vector that all addresses, widths and strides are multiples of. */
static unsigned choose_vector(const struct concat_mla_args *args)
{
    unsigned long long all = (uintptr_t)args->out | (uintptr_t)args->a | (uintptr_t)args->b | 16;
    all |= args->a_bytes | args->b_bytes;
    if (args->dim0 > 1) {
        all |= (unsigned long long)(args->out_stride0 | args->a_stride0 | args->b_stride0);
    }
    if (args->dim1 > 1) {
        all |= (unsigned long long)(args->out_stride1 | args->a_stride1 | args->b_stride1);
    }
    return (unsigned)(all & (~all + 1));
}

/* The kernels copy a, and b unless it is empty. A lone b takes a's place. */
static void drop_absent(struct concat_mla_args *args)
{
    if (!args->a || args->a_bytes == 0) {
        args->out = (unsigned char *)args->out + args->a_bytes;
        args->a = args->b;
        args->a_stride0 = args->b_stride0;
        args->a_stride1 = args->b_stride1;
        args->a_bytes = args->b ? args->b_bytes : 0;
        args->b = NULL;
    }
    if (!args->b || args->b_bytes == 0) {
        args->b = NULL;
        args->b_bytes = 0;
        args->b_stride0 = 0;
        args->b_stride1 = 0;
    }
}

/* Of each byte of the output as much is read; the rest of the millisecond is for what falls short of the best. */
static unsigned long long launch_bytes_of(unsigned long long bytes_per_ms)
{
    unsigned long long bytes = bytes_per_ms / 8 * 3 / 16 * 16;
    return bytes < 1 << 16 ? 1 << 16 : bytes;
}

void concat_mla_plan_init(struct concat_mla_plan *plan, const struct concat_mla_args *args,
                          unsigned long long bytes_per_ms)
{
    plan->args = *args;
    drop_absent(&plan->args);
    plan->vector_bytes = choose_vector(&plan->args);
    plan->launch_bytes = launch_bytes_of(bytes_per_ms);
    plan->column = 0;
    plan->row = 0;
}

/* The columns from plan->column on that go together: the whole row unless that is too much for a launch. */
static void take_columns(const struct concat_mla_plan *plan, struct concat_mla_args *args)
{
    unsigned long long column = plan->column;
    unsigned long long widest = smaller(plan->launch_bytes, ROWS_MAX);
    if (!is_flat(plan->vector_bytes)) {
        widest = smaller(plan->launch_bytes / WINDOW_COST_BYTES * unit_bytes(plan->vector_bytes), widest);
    }
    *args = plan->args;
    if (args->a_bytes + args->b_bytes <= widest) {
        return;
    }
    args->out = (unsigned char *)args->out + column;
    if (column < plan->args.a_bytes) {
        args->a = (const unsigned char *)args->a + column;
        args->a_bytes = smaller(args->a_bytes - column, widest);
    } else {
        column -= plan->args.a_bytes;
        args->a = (const unsigned char *)args->b + column;
        args->a_stride0 = args->b_stride0;
        args->a_stride1 = args->b_stride1;
        args->a_bytes = smaller(args->b_bytes - column, widest);
    }
    args->b = NULL;
    args->b_bytes = 0;
    args->b_stride0 = 0;
    args->b_stride1 = 0;
}

/* n / d == (n * multiplier) >> shift for all n < 2^31; d is 1 to 2^31. */
static void make_divisor(unsigned long long d, unsigned *multiplier, unsigned char *shift)
{
    unsigned bits = 0;
    while (1ull << bits < d) {
        bits++;
    }
    *shift = (unsigned char)(31 + bits);
    *multiplier = (unsigned)divide_up(1ull << (31 + bits), d);
}

static void advance(struct concat_mla_args *args, unsigned long long i, unsigned long long j)
{
    /* Unsigned, because the products and sums wrap for negative strides. */
    unsigned long long out = i * (unsigned long long)args->out_stride0 + j * (unsigned long long)args->out_stride1;
    unsigned long long a = i * (unsigned long long)args->a_stride0 + j * (unsigned long long)args->a_stride1;
    unsigned long long b = i * (unsigned long long)args->b_stride0 + j * (unsigned long long)args->b_stride1;
    args->out = (unsigned char *)args->out + (long long)out;
    args->a = (const unsigned char *)args->a + (long long)a;
    args->b = args->b ? (const unsigned char *)args->b + (long long)b : NULL;
}

/* What a row takes of a launch's time, in bytes of a large call. */
static unsigned long long row_cost(unsigned vector_bytes, unsigned long long row_bytes, unsigned long long row_units)
{
    if (!is_flat(vector_bytes)) {
        return row_units * WINDOW_COST_BYTES;
    }
    return row_bytes < ROW_COST_BYTES ? ROW_COST_BYTES : row_bytes;
}

/* How many of the rows that are left go into the next launch: launches of one size, not a last one with the rest. */
static unsigned long long choose_rows(const struct concat_mla_plan *plan, unsigned long long left,
                                      unsigned long long row_bytes, unsigned long long row_units)
{
    unsigned long long cost = row_cost(plan->vector_bytes, row_bytes, row_units);
    unsigned long long most = smaller(plan->launch_bytes / cost, smaller(UNITS_MAX / row_units, ROWS_MAX));
    if (most == 0) {
        most = 1;
    }
    return divide_up(left, divide_up(left, most));
}

static unsigned blocks_of(const struct concat_mla_range *range, unsigned threads)
{
    unsigned vector = range->vector_bytes;
    return (unsigned)divide_up(range->units, is_flat(vector) ? threads * vectors_of(vector) : threads / WARP_THREADS);
}

int concat_mla_plan_next(struct concat_mla_plan *plan, struct concat_mla_launch *launch)
{
    struct concat_mla_args *args = &launch->args;
    struct concat_mla_range *range = &launch->range;
    unsigned long long total = plan->args.dim0 * plan->args.dim1;
    if (total == 0 || plan->column >= plan->args.a_bytes + plan->args.b_bytes) {
        return 0;
    }
    take_columns(plan, args);
    unsigned long long row_bytes = args->a_bytes + args->b_bytes;
    unsigned long long row_units = divide_up(row_bytes, unit_bytes(plan->vector_bytes));
    unsigned long long i = plan->row / args->dim1;
    unsigned long long j = plan->row % args->dim1;
    unsigned long long rows = choose_rows(plan, total - plan->row, row_bytes, row_units);

    *range = (struct concat_mla_range){.vector_bytes = (unsigned char)plan->vector_bytes};
    if (args->dim1 > ROWS_MAX) {
        rows = smaller(rows, args->dim1 - j);
    } else {
        range->first_j = (unsigned)j;
        make_divisor(args->dim1, &range->dim1_multiplier, &range->dim1_shift);
    }
    make_divisor(row_units, &range->row_multiplier, &range->row_shift);
    range->units = (unsigned)(rows * row_units);
    advance(args, i, j);

    launch->block = is_flat(plan->vector_bytes) ? FLAT_THREADS : WINDOW_THREADS;
    launch->grid = blocks_of(range, launch->block);
    plan->row += rows;
    if (plan->row == total) {
        plan->row = 0;
        plan->column += row_bytes;
    }
    return 1;
}

unsigned concat_mla_signal_threads(const struct concat_mla_launch *launch)
{
    unsigned blocks = blocks_of(&launch->range, CONCAT_MLA_MANY_THREADS);
    return blocks <= CONCAT_MLA_SIGNAL_THREADS / CONCAT_MLA_MANY_THREADS ? blocks * CONCAT_MLA_MANY_THREADS : 0;
}

void concat_mla_many_init(struct concat_mla_many *many, unsigned long long bytes_per_ms)
{
    many->calls_nr = 0;
    many->grid = 0;
    many->bytes_per_ms = bytes_per_ms;
    many->bytes_left = launch_bytes_of(bytes_per_ms);
    for (unsigned call = 1; call < CONCAT_MLA_MANY_CALLS; call++) {
        many->args.first_block[call] = UINT_MAX;
    }
}

/* In the measure of row_cost. */
static unsigned long long launch_cost(const struct concat_mla_launch *launch)
{
    unsigned vector = launch->range.vector_bytes;
    unsigned long long row_bytes = launch->args.a_bytes + launch->args.b_bytes;
    unsigned long long row_units = divide_up(row_bytes, unit_bytes(vector));
    return launch->range.units / row_units * row_cost(vector, row_bytes, row_units);
}

int concat_mla_many_add(struct concat_mla_many *many, const struct concat_mla_args *args)
{
    struct concat_mla_plan plan;
    struct concat_mla_launch launch;
    struct concat_mla_launch second;
    if (many->calls_nr == CONCAT_MLA_MANY_CALLS) {
        return 0;
    }
    concat_mla_plan_init(&plan, args, many->bytes_per_ms);
    if (!concat_mla_plan_next(&plan, &launch)) {
        return 1;
    }
    unsigned long long cost = launch_cost(&launch);
    if (cost > many->bytes_left || concat_mla_plan_next(&plan, &second)) {
        return 0;
    }
    many->args.args[many->calls_nr] = launch.args;
    many->args.range[many->calls_nr] = launch.range;
    many->args.first_block[many->calls_nr] = many->grid;
    many->grid += blocks_of(&launch.range, CONCAT_MLA_MANY_THREADS);
    many->bytes_left -= cost;
    many->calls_nr++;
    return 1;
}
