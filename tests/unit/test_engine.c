/* SPDX-License-Identifier: Apache-2.0 */
/* The engine over a device made of paper: nothing is copied, and each call ends when the test says so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "buffers.h"
#include "clock.h"
#include "engine.h"
#include "stream.h"

#define ROOM 2   /* calls that the paper device takes */
#define CALLS 16 /* of a stream */

/* ------------------------------------------------------------------------------------------ the paper device */

static struct {
    _Atomic int permits; /* calls that may end */
    _Atomic int launched;
    _Atomic int refused;     /* submits answered with AGAIN */
    _Atomic int lost;        /* poll fails */
    _Atomic int refuse_open; /* stream_open fails */
    _Atomic int fail_import;
    _Atomic bool gone;           /* tend finds no device */
    _Atomic uint64_t tend_in_ns; /* 0: later */
    _Atomic int known;           /* imports: open already */
    _Atomic int released;
    _Atomic int closed;
} paper;

struct device_stream {
    void *cookies[ROOM];
    int nr;
};

static struct device_memory {
    int unused;
} paper_memory;

static enum device_answer paper_open(const char *uuid, struct device **device, struct device_info *info,
                                     struct error *err)
{
    (void)uuid;
    (void)err;
    *device = NULL;
    *info = (struct device_info){.uuid = "paper", .kind = "paper"};
    return DEVICE_OK;
}

static void paper_close(struct device *device)
{
    (void)device;
}

static enum mlacat_status paper_import(struct device *device, struct memory_request *request,
                                       struct device_memory **memory, struct memory_info *info, struct error *err)
{
    (void)device;
    assert_int_equal(request->chunks_nr, 0);
    if (paper.fail_import) {
        return error_set(err, MLACAT_FAILED_PRECONDITION, "paper says no");
    }
    *memory = &paper_memory;
    *info = (struct memory_info){.charged_bytes = 4096, .known = paper.known != 0};
    return MLACAT_OK;
}

static void paper_release(struct device *device, struct device_memory *memory)
{
    (void)device;
    assert_ptr_equal(memory, &paper_memory);
    paper.released++;
}

static enum mlacat_status paper_stream_open(struct device *device, const struct device_words *words,
                                            struct device_stream **stream, struct error *err)
{
    (void)device;
    (void)words;
    if (paper.refuse_open) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "paper is full");
    }
    *stream = calloc(1, sizeof(**stream));
    return MLACAT_OK;
}

static void paper_stream_close(struct device_stream *stream)
{
    assert_int_equal(stream->nr, 0);
    free(stream);
    paper.closed++;
}

static enum device_answer paper_submit(struct device_stream *stream, const struct device_call *calls, uint32_t *nr,
                                       struct error *err)
{
    uint32_t taken = 0;
    while (taken < *nr && stream->nr < ROOM && calls[taken].plan.dim0 != 13) {
        stream->cookies[stream->nr++] = calls[taken++].cookie;
        paper.launched++;
    }
    *nr = taken;
    if (taken > 0) {
        return DEVICE_OK;
    }
    if (stream->nr == ROOM) {
        paper.refused++;
        return DEVICE_AGAIN;
    }
    error_set(err, MLACAT_INTERNAL, "paper does not like 13");
    return DEVICE_ERROR;
}

static int paper_poll(struct device_stream *stream, struct device_completion *done, int max, struct error *err)
{
    int nr = 0;
    if (paper.lost) {
        stream->nr = 0;
        error_set(err, MLACAT_INTERNAL, "paper burnt");
        return -1;
    }
    while (nr < max && stream->nr > 0 && paper.permits > 0) {
        paper.permits--;
        done[nr++] = (struct device_completion){.cookie = stream->cookies[0]};
        memmove(stream->cookies, stream->cookies + 1, sizeof(stream->cookies) - sizeof(stream->cookies[0]));
        stream->nr--;
    }
    return nr;
}

static uint64_t paper_tend(struct device *device, struct error *err)
{
    (void)device;
    if (paper.gone) {
        error_set_scoped(err, MLACAT_UNAVAILABLE, MLACAT_SCOPE_DEVICE, "paper flew away");
    }
    return paper.tend_in_ns ? paper.tend_in_ns : DEVICE_TEND_LATER;
}

static const struct device_ops paper_ops = {
    .kind = "paper",
    .open = paper_open,
    .close = paper_close,
    .mem_import = paper_import,
    .mem_release = paper_release,
    .tend = paper_tend,
    .stream_open = paper_stream_open,
    .stream_close = paper_stream_close,
    .submit = paper_submit,
    .poll = paper_poll,
};

/* ------------------------------------------------------------------------------------------ the test's loop */

