/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of rings that the device has before their turn: when they are armed and when not, what times they have, and
 * what they cost the worker. The test plays the client, the loop, and mostly the clock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "arm_scene.h"
#include "arming.h"
#include "clock.h"
#include "paper_device.h"
#include "require.h"

#define LAPSE_ALWAYS (1 << 20)

/* ------------------------------------------------------------------------------------------ times */

/* The wait for the word is the queue's, as with a call that the worker gates. */
static void test_engine_arm_times_begin_with_the_word(void **state)
{
    (void)state;
    arm_one();
    pass(7 * US);
    say_ready(1);
    settle();
    pass(5 * US);
    paper.permits = 1;
    struct mlacat_ring_completion completion = wait_for_completion(1);
    assert_int_equal(completion.status, MLACAT_OK);
    assert_int_equal(completion.queue_ns, 7 * US);
    assert_int_equal(completion.device_ns, 5 * US);
    assert_in_range(histogram_quantile(&engine.workers[0].counters.ops[OP_CONCAT_MLA_ABSORB_Q].queue, 1), 7 * US,
                    8 * US);
}

static void test_engine_arm_times_of_one_that_was_quicker_than_the_worker(void **state)
{
    (void)state;
    arm_one();
    pass(500 * US);
    paper.quick = 1;
    paper.permits = 1;
    struct mlacat_ring_completion completion = wait_for_completion(1);
    assert_int_equal(completion.queue_ns, 500 * US);
    assert_int_equal(completion.device_ns, 0);
    paper.quick = 0;
    send_gated(2, 2, 0); /* expected not to wait, like the first, or for as long */
    TURN_UNTIL(paper.armed == 2);
    lapse();
    assert_int_equal(paper.armed, 2);
    pass(500 * US - FIRST_NS);
    TURN_UNTIL(paper.armed == 3);
}

static void test_engine_arm_times_of_a_lapsed_one(void **state)
{
    (void)state;
    arm_one();
    lapse();
    pass(300 * US);
    say_ready(1);
    TURN_UNTIL(paper.launched == 1);
    pass(5 * US);
    paper.permits = 1;
    struct mlacat_ring_completion completion = wait_for_completion(1);
    assert_int_equal(completion.queue_ns, FIRST_NS + 300 * US);
    assert_int_equal(completion.device_ns, 5 * US);
}

/* A first call that waits for 2 ms, so that the second one is expected to. */
static void wait_2_ms(void)
{
    paper.permits = 100;
    arm_one();
    lapse();
    pass(2 * MS - FIRST_NS);
    say_ready(1);
    assert_int_equal(wait_for(1), MLACAT_OK);
    send_gated(2, 2, 0);
    TURN_UNTIL(paper.armed == 2); /* in vain: calls before the first one did not wait */
    lapse();
    assert_int_equal(paper.armed, 2);
}

static void test_engine_arm_comes_when_the_last_wait_was_over(void **state)
{
    (void)state;
    wait_2_ms();
    pass(2 * MS - FIRST_NS - 200 * US);
    assert_int_equal(paper.armed, 2);
    pass(200 * US);
    TURN_UNTIL(paper.armed == 3);
    assert_in_range(paper.wait_ns, 20 * US, 100 * US);
    say_ready(2);
    assert_int_equal(wait_for(2), MLACAT_OK);
    assert_int_equal(paper.launched, 1);
}

static void test_engine_arm_is_too_late_after_that(void **state)
{
    (void)state;
    wait_2_ms();
    pass(2 * MS + 100 * US);
    assert_int_equal(paper.armed, 2);
    say_ready(2);
    assert_int_equal(wait_for(2), MLACAT_OK);
    assert_int_equal(paper.launched, 2);
}

/* An armed call teaches the next one too, and not with the time that it ran. */
static void test_engine_arm_expects_what_the_armed_one_waited(void **state)
{
    (void)state;
    arm_one();
    pass(500 * US);
    say_ready(1);
    settle();
    pass(700 * US);
    paper.permits = 100;
    assert_int_equal(wait_for(1), MLACAT_OK);
    send_gated(2, 2, 0);
    TURN_UNTIL(paper.armed == 2);
    lapse();
    assert_int_equal(paper.armed, 2);
    pass(500 * US - FIRST_NS);
    TURN_UNTIL(paper.armed == 3);
    say_ready(2);
    assert_int_equal(wait_for(2), MLACAT_OK);
}

