/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "client_clock.h"
#include "client_driver.h"
#include "stream_order.h"
#include "test_client_scene.h"
#include "timing.h"

/* CUDA streams. */
static void *cuda;
static void *other;

static atomic_uint naps; /* of the library, in which it waits for a CUDA stream to settle */

int __real_nanosleep(const struct timespec *time, struct timespec *left);
int __wrap_nanosleep(const struct timespec *time, struct timespec *left);

int __wrap_nanosleep(const struct timespec *time, struct timespec *left)
{
    atomic_fetch_add(&naps, 1);
    return __real_nanosleep(time, left);
}

static int setup(void **state)
{
    client_clock_reset();
    client_driver_reset();
    cuda = client_driver_stream(0);
    other = client_driver_stream(1);
    *state = scene_open((struct fake_mode){.rings = true, .cuda = true}, MLACAT_DISPATCH_THREAD);
    return 0;
}

static int teardown(void **state)
{
    client_clock_reset();
    return scene_close(state);
}

/* Runs the CUDA stream until nothing of it is left. */
static void await_gpu(void)
{
    while (client_driver_run(0) > 0) {
        sched_yield();
    }
}

static enum mlacat_status await_failure(struct scene *f)
{
    enum mlacat_status status;
    while ((status = mlacat_stream_status(f->stream)) == MLACAT_OK) {
        sched_yield();
    }
    return status;
}

static void test_client_order_runs_in_the_middle(void **state)
{
    struct scene *f = *state;
    uint64_t id;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, &id), MLACAT_OK);
    rings_await_calls(f->rings, 1);
    struct mlacat_ring_submission last = rings_seen(f->rings).last;
    assert_int_equal(last.flags, MLACAT_RING_SUBMIT_READY | MLACAT_RING_SUBMIT_DONE);
    assert_true(last.ready == RINGS_BEGIN + 1);
    assert_int_equal(last.call_id, id);
    assert_int_equal(rings_done(f->rings, 0), 0); /* what it waits for is not done */
    await_gpu();
    assert_true(rings_done(f->rings, 0) == RINGS_BEGIN + 1);
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
    struct scene *f = *state;
    pthread_t gpu;
    bool stop = false;
    assert_int_equal(pthread_create(&gpu, NULL, run_gpu, &stop), 0);
    for (int i = 0; i < 10 * RINGS_ENTRIES; i++) {
        assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
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
    struct scene *f = *state;
    uint64_t ids[RINGS_ENTRIES - 1];
    for (int i = 0; i < RINGS_ENTRIES - 1; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[i]), MLACAT_OK);
    }
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_RESOURCE_EXHAUSTED);
    assert_int_equal(client_driver_seen().batches, 0);
    for (int i = 0; i < RINGS_ENTRIES - 1; i++) {
        assert_int_equal(mlacat_wait(f->stream, ids[i], -1, NULL), MLACAT_OK);
    }
}

static void reopen(struct scene *f)
{
    mlacat_stream_close(f->stream);
    assert_int_equal(mlacat_stream_open(f->client, "GPU-1", &f->stream), MLACAT_OK);
    assert_int_equal(f->stream->ring->index, 0);
}

/* The ring's numbers go on, and another CUDA stream may use it. */
static void test_client_order_after_a_close(void **state)
{
    struct scene *f = *state;
    for (int i = 1; i <= 30; i++) {
        assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, i % 2 == 1 ? cuda : other, NULL), MLACAT_OK);
        while (client_driver_run(0) + client_driver_run(1) > 0) {
            sched_yield();
        }
        assert_true(rings_done(f->rings, 0) == RINGS_BEGIN + (uint64_t)i);
        reopen(f);
        assert_true(f->stream->ring->sequence == RINGS_BEGIN + (uint64_t)i);
    }
    assert_int_equal(client_driver_seen().registers, 1);
}

struct submission {
    struct scene *f;
    void *cu_stream;
    enum mlacat_status status;
    bool over;
};