static struct engine engine;
static struct control_lane lane;
static struct loop_bell bell;
static struct stream *stream;
static struct buffer *buffer;
static int opened;
static int streams_gone;
static int imported;
static int buffers_gone;
static int done_nr;
static uint64_t done_ids[4 * CALLS];
static struct error done_errors[4 * CALLS];

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
    assert_int_equal(call->state, CALL_DONE);
    done_ids[done_nr] = call->call_id;
    done_errors[done_nr++] = call->error;
    for (int i = 0; i < OP_OPERANDS; i++) {
        buffer_unpin(call->buffer[i]);
    }
    stream_put_call(s, call);
}

static void on_stream_gone(struct stream *s)
{
    (void)s;
    streams_gone++;
}

static void on_imported(struct buffer *b)
{
    (void)b;
    imported++;
}

static void on_buffer_gone(struct buffer *b)
{
    (void)b;
    buffers_gone++;
}

static const struct stream_handlers stream_handlers = {on_opened, on_call_done, NULL, on_stream_gone};
static const struct buffer_handlers buffer_handlers = {on_imported, NULL, on_buffer_gone};

/* Turns the loop until the condition holds; the alarm of main() ends a test that waits in vain. */
#define TURN_UNTIL(condition) \
    while (!(condition)) {    \
        engine_take(&engine); \
        sched_yield();        \
    }

static struct buffer *import(void)
{
    static const struct memory_request request = {.kind = MEMORY_HOST};
    struct buffer *made;
    struct error err;
    assert_int_equal(buffer_import(&engine, &lane, &request, &buffer_handlers, NULL, &made, &err), MLACAT_OK);
    return made;
}

static struct call *submit(uint64_t id, uint64_t dim0, uint64_t deadline_ns)
{
    struct call *call = stream_get_call(stream);
    assert_non_null(call);
    call->call_id = id;
    call->plan.dim0 = dim0;
    call->deadline_ns = deadline_ns;
    for (int i = 0; i < OP_OPERANDS; i++) {
        buffer_pin(buffer);
        call->buffer[i] = buffer;
    }
    stream_submit(stream, call);
    return call;
}

