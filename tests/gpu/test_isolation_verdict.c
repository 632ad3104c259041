/* SPDX-License-Identifier: Apache-2.0 */
/* What of a long call counts as the machine's, and which calls that excuses. Times are in ms here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "isolation_verdict.h"

#define MS UINT64_C(1000000)
#define CPUS 16

static struct isolation_lates unbound;
static struct isolation_lates bound;
static const struct isolation_lates *const all[] = {&unbound, &bound};

static int reset(void **state)
{
    (void)state;
    unbound = (struct isolation_lates){.cpus = CPUS};
    bound = (struct isolation_lates){.cpus = 1};
    return 0;
}

static struct isolation_late late_at(uint64_t due, uint64_t ran, uint64_t waited, uint64_t used)
{
    return (struct isolation_late){.due_ns = due * MS,
                                   .ran_ns = ran * MS,
                                   .waited_ns = waited * MS,
                                   .use = {.daemon_ns = used * MS / 2, .test_ns = used * MS / 2},
                                   .use_known = true};
}

static void note(struct isolation_lates *lates, uint64_t due, uint64_t ran, uint64_t waited, uint64_t used)
{
    struct isolation_late late = late_at(due, ran, waited, used);
    isolation_keep_late(lates, &late);
}

static struct isolation_call call_at(uint64_t begin, uint64_t end)
{
    return (struct isolation_call){.begin_ns = begin * MS, .end_ns = end * MS};
}

static struct isolation_held held(uint64_t begin, uint64_t end)
{
    return isolation_held_up(all, 2, begin * MS, end * MS);
}

static struct isolation_verdict judge(const struct isolation_call *call, int nr, uint64_t calls)
{
    struct isolation_longest longest = {0};
    uint64_t over = 0;
    for (int i = 0; i < nr; i++) {
        isolation_keep_call(&longest, &call[i]);
        over += call[i].end_ns - call[i].begin_ns > ISOLATION_LONGEST_NS;
    }
    return isolation_judge(&longest, calls, over, all, 2);
}

/* ---------------------------------------------------------------------------------------------- whose a lateness is */

static void test_ours_a_wait_beside_free_cpus_is_the_machines(void **state)
{
    struct isolation_late late = late_at(10, 15, 5, 0);
    (void)state;
    assert_int_equal(isolation_ours_ns(&late, CPUS), 0);
}

static void test_ours_a_wait_while_ours_fill_the_cpus_is_ours(void **state)
{
    struct isolation_late late = late_at(10, 15, 5, 5 * CPUS);
    (void)state;
    assert_int_equal(isolation_ours_ns(&late, CPUS), 5 * MS);
    late = late_at(10, 15, 5, 7 * CPUS); /* the use is of a longer time */
    assert_int_equal(isolation_ours_ns(&late, CPUS), 5 * MS);
}

static void test_ours_is_as_long_as_the_cpu_time_could_fill_all(void **state)
{
    struct isolation_late late = late_at(10, 15, 5, 2 * CPUS);
    (void)state;
    assert_int_equal(isolation_ours_ns(&late, CPUS), 2 * MS);
}

static void test_ours_a_timer_that_comes_late_is_the_machines(void **state)
{
    struct isolation_late late = late_at(10, 15, 1, 5 * CPUS);
    (void)state;
    assert_int_equal(isolation_ours_ns(&late, CPUS), MS);
}

static void test_ours_a_bound_thread_waits_for_one_cpu(void **state)
{
    struct isolation_late late = late_at(10, 15, 5, 6);
    (void)state;
    assert_int_equal(isolation_ours_ns(&late, 1), 5 * MS);
}

static void test_ours_is_not_what_others_ran_on_the_cpu(void **state)
{
    struct isolation_late late = late_at(10, 15, 5, 6);
    (void)state;
    late.holders.others_ns = 4 * MS;
    assert_int_equal(isolation_ours_ns(&late, 1), MS);
    late.holders.others_ns = 6 * MS; /* as said by another clock */
    assert_int_equal(isolation_ours_ns(&late, 1), 0);
    late.holders.others_ns = 4 * MS;
    late.throttled = true;
    assert_int_equal(isolation_ours_ns(&late, 1), 5 * MS);
}

static void test_ours_is_all_that_can_not_be_read(void **state)
{
    struct isolation_late late = late_at(10, 15, 5, 0);
    (void)state;
    late.use_known = false;
    assert_int_equal(isolation_ours_ns(&late, CPUS), 5 * MS);
}