static void *submit_one(void *user)
{
    struct submission *submission = user;
    struct scene *f = submission->f;
    submission->status = mlacat_submit_on_stream(f->stream, &f->call, submission->cu_stream, NULL);
    __atomic_store_n(&submission->over, true, __ATOMIC_RELEASE);
    return NULL;
}

/* What the CUDA stream of a cancelled call has yet to do goes on to be true, also when the ring has another stream; and
 * its write would take back that stream's, so that the other CUDA stream is given nothing before. */
static void test_client_order_write_that_is_to_come_when_the_stream_is_closed(void **state)
{
    struct scene *f = *state;
    struct submission submission = {.f = f, .cu_stream = other};
    pthread_t thread;
    uint64_t id;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, &id), MLACAT_OK);
    assert_int_equal(mlacat_cancel(f->stream, id), MLACAT_OK);
    assert_int_equal(await_failure(f), MLACAT_CANCELLED);
    reopen(f);
    client_clock_stop();
    unsigned before = atomic_load(&naps);
    assert_int_equal(pthread_create(&thread, NULL, submit_one, &submission), 0);
    while (atomic_load(&naps) == before && !__atomic_load_n(&submission.over, __ATOMIC_ACQUIRE)) {
        sched_yield();
    }
    assert_int_equal(client_driver_seen().batches, 1);
    await_gpu(); /* the write, and the wait, whose word is there */
    pthread_join(thread, NULL);
    assert_int_equal(submission.status, MLACAT_OK);
    while (client_driver_run(1) > 0) {
        sched_yield();
    }
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
}

/* It is an error in the end, and no hang. */
static void test_client_order_write_that_does_not_come(void **state)
{
    struct scene *f = *state;
    uint64_t id;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, &id), MLACAT_OK);
    assert_int_equal(mlacat_cancel(f->stream, id), MLACAT_OK);
    unsigned before = atomic_load(&naps);
    reopen(f);
    assert_int_equal(atomic_load(&naps), before);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, other, NULL), MLACAT_UNAVAILABLE);
    assert_non_null(strstr(mlacat_error_message(), "submit again"));
    assert_int_equal(client_driver_seen().batches, 1);
    await_gpu();
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, other, NULL), MLACAT_OK);
    while (client_driver_run(1) > 0) {
        sched_yield();
    }
}

/* The call is withdrawn, for nothing would let it begin, and the stream has failed. What the driver has not taken is
 * not waited for. */
static void test_client_order_batch_that_failed(void **state)
{
    struct scene *f = *state;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
    await_gpu();
    client_driver_fail(CLIENT_DRIVER_BATCH);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_INTERNAL);
    assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_STREAM);
    client_driver_fail(CLIENT_DRIVER_NONE);
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_INTERNAL);
    assert_non_null(strstr(mlacat_error_message(), "cuStreamBatchMemOp"));
    assert_true(rings_done(f->rings, 0) == RINGS_BEGIN + 2); /* it has ended */
    unsigned before = atomic_load(&naps);
    reopen(f);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, other, NULL), MLACAT_OK);
    assert_int_equal(atomic_load(&naps), before);
    while (client_driver_run(1) > 0) {
        sched_yield();
    }
}

static void test_client_order_is_bound_to_one_stream(void **state)
{
    struct scene *f = *state;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, other, NULL), MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(mlacat_error_message(), "id 101"));
    await_gpu();
    assert_int_equal(client_driver_seen().batches, 1);
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
}

