/* SPDX-License-Identifier: Apache-2.0 */
/* GPU memory that is freed while it is registered, over a driver and a daemon of the test. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <cuda_driver.h> /* the client's; beside this file is one of the daemon's tests */

#include "client.h"
#include "test_client_watched.h"
#include "timing.h"

#define FOUND_MS 300 /* the promise: the thread sleeps shorter, for what it does then takes time too */

static void test_client_memory_freed_is_unregistered_soon(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *freed = register_at(f, AT(1), 4096);
    struct mlacat_buffer *kept = register_at(f, AT(2), 4096);
    expect_usable(f, freed);
    while (gpu.longest_wait_ns == 0) {
        sched_yield();
    }
    reuse(1);
    fake_await_unregisters(f->fake, 1);
    assert_in_range(gpu.longest_wait_ns, 1, FOUND_MS / 2 * TIMING_MS);
    expect_broken(f, freed);
    expect_usable(f, kept);
    mlacat_buffer_release(freed);
    assert_int_equal(fake_seen(f->fake).unregisters, 1);
    mlacat_buffer_release(kept);
    assert_int_equal(fake_seen(f->fake).unregisters, 2);
}

static void test_client_memory_freed_and_not_used_again_is_found_too(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *buffer = register_at(f, AT(3), 4096);
    gpu.id[3] = 0;
    fake_await_unregisters(f->fake, 1);
    expect_broken(f, buffer);
}

/* The thread cannot have found it: it hangs in the driver. */
static void test_client_memory_freed_is_found_by_the_call(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *freed = register_at(f, AT(1), 4096);
    struct mlacat_buffer *kept = register_at(f, AT(2), 4096);
    struct mlacat_call calls[2] = {fake_call(kept), fake_call(kept)};
    uint64_t ids[2];
    size_t submitted;
    pthread_mutex_lock(&gpu.gate);
    reuse(1);
    expect_broken(f, freed);
    calls[1].operand[2].buffer = freed;
    assert_int_equal(mlacat_submit_batch(f->stream, calls, 2, ids, &submitted), MLACAT_FAILED_PRECONDITION);
    assert_int_equal(submitted, 1);
    assert_non_null(strstr(mlacat_error_message(), "operand 2 (second input)"));
    assert_int_equal(mlacat_wait(f->stream, ids[0], -1, NULL), MLACAT_OK);
    pthread_mutex_unlock(&gpu.gate);
    fake_await_unregisters(f->fake, 1);
    mlacat_buffer_release(freed);
    mlacat_buffer_release(kept);
    assert_int_equal(fake_seen(f->fake).unregisters, 2);
}

static void test_client_memory_each_chunk_is_watched(void **state)
{
    struct scene *f = *state;
    gpu.legacy = false;
    for (unsigned chunk = 0; chunk < 3; chunk++) {
        struct mlacat_buffer *buffer = register_at(f, (char *)AT(10) + 4096, 3 * PIECE_BYTES - 8192);
        pthread_mutex_lock(&gpu.gate);
        expect_usable(f, buffer);
        reuse(10 + chunk);
        expect_broken(f, buffer);
        pthread_mutex_unlock(&gpu.gate);
        fake_await_unregisters(f->fake, 2 * chunk + 1);
        mlacat_buffer_release(buffer);
        buffer = register_at(f, AT(10), 3 * PIECE_BYTES);
        reuse(10 + chunk);
        fake_await_unregisters(f->fake, 2 * chunk + 2);
        mlacat_buffer_release(buffer);
    }
}

static void test_client_memory_many_buffers_are_watched(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *buffers[PIECES];
    for (unsigned i = 0; i < PIECES; i++) {
        buffers[i] = register_at(f, AT(i), 4096);
    }
    reuse(0);
    reuse(200);
    reuse(PIECES - 1);
    fake_await_unregisters(f->fake, 3);
    for (unsigned i = 0; i < PIECES; i++) {
        bool freed = i == 0 || i == 200 || i == PIECES - 1;
        (freed ? expect_broken : expect_usable)(f, buffers[i]);
    }
}

/* The daemon of the restart must not get the memory that is at the address now. */
static void test_client_memory_freed_is_not_registered_again(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *freed = register_at(f, AT(1), 4096);
    struct mlacat_buffer *kept = register_at(f, AT(2), 4096);
    pthread_mutex_lock(&gpu.gate);
    reuse(1);
    for (unsigned i = 1; i <= 2; i++) {
        fake_die(f->fake, NULL);
        expect_usable(f, kept);
        assert_int_equal(fake_seen(f->fake).registers, 3 + 2 * i); /* host and kept */
        expect_broken(f, freed);
        gpu.id[1] = 2; /* what was freed stays freed */
    }
    pthread_mutex_unlock(&gpu.gate);
    mlacat_buffer_release(freed);
    assert_int_equal(fake_seen(f->fake).unregisters, 0);
}

