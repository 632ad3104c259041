/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that wait for events, over the host device with events of the test's own, which device_fault holds back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "buffers.h"
#include "clock.h"
#include "device_fault.h"
#include "engine.h"
#include "events.h"
#include "stream.h"

#define CALLS 8 /* of a stream */
#define ROUNDS 20

/* ------------------------------------------------------------------------------------------ the test's events */

static struct device_event {
    int unused;
} the_event;
static struct device_ops inner;
static _Atomic int device_imports;
static _Atomic int device_releases;

static enum mlacat_status import_event(struct device *device, const uint8_t handle[MEMORY_HANDLE_BYTES],
                                       struct device_event **event, struct error *err)
{
    (void)device;
    (void)err;
    assert_int_equal(handle[MEMORY_HANDLE_BYTES - 1], 7);
    device_imports++;
    *event = &the_event;
    return MLACAT_OK;
}

static void release_event(struct device *device, struct device_event *event)
{
    (void)device;
    assert_ptr_equal(event, &the_event);
    device_releases++;
}

static enum device_answer query_event(struct device_event *event, struct error *err)
{
    (void)err;
    assert_ptr_equal(event, &the_event);
    return DEVICE_OK;
}

/* ------------------------------------------------------------------------------------------ the test's loop */

static struct engine engine;
static struct control_lane lane;
static struct loop_bell bell;
static struct stream *streams[2];
static struct event *event;
static int opened;
static int imported;
static int events_gone;
static int done_nr;
static uint64_t done_ids[2 * CALLS];
static struct error done_errors[2 * CALLS];

static void no_wake(void *arg)
{
    (void)arg;
}

static void on_opened(struct stream *s)
{
    (void)s;
    opened++;
}

static void on_call_done(struct stream *s, struct call *call)
{
    done_ids[done_nr] = call->call_id;
    done_errors[done_nr++] = call->error;
    if (call->event) {
        event_unpin(call->event);
    }
    stream_put_call(s, call);
}

/* No stream here has a ring. */
static void on_broken(struct stream *s, const struct error *why)
{
    (void)s;
    (void)why;
    fail();
}

static void on_stream_gone(struct stream *s)
{
    (void)s;
}

static void on_imported(struct event *e)
{
    (void)e;
    imported++;
}

static void on_event_gone(struct event *e)
{
    (void)e;
    events_gone++;
}

static const struct stream_handlers stream_handlers = {on_opened, on_call_done, on_broken, on_stream_gone};
static const struct event_handlers event_handlers = {on_imported, on_event_gone};

/* Turns the loop until the condition holds; the alarm of main() ends a test that waits in vain. */
#define TURN_UNTIL(condition) \
    while (!(condition)) {    \
        engine_take(&engine); \
        sched_yield();        \
    }

static struct event *import(void)
{
    static const uint8_t handle[MEMORY_HANDLE_BYTES] = {[MEMORY_HANDLE_BYTES - 1] = 7};
    struct event *made;
    struct error err;
    assert_int_equal(event_import(&engine, &lane, handle, &event_handlers, NULL, &made, &err), MLACAT_OK);
    return made;
}

/* An empty call, which waits for `waited`. */
static struct call *submit(struct stream *stream, uint64_t id, struct event *waited, uint64_t deadline_ns)
{
    static struct buffer nowhere; /* an empty plan touches nothing */
    struct call *call = stream_get_call(stream);
    assert_non_null(call);
    call->call_id = id;
    call->plan = (struct op_plan){0};
    call->deadline_ns = deadline_ns;
    call->event = waited;
    for (int i = 0; i < OP_OPERANDS; i++) {
        call->buffer[i] = &nowhere;
    }
    if (waited) {
        event_pin(waited);
    }
    stream_submit(stream, call);
    return call;
}

static int setup(void **state)
{
    struct error err;
    struct engine_options options = {.ops = &device_fault_ops,
                                     .uuid = "host",
                                     .workers = 1,
                                     .poll = WORKER_POLL_BALANCED,
                                     .spin_ns = 1000,
                                     .bell = &bell};
    (void)state;
    inner = device_host_ops;
    inner.event_import = import_event;
    inner.event_release = release_event;
    inner.event_query = query_event;
    device_fault_over(&inner);
    device_imports = device_releases = 0;
    opened = imported = events_gone = done_nr = 0;
    bell.wake = no_wake;
    control_lane_init(&lane);
    assert_int_equal(engine_start(&engine, &options, &err), MLACAT_OK);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(stream_open(&engine, &lane, CALLS, NULL, &stream_handlers, NULL, &streams[i], &err),
                         MLACAT_OK);
    }
    event = import();
    TURN_UNTIL(opened == 2 && imported == 1);
    assert_int_equal(event->state, EVENT_LIVE);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    stream_close(streams[0]);
    stream_close(streams[1]);
    if (event) {
        event_drop(event);
    }
    TURN_UNTIL(engine_idle(&engine));
    engine_stop(&engine);
    assert_int_equal(device_releases, device_imports);
    return 0;
}

/* The worker's rounds since now: one that has begun may have been at any place of it. */
static void wait_for_rounds(void)
{
    uint64_t before = atomic_load(&engine.workers[0].heartbeat);
    TURN_UNTIL(atomic_load(&engine.workers[0].heartbeat) >= before + ROUNDS);
}

/* The event has not come, until device_fault_clear. */
static void hold_event(void)
{
    device_fault_set(FAULT_EVENT_QUERY, FAULT_REFUSE, 1, FAULT_FOR_EVER);
}

