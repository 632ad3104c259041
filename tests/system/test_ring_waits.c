/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of a ring that wait: for a word of their client, in the queue, for a worker that sleeps; and how they end when
 * something happens meanwhile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "mlacat_ring.h"
#include "proc.h"
#include "require.h"
#include "ring_bench.h"

static struct mlacat_ring_submission gated_entry(const struct bench *bench, uint64_t id, uint64_t ready)
{
    struct mlacat_ring_submission entry = bench_entry(bench, id);
    entry.flags = MLACAT_RING_SUBMIT_READY;
    entry.ready = ready;
    return entry;
}

/* A call that has come and gone on another stream of the same client: the workers have had time for a round. */
static void pass_time(struct bench *other)
{
    static uint64_t id = 1000;
    for (int i = 0; i < 50; i++) {
        bench_work(other, ++id);
    }
}

static void test_ring_waits_until_ready_others_go_on(void **state)
{
    struct bench gated;
    struct bench other;
    bench_open(&gated, *state);
    bench_open(&other, *state);
    struct mlacat_ring_submission entry = gated_entry(&gated, 1, 5);
    raw_ring_send(&gated.ring, &entry);
    entry = bench_entry(&gated, 2); /* waits behind it */
    raw_ring_send(&gated.ring, &entry);
    pass_time(&other);
    bench_set_ready(&gated, 4);
    pass_time(&other);
    assert_false(raw_ring_has(&gated.ring));
    assert_true(trial_untouched(&gated.trial));
    bench_set_ready(&gated, 5);
    assert_int_equal(raw_ring_wait(&gated.ring, 1).code, STATUS_OK);
    assert_int_equal(raw_ring_wait(&gated.ring, 2).code, STATUS_OK);
    assert_true(trial_right(&gated.trial));
    bench_close(&other);
    bench_close(&gated);
}

/* `ready` counts up and wraps, like every number here. */
static void test_ring_ready_is_a_signed_difference(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    bench_set_ready(&bench, 3);
    struct mlacat_ring_submission entry = gated_entry(&bench, 1, UINT64_MAX - 2); /* reached long ago */
    raw_ring_send(&bench.ring, &entry);
    assert_int_equal(raw_ring_wait(&bench.ring, 1).code, STATUS_OK);
    bench_close(&bench);
}

static void test_ring_done_is_written_in_order_also_for_failed_calls(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    struct mlacat_ring_submission gated = gated_entry(&bench, 1, 1);
    struct mlacat_ring_submission bad = bench_entry(&bench, 2);
    struct mlacat_ring_submission good = bench_entry(&bench, 3);
    gated.flags |= MLACAT_RING_SUBMIT_DONE;
    bad.flags = good.flags = MLACAT_RING_SUBMIT_DONE;
    bad.op = 99;
    raw_ring_send(&bench.ring, &gated);
    raw_ring_send(&bench.ring, &bad);
    raw_ring_send(&bench.ring, &good);
    WAIT_UNTIL(mlacat_ring_failed(bench.ring.daemon) == 1);
    assert_false(raw_ring_has(&bench.ring)); /* its turn has not come: whoever waits for `done` would wait for 1, too */
    assert_int_equal(bench_done(&bench), 0);
    bench_set_ready(&bench, 1);
    assert_int_equal(raw_ring_wait(&bench.ring, 1).code, STATUS_OK);
    assert_int_equal(raw_ring_wait(&bench.ring, 2).code, STATUS_UNIMPLEMENTED);
    assert_int_equal(raw_ring_wait(&bench.ring, 3).code, STATUS_OK);
    assert_int_equal(bench_done(&bench), 3);
    assert_int_equal(raw_ring_fence(&bench.ring), 3);
    assert_int_equal(mlacat_ring_failed(bench.ring.daemon), 1);
    bad.call_id = 4; /* with nothing before and behind it */
    raw_ring_send(&bench.ring, &bad);
    assert_int_equal(raw_ring_wait(&bench.ring, 4).code, STATUS_UNIMPLEMENTED);
    assert_int_equal(bench_done(&bench), 4);
    bench_close(&bench);
}

