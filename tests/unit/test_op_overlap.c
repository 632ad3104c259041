/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>
#include <string.h>

#include "op_overlap.h"

#define SPACE 4096

static uint64_t seed = 20260101;

static uint64_t random_below(uint64_t n)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (seed >> 33) % n;
}

/* Rows of any strides somewhere in SPACE bytes. */
static struct overlap_rows random_rows(void)
{
    for (;;) {
        struct overlap_rows r = {.width = 1 + random_below(6)};
        int64_t low = 0;
        int64_t high = (int64_t)r.width;
        for (int d = 0; d < 2; d++) {
            r.count[d] = 1 + random_below(7);
            r.stride[d] = (int64_t)random_below(81) - 40;
            int64_t extent = r.stride[d] * (int64_t)(r.count[d] - 1);
            *(extent < 0 ? &low : &high) += extent;
        }
        r.start = (int64_t)random_below(SPACE / 8);
        if (r.start + low >= 0 && r.start + high <= SPACE) {
            return r;
        }
    }
}

/* Marks each byte of the rows; true if one was marked already. */
static bool mark(unsigned char *map, const struct overlap_rows *r)
{
    bool met = false;
    for (uint64_t i = 0; i < r->count[0]; i++) {
        for (uint64_t j = 0; j < r->count[1]; j++) {
            for (uint64_t t = 0; t < r->width; t++) {
                unsigned char *byte =
                    map + r->start + (int64_t)i * r->stride[0] + (int64_t)j * r->stride[1] + (int64_t)t;
                met |= *byte != 0;
                *byte = 1;
            }
        }
    }
    return met;
}

static bool share_bytes(const struct overlap_rows *a, const struct overlap_rows *b)
{
    static unsigned char of_a[SPACE];
    static unsigned char of_b[SPACE];
    memset(of_a, 0, sizeof(of_a));
    memset(of_b, 0, sizeof(of_b));
    mark(of_a, a);
    mark(of_b, b);
    for (int i = 0; i < SPACE; i++) {
        if (of_a[i] && of_b[i]) {
            return true;
        }
    }
    return false;
}

/* On small numbers there is always an answer, and it is the true one, whatever the strides. */
static void test_op_overlap_agrees_with_counting_bytes(void **state)
{
    (void)state;
    int found = 0;
    for (int i = 0; i < 60000; i++) {
        struct overlap_rows a = random_rows();
        struct overlap_rows b = random_rows();
        bool truth = share_bytes(&a, &b);
        assert_int_equal(overlap_between(&a, &b), truth ? OVERLAP_FOUND : OVERLAP_NONE);
        assert_int_equal(overlap_between(&b, &a), truth ? OVERLAP_FOUND : OVERLAP_NONE);
        found += truth;
    }
    assert_in_range(found, 6000, 54000); /* both answers were tried */
}

static void test_op_overlap_within_agrees_with_counting_bytes(void **state)
{
    (void)state;
    int found = 0;
    for (int i = 0; i < 60000; i++) {
        static unsigned char map[SPACE];
        struct overlap_rows a = random_rows();
        memset(map, 0, sizeof(map));
        bool truth = mark(map, &a);
        assert_int_equal(overlap_within(&a), truth ? OVERLAP_FOUND : OVERLAP_NONE);
        found += truth;
    }
    assert_in_range(found, 6000, 54000);
}

/* Two long dimensions with strides that share nothing: decided exactly, far past what could be tried one by one. */
static void test_op_overlap_of_long_strides_is_exact(void **state)
{
    (void)state;
    const int64_t p = 1000003;
    const int64_t q = 1000033;
    struct overlap_rows a = {.start = 0, .count = {1000000, 1}, .stride = {p, 0}, .width = 1};
    struct overlap_rows b = {.start = 0, .count = {1000000, 1}, .stride = {q, 0}, .width = 1};
    for (int64_t x = 1; x < 1000000; x += 99991) {
        int64_t y = 1000000 - x;
        b.start = x * p - 0; /* a's row x is b's row 0 */
        assert_int_equal(overlap_between(&a, &b), OVERLAP_FOUND);
        b.start = 999999 * p - y * q; /* a's last row is b's row y, and no other pair can meet */
        if (b.start < 0) {
            continue;
        }
        b.count[0] = (uint64_t)y + 1;
        assert_int_equal(overlap_between(&a, &b), OVERLAP_FOUND);
        b.count[0] = (uint64_t)y;
        assert_int_equal(overlap_between(&a, &b), OVERLAP_NONE);
        b.count[0] = 1000000;
    }
}

static void test_op_overlap_at_the_ends_of_the_range(void **state)
{
    (void)state;
    struct overlap_rows a = {.start = INT64_MAX - 8, .count = {2, 1}, .stride = {-(INT64_MAX - 8), 0}, .width = 8};
    struct overlap_rows b = {.start = 8, .count = {2, 1}, .stride = {INT64_MAX - 24, 0}, .width = 8};
    assert_int_equal(overlap_between(&a, &b), OVERLAP_NONE);
    b.start = 7;
    assert_int_equal(overlap_between(&a, &b), OVERLAP_FOUND);
    assert_int_equal(overlap_within(&a), OVERLAP_NONE);
    struct overlap_rows all = {.start = 0, .count = {1, 1}, .width = INT64_MAX};
    assert_int_equal(overlap_between(&all, &b), OVERLAP_FOUND);
    assert_int_equal(overlap_within(&all), OVERLAP_NONE);
}

/* Hostile strides end in an answer that says so, after a bounded amount of work. */
static void test_op_overlap_gives_up(void **state)
{
    (void)state;
    struct overlap_rows a = {.count = {10000, 100}, .stride = {1000000000039, 1000003}, .width = 2};
    struct overlap_rows b = {.start = 500, .count = {10000, 100}, .stride = {1000000000061, 1000033}, .width = 1};
    assert_int_equal(overlap_between(&a, &b), OVERLAP_UNPROVEN);
    b.start = 1; /* the same strides, but a row that is found soon */
    assert_int_equal(overlap_between(&a, &b), OVERLAP_FOUND);
    /* As long, but all strides even and the distance odd. */
    struct overlap_rows e = {.count = {10000, 100}, .stride = {1000000000038, 1000002}, .width = 1};
    struct overlap_rows f = {.start = 501, .count = {10000, 100}, .stride = {1000000000062, 1000034}, .width = 1};
    assert_int_equal(overlap_between(&e, &f), OVERLAP_NONE);
    /* Short inner dimensions. */
    struct overlap_rows c = {.count = {100000, 2}, .stride = {100000000000003ll / 2, 77}, .width = 3};
    struct overlap_rows d = {.start = 40, .count = {100000, 2}, .stride = {100000000000009ll / 2, 79}, .width = 3};
    assert_int_not_equal(overlap_between(&c, &d), OVERLAP_UNPROVEN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_op_overlap_agrees_with_counting_bytes),
        cmocka_unit_test(test_op_overlap_within_agrees_with_counting_bytes),
        cmocka_unit_test(test_op_overlap_of_long_strides_is_exact),
        cmocka_unit_test(test_op_overlap_at_the_ends_of_the_range),
        cmocka_unit_test(test_op_overlap_gives_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
