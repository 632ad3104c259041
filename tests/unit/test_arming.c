/* SPDX-License-Identifier: Apache-2.0 */
/* When a call is armed, and how often its word is looked at. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "arming.h"

#define US UINT64_C(1000)
#define MS (1000 * US)
#define S (1000 * MS)

#define PAUSE_LEAST (50 * US)
#define PAUSE_MOST (1 * MS)

static const uint64_t gaps[] = {0, 1, 100 * US, 2 * MS, 50 * MS, 1 * S, 3600 * S};
static const uint64_t begins[] = {1, 10 * US, 12345 * S};

struct case_of {
    struct arming arming;
    struct arming_plan plan;
    uint64_t since_ns;
    uint64_t at_ns; /* when the word is expected */
};

/* Each gap with each beginning. */
static void for_all(void (*check)(const struct case_of *one))
{
    for (size_t g = 0; g < sizeof(gaps) / sizeof(gaps[0]); g++) {
        for (size_t b = 0; b < sizeof(begins) / sizeof(begins[0]); b++) {
            struct case_of one = {.since_ns = begins[b], .at_ns = begins[b] + gaps[g]};
            one.arming = (struct arming){.gap_ns = {gaps[g], gaps[g]}};
            one.plan = arming_plan(&one.arming, one.since_ns, one.since_ns);
            check(&one);
        }
    }
}

static void check_order(const struct case_of *one)
{
    const struct arming_plan *plan = &one->plan;
    assert_true(plan->look_ns >= one->since_ns);
    assert_true(plan->look_ns <= plan->arm_ns);
    assert_true(plan->arm_ns <= one->at_ns);
    assert_true(plan->late_ns > one->at_ns);
    assert_true(plan->late_ns - plan->arm_ns <= ARMING_MOST_NS);
    assert_true(plan->rest_ns > one->at_ns);
}

static void test_arming_plan_is_around_the_last_wait(void **state)
{
    (void)state;
    for_all(check_order);
}

static void test_arming_without_a_wait_before_arms_at_once(void **state)
{
    struct arming arming = {0};
    struct arming_plan plan = arming_plan(&arming, 3, 3);
    (void)state;
    assert_int_equal(plan.look_ns, 3);
    assert_int_equal(plan.arm_ns, 3);
    assert_in_range(plan.late_ns, 3 + 10 * US, 3 + 50 * US);
    assert_int_equal(arming_pause_ns(&plan, 3, 3), 0);
}

/* The longer the wait, the less it is like the last one; until a GPU would wait for too long. */
static void test_arming_window_grows_with_the_wait(void **state)
{
    uint64_t width_ns = 0;
    (void)state;
    for (uint64_t gap_ns = 100 * US; gap_ns < 10 * S; gap_ns *= 2) {
        struct arming arming = {.gap_ns = {gap_ns, gap_ns}};
        struct arming_plan plan = arming_plan(&arming, 5 * S, 5 * S);
        assert_true(plan.late_ns - plan.arm_ns >= width_ns);
        width_ns = plan.late_ns - plan.arm_ns;
    }
    assert_int_equal(width_ns, ARMING_MOST_NS);
}

/* The look begins early enough for a thread that wakes late. */
static void test_arming_looks_before_it_arms(void **state)
{
    struct arming arming = {.gap_ns = {2 * MS, 2 * MS}};
    struct arming_plan plan = arming_plan(&arming, 1 * S, 1 * S);
    (void)state;
    assert_in_range(plan.arm_ns, 1 * S + 2 * MS - 150 * US, 1 * S + 2 * MS - 50 * US);
    assert_in_range(plan.arm_ns - plan.look_ns, 30 * US, 100 * US);
}

/* A worker that follows the pauses looks at each moment of the plan, sleeps no longer than it should, and spins for a
 * bounded part of the wait only. */
