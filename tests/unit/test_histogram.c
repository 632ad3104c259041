/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "histogram.h"

static struct histogram h;

static int setup(void **state)
{
    (void)state;
    memset(&h, 0, sizeof(h));
    return 0;
}

static void test_histogram_empty_is_zero(void **state)
{
    (void)state;
    assert_int_equal(histogram_quantile(&h, 0.5), 0);
    assert_int_equal(histogram_quantile(&h, 1.0), 0);
}

static void test_histogram_small_values_are_exact(void **state)
{
    (void)state;
    for (uint64_t v = 0; v < 32; v++) {
        setup(NULL);
        histogram_add(&h, v);
        assert_int_equal(histogram_quantile(&h, 0.5), v);
    }
}

/* At and beside each power of two, where a bucket index would be off by one. */
static void test_histogram_edge_is_within_a_sixteenth(void **state)
{
    (void)state;
    for (uint32_t bits = 4; bits < HISTOGRAM_MAX_BITS; bits++) {
        const uint64_t power = UINT64_C(1) << bits;
        const uint64_t values[] = {power, power + 1, power + power / 2, 2 * power - 1};
        for (size_t i = 0; i < 4; i++) {
            setup(NULL);
            histogram_add(&h, values[i]);
            uint64_t edge = histogram_quantile(&h, 1.0);
            assert_true(edge >= values[i]);
            assert_true(edge - values[i] <= values[i] / 16);
        }
    }
}

static void test_histogram_counts_past_the_end_in_the_last_bucket(void **state)
{
    (void)state;
    const uint64_t last = (UINT64_C(1) << HISTOGRAM_MAX_BITS) - 1;
    histogram_add(&h, last);
    assert_true(histogram_quantile(&h, 1.0) == last);
    histogram_add(&h, last + 1);
    histogram_add(&h, UINT64_MAX);
    assert_int_equal(h.total, 3);
    assert_int_equal(h.counts[HISTOGRAM_BUCKETS - 1], 3);
    assert_true(histogram_quantile(&h, 1.0) == last);
}

static void test_histogram_quantiles_by_rank(void **state)
{
    (void)state;
    for (uint64_t v = 1; v <= 10; v++) {
        histogram_add(&h, v);
    }
    assert_int_equal(histogram_quantile(&h, 1e-9), 1);
    assert_int_equal(histogram_quantile(&h, 0.1), 1);
    assert_int_equal(histogram_quantile(&h, 0.11), 2);
    assert_int_equal(histogram_quantile(&h, 0.5), 5);
    assert_int_equal(histogram_quantile(&h, 0.99), 10);
    assert_int_equal(histogram_quantile(&h, 1.0), 10);
}

static void test_histogram_one_slow_call_in_a_thousand(void **state)
{
    (void)state;
    for (int i = 0; i < 999; i++) {
        histogram_add(&h, 10);
    }
    histogram_add(&h, 1000000);
    assert_int_equal(histogram_quantile(&h, 0.99), 10);
    assert_true(histogram_quantile(&h, 1.0) >= 1000000);
}

/* While it is read it grows: what is read counts each value once. */
static void test_histogram_merge_adds_what_a_shared_one_has(void **state)
{
    static struct histogram shared;
    (void)state;
    memset(&shared, 0, sizeof(shared));
    histogram_add(&h, 10);
    for (int i = 0; i < 3; i++) {
        histogram_add_shared(&shared, 1000);
    }
    histogram_merge_shared(&h, &shared);
    assert_int_equal(h.total, 4);
    assert_int_equal(shared.total, 3);
    assert_int_equal(histogram_quantile(&h, 0.25), 10);
    assert_true(histogram_quantile(&h, 0.5) >= 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_histogram_empty_is_zero, setup),
        cmocka_unit_test_setup(test_histogram_small_values_are_exact, setup),
        cmocka_unit_test_setup(test_histogram_edge_is_within_a_sixteenth, setup),
        cmocka_unit_test_setup(test_histogram_counts_past_the_end_in_the_last_bucket, setup),
        cmocka_unit_test_setup(test_histogram_quantiles_by_rank, setup),
        cmocka_unit_test_setup(test_histogram_one_slow_call_in_a_thousand, setup),
        cmocka_unit_test_setup(test_histogram_merge_adds_what_a_shared_one_has, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
