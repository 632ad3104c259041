/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that succeed, and calls that are refused while their neighbours run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "gpu_memory.h"
#include "require.h"
#include "server.h"
#include "share_register.h"
#include "trial.h"

/* One call on memory of its own, from registration to release. */
static void run_trial(struct raw *raw, struct ref stream, const struct trial_shape *shape)
{
    struct trial trial;
    trial_make(&trial, shape);
    struct ref buffer = raw_must_register(raw, trial.fd, trial.bytes);
    struct call call = trial_call(&trial, buffer, 7);
    raw_submit(raw, stream, &call, 1);
    struct outcome outcome = raw_wait(raw, 7);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    REQUIRE(trial_right(&trial), "op %u dtype %u %lux%lu %lu+%lu strided %d", shape->op, shape->dtype,
            (unsigned long)shape->d0, (unsigned long)shape->d1, (unsigned long)shape->w1, (unsigned long)shape->w2,
            shape->strided);
    assert_int_equal(raw_unregister(raw, buffer).code, STATUS_OK);
    trial_free(&trial);
}

static void test_calls_all_ops_dtypes_and_strides(void **state)
{
    static const struct {
        uint64_t d0, d1, w1, w2;
    } sizes[] = {{1, 1, 1, 1}, {5, 8, 128, 64}, {33, 3, 7, 5}, {2, 16, 512, 64}, {3, 2, 0, 4}, {3, 2, 4, 0}};
    struct server *server = *state;
    struct raw raw;
    raw_open(&raw, server->socket);
    struct ref stream = raw_must_open_stream(&raw);
    for (uint32_t op = OP_CONCAT_MLA_K; op <= OP_CONCAT_MLA_ABSORB_Q; op++) {
        for (uint32_t dtype = DTYPE_BF16; dtype <= DTYPE_FP32; dtype++) {
            for (size_t i = 0; i < 2 * sizeof(sizes) / sizeof(sizes[0]); i++) {
                struct trial_shape shape = {op,
                                            dtype,
                                            sizes[i / 2].d0,
                                            sizes[i / 2].d1,
                                            sizes[i / 2].w1,
                                            sizes[i / 2].w2,
                                            i % 2 == 1,
                                            op * 1000 + dtype * 100 + (uint32_t)i};
                run_trial(&raw, stream, &shape);
            }
        }
    }
    WAIT_UNTIL(raw_stats(&raw).buffers == 0);
    raw_close(&raw);
}

static void test_calls_without_rows_succeed(void **state)
{
    struct server *server = *state;
    struct raw raw;
    raw_open(&raw, server->socket);
    struct ref stream = raw_must_open_stream(&raw);
    run_trial(&raw, stream, &(struct trial_shape){OP_CONCAT_MLA_K, DTYPE_BF16, 0, 8, 128, 64, false, 1});
    run_trial(&raw, stream, &(struct trial_shape){OP_CONCAT_MLA_K, DTYPE_BF16, 8, 0, 128, 64, false, 1});
    run_trial(&raw, stream, &(struct trial_shape){OP_CONCAT_MLA_ABSORB_Q, DTYPE_FP32, 0, 0, 16, 16, true, 1});
    run_trial(&raw, stream, &(struct trial_shape){OP_CONCAT_MLA_ABSORB_Q, DTYPE_FP32, 2, 2, 0, 0, false, 1});
    raw_close(&raw);
}

