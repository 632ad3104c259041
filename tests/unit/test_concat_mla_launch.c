/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The launches of a call, carried out on the CPU as concat_mla.cu says they are on a GPU: together they write every
 * byte of the output once, with the right byte, whatever the call looks like.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "concat_mla_launch.h"

#define ARENA_BYTES 65536

struct arena {
    _Alignas(256) unsigned char bytes[ARENA_BYTES];
};

static struct arena out;
static struct arena written; /* how often each byte of out was */
static struct arena a;
static struct arena b;

static uint64_t divide(uint64_t n, unsigned multiplier, unsigned shift)
{
    return (n * multiplier) >> shift;
}

static void copy_vector(const struct concat_mla_args *args, const struct concat_mla_range *range, uint64_t q,
                        uint64_t c)
{
    uint64_t size = range->vector_bytes;
    uint64_t carry = divide(range->first_j + q, range->dim1_multiplier, range->dim1_shift);
    long long i = (long long)carry;
    long long j = (long long)q - (long long)(carry * args->dim1);
    unsigned char *to = (unsigned char *)args->out + i * args->out_stride0 + j * args->out_stride1 + c * size;
    const unsigned char *from = (const unsigned char *)args->a + i * args->a_stride0 + j * args->a_stride1 + c * size;
    if (c * size >= args->a_bytes) {
        from = (const unsigned char *)args->b + i * args->b_stride0 + j * args->b_stride1 + c * size - args->a_bytes;
    }
    assert_int_equal((uintptr_t)to % size, 0);
    assert_int_equal((uintptr_t)from % size, 0);
    assert_in_range((uintptr_t)to, (uintptr_t)out.bytes, (uintptr_t)out.bytes + ARENA_BYTES - size);
    memcpy(to, from, size);
    for (uint64_t t = 0; t < size; t++) {
        written.bytes[to - out.bytes + (ptrdiff_t)t]++;
    }
}

static uint64_t unit_vectors_of(unsigned vector_bytes)
{
    return vector_bytes >= 8 ? 1 : vector_bytes == 4 ? 96 : 192;
}

static uint64_t block_units_of(unsigned vector_bytes, uint64_t threads)
{
    return vector_bytes == 16 ? 2 * threads : vector_bytes == 8 ? 4 * threads : threads / 32;
}

static void carry_out(const struct concat_mla_args *args, const struct concat_mla_range *range, uint64_t blocks,
                      uint64_t threads)
{
    uint64_t row_vectors = (args->a_bytes + args->b_bytes) / range->vector_bytes;
    uint64_t unit_vectors = unit_vectors_of(range->vector_bytes);
    uint64_t row_units = (row_vectors + unit_vectors - 1) / unit_vectors;
    uint64_t block_units = block_units_of(range->vector_bytes, threads);
    assert_int_equal((args->a_bytes + args->b_bytes) % range->vector_bytes, 0);
    assert_in_range(range->units, (blocks - 1) * block_units + 1, blocks * block_units);
    for (uint64_t x = 0; x < range->units; x++) {
        uint64_t q = divide(x, range->row_multiplier, range->row_shift);
        assert_int_equal(q, x / row_units);
        for (uint64_t u = 0; u < unit_vectors; u++) {
            uint64_t c = (x - q * row_units) * unit_vectors + u;
            if (c < row_vectors) {
                copy_vector(args, range, q, c);
            }
        }
    }
}

static void prepare(void)
{
    memset(&out, 0, sizeof(out));
    memset(&written, 0, sizeof(written));
    for (size_t t = 0; t < ARENA_BYTES; t++) {
        a.bytes[t] = (unsigned char)(t * 7 + t / 251 + 1);
        b.bytes[t] = (unsigned char)(t * 13 + t / 241 + 2);
    }
}

static unsigned run(const struct concat_mla_args *args, uint64_t bytes_per_ms)
{
    struct concat_mla_plan plan;
    struct concat_mla_launch launch;
    unsigned launches = 0;
    prepare();
    concat_mla_plan_init(&plan, args, bytes_per_ms);
    while (concat_mla_plan_next(&plan, &launch)) {
        assert_int_equal(launch.block, launch.range.vector_bytes >= 8 ? 128 : 256);
        carry_out(&launch.args, &launch.range, launch.grid, launch.block);
        launches++;
    }
    return launches;
}