static void test_client_order_refuses_before_anything_is_done(void **state)
{
    struct scene *f = *state;
    struct mlacat_stream *stream;
    struct mlacat_call call = f->call;
    client_driver_capture(0, true);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &call, cuda, NULL), MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(mlacat_error_message(), "captured"));
    client_driver_capture(0, false);
    assert_int_equal(mlacat_stream_open(f->client, "host", &stream), MLACAT_OK);
    assert_int_equal(mlacat_submit_on_stream(stream, &call, cuda, NULL), MLACAT_UNIMPLEMENTED);
    struct mlacat_stream_options options = {.size = sizeof(options), .transport = MLACAT_TRANSPORT_MESSAGE};
    assert_int_equal(mlacat_stream_open_with(f->client, "GPU-1", &options, &stream), MLACAT_OK);
    assert_int_equal(mlacat_submit_on_stream(stream, &call, cuda, NULL), MLACAT_FAILED_PRECONDITION);
    assert_int_equal(mlacat_stream_status(stream), MLACAT_OK);
    call.operand[1].shape[1] = 5;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &call, cuda, NULL), MLACAT_INVALID_ARGUMENT);
    assert_non_null(strstr(mlacat_error_message(), "k_nope shape"));
    call.operand[1].buffer = NULL;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &call, cuda, NULL), MLACAT_INVALID_ARGUMENT);
    call = f->call;
    call.size = 3;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &call, cuda, NULL), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(mlacat_submit_on_stream(f->stream, NULL, cuda, NULL), MLACAT_INVALID_ARGUMENT);
    client_driver_remove();
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_FAILED_PRECONDITION);
    assert_int_equal(client_driver_seen().batches, 0);
    assert_int_equal(rings_seen(f->rings).calls, 0);
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
}

/* Without a look at the status in between. */
static void test_client_order_failed_call_is_seen_by_the_next(void **state)
{
    struct scene *f = *state;
    uint64_t id;
    rings_set(f->rings, (struct rings_mode){.code = MLACAT_NOT_FOUND, .scope = MLACAT_SCOPE_CALL, .text = "no buffer"});
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
    await_gpu();
    rings_await_sleep(f->rings);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_NOT_FOUND);
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_NOT_FOUND);
    assert_int_equal(client_driver_seen().batches, 1);
}

static void test_client_order_failed_call_lets_go_and_fails_the_stream(void **state)
{
    struct scene *f = *state;
    uint64_t id;
    rings_set(f->rings, (struct rings_mode){.code = MLACAT_NOT_FOUND, .scope = MLACAT_SCOPE_CALL, .text = "no buffer"});
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
    await_gpu();
    assert_int_equal(await_failure(f), MLACAT_NOT_FOUND);
    assert_string_equal(mlacat_error_message(), "no buffer");
    assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_STREAM);
    rings_set(f->rings, (struct rings_mode){0});
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_NOT_FOUND);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_NOT_FOUND);
    assert_int_equal(client_driver_seen().batches, 1);
}

static void test_client_order_driver_that_fails(void **state)
{
    struct scene *f = *state;
    client_driver_fail(CLIENT_DRIVER_CAPTURING); /* a CUDA stream that is none, say */
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_INTERNAL);
    assert_non_null(strstr(mlacat_error_message(), "cuStreamIsCapturing: 999"));
    client_driver_fail(CLIENT_DRIVER_REGISTER);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_INTERNAL);
    client_driver_fail(CLIENT_DRIVER_ADDRESS);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_INTERNAL);
    assert_int_equal(rings_seen(f->rings).calls, 0);
    client_driver_fail(CLIENT_DRIVER_NONE);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
    rings_await_calls(f->rings, 1);
    assert_true(rings_seen(f->rings).last.ready == RINGS_BEGIN + 1);
    await_gpu();
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
    assert_int_equal(client_driver_seen().registers, 1);
}

static void test_client_order_cancel_lets_go(void **state)
{
    struct scene *f = *state;
    uint64_t id;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, &id), MLACAT_OK);
    assert_int_equal(mlacat_cancel(f->stream, id), MLACAT_OK);
    await_gpu();
    assert_int_equal(await_failure(f), MLACAT_CANCELLED);
}

/* It failed, its GPU has passed it, and the daemon was killed before it told: nobody waits for what it owes. The clock
 * stands still, so that such a wait would have no end. */
