/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "models.h"
#include "names.h"
#include "shape.h"

static void assert_operand(const struct shape_operand *operand, const uint64_t shape[3], const int64_t strides[3],
                           uint64_t offset, uint64_t bytes)
{
    assert_memory_equal(operand->shape, shape, 3 * sizeof(uint64_t));
    assert_memory_equal(operand->strides, strides, 3 * sizeof(int64_t));
    assert_int_equal(operand->offset_bytes, offset);
    assert_int_equal(operand->buffer_bytes, bytes);
}

#define EXTENTS(...) ((const uint64_t[3]){__VA_ARGS__})
#define STRIDES(...) ((const int64_t[3]){__VA_ARGS__})

static void test_ctl_shape_contiguous(void **state)
{
    struct shape shape = {
        .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16, .dim0 = 10, .dim1 = 16, .first = 128, .second = 64};
    struct shape_layout layout;

    (void)state;
    assert_true(shape_layout(&shape, &layout));
    assert_operand(&layout.operand[SHAPE_OUT], EXTENTS(10, 16, 192), STRIDES(16 * 192, 192, 1), 256, 512 + 61440);
    assert_operand(&layout.operand[SHAPE_FIRST], EXTENTS(10, 16, 128), STRIDES(16 * 128, 128, 1), 256, 512 + 40960);
    assert_operand(&layout.operand[SHAPE_SECOND], EXTENTS(10, 1, 64), STRIDES(64, 64, 1), 256, 512 + 1280);
    assert_int_equal(shape_bytes(&shape), 61440 + 40960 + 1280);
}

static void test_ctl_shape_strided_k_is_half_of_kv_and_tail_of_the_latent_row(void **state)
{
    struct shape shape = models_shape(&models[0], MLACAT_OP_CONCAT_MLA_K, MLACAT_DTYPE_BF16, true, 10);
    struct shape_layout layout;

    (void)state;
    assert_true(shape_layout(&shape, &layout));
    assert_operand(&layout.operand[SHAPE_FIRST], EXTENTS(10, 128, 128), STRIDES(128 * 256, 256, 1), 256,
                   512 + 10 * 128 * 256 * 2);
    assert_operand(&layout.operand[SHAPE_SECOND], EXTENTS(10, 1, 64), STRIDES(2112, 2112, 1), 256 + 4096,
                   512 + 10 * 2112 * 2);
    assert_operand(&layout.operand[SHAPE_OUT], EXTENTS(10, 128, 192), STRIDES(128 * 192, 192, 1), 256,
                   512 + 10 * 128 * 192 * 2);
}

static void test_ctl_shape_strided_q_is_head_major_and_tail_of_q(void **state)
{
    struct shape shape = models_shape(&models[0], MLACAT_OP_CONCAT_MLA_ABSORB_Q, MLACAT_DTYPE_FP8_E4M3, true, 10);
    struct shape_layout layout;

    (void)state;
    assert_true(shape_layout(&shape, &layout));
    assert_operand(&layout.operand[SHAPE_FIRST], EXTENTS(10, 128, 512), STRIDES(512, 10 * 512, 1), 256,
                   512 + 10 * 128 * 512);
    assert_operand(&layout.operand[SHAPE_SECOND], EXTENTS(10, 128, 64), STRIDES(128 * 192, 192, 1), 256 + 128,
                   512 + 10 * 128 * 192);
}

static void test_ctl_shape_gap_is_between_output_rows(void **state)
{
    struct shape shape = {.op = MLACAT_OP_CONCAT_MLA_ABSORB_Q,
                          .dtype = MLACAT_DTYPE_FP32,
                          .dim0 = 2,
                          .dim1 = 3,
                          .first = 4,
                          .second = 2,
                          .gap = 1};
    struct shape_layout layout;

    (void)state;
    assert_true(shape_layout(&shape, &layout));
    assert_operand(&layout.operand[SHAPE_OUT], EXTENTS(2, 3, 6), STRIDES(21, 7, 1), 256, 512 + 2 * 3 * 7 * 4);
}

static void test_ctl_shape_refuses_what_cannot_be_mapped(void **state)
{
    struct shape shape = {.op = MLACAT_OP_CONCAT_MLA_K,
                          .dtype = MLACAT_DTYPE_FP32,
                          .dim0 = 1ull << 31,
                          .dim1 = 1ull << 31,
                          .first = 1ull << 31,
                          .second = 64};
    struct shape_layout layout;

    (void)state;
    assert_false(shape_layout(&shape, &layout));
    shape.dim1 = 1;
    assert_false(shape_layout(&shape, &layout));
    shape.first = 1ull << 10;
    assert_true(shape_layout(&shape, &layout));
}

