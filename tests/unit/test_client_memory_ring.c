/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GPU memory that is freed while it is registered, and calls through a ring: over a driver and a daemon of the test. A
 * single call is on its way when the driver is asked; of one that is refused nothing must be left.
 */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "mlacat_ring.h"
#include "ring.h"
#include "test_client_watched.h"

#define UNTOUCHED UINT64_C(0xabcdef)

/* No thread of the library answers any more, so that only a submit can find out. */
static int setup(void **state)
{
    watched_setup_ring(state);
    pthread_mutex_lock(&gpu.gate);
    return 0;
}

static int teardown(void **state)
{
    pthread_mutex_unlock(&gpu.gate);
    return watched_teardown(state);
}

static unsigned calls_seen(const struct scene *f)
{
    return rings_seen(f->rings).calls;
}

static void expect_nothing_in_flight(const struct scene *f)
{
    pthread_mutex_lock(&f->stream->ring->lock);
    assert_int_equal(f->stream->flying, 0);
    assert_int_equal(f->stream->taken, 0);
    pthread_mutex_unlock(&f->stream->ring->lock);
}

static void expect_refused(struct scene *f, struct mlacat_buffer *buffer, const char *text)
{
    struct mlacat_call call = fake_call(f->buffer);
    uint64_t id = UNTOUCHED;
    call.operand[1].buffer = buffer;
    assert_int_equal(mlacat_submit(f->stream, &call, &id), MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(mlacat_error_message(), text));
    assert_int_equal(id, UNTOUCHED);
    expect_nothing_in_flight(f);
}

static void expect_freed(struct scene *f, struct mlacat_buffer *buffer)
{
    expect_refused(f, buffer, "operand 1 (first input): the memory at");
    assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_BUFFER);
}

/* What comes next gets its own result, not that of a call that was refused. */
static void expect_next_is_right(struct scene *f)
{
    struct mlacat_result result = {.size = sizeof(result)};
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
    assert_int_equal(mlacat_run(f->stream, &f->call, &result), MLACAT_OK);
    assert_int_equal(result.device_ns, 22);
    expect_nothing_in_flight(f);
}

static void test_client_memory_ring_freed_is_found_by_the_call(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *freed = register_at(f, AT(1), 4096);
    struct mlacat_buffer *kept = register_at(f, AT(2), 4096);
    expect_usable(f, freed);
    reuse(1);
    unsigned calls = calls_seen(f);
    expect_freed(f, freed);
    assert_int_equal(calls_seen(f), calls + 1);
    expect_freed(f, freed); /* known by now: nothing is sent */
    assert_int_equal(calls_seen(f), calls + 1);
    expect_usable(f, kept);
    expect_next_is_right(f);
    pthread_mutex_unlock(&gpu.gate);
    fake_await_unregisters(f->fake, 1);
    pthread_mutex_lock(&gpu.gate);
}

/* Also when its memory is registered anew at once, by the same address. */
static void test_client_memory_ring_no_slot_is_lost(void **state)
{
    struct scene *f = *state;
    for (unsigned i = 0; i < 2 * f->stream->limit + 1; i++) {
        struct mlacat_buffer *freed = register_at(f, AT(1), 4096);
        reuse(1);
        expect_freed(f, freed);
        mlacat_buffer_release(freed);
    }
    expect_next_is_right(f);
}

/* With as many calls in flight as there may be, nothing is sent and so nothing asked. */
static void test_client_memory_ring_at_the_limit(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *freed = register_at(f, AT(1), 4096);
    struct mlacat_call call = fake_call(freed);
    uint64_t ids[RINGS_ENTRIES];
    uint32_t limit = f->stream->limit;
    uint64_t id;
    rings_set(f->rings, (struct rings_mode){.hold = true});
    for (uint32_t i = 0; i < limit - 1; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[i]), MLACAT_OK);
    }
    reuse(1);
    for (int i = 0; i < 3; i++) {
        struct mlacat_buffer *other = register_at(f, AT(2), 4096);
        reuse(2);
        call.operand[0].buffer = other;
        assert_int_equal(mlacat_submit(f->stream, &call, &id), MLACAT_FAILED_PRECONDITION);
    }
    assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[limit - 1]), MLACAT_OK);
    call.operand[0].buffer = freed;
    assert_int_equal(mlacat_submit(f->stream, &call, &id), MLACAT_RESOURCE_EXHAUSTED);
    rings_set(f->rings, (struct rings_mode){0});
    for (uint32_t i = 0; i < limit; i++) {
        assert_int_equal(mlacat_wait(f->stream, ids[i], -1, NULL), MLACAT_OK);
    }
    expect_freed(f, freed);
    expect_next_is_right(f);
}

