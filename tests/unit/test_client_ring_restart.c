/* SPDX-License-Identifier: Apache-2.0 */
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "ring_pages.h"
#include "test_client_scene.h"
#include "timing.h"

#define SEEN_MS 100

/* The longest that the client sleeps without a look at the connection. */
static _Atomic int64_t longest_sleep_ns;

long __real_syscall(long number, ...);
long __wrap_syscall(long number, long a, long b, long c, const struct timespec *time, long e, long f);

long __wrap_syscall(long number, long a, long b, long c, const struct timespec *time, long e, long f)
{
    if (number == SYS_futex && b == FUTEX_WAIT) {
        int64_t ns = time == NULL ? INT64_MAX : (int64_t)time->tv_sec * 1000000000 + time->tv_nsec;
        longest_sleep_ns = ns > longest_sleep_ns ? ns : longest_sleep_ns;
    }
    return __real_syscall(number, a, b, c, time, e, f);
}

static int setup(void **state)
{
    *state = scene_open((struct fake_mode){.rings = true}, MLACAT_DISPATCH_THREAD);
    return 0;
}

static void *die_later(void *user)
{
    struct scene *f = user;
    rings_await_parked(f->rings, 0);
    fake_die(f->fake, NULL);
    return NULL;
}

static void test_client_ring_restart_is_seen_by_who_waits(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result)};
    pthread_t thread;
    uint64_t id;
    longest_sleep_ns = 0;
    rings_set(f->rings, (struct rings_mode){.hold = true});
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    assert_int_equal(pthread_create(&thread, NULL, die_later, f), 0);
    assert_int_equal(mlacat_wait(f->stream, id, -1, &result), MLACAT_UNAVAILABLE);
    pthread_join(thread, NULL);
    assert_int_equal(result.scope, MLACAT_SCOPE_SESSION);
    assert_true(longest_sleep_ns > 0 && longest_sleep_ns < SEEN_MS * TIMING_MS);
    assert_null(f->client->pages);
}

static void test_client_ring_restart_gives_new_rings(void **state)
{
    struct scene *f = *state;
    struct mlacat_stream *messages;
    struct mlacat_stream *second;
    struct mlacat_stream_options options = {.size = sizeof(options), .transport = MLACAT_TRANSPORT_MESSAGE};
    uint64_t id;
    assert_int_equal(mlacat_stream_open_with(f->client, NULL, &options, &messages), MLACAT_OK);
    assert_int_equal(mlacat_stream_open(f->client, NULL, &second), MLACAT_OK);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    rings_set(f->rings, (struct rings_mode){.hold = true});
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    fake_die(f->fake, "bye");
    assert_int_equal(mlacat_run(messages, &f->call, NULL), MLACAT_OK); /* connects again */
    assert_int_equal(mlacat_wait(f->stream, id, -1, NULL), MLACAT_UNAVAILABLE);
    assert_non_null(strstr(mlacat_error_message(), "bye"));
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    assert_int_equal(mlacat_run(second, &f->call, NULL), MLACAT_OK);
    assert_int_equal(rings_seen(fake_rings(f->fake)).calls, 2);
    assert_int_equal(fake_seen(f->fake).pages_opens, 2);
    assert_int_equal(fake_seen(f->fake).ring_opens, 4);
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
}

static void test_client_ring_restart_by_a_submit(void **state)
{
    struct scene *f = *state;
    fake_die(f->fake, NULL);
    struct mlacat_health health = {.size = sizeof(health)};
    mlacat_health(f->client, &health); /* the fake has no answer to it, but the connection is a new one now */
    uint64_t id;
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    assert_int_equal(mlacat_wait(f->stream, id, -1, NULL), MLACAT_OK);
}

/* What had passed the fence when the daemon died is done. */
static void test_client_ring_restart_keeps_what_was_done(void **state)
{
    struct scene *f = *state;
    uint64_t ids[2];
    rings_set(f->rings, (struct rings_mode){.late = true});
    assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[0]), MLACAT_OK);
    assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[1]), MLACAT_OK);
    assert_int_equal(mlacat_wait(f->stream, ids[1], -1, NULL), MLACAT_OK);
    fake_die(f->fake, NULL);
    assert_int_equal(mlacat_wait(f->stream, ids[0], -1, &(struct mlacat_result){.size = sizeof(struct mlacat_result)}),
                     MLACAT_OK);
}

static void test_client_ring_restart_without_rings_breaks_the_stream(void **state)
{
    struct scene *f = *state;
    uint64_t id;
    fake_die(f->fake, NULL);
    fake_set(f->fake, (struct fake_mode){0});
    fake_sync(f->fake);
    struct mlacat_health health = {.size = sizeof(health)};
    mlacat_health(f->client, &health);
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(mlacat_error_message(), "has no rings"));
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_UNIMPLEMENTED);
}