static void test_ctl_shape_without_tokens_stays_in_its_buffer(void **state)
{
    struct shape shape = models_shape(&models[0], MLACAT_OP_CONCAT_MLA_K, MLACAT_DTYPE_BF16, true, 0);
    struct shape_layout layout;

    (void)state;
    assert_true(shape_layout(&shape, &layout));
    for (int i = 0; i < SHAPE_OPERANDS; i++)
        assert_true(layout.operand[i].offset_bytes <= layout.operand[i].buffer_bytes);
    assert_int_equal(shape_bytes(&shape), 0);
}

/* The table is the demo's promise: these models, these heads and widths. */
static void test_ctl_models_have_the_promised_shapes(void **state)
{
    static const struct model promised[] = {
        {"DeepSeek-V3", 128, 128, 64, 128, 512}, {"DeepSeek-V3 TP8", 16, 128, 64, 128, 512},
        {"Kimi K2 TP8", 8, 128, 64, 128, 512},   {"Kimi K3 TP8", 12, 128, 64, 128, 512},
        {"GLM-5", 64, 192, 64, 256, 512},        {"Mistral Small 4", 32, 64, 64, 128, 256},
        {"MiniCPM3", 40, 64, 32, 64, 256},
    };

    (void)state;
    assert_int_equal(models_nr, sizeof(promised) / sizeof(promised[0]));
    for (size_t i = 0; i < models_nr; i++) {
        struct shape k = models_shape(&models[i], MLACAT_OP_CONCAT_MLA_K, MLACAT_DTYPE_BF16, false, 1);
        struct shape q = models_shape(&models[i], MLACAT_OP_CONCAT_MLA_ABSORB_Q, MLACAT_DTYPE_BF16, false, 1);

        assert_string_equal(models[i].name, promised[i].name);
        assert_int_equal(k.dim1, promised[i].heads);
        assert_int_equal(k.first, promised[i].nope);
        assert_int_equal(k.second, promised[i].rope);
        assert_int_equal(q.dim1, promised[i].heads);
        assert_int_equal(q.first, promised[i].latent);
        assert_int_equal(q.second, promised[i].rope);
        assert_int_equal(k.v, promised[i].v);
    }
}

static void test_ctl_names_follow_the_tables(void **state)
{
    (void)state;
    assert_int_equal(names_op_number("concat_mla_absorb_q"), MLACAT_OP_CONCAT_MLA_ABSORB_Q);
    assert_int_equal(names_op_number("concat_mla_"), 0);
    assert_true(names_op(MLACAT_OP_CONCAT_MLA_K)->broadcast);
    assert_false(names_op(MLACAT_OP_CONCAT_MLA_ABSORB_Q)->broadcast);
    assert_null(names_op((enum mlacat_op)99));
    assert_int_equal(names_dtype_number("fp8_e5m2"), MLACAT_DTYPE_FP8_E5M2);
    assert_int_equal(names_dtype_bytes(MLACAT_DTYPE_FP32), 4);
    assert_null(names_dtype((enum mlacat_dtype)99));
    assert_string_equal(names_all_ops(), "concat_mla_k, concat_mla_absorb_q");
}

static void test_ctl_shape_text(void **state)
{
    struct shape shape = models_shape(&models[0], MLACAT_OP_CONCAT_MLA_K, MLACAT_DTYPE_BF16, false, 4096);
    char text[64];

    (void)state;
    shape_text(&shape, text, sizeof(text));
    assert_string_equal(text, "[4096,128,128+64]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ctl_shape_contiguous),
        cmocka_unit_test(test_ctl_shape_strided_k_is_half_of_kv_and_tail_of_the_latent_row),
        cmocka_unit_test(test_ctl_shape_strided_q_is_head_major_and_tail_of_q),
        cmocka_unit_test(test_ctl_shape_gap_is_between_output_rows),
        cmocka_unit_test(test_ctl_shape_refuses_what_cannot_be_mapped),
        cmocka_unit_test(test_ctl_shape_without_tokens_stays_in_its_buffer),
        cmocka_unit_test(test_ctl_models_have_the_promised_shapes),
        cmocka_unit_test(test_ctl_names_follow_the_tables),
        cmocka_unit_test(test_ctl_shape_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
