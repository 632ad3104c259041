/* SPDX-License-Identifier: Apache-2.0 */
/* Streams with rings in the engine, over a device made of paper: what is launched together, what the client is told
 * when, and how a stream ends. The test plays the client and the loop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "paper_device.h"
#include "ring_scene.h"
#include "ring_stream.h"

static int setup(void **state)
{
    (void)state;
    scene_open(&paper_ops);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scene_close();
    return 0;
}

/* ------------------------------------------------------------------------------------------ tests */

static void test_engine_ring_launches_what_is_ready_together(void **state)
{
    (void)state;
    send_calls(1, 1, MLACAT_RING_SUBMIT_READY);
    send_calls(2, 39, 0);
    TURN_UNTIL(mlacat_ring_taken(daemon_page) == 40);
    assert_int_equal(paper.launched, 0);
    __atomic_store_n(&client->ready, 1, __ATOMIC_RELEASE);
    TURN_UNTIL(paper.launched == 40);
    assert_int_equal(paper.largest, DEVICE_BATCH);
    paper.permits = 40;
    for (uint64_t id = 1; id <= 40; id++) {
        assert_int_equal(wait_for(id), MLACAT_OK);
    }
    assert_int_equal(mlacat_ring_fence(daemon_page), 40);
}

/* While the device has calls and wakes nobody, the worker naps: it can be rung from there like from its sleep. */
static void test_engine_ring_submit_ends_a_nap(void **state)
{
    (void)state;
    long_naps = true;
    send_calls(1, 1, 0);
    while (naps == 0) {
        sched_yield();
    }
    send_calls(2, 1, 0);
    TURN_UNTIL(paper.launched == 2);
    paper.permits = 2;
    send_calls(3, 1, 0); /* nobody else would end the next nap */
    assert_int_equal(wait_for(1), MLACAT_OK);
    assert_int_equal(wait_for(2), MLACAT_OK);
}

static void test_engine_ring_counts_failed_before_later_calls(void **state)
{
    (void)state;
    paper.permits = 100;
    write_entry(1, 0)->op = 99;
    write_entry(2, 0);
    submit();
    assert_int_equal(wait_for(1), MLACAT_UNIMPLEMENTED);
    assert_int_equal(wait_for(2), MLACAT_OK);
    assert_int_equal(paper.failed_early, 1);
    assert_int_equal(mlacat_ring_fence(daemon_page), 2);
}

/* The device says it at the end: the fence stays behind until it is counted. */
static void test_engine_ring_counts_what_the_device_fails(void **state)
{
    (void)state;
    paper.fail_nr = 1;
    send_calls(1, 3, MLACAT_RING_SUBMIT_DONE);
    TURN_UNTIL(paper.launched == 3);
    paper.permits = 1;
    assert_int_equal(wait_for(1), MLACAT_INTERNAL);
    assert_int_equal(mlacat_ring_failed(daemon_page), 1);
    assert_int_equal(mlacat_ring_fence(daemon_page), 0);
    assert_int_equal(client->done, 1);
    paper.permits = 2;
    assert_int_equal(wait_for(2), MLACAT_OK);
    assert_int_equal(wait_for(3), MLACAT_OK);
    assert_int_equal(paper.signals, 0);
    assert_int_equal(broken_nr, 0);
}

/* Whoever waits for `done` of a call that the device refuses is told all the same, in its turn. */
static void test_engine_ring_refused_launch_tells_done(void **state)
{
    (void)state;
    send_calls(1, 1, 0);
    TURN_UNTIL(paper.launched == 1);
    paper.refuse_nr = 2;
    send_calls(2, 1, 0);
    assert_int_equal(wait_for(2), MLACAT_INTERNAL); /* nobody waits: at once */
    send_calls(3, 1, MLACAT_RING_SUBMIT_DONE);
    TURN_UNTIL(paper.signals == 1);
    assert_int_equal(mlacat_ring_failed(daemon_page), 2);
    paper.permits = 2;
    assert_int_equal(wait_for(1), MLACAT_OK);
    assert_int_equal(wait_for(3), MLACAT_INTERNAL);
    assert_int_equal(client->done, 3);
}

static void test_engine_ring_lost_device_fails_all_and_is_reported(void **state)
{
    (void)state;
    send_calls(1, 2, MLACAT_RING_SUBMIT_DONE);
    TURN_UNTIL(paper.launched == 2);
    paper.lost = 1;
    assert_int_equal(wait_for(1), MLACAT_INTERNAL);
    assert_int_equal(wait_for(2), MLACAT_INTERNAL);
    send_calls(3, 1, MLACAT_RING_SUBMIT_DONE);
    assert_int_equal(wait_for(3), MLACAT_INTERNAL);
    TURN_UNTIL(broken_nr == 1);
    assert_int_equal(broken.scope, MLACAT_SCOPE_DEVICE);
    assert_int_equal(broken_nr, 1);
}

