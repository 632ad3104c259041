/* SPDX-License-Identifier: Apache-2.0 */
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "mlacat_ring.h"
#include "test_client_scene.h"

/* A sleep on a futex ends by a wake alone: one that gets lost is not made good by the library's next look. */
static _Atomic bool patient;

long __real_syscall(long number, ...);
long __wrap_syscall(long number, long a, long b, long c, const struct timespec *time, long e, long f);

long __wrap_syscall(long number, long a, long b, long c, const struct timespec *time, long e, long f)
{
    bool endless = patient && number == SYS_futex && b == FUTEX_WAIT;
    return __real_syscall(number, a, b, c, endless ? NULL : time, e, f);
}

static int setup(void **state)
{
    *state = scene_open((struct fake_mode){.rings = true}, MLACAT_DISPATCH_THREAD);
    return 0;
}

/* ---------------------------------------------------------------------------------------------------- opening */

static enum mlacat_status open_with(struct mlacat_client *client, enum mlacat_transport transport,
                                    struct mlacat_stream **stream)
{
    struct mlacat_stream_options options = {.size = sizeof(options), .transport = transport};
    return mlacat_stream_open_with(client, "host", &options, stream);
}

static void test_client_ring_is_taken_where_there_is_one(void **state)
{
    struct scene *f = *state;
    struct mlacat_stream *second;
    struct mlacat_stream *messages;
    assert_int_equal(mlacat_stream_transport(f->stream), MLACAT_TRANSPORT_RING);
    assert_int_equal(open_with(f->client, MLACAT_TRANSPORT_RING, &second), MLACAT_OK);
    assert_int_equal(open_with(f->client, MLACAT_TRANSPORT_MESSAGE, &messages), MLACAT_OK);
    assert_int_equal(mlacat_stream_transport(messages), MLACAT_TRANSPORT_MESSAGE);
    assert_int_equal(fake_seen(f->fake).pages_opens, 1);
    assert_int_equal(fake_seen(f->fake).ring_opens, 2);
    assert_int_equal(mlacat_run(messages, &f->call, NULL), MLACAT_OK);
    assert_int_equal(mlacat_run(second, &f->call, NULL), MLACAT_OK);
    assert_int_equal(rings_seen(f->rings).calls, 1);
    assert_int_equal(fake_seen(f->fake).calls, 1);
    assert_int_equal(open_with(f->client, (enum mlacat_transport)3, &second), MLACAT_INVALID_ARGUMENT);
    assert_non_null(strstr(mlacat_error_message(), "transport is 3"));
}

static void test_client_ring_none_is_left(void **state)
{
    struct scene *f = *state;
    struct mlacat_stream *more[RINGS_NR];
    for (int i = 0; i < RINGS_NR - 1; i++) {
        assert_int_equal(open_with(f->client, MLACAT_TRANSPORT_RING, &more[i]), MLACAT_OK);
    }
    assert_int_equal(open_with(f->client, MLACAT_TRANSPORT_RING, &more[2]), MLACAT_RESOURCE_EXHAUSTED);
    assert_string_equal(mlacat_error_message(), "no ring is left");
    assert_int_equal(mlacat_stream_open(f->client, "host", &more[2]), MLACAT_OK);
    assert_int_equal(mlacat_stream_transport(more[2]), MLACAT_TRANSPORT_MESSAGE);
}

static void test_client_ring_a_daemon_without(void **state)
{
    struct scene *f = *state;
    struct mlacat_stream *stream;
    fake_set(f->fake, (struct fake_mode){0});
    fake_sync(f->fake);
    struct mlacat_client *client = fake_client(f->fake, MLACAT_DISPATCH_THREAD);
    assert_int_equal(open_with(client, MLACAT_TRANSPORT_RING, &stream), MLACAT_UNIMPLEMENTED);
    assert_int_equal(open_with(client, MLACAT_TRANSPORT_AUTO, &stream), MLACAT_OK);
    assert_int_equal(mlacat_stream_transport(stream), MLACAT_TRANSPORT_MESSAGE);
    mlacat_disconnect(client);
}