static void test_ours_is_all_when_the_quota_was_used_up(void **state)
{
    struct isolation_late late = late_at(10, 15, 0, 0);
    (void)state;
    late.throttled = true;
    assert_int_equal(isolation_ours_ns(&late, CPUS), 5 * MS);
}

/* ------------------------------------------------------------------------------------------- lateness within a span */

static void test_held_up_counts_what_lies_in_the_span(void **state)
{
    (void)state;
    note(&unbound, 10, 15, 5, 0);
    assert_int_equal(held(0, 10).late_ns, 0);
    assert_null(held(0, 10).worst);
    assert_int_equal(held(15, 20).late_ns, 0);
    assert_int_equal(held(8, 12).late_ns, 2 * MS);
    assert_int_equal(held(12, 20).late_ns, 3 * MS);
    assert_int_equal(held(11, 14).machine_ns, 3 * MS);
    assert_int_equal(held(0, 20).machine_ns, 5 * MS);
    assert_ptr_equal(held(0, 20).worst, &unbound.late[0]);
}

static void test_held_up_takes_off_all_that_may_be_ours(void **state)
{
    (void)state;
    note(&unbound, 10, 15, 5, 2 * CPUS);
    assert_int_equal(held(11, 15).machine_ns, 2 * MS); /* ours may have been in the span */
    assert_int_equal(held(14, 15).machine_ns, 0);
}

static void test_held_up_adds_up_one_thread_and_not_two(void **state)
{
    (void)state;
    note(&unbound, 10, 12, 2, 0);
    note(&unbound, 13, 14, 1, 0);
    note(&bound, 10, 12, 0, 100);
    assert_int_equal(held(10, 15).machine_ns, 3 * MS);
    assert_int_equal(held(10, 15).late_ns, 3 * MS);
}

static void test_held_up_shows_lateness_that_is_ours(void **state)
{
    (void)state;
    note(&unbound, 10, 12, 0, 0);
    note(&bound, 10, 15, 5, 100);
    assert_int_equal(held(10, 15).late_ns, 5 * MS);
    assert_int_equal(held(10, 15).machine_ns, 2 * MS);
    assert_int_equal(held(10, 15).cpus, CPUS);
}

/* ------------------------------------------------------------------------------------------------------ the verdict */

static void test_judge_short_calls_pass(void **state)
{
    const struct isolation_call call[] = {call_at(10, 13), call_at(20, 21)};
    (void)state;
    struct isolation_verdict verdict = judge(call, 2, 1000);
    assert_true(verdict.ok);
    assert_int_equal(verdict.over, 0);
}

static void test_judge_a_long_call_fails(void **state)
{
    const struct isolation_call call[] = {call_at(10, 14)};
    (void)state;
    note(&unbound, 20, 30, 0, 0); /* at another time */
    assert_false(judge(call, 1, 1000000).ok);
}

static void test_judge_excuses_what_the_machine_made(void **state)
{
    const struct isolation_call call[] = {call_at(10, 15)};
    (void)state;
    note(&unbound, 11, 14, 3, 0);
    struct isolation_verdict verdict = judge(call, 1, 1000000);
    assert_true(verdict.ok);
    assert_int_equal(verdict.over, 1);
    assert_int_equal(verdict.excused, 1);
}

static void test_judge_does_not_excuse_the_rest(void **state)
{
    const struct isolation_call call[] = {call_at(10, 15)};
    (void)state;
    note(&unbound, 11, 12, 1, 0);
    assert_false(judge(call, 1, 1000000).ok);
}

static void test_judge_does_not_excuse_a_crowd_of_ours(void **state)
{
    const struct isolation_call call[] = {call_at(10, 15)};
    (void)state;
    note(&unbound, 10, 15, 5, 5 * CPUS);
    assert_false(judge(call, 1, 1000000).ok);
}

static void test_judge_needs_each_long_call_excused(void **state)
{
    const struct isolation_call call[] = {call_at(10, 15), call_at(20, 24)};
    (void)state;
    note(&unbound, 11, 14, 3, 0);
    struct isolation_verdict verdict = judge(call, 2, 1000000);
    assert_false(verdict.ok);
    assert_int_equal(verdict.excused, 1);
}

