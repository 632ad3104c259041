/* SPDX-License-Identifier: Apache-2.0 */
/* mlacat_reclaim: GPU memory that was freed is looked for now, and closed when it returns. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "client_clock.h"
#include "test_client_watched.h"
#include "timing.h"

static void expect_reclaim(struct scene *f, int64_t timeout_us, enum mlacat_status status)
{
    assert_int_equal(mlacat_reclaim(f->client, timeout_us), status);
}

#define ROUNDS 50

/* Each takes no longer than the daemon needs: what the thread would sleep by itself is an hour here. */
static void test_client_reclaim_does_not_wait_for_the_period(void **state)
{
    struct scene *f = *state;
    client_clock_pass(3600000 * TIMING_MS);
    struct mlacat_buffer *kept = register_at(f, AT(2), 4096);
    for (unsigned i = 1; i <= ROUNDS; i++) {
        struct mlacat_buffer *freed = register_at(f, AT(1), 4096);
        reuse(1);
        expect_reclaim(f, -1, MLACAT_OK);
        assert_int_equal(fake_seen(f->fake).unregisters, i);
        expect_broken(f, freed);
        mlacat_buffer_release(freed);
    }
    expect_usable(f, kept);
    expect_reclaim(f, -1, MLACAT_OK); /* nothing was freed */
    assert_int_equal(fake_seen(f->fake).unregisters, ROUNDS);
}

/* What the thread has seen of before the call does not count: it looks anew. */
static void test_client_reclaim_looks_after_it_was_called(void **state)
{
    struct scene *f = *state;
    register_at(f, AT(1), 4096);
    struct mlacat_buffer *last = register_at(f, AT(2), 4096);
    unsigned asked = gpu.asked;
    pthread_mutex_lock(&gpu.gate);
    reuse(2);
    expect_reclaim(f, 0, MLACAT_DEADLINE_EXCEEDED);
    expect_reclaim(f, 20000, MLACAT_DEADLINE_EXCEEDED);
    assert_non_null(strstr(mlacat_error_message(), "that was freed within 20000 us ("));
    pthread_mutex_unlock(&gpu.gate);
    expect_reclaim(f, -1, MLACAT_OK);
    assert_true(gpu.asked >= asked + 2);
    assert_int_equal(fake_seen(f->fake).unregisters, 1);
    expect_broken(f, last);
}

static void test_client_reclaim_waits_for_the_answer(void **state)
{
    struct scene *f = *state;
    register_at(f, AT(1), 4096);
    fake_set(f->fake, (struct fake_mode){.ignore = true});
    fake_sync(f->fake);
    reuse(1);
    expect_reclaim(f, 20000, MLACAT_DEADLINE_EXCEEDED);
    fake_await_ignored(f->fake, 1);
    expect_reclaim(f, 20000, MLACAT_DEADLINE_EXCEEDED);
    fake_die(f->fake, NULL); /* a daemon that has gone has released all */
    expect_reclaim(f, -1, MLACAT_OK);
}

static void await_stats(struct fake *fake, unsigned more)
{
    unsigned before = fake_seen(fake).stats;
    while (fake_seen(fake).stats < before + more) {
        sched_yield();
    }
}

/* A daemon that closes what it was given, while others give it more without end. */
static void *close_one_by_one(void *arg)
{
    struct fake *fake = arg;
    static const struct say_memory steps[] = {{1, 7, 5}, {1, 8, 7}, {0, 10, 7}, {0, 12, 9}};
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        fake_set(fake, (struct fake_mode){.memory = steps[i]});
        await_stats(fake, 2); /* the second one was answered after the change */
    }
    fake_set(fake, (struct fake_mode){.memory = {0, 14, 10}});
    return NULL;
}

static void test_client_reclaim_waits_for_the_close(void **state)
{
    struct scene *f = *state;
    pthread_t thread;
    register_at(f, AT(1), 4096);
    fake_set(f->fake, (struct fake_mode){.memory = {0, 7, 5}});
    expect_reclaim(f, 20000, MLACAT_DEADLINE_EXCEEDED);
    fake_set(f->fake, (struct fake_mode){.memory = {1, 7, 7}});
    expect_reclaim(f, 20000, MLACAT_DEADLINE_EXCEEDED);
    assert_int_equal(pthread_create(&thread, NULL, close_one_by_one, f->fake), 0);
    expect_reclaim(f, -1, MLACAT_OK);
    pthread_join(thread, NULL);
    assert_true(fake_seen(f->fake).stats >= 8);
}

/* It takes nothing, and the socket is full in the end. */
static void test_client_reclaim_keeps_its_time_with_a_daemon_that_is_deaf(void **state)
{
    struct scene *f = *state;
    register_at(f, AT(1), 4096);
    fake_set(f->fake, (struct fake_mode){.deaf = true});
    fake_sync(f->fake);
    for (unsigned i = 0; i < 1000; i++) {
        expect_reclaim(f, 100, MLACAT_DEADLINE_EXCEEDED);
    }
}

static void test_client_reclaim_without_anything_to_do(void **state)
{
    struct scene *f = *state;
    expect_reclaim(f, 0, MLACAT_OK); /* there was never any GPU memory: nobody is asked */
    assert_false(f->client->watch_started);
    mlacat_buffer_release(register_at(f, AT(1), 4096));
    await_idle(f);
    expect_reclaim(f, -1, MLACAT_OK);
    assert_int_equal(mlacat_reclaim(NULL, -1), MLACAT_INVALID_ARGUMENT);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, watched_setup, watched_teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_client_reclaim_does_not_wait_for_the_period),
        CASE(test_client_reclaim_looks_after_it_was_called),
        CASE(test_client_reclaim_waits_for_the_answer),
        CASE(test_client_reclaim_waits_for_the_close),
        CASE(test_client_reclaim_keeps_its_time_with_a_daemon_that_is_deaf),
        CASE(test_client_reclaim_without_anything_to_do),
    };
    alarm(120); /* ends a test that waits in vain */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