static void test_client_ring_restart_no_daemon(void **state)
{
    struct scene *f = *state;
    uint64_t id;
    fake_hide(f->fake);
    rings_set(f->rings, (struct rings_mode){.hold = true});
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    fake_die(f->fake, NULL);
    assert_int_equal(mlacat_wait(f->stream, id, -1, NULL), MLACAT_UNAVAILABLE);
    f->client->reconnect_timeout_ns = 300 * TIMING_MS;
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_UNAVAILABLE);
    assert_non_null(strstr(mlacat_error_message(), "tried for 300 ms"));
    f->client->reconnect_timeout_ns = FAKE_PATIENCE_MS * TIMING_MS;
    fake_show(f->fake);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
}

/* The daemon that drains refuses; the next call waits for another one. */
static void test_client_ring_restart_after_a_drain(void **state)
{
    struct scene *f = *state;
    rings_set(f->rings,
              (struct rings_mode){.code = MLACAT_UNAVAILABLE, .scope = MLACAT_SCOPE_CALL, .text = "draining"});
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_UNAVAILABLE);
    assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_CALL);
    fake_die(f->fake, NULL);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    assert_int_equal(rings_seen(fake_rings(f->fake)).calls, 1);
}

static void test_client_ring_restart_ends_a_cancel(void **state)
{
    struct scene *f = *state;
    pthread_t thread;
    uint64_t id;
    rings_set(f->rings, (struct rings_mode){.hold = true, .late = true}); /* no answer to anything */
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    assert_int_equal(pthread_create(&thread, NULL, die_later, f), 0);
    assert_int_equal(mlacat_cancel(f->stream, id), MLACAT_UNAVAILABLE);
    assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_SESSION);
    pthread_join(thread, NULL);
}

/* Failures are counted anew with a ring: one that the old daemon has counted must not hide one of the new. */
static void test_client_ring_restart_counts_failures_anew(void **state)
{
    struct scene *f = *state;
    struct rings_mode fail = {.code = MLACAT_DATA_LOSS, .scope = MLACAT_SCOPE_CALL, .text = "bad"};
    uint64_t ids[2];
    rings_set(f->rings, fail);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_DATA_LOSS);
    rings_set(f->rings, (struct rings_mode){0});
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    fake_die(f->fake, NULL);
    struct mlacat_health health = {.size = sizeof(health)};
    mlacat_health(f->client, &health); /* the connection is a new one now, and so are the rings */
    f->rings = fake_rings(f->fake);
    fail.hold = fail.late = true;
    rings_set(f->rings, fail);
    assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[0]), MLACAT_OK);
    assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[1]), MLACAT_OK);
    rings_release(f->rings, 0, 1);
    while (rings_failed(f->rings, 0) == 0) {
        sched_yield();
    }
    rings_set(f->rings, (struct rings_mode){.late = true}); /* the second passes the fence, and no completion is seen */
    while (rings_fence(f->rings, 0) != RINGS_BEGIN + 2) {
        sched_yield();
    }
    assert_int_equal(mlacat_wait(f->stream, ids[0], 0, NULL), MLACAT_DEADLINE_EXCEEDED);
    rings_set(f->rings, (struct rings_mode){0});
    assert_int_equal(mlacat_wait(f->stream, ids[0], -1, NULL), MLACAT_DATA_LOSS);
    assert_int_equal(mlacat_wait(f->stream, ids[1], -1, NULL), MLACAT_OK);
}

/* The pages are not inherited, and nothing of the library touches them there. */
static void test_client_ring_restart_not_in_a_forked_child(void **state)
{
    struct scene *f = *state;
    uint64_t id;
    pid_t pid = fork();
    if (pid == 0) {
        bool good = mlacat_submit(f->stream, &f->call, &id) == MLACAT_FAILED_PRECONDITION &&
                    mlacat_wait(f->stream, 1, -1, NULL) == MLACAT_FAILED_PRECONDITION &&
                    mlacat_stream_status(f->stream) == MLACAT_FAILED_PRECONDITION;
        mlacat_stream_close(f->stream);
        mlacat_disconnect(f->client);
        _exit(good ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid = fork();
    if (pid == 0) {
        /* The kernel reads the byte, so that nothing is raised. */
        bool mapped =
            write(ends[1], f->client->pages->client, 1) == 1 || write(ends[1], f->client->pages->daemon, 1) == 1;
        _exit(mapped ? 1 : 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(ends[0]);
    close(ends[1]);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, scene_close)
    const struct CMUnitTest tests[] = {
        TEST(test_client_ring_restart_is_seen_by_who_waits),
        TEST(test_client_ring_restart_gives_new_rings),
        TEST(test_client_ring_restart_by_a_submit),
        TEST(test_client_ring_restart_keeps_what_was_done),
        TEST(test_client_ring_restart_without_rings_breaks_the_stream),
        TEST(test_client_ring_restart_no_daemon),
        TEST(test_client_ring_restart_after_a_drain),
        TEST(test_client_ring_restart_ends_a_cancel),
        TEST(test_client_ring_restart_counts_failures_anew),
        TEST(test_client_ring_restart_not_in_a_forked_child),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
