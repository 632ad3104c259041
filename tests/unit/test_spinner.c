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
#define TICK_NS UINT64_C(4000000)
#define CROWDED_NS UINT64_C(200000000)
#define ALERT_NS UINT64_C(2000000000)
#define APART_NS UINT64_C(10000000)

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

/* ------------------------------------------------------------------------------------- beside who does not sleep */

/* Others go first once, and run for so long. */
static void yield_for(struct spinner *spinner, uint64_t ns)
{
    yield_takes_ns = ns;
    now_ns += APART_NS;
    spin_share(spinner, now_ns);
}

static void test_crowded_by_who_does_not_sleep(void **state)
{
    struct spinner spinner = {0};
    (void)state;
    assert_false(spin_crowded(&spinner, now_ns));
    yield_for(&spinner, TICK_NS);
    assert_false(spin_crowded(&spinner, now_ns)); /* may be chance */
    yield_for(&spinner, TICK_NS);
    assert_true(spin_crowded(&spinner, now_ns));
    assert_true(spin_crowded(&spinner, now_ns + CROWDED_NS - 1));
    assert_false(spin_crowded(&spinner, now_ns + CROWDED_NS));
}

/* From which time it is not crowded any more. */
static uint64_t crowded_for(const struct spinner *spinner)
{
    uint64_t ns = 0;
    while (spin_crowded(spinner, now_ns + ns)) {
        ns += CROWDED_NS;
    }
    return ns;
}

static void test_crowded_is_asked_about_ever_more_rarely(void **state)
{
    static const unsigned times[] = {1, 2, 4, 8, 8, 8};
    struct spinner spinner = {0};
    (void)state;
    yield_for(&spinner, TICK_NS);
    for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
        yield_for(&spinner, TICK_NS);
        assert_int_equal(crowded_for(&spinner), times[i] * CROWDED_NS);
        now_ns += times[i] * CROWDED_NS;
    }
    now_ns += ALERT_NS; /* and from the beginning, when that was long ago */
    yield_for(&spinner, TICK_NS);
    assert_int_equal(crowded_for(&spinner), 0);
    yield_for(&spinner, TICK_NS);
    assert_int_equal(crowded_for(&spinner), CROWDED_NS);
}

static void test_crowded_is_seen_in_a_pause_too(void **state)
{
    struct spinner spinner = {0};
    (void)state;
    yield_takes_ns = TICK_NS;
    look(&spinner, 3 * TICK_NS);
    assert_false(spin_crowded(&spinner, now_ns)); /* all in one burst */
    look(&spinner, 2 * TICK_NS);
    assert_true(spin_crowded(&spinner, now_ns));
}

static void test_not_crowded_by_those_who_sleep(void **state)
{
    struct spinner spinner = {0};
    (void)state;
    for (int i = 0; i < 100; i++) {
        yield_for(&spinner, 10 * (uint64_t)SOMEBODY_NS);
        assert_false(spin_crowded(&spinner, now_ns));
    }
}

/* As a client that works for long between many calls. */
static void test_not_crowded_by_long_ones_between_many_waits(void **state)
{
    struct spinner spinner = {0};
    (void)state;
    for (int i = 0; i < 10; i++) {
        yield_for(&spinner, TICK_NS);
        assert_false(spin_crowded(&spinner, now_ns));
        for (int wait = 0; wait < 18; wait++) {
            look(&spinner, 5 * TURN_NS);
        }
    }
    yield_for(&spinner, TICK_NS);
    for (int turn = 0; turn < 18; turn++) {
        spin_count(&spinner);
    }
    yield_for(&spinner, TICK_NS);
    assert_false(spin_crowded(&spinner, now_ns));
    for (int wait = 0; wait < 8; wait++) {
        look(&spinner, 5 * TURN_NS);
    }
    yield_for(&spinner, TICK_NS);
    assert_true(spin_crowded(&spinner, now_ns));
}

static void test_not_crowded_by_who_comes_and_goes(void **state)
{
    struct spinner spinner = {0};
    (void)state;
    for (int i = 0; i < 10; i++) {
        yield_for(&spinner, TICK_NS);
        assert_false(spin_crowded(&spinner, now_ns));
        now_ns += ALERT_NS;
    }
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
        cmocka_unit_test_setup(test_crowded_by_who_does_not_sleep, begin),
        cmocka_unit_test_setup(test_crowded_is_asked_about_ever_more_rarely, begin),
        cmocka_unit_test_setup(test_crowded_is_seen_in_a_pause_too, begin),
        cmocka_unit_test_setup(test_not_crowded_by_those_who_sleep, begin),
        cmocka_unit_test_setup(test_not_crowded_by_long_ones_between_many_waits, begin),
        cmocka_unit_test_setup(test_not_crowded_by_who_comes_and_goes, begin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