static void test_calls_bad_one_leaves_its_batch_alone(void **state)
{
    struct server *server = *state;
    struct trial trial[3];
    struct call calls[5];
    struct ref buffer;
    struct raw raw;
    bool seen[5] = {false};
    raw_open(&raw, server->socket);
    struct ref stream = raw_must_open_stream(&raw);
    for (int i = 0; i < 3; i++) {
        trial_make(&trial[i], &small_shape);
        buffer = raw_must_register(&raw, trial[i].fd, trial[i].bytes);
        calls[2 * i] = trial_call(&trial[i], buffer, 2 * (uint64_t)i);
    }
    calls[1] = calls[0];
    calls[1].id = 1;
    calls[1].operand[0].shape[0]++; /* more rows than the inputs have */
    calls[3] = calls[0];
    calls[3].id = 3;
    calls[3].operand[1].buffer.generation++;
    raw_submit(&raw, stream, calls, 5);
    for (int i = 0; i < 5; i++) {
        struct completion done = raw_next(&raw);
        assert_true(done.call_id < 5 && !seen[done.call_id]);
        assert_memory_equal(&done.stream, &stream, sizeof(stream));
        seen[done.call_id] = true;
        assert_int_equal(done.outcome.code, done.call_id == 1   ? STATUS_INVALID_ARGUMENT
                                            : done.call_id == 3 ? STATUS_NOT_FOUND
                                                                : STATUS_OK);
        assert_int_equal(done.outcome.scope, done.call_id % 2 == 1 ? SCOPE_CALL : SCOPE_NONE);
        assert_true(done.call_id != 1 || strstr(done.outcome.message, "k_nope") != NULL);
    }
    for (int i = 0; i < 3; i++) {
        assert_true(trial_right(&trial[i]));
        trial_free(&trial[i]);
    }
    raw_close(&raw);
}

static void test_calls_of_one_stream_run_in_order(void **state)
{
    struct server *server = *state;
    struct trial trial;
    struct call calls[64];
    struct raw raw;
    raw_open(&raw, server->socket);
    struct ref stream = raw_must_open_stream(&raw);
    trial_make(&trial, &small_shape);
    struct ref buffer = raw_must_register(&raw, trial.fd, trial.bytes);
    for (uint64_t i = 0; i < 64; i++) {
        calls[i] = trial_call(&trial, buffer, 100 + i);
    }
    raw_submit(&raw, stream, calls, 40);
    raw_submit(&raw, stream, calls + 40, 24);
    for (uint64_t i = 0; i < 64; i++) {
        assert_int_equal(raw_wait(&raw, 100 + i).code, STATUS_OK);
    }
    assert_true(trial_right(&trial));
    trial_free(&trial);
    raw_close(&raw);
}

static void test_calls_of_another_stream_overtake_a_long_one(void **state)
{
    struct server *server = *state;
    struct trial slow;
    struct trial trial;
    struct raw raw;
    raw_open(&raw, server->socket);
    struct ref slow_stream = raw_must_open_stream(&raw);
    struct ref fast_stream = raw_must_open_stream(&raw);
    slow_make(&slow);
    trial_make(&trial, &small_shape);
    struct ref slow_buffer = raw_must_register(&raw, slow.fd, slow.bytes);
    struct ref buffer = raw_must_register(&raw, trial.fd, trial.bytes);
    slow_hold(&raw, slow_stream, &slow, slow_buffer);
    struct call call = trial_call(&trial, buffer, 1);
    raw_submit(&raw, fast_stream, &call, 1);
    int before_nr = 0;
    struct completion done;
    while ((done = raw_next(&raw)).call_id != 1) {
        assert_int_equal(done.outcome.code, STATUS_OK);
        before_nr++;
    }
    assert_int_equal(done.outcome.code, STATUS_OK);
    assert_true(before_nr < SLOW_HOLD_CALLS / 2);
    assert_true(trial_right(&trial));
    raw_close(&raw); /* with those that have not begun */
    trial_free(&trial);
    trial_free(&slow);
}

static void test_calls_on_unknown_stream_are_refused(void **state)
{
    struct server *server = *state;
    struct trial trial;
    struct raw raw;
    raw_open(&raw, server->socket);
    struct ref stream = raw_must_open_stream(&raw);
    trial_make(&trial, &small_shape);
    struct ref buffer = raw_must_register(&raw, trial.fd, trial.bytes);
    struct call call = trial_call(&trial, buffer, 5);
    raw_submit(&raw, (struct ref){stream.id, stream.generation + 1}, &call, 1);
    assert_int_equal(raw_wait(&raw, 5).code, STATUS_NOT_FOUND);
    assert_int_equal(raw_close_stream(&raw, stream).code, STATUS_OK);
    raw_submit(&raw, stream, &call, 1);
    assert_int_equal(raw_wait(&raw, 5).code, STATUS_NOT_FOUND);
    assert_int_equal(raw_close_stream(&raw, stream).code, STATUS_NOT_FOUND);
    assert_true(trial_untouched(&trial));
    struct ref again = raw_must_open_stream(&raw);
    assert_true(again.id != stream.id || again.generation != stream.generation);
    trial_free(&trial);
    raw_close(&raw);
}