static void test_client_order_daemon_goes_before_it_tells(void **state)
{
    struct scene *f = *state;
    rings_set(f->rings, (struct rings_mode){
                            .late = true, .code = MLACAT_NOT_FOUND, .scope = MLACAT_SCOPE_CALL, .text = "no buffer"});
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
    await_gpu();
    assert_int_equal(rings_failed(f->rings, 0), 1);
    client_clock_stop();
    fake_die(f->fake, NULL);
    assert_int_equal(await_failure(f), MLACAT_UNAVAILABLE);
    fake_exit(f->fake);
}

/* Nobody is in the library when the daemon goes; the GPU is let go on, but not before the daemon has exited. */
static void test_client_order_daemon_goes(void **state)
{
    struct scene *f = *state;
    struct mlacat_stream *unbound;
    assert_int_equal(mlacat_stream_open(f->client, "GPU-1", &unbound), MLACAT_OK);
    rings_set(f->rings, (struct rings_mode){.hold = true});
    for (int i = 0; i < 3; i++) {
        assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
    }
    rings_await_calls(f->rings, 3);
    client_clock_stop(); /* else it lets go in the end without an exit too */
    fake_die(f->fake, NULL);
    assert_true(client_driver_run(0) > 0);
    fake_exit(f->fake);
    await_gpu();
    client_clock_reset();
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_UNAVAILABLE);
    assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_SESSION);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_UNAVAILABLE);
    /* A stream that had nothing in flight goes on, with pages that CUDA does not know yet. */
    assert_int_equal(mlacat_stream_status(unbound), MLACAT_OK);
    assert_int_equal(mlacat_submit_on_stream(unbound, &f->call, cuda, NULL), MLACAT_OK);
    await_gpu();
    assert_int_equal(client_driver_seen().registers, 2);
}

/* The driver waits for the GPU, which waits for the daemon, while a submit holds the ring. */
static void test_client_order_daemon_goes_while_the_driver_is_full(void **state)
{
    struct scene *f = *state;
    struct submission submission = {.f = f, .cu_stream = cuda};
    pthread_t thread;
    rings_set(f->rings, (struct rings_mode){.hold = true});
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
    assert_int_equal(client_driver_run(0), 1);
    client_driver_full(1);
    assert_int_equal(pthread_create(&thread, NULL, submit_one, &submission), 0);
    while (client_driver_seen().batches < 2) {
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

static unsigned open_descriptors(void)
{
    unsigned nr = 0;
    for (int fd = 0; fd < 1024; fd++) {
        nr += fcntl(fd, F_GETFD) >= 0;
    }
    return nr;
}

/* Of a connection that has ended, the page that CUDA knows stays; descriptors and the thread do not. */
static void test_client_order_restarts_leave_nothing(void **state)
{
    struct scene *f = *state;
    unsigned before = 0;
    for (int i = 0; i < 20; i++) {
        assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
        await_gpu();
        assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
        fake_die(f->fake, NULL);
        struct order_watch *watch = SLIST_FIRST(&f->client->watches);
        for (bool over = false; !over; sched_yield()) {
            pthread_mutex_lock(&f->client->lock);
            over = watch->over;
            pthread_mutex_unlock(&f->client->lock);
        }
        assert_null(SLIST_NEXT(watch, link));
        assert_int_equal(watch->socket, -1);
        assert_int_equal(watch->pidfd, -1);
        before = i == 0 ? open_descriptors() : before;
        assert_int_equal(open_descriptors(), before);
    }
    assert_int_equal(client_driver_seen().registers, 20);
}

/* Else the daemon would serve a parent that is gone for as long as the child lives. */
static void test_client_order_forked_child_keeps_no_connection(void **state)
{
    struct scene *f = *state;
    int status;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
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
    struct scene *f = *state;
    rings_set(f->rings, (struct rings_mode){.hold = true});
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
    assert_int_equal(client_driver_run(0), 1);
    mlacat_disconnect(f->client);
    assert_int_equal(client_driver_run(0), 0);
    f->client = fake_client(f->fake, MLACAT_DISPATCH_THREAD);
}

/* Of the daemon's device, whatever the thread has: another device's would not wait for the call. */
static void test_client_order_default_stream_of_the_device(void **state)
{
    static const int devices[] = {1, -1, 0};
    struct scene *f = *state;
    client_driver_gpu();
    for (unsigned i = 0; i < 3; i++) {
        client_driver_current(devices[i]);
        assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, NULL, NULL), MLACAT_OK);
        assert_int_equal(client_driver_run(1), 0);
        assert_true(client_driver_run(0) > 0 || rings_done(f->rings, 0) == RINGS_BEGIN + 1 + i);
        await_gpu();
        assert_int_equal(client_driver_seen().pushed, 0);
        assert_int_equal(client_driver_seen().retains, 0);
    }
    assert_int_equal(client_driver_seen().batches, 3);
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
}