static void test_engine_ring_broken_is_reported_once_and_read_no_more(void **state)
{
    (void)state;
    paper.permits = 100;
    write_entry(1, 0);
    write_entry(2, 0)->reserved[0] = 1;
    write_entry(3, 0);
    submit();
    assert_int_equal(wait_for(1), MLACAT_OK);
    TURN_UNTIL(broken_nr == 1);
    assert_int_equal(broken.scope, MLACAT_SCOPE_SESSION);
    client->submit_tail = 12345;
    submit();
    stream_close(stream); /* nothing more to wait for */
    await_gone();
    assert_int_equal(broken_nr, 1);
    assert_int_equal(paper.launched, 1);
}

static void test_engine_ring_close_waits_for_calls_drop_does_not(void **state)
{
    (void)state;
    send_calls(1, 1, 0);
    send_calls(2, 3, MLACAT_RING_SUBMIT_READY);
    TURN_UNTIL(paper.launched == 1 && mlacat_ring_taken(daemon_page) == 4);
    stream_close(stream);
    buffer_drop(buffer);
    for (int i = 0; i < 1000; i++) {
        engine_take(&engine);
    }
    assert_int_equal(gone, 0);
    assert_int_equal(unpublished, 0);
    stream_drop_ring(stream);
    for (int i = 0; i < 1000; i++) {
        engine_take(&engine);
    }
    assert_int_equal(gone + paper.released, 0); /* one is launched yet */
    paper.permits = 1;
    TURN_UNTIL(gone == 1 && unpublished == 1 && paper.released == 1);
    assert_int_equal(paper.launched, 1);
    stream = NULL;
    buffer = NULL;
}

static void test_engine_ring_stuck_means_calls_without_rounds(void **state)
{
    (void)state;
    assert_false(engine_stuck(&engine));
    send_calls(1, 1, 0);
    TURN_UNTIL(engine_ring_calls(&engine) == 1);
    engine_stuck(&engine);
    uint64_t rounds = atomic_load(&engine.workers[0].heartbeat);
    TURN_UNTIL(atomic_load(&engine.workers[0].heartbeat) > rounds);
    assert_false(engine_stuck(&engine));
    paper.held = 1;
    send_calls(2, 1, 0);
    TURN_UNTIL(paper.holding);
    engine_stuck(&engine);
    assert_true(engine_stuck(&engine));
    paper.held = 0;
    paper.permits = 2;
    assert_int_equal(wait_for(1), MLACAT_OK);
    assert_int_equal(wait_for(2), MLACAT_OK);
}

/* The launch that does not return may be that of the first call; one that has just begun is not stuck. */
static void test_engine_ring_stuck_in_the_first_round(void **state)
{
    (void)state;
    TURN_UNTIL(engine.workers[0].doorbell.asleep);
    engine_stuck(&engine);
    paper.held = 1;
    send_calls(1, 1, 0);
    TURN_UNTIL(engine_ring_calls(&engine) == 1 && paper.holding);
    assert_false(engine_stuck(&engine));
    assert_true(engine_stuck(&engine));
    paper.held = 0;
    paper.permits = 1;
    assert_int_equal(wait_for(1), MLACAT_OK);
}

/* What a client that is gone has left in its ring, or still writes into it, keeps nobody awake. */
static void test_engine_ring_dropped_is_no_news(void **state)
{
    (void)state;
    send_calls(1, 1, 0);
    TURN_UNTIL(paper.launched == 1);
    stream_drop_ring(stream);
    send_calls(2, 1, 0);
    uint64_t rounds = atomic_load(&engine.workers[0].heartbeat);
    TURN_UNTIL(atomic_load(&engine.workers[0].heartbeat) > rounds + 2);
    uint32_t before = naps;
    TURN_UNTIL(naps > before + 2);
    paper.permits = 2;
}

/* While the worker may write it. */
static uint64_t done_now(void)
{
    return __atomic_load_n(&client->done, __ATOMIC_ACQUIRE);
}

/* The GPU of a client that is gone waits for calls that will not be: its other work is let go on, in turn. */
static void test_engine_ring_dropped_calls_tell_done(void **state)
{
    (void)state;
    send_calls(1, 1, MLACAT_RING_SUBMIT_DONE);
    TURN_UNTIL(paper.launched == 1);
    send_calls(2, 3, MLACAT_RING_SUBMIT_READY | MLACAT_RING_SUBMIT_DONE);
    TURN_UNTIL(mlacat_ring_taken(daemon_page) == 4);
    stream_drop_ring(stream);
    stream_close(stream);
    stream = NULL; /* the scene's end does not close it again */
    TURN_UNTIL(paper.signals == 3);
    assert_int_equal(done_now(), 0); /* not before what is launched has ended */
    paper.permits = 1;
    TURN_UNTIL(done_now() == 1);
    paper.permits = 3;
    TURN_UNTIL(done_now() == 4);
    assert_int_equal(paper.launched - paper.signals, 1);
    assert_int_equal(buffer->pins, 0);
    await_gone();
}

