/* SPDX-License-Identifier: Apache-2.0 */
#include "concat_mla_launch.h"

#include <assert.h>
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

static const struct concat_mla_widths start_set[] = {
    {256, 128},  {384, 128}, {128, 128}, {128, 64}, /* K 128+64, 192+64, 64+64, 64+32 of 2 bytes */
    {192, 64},   {64, 64},   {64, 32},              /* the same of 1 byte; 128+64 is there already */
    {1024, 128}, {512, 128}, {512, 64},             /* Q 512+64, 256+64, 256+32 of 2 bytes */
    {256, 64},   {256, 32},                         /* the same of 1 byte; 512+64 is there already */
};

const struct concat_mla_widths *concat_mla_start_set(unsigned *nr)
{
    *nr = sizeof(start_set) / sizeof(start_set[0]);
    return start_set;
}

void concat_mla_widths_option(const struct concat_mla_widths *widths, unsigned nr, char *option, unsigned long size)
{
    assert(size >= (nr + 1ul) * CONCAT_MLA_WIDTHS_OPTION_BYTES);
    int at = snprintf(option, size, "-DCONCAT_MLA_WIDTHS=");
    for (unsigned i = 0; i < nr; i++) {
        at += snprintf(option + at, size - (size_t)at, "WIDTHS(%u,%u)", widths[i].a_bytes, widths[i].b_bytes);
    }
}

void concat_mla_generic_name(unsigned vector_bytes, char name[CONCAT_MLA_NAME_BYTES])
{
    snprintf(name, CONCAT_MLA_NAME_BYTES, "concat_mla_%u", vector_bytes);
}

void concat_mla_widths_name(const struct concat_mla_widths *widths, char name[CONCAT_MLA_NAME_BYTES])
{
    snprintf(name, CONCAT_MLA_NAME_BYTES, "concat_mla_16_%u_%u", widths->a_bytes, widths->b_bytes);
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

void concat_mla_plan_init(struct concat_mla_plan *plan, const struct concat_mla_args *args,
                          unsigned long long bytes_per_ms)
{
    plan->args = *args;
    drop_absent(&plan->args);
    plan->vector_bytes = choose_vector(&plan->args);
    /* Of each byte of the output as much is read; the rest of the millisecond is for what falls short of the best. */
    plan->launch_bytes = bytes_per_ms / 8 * 3 / 16 * 16;
    if (plan->launch_bytes < 1 << 16) {
        plan->launch_bytes = 1 << 16;
    }
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

/* How many of the rows that are left go into the next launch: launches of one size, not a last one with the rest. */
static unsigned long long choose_rows(const struct concat_mla_plan *plan, unsigned long long left,
                                      unsigned long long row_bytes, unsigned long long row_units)
{
    unsigned long long cost = row_bytes;
    if (!is_flat(plan->vector_bytes)) {
        cost = row_units * WINDOW_COST_BYTES;
    } else if (cost < ROW_COST_BYTES) {
        cost = ROW_COST_BYTES;
    }
    unsigned long long most = smaller(plan->launch_bytes / cost, smaller(UNITS_MAX / row_units, ROWS_MAX));
    if (most == 0) {
        most = 1;
    }
    return divide_up(left, divide_up(left, most));
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

    *range = (struct concat_mla_range){.first_j = 0};
    if (args->dim1 > ROWS_MAX) {
        rows = smaller(rows, args->dim1 - j);
    } else {
        range->first_j = (unsigned)j;
        make_divisor(args->dim1, &range->dim1_multiplier, &range->dim1_shift);
    }
    make_divisor(row_units, &range->row_multiplier, &range->row_shift);
    range->units = (unsigned)(rows * row_units);
    advance(args, i, j);

    launch->vector_bytes = plan->vector_bytes;
    launch->block = is_flat(plan->vector_bytes) ? FLAT_THREADS : WINDOW_THREADS;
    launch->grid =
        (unsigned)divide_up(range->units, is_flat(plan->vector_bytes) ? FLAT_THREADS * vectors_of(plan->vector_bytes)
                                                                      : WINDOW_THREADS / WARP_THREADS);
    plan->row += rows;
    if (plan->row == total) {
        plan->row = 0;
        plan->column += row_bytes;
    }
    return 1;
}