/* Of a device that this process does not have, the context is the caller's business. */
static void test_client_order_device_that_is_not_here(void **state)
{
    struct scene *f = *state;
    client_driver_current(1);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
    client_driver_current(-1);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, NULL, NULL), MLACAT_INTERNAL);
    assert_non_null(strstr(mlacat_error_message(), "cuStreamIsCapturing: 999"));
    await_gpu();
    assert_int_equal(client_driver_seen().retains, 0);
}

static void test_client_order_tells_of_a_capture(void **state)
{
    struct scene *f = *state;
    int capturing = -1;
    client_driver_gpu();
    assert_int_equal(mlacat_is_capturing(&capturing, NULL, &capturing), MLACAT_INVALID_ARGUMENT);
    assert_non_null(strstr(mlacat_error_message(), "no GPU memory"));
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
    await_gpu();
    const void *memory = client_driver_memory(); /* the call's word */
    client_driver_capture(0, true);
    client_driver_current(1);
    assert_int_equal(mlacat_is_capturing(memory, NULL, &capturing), MLACAT_OK);
    assert_int_equal(capturing, 1);
    assert_int_equal(mlacat_is_capturing(memory, other, &capturing), MLACAT_OK);
    assert_int_equal(capturing, 0);
    assert_int_equal(mlacat_is_capturing(memory, NULL, NULL), MLACAT_INVALID_ARGUMENT);
    client_driver_fail(CLIENT_DRIVER_CAPTURING);
    assert_int_equal(mlacat_is_capturing(memory, other, &capturing), MLACAT_INTERNAL);
    client_driver_remove();
    assert_int_equal(mlacat_is_capturing(memory, other, &capturing), MLACAT_FAILED_PRECONDITION);
    struct client_driver_seen seen = client_driver_seen();
    assert_int_equal(seen.pushed + seen.retains, 0);
    assert_int_equal(seen.in_strict, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_client_order_runs_in_the_middle),
        TEST(test_client_order_slots_come_back),
        TEST(test_client_order_does_not_wait_for_the_caller),
        TEST(test_client_order_after_a_close),
        TEST(test_client_order_write_that_is_to_come_when_the_stream_is_closed),
        TEST(test_client_order_write_that_does_not_come),
        TEST(test_client_order_batch_that_failed),
        TEST(test_client_order_is_bound_to_one_stream),
        TEST(test_client_order_refuses_before_anything_is_done),
        TEST(test_client_order_failed_call_is_seen_by_the_next),
        TEST(test_client_order_failed_call_lets_go_and_fails_the_stream),
        TEST(test_client_order_driver_that_fails),
        TEST(test_client_order_cancel_lets_go),
        TEST(test_client_order_daemon_goes_before_it_tells),
        TEST(test_client_order_daemon_goes),
        TEST(test_client_order_daemon_goes_while_the_driver_is_full),
        TEST(test_client_order_restarts_leave_nothing),
        TEST(test_client_order_forked_child_keeps_no_connection),
        TEST(test_client_order_disconnect_lets_go),
        TEST(test_client_order_default_stream_of_the_device),
        TEST(test_client_order_device_that_is_not_here),
        TEST(test_client_order_tells_of_a_capture),
    };
    alarm(120); /* ends a test that waits in vain */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