static void assert_done(int index, uint64_t id, enum mlacat_status code)
{
    assert_true(index < done_nr);
    assert_int_equal(done_ids[index], id);
    assert_int_equal(done_errors[index].code, code);
}

/* ------------------------------------------------------------------------------------------ tests */

static void test_engine_event_holds_its_stream_and_no_other(void **state)
{
    (void)state;
    hold_event();
    submit(streams[0], 1, event, 0);
    submit(streams[0], 2, NULL, 0);
    submit(streams[1], 3, NULL, 0);
    TURN_UNTIL(done_nr == 1);
    assert_done(0, 3, MLACAT_OK);
    wait_for_rounds();
    assert_int_equal(done_nr, 1);
    assert_int_equal(device_fault_calls(FAULT_SUBMIT), 1);
    device_fault_clear();
    TURN_UNTIL(done_nr == 3);
    assert_done(1, 1, MLACAT_OK);
    assert_done(2, 2, MLACAT_OK);
}

/* unit_worker tells how often. */
static void test_engine_event_is_asked_for_the_first_call_only(void **state)
{
    (void)state;
    hold_event();
    submit(streams[0], 1, event, 0);
    submit(streams[0], 2, event, 0);
    TURN_UNTIL(device_fault_hits(FAULT_EVENT_QUERY) > 0);
    uint64_t rounds = atomic_load(&engine.workers[0].heartbeat);
    uint64_t asked = device_fault_calls(FAULT_EVENT_QUERY);
    wait_for_rounds();
    asked = device_fault_calls(FAULT_EVENT_QUERY) - asked;
    rounds = atomic_load(&engine.workers[0].heartbeat) - rounds;
    assert_true(asked <= rounds + 1);
    device_fault_clear();
    TURN_UNTIL(done_nr == 2);
}

static void test_engine_event_lets_go_of_a_withdrawn_call(void **state)
{
    (void)state;
    hold_event();
    struct call *call = submit(streams[0], 1, event, 0);
    submit(streams[0], 2, NULL, 0);
    TURN_UNTIL(device_fault_hits(FAULT_EVENT_QUERY) > 0);
    assert_true(stream_withdraw(streams[0], call, CALL_WITHDRAWN_CANCEL));
    TURN_UNTIL(done_nr == 2);
    assert_done(0, 1, MLACAT_CANCELLED);
    assert_done(1, 2, MLACAT_OK);
    assert_int_equal(device_fault_calls(FAULT_SUBMIT), 1);
}

static void test_engine_event_does_not_outlast_a_deadline(void **state)
{
    (void)state;
    hold_event();
    submit(streams[0], 1, event, clock_now_ns() + 1000000);
    TURN_UNTIL(done_nr == 1);
    assert_done(0, 1, MLACAT_DEADLINE_EXCEEDED);
    assert_int_equal(device_fault_calls(FAULT_SUBMIT), 0);
}

static void test_engine_event_that_fails_ends_its_call(void **state)
{
    (void)state;
    device_fault_set(FAULT_EVENT_QUERY, FAULT_FAIL, 1, 1);
    submit(streams[0], 1, event, 0);
    submit(streams[0], 2, event, 0);
    TURN_UNTIL(done_nr == 2);
    assert_done(0, 1, MLACAT_INTERNAL);
    assert_non_null(strstr(done_errors[0].message, "event_query"));
    assert_done(1, 2, MLACAT_OK);
    assert_int_equal(device_fault_calls(FAULT_SUBMIT), 1);
}

static void test_engine_event_stays_until_the_last_call_has_ended(void **state)
{
    (void)state;
    hold_event();
    submit(streams[0], 1, event, 0);
    TURN_UNTIL(device_fault_hits(FAULT_EVENT_QUERY) > 0);
    event_drop(event);
    event = NULL;
    wait_for_rounds();
    assert_int_equal(events_gone, 0);
    assert_int_equal(device_releases, 0);
    device_fault_clear();
    TURN_UNTIL(events_gone == 1);
    assert_done(0, 1, MLACAT_OK);
    assert_int_equal(device_releases, 1);
}

static void test_engine_event_dropped_while_importing_goes(void **state)
{
    (void)state;
    device_fault_set(FAULT_EVENT_IMPORT, FAULT_HOLD, 1, 1);
    event_drop(import());
    TURN_UNTIL(device_fault_hits(FAULT_EVENT_IMPORT) == 1);
    assert_int_equal(events_gone, 0);
    device_fault_clear();
    TURN_UNTIL(events_gone == 1);
    assert_int_equal(device_releases, 1);
}

static void test_engine_event_that_cannot_be_imported_releases_nothing(void **state)
{
    (void)state;
    device_fault_set(FAULT_EVENT_IMPORT, FAULT_REFUSE, 1, 1);
    struct event *failed = import();
    TURN_UNTIL(imported == 2);
    assert_int_equal(failed->state, EVENT_FAILED);
    assert_int_equal(failed->error.code, MLACAT_RESOURCE_EXHAUSTED);
    event_drop(failed);
    TURN_UNTIL(events_gone == 1);
    assert_int_equal(device_releases, 0);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    alarm(60);
    const struct CMUnitTest tests[] = {
        TEST(test_engine_event_holds_its_stream_and_no_other),
        TEST(test_engine_event_is_asked_for_the_first_call_only),
        TEST(test_engine_event_lets_go_of_a_withdrawn_call),
        TEST(test_engine_event_does_not_outlast_a_deadline),
        TEST(test_engine_event_that_fails_ends_its_call),
        TEST(test_engine_event_stays_until_the_last_call_has_ended),
        TEST(test_engine_event_dropped_while_importing_goes),
        TEST(test_engine_event_that_cannot_be_imported_releases_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
