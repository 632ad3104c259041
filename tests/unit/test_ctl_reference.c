/* SPDX-License-Identifier: Apache-2.0 */
/* The reference against a second one, written element by element, and against every single wrong byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"
#include "random.h"
#include "reference.h"

struct bench {
    struct shape shape;
    struct shape_layout layout;
    uint8_t *data[SHAPE_OPERANDS];
};

static const struct shape shapes[] = {
    {.op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16, .dim0 = 3, .dim1 = 2, .first = 5, .second = 3},
    {.op = MLACAT_OP_CONCAT_MLA_K,
     .dtype = MLACAT_DTYPE_FP32,
     .dim0 = 2,
     .dim1 = 3,
     .first = 4,
     .second = 2,
     .gap = 3,
     .strided = true,
     .v = 5,
     .lead = 7},
    {.op = MLACAT_OP_CONCAT_MLA_ABSORB_Q,
     .dtype = MLACAT_DTYPE_FP8_E4M3,
     .dim0 = 3,
     .dim1 = 4,
     .first = 9,
     .second = 2,
     .strided = true,
     .lead = 6},
    {.op = MLACAT_OP_CONCAT_MLA_ABSORB_Q,
     .dtype = MLACAT_DTYPE_FP16,
     .dim0 = 2,
     .dim1 = 1,
     .first = 0,
     .second = 5,
     .gap = 1},
    {.op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_FP8_E5M2, .dim0 = 2, .dim1 = 2, .first = 17, .second = 0},
    {.op = MLACAT_OP_CONCAT_MLA_K,
     .dtype = MLACAT_DTYPE_BF16,
     .dim0 = 0,
     .dim1 = 2,
     .first = 4,
     .second = 4,
     .lead = 64,
     .strided = true},
};

#define SHAPES (sizeof(shapes) / sizeof(shapes[0]))

static uint8_t *element(const struct bench *bench, int which, uint64_t i, uint64_t j, uint64_t t)
{
    const struct shape_operand *operand = &bench->layout.operand[which];
    int64_t at = (int64_t)i * operand->strides[0] + (int64_t)j * operand->strides[1] + (int64_t)t;

    return bench->data[which] + (int64_t)operand->offset_bytes + at * (int64_t)bench->layout.element_bytes;
}

/* The op by its formula, element by element. */
static void run_op(const struct bench *bench)
{
    const struct shape *shape = &bench->shape;

    for (uint64_t i = 0; i < shape->dim0; i++)
        for (uint64_t j = 0; j < shape->dim1; j++)
            for (uint64_t t = 0; t < shape->first + shape->second; t++) {
                uint64_t row = shape->op == MLACAT_OP_CONCAT_MLA_K ? 0 : j;
                const uint8_t *from = t < shape->first ? element(bench, SHAPE_FIRST, i, j, t)
                                                       : element(bench, SHAPE_SECOND, i, row, t - shape->first);

                memcpy(element(bench, SHAPE_OUT, i, j, t), from, bench->layout.element_bytes);
            }
}

static void open_bench(struct bench *bench, const struct shape *shape)
{
    bench->shape = *shape;
    assert_true(shape_layout(shape, &bench->layout));
    for (int i = 0; i < SHAPE_OPERANDS; i++) {
        uint64_t bytes = bench->layout.operand[i].buffer_bytes;

        /* Exact, so that a sanitizer sees each step outside. */
        bench->data[i] = malloc(bytes);
        assert_non_null(bench->data[i]);
        random_fill((uint64_t)i + 7, shape->dtype, bench->data[i], bytes);
    }
    reference_poison(&bench->shape, &bench->layout, bench->data);
}

static void close_bench(struct bench *bench)
{
    for (int i = 0; i < SHAPE_OPERANDS; i++)
        free(bench->data[i]);
}

static bool right(const struct bench *bench, struct difference *difference)
{
    return reference_check(&bench->shape, &bench->layout, bench->data, difference);
}

static void test_ctl_reference_accepts_the_right_output(void **state)
{
    (void)state;
    for (size_t s = 0; s < SHAPES; s++) {
        struct difference difference;
        struct bench bench;

        open_bench(&bench, &shapes[s]);
        run_op(&bench);
        assert_true(right(&bench, &difference));
        close_bench(&bench);
    }
}

static void test_ctl_reference_sees_every_wrong_byte(void **state)
{
    (void)state;
    for (size_t s = 0; s < SHAPES; s++) {
        struct difference difference;
        struct bench bench;

        open_bench(&bench, &shapes[s]);
        run_op(&bench);
        for (uint64_t i = 0; i < bench.layout.operand[SHAPE_OUT].buffer_bytes; i++) {
            bench.data[SHAPE_OUT][i] ^= 0x10;
            assert_false(right(&bench, &difference));
            assert_in_range(i - difference.offset, 0, difference.bytes - 1);
            bench.data[SHAPE_OUT][i] ^= 0x10;
        }
        assert_true(right(&bench, &difference));
        close_bench(&bench);
    }
}

/* A call that forgets any one element cannot pass, whatever the inputs hold. */
static void test_ctl_reference_sees_every_unwritten_byte(void **state)
{
    (void)state;
    for (size_t s = 0; s < SHAPES; s++) {
        struct bench bench;
        uint8_t *poison;
        uint64_t bytes;

        open_bench(&bench, &shapes[s]);
        bytes = bench.layout.operand[SHAPE_OUT].buffer_bytes;
        poison = malloc(bytes);
        assert_non_null(poison);
        memcpy(poison, bench.data[SHAPE_OUT], bytes);
        run_op(&bench);
        for (uint64_t i = 0; i < shapes[s].dim0; i++)
            for (uint64_t j = 0; j < shapes[s].dim1; j++)
                for (uint64_t t = 0; t < shapes[s].first + shapes[s].second; t++) {
                    const uint8_t *at = element(&bench, SHAPE_OUT, i, j, t);

                    for (uint64_t b = 0; b < bench.layout.element_bytes; b++)
                        assert_int_not_equal(at[b], poison[at + b - bench.data[SHAPE_OUT]]);
                }
        free(poison);
        close_bench(&bench);
    }
}

static void test_ctl_reference_names_the_first_difference(void **state)
{
    struct difference difference;
    struct bench bench;
    char text[160];

    (void)state;
    open_bench(&bench, &shapes[0]);
    run_op(&bench);
    memcpy(element(&bench, SHAPE_FIRST, 1, 1, 2), "\xc1\x7f", 2);
    memcpy(element(&bench, SHAPE_OUT, 1, 1, 2), "\xc0\x7f", 2);
    assert_false(right(&bench, &difference));
    assert_int_equal(difference.kind, DIFFERENCE_ELEMENT);
    reference_text(&difference, text, sizeof(text));
    assert_string_equal(text, "k[1,1,2]: expected c17f, found c07f (byte 308)");
    bench.data[SHAPE_OUT][255] = 0;
    assert_false(right(&bench, &difference));
    reference_text(&difference, text, sizeof(text));
    assert_string_equal(text, "k was written outside of its elements: expected a5, found 00 (byte 255)");
    close_bench(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ctl_reference_accepts_the_right_output),
        cmocka_unit_test(test_ctl_reference_sees_every_wrong_byte),
        cmocka_unit_test(test_ctl_reference_sees_every_unwritten_byte),
        cmocka_unit_test(test_ctl_reference_names_the_first_difference),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