static void follow(const struct case_of *one)
{
    const struct arming_plan *plan = &one->plan;
    uint64_t now_ns = one->since_ns;
    uint64_t last_ns = 0;
    if (one->at_ns - one->since_ns > 10 * S) {
        now_ns = one->at_ns - 10 * MS; /* an hour in steps of a millisecond is for nobody */
    }
    while (now_ns < plan->look_ns) {
        uint64_t pause_ns = arming_pause_ns(plan, one->since_ns, now_ns);
        assert_in_range(pause_ns, 1, PAUSE_MOST);
        assert_true(now_ns + pause_ns <= plan->look_ns);
        assert_true(pause_ns >= last_ns || now_ns + pause_ns == plan->look_ns);
        last_ns = pause_ns;
        now_ns += pause_ns;
    }
    assert_int_equal(now_ns, plan->look_ns);
    assert_int_equal(arming_pause_ns(plan, one->since_ns, plan->look_ns), 0);
    assert_int_equal(arming_pause_ns(plan, one->since_ns, plan->rest_ns - 1), 0);
    last_ns = 0;
    for (now_ns = plan->rest_ns; now_ns < plan->rest_ns + 50 * MS; now_ns += last_ns) {
        uint64_t pause_ns = arming_pause_ns(plan, one->since_ns, now_ns);
        assert_in_range(pause_ns, PAUSE_LEAST, PAUSE_MOST);
        assert_true(pause_ns >= last_ns);
        assert_true(pause_ns == PAUSE_LEAST || pause_ns <= (now_ns - one->since_ns) / 8);
        last_ns = pause_ns;
    }
    assert_int_equal(last_ns, PAUSE_MOST);
}

static void test_arming_pauses_grow_and_end_at_the_plan(void **state)
{
    (void)state;
    for_all(follow);
}

static void check_spin(const struct case_of *one)
{
    uint64_t spin_ns = one->plan.rest_ns - one->plan.look_ns;
    assert_true(spin_ns <= 250 * US + (one->at_ns - one->since_ns) / 8);
    assert_true(spin_ns <= 5 * MS);
}

/* A client that has let its GPU wait for an hour does not get a core for minutes. */
static void test_arming_spins_for_a_bounded_time(void **state)
{
    (void)state;
    for_all(check_spin);
}

/* Calls of two kinds take turns, and each is expected. */
static void test_arming_expects_the_last_two_kinds_of_wait(void **state)
{
    struct arming arming = {0};
    (void)state;
    for (int i = 0; i < 3; i++) {
        arming_ready(&arming, 5 * MS + (uint64_t)i * US); /* of one kind */
        arming_ready(&arming, 100 * US);
        arming_ready(&arming, 101 * US);
        struct arming_plan first = arming_plan(&arming, 1 * S, 1 * S);
        assert_in_range(first.late_ns, 1 * S + 101 * US, 1 * S + 200 * US);
        assert_int_equal(arming_plan(&arming, 1 * S, first.late_ns - 1).arm_ns, first.arm_ns);
        struct arming_plan second = arming_plan(&arming, 1 * S, first.late_ns);
        assert_in_range(second.arm_ns, 1 * S + 4 * MS, 1 * S + 5 * MS);
        assert_in_range(second.late_ns, 1 * S + 5 * MS, 1 * S + 6 * MS);
        assert_int_equal(arming_plan(&arming, 1 * S, 2 * S).arm_ns, second.arm_ns);
    }
    arming_ready(&arming, 0);
    assert_int_equal(arming_plan(&arming, 1 * S, 1 * S).arm_ns, 1 * S);
    arming_ready(&arming, 1 * MS);
    arming_ready(&arming, 2 * MS); /* the first kind is forgotten */
    assert_in_range(arming_plan(&arming, 1 * S, 1 * S).late_ns, 1 * S + 1 * MS, 1 * S + 2 * MS);
}

/* When one kind has come some times in a row, the shorter one is only looked for. */
static void test_arming_steady_waits_are_armed_once(void **state)
{
    struct arming arming = {0};
    (void)state;
    arming_ready(&arming, 100 * US);
    for (uint64_t i = 1; i < 20; i++) {
        arming_ready(&arming, 2 * MS + i * US);
        struct arming_plan first = arming_plan(&arming, 1 * S, 1 * S);
        assert_int_equal(first.arm_ns < first.late_ns, i < 4);
        assert_int_equal(arming_pause_ns(&first, 1 * S, 1 * S + 100 * US), 0);
        struct arming_plan second = arming_plan(&arming, 1 * S, first.late_ns);
        assert_in_range(second.arm_ns, 1 * S + 1 * MS, 1 * S + 2 * MS);
    }
    arming_ready(&arming, 100 * US); /* the longer one is armed for all the same */
    struct arming_plan first = arming_plan(&arming, 1 * S, 1 * S);
    assert_true(first.arm_ns < first.late_ns);
    for (int i = 0; i < 20; i++) {
        arming_ready(&arming, 100 * US);
    }
    struct arming_plan second = arming_plan(&arming, 1 * S, first.late_ns);
    assert_in_range(second.arm_ns, 1 * S + 1 * MS, 1 * S + 2 * MS);
}