/* ------------------------------------------------------------------------------------------ restraint */

static void test_engine_arm_is_rarer_after_lapses(void **state)
{
    (void)state;
    paper.permits = 100;
    for (uint64_t id = 1; id <= 40; id++) {
        int before = paper.armed;
        send_gated(id, id, 0);
        TURN_UNTIL(mlacat_ring_taken(daemon_page) == id);
        settle();
        while (paper.armed > before) {
            before = paper.armed;
            lapse();
        }
        say_ready(id);
        assert_int_equal(wait_for(id), MLACAT_OK);
    }
    assert_int_equal(paper.launched, 40);
    assert_in_range(paper.armed, 3, 9);
}

/* The next call, which has number `id` and is the `armed`th to be armed, in vain; its word comes after that. */
static void lapse_one(uint64_t id, int armed)
{
    send_gated(id, id, 0);
    TURN_UNTIL(paper.armed == armed);
    lapse();
    say_ready(id);
    assert_int_equal(wait_for(id), MLACAT_OK);
}

static void test_engine_arm_that_ran_makes_up_for_lapses(void **state)
{
    (void)state;
    paper.permits = 100;
    lapse_one(1, 1);
    lapse_one(2, 2);
    send_gated(3, 3, 0);
    TURN_UNTIL(paper.armed == 3);
    say_ready(3);
    assert_int_equal(wait_for(3), MLACAT_OK);
    lapse_one(4, 4);
    lapse_one(5, 5);
    send_gated(6, 6, 0); /* with four in vain in a row it would be left out */
    TURN_UNTIL(mlacat_ring_taken(daemon_page) == 6);
    settle();
    pass(10 * US); /* from before the one time it is expected at to after the other is more than a GPU may wait */
    TURN_UNTIL(paper.armed == 6);
    say_ready(6);
    assert_int_equal(wait_for(6), MLACAT_OK);
    assert_int_equal(paper.launched, 4);
}

/* A client that shows the worker the word and takes it back gets its call armed no more often. */
static void test_engine_arm_flickering_word_is_not_armed_again(void **state)
{
    (void)state;
    int before = 0;
    send_gated(1, 1, 0);
    TURN_UNTIL(paper.armed == 1);
    for (int i = 0; i < 20 && paper.armed > before; i++) {
        before = paper.armed;
        pass(60 * US);
        say_ready(1);
        settle();
        say_ready(0);
        paper.lapse_nr = 1;
        TURN_UNTIL(paper.lapse_nr == 0);
        settle();
    }
    assert_int_equal(paper.armed, 1);
    paper.permits = 1;
    say_ready(1);
    assert_int_equal(wait_for(1), MLACAT_OK);
}

static void wait_unarmed(void)
{
    paper.permits = 1;
    send_gated(1, 1, 0);
    TURN_UNTIL(mlacat_ring_taken(daemon_page) == 1);
    settle();
    assert_int_equal(paper.launched, 0);
    say_ready(1);
    assert_int_equal(wait_for(1), MLACAT_OK);
    assert_int_equal(paper.launched, 1);
    assert_int_equal(paper.armed, 0);
}

static void test_engine_arm_again_leaves_it_to_the_worker(void **state)
{
    (void)state;
    paper.takes_arms = 0;
    wait_unarmed();
    assert_true(paper.offered > 0);
}

static void test_engine_arm_may_be_missing(void **state)
{
    (void)state;
    wait_unarmed();
    assert_int_equal(paper.offered, 0);
}

/* A worker that has looked without a pause for an armed call sleeps when that was the last. */
static void test_engine_arm_worker_sleeps_after_it(void **state)
{
    (void)state;
    paper.permits = 1;
    arm_one();
    say_ready(1);
    assert_int_equal(wait_for(1), MLACAT_OK);
    TURN_UNTIL(mlacat_ring_daemon_sleeps(daemon_page));
}