static void test_ring_without_done_leaves_the_word_alone(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    bench_work(&bench, 1);
    struct mlacat_ring_submission bad = bench_entry(&bench, 2);
    bad.op = 99;
    raw_ring_send(&bench.ring, &bad);
    assert_int_equal(raw_ring_wait(&bench.ring, 2).code, STATUS_UNIMPLEMENTED);
    assert_int_equal(bench_done(&bench), 0);
    assert_int_equal(raw_ring_fence(&bench.ring), 1);
    bench_close(&bench);
}

/* The daemon lives on, and so may the client's GPU, which waits for `done`. */
static void test_ring_done_is_written_when_the_connection_ends(void **state)
{
    for (int broken = 0; broken < 2; broken++) {
        struct bench bench;
        bench_open(&bench, *state);
        struct mlacat_ring_submission entry = gated_entry(&bench, 1, 1);
        entry.flags |= MLACAT_RING_SUBMIT_DONE;
        raw_ring_send(&bench.ring, &entry);
        bench_wait_taken(&bench.ring);
        assert_int_equal(bench_done(&bench), 0);
        entry.call_id = 2; /* which the worker may not have taken when the connection ends */
        raw_ring_send(&bench.ring, &entry);
        if (broken) {
            entry.flags = UINT32_MAX;
            raw_ring_send(&bench.ring, &entry);
        } else {
            shutdown(bench.raw.fd, SHUT_RDWR);
        }
        WAIT_UNTIL(bench_done(&bench) == 2);
        assert_true(trial_untouched(&bench.trial));
        bench_close(&bench);
    }
}

/* Asks to cancel a long call that is launched, and returns the answer: NOT_FOUND only where the call ended before. */
static uint32_t cancel_launched(struct raw_ring *ring, const struct call *call)
{
    raw_ring_call(ring, call, 1);
    bench_wait_taken(ring);
    struct mlacat_ring_submission entry = cancel_entry(53, call->id);
    raw_ring_send(ring, &entry);
    struct completion first = raw_ring_next(ring);
    struct completion second = raw_ring_next(ring);
    bool ended_before = first.call_id == call->id;
    assert_int_equal((ended_before ? first : second).outcome.code, STATUS_OK);
    uint32_t answer = (ended_before ? second : first).outcome.code;
    assert_int_equal(answer, ended_before ? STATUS_NOT_FOUND : STATUS_FAILED_PRECONDITION);
    return answer;
}

static void test_ring_cancels_what_is_not_launched(void **state)
{
    struct bench bench;
    struct trial slow;
    bench_open(&bench, *state);
    slow_make(&slow);
    struct ref slow_buffer = raw_must_register(&bench.raw, slow.fd, slow.bytes);
    struct mlacat_ring_submission entry = gated_entry(&bench, 1, 1);
    raw_ring_send(&bench.ring, &entry);
    entry.call_id = 2;
    entry.flags |= MLACAT_RING_SUBMIT_DONE;
    raw_ring_send(&bench.ring, &entry);
    entry = cancel_entry(50, 2);
    raw_ring_send(&bench.ring, &entry);
    assert_int_equal(raw_ring_wait(&bench.ring, 50).code, STATUS_OK); /* 2 tells its end behind 1 */
    entry = cancel_entry(51, 1);
    raw_ring_send(&bench.ring, &entry);
    assert_int_equal(raw_ring_wait(&bench.ring, 1).code, STATUS_CANCELLED);
    assert_int_equal(raw_ring_wait(&bench.ring, 51).code, STATUS_OK);
    assert_int_equal(raw_ring_wait(&bench.ring, 2).code, STATUS_CANCELLED);
    assert_int_equal(bench_done(&bench), 2);
    entry = cancel_entry(52, 1);
    raw_ring_send(&bench.ring, &entry);
    assert_int_equal(raw_ring_wait(&bench.ring, 52).code, STATUS_NOT_FOUND);
    struct call call = trial_call(&slow, slow_buffer, 3);
    WAIT_UNTIL(cancel_launched(&bench.ring, &call) == STATUS_FAILED_PRECONDITION);
    assert_true(trial_untouched(&bench.trial));
    trial_free(&slow);
    bench_close(&bench);
}