/* A call that follows the plan and whose word comes after `waited_ns`: how often it is armed, in vain and in all. */
static void call_and_wait(struct arming *arming, uint64_t waited_ns, uint32_t *lapses, uint32_t *armings)
{
    uint64_t armed_ns = 0;
    uint64_t now_ns = 1 * S;
    while (now_ns < 1 * S + waited_ns) {
        struct arming_plan plan = arming_plan(arming, 1 * S, now_ns);
        assert_true(plan.arm_ns >= plan.late_ns || plan.late_ns - plan.arm_ns <= ARMING_MOST_NS);
        if (!arming_is_due(&plan, armed_ns, now_ns)) {
            now_ns += 1 * US;
            continue;
        }
        armed_ns = now_ns;
        now_ns = plan.late_ns;
        (*armings)++;
        *lapses += plan.late_ns <= 1 * S + waited_ns;
    }
    arming_ready(arming, waited_ns);
}

/* Such a call would wait for what its lapse left on the GPU. */
static void test_arming_does_not_lapse_when_a_call_is_due(void **state)
{
    (void)state;
    for (uint64_t gap_ns = 100 * US; gap_ns <= 3200 * US; gap_ns *= 2) {
        for (uint64_t more_ns = 0; more_ns <= 130 * US; more_ns += 10 * US) {
            struct arming arming = {.gap_ns = {gap_ns + more_ns, gap_ns}};
            for (int i = 0; i < 10; i++) {
                uint32_t lapses = 0;
                uint32_t armings = 0;
                call_and_wait(&arming, gap_ns + more_ns, &lapses, &armings);
                assert_int_equal(lapses, 0);
                assert_int_equal(armings, 1);
            }
        }
    }
}

/* Calls of two kinds that take turns and wait for nearly as long are armed once each. */
static void test_arming_is_for_both_of_two_waits_that_are_near_each_other(void **state)
{
    (void)state;
    for (uint64_t gap_ns = 200 * US; gap_ns <= 3200 * US; gap_ns *= 2) {
        for (uint64_t more_ns = 10 * US; more_ns < 120 * US; more_ns += 10 * US) {
            struct arming arming = {.gap_ns = {gap_ns, gap_ns + more_ns}};
            uint32_t lapses = 0;
            uint32_t armings = 0;
            for (uint32_t i = 1; i <= 20; i++) {
                call_and_wait(&arming, i % 2 ? gap_ns : gap_ns + more_ns, &lapses, &armings);
                assert_int_equal(lapses, 0);
                assert_int_equal(armings, i);
            }
        }
    }
}

/* How many calls are not armed before the next one is. */
static uint32_t skipped(struct arming *arming)
{
    uint32_t nr = 0;
    while (!arming_admit(arming)) {
        nr++;
    }
    return nr;
}

static void test_arming_lapses_make_it_rarer(void **state)
{
    struct arming arming = {0};
    uint32_t last = 0;
    (void)state;
    assert_int_equal(skipped(&arming), 0);
    arming_lapsed(&arming);
    assert_int_equal(skipped(&arming), 0);
    arming_lapsed(&arming);
    assert_int_equal(skipped(&arming), 0);
    for (int i = 0; i < 6; i++) {
        arming_lapsed(&arming);
        uint32_t now = skipped(&arming);
        assert_true(now > last);
        last = now;
    }
    for (int i = 0; i < 100; i++) {
        arming_lapsed(&arming);
        assert_int_equal(skipped(&arming), last);
    }
    assert_true(last <= 64);
}

static void test_arming_one_that_ran_makes_up_for_all(void **state)
{
    struct arming arming = {0};
    (void)state;
    for (int i = 0; i < 5; i++) {
        arming_lapsed(&arming);
        skipped(&arming);
    }
    arming_ran(&arming);
    for (int i = 0; i < 2; i++) {
        arming_lapsed(&arming);
        assert_int_equal(skipped(&arming), 0);
    }
    arming_lapsed(&arming);
    assert_true(skipped(&arming) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arming_plan_is_around_the_last_wait),
        cmocka_unit_test(test_arming_without_a_wait_before_arms_at_once),
        cmocka_unit_test(test_arming_window_grows_with_the_wait),
        cmocka_unit_test(test_arming_looks_before_it_arms),
        cmocka_unit_test(test_arming_pauses_grow_and_end_at_the_plan),
        cmocka_unit_test(test_arming_spins_for_a_bounded_time),
        cmocka_unit_test(test_arming_expects_the_last_two_kinds_of_wait),
        cmocka_unit_test(test_arming_steady_waits_are_armed_once),
        cmocka_unit_test(test_arming_does_not_lapse_when_a_call_is_due),
        cmocka_unit_test(test_arming_is_for_both_of_two_waits_that_are_near_each_other),
        cmocka_unit_test(test_arming_lapses_make_it_rarer),
        cmocka_unit_test(test_arming_one_that_ran_makes_up_for_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