static void test_client_ring_not_for_callers_that_dispatch(void **state)
{
    struct scene *f = *state;
    struct mlacat_stream *stream;
    struct mlacat_client *client = fake_client(f->fake, MLACAT_DISPATCH_CALLER);
    assert_int_equal(open_with(client, MLACAT_TRANSPORT_RING, &stream), MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(mlacat_error_message(), "MLACAT_DISPATCH_THREAD"));
    assert_int_equal(open_with(client, MLACAT_TRANSPORT_AUTO, &stream), MLACAT_OK);
    assert_int_equal(mlacat_stream_transport(stream), MLACAT_TRANSPORT_MESSAGE);
    mlacat_disconnect(client);
}

struct opening {
    struct scene *f;
    pthread_t thread;
    enum mlacat_status status;
};

static void *open_one_more(void *user)
{
    struct opening *opening = user;
    struct mlacat_stream *stream;
    opening->status = open_with(opening->f->client, MLACAT_TRANSPORT_RING, &stream);
    return NULL;
}

static int lowest_free_fd(void)
{
    int fd = dup(STDERR_FILENO);
    close(fd);
    return fd;
}

/* Also when the connection ends behind the answer, the descriptor is there and the stream is not. */
static void test_client_ring_closes_the_doorbell_of_no_stream(void **state)
{
    struct scene *f = *state;
    struct opening opening = {.f = f};
    fake_set(f->fake, (struct fake_mode){.rings = true, .ignore = true});
    assert_int_equal(pthread_create(&opening.thread, NULL, open_one_more, &opening), 0);
    fake_await_ignored(f->fake, 1);
    int before = lowest_free_fd();
    pthread_mutex_lock(&f->client->lock);
    uint8_t id = (uint8_t)f->client->last_request_id;
    pthread_mutex_unlock(&f->client->lock);
    const uint8_t refusal[] = {0x08, id, 0x8a, 0x02, 0x04, 0x0a, 0x02, 0x08, MLACAT_NOT_FOUND}; /* an Answer */
    fake_send_raw(f->fake, refusal, sizeof(refusal), STDERR_FILENO);
    pthread_join(opening.thread, NULL);
    assert_int_equal(opening.status, MLACAT_NOT_FOUND);
    assert_int_equal(lowest_free_fd(), before);
}

/* ---------------------------------------------------------------------------------------------------- calls */

static void test_client_ring_entry_says_what_the_call_says(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result)};
    f->call.deadline_us = 77;
    f->call.operand[1].strides[0] = -4;
    assert_int_equal(mlacat_run(f->stream, &f->call, &result), MLACAT_OK);
    assert_int_equal(result.queue_ns, 11);
    assert_int_equal(result.device_ns, 22);
    struct mlacat_ring_submission last = rings_seen(f->rings).last;
    assert_int_equal(last.op, MLACAT_OP_CONCAT_MLA_K);
    assert_int_equal(last.dtype, MLACAT_DTYPE_BF16);
    assert_int_equal(last.flags, 0);
    assert_int_equal(last.deadline_us, 77);
    assert_int_equal(last.dim0, 1);
    assert_int_equal(last.dim1, 2);
    assert_int_equal(last.width_first, 3);
    assert_int_equal(last.width_second, 3);
    assert_int_equal(last.offset_bytes[2], 128);
    assert_int_equal(last.stride[1][0], -4);
    assert_int_equal(last.stride[0][1], 6);
    assert_int_equal(last.buffer[1].id, f->buffer->ref.id);
    assert_int_equal(last.reserved[1], 0);
    assert_int_equal(fake_seen(f->fake).calls, 0);
}

/* The texts are op_validate's: it cannot see them in an entry. */
static void test_client_ring_tells_what_no_entry_can_say(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result)};
    struct mlacat_call call = f->call;
    call.operand[1].shape[2] = 4;
    assert_int_equal(mlacat_run(f->stream, &call, &result), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(result.ended, 1);
    assert_string_equal(result.message,
                        "k_nope shape [1, 2, 4] does not match k shape [1, 2, 6]: its last extent must be 3");
    call = f->call;
    call.operand[2].shape[1] = 2;
    assert_int_equal(mlacat_run(f->stream, &call, &result), MLACAT_INVALID_ARGUMENT);
    assert_string_equal(result.message,
                        "k_rope shape [1, 2, 3] does not match k shape [1, 2, 6]: its second extent must be 1");
    call = f->call;
    call.operand[0].strides[2] = 2;
    assert_int_equal(mlacat_run(f->stream, &call, &result), MLACAT_INVALID_ARGUMENT);
    assert_string_equal(result.message, "k has stride 2 in its last dimension of extent 6: it must be 1");
    call.op = (enum mlacat_op)70000;
    assert_int_equal(mlacat_run(f->stream, &call, &result), MLACAT_UNIMPLEMENTED);
    assert_int_equal(rings_seen(f->rings).calls, 0);
    assert_int_equal(mlacat_run(f->stream, &f->call, &result), MLACAT_OK);
}

