/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "client.h"
#include "test_client_scene.h"

static struct mlacat_stream *second;

/* What the callbacks saw. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned ran;
    unsigned inside; /* callbacks that run now */
    unsigned together;
    int yields;
    unsigned to_submit; /* each callback submits another call while this lasts */
    enum mlacat_status last_status;
    enum mlacat_status last_submit;
    uint64_t last_queue_ns;
} seen;

static void on_done(void *user, uint64_t call_id, const struct mlacat_result *result)
{
    struct scene *f = user;
    pthread_mutex_lock(&seen.lock);
    seen.inside++;
    seen.together = seen.inside > seen.together ? seen.inside : seen.together;
    bool more = seen.to_submit > 0;
    seen.to_submit -= more;
    pthread_mutex_unlock(&seen.lock);
    for (int i = 0; i < seen.yields; i++) {
        sched_yield(); /* time for another one to begin, if it may */
    }
    enum mlacat_status status = more ? mlacat_submit(f->stream, &f->call, NULL) : MLACAT_OK;
    pthread_mutex_lock(&seen.lock);
    seen.last_submit = status;
    seen.last_status = call_id != 0 && result->ended ? result->status : MLACAT_INTERNAL;
    seen.last_queue_ns = result->queue_ns;
    seen.ran++;
    seen.inside--;
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

static int setup(void **state)
{
    memset(&seen, 0, sizeof(seen));
    pthread_mutex_init(&seen.lock, NULL);
    pthread_cond_init(&seen.changed, NULL);
    struct scene *f = scene_open((struct fake_mode){.rings = true}, MLACAT_DISPATCH_THREAD);
    assert_int_equal(mlacat_stream_open(f->client, NULL, &second), MLACAT_OK);
    f->call.done = on_done;
    f->call.user = f;
    *state = f;
    return 0;
}

static void test_client_ring_callback_runs(void **state)
{
    struct scene *f = *state;
    for (unsigned i = 1; i <= 50; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
        if (i % 3 == 0) {
            await_ran(i); /* else the thread finds the next call while it still looks */
        }
    }
    await_ran(50);
    assert_int_equal(seen.last_status, MLACAT_OK);
    assert_int_equal(seen.last_queue_ns, 11);
}

static void test_client_ring_callback_that_submits(void **state)
{
    struct scene *f = *state;
    seen.to_submit = 40;
    assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    await_ran(41);
    assert_int_equal(seen.last_submit, MLACAT_OK);
}

static void test_client_ring_callback_of_a_call_that_no_entry_can_say(void **state)
{
    struct scene *f = *state;
    f->call.operand[1].shape[2] = 9;
    assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    await_ran(1);
    assert_int_equal(seen.last_status, MLACAT_INVALID_ARGUMENT);
}

/* A thread in mlacat_wait takes in the completions of others too. */
static void test_client_ring_callback_beside_a_wait(void **state)
{
    struct scene *f = *state;
    struct mlacat_call plain = f->call;
    plain.done = NULL;
    for (unsigned i = 1; i <= 30; i++) {
        uint64_t id;
        assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
        assert_int_equal(mlacat_submit(f->stream, &plain, &id), MLACAT_OK);
        struct mlacat_result result = {.size = sizeof(result)};
        assert_int_equal(mlacat_wait(f->stream, id, -1, &result), MLACAT_OK);
        await_ran(i);
    }
}

static void test_client_ring_callback_one_at_a_time(void **state)
{
    struct scene *f = *state;
    seen.yields = 10; /* each may cost a time slice of another process */
    for (unsigned i = 0; i < 100; i++) {
        assert_int_equal(mlacat_submit(i % 2 ? f->stream : second, &f->call, NULL), MLACAT_OK);
        if (i % 10 == 9) {
            await_ran(i + 1);
        }
    }
    assert_int_equal(seen.together, 1);
}

static void test_client_ring_callback_runs_when_the_daemon_goes(void **state)
{
    struct scene *f = *state;
    rings_set(f->rings, (struct rings_mode){.hold = true});
    for (int i = 0; i < 3; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    }
    rings_await_calls(f->rings, 3);
    fake_die(f->fake, NULL);
    await_ran(3);
    assert_int_equal(seen.last_status, MLACAT_UNAVAILABLE);
}

static void test_client_ring_callback_runs_before_the_close_returns(void **state)
{
    struct scene *f = *state;
    for (int i = 0; i < 10; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_OK);
    }
    mlacat_stream_close(f->stream);
    assert_int_equal(seen.ran, 10);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(mlacat_submit(second, &f->call, NULL), MLACAT_OK);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, scene_close)
    const struct CMUnitTest tests[] = {
        TEST(test_client_ring_callback_runs),
        TEST(test_client_ring_callback_that_submits),
        TEST(test_client_ring_callback_of_a_call_that_no_entry_can_say),
        TEST(test_client_ring_callback_beside_a_wait),
        TEST(test_client_ring_callback_one_at_a_time),
        TEST(test_client_ring_callback_runs_when_the_daemon_goes),
        TEST(test_client_ring_callback_runs_before_the_close_returns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