/* The daemon has not begun with it, and does not: what it would write may be memory of the caller. */
static void test_client_memory_ring_the_call_is_over_when_it_is_refused(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *freed = register_at(f, AT(1), 4096);
    reuse(1);
    rings_set(f->rings, (struct rings_mode){.hold = true});
    expect_freed(f, freed);
    assert_int_equal(rings_seen(f->rings).cancels, 1);
    rings_set(f->rings, (struct rings_mode){0});
    expect_next_is_right(f);
}

/* What the daemon says of the call is of no interest. */
static void test_client_memory_ring_the_call_fails_too(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *freed = register_at(f, AT(1), 4096);
    reuse(1);
    rings_set(f->rings, (struct rings_mode){.code = MLACAT_NOT_FOUND, .scope = MLACAT_SCOPE_CALL});
    expect_freed(f, freed);
    rings_set(f->rings, (struct rings_mode){0});
    expect_next_is_right(f);
}

static void test_client_memory_ring_the_driver_cannot_tell(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *buffer = register_at(f, AT(1), 4096);
    for (unsigned i = 0; i < f->stream->limit + 1; i++) {
        gpu.result = 4;
        expect_refused(f, buffer, "cuPointerGetAttribute: 4");
        gpu.result = 0;
    }
    expect_usable(f, buffer);
    expect_next_is_right(f);
}

struct killer {
    struct scene *f;
    struct mlacat_ring_client *words;
    uint32_t tail;
};

/* When the daemon was given the call, and the request to cancel it. */
static void *kill_daemon(void *user)
{
    struct killer *killer = user;
    while (mlacat_ring_submitted(killer->words) != killer->tail + 2) {
        sched_yield();
    }
    fake_die(killer->f->fake, NULL);
    return NULL;
}

static void test_client_memory_ring_the_daemon_ends_under_it(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *freed = register_at(f, AT(1), 4096);
    pthread_t thread;
    expect_next_is_right(f);
    struct killer killer = {.f = f, .words = rings_client(f->rings, 0)};
    killer.tail = mlacat_ring_submitted(killer.words);
    rings_set(f->rings, (struct rings_mode){.blind = true});
    reuse(1);
    assert_int_equal(pthread_create(&thread, NULL, kill_daemon, &killer), 0);
    expect_freed(f, freed);
    pthread_join(thread, NULL);
    expect_next_is_right(f);
}

static void done_cb(void *user, uint64_t id, const struct mlacat_result *result)
{
    (void)id;
    (void)result;
    ++*(unsigned *)user;
}

/* Where more than one call could be on its way, or nobody waits for its end, the driver is asked first. */
static void test_client_memory_ring_others_are_asked_about_first(void **state)
{
    struct scene *f = *state;
    unsigned ran = 0;
    size_t submitted;
    for (int batch = 0; batch < 2; batch++) {
        struct mlacat_call call = fake_call(register_at(f, AT(1), 4096));
        uint64_t id;
        call.done = batch ? NULL : done_cb;
        call.user = &ran;
        reuse(1);
        unsigned calls = calls_seen(f);
        enum mlacat_status status =
            batch ? mlacat_submit_batch(f->stream, &call, 1, &id, &submitted) : mlacat_submit(f->stream, &call, NULL);
        assert_int_equal(status, MLACAT_FAILED_PRECONDITION);
        assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_BUFFER);
        assert_int_equal(calls_seen(f), calls);
    }
    assert_int_equal(submitted, 0);
    expect_next_is_right(f);
    assert_int_equal(ran, 0);
}

static void test_client_memory_ring_closes_after_a_refusal(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *freed = register_at(f, AT(1), 4096);
    reuse(1);
    expect_freed(f, freed);
    mlacat_stream_close(f->stream);
    assert_int_equal(mlacat_stream_open(f->client, NULL, &f->stream), MLACAT_OK);
    expect_next_is_right(f);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_client_memory_ring_freed_is_found_by_the_call),
        CASE(test_client_memory_ring_no_slot_is_lost),
        CASE(test_client_memory_ring_at_the_limit),
        CASE(test_client_memory_ring_the_call_is_over_when_it_is_refused),
        CASE(test_client_memory_ring_the_call_fails_too),
        CASE(test_client_memory_ring_the_driver_cannot_tell),
        CASE(test_client_memory_ring_the_daemon_ends_under_it),
        CASE(test_client_memory_ring_others_are_asked_about_first),
        CASE(test_client_memory_ring_closes_after_a_refusal),
    };
    alarm(120); /* ends a test that waits in vain */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
