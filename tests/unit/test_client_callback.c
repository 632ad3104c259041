/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "client.h"
#include "test_client_scene.h"

/* What the callbacks saw. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned ran;
    unsigned to_submit; /* each callback submits another call while this lasts */
    enum mlacat_status last_status;
    enum mlacat_status last_submit;
    pthread_t last_thread;
    sigset_t blocked;
} seen;

static void on_done(void *user, uint64_t call_id, const struct mlacat_result *result)
{
    struct scene *f = user;
    assert_true(call_id != 0);
    assert_int_equal(result->ended, 1);
    pthread_mutex_lock(&seen.lock);
    if (seen.to_submit > 0) {
        seen.to_submit--;
        seen.last_submit = mlacat_submit(f->stream, &f->call, NULL);
    }
    seen.ran++;
    seen.last_status = result->status;
    seen.last_thread = pthread_self();
    pthread_sigmask(SIG_SETMASK, NULL, &seen.blocked);
    pthread_cond_broadcast(&seen.changed);
    pthread_mutex_unlock(&seen.lock);
}

static void await_ran(unsigned nr)
{
    pthread_mutex_lock(&seen.lock);
    while (seen.ran < nr) {
        pthread_cond_wait(&seen.changed, &seen.lock);
    }
    pthread_mutex_unlock(&seen.lock);
}

static struct scene *set_up(enum mlacat_dispatch dispatch)
{
    memset(&seen, 0, sizeof(seen));
    pthread_mutex_init(&seen.lock, NULL);
    pthread_cond_init(&seen.changed, NULL);
    struct scene *f = scene_open((struct fake_mode){0}, dispatch);
    f->call.done = on_done;
    f->call.user = f;
    return f;
}

static int setup_thread(void **state)
{
    *state = set_up(MLACAT_DISPATCH_THREAD);
    return 0;
}

static int setup_caller(void **state)
{
    *state = set_up(MLACAT_DISPATCH_CALLER);
    return 0;
}

/* ---------------------------------------------------------------------------------------------------- thread */

static void test_client_thread_starts_with_the_first_callback(void **state)
{
    struct scene *f = *state;
    struct mlacat_call plain = f->call;
    plain.done = NULL;
    assert_int_equal(mlacat_run(f->stream, &plain, NULL), MLACAT_OK);
    assert_false(f->client->thread_started);
    assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    await_ran(1);
    assert_true(f->client->thread_started);
    for (bool idle = false; !idle; sched_yield()) {
        pthread_mutex_lock(&f->client->lock);
        idle = f->client->thread_idle;
        pthread_mutex_unlock(&f->client->lock);
    }
    assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK); /* wakes it */
    await_ran(2);
    assert_false(pthread_equal(seen.last_thread, pthread_self()));
    assert_int_equal(mlacat_client_fd(f->client), -1);
    assert_int_equal(mlacat_dispatch(f->client, 0), MLACAT_FAILED_PRECONDITION);
}

static void test_client_thread_runs_callbacks_that_submit(void **state)
{
    struct scene *f = *state;
    seen.to_submit = 500;
    assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    await_ran(501);
    assert_int_equal(fake_seen(f->fake).calls, 501);
    assert_int_equal(seen.last_submit, MLACAT_OK);
}

/* The program's signals go elsewhere; a callback's own faults must reach the program's handler. */
static void test_client_thread_takes_only_its_own_signals(void **state)
{
    struct scene *f = *state;
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS};
    assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    await_ran(1);
    for (unsigned i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        assert_int_equal(sigismember(&seen.blocked, faults[i]), 0);
    }
    assert_int_equal(sigismember(&seen.blocked, SIGTERM), 1);
    assert_int_equal(sigismember(&seen.blocked, SIGCHLD), 1);
}

static void test_client_thread_and_waiters_share_the_reading(void **state)
{
    struct scene *f = *state;
    struct mlacat_call plain = f->call;
    plain.done = NULL;
    for (int i = 0; i < 300; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
        assert_int_equal(mlacat_run(f->stream, &plain, NULL), MLACAT_OK);
        await_ran((unsigned)i + 1);
    }
    assert_int_equal(seen.ran, 300);
}

static void test_client_thread_is_told_of_the_end(void **state)
{
    struct scene *f = *state;
    fake_set(f->fake, (struct fake_mode){.hold = true});
    assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    fake_await_calls(f->fake, 1);
    fake_die(f->fake, NULL);
    await_ran(1);
    assert_int_equal(seen.last_status, MLACAT_UNAVAILABLE);
}

static void test_client_disconnect_ends_calls_with_callbacks(void **state)
{
    struct scene *f = *state;
    struct mlacat_client *client = f->client;
    fake_set(f->fake, (struct fake_mode){.hold = true});
    for (int i = 0; i < 5; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    }
    f->client = NULL;
    mlacat_disconnect(client);
    assert_int_equal(seen.ran, 5);
    assert_int_equal(seen.last_status, MLACAT_UNAVAILABLE);
}

static void test_client_stream_close_waits_for_callbacks(void **state)
{
    struct scene *f = *state;
    for (int i = 0; i < 10; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    }
    mlacat_stream_close(f->stream);
    assert_int_equal(seen.ran, 10);
}

static void *close_stream(void *user)
{
    struct scene *f = user;
    mlacat_stream_close(f->stream);
    return NULL;
}

