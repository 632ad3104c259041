/* SPDX-License-Identifier: Apache-2.0 */
/* When a thread that looks for work lets others go first. The time here is the test's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>

#include "spinner.h"

#define ALONE_NS 2000
#define TURN_NS 100
#define NOBODY_NS 300
#define SOMEBODY_NS 50000

static uint64_t now_ns;
static uint64_t yield_takes_ns;
static unsigned yields;

uint64_t __wrap_clock_now_ns(void);
int __wrap_sched_yield(void);

uint64_t __wrap_clock_now_ns(void)
{
    return now_ns;
}

int __wrap_sched_yield(void)
{
    yields++;
    now_ns += yield_takes_ns;
    return 0;
}

static int begin(void **state)
{
    (void)state;
    now_ns = 1000000000;
    yield_takes_ns = NOBODY_NS;
    yields = 0;
    return 0;
}

/* Looks for `ns` in vain; returns how often others could go first. */
static unsigned look(struct spinner *spinner, uint64_t ns)
{
    uint64_t begin_ns = now_ns;
    unsigned before = yields;
    while (now_ns - begin_ns < ns) {
        spin_pause(spinner, now_ns - begin_ns);
        now_ns += TURN_NS;
    }
    return yields - before;
}

static void test_pause_is_short_at_first(void **state)
{
    struct spinner spinner = {0};
    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(look(&spinner, ALONE_NS), 0);
    }
    assert_int_equal(look(&spinner, ALONE_NS + TURN_NS), 1);
    assert_int_equal(look(&spinner, ALONE_NS), 0);
}

static void test_pause_yields_ever_more_rarely_while_nobody_wants_to_run(void **state)
{
    struct spinner spinner = {0};
    (void)state;
    unsigned first = look(&spinner, 200000);
    unsigned later = look(&spinner, 200000);
    assert_in_range(later, 200000 / (16000 + NOBODY_NS + TURN_NS), 200000 / 16000 + 1);
    assert_true(first > later);
}

static void test_pause_yields_at_every_turn_while_somebody_does(void **state)
{
    struct spinner spinner = {0};
    (void)state;
    look(&spinner, 200000);
    yield_takes_ns = SOMEBODY_NS;
    assert_in_range(look(&spinner, 20 * SOMEBODY_NS), 18, 20);
}

/* `turns` turns, all with an event. */
static unsigned work(struct spinner *spinner, unsigned turns)
{
    unsigned before = yields;
    for (unsigned i = 0; i < turns; i++) {
        now_ns += TURN_NS;
        spin_share(spinner, now_ns);
        spin_pause(spinner, 0);
    }
    return yields - before;
}

static void test_a_thread_that_always_has_events_lets_others_go_first(void **state)
{
    struct spinner spinner = {0};
    (void)state;
    yield_takes_ns = 0;
    assert_int_equal(work(&spinner, 1), 1);
    assert_int_equal(work(&spinner, SPIN_SHARE_NS / TURN_NS - 1), 0);
    assert_int_equal(work(&spinner, 1), 1);
    assert_int_equal(work(&spinner, 10 * SPIN_SHARE_NS / TURN_NS), 10);
}

/* However long others ran then, it has its time. */
static void test_a_share_counts_from_its_end(void **state)
{
    struct spinner spinner = {0};
    (void)state;
    yield_takes_ns = 2 * (uint64_t)SPIN_SHARE_NS;
    assert_int_equal(work(&spinner, 1), 1);
    assert_int_equal(work(&spinner, SPIN_SHARE_NS / TURN_NS - 1), 0);
    assert_int_equal(work(&spinner, 1), 1);
}

static void test_a_yield_in_a_pause_is_a_share_too(void **state)
{
    struct spinner spinner = {0};
    (void)state;
    yield_takes_ns = 0;
    assert_int_equal(work(&spinner, 1), 1);
    work(&spinner, SPIN_SHARE_NS / TURN_NS - 100);
    assert_true(look(&spinner, ALONE_NS + TURN_NS) > 0);
    assert_int_equal(work(&spinner, SPIN_SHARE_NS / TURN_NS - 2), 0);
    assert_int_equal(work(&spinner, 1), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_pause_is_short_at_first, begin),
        cmocka_unit_test_setup(test_pause_yields_ever_more_rarely_while_nobody_wants_to_run, begin),
        cmocka_unit_test_setup(test_pause_yields_at_every_turn_while_somebody_does, begin),
        cmocka_unit_test_setup(test_a_thread_that_always_has_events_lets_others_go_first, begin),
        cmocka_unit_test_setup(test_a_share_counts_from_its_end, begin),
        cmocka_unit_test_setup(test_a_yield_in_a_pause_is_a_share_too, begin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