static void test_judge_allows_one_in_a_hundred_thousand(void **state)
{
    struct isolation_call call[ISOLATION_KEPT + 1];
    (void)state;
    for (uint64_t i = 0; i <= ISOLATION_KEPT; i++) {
        call[i] = call_at(10 * i, 10 * i + 4);
        note(&unbound, 10 * i, 10 * i + 4, 0, 0);
    }
    assert_true(judge(call, 1, 10).ok);
    assert_false(judge(call, 2, 199999).ok);
    assert_true(judge(call, 2, 200000).ok);
    assert_true(judge(call, ISOLATION_KEPT, UINT64_MAX).ok);
    assert_false(judge(call, ISOLATION_KEPT + 1, UINT64_MAX).ok);
}

static void test_noisy_is_a_machine_that_others_take(void **state)
{
    (void)state;
    assert_false(isolation_is_noisy(0, 1000 * MS, CPUS));
    assert_false(isolation_is_noisy(1000 * MS * CPUS / ISOLATION_QUIET_SHARE - 1, 1000 * MS, CPUS));
    assert_true(isolation_is_noisy(1000 * MS * CPUS / ISOLATION_QUIET_SHARE, 1000 * MS, CPUS));
}

/* ----------------------------------------------------------------------------------------------------- what is kept */

static void test_keep_call_keeps_the_longest(void **state)
{
    struct isolation_longest longest = {0};
    (void)state;
    for (uint64_t i = 0; i < 3 * ISOLATION_KEPT; i++) {
        /* Each length once: 7 does not divide their number. */
        struct isolation_call call = call_at(0, i * 7 % (3 * ISOLATION_KEPT));
        isolation_keep_call(&longest, &call);
    }
    assert_int_equal(longest.nr, ISOLATION_KEPT);
    for (uint64_t i = 0; i < ISOLATION_KEPT; i++) {
        assert_int_equal(longest.call[i].end_ns, (3 * ISOLATION_KEPT - 1 - i) * MS);
    }
}

static void test_keep_late_counts_what_has_no_room(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < ISOLATION_LATES_MAX + 3; i++) {
        note(&unbound, 10 * i, 10 * i + 1, 0, 0);
    }
    assert_int_equal(unbound.nr, ISOLATION_LATES_MAX);
    assert_int_equal(unbound.lost, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_ours_a_wait_beside_free_cpus_is_the_machines, reset),
        cmocka_unit_test_setup(test_ours_a_wait_while_ours_fill_the_cpus_is_ours, reset),
        cmocka_unit_test_setup(test_ours_is_as_long_as_the_cpu_time_could_fill_all, reset),
        cmocka_unit_test_setup(test_ours_a_timer_that_comes_late_is_the_machines, reset),
        cmocka_unit_test_setup(test_ours_a_bound_thread_waits_for_one_cpu, reset),
        cmocka_unit_test_setup(test_ours_is_not_what_others_ran_on_the_cpu, reset),
        cmocka_unit_test_setup(test_ours_is_all_that_can_not_be_read, reset),
        cmocka_unit_test_setup(test_ours_is_all_when_the_quota_was_used_up, reset),
        cmocka_unit_test_setup(test_held_up_counts_what_lies_in_the_span, reset),
        cmocka_unit_test_setup(test_held_up_takes_off_all_that_may_be_ours, reset),
        cmocka_unit_test_setup(test_held_up_adds_up_one_thread_and_not_two, reset),
        cmocka_unit_test_setup(test_held_up_shows_lateness_that_is_ours, reset),
        cmocka_unit_test_setup(test_judge_short_calls_pass, reset),
        cmocka_unit_test_setup(test_judge_a_long_call_fails, reset),
        cmocka_unit_test_setup(test_judge_excuses_what_the_machine_made, reset),
        cmocka_unit_test_setup(test_judge_does_not_excuse_the_rest, reset),
        cmocka_unit_test_setup(test_judge_does_not_excuse_a_crowd_of_ours, reset),
        cmocka_unit_test_setup(test_judge_needs_each_long_call_excused, reset),
        cmocka_unit_test_setup(test_judge_allows_one_in_a_hundred_thousand, reset),
        cmocka_unit_test_setup(test_noisy_is_a_machine_that_others_take, reset),
        cmocka_unit_test_setup(test_keep_call_keeps_the_longest, reset),
        cmocka_unit_test_setup(test_keep_late_counts_what_has_no_room, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
