/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "token_bucket.h"

#define MS UINT64_C(1000000)
#define START (1000 * MS)

static const struct token_rate rate = {.per_s = 100, .burst = 4}; /* one each 10 ms */

static void test_token_bucket_gives_a_burst_then_the_rate(void **state)
{
    struct token_bucket bucket = {0};
    uint64_t now_ns = START;
    (void)state;
    for (int i = 0; i < 4; i++) {
        assert_int_equal(token_bucket_wait_ns(&bucket, rate, now_ns), 0);
        token_bucket_take(&bucket, rate, now_ns);
    }
    for (int i = 0; i < 100; i++) {
        assert_int_equal(token_bucket_wait_ns(&bucket, rate, now_ns), 10 * MS);
        assert_int_equal(token_bucket_wait_ns(&bucket, rate, now_ns + 9 * MS), MS);
        now_ns += 10 * MS;
        assert_int_equal(token_bucket_wait_ns(&bucket, rate, now_ns), 0);
        token_bucket_take(&bucket, rate, now_ns);
    }
}

static void test_token_bucket_holds_no_more_than_a_burst(void **state)
{
    struct token_bucket bucket = {0};
    uint64_t now_ns = START;
    (void)state;
    token_bucket_take(&bucket, rate, now_ns);
    now_ns += 1000000 * MS;
    for (int i = 0; i < 4; i++) {
        assert_int_equal(token_bucket_wait_ns(&bucket, rate, now_ns), 0);
        token_bucket_take(&bucket, rate, now_ns);
    }
    assert_int_equal(token_bucket_wait_ns(&bucket, rate, now_ns), 10 * MS);
}

static void test_token_bucket_without_a_rate_never_waits(void **state)
{
    const struct token_rate none = {.per_s = 0, .burst = 4};
    struct token_bucket bucket = {0};
    (void)state;
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(token_bucket_wait_ns(&bucket, none, START), 0);
        token_bucket_take(&bucket, none, START);
    }
    assert_int_equal(bucket.full_ns, 0);
}

/* A debt that was made at one token in a second is not paid for minutes when there are a thousand. */
static void test_token_bucket_forgets_a_slower_rate(void **state)
{
    const struct token_rate slow = {.per_s = 1, .burst = 256};
    const struct token_rate fast = {.per_s = 1000, .burst = 256};
    struct token_bucket bucket = {0};
    (void)state;
    for (int i = 0; i < 256; i++) {
        token_bucket_take(&bucket, slow, START);
    }
    assert_int_equal(token_bucket_wait_ns(&bucket, slow, START), 1000 * MS);
    assert_int_equal(token_bucket_wait_ns(&bucket, fast, START), MS);
}

static struct token_bucket full_in(uint64_t ms)
{
    return (struct token_bucket){.full_ns = START + ms * MS};
}

static uint64_t debt_of(const struct token_debts *debts, uint32_t user)
{
    uint64_t full_ns = token_debts_get(debts, user).full_ns;
    return full_ns ? (full_ns - START) / MS : 0;
}

static void test_token_debts_are_each_users_largest(void **state)
{
    static struct token_debts debts;
    const struct token_bucket most = full_in(30);
    const struct token_bucket less = full_in(20);
    (void)state;
    assert_int_equal(debt_of(&debts, 0), 0);
    token_debts_add(&debts, 0, &most);
    assert_int_equal(debt_of(&debts, 7), 0);
    token_debts_add(&debts, 7, &less);
    token_debts_add(&debts, 0, &less); /* of another client of the same user */
    assert_int_equal(debt_of(&debts, 0), 30);
    assert_int_equal(debt_of(&debts, 7), 20);
    token_debts_add(&debts, 7, &most);
    assert_int_equal(debt_of(&debts, 7), 30);
}

static void test_token_debts_forget_who_owes_least(void **state)
{
    static struct token_debts debts;
    const struct token_bucket least = full_in(1);
    const struct token_bucket more = full_in(50);
    const struct token_bucket none = {0};
    (void)state;
    for (uint32_t user = 0; user < TOKEN_DEBTS; user++) {
        const struct token_bucket bucket = full_in(2 + user);
        token_debts_add(&debts, user, &bucket);
    }
    token_debts_add(&debts, 100, &least); /* nobody else is forgotten for it */
    token_debts_add(&debts, 101, &none);
    assert_int_equal(debt_of(&debts, 100), 0);
    assert_int_equal(debt_of(&debts, 0), 2);
    token_debts_add(&debts, 102, &more);
    assert_int_equal(debt_of(&debts, 102), 50);
    assert_int_equal(debt_of(&debts, 0), 0);
    assert_int_equal(debt_of(&debts, 1), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_token_bucket_gives_a_burst_then_the_rate),
        cmocka_unit_test(test_token_bucket_holds_no_more_than_a_burst),
        cmocka_unit_test(test_token_bucket_without_a_rate_never_waits),
        cmocka_unit_test(test_token_bucket_forgets_a_slower_rate),
        cmocka_unit_test(test_token_debts_are_each_users_largest),
        cmocka_unit_test(test_token_debts_forget_who_owes_least),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