static void test_client_ring_failed_call_has_its_text(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result)};
    rings_set(f->rings, (struct rings_mode){.code = MLACAT_NOT_FOUND, .scope = MLACAT_SCOPE_CALL, .text = "no buffer"});
    assert_int_equal(mlacat_run(f->stream, &f->call, &result), MLACAT_NOT_FOUND);
    assert_string_equal(result.message, "no buffer");
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_NOT_FOUND);
    assert_string_equal(mlacat_error_message(), "no buffer");
    rings_set(f->rings, (struct rings_mode){0});
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
}

/* The fence alone ends a wait that wants no times, and never one for a call that failed. */
static void test_client_ring_fence_ends_the_wait(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result)};
    uint64_t ids[3];
    rings_set(f->rings, (struct rings_mode){.late = true});
    for (int i = 0; i < 2; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[i]), MLACAT_OK);
    }
    assert_int_equal(mlacat_wait(f->stream, ids[1], -1, NULL), MLACAT_OK);
    assert_int_equal(mlacat_wait(f->stream, ids[0], 1000, &result), MLACAT_DEADLINE_EXCEEDED);
    assert_int_equal(result.ended, 0);
    rings_set(f->rings, (struct rings_mode){0});
    assert_int_equal(mlacat_wait(f->stream, ids[0], -1, &result), MLACAT_OK);
    /* A call that failed, and then one that passes it. */
    rings_set(f->rings, (struct rings_mode){.hold = true, .code = MLACAT_DATA_LOSS, .text = "lost"});
    for (int i = 0; i < 3; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[i]), MLACAT_OK);
    }
    rings_release(f->rings, 0, 1);
    assert_int_equal(mlacat_wait(f->stream, ids[0], -1, &result), MLACAT_DATA_LOSS);
    rings_set(f->rings, (struct rings_mode){.late = true});
    rings_await_calls(f->rings, 5);
    assert_int_equal(mlacat_wait(f->stream, ids[2], 2000, NULL), MLACAT_DEADLINE_EXCEEDED); /* `failed` has changed */
    rings_set(f->rings, (struct rings_mode){0});
    assert_int_equal(mlacat_wait(f->stream, ids[1], -1, NULL), MLACAT_OK);
    assert_int_equal(mlacat_wait(f->stream, ids[2], -1, NULL), MLACAT_OK);
}

/* One entry is kept for a request to cancel. */
static void test_client_ring_is_full(void **state)
{
    struct scene *f = *state;
    struct mlacat_call calls[RINGS_ENTRIES];
    uint64_t ids[RINGS_ENTRIES];
    size_t submitted;
    for (int i = 0; i < RINGS_ENTRIES; i++) {
        calls[i] = f->call;
    }
    rings_set(f->rings, (struct rings_mode){.hold = true});
    assert_int_equal(mlacat_submit_batch(f->stream, calls, RINGS_ENTRIES, ids, &submitted), MLACAT_RESOURCE_EXHAUSTED);
    assert_int_equal(submitted, RINGS_ENTRIES - 1);
    rings_await_calls(f->rings, RINGS_ENTRIES - 1);
    assert_int_equal(mlacat_cancel(f->stream, ids[3]), MLACAT_OK);
    assert_int_equal(mlacat_wait(f->stream, ids[3], -1, NULL), MLACAT_CANCELLED);
    rings_set(f->rings, (struct rings_mode){0});
    for (int i = 0; i < RINGS_ENTRIES - 1; i++) {
        if (i != 3) {
            assert_int_equal(mlacat_wait(f->stream, ids[i], -1, NULL), MLACAT_OK);
        }
    }
}

/* Waited for by the fence, so the slots are free; but the entries are not, until the completions come. */
static void *complete_later(void *user)
{
    struct scene *f = user;
    rings_await_parked(f->rings, 0);
    rings_set(f->rings, (struct rings_mode){0});
    return NULL;
}