/* A GPU that has other work comes to an armed call late: that is no reason to look on. */
static void test_engine_arm_worker_naps_when_the_device_is_late(void **state)
{
    (void)state;
    arm_one();
    settle();
    assert_int_equal(naps, 0);
    pass(2 * ARMING_MOST_NS);
    TURN_UNTIL(naps > 2);
    say_ready(1);
    paper.permits = 1;
    assert_int_equal(wait_for(1), MLACAT_OK);
}

/* Nor is a request to cancel it, which cannot be answered before. */
static void test_engine_arm_worker_naps_while_a_request_waits(void **state)
{
    (void)state;
    arm_one();
    send_cancel(101, 1);
    settle();
    pass(2 * ARMING_MOST_NS);
    uint32_t before = naps;
    TURN_UNTIL(naps > before + 2);
    assert_int_equal(mlacat_ring_taken(daemon_page), 1);
    paper.lapse_nr = 1;
    assert_int_equal(wait_for(1), MLACAT_CANCELLED);
    assert_int_equal(wait_for(101), MLACAT_OK);
}

static uint64_t worker_cpu_ns(void)
{
    clockid_t clock;
    struct timespec time;
    assert_int_equal(pthread_getcpuclockid(engine.workers[0].thread, &clock), 0);
    assert_int_equal(clock_gettime(clock, &time), 0);
    return (uint64_t)time.tv_sec * 1000 * MS + (uint64_t)time.tv_nsec;
}

static void test_engine_arm_gated_for_ever_costs_little(void **state)
{
    (void)state;
    paper.lapse_nr = LAPSE_ALWAYS;
    send_gated(1, 1, 0);
    while (naps < 100) { /* they are long by then */
        sched_yield();
    }
    uint64_t begin_ns = clock_now_ns();
    uint64_t cpu_ns = worker_cpu_ns();
    uint64_t rounds_before = rounds();
    int armed = paper.armed;
    usleep(300000);
    cpu_ns = worker_cpu_ns() - cpu_ns;
    uint64_t rounds_nr = rounds() - rounds_before;
    uint64_t time_ns = clock_now_ns() - begin_ns; /* last: this thread may be stopped before it reads the clock */
    print_message("gated for ever: %.2f %% of a core, %u rounds in %u ms\n", 100.0 * (double)cpu_ns / (double)time_ns,
                  (unsigned)rounds_nr, (unsigned)(time_ns / MS));
    assert_true(rounds_nr <= time_ns / MS + 5);
    /* Ten times what a slow machine takes, instrumented ones more; who looks without a pause takes all of it. */
    assert_true(cpu_ns < time_ns / 100 * (has_sanitizer() ? 60 : 30));
    assert_int_equal(paper.armed, armed);
}

/* ------------------------------------------------------------------------------------------ main */

#define ARM_TEST(test) cmocka_unit_test_setup_teardown(test, arm_setup, arm_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ARM_TEST(test_engine_arm_times_begin_with_the_word),
        ARM_TEST(test_engine_arm_times_of_one_that_was_quicker_than_the_worker),
        ARM_TEST(test_engine_arm_times_of_a_lapsed_one),
        ARM_TEST(test_engine_arm_comes_when_the_last_wait_was_over),
        ARM_TEST(test_engine_arm_is_too_late_after_that),
        ARM_TEST(test_engine_arm_expects_what_the_armed_one_waited),
        ARM_TEST(test_engine_arm_is_rarer_after_lapses),
        ARM_TEST(test_engine_arm_flickering_word_is_not_armed_again),
        ARM_TEST(test_engine_arm_worker_naps_when_the_device_is_late),
        ARM_TEST(test_engine_arm_worker_naps_while_a_request_waits),
        ARM_TEST(test_engine_arm_that_ran_makes_up_for_lapses),
        ARM_TEST(test_engine_arm_again_leaves_it_to_the_worker),
        cmocka_unit_test_setup_teardown(test_engine_arm_may_be_missing, arm_setup_without, arm_teardown),
        cmocka_unit_test_setup_teardown(test_engine_arm_worker_sleeps_after_it, arm_setup_running, arm_teardown),
        cmocka_unit_test_setup_teardown(test_engine_arm_gated_for_ever_costs_little, arm_setup_running, arm_teardown),
    };
    alarm(50);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