static void test_calls_in_one_packet_are_all_answered(void **state)
{
    enum { CALLS = 600 };
    static struct call calls[CALLS];
    static bool seen[CALLS];
    struct server *server = *state;
    struct trial trial;
    struct raw raw;
    memset(seen, 0, sizeof(seen));
    raw_open(&raw, server->socket);
    struct ref stream = raw_must_open_stream(&raw);
    trial_make(&trial, &small_shape);
    struct ref buffer = raw_must_register(&raw, trial.fd, trial.bytes);
    for (uint64_t i = 0; i < CALLS; i++) {
        calls[i] = trial_call(&trial, buffer, i);
    }
    raw_submit(&raw, stream, calls, CALLS); /* more than may be in flight: the others are refused */
    for (int i = 0; i < CALLS; i++) {
        struct completion done = raw_next(&raw);
        assert_true(done.call_id < CALLS && !seen[done.call_id]);
        assert_true(done.outcome.code == STATUS_OK || done.outcome.code == STATUS_RESOURCE_EXHAUSTED);
        seen[done.call_id] = true;
    }
    assert_true(trial_right(&trial));
    trial_free(&trial);
    raw_close(&raw);
}

/* Events that the device does not have, or that nobody has: what names one is refused, and nothing else. */
static void test_calls_that_wait_for_no_event_are_refused(void **state)
{
    struct server *server = *state;
    unsigned char handle[SHARE_HANDLE_BYTES];
    struct raw raw;
    struct trial trial;
    struct ref event = {3, 4};
    memset(handle, 0x5a, sizeof(handle));
    raw_open(&raw, server->socket);
    struct outcome outcome = share_register_event(&raw, raw_device(), handle, &event);
    if (gpu_memory_used()) {
        assert_int_not_equal(outcome.code, STATUS_OK); /* which error is the driver's choice */
    } else {
        assert_int_equal(outcome.code, STATUS_UNIMPLEMENTED);
    }
    assert_int_equal(outcome.scope, SCOPE_CALL);
    assert_int_equal(share_register_event(&raw, "GPU-7", handle, &event).code, STATUS_NOT_FOUND);
    assert_int_equal(raw_unregister_event(&raw, event).code, STATUS_NOT_FOUND);
    trial_make(&trial, &small_shape);
    struct ref buffer = raw_must_register(&raw, trial.fd, trial.bytes);
    struct ref stream = raw_must_open_stream(&raw);
    struct call calls[2] = {trial_call(&trial, buffer, 1), trial_call(&trial, buffer, 2)};
    calls[0].wait_event = event;
    raw_submit(&raw, stream, calls, 2);
    outcome = raw_wait(&raw, 1);
    assert_int_equal(outcome.code, STATUS_NOT_FOUND);
    assert_non_null(strstr(outcome.message, "no event 3.4"));
    assert_int_equal(raw_wait(&raw, 2).code, STATUS_OK);
    trial_free(&trial);
    raw_close(&raw);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_calls_all_ops_dtypes_and_strides),
        WITH_SERVER(test_calls_without_rows_succeed),
        WITH_SERVER(test_calls_bad_one_leaves_its_batch_alone),
        WITH_SERVER(test_calls_of_one_stream_run_in_order),
        WITH_SERVER(test_calls_of_another_stream_overtake_a_long_one),
        WITH_SERVER(test_calls_on_unknown_stream_are_refused),
        WITH_SERVER(test_calls_in_one_packet_are_all_answered),
    };
    const struct CMUnitTest packet_tests[] = {
        WITH_SERVER(test_calls_that_wait_for_no_event_are_refused),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return raw_by_ring() ? failed : failed + cmocka_run_group_tests(packet_tests, NULL, NULL);
}