/* Also those that the worker had not taken yet: more than it takes in a round, behind one that waits. */
static void test_engine_ring_dropped_entries_tell_done(void **state)
{
    (void)state;
    send_calls(1, 1, MLACAT_RING_SUBMIT_READY | MLACAT_RING_SUBMIT_DONE);
    TURN_UNTIL(mlacat_ring_taken(daemon_page) == 1);
    for (uint64_t id = 2; id < ENTRIES; id++) {
        write_entry(id, id % 2 == 0 ? MLACAT_RING_SUBMIT_DONE : 0);
    }
    mlacat_ring_submit(client, tail); /* without the doorbell: the worker may sleep */
    stream_drop_ring(stream);
    stream_close(stream);
    stream = NULL; /* the scene's end does not close it again */
    paper.permits = ENTRIES;
    TURN_UNTIL(gone == 1);
    assert_int_equal(done_now(), ENTRIES - 2);
    assert_int_equal(mlacat_ring_failed(daemon_page), ENTRIES - 1);
    assert_int_equal(paper.launched - paper.signals, 0);
    assert_int_equal(buffer->pins, 0);
}

static void test_engine_ring_dropped_calls_are_counted(void **state)
{
    (void)state;
    send_calls(1, 3, MLACAT_RING_SUBMIT_READY);
    TURN_UNTIL(mlacat_ring_taken(daemon_page) == 3);
    stream_drop_ring(stream);
    stream_close(stream);
    await_gone();
    assert_int_equal(counters_outcome(&engine.workers[0].counters, MLACAT_ABORTED), 3);
}

/* To look for a call may take long: one request a round. */
static void test_engine_ring_cancels_one_a_round(void **state)
{
    (void)state;
    send_calls(1, 20, MLACAT_RING_SUBMIT_READY);
    TURN_UNTIL(mlacat_ring_taken(daemon_page) == 20);
    for (uint64_t id = 1; id <= 20; id++) {
        write_entry(100 + id, MLACAT_RING_SUBMIT_CANCEL)->ready = id;
    }
    uint64_t rounds = atomic_load(&engine.workers[0].heartbeat);
    submit();
    for (uint64_t id = 1; id <= 20; id++) {
        assert_int_equal(wait_for(id), MLACAT_CANCELLED);
        assert_int_equal(wait_for(100 + id), MLACAT_OK);
    }
    assert_true(atomic_load(&engine.workers[0].heartbeat) - rounds >= 19);
}

static void test_engine_ring_drains(void **state)
{
    (void)state;
    send_calls(1, 1, 0);
    TURN_UNTIL(paper.launched == 1);
    engine_drain(&engine);
    assert_int_equal(engine_ring_calls(&engine), 1);
    TURN_UNTIL(engine.workers[0].heartbeat > 0);
    paper.permits = 1;
    assert_int_equal(wait_for(1), MLACAT_OK);
    TURN_UNTIL(engine_ring_calls(&engine) == 0);
    send_calls(2, 1, 0);
    assert_int_equal(wait_for(2), MLACAT_UNAVAILABLE);
}

/* The loop waits for them in its sleep: each end of the last call in flight is news to it. */
static void test_engine_ring_drained_is_news(void **state)
{
    (void)state;
    send_calls(1, 1, 0);
    TURN_UNTIL(paper.launched == 1);
    engine_drain(&engine);
    paper.permits = 1;
    assert_int_equal(wait_for(1), MLACAT_OK);
    TURN_UNTIL(engine_ring_calls(&engine) == 0);
    send_calls(2, 1, MLACAT_RING_SUBMIT_DONE); /* refused, but has to tell so */
    TURN_UNTIL(paper.signals == 1 && engine_ring_calls(&engine) == 1);
    while (engine_take(&engine)) {
    }
    paper.permits = 1;
    while (!engine_take(&engine)) {
        sched_yield();
    }
    assert_int_equal(engine_ring_calls(&engine), 0);
    assert_int_equal(wait_for(2), MLACAT_UNAVAILABLE);
}

#define RING_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        RING_TEST(test_engine_ring_launches_what_is_ready_together),
        RING_TEST(test_engine_ring_submit_ends_a_nap),
        RING_TEST(test_engine_ring_counts_failed_before_later_calls),
        RING_TEST(test_engine_ring_counts_what_the_device_fails),
        RING_TEST(test_engine_ring_refused_launch_tells_done),
        RING_TEST(test_engine_ring_lost_device_fails_all_and_is_reported),
        RING_TEST(test_engine_ring_broken_is_reported_once_and_read_no_more),
        RING_TEST(test_engine_ring_close_waits_for_calls_drop_does_not),
        RING_TEST(test_engine_ring_stuck_means_calls_without_rounds),
        RING_TEST(test_engine_ring_stuck_in_the_first_round),
        RING_TEST(test_engine_ring_dropped_is_no_news),
        RING_TEST(test_engine_ring_dropped_calls_tell_done),
        RING_TEST(test_engine_ring_dropped_entries_tell_done),
        RING_TEST(test_engine_ring_dropped_calls_are_counted),
        RING_TEST(test_engine_ring_cancels_one_a_round),
        RING_TEST(test_engine_ring_drains),
        RING_TEST(test_engine_ring_drained_is_news),
    };
    alarm(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