/* Checks out and written against the call's meaning, and clears what it has checked. */
static void check_call(const struct concat_mla_args *args)
{
    for (uint64_t row = 0; row < args->dim0 * args->dim1; row++) {
        long long i = (long long)(row / args->dim1);
        long long j = (long long)(row % args->dim1);
        ptrdiff_t at = (unsigned char *)args->out - out.bytes + i * args->out_stride0 + j * args->out_stride1;
        const unsigned char *in_a =
            args->a ? (const unsigned char *)args->a + i * args->a_stride0 + j * args->a_stride1 : NULL;
        const unsigned char *in_b =
            args->b ? (const unsigned char *)args->b + i * args->b_stride0 + j * args->b_stride1 : NULL;
        if (in_a) {
            assert_memory_equal(out.bytes + at, in_a, args->a_bytes);
        }
        if (in_b) {
            assert_memory_equal(out.bytes + at + args->a_bytes, in_b, args->b_bytes);
        }
        for (uint64_t t = 0; t < args->a_bytes + args->b_bytes; t++) {
            int copied = t < args->a_bytes ? in_a != NULL : in_b != NULL;
            assert_int_equal(written.bytes[at + (ptrdiff_t)t], copied);
            written.bytes[at + (ptrdiff_t)t] = 0;
        }
    }
}

static void check_rest(void)
{
    for (size_t t = 0; t < ARENA_BYTES; t++) {
        assert_int_equal(written.bytes[t], 0);
    }
}

static void check(const struct concat_mla_args *args)
{
    check_call(args);
    check_rest();
}

static struct concat_mla_args contiguous(uint64_t dim0, uint64_t dim1, uint64_t a_bytes, uint64_t b_bytes)
{
    return (struct concat_mla_args){
        .out = out.bytes + 256,
        .a = a.bytes + 256,
        .b = b.bytes + 256,
        .dim0 = dim0,
        .dim1 = dim1,
        .out_stride0 = (long long)(dim1 * (a_bytes + b_bytes)),
        .out_stride1 = (long long)(a_bytes + b_bytes),
        .a_stride0 = (long long)(dim1 * a_bytes),
        .a_stride1 = (long long)a_bytes,
        .b_stride0 = (long long)b_bytes,
        .b_stride1 = 0,
        .a_bytes = a_bytes,
        .b_bytes = b_bytes,
    };
}

static void test_concat_mla_launch_copies_every_byte_once(void **state)
{
    static const uint64_t widths[][2] = {{256, 128}, {128, 64}, {24, 8},  {96, 40},  {100, 28}, {254, 126},
                                         {127, 63},  {1, 1},    {0, 48},  {48, 0},   {3, 0},    {5000, 3},
                                         {2, 1},     {16, 16},  {575, 1}, {192, 192}};
    (void)state;
    for (size_t w = 0; w < sizeof(widths) / sizeof(widths[0]); w++) {
        for (uint64_t heads = 1; heads <= 12; heads++) {
            uint64_t n = (ARENA_BYTES - 512) / (heads * (widths[w][0] + widths[w][1]));
            struct concat_mla_args args = contiguous(n < 9 ? n : 9, heads, widths[w][0], widths[w][1]);
            if (n > 0) {
                run(&args, UINT64_C(4) << 30);
                check(&args);
            }
        }
    }
}

static void test_concat_mla_launch_pieces_make_the_whole(void **state)
{
    struct concat_mla_args args = contiguous(150, 7, 32, 16);
    (void)state;
    assert_int_equal(run(&args, 1), 3);
    check(&args);
    args = contiguous(150, 7, 31, 16);
    assert_int_equal(run(&args, 1), 9);
    check(&args);
    args = contiguous(2, 1, 30000, 1); /* row by row, and the row in pieces */
    assert_int_equal(run(&args, 1), 4);
    check(&args);
}

static void test_concat_mla_launch_leaves_absent_parts(void **state)
{
    struct concat_mla_args args = contiguous(9, 5, 128, 64);
    (void)state;
    args.a = NULL;
    assert_int_equal(run(&args, UINT64_C(4) << 30), 1);
    check(&args);
    args = contiguous(9, 5, 128, 64);
    args.b = NULL;
    assert_int_equal(run(&args, UINT64_C(4) << 30), 1);
    check(&args);
    args.a = NULL;
    assert_int_equal(run(&args, UINT64_C(4) << 30), 0);
    args = contiguous(0, 5, 128, 64);
    assert_int_equal(run(&args, UINT64_C(4) << 30), 0);
}

