/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of rings that the device has before their turn (device.h, `arm`), over a device made of paper that takes them,
 * and lets them lapse when the test says so: how they end. The test plays the client, the loop, and the clock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <unistd.h>

#include "arm_scene.h"
#include "paper_device.h"

/* ------------------------------------------------------------------------------------------ runs, lapses */

static void test_engine_arm_runs_when_its_word_comes(void **state)
{
    (void)state;
    paper.permits = 2;
    send_gated(1, 5, 0);
    TURN_UNTIL(paper.armed == 1);
    assert_in_range(paper.wait_ns, 1, 200 * US);
    say_ready(4);
    settle();
    assert_int_equal(mlacat_ring_completed(daemon_page), 0);
    say_ready(5);
    assert_int_equal(wait_for(1), MLACAT_OK);
    assert_int_equal(mlacat_ring_fence(daemon_page), 1);
    send_gated(2, 6, 0);
    TURN_UNTIL(paper.armed == 2);
    say_ready(6);
    assert_int_equal(wait_for(2), MLACAT_OK);
    assert_int_equal(paper.launched, 0);
    assert_gates(2, 2, 0);
}

static void test_engine_arm_lapsed_runs_after_its_word_in_order_and_once(void **state)
{
    (void)state;
    paper.permits = 100;
    arm_one_before(2);
    lapse();
    assert_int_equal(paper.launched, 0);
    assert_int_equal(mlacat_ring_completed(daemon_page), 0);
    say_ready(1);
    for (uint64_t id = 1; id <= 3; id++) {
        assert_int_equal(wait_for(id), MLACAT_OK);
    }
    assert_int_equal(mlacat_ring_fence(daemon_page), 3);
    stream_close(stream); /* nothing is left of them */
    await_gone();
    assert_int_equal(paper.launched, 3);
    assert_int_equal(paper.armed, 1);
    assert_int_equal(outcomes(MLACAT_OK), 3);
    assert_gates(1, 0, 1); /* those behind it wait for no word */
}

/* The paper fails the test if anything is submitted behind an armed call. */
static void test_engine_arm_calls_behind_it_wait(void **state)
{
    (void)state;
    arm_one_before(3);
    settle();
    say_ready(1);
    settle();
    assert_int_equal(paper.launched, 0);
    paper.permits = 1;
    assert_int_equal(wait_for(1), MLACAT_OK);
    TURN_UNTIL(paper.launched == 3);
    paper.permits = 3;
    for (uint64_t id = 2; id <= 4; id++) {
        assert_int_equal(wait_for(id), MLACAT_OK);
    }
}

/* It would be armed behind them; the paper asserts that it is not. */
static void test_engine_arm_waits_for_those_before_it(void **state)
{
    (void)state;
    send_calls(1, 1, 0);
    send_gated(2, 1, 0);
    TURN_UNTIL(paper.launched == 1);
    settle();
    assert_int_equal(paper.offered, 0);
    paper.permits = 1;
    assert_int_equal(wait_for(1), MLACAT_OK);
    TURN_UNTIL(paper.armed == 1);
    say_ready(1);
    paper.permits = 1;
    assert_int_equal(wait_for(2), MLACAT_OK);
}

static void test_engine_arm_of_a_failed_call_is_not_tried(void **state)
{
    (void)state;
    write_entry(1, MLACAT_RING_SUBMIT_READY | MLACAT_RING_SUBMIT_DONE)->op = 99;
    submit();
    TURN_UNTIL(paper.signals == 1);
    paper.permits = 1;
    assert_int_equal(wait_for(1), MLACAT_UNIMPLEMENTED);
    assert_int_equal(paper.offered, 0);
}

/* ------------------------------------------------------------------------------------------ ends of all kinds */

static void test_engine_arm_close_waits_for_it(void **state)
{
    (void)state;
    arm_one();
    stream_close(stream);
    settle();
    assert_int_equal(gone, 0);
    say_ready(1);
    paper.permits = 1;
    await_gone();
    assert_int_equal(outcomes(MLACAT_OK), 1);
}

static void test_engine_arm_close_waits_for_a_lapsed_one(void **state)
{
    (void)state;
    arm_one();
    stream_close(stream);
    lapse();
    assert_int_equal(gone, 0);
    say_ready(1);
    TURN_UNTIL(paper.launched == 1);
    paper.permits = 1;
    await_gone();
    assert_int_equal(outcomes(MLACAT_OK), 1);
}

