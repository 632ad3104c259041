/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "checked.h"

static void test_checked_u64_edges(void **state)
{
    (void)state;
    uint64_t out = 0;
    assert_true(checked_add_u64(UINT64_MAX - 1, 1, &out));
    assert_true(out == UINT64_MAX);
    assert_false(checked_add_u64(UINT64_MAX, 1, &out));
    assert_true(checked_mul_u64(UINT64_C(1) << 32, (UINT64_C(1) << 32) - 1, &out));
    assert_true(out == UINT64_MAX - UINT32_MAX);
    assert_false(checked_mul_u64(UINT64_C(1) << 32, UINT64_C(1) << 32, &out));
    assert_true(checked_mul_u64(UINT64_MAX, 0, &out));
    assert_true(out == 0);
}

static void test_checked_i64_edges(void **state)
{
    (void)state;
    int64_t out = 0;
    assert_true(checked_add_i64(INT64_MAX - 1, 1, &out));
    assert_true(out == INT64_MAX);
    assert_false(checked_add_i64(INT64_MAX, 1, &out));
    assert_false(checked_add_i64(INT64_MIN, -1, &out));
    assert_true(checked_mul_i64(INT64_MIN / 2, 2, &out));
    assert_true(out == INT64_MIN);
    assert_false(checked_mul_i64(INT64_MIN, -1, &out));
    assert_false(checked_mul_i64(INT64_MAX, 2, &out));
}

static void test_checked_u64_to_i64_edges(void **state)
{
    (void)state;
    int64_t out = 0;
    assert_true(checked_u64_to_i64(INT64_MAX, &out));
    assert_true(out == INT64_MAX);
    assert_false(checked_u64_to_i64((uint64_t)INT64_MAX + 1, &out));
    assert_false(checked_u64_to_i64(UINT64_MAX, &out));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checked_u64_edges),
        cmocka_unit_test(test_checked_i64_edges),
        cmocka_unit_test(test_checked_u64_to_i64_edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