static void test_ring_deadlines_end_waiting_calls(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    struct mlacat_ring_submission entry = gated_entry(&bench, 1, 1);
    raw_ring_send(&bench.ring, &entry);
    const uint64_t deadlines_us[] = {3600000000, 20000, 1000, UINT64_MAX}; /* of 2 to 5; the last one never comes */
    entry = bench_entry(&bench, 1);
    for (int i = 0; i < 4; i++) {
        entry.call_id++;
        entry.deadline_us = deadlines_us[i];
        raw_ring_send(&bench.ring, &entry);
    }
    uint64_t ended = 0; /* in the order of their deadlines, or both are late when somebody looks */
    for (int i = 0; i < 2; i++) {
        struct completion done = raw_ring_next(&bench.ring);
        assert_int_equal(done.outcome.code, STATUS_DEADLINE_EXCEEDED);
        ended |= UINT64_C(1) << done.call_id;
    }
    assert_int_equal(ended, 1 << 3 | 1 << 4);
    assert_true(trial_untouched(&bench.trial));
    bench_set_ready(&bench, 1);
    assert_int_equal(raw_ring_wait(&bench.ring, 1).code, STATUS_OK);
    assert_int_equal(raw_ring_wait(&bench.ring, 2).code, STATUS_OK);
    assert_int_equal(raw_ring_wait(&bench.ring, 5).code, STATUS_OK);
    bench_close(&bench);
}

/* The name is gone at once, the memory when the last call has ended. */
static void test_ring_unregister_waits_for_the_calls(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    struct mlacat_ring_submission entry = gated_entry(&bench, 1, 1);
    raw_ring_send(&bench.ring, &entry);
    bench_wait_taken(&bench.ring);
    assert_int_equal(raw_unregister(&bench.raw, bench.buffer).code, STATUS_OK);
    assert_int_equal(raw_unregister(&bench.raw, bench.buffer).code, STATUS_NOT_FOUND);
    entry.call_id = 2;
    entry.flags = 0;
    raw_ring_send(&bench.ring, &entry);
    assert_int_equal(raw_ring_wait(&bench.ring, 2).code, STATUS_NOT_FOUND);
    struct ref stream = raw_must_open_stream(&bench.raw);
    struct call call = trial_call(&bench.trial, bench.buffer, 3);
    raw_submit(&bench.raw, stream, &call, 1);
    assert_int_equal(raw_wait(&bench.raw, 3).code, STATUS_NOT_FOUND);
    struct ref again = raw_must_register(&bench.raw, bench.trial.fd, bench.trial.bytes);
    assert_int_not_equal(again.id, bench.buffer.id);
    assert_int_equal(raw_stats(&bench.raw).buffers, 2);
    bench_set_ready(&bench, 1);
    assert_int_equal(raw_ring_wait(&bench.ring, 1).code, STATUS_OK);
    assert_true(trial_right(&bench.trial));
    WAIT_UNTIL(raw_stats(&bench.raw).buffers == 1);
    bench.buffer = again;
    bench_work(&bench, 4);
    bench_close(&bench);
}

/* Names come and go while calls that name them are on their way: a call runs on the memory of its name, or not at
 * all. */
static void test_ring_unregister_races_with_calls(void **state)
{
    enum { ROUNDS = 300, CALLS = 20 };
    struct bench bench;
    bench_open(&bench, *state);
    uint32_t ok_nr = 0;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        struct ref buffer = raw_must_register(&bench.raw, bench.trial.fd, bench.trial.bytes);
        struct call call = trial_call(&bench.trial, buffer, 0);
        struct mlacat_ring_submission entry = raw_ring_entry(&call);
        for (entry.call_id = 0; entry.call_id < CALLS; entry.call_id++) {
            raw_ring_write(&bench.ring, &entry);
        }
        raw_ring_submit(&bench.ring);
        assert_int_equal(raw_unregister(&bench.raw, buffer).code, STATUS_OK);
        for (uint64_t id = 0; id < CALLS; id++) {
            struct outcome outcome = raw_ring_next(&bench.ring).outcome;
            assert_true(outcome.code == STATUS_OK || outcome.code == STATUS_NOT_FOUND);
            ok_nr += outcome.code == STATUS_OK;
        }
    }
    assert_true(ok_nr > 0);
    WAIT_UNTIL(raw_stats(&bench.raw).buffers == 1);
    bench_close(&bench);
}