/* Its client is gone: what the device has ends there, one way or the other. */
static void test_engine_arm_dropped_ends_when_it_lapses(void **state)
{
    (void)state;
    arm_one_before(2);
    stream_drop_ring(stream);
    stream_close(stream);
    settle();
    assert_int_equal(gone, 0);
    paper.lapse_nr = 1;
    await_gone();
    assert_int_equal(paper.launched, 0);
    assert_int_equal(paper.armed, 1);
    assert_int_equal(outcomes(MLACAT_ABORTED), 3);
}

static void test_engine_arm_dropped_ends_when_it_has_run(void **state)
{
    (void)state;
    arm_one();
    stream_drop_ring(stream);
    stream_close(stream);
    say_ready(1);
    settle();
    assert_int_equal(gone, 0);
    paper.permits = 1;
    await_gone();
    assert_int_equal(outcomes(MLACAT_OK), 1);
    assert_int_equal(outcomes(MLACAT_ABORTED), 0);
}

static void test_engine_arm_lost_device_fails_it_and_what_follows(void **state)
{
    (void)state;
    arm_one();
    send_gated(2, 2, 0);
    settle();
    paper.lost = 1;
    assert_int_equal(wait_for(1), MLACAT_INTERNAL);
    assert_int_equal(wait_for(2), MLACAT_INTERNAL);
    TURN_UNTIL(broken_nr == 1);
    assert_int_equal(broken.scope, MLACAT_SCOPE_DEVICE);
    send_gated(3, 3, 0);
    assert_int_equal(wait_for(3), MLACAT_INTERNAL);
    assert_int_equal(paper.armed, 1);
}

static void test_engine_arm_fails_on_the_device(void **state)
{
    (void)state;
    paper.fail_nr = 1;
    paper.permits = 2;
    send_gated(1, 1, MLACAT_RING_SUBMIT_DONE);
    TURN_UNTIL(paper.armed == 1);
    say_ready(1);
    assert_int_equal(wait_for(1), MLACAT_INTERNAL);
    assert_int_equal(client->done, 1);
    assert_int_equal(mlacat_ring_fence(daemon_page), 0);
    assert_int_equal(mlacat_ring_failed(daemon_page), 1);
    send_gated(2, 2, MLACAT_RING_SUBMIT_DONE);
    TURN_UNTIL(paper.armed == 2);
    say_ready(2);
    assert_int_equal(wait_for(2), MLACAT_OK);
    assert_int_equal(client->done, 2);
    assert_int_equal(mlacat_ring_fence(daemon_page), 2);
    assert_int_equal(broken_nr, 0);
    assert_gates(1, 1, 0);
}

/* Nobody knows yet whether it can be cancelled: who is told that it will finish must not wait for ever. */
static void test_engine_arm_cancel_is_answered_when_it_lapsed(void **state)
{
    (void)state;
    arm_one();
    send_cancel(101, 1);
    settle();
    assert_int_equal(mlacat_ring_completed(daemon_page), 0);
    paper.lapse_nr = 1;
    assert_int_equal(wait_for(1), MLACAT_CANCELLED);
    assert_int_equal(wait_for(101), MLACAT_OK);
    assert_int_equal(paper.launched, 0);
    assert_int_equal(mlacat_ring_failed(daemon_page), 1);
}

static void test_engine_arm_cancel_is_answered_when_it_has_run(void **state)
{
    (void)state;
    arm_one();
    send_cancel(101, 1);
    say_ready(1);
    paper.permits = 1;
    assert_int_equal(wait_for(1), MLACAT_OK);
    assert_int_equal(wait_for(101), MLACAT_NOT_FOUND);
}

static void test_engine_arm_lapsed_after_its_deadline_ends(void **state)
{
    (void)state;
    struct mlacat_ring_submission *entry = write_entry(1, MLACAT_RING_SUBMIT_READY);
    entry->ready = 1;
    entry->deadline_us = 10;
    submit();
    TURN_UNTIL(paper.armed == 1);
    pass(15 * US);
    assert_int_equal(mlacat_ring_completed(daemon_page), 0);
    paper.lapse_nr = 1;
    assert_int_equal(wait_for(1), MLACAT_DEADLINE_EXCEEDED);
    assert_int_equal(paper.launched, 0);
}

static void test_engine_arm_lapsed_keeps_its_deadline(void **state)
{
    (void)state;
    struct mlacat_ring_submission *entry = write_entry(1, MLACAT_RING_SUBMIT_READY);
    entry->ready = 1;
    entry->deadline_us = 10000;
    write_entry(2, 0)->deadline_us = 10; /* while the first is armed, the deadlines are looked through */
    submit();
    TURN_UNTIL(paper.armed == 1);
    pass(15 * US);
    assert_int_equal(wait_for(2), MLACAT_DEADLINE_EXCEEDED);
    lapse();
    assert_int_equal(mlacat_ring_completed(daemon_page), 1);
    frozen_ns += 10 * MS;
    assert_int_equal(wait_for(1), MLACAT_DEADLINE_EXCEEDED);
    assert_int_equal(paper.launched, 0);
}