static void test_client_ring_submit_waits_for_entries(void **state)
{
    struct scene *f = *state;
    pthread_t thread;
    rings_set(f->rings, (struct rings_mode){.late = true});
    for (int i = 0; i < RINGS_ENTRIES - 1; i++) {
        assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    }
    assert_int_equal(pthread_create(&thread, NULL, complete_later, f), 0);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    pthread_join(thread, NULL);
    assert_int_equal(rings_seen(f->rings).calls, RINGS_ENTRIES);
}

static void test_client_ring_goes_round(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result)};
    for (int i = 0; i < 20 * RINGS_ENTRIES; i++) {
        assert_int_equal(mlacat_run(f->stream, &f->call, i % 3 == 0 ? &result : NULL), MLACAT_OK);
    }
    assert_int_equal(rings_seen(f->rings).calls, 20 * RINGS_ENTRIES);
}

/* One by one past 2^32, by the fence and then by completions. */
static void test_client_ring_numbers_pass_32_bits(void **state)
{
    struct scene *f = *state;
    uint64_t ids[RINGS_ENTRIES - 1];
    uint64_t sequence = RINGS_BEGIN;
    for (; sequence < UINT32_MAX - 7; sequence++) {
        assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    }
    rings_set(f->rings, (struct rings_mode){.hold = true, .late = true});
    for (int i = 0; i < RINGS_ENTRIES - 1; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[i]), MLACAT_OK);
    }
    for (int i = 0; i < RINGS_ENTRIES - 2; i++) {
        assert_int_equal(mlacat_wait(f->stream, ids[i], 0, NULL), MLACAT_DEADLINE_EXCEEDED);
        rings_release(f->rings, 0, 1);
        for (sequence++; rings_fence(f->rings, 0) != sequence; sched_yield()) {
        }
        assert_int_equal(mlacat_wait(f->stream, ids[i], 0, NULL), MLACAT_OK);
    }
    assert_true(sequence > UINT32_MAX);
    rings_set(f->rings, (struct rings_mode){.hold = true});
    assert_int_equal(mlacat_cancel(f->stream, ids[RINGS_ENTRIES - 2]), MLACAT_OK);
    assert_int_equal(mlacat_wait(f->stream, ids[RINGS_ENTRIES - 2], -1, NULL), MLACAT_CANCELLED);
    rings_set(f->rings, (struct rings_mode){0});
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    assert_int_equal(f->stream->taken, 0);
}

static void test_client_ring_wakes_a_worker_that_sleeps(void **state)
{
    struct scene *f = *state;
    rings_await_sleep(f->rings);
    unsigned bells = rings_seen(f->rings).bells;
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    assert_int_equal(rings_seen(f->rings).bells, bells + 1);
}

static void *release_later(void *user)
{
    struct scene *f = user;
    rings_await_parked(f->rings, 0);
    rings_release(f->rings, 0, 1);
    return NULL;
}

static void test_client_ring_wait_sleeps_and_is_woken(void **state)
{
    struct scene *f = *state;
    pthread_t thread;
    uint64_t id;
    rings_set(f->rings, (struct rings_mode){.hold = true});
    patient = true;
    for (int i = 0; i < 50; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
        assert_int_equal(pthread_create(&thread, NULL, release_later, f), 0);
        assert_int_equal(mlacat_wait(f->stream, id, -1, NULL), MLACAT_OK);
        pthread_join(thread, NULL);
        assert_false(mlacat_ring_client_waits(rings_client(f->rings, 0)));
    }
    patient = false;
}

static void test_client_ring_wait_takes_a_call_once(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result)};
    uint64_t id;
    rings_set(f->rings, (struct rings_mode){.hold = true});
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    assert_int_equal(mlacat_wait(f->stream, id, 0, &result), MLACAT_DEADLINE_EXCEEDED);
    assert_int_equal(mlacat_wait(f->stream, id, 500, &result), MLACAT_DEADLINE_EXCEEDED);
    rings_release(f->rings, 0, 1);
    assert_int_equal(mlacat_wait(f->stream, id, -1, &result), MLACAT_OK);
    assert_int_equal(mlacat_wait(f->stream, id, -1, &result), MLACAT_NOT_FOUND);
    assert_int_equal(mlacat_cancel(f->stream, id), MLACAT_NOT_FOUND);
    assert_int_equal(rings_seen(f->rings).cancels, 0);
}

