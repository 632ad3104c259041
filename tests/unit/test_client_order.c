/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "client_driver.h"
#include "stream_order.h"
#include "test_client_fake.h"
#include "test_client_rings.h"
#include "timing.h"

struct fixture {
    struct fake *fake;
    struct rings *rings;
    struct mlacat_client *client;
    struct mlacat_stream *stream;
    struct mlacat_buffer *buffer;
    struct mlacat_call call;
    void *cuda; /* a CUDA stream */
    void *other;
};

static int setup(void **state)
{
    static struct fixture f;
    client_driver_reset();
    f.fake = fake_start();
    fake_set(f.fake, (struct fake_mode){.rings = true, .cuda = true});
    f.client = fake_client(f.fake, MLACAT_DISPATCH_THREAD, 300);
    assert_int_equal(mlacat_stream_open(f.client, "GPU-1", &f.stream), MLACAT_OK);
    assert_int_equal(mlacat_buffer_alloc(f.client, "host", 4096, &f.buffer), MLACAT_OK);
    f.rings = fake_rings(f.fake);
    f.call = fake_call(f.buffer);
    f.call.operand[0] = mlacat_tensor_contiguous(f.buffer, 0, 1, 2, 6);
    f.call.operand[2] = mlacat_tensor_contiguous(f.buffer, 128, 1, 1, 3);
    f.cuda = client_driver_stream(0);
    f.other = client_driver_stream(1);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    mlacat_disconnect(f->client);
    fake_stop(f->fake);
    return 0;
}

/* Runs the CUDA stream until nothing of it is left. */
static void await_gpu(void)
{
    while (client_driver_run(0) > 0) {
        sched_yield();
    }
}

static enum mlacat_status await_failure(struct fixture *f)
{
    enum mlacat_status status;
    while ((status = mlacat_stream_status(f->stream)) == MLACAT_OK) {
        sched_yield();
    }
    return status;
}

static void test_client_order_runs_in_the_middle(void **state)
{
    struct fixture *f = *state;
    uint64_t id;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, &id), MLACAT_OK);
    rings_await_calls(f->rings, 1);
    struct mlacat_ring_submission last = rings_seen(f->rings).last;
    assert_int_equal(last.flags, MLACAT_RING_SUBMIT_READY | MLACAT_RING_SUBMIT_DONE);
    assert_int_equal(last.ready, 1);
    assert_int_equal(last.call_id, id);
    assert_int_equal(rings_done(f->rings, 0), 0); /* what it waits for is not done */
    await_gpu();
    assert_int_equal(rings_done(f->rings, 0), 1);
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
    assert_int_equal(mlacat_wait(f->stream, id, 0, NULL), MLACAT_NOT_FOUND);
    struct client_driver_seen seen = client_driver_seen();
    assert_int_equal(seen.registers, 1);
    assert_int_equal(seen.pushed, 0);
    assert_int_equal(seen.capture_mode, 0);
    assert_int_equal(seen.in_strict, 0);
}

/* More calls than the ring has entries: nobody takes their results, and the submit waits like a launch. */
static void *run_gpu(void *user)
{
    bool *stop = user;
    while (!__atomic_load_n(stop, __ATOMIC_ACQUIRE)) {
        client_driver_run(0);
        sched_yield();
    }
    return NULL;
}

static void test_client_order_slots_come_back(void **state)
{
    struct fixture *f = *state;
    pthread_t gpu;
    bool stop = false;
    assert_int_equal(pthread_create(&gpu, NULL, run_gpu, &stop), 0);
    for (int i = 0; i < 10 * RINGS_ENTRIES; i++) {
        assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_OK);
    }
    __atomic_store_n(&stop, true, __ATOMIC_RELEASE);
    pthread_join(gpu, NULL);
    await_gpu();
    assert_int_equal(rings_seen(f->rings).calls, 10 * RINGS_ENTRIES);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    assert_int_equal(f->stream->taken, 0);
    assert_int_equal(client_driver_seen().registers, 1);
}

/* Slots of calls that were submitted to be waited for come back by nothing else. */
static void test_client_order_does_not_wait_for_the_caller(void **state)
{
    struct fixture *f = *state;
    uint64_t ids[RINGS_ENTRIES - 1];
    for (int i = 0; i < RINGS_ENTRIES - 1; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[i]), MLACAT_OK);
    }
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_RESOURCE_EXHAUSTED);
    assert_int_equal(client_driver_seen().writes, 0);
    for (int i = 0; i < RINGS_ENTRIES - 1; i++) {
        assert_int_equal(mlacat_wait(f->stream, ids[i], -1, NULL), MLACAT_OK);
    }
}

/* The next stream on the same ring begins anew. */
static void test_client_order_after_a_close(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_OK);
    await_gpu();
    mlacat_stream_close(f->stream);
    assert_int_equal(mlacat_stream_open(f->client, "GPU-1", &f->stream), MLACAT_OK);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->other, NULL), MLACAT_OK);
    while (client_driver_run(1) > 0) {
        sched_yield();
    }
    assert_int_equal(client_driver_seen().registers, 1);
}