static int setup(void **state)
{
    struct error err;
    struct engine_options options = {
        .ops = &paper_ops, .uuid = "", .workers = 1, .poll = WORKER_POLL_BALANCED, .spin_ns = 1000, .bell = &bell};
    (void)state;
    memset(&paper, 0, sizeof(paper));
    opened = streams_gone = imported = buffers_gone = done_nr = 0;
    bell.wake = no_wake;
    control_lane_init(&lane);
    assert_int_equal(engine_start(&engine, &options, &err), MLACAT_OK);
    assert_int_equal(stream_open(&engine, &lane, CALLS, NULL, &stream_handlers, NULL, &stream, &err), MLACAT_OK);
    buffer = import();
    TURN_UNTIL(opened == 1 && imported == 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (stream) {
        stream_close(stream);
    }
    if (buffer) {
        buffer_drop(buffer);
    }
    TURN_UNTIL(engine_idle(&engine));
    engine_stop(&engine);
    assert_int_equal(paper.released, imported - paper.fail_import);
    return 0;
}

/* The worker's rounds since now: one that has begun may have been at any place of it. */
static void wait_for_rounds(uint64_t rounds)
{
    uint64_t before = atomic_load(&engine.workers[0].heartbeat);
    TURN_UNTIL(atomic_load(&engine.workers[0].heartbeat) >= before + rounds);
}

/* Between the worker's last look into its empty inbox and the rest of its round: it stops there until `go`. */
static struct {
    _Atomic bool armed;
    _Atomic bool there;
    _Atomic bool go;
} gap;

struct mail *__real_mailbox_take(struct mailbox *mailbox);
struct mail *__wrap_mailbox_take(struct mailbox *mailbox);

struct mail *__wrap_mailbox_take(struct mailbox *mailbox)
{
    struct mail *item = __real_mailbox_take(mailbox);
    if (!item && mailbox == &engine.workers[0].inbox && atomic_exchange(&gap.armed, false)) {
        gap.there = true;
        while (!gap.go) {
            sched_yield();
        }
    }
    return item;
}

/* ------------------------------------------------------------------------------------------ tests */

static void test_engine_runs_calls_in_order_and_once(void **state)
{
    (void)state;
    paper.permits = CALLS;
    for (uint64_t i = 0; i < CALLS; i++) {
        submit(i, 1, 0);
    }
    assert_null(stream_get_call(stream));
    TURN_UNTIL(done_nr == CALLS);
    for (uint64_t i = 0; i < CALLS; i++) {
        assert_int_equal(done_ids[i], i);
        assert_int_equal(done_errors[i].code, MLACAT_OK);
    }
    assert_int_equal(paper.launched, CALLS);
    assert_non_null(stream_get_call(stream));
    stream_put_call(stream, LIST_ENTRY(stream->live.next, struct call, link));
}

static void test_engine_cancels_what_waits_and_only_that(void **state)
{
    struct call *calls[4];
    (void)state;
    for (uint64_t i = 0; i < 4; i++) {
        calls[i] = submit(i, 1, 0);
    }
    TURN_UNTIL(paper.launched == ROOM);
    /* Launched: too late. */
    assert_false(stream_withdraw(stream, calls[0], CALL_WITHDRAWN_CANCEL));
    /* This one may be with the device for a moment, which refuses it. */
    TURN_UNTIL(stream_withdraw(stream, calls[3], CALL_WITHDRAWN_CANCEL));
    assert_false(stream_withdraw(stream, calls[3], CALL_WITHDRAWN_CANCEL));
    TURN_UNTIL(done_nr == 1);
    assert_int_equal(done_ids[0], 3);
    assert_int_equal(done_errors[0].code, MLACAT_CANCELLED);
    paper.permits = 3;
    TURN_UNTIL(done_nr == 4);
    assert_int_equal(paper.launched, 3);
}

static void test_engine_withdraws_behind_a_full_device(void **state)
{
    struct call *calls[CALLS];
    (void)state;
    for (uint64_t i = 0; i < ROOM + 1; i++) {
        calls[i] = submit(i, 1, 0);
    }
    TURN_UNTIL(paper.refused == 1);
    wait_for_rounds(3);
    assert_int_equal(paper.refused, 1); /* not offered again and again: each time it could not be withdrawn */
    assert_true(stream_withdraw(stream, calls[ROOM], CALL_WITHDRAWN_CANCEL));
    TURN_UNTIL(done_nr == 1);
    assert_int_equal(done_ids[0], ROOM);
    assert_int_equal(done_errors[0].code, MLACAT_CANCELLED);
    assert_int_equal(done_nr, 1);

    /* Its deadline counts as well, and who comes after it is launched when there is room. */
    uint64_t deadline_ns = clock_now_ns() + 1000000;
    submit(ROOM + 1, 1, deadline_ns);
    submit(ROOM + 2, 1, 0);
    TURN_UNTIL(clock_now_ns() > deadline_ns);
    paper.permits = ROOM + 1;
    TURN_UNTIL(done_nr == ROOM + 3);
    assert_int_equal(paper.launched, ROOM + 1);
}

/* A call that comes and goes while the worker is between its inbox and its streams: the device is full, so nothing but
 * the count of withdrawals makes the worker look for it. */
static void test_engine_sees_a_withdrawal_that_overtakes_its_call(void **state)
{
    (void)state;
    submit(0, 1, 0);
    submit(1, 1, 0);
    submit(2, 1, 0);
    TURN_UNTIL(paper.refused == 1);
    gap.there = gap.go = false;
    gap.armed = true;
    TURN_UNTIL(gap.there);
    struct call *call = submit(3, 1, 0);
    assert_true(stream_withdraw(stream, call, CALL_WITHDRAWN_CANCEL));
    gap.go = true;
    TURN_UNTIL(done_nr == 1);
    assert_int_equal(done_ids[0], 3);
    assert_int_equal(done_errors[0].code, MLACAT_CANCELLED);
    paper.permits = 3;
    TURN_UNTIL(done_nr == 4);
    assert_int_equal(paper.launched, 3);
}

static void test_engine_launches_nothing_past_its_deadline(void **state)
{
    (void)state;
    paper.permits = 2;
    submit(1, 1, 1); /* long past */
    submit(2, 1, clock_now_ns() + UINT64_C(3600000000000));
    TURN_UNTIL(done_nr == 2);
    assert_int_equal(done_errors[0].code, MLACAT_DEADLINE_EXCEEDED);
    assert_int_equal(done_errors[1].code, MLACAT_OK);
    assert_int_equal(paper.launched, 1);
}

static void test_engine_one_refused_call_harms_no_other(void **state)
{
    (void)state;
    paper.permits = 2;
    submit(1, 1, 0);
    submit(2, 13, 0);
    submit(3, 1, 0);
    TURN_UNTIL(done_nr == 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(done_errors[i].code, done_ids[i] == 2 ? MLACAT_INTERNAL : MLACAT_OK);
    }
}

static void test_engine_fails_every_call_of_a_lost_device(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 5; i++) {
        submit(i, 1, 0);
    }
    TURN_UNTIL(paper.launched == ROOM);
    paper.lost = 1;
    TURN_UNTIL(done_nr == 5);
    submit(5, 1, 0);
    TURN_UNTIL(done_nr == 6);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(done_errors[i].scope, MLACAT_SCOPE_DEVICE);
        assert_string_equal(done_errors[i].message, "paper burnt");
    }
}