static void test_concat_mla_launch_walks_negative_strides(void **state)
{
    struct concat_mla_args args = contiguous(9, 5, 96, 32);
    (void)state;
    args.out = out.bytes + 256 + 9 * 5 * 128 - 128;
    args.out_stride0 = -args.out_stride0;
    args.out_stride1 = -args.out_stride1;
    args.a = a.bytes + 256 + 4 * 96;
    args.a_stride1 = -96;
    run(&args, UINT64_C(4) << 30);
    check(&args);
}

static unsigned chosen_vector(const struct concat_mla_args *args)
{
    struct concat_mla_plan plan;
    struct concat_mla_launch launch;
    concat_mla_plan_init(&plan, args, UINT64_C(4) << 30);
    assert_int_equal(concat_mla_plan_next(&plan, &launch), 1);
    return launch.range.vector_bytes;
}

static void test_concat_mla_launch_chooses_the_largest_vector(void **state)
{
    struct concat_mla_args args = contiguous(9, 5, 128, 64);
    (void)state;
    assert_int_equal(chosen_vector(&args), 16);
    args.a_stride0 += 8;
    assert_int_equal(chosen_vector(&args), 8);
    args.out = out.bytes + 260;
    assert_int_equal(chosen_vector(&args), 4);
    args.b_stride0 = -66;
    assert_int_equal(chosen_vector(&args), 2);
    args.a = a.bytes + 1;
    assert_int_equal(chosen_vector(&args), 1);
    args = contiguous(9, 5, 128, 64);
    args.dim0 = 1; /* then the stride of i means nothing */
    args.a_stride0 = 1;
    assert_int_equal(chosen_vector(&args), 16);
}

/* The launches of a contiguous call too large to carry out: each bounded, each beginning where the last one ended. */
static unsigned walk(const struct concat_mla_args *args, uint64_t bytes_per_ms)
{
    struct concat_mla_plan plan;
    struct concat_mla_launch launch;
    unsigned launches = 0;
    uint64_t bytes = 0;
    concat_mla_plan_init(&plan, args, bytes_per_ms);
    while (concat_mla_plan_next(&plan, &launch)) {
        uint64_t row_bytes = launch.args.a_bytes + launch.args.b_bytes;
        uint64_t unit_bytes = unit_vectors_of(launch.range.vector_bytes) * launch.range.vector_bytes;
        uint64_t rows = launch.range.units / ((row_bytes + unit_bytes - 1) / unit_bytes);
        assert_in_range(launch.range.units, 1, INT32_MAX);
        assert_true(launch.range.first_j + rows <= UINT64_C(1) << 31);
        assert_true(rows * row_bytes <= bytes_per_ms / 2);
        assert_int_equal((uintptr_t)launch.args.out, (uintptr_t)args->out + bytes);
        bytes += rows * row_bytes;
        launches++;
    }
    assert_int_equal(bytes, args->dim0 * args->dim1 * (args->a_bytes + args->b_bytes));
    return launches;
}

static void test_concat_mla_launch_splits_long_calls(void **state)
{
    struct concat_mla_args args = contiguous(32768, 128, 256, 128);
    (void)state;
    assert_int_equal(walk(&args, UINT64_C(4900000000)), 1); /* 0.4 ms of an H200 */
    assert_int_equal(walk(&args, UINT64_C(490000000)), 9);
    args = contiguous(1 << 20, 128, 256, 128);
    assert_in_range(walk(&args, UINT64_C(4900000000)), 28, 30);
    args = contiguous(1, (UINT64_C(1) << 32) + 5, 1, 0);
    assert_in_range(walk(&args, UINT64_C(4900000000)), 1000, 2000);
    args = contiguous((UINT64_C(1) << 31) + 7, 1, 2, 0);
    assert_in_range(walk(&args, UINT64_C(4900000000)), 500, 1000);
    args = contiguous(1, 1, UINT64_C(5) << 30, UINT64_C(3) << 30);
    assert_int_equal(walk(&args, UINT64_C(4900000000)), 8);
}

static void test_concat_mla_launch_names_kernels(void **state)
{
    char name[CONCAT_MLA_NAME_BYTES];
    (void)state;
    concat_mla_kernel_name(8, name);
    assert_string_equal(name, "concat_mla_8");
    concat_mla_kernel_name(16, name);
    assert_string_equal(name, "concat_mla_16");
    concat_mla_signal_name(2, name);
    assert_string_equal(name, "concat_mla_2_signal");
}