static void test_client_stream_that_closes_refuses_callbacks_that_submit(void **state)
{
    struct scene *f = *state;
    pthread_t thread;
    fake_set(f->fake, (struct fake_mode){.hold = true});
    seen.to_submit = 2;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    }
    fake_await_calls(f->fake, 2);
    assert_int_equal(pthread_create(&thread, NULL, close_stream, f), 0);
    for (bool closing = false; !closing; sched_yield()) {
        pthread_mutex_lock(&f->client->lock);
        closing = f->stream->closing;
        pthread_mutex_unlock(&f->client->lock);
    }
    fake_release(f->fake, 2, false);
    pthread_join(thread, NULL);
    assert_int_equal(seen.ran, 2);
    assert_int_equal(seen.to_submit, 0);
    assert_int_equal(seen.last_submit, MLACAT_FAILED_PRECONDITION);
    assert_int_equal(fake_seen(f->fake).calls, 2);
}

/* ---------------------------------------------------------------------------------------------------- by the caller */

static void test_client_dispatch_runs_callbacks_here_only(void **state)
{
    struct scene *f = *state;
    struct pollfd item = {.fd = mlacat_client_fd(f->client), .events = POLLIN};
    assert_int_equal(mlacat_dispatch(f->client, 0), MLACAT_OK);
    assert_int_equal(mlacat_dispatch(f->client, 1000), MLACAT_OK);
    assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    assert_int_equal(poll(&item, 1, -1), 1);
    assert_int_equal(seen.ran, 0);
    assert_int_equal(mlacat_dispatch(f->client, -1), MLACAT_OK);
    assert_int_equal(seen.ran, 1);
    assert_true(pthread_equal(seen.last_thread, pthread_self()));
    assert_int_equal(poll(&item, 1, 0), 0);
    assert_false(f->client->thread_started);
}

/* A request that reads completions for its own reply leaves the callbacks to the one who polls. */
static void test_client_fd_tells_of_callbacks_that_others_read(void **state)
{
    struct scene *f = *state;
    struct pollfd item = {.fd = mlacat_client_fd(f->client), .events = POLLIN};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    }
    assert_int_equal(mlacat_drain(f->client), MLACAT_OK);
    assert_int_equal(seen.ran, 0);
    assert_int_equal(poll(&item, 1, 0), 1);
    assert_int_equal(mlacat_dispatch(f->client, 0), MLACAT_OK);
    assert_int_equal(seen.ran, 3);
    assert_int_equal(poll(&item, 1, 0), 0);
}

static void test_client_wait_runs_callbacks_of_the_caller(void **state)
{
    struct scene *f = *state;
    struct mlacat_call plain = f->call;
    struct pollfd item = {.fd = mlacat_client_fd(f->client), .events = POLLIN};
    plain.done = NULL;
    assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    assert_int_equal(mlacat_run(f->stream, &plain, NULL), MLACAT_OK);
    assert_int_equal(seen.ran, 1);
    assert_int_equal(poll(&item, 1, 0), 0);
    uint64_t id;
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    assert_int_equal(mlacat_wait(f->stream, id, -1, NULL), MLACAT_NOT_FOUND); /* it has a callback */
}

static void test_client_dispatch_runs_callbacks_that_submit(void **state)
{
    struct scene *f = *state;
    seen.to_submit = 100;
    assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    while (seen.ran < 101) {
        assert_int_equal(mlacat_dispatch(f->client, -1), MLACAT_OK);
    }
    assert_int_equal(seen.last_submit, MLACAT_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_client_thread_starts_with_the_first_callback, setup_thread, scene_close),
        cmocka_unit_test_setup_teardown(test_client_thread_runs_callbacks_that_submit, setup_thread, scene_close),
        cmocka_unit_test_setup_teardown(test_client_thread_takes_only_its_own_signals, setup_thread, scene_close),
        cmocka_unit_test_setup_teardown(test_client_stream_that_closes_refuses_callbacks_that_submit, setup_thread,
                                        scene_close),
        cmocka_unit_test_setup_teardown(test_client_stream_that_closes_refuses_callbacks_that_submit, setup_caller,
                                        scene_close),
        cmocka_unit_test_setup_teardown(test_client_thread_and_waiters_share_the_reading, setup_thread, scene_close),
        cmocka_unit_test_setup_teardown(test_client_thread_is_told_of_the_end, setup_thread, scene_close),
        cmocka_unit_test_setup_teardown(test_client_disconnect_ends_calls_with_callbacks, setup_thread, scene_close),
        cmocka_unit_test_setup_teardown(test_client_disconnect_ends_calls_with_callbacks, setup_caller, scene_close),
        cmocka_unit_test_setup_teardown(test_client_stream_close_waits_for_callbacks, setup_thread, scene_close),
        cmocka_unit_test_setup_teardown(test_client_stream_close_waits_for_callbacks, setup_caller, scene_close),
        cmocka_unit_test_setup_teardown(test_client_dispatch_runs_callbacks_here_only, setup_caller, scene_close),
        cmocka_unit_test_setup_teardown(test_client_fd_tells_of_callbacks_that_others_read, setup_caller, scene_close),
        cmocka_unit_test_setup_teardown(test_client_wait_runs_callbacks_of_the_caller, setup_caller, scene_close),
        cmocka_unit_test_setup_teardown(test_client_dispatch_runs_callbacks_that_submit, setup_caller, scene_close),
    };
    return cmocka_run_group_tests_name("client_callback", tests, NULL, NULL);
}