static void *close_stream(void *user)
{
    mlacat_stream_close(user);
    return NULL;
}

/* A write of the CUDA stream that is still to come must not hit the ring's next user. */
static void test_client_order_keeps_its_ring_until_the_writes_are_over(void **state)
{
    struct fixture *f = *state;
    struct mlacat_buffer *later;
    pthread_t thread;
    uint64_t id;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, &id), MLACAT_OK);
    assert_int_equal(mlacat_cancel(f->stream, id), MLACAT_OK);
    assert_int_equal(await_failure(f), MLACAT_CANCELLED);
    assert_int_equal(pthread_create(&thread, NULL, close_stream, f->stream), 0);
    for (bool closing = false; !closing; sched_yield()) {
        pthread_mutex_lock(&f->client->lock);
        closing = f->stream->closing;
        pthread_mutex_unlock(&f->client->lock);
    }
    /* Its answer would come after that to a close. */
    assert_int_equal(mlacat_buffer_alloc(f->client, "host", 4096, &later), MLACAT_OK);
    assert_int_equal(fake_seen(f->fake).closes, 0);
    await_gpu();
    pthread_join(thread, NULL);
    assert_int_equal(fake_seen(f->fake).closes, 1);
}

static void test_client_order_is_bound_to_one_stream(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_OK);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->other, NULL), MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(mlacat_error_message(), "id 101"));
    await_gpu();
    assert_int_equal(client_driver_seen().writes, 1);
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
}

static void test_client_order_refuses_before_anything_is_done(void **state)
{
    struct fixture *f = *state;
    struct mlacat_stream *stream;
    struct mlacat_call call = f->call;
    client_driver_capture(0, true);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &call, f->cuda, NULL), MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(mlacat_error_message(), "captured"));
    client_driver_capture(0, false);
    assert_int_equal(mlacat_stream_open(f->client, "host", &stream), MLACAT_OK);
    assert_int_equal(mlacat_submit_on_stream(stream, &call, f->cuda, NULL), MLACAT_UNIMPLEMENTED);
    struct mlacat_stream_options options = {.size = sizeof(options), .transport = MLACAT_TRANSPORT_MESSAGE};
    assert_int_equal(mlacat_stream_open_with(f->client, "GPU-1", &options, &stream), MLACAT_OK);
    assert_int_equal(mlacat_submit_on_stream(stream, &call, f->cuda, NULL), MLACAT_FAILED_PRECONDITION);
    assert_int_equal(mlacat_stream_status(stream), MLACAT_OK);
    call.operand[1].shape[1] = 5;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &call, f->cuda, NULL), MLACAT_INVALID_ARGUMENT);
    assert_non_null(strstr(mlacat_error_message(), "k_nope shape"));
    call.operand[1].buffer = NULL;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &call, f->cuda, NULL), MLACAT_INVALID_ARGUMENT);
    call = f->call;
    call.size = 3;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &call, f->cuda, NULL), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(mlacat_submit_on_stream(f->stream, NULL, f->cuda, NULL), MLACAT_INVALID_ARGUMENT);
    client_driver_remove();
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_FAILED_PRECONDITION);
    assert_int_equal(client_driver_seen().writes, 0);
    assert_int_equal(rings_seen(f->rings).calls, 0);
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
}

/* Without a look at the status in between. */
static void test_client_order_failed_call_is_seen_by_the_next(void **state)
{
    struct fixture *f = *state;
    uint64_t id;
    rings_set(f->rings, (struct rings_mode){.code = MLACAT_NOT_FOUND, .scope = MLACAT_SCOPE_CALL, .text = "no buffer"});
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_OK);
    await_gpu();
    rings_await_sleep(f->rings);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_NOT_FOUND);
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_NOT_FOUND);
    assert_int_equal(client_driver_seen().writes, 1);
}

static void test_client_order_failed_call_lets_go_and_fails_the_stream(void **state)
{
    struct fixture *f = *state;
    uint64_t id;
    rings_set(f->rings, (struct rings_mode){.code = MLACAT_NOT_FOUND, .scope = MLACAT_SCOPE_CALL, .text = "no buffer"});
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_OK);
    await_gpu();
    assert_int_equal(await_failure(f), MLACAT_NOT_FOUND);
    assert_string_equal(mlacat_error_message(), "no buffer");
    assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_STREAM);
    rings_set(f->rings, (struct rings_mode){0});
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_NOT_FOUND);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_NOT_FOUND);
    assert_int_equal(client_driver_seen().writes, 1);
}

/* A value that was never published must not open the gate of the next call. */
static void test_client_order_driver_that_fails(void **state)
{
    struct fixture *f = *state;
    client_driver_fail(CLIENT_DRIVER_REGISTER);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_INTERNAL);
    client_driver_fail(CLIENT_DRIVER_ADDRESS);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_INTERNAL);
    client_driver_fail(CLIENT_DRIVER_WRITE);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_INTERNAL);
    assert_int_equal(rings_seen(f->rings).calls, 0);
    client_driver_fail(CLIENT_DRIVER_NONE);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_OK);
    rings_await_calls(f->rings, 1);
    assert_int_equal(rings_seen(f->rings).last.ready, 2);
    await_gpu();
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
    client_driver_fail(CLIENT_DRIVER_WAIT);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_INTERNAL);
    assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_STREAM);
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_INTERNAL);
    assert_int_equal(client_driver_seen().registers, 1);
    client_driver_run(0);
}