/* The word counts no more when it comes: nothing is launched so late. */
static void test_engine_arm_lapsed_after_its_deadline_ends_though_its_word_came(void **state)
{
    (void)state;
    struct mlacat_ring_submission *entry = write_entry(1, MLACAT_RING_SUBMIT_READY);
    entry->ready = 1;
    entry->deadline_us = 10;
    submit();
    TURN_UNTIL(paper.armed == 1);
    pass(15 * US);
    say_ready(1);
    settle();
    paper.lapse_nr = 1;
    assert_int_equal(wait_for(1), MLACAT_DEADLINE_EXCEEDED);
    assert_int_equal(paper.launched, 0);
}

/* Call 2, armed, which would be armed again if it lapsed now. */
static void arm_one_of_two_waits(void)
{
    paper.permits = 1;
    arm_one();
    pass(500 * US);
    say_ready(1);
    assert_int_equal(wait_for(1), MLACAT_OK);
    send_gated(2, 2, 0);
    TURN_UNTIL(paper.armed == 2);
    pass(500 * US);
}

static void test_engine_arm_lapsed_is_cancelled_before_it_is_armed_again(void **state)
{
    (void)state;
    arm_one_of_two_waits();
    send_cancel(101, 2);
    settle();
    paper.lapse_nr = 1;
    assert_int_equal(wait_for(2), MLACAT_CANCELLED);
    assert_int_equal(wait_for(101), MLACAT_OK);
    assert_int_equal(paper.armed, 2);
}

static void test_engine_arm_lapsed_is_dropped_before_it_is_armed_again(void **state)
{
    (void)state;
    arm_one_of_two_waits();
    stream_drop_ring(stream);
    stream_close(stream);
    settle();
    paper.lapse_nr = 1;
    await_gone();
    assert_int_equal(paper.armed, 2);
    assert_int_equal(outcomes(MLACAT_ABORTED), 1);
}

static void test_engine_arm_drains(void **state)
{
    (void)state;
    arm_one();
    engine_drain(&engine);
    settle();
    assert_int_equal(engine_ring_calls(&engine), 1);
    say_ready(1);
    paper.permits = 1;
    assert_int_equal(wait_for(1), MLACAT_OK);
    TURN_UNTIL(engine_ring_calls(&engine) == 0);
    send_gated(2, 2, 0);
    assert_int_equal(wait_for(2), MLACAT_UNAVAILABLE);
}

/* ------------------------------------------------------------------------------------------ main */

#define ARM_TEST(test) cmocka_unit_test_setup_teardown(test, arm_setup, arm_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ARM_TEST(test_engine_arm_runs_when_its_word_comes),
        ARM_TEST(test_engine_arm_lapsed_runs_after_its_word_in_order_and_once),
        ARM_TEST(test_engine_arm_calls_behind_it_wait),
        ARM_TEST(test_engine_arm_waits_for_those_before_it),
        ARM_TEST(test_engine_arm_of_a_failed_call_is_not_tried),
        ARM_TEST(test_engine_arm_close_waits_for_it),
        ARM_TEST(test_engine_arm_close_waits_for_a_lapsed_one),
        ARM_TEST(test_engine_arm_dropped_ends_when_it_lapses),
        ARM_TEST(test_engine_arm_dropped_ends_when_it_has_run),
        ARM_TEST(test_engine_arm_lost_device_fails_it_and_what_follows),
        ARM_TEST(test_engine_arm_fails_on_the_device),
        ARM_TEST(test_engine_arm_cancel_is_answered_when_it_lapsed),
        ARM_TEST(test_engine_arm_cancel_is_answered_when_it_has_run),
        ARM_TEST(test_engine_arm_lapsed_after_its_deadline_ends),
        ARM_TEST(test_engine_arm_lapsed_keeps_its_deadline),
        ARM_TEST(test_engine_arm_lapsed_after_its_deadline_ends_though_its_word_came),
        ARM_TEST(test_engine_arm_lapsed_is_cancelled_before_it_is_armed_again),
        ARM_TEST(test_engine_arm_lapsed_is_dropped_before_it_is_armed_again),
        ARM_TEST(test_engine_arm_drains),
    };
    alarm(50);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