/* One call at a time, each finding the worker asleep and each found asleep by its end; and in a burst. */
static void run_sleepy(const char *options)
{
    struct server server;
    struct bench bench;
    server_start(&server, options);
    bench_open(&bench, &server);
    for (uint64_t id = 1; id <= 3000; id++) {
        bench_work(&bench, id);
        if (id % 3 == 0) {
            WAIT_UNTIL(mlacat_ring_daemon_sleeps(bench.ring.daemon));
        }
    }
    assert_true(bench.ring.doorbells_rung >= 500);
    bench_close(&bench);
    server_stop(&server);
}

static void test_ring_sleeps_and_wakes_without_loss(void **state)
{
    (void)state;
    run_sleepy("poll = sleep\n");
    run_sleepy("poll = balanced\nspin_us = 1\n");
}

/* What is accepted ends, what comes then is refused, and the daemon waits for the first but not for ever. */
static void test_ring_drains(void **state)
{
    struct server *server = *state;
    struct bench bench;
    bench_open(&bench, server);
    struct mlacat_ring_submission entry = gated_entry(&bench, 1, 1);
    raw_ring_send(&bench.ring, &entry);
    bench_wait_taken(&bench.ring);
    assert_int_equal(raw_drain(&bench.raw).code, STATUS_OK);
    struct outcome refused;
    entry = bench_entry(&bench, 1);
    do { /* the workers learn of it a moment later */
        entry.call_id++;
        entry.flags = 0;
        entry.op = 99;
        raw_ring_send(&bench.ring, &entry);
        refused = raw_ring_wait(&bench.ring, entry.call_id);
    } while (refused.code == STATUS_UNIMPLEMENTED);
    assert_int_equal(refused.code, STATUS_UNAVAILABLE);
    assert_non_null(strstr(refused.message, "draining"));
    assert_int_equal(raw_rings_open(&bench.raw, &(struct raw_rings){0}).code, STATUS_UNAVAILABLE);
    bench_set_ready(&bench, 1);
    assert_int_equal(raw_ring_wait(&bench.ring, 1).code, STATUS_OK);
    assert_true(trial_right(&bench.trial));
    assert_int_equal(server_wait(server), 0);
    bench_close(&bench);
}

static void test_ring_counts_in_statistics(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    for (uint64_t id = 1; id <= 10; id++) {
        bench_work(&bench, id);
    }
    struct mlacat_ring_submission entry = bench_entry(&bench, 11);
    entry.op = 99;
    raw_ring_send(&bench.ring, &entry);
    raw_ring_wait(&bench.ring, 11);
    entry = gated_entry(&bench, 12, 1);
    raw_ring_send(&bench.ring, &entry);
    bench_wait_taken(&bench.ring);
    struct counts counts = raw_stats(&bench.raw);
    assert_int_equal(counts.outcomes[STATUS_OK], 10);
    assert_int_equal(counts.outcomes[STATUS_UNIMPLEMENTED], 1);
    assert_int_equal(counts.calls_in_flight, 1);
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_ring_waits_until_ready_others_go_on),
        WITH_SERVER(test_ring_ready_is_a_signed_difference),
        WITH_SERVER(test_ring_done_is_written_in_order_also_for_failed_calls),
        WITH_SERVER(test_ring_done_is_written_when_the_connection_ends),
        WITH_SERVER(test_ring_without_done_leaves_the_word_alone),
        WITH_SERVER(test_ring_cancels_what_is_not_launched),
        WITH_SERVER(test_ring_deadlines_end_waiting_calls),
        WITH_SERVER(test_ring_unregister_waits_for_the_calls),
        WITH_SERVER(test_ring_unregister_races_with_calls),
        cmocka_unit_test(test_ring_sleeps_and_wakes_without_loss),
        WITH_SERVER(test_ring_drains),
        WITH_SERVER(test_ring_counts_in_statistics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