static void test_client_order_cancel_lets_go(void **state)
{
    struct fixture *f = *state;
    uint64_t id;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, &id), MLACAT_OK);
    assert_int_equal(mlacat_cancel(f->stream, id), MLACAT_OK);
    await_gpu();
    assert_int_equal(await_failure(f), MLACAT_CANCELLED);
}

/* Nobody is in the library when the daemon goes; the GPU is let go on, but not before the daemon has exited. */
static void test_client_order_daemon_goes(void **state)
{
    struct fixture *f = *state;
    struct mlacat_stream *unbound;
    assert_int_equal(mlacat_stream_open(f->client, "GPU-1", &unbound), MLACAT_OK);
    rings_set(f->rings, (struct rings_mode){.hold = true});
    for (int i = 0; i < 3; i++) {
        assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_OK);
    }
    rings_await_calls(f->rings, 3);
    fake_die(f->fake, NULL);
    assert_true(client_driver_run(0) > 0);
    int64_t exited_ns = timing_now();
    fake_exit(f->fake);
    await_gpu();
    assert_true(timing_now() - exited_ns < 100 * TIMING_MS);
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_UNAVAILABLE);
    assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_SESSION);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_UNAVAILABLE);
    /* A stream that had nothing in flight goes on, with pages that CUDA does not know yet. */
    assert_int_equal(mlacat_stream_status(unbound), MLACAT_OK);
    assert_int_equal(mlacat_submit_on_stream(unbound, &f->call, f->cuda, NULL), MLACAT_OK);
    await_gpu();
    assert_int_equal(client_driver_seen().registers, 2);
}

struct submission {
    struct fixture *f;
    bool over;
};

static void *submit_one(void *user)
{
    struct submission *submission = user;
    struct fixture *f = submission->f;
    mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL);
    __atomic_store_n(&submission->over, true, __ATOMIC_RELEASE);
    return NULL;
}

/* The driver waits for the GPU, which waits for the daemon, while a submit holds the ring. */
static void test_client_order_daemon_goes_while_the_driver_is_full(void **state)
{
    struct fixture *f = *state;
    struct submission submission = {.f = f};
    pthread_t thread;
    rings_set(f->rings, (struct rings_mode){.hold = true});
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_OK);
    assert_int_equal(client_driver_run(0), 1);
    client_driver_full(1);
    assert_int_equal(pthread_create(&thread, NULL, submit_one, &submission), 0);
    while (client_driver_seen().writes < 2) {
        sched_yield();
    }
    fake_die(f->fake, NULL);
    fake_exit(f->fake);
    while (!__atomic_load_n(&submission.over, __ATOMIC_ACQUIRE)) {
        client_driver_run(0);
        sched_yield();
    }
    pthread_join(thread, NULL);
    await_gpu();
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_UNAVAILABLE);
}

/* Else the daemon would serve a parent that is gone for as long as the child lives. */
static void test_client_order_forked_child_keeps_no_connection(void **state)
{
    struct fixture *f = *state;
    int status;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_OK);
    const struct order_watch *watch = SLIST_FIRST(&f->client->watches);
    int kept[2] = {watch->socket, watch->pidfd};
    pid_t child = fork();
    if (child == 0) {
        mlacat_disconnect(f->client);
        _exit(fcntl(kept[0], F_GETFD) < 0 && fcntl(kept[1], F_GETFD) < 0 ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    await_gpu();
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
}

/* The daemon lives on: what it had launched for us has some time to finish, then the GPU is let go on. */
static void test_client_order_disconnect_lets_go(void **state)
{
    struct fixture *f = *state;
    rings_set(f->rings, (struct rings_mode){.hold = true});
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, f->cuda, NULL), MLACAT_OK);
    assert_int_equal(client_driver_run(0), 1);
    mlacat_disconnect(f->client);
    assert_int_equal(client_driver_run(0), 0);
    f->client = fake_client(f->fake, MLACAT_DISPATCH_THREAD, 300);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_client_order_runs_in_the_middle),
        TEST(test_client_order_slots_come_back),
        TEST(test_client_order_does_not_wait_for_the_caller),
        TEST(test_client_order_after_a_close),
        TEST(test_client_order_keeps_its_ring_until_the_writes_are_over),
        TEST(test_client_order_is_bound_to_one_stream),
        TEST(test_client_order_refuses_before_anything_is_done),
        TEST(test_client_order_failed_call_is_seen_by_the_next),
        TEST(test_client_order_failed_call_lets_go_and_fails_the_stream),
        TEST(test_client_order_driver_that_fails),
        TEST(test_client_order_cancel_lets_go),
        TEST(test_client_order_daemon_goes),
        TEST(test_client_order_daemon_goes_while_the_driver_is_full),
        TEST(test_client_order_forked_child_keeps_no_connection),
        TEST(test_client_order_disconnect_lets_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