static void test_client_ring_close_waits_for_calls(void **state)
{
    struct scene *f = *state;
    pthread_t thread;
    uint64_t id;
    rings_set(f->rings, (struct rings_mode){.hold = true});
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    assert_int_equal(pthread_create(&thread, NULL, release_later, f), 0);
    mlacat_stream_close(f->stream); /* the fake answers CloseStream at once */
    pthread_join(thread, NULL);
    assert_int_equal(fake_seen(f->fake).closes, 1);
}

struct runner {
    struct scene *f;
    pthread_t thread;
    bool good;
};

static void *run_many(void *user)
{
    struct runner *runner = user;
    struct mlacat_result result = {.size = sizeof(result)};
    for (int i = 0; i < 300; i++) {
        uint64_t id;
        enum mlacat_status status = mlacat_submit(runner->f->stream, &runner->f->call, &id);
        if (status != MLACAT_OK || mlacat_wait(runner->f->stream, id, -1, i % 2 ? &result : NULL) != MLACAT_OK) {
            return NULL;
        }
    }
    runner->good = true;
    return NULL;
}

static void test_client_ring_threads_share_a_stream(void **state)
{
    struct runner runners[4] = {0};
    for (int i = 0; i < 4; i++) {
        runners[i].f = *state;
        assert_int_equal(pthread_create(&runners[i].thread, NULL, run_many, &runners[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(runners[i].thread, NULL);
        assert_true(runners[i].good);
    }
}

static void *release_buffer(void *user)
{
    mlacat_buffer_release(user);
    return NULL;
}

/* It goes by packet, the call does not: the daemon must not hear of it first. */
static void test_client_ring_release_comes_after_the_call(void **state)
{
    struct scene *f = *state;
    struct mlacat_stats *stats;
    pthread_t thread;
    uint64_t id;
    rings_set(f->rings, (struct rings_mode){.blind = true});
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    assert_int_equal(pthread_create(&thread, NULL, release_buffer, f->buffer), 0);
    for (int i = 0; i < 50; i++) { /* time to do it wrong */
        assert_int_equal(mlacat_stats(f->client, &stats), MLACAT_OK);
        mlacat_stats_free(stats);
        assert_int_equal(fake_seen(f->fake).unregisters, 0);
    }
    rings_set(f->rings, (struct rings_mode){0});
    pthread_join(thread, NULL);
    assert_int_equal(rings_seen(f->rings).calls, 1);
    assert_int_equal(fake_seen(f->fake).unregisters, 1);
    assert_int_equal(mlacat_wait(f->stream, id, -1, NULL), MLACAT_OK);
}

/* Its connection is gone: nobody will take the call. */
static void test_client_ring_release_does_not_wait_for_a_dead_daemon(void **state)
{
    struct scene *f = *state;
    pthread_t thread;
    uint64_t id;
    rings_set(f->rings, (struct rings_mode){.blind = true});
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    assert_int_equal(pthread_create(&thread, NULL, release_buffer, f->buffer), 0);
    fake_die(f->fake, NULL);
    pthread_join(thread, NULL);
    assert_int_equal(mlacat_wait(f->stream, id, -1, NULL), MLACAT_UNAVAILABLE);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, scene_close)
    const struct CMUnitTest tests[] = {
        TEST(test_client_ring_is_taken_where_there_is_one),
        TEST(test_client_ring_none_is_left),
        TEST(test_client_ring_a_daemon_without),
        TEST(test_client_ring_not_for_callers_that_dispatch),
        TEST(test_client_ring_closes_the_doorbell_of_no_stream),
        TEST(test_client_ring_entry_says_what_the_call_says),
        TEST(test_client_ring_tells_what_no_entry_can_say),
        TEST(test_client_ring_failed_call_has_its_text),
        TEST(test_client_ring_fence_ends_the_wait),
        TEST(test_client_ring_is_full),
        TEST(test_client_ring_submit_waits_for_entries),
        TEST(test_client_ring_goes_round),
        TEST(test_client_ring_numbers_pass_32_bits),
        TEST(test_client_ring_wakes_a_worker_that_sleeps),
        TEST(test_client_ring_wait_sleeps_and_is_woken),
        TEST(test_client_ring_wait_takes_a_call_once),
        TEST(test_client_ring_close_waits_for_calls),
        TEST(test_client_ring_threads_share_a_stream),
        TEST(test_client_ring_release_comes_after_the_call),
        TEST(test_client_ring_release_does_not_wait_for_a_dead_daemon),
    };
    alarm(120); /* ends a test that waits in vain */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