/* ---- many calls in one launch ---- */

static struct concat_mla_many many;
static uint64_t random_state = 1;

static uint64_t random_below(uint64_t end)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (random_state >> 33) % end;
}

/* Each block looks for its call as concat_mla.cu does. */
static void carry_out_many(void)
{
    uint64_t blocks_nr[CONCAT_MLA_MANY_CALLS] = {0};
    for (unsigned block = 0; block < many.grid; block++) {
        unsigned call = 0;
        for (unsigned step = CONCAT_MLA_MANY_CALLS / 2; step > 0; step /= 2) {
            call += many.args.first_block[call + step] <= block ? step : 0;
        }
        assert_in_range(call, 0, many.calls_nr - 1);
        assert_int_equal(block - many.args.first_block[call], blocks_nr[call]);
        blocks_nr[call]++;
    }
    for (unsigned call = 0; call < many.calls_nr; call++) {
        carry_out(&many.args.args[call], &many.args.range[call], blocks_nr[call], CONCAT_MLA_MANY_THREADS);
    }
}

/* A call of any shape, whose output begins at `at` of the arena or a little later. */
static struct concat_mla_args any_call(uint64_t at)
{
    static const uint64_t units[] = {1, 2, 4, 8, 16};
    uint64_t unit = units[random_below(5)];
    uint64_t shift = units[random_below(5)] * random_below(2);
    struct concat_mla_args args =
        contiguous(random_below(4), 1 + random_below(5), unit * random_below(9), unit * random_below(5));
    args.out = out.bytes + at + shift;
    args.a = random_below(9) ? (const unsigned char *)args.a + shift : NULL;
    args.b = random_below(9) ? (const unsigned char *)args.b + shift : NULL;
    return args;
}

static void test_concat_mla_launch_many_copies_each_call_once(void **state)
{
    (void)state;
    for (int batch = 0; batch < 200; batch++) {
        struct concat_mla_args calls[2 * CONCAT_MLA_MANY_CALLS];
        unsigned taken = 0;
        uint64_t at = 256;
        prepare();
        concat_mla_many_init(&many, UINT64_C(4) << 30);
        for (uint64_t nr = 1 + random_below(32); taken < nr && at < ARENA_BYTES - 4096; taken++) {
            calls[taken] = any_call(at);
            at += calls[taken].dim0 * calls[taken].dim1 * (calls[taken].a_bytes + calls[taken].b_bytes) + 16;
            at += 15 - (at + 15) % 16;
            assert_int_equal(concat_mla_many_add(&many, &calls[taken]), 1);
        }
        carry_out_many();
        while (taken > 0) {
            check_call(&calls[--taken]);
        }
        check_rest();
    }
}

/* Adds the call until the launch is full; how often that went. */
static unsigned fill_many(const struct concat_mla_args *args, uint64_t bytes_per_ms)
{
    unsigned taken = 0;
    concat_mla_many_init(&many, bytes_per_ms);
    while (concat_mla_many_add(&many, args)) {
        taken++;
        assert_true(taken <= CONCAT_MLA_MANY_CALLS);
    }
    assert_int_equal(many.calls_nr, taken);
    return taken;
}

static void test_concat_mla_launch_many_is_no_longer_than_one(void **state)
{
    struct concat_mla_args args = contiguous(1, 16, 256, 128);
    (void)state;
    assert_int_equal(fill_many(&args, UINT64_C(4900000000)), CONCAT_MLA_MANY_CALLS);
    assert_int_equal(many.grid, 2 * CONCAT_MLA_MANY_CALLS); /* 384 vectors each, 256 a block */
    args = contiguous(8192, 128, 256, 128);                 /* 402 MB of 1.8 GB */
    assert_int_equal(fill_many(&args, UINT64_C(4900000000)), 4);
    args = contiguous(32768, 128, 256, 128);
    assert_int_equal(fill_many(&args, UINT64_C(4900000000)), 1);
    assert_int_equal(fill_many(&args, UINT64_C(490000000)), 0); /* nine launches by itself */
    assert_int_equal(many.grid, 0);
    args = contiguous(1, 1, UINT64_C(3) << 30, 0); /* the row is in pieces */
    assert_int_equal(fill_many(&args, UINT64_C(4900000000)), 0);
    args = contiguous(100, 1, 3, 0); /* a window costs as much as 512 bytes do */
    assert_int_equal(fill_many(&args, 8 * 51200), 3);
    args = contiguous(100, 1, 16, 0); /* and a row as 128 */
    assert_int_equal(fill_many(&args, 8 * 51200), 12);
}