/* There is nobody to unregister it with: the thread waits like everybody, and holds nobody up. */
static void test_client_memory_freed_without_a_daemon(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *freed = register_at(f, AT(1), 4096);
    fake_die(f->fake, NULL);
    while (mlacat_dispatch(f->client, -1) == MLACAT_OK) {
    }
    reuse(1);
    while (!freed->freed) {
        sched_yield();
    }
    expect_usable(f, f->buffer);
    expect_broken(f, freed);
    mlacat_buffer_release(freed);
    assert_int_equal(fake_seen(f->fake).unregisters, 0);
}

static void test_client_memory_refused_after_a_restart_is_told_as_that(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *buffer = register_at(f, AT(1), 4096);
    struct mlacat_call call = fake_call(buffer);
    fake_set(f->fake, (struct fake_mode){.refuse_register = true, .code = MLACAT_INVALID_ARGUMENT, .text = "no, no"});
    fake_die(f->fake, NULL);
    assert_int_equal(mlacat_run(f->stream, &call, NULL), MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(mlacat_error_message(), "could not be registered again after a restart (no, no)"));
    mlacat_buffer_release(buffer);
    assert_int_equal(fake_seen(f->fake).unregisters, 0);
}

static void test_client_memory_unknown_breaks_nothing(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *buffer = register_at(f, AT(1), 4096);
    struct mlacat_call call = fake_call(buffer);
    uint64_t id;
    unsigned asked = gpu.asked;
    gpu.result = 4;
    assert_int_equal(mlacat_submit(f->stream, &call, &id), MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(mlacat_error_message(), "cuPointerGetAttribute: 4"));
    while (gpu.asked < asked + 3) { /* the thread has asked too */
        sched_yield();
    }
    gpu.result = 0;
    expect_usable(f, buffer);
    assert_int_equal(fake_seen(f->fake).unregisters, 0);
}

static void test_client_memory_no_gpu_memory_no_thread(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *buffer;
    expect_usable(f, f->buffer);
    assert_false(f->client->watch_started);
    assert_int_equal(gpu.asked, 0);
    gpu.exhausted = true;
    assert_int_equal(mlacat_buffer_register_ptr(f->client, AT(1), 4096, &buffer), MLACAT_RESOURCE_EXHAUSTED);
    assert_null(buffer);
    assert_int_equal(fake_seen(f->fake).registers, 1);
}

/* The last buffer is gone: the thread sleeps until there is one again. */
static void test_client_memory_thread_sleeps_without_buffers(void **state)
{
    struct scene *f = *state;
    mlacat_buffer_release(register_at(f, AT(1), 4096));
    await_idle(f);
    register_at(f, AT(2), 4096);
    reuse(2);
    fake_await_unregisters(f->fake, 2);
}

/* The thread waits for an answer that does not come, and ends all the same. */
static void test_client_memory_disconnect_ends_the_thread(void **state)
{
    struct scene *f = *state;
    register_at(f, AT(1), 4096);
    fake_set(f->fake, (struct fake_mode){.ignore = true});
    fake_sync(f->fake);
    reuse(1);
    fake_await_ignored(f->fake, 1);
    mlacat_disconnect(f->client);
    f->client = NULL;
}

static void test_client_memory_forked_child_leaves_it_alone(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *buffer = register_at(f, AT(1), 4096);
    struct mlacat_call call = fake_call(buffer);
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        uint64_t id;
        bool refused = mlacat_submit(f->stream, &call, &id) == MLACAT_FAILED_PRECONDITION &&
                       mlacat_reclaim(f->client, -1) == MLACAT_FAILED_PRECONDITION;
        mlacat_buffer_release(buffer);
        mlacat_disconnect(f->client);
        _exit(refused ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    expect_usable(f, buffer);
    reuse(1);
    fake_await_unregisters(f->fake, 1);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, watched_setup, watched_teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_client_memory_freed_is_unregistered_soon),
        CASE(test_client_memory_freed_and_not_used_again_is_found_too),
        CASE(test_client_memory_freed_is_found_by_the_call),
        CASE(test_client_memory_each_chunk_is_watched),
        CASE(test_client_memory_many_buffers_are_watched),
        CASE(test_client_memory_freed_is_not_registered_again),
        CASE(test_client_memory_freed_without_a_daemon),
        CASE(test_client_memory_refused_after_a_restart_is_told_as_that),
        CASE(test_client_memory_unknown_breaks_nothing),
        CASE(test_client_memory_no_gpu_memory_no_thread),
        CASE(test_client_memory_thread_sleeps_without_buffers),
        CASE(test_client_memory_disconnect_ends_the_thread),
        CASE(test_client_memory_forked_child_leaves_it_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