static void test_engine_times_imports_and_releases_that_succeed(void **state)
{
    const struct engine_times *times = &engine.times;
    (void)state;
    assert_int_equal(times->import_first.total, 1); /* the setup's */
    paper.known = 1;
    struct buffer *second = import();
    TURN_UNTIL(imported == 2);
    assert_int_equal(times->import_first.total, 1);
    assert_int_equal(times->import_known.total, 1);
    assert_int_equal(times->release.total, 0);
    buffer_drop(second);
    TURN_UNTIL(buffers_gone == 1);
    assert_int_equal(times->release.total, 1);
    paper.fail_import = 1;
    buffer_drop(import());
    TURN_UNTIL(buffers_gone == 2);
    assert_int_equal(times->import_known.total, 1);
    assert_int_equal(times->release.total, 1);
}

static void test_engine_stream_closes_after_its_last_call(void **state)
{
    (void)state;
    submit(1, 1, 0);
    TURN_UNTIL(paper.launched == 1);
    stream_close(stream);
    for (int i = 0; i < 100; i++) {
        engine_take(&engine);
    }
    assert_int_equal(paper.closed, 0);
    paper.permits = 1;
    TURN_UNTIL(streams_gone == 1);
    assert_int_equal(done_nr, 1);
    assert_int_equal(paper.closed, 1);
    stream = NULL;
}

static void test_engine_stream_closed_while_opening_goes(void **state)
{
    struct stream *second;
    struct error err;
    (void)state;
    assert_int_equal(stream_open(&engine, &lane, CALLS, NULL, &stream_handlers, NULL, &second, &err), MLACAT_OK);
    stream_close(second);
    TURN_UNTIL(streams_gone == 1);
    assert_int_equal(opened, 1);
    assert_int_equal(paper.closed, 1);
}

static void test_engine_tells_a_stream_that_the_device_refuses(void **state)
{
    struct stream *second;
    struct error err;
    (void)state;
    paper.refuse_open = 1;
    assert_int_equal(stream_open(&engine, &lane, CALLS, NULL, &stream_handlers, NULL, &second, &err), MLACAT_OK);
    TURN_UNTIL(streams_gone == 1);
    assert_int_equal(opened, 2);
    assert_int_equal(paper.closed, 0);
}

static void test_engine_keeps_memory_until_the_last_call_ends(void **state)
{
    (void)state;
    submit(1, 1, 0);
    submit(2, 1, 0);
    TURN_UNTIL(paper.launched == 2);
    buffer_drop(buffer);
    buffer = NULL;
    paper.permits = 1;
    TURN_UNTIL(done_nr == 1);
    for (int i = 0; i < 100; i++) {
        engine_take(&engine);
    }
    assert_int_equal(paper.released, 0);
    paper.permits = 1;
    TURN_UNTIL(buffers_gone == 1);
    assert_int_equal(paper.released, 1);
}

static void test_engine_buffer_dropped_while_importing_goes(void **state)
{
    (void)state;
    buffer_drop(import());
    TURN_UNTIL(buffers_gone == 1);
    assert_int_equal(paper.released, 1);
}

static void test_engine_failed_import_releases_nothing(void **state)
{
    (void)state;
    paper.fail_import = 1;
    struct buffer *failed = import();
    TURN_UNTIL(imported == 2);
    assert_int_equal(failed->state, BUFFER_FAILED);
    assert_string_equal(failed->error.message, "paper says no");
    buffer_drop(failed);
    TURN_UNTIL(buffers_gone == 1);
    assert_int_equal(paper.released, 0);
}

static void test_engine_stuck_means_calls_without_rounds(void **state)
{
    (void)state;
    assert_false(engine_stuck(&engine));
    assert_false(engine_stuck(&engine)); /* asleep without calls is fine */
    submit(1, 1, 0);
    TURN_UNTIL(paper.launched == 1);
    uint64_t before = atomic_load(&engine.workers[0].heartbeat);
    TURN_UNTIL(atomic_load(&engine.workers[0].heartbeat) > before + 1);
    assert_false(engine_stuck(&engine)); /* it goes round */
    engine.workers[0].heartbeat_seen = atomic_load(&engine.workers[0].heartbeat);
    paper.permits = 1;
    TURN_UNTIL(done_nr == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_engine_runs_calls_in_order_and_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_cancels_what_waits_and_only_that, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_withdraws_behind_a_full_device, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_sees_a_withdrawal_that_overtakes_its_call, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_launches_nothing_past_its_deadline, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_one_refused_call_harms_no_other, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_fails_every_call_of_a_lost_device, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_times_imports_and_releases_that_succeed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_stream_closes_after_its_last_call, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_stream_closed_while_opening_goes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_tells_a_stream_that_the_device_refuses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_keeps_memory_until_the_last_call_ends, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_buffer_dropped_while_importing_goes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_failed_import_releases_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_stuck_means_calls_without_rounds, setup, teardown),
    };
    alarm(50);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