/* After a full one there is room again; a smaller call may still fit where a larger one did not. */
static void test_concat_mla_launch_many_goes_on(void **state)
{
    struct concat_mla_args small = contiguous(1, 16, 256, 128);
    struct concat_mla_args large = contiguous(20000, 128, 256, 128);
    (void)state;
    assert_int_equal(fill_many(&large, UINT64_C(4900000000)), 1);
    assert_int_equal(concat_mla_many_add(&many, &small), 1);
    assert_int_equal(fill_many(&small, UINT64_C(4900000000)), CONCAT_MLA_MANY_CALLS);
    concat_mla_many_init(&many, UINT64_C(4900000000));
    assert_int_equal(concat_mla_many_add(&many, &large), 1);
    assert_int_equal(many.args.first_block[0], 0);
    assert_int_equal(many.args.first_block[1], UINT32_MAX);
}

static void test_concat_mla_launch_many_has_no_blocks_for_nothing(void **state)
{
    struct concat_mla_args none = contiguous(0, 16, 256, 128);
    struct concat_mla_args some = contiguous(1, 1, 16, 16);
    (void)state;
    concat_mla_many_init(&many, UINT64_C(4) << 30);
    for (int call = 0; call < 2 * CONCAT_MLA_MANY_CALLS; call++) {
        assert_int_equal(concat_mla_many_add(&many, &none), 1);
    }
    assert_int_equal(many.grid, 0);
    prepare();
    assert_int_equal(concat_mla_many_add(&many, &some), 1);
    assert_int_equal(concat_mla_many_add(&many, &none), 1);
    assert_int_equal(many.grid, 1);
    carry_out_many();
    check(&some);
}

/* ---- launches of one block ---- */

static unsigned signal_threads(uint64_t rows, uint64_t a_bytes, uint64_t b_bytes)
{
    struct concat_mla_args args = contiguous(1, rows, a_bytes, b_bytes);
    struct concat_mla_plan plan;
    struct concat_mla_launch launch;
    concat_mla_plan_init(&plan, &args, UINT64_C(4) << 30);
    assert_int_equal(concat_mla_plan_next(&plan, &launch), 1);
    return concat_mla_signal_threads(&launch);
}

static void test_concat_mla_launch_signal_is_one_block(void **state)
{
    (void)state;
    assert_int_equal(signal_threads(1, 256, 128), 128);
    assert_int_equal(signal_threads(16, 256, 128), 256);
    assert_int_equal(signal_threads(64, 256, 128), CONCAT_MLA_SIGNAL_THREADS);
    assert_int_equal(signal_threads(65, 256, 128), 0);
    assert_int_equal(signal_threads(1, UINT64_C(16) << 30, 0), 0); /* nor does the number of its blocks wrap */
}

/* A stretch of the block does four windows, half as many as a block of the plain kernel. */
static void test_concat_mla_launch_signal_divides_windows_anew(void **state)
{
    (void)state;
    assert_int_equal(signal_threads(4, 1, 0), 128);
    assert_int_equal(signal_threads(5, 1, 0), 256);
    assert_int_equal(signal_threads(24, 1, 0), CONCAT_MLA_SIGNAL_THREADS);
    assert_int_equal(signal_threads(25, 1, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_concat_mla_launch_copies_every_byte_once),
        cmocka_unit_test(test_concat_mla_launch_pieces_make_the_whole),
        cmocka_unit_test(test_concat_mla_launch_leaves_absent_parts),
        cmocka_unit_test(test_concat_mla_launch_walks_negative_strides),
        cmocka_unit_test(test_concat_mla_launch_chooses_the_largest_vector),
        cmocka_unit_test(test_concat_mla_launch_splits_long_calls),
        cmocka_unit_test(test_concat_mla_launch_names_kernels),
        cmocka_unit_test(test_concat_mla_launch_many_copies_each_call_once),
        cmocka_unit_test(test_concat_mla_launch_many_is_no_longer_than_one),
        cmocka_unit_test(test_concat_mla_launch_many_goes_on),
        cmocka_unit_test(test_concat_mla_launch_many_has_no_blocks_for_nothing),
        cmocka_unit_test(test_concat_mla_launch_signal_is_one_block),
        cmocka_unit_test(test_concat_mla_launch_signal_divides_windows_anew),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
