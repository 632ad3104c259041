/* SPDX-License-Identifier: Apache-2.0 */
/* Every case runs cached and streaming, against a loop over bytes, on memory that ends at pages which may not be
 * touched. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "concat_mla_host.h"

#define ARENA_BYTES ((size_t)96 << 10)
#define OPERANDS 3

/* Memory between two pages that may not be touched, and what the output should look like. */
static unsigned char *arena[OPERANDS];
static unsigned char *expected;
static uint64_t seed = 11;

static uint64_t random_below(uint64_t n)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (seed >> 33) % n;
}

static unsigned char *arena_new(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *all = mmap(NULL, ARENA_BYTES + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(all, MAP_FAILED);
    assert_int_equal(mprotect(all, page, PROT_NONE), 0);
    assert_int_equal(mprotect(all + page + ARENA_BYTES, page, PROT_NONE), 0);
    return all + page;
}

static int set_up(void **state)
{
    (void)state;
    for (int k = 0; k < OPERANDS; k++) {
        arena[k] = arena_new();
    }
    expected = arena_new();
    return 0;
}

/* One operand: where its rows are, in bytes. */
struct layout {
    long long stride[2];
    unsigned long long width;
};

enum edge { AT_START, AT_END, ALIGNED_16 };

/* The first row's address when the operand touches the start or the end of its arena, or is 16-byte aligned inside. */
static unsigned char *place(unsigned char *base, const struct layout *x, const unsigned long long dim[2],
                            enum edge edge)
{
    long long low = 0;
    long long high = (long long)x->width;
    for (int d = 0; d < 2; d++) {
        long long extent = x->stride[d] * (long long)(dim[d] - 1);
        if (extent < 0) {
            low += extent;
        } else {
            high += extent;
        }
    }
    assert_true(high - low <= (long long)ARENA_BYTES - 64);
    switch (edge) {
    case AT_START:
        return base - low;
    case AT_END:
        return base + ARENA_BYTES - high;
    default:
        return base + (-low + 63) / 16 * 16;
    }
}

static void reference(const struct concat_mla_args *args, uint64_t begin, uint64_t end)
{
    for (uint64_t r = begin; r < end; r++) {
        long long i = (long long)(r / args->dim1);
        long long j = (long long)(r % args->dim1);
        unsigned char *out =
            expected + ((unsigned char *)args->out - arena[0]) + i * args->out_stride0 + j * args->out_stride1;
        for (uint64_t t = 0; t < args->a_bytes && args->a; t++) {
            out[t] = *((const unsigned char *)args->a + i * args->a_stride0 + j * args->a_stride1 + t);
        }
        for (uint64_t t = 0; t < args->b_bytes && args->b; t++) {
            out[args->a_bytes + t] = *((const unsigned char *)args->b + i * args->b_stride0 + j * args->b_stride1 + t);
        }
    }
}

/* Runs the rows [begin, end) both ways and compares the whole output arena, bytes beside the rows too. */
static void check_rows(const struct concat_mla_args *args, uint64_t begin, uint64_t end)
{
    memset(expected, 0xa5, ARENA_BYTES);
    reference(args, begin, end);
    for (int streaming = 0; streaming < 2; streaming++) {
        memset(arena[0], 0xa5, ARENA_BYTES);
        concat_mla_host(args, begin, end, streaming);
        assert_memory_equal(arena[0], expected, ARENA_BYTES);
    }
}

static struct concat_mla_args make_args(const unsigned long long dim[2], const struct layout x[OPERANDS],
                                        const enum edge edge[OPERANDS])
{
    for (int k = 1; k < OPERANDS; k++) {
        for (size_t i = 0; i < ARENA_BYTES; i++) {
            arena[k][i] = (unsigned char)(i * 7 + i / 251 + (size_t)k);
        }
    }
    struct concat_mla_args args = {
        .out = place(arena[0], &x[0], dim, edge[0]),
        .a = place(arena[1], &x[1], dim, edge[1]),
        .b = place(arena[2], &x[2], dim, edge[2]),
        .dim0 = dim[0],
        .dim1 = dim[1],
        .out_stride0 = x[0].stride[0],
        .out_stride1 = x[0].stride[1],
        .a_stride0 = x[1].stride[0],
        .a_stride1 = x[1].stride[1],
        .b_stride0 = x[2].stride[0],
        .b_stride1 = x[2].stride[1],
        .a_bytes = x[1].width,
        .b_bytes = x[2].width,
    };
    return args;
}

static void set_packed(struct layout *x, const unsigned long long dim[2], unsigned long long width,
                       unsigned long long gap)
{
    x->width = width;
    x->stride[1] = (long long)(width + gap);
    x->stride[0] = (long long)((width + gap) * dim[1]);
}

static void test_concat_mla_host_copies_aligned_rows(void **state)
{
    (void)state;
    static const unsigned long long widths[][2] = {{256, 128}, {1024, 128}, {128, 64}, {16, 0}, {0, 16}, {80, 48}};
    const enum edge edge[OPERANDS] = {ALIGNED_16, AT_END, AT_END};
    for (size_t w = 0; w < sizeof(widths) / sizeof(widths[0]); w++) {
        const unsigned long long dim[2] = {3, 12};
        struct layout x[OPERANDS];
        set_packed(&x[0], dim, widths[w][0] + widths[w][1], w % 2 * 16);
        set_packed(&x[1], dim, widths[w][0], 256);
        set_packed(&x[2], dim, widths[w][1], 0);
        struct concat_mla_args args = make_args(dim, x, edge);
        check_rows(&args, 0, 36);
        args.b_stride0 = args.b_stride1; /* broadcast over dim1 */
        args.b_stride1 = 0;
        check_rows(&args, 0, 36);
    }
}

static void test_concat_mla_host_copies_any_alignment(void **state)
{
    (void)state;
    static const enum edge edge[OPERANDS] = {AT_START, AT_END, AT_START};
    const unsigned long long dim[2] = {2, 5};
    for (unsigned long long a = 0; a <= 130; a += 13) {
        for (unsigned long long b = 0; b <= 66; b += 11) {
            for (unsigned long long shift = 0; shift < 64; shift += 9) {
                struct layout x[OPERANDS];
                set_packed(&x[0], dim, a + b, shift % 2 ? 0 : 5);
                set_packed(&x[1], dim, a, shift % 3);
                set_packed(&x[2], dim, b, shift % 4);
                struct concat_mla_args args = make_args(dim, x, edge);
                args.out = (unsigned char *)args.out + shift;
                check_rows(&args, 0, 10);
            }
        }
    }
}

/* Rows longer than what is put together at a time, in one run and apart. */
static void test_concat_mla_host_copies_wide_rows(void **state)
{
    (void)state;
    static const enum edge edge[OPERANDS] = {AT_END, AT_START, AT_END};
    const unsigned long long dim[2] = {2, 3};
    for (unsigned long long gap = 0; gap < 3; gap++) {
        struct layout x[OPERANDS];
        set_packed(&x[0], dim, 9001 + 5555, gap * 31);
        set_packed(&x[1], dim, 9001, 3);
        set_packed(&x[2], dim, 5555, 1);
        struct concat_mla_args args = make_args(dim, x, edge);
        check_rows(&args, 0, 6);
        check_rows(&args, 1, 5);
    }
}

static void test_concat_mla_host_leaves_a_null_part_alone(void **state)
{
    (void)state;
    static const enum edge edge[OPERANDS] = {AT_START, AT_START, AT_START};
    static const unsigned long long widths[][2] = {{33, 21}, {64, 32}, {3000, 1500}};
    const unsigned long long dim[2] = {3, 4};
    for (size_t w = 0; w < sizeof(widths) / sizeof(widths[0]); w++) {
        for (int part = 1; part <= 3; part++) {
            struct layout x[OPERANDS];
            set_packed(&x[0], dim, widths[w][0] + widths[w][1], 0);
            set_packed(&x[1], dim, widths[w][0], 0);
            set_packed(&x[2], dim, widths[w][1], 0);
            struct concat_mla_args args = make_args(dim, x, edge);
            args.a = part & 1 ? NULL : args.a;
            args.b = part & 2 ? NULL : args.b;
            check_rows(&args, 0, 12);
        }
    }
}

static void test_concat_mla_host_does_nothing_without_rows(void **state)
{
    (void)state;
    struct concat_mla_args args;
    memset(&args, 0, sizeof(args));
    concat_mla_host(&args, 0, 0, 0);
    concat_mla_host(&args, 0, 0, 1);
}

/* Strides of either sign in either order, parts of the rows, any edge. */
static void test_concat_mla_host_agrees_with_the_reference_at_random(void **state)
{
    (void)state;
    for (int n = 0; n < 1500; n++) {
        const unsigned long long dim[2] = {1 + random_below(6), 1 + random_below(9)};
        static const unsigned long long grains[] = {1, 8, 16}; /* 8: nearly aligned */
        unsigned long long grain = grains[random_below(3)];
        unsigned long long a = random_below(150) / grain * grain;
        unsigned long long b = random_below(150) / grain * grain;
        unsigned long long width[OPERANDS] = {a + b, a, b};
        struct layout x[OPERANDS];
        enum edge edge[OPERANDS];
        for (int k = 0; k < OPERANDS; k++) {
            set_packed(&x[k], dim, width[k], random_below(40) / grain * grain);
            if (random_below(3) == 0) { /* dim1 is the outer one */
                x[k].stride[0] = x[k].stride[1];
                x[k].stride[1] = x[k].stride[0] * (long long)dim[0];
            }
            for (int d = 0; d < 2; d++) {
                x[k].stride[d] *= random_below(3) == 0 ? -1 : 1;
                x[k].stride[d] *= k > 0 && random_below(4) == 0 ? 0 : 1;
            }
            edge[k] = (enum edge)random_below(3);
        }
        struct concat_mla_args args = make_args(dim, x, edge);
        uint64_t begin = random_below(2) ? 0 : random_below(dim[0] * dim[1]);
        uint64_t end = random_below(2) ? dim[0] * dim[1] : begin + random_below(dim[0] * dim[1] - begin + 1);
        check_rows(&args, begin, end);
    }
}

static void test_concat_mla_host_streaming_bytes_is_sane(void **state)
{
    (void)state;
    assert_in_range(concat_mla_host_streaming_bytes(), 64 << 10, 1ull << 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_concat_mla_host_copies_aligned_rows),
        cmocka_unit_test(test_concat_mla_host_copies_any_alignment),
        cmocka_unit_test(test_concat_mla_host_copies_wide_rows),
        cmocka_unit_test(test_concat_mla_host_leaves_a_null_part_alone),
        cmocka_unit_test(test_concat_mla_host_does_nothing_without_rows),
        cmocka_unit_test(test_concat_mla_host_agrees_with_the_reference_at_random),
        cmocka_unit_test(test_concat_mla_host_streaming_bytes_is_sane),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
