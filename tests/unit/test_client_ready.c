/* SPDX-License-Identifier: Apache-2.0 */
/* Stream-ordered calls whose `ready` value goes into a word of GPU memory too: which word that is, when the daemon is
 * told of it, and that nothing depends on it. Over a driver and a daemon of the test. */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "client_driver.h"
#include "ring.h"
#include "test_client_scene.h"

#define PLAIN (MLACAT_RING_SUBMIT_READY | MLACAT_RING_SUBMIT_DONE)
#define TOLD (PLAIN | MLACAT_RING_SUBMIT_READY_BUFFER)

/* CUDA streams. */
static void *cuda;
static void *other;

static struct fake_mode mode = {.rings = true, .cuda = true};

static int setup(void **state)
{
    client_driver_reset();
    client_driver_gpu();
    cuda = client_driver_stream(0);
    other = client_driver_stream(1);
    *state = scene_open(mode, MLACAT_DISPATCH_THREAD);
    return 0;
}

/* Runs the CUDA streams until nothing of them is left. */
static void await_gpu(void)
{
    while (client_driver_run(0) + client_driver_run(1) > 0) {
        sched_yield();
    }
}

/* Submits one call, and returns what the daemon is told of it. */
static struct mlacat_ring_submission submit(struct scene *f, void *cu_stream)
{
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cu_stream, NULL), MLACAT_OK);
    struct rings *rings = fake_rings(f->fake);
    while (rings_seen(rings).last.ready != f->stream->ring->sequence) {
        sched_yield();
    }
    return rings_seen(rings).last;
}

static struct mlacat_ring_submission run(struct scene *f, void *cu_stream)
{
    struct mlacat_ring_submission entry = submit(f, cu_stream);
    await_gpu();
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
    return entry;
}

/* The library's own buffer; NULL: there is none. */
static struct mlacat_buffer *words_of(struct scene *f)
{
    struct mlacat_buffer *found = NULL;
    struct mlacat_buffer *buffer;
    pthread_mutex_lock(&f->client->lock);
    TAILQ_FOREACH(buffer, &f->client->buffers, link)
    {
        assert_true(found == NULL || buffer->ready_words == 0); /* one is enough */
        found = buffer->ready_words != 0 ? buffer : found;
    }
    pthread_mutex_unlock(&f->client->lock);
    return found;
}

/* The value goes into the word, into `ready`, and then the CUDA stream waits. */
static uint64_t expect_written(uint64_t value)
{
    struct client_driver_seen seen = client_driver_seen();
    assert_int_equal(seen.last_nr, 3);
    assert_true(seen.last[0].in_gpu && !seen.last[0].waits);
    assert_true(!seen.last[1].in_gpu && !seen.last[1].waits);
    assert_true(!seen.last[2].in_gpu && seen.last[2].waits);
    for (int i = 0; i < 3; i++) {
        assert_true(seen.last[i].value == value);
    }
    return seen.last[0].at;
}

static void expect_none(struct scene *f, void *cu_stream)
{
    for (int i = 0; i < 2; i++) {
        assert_int_equal(run(f, cu_stream).flags, PLAIN);
        assert_int_equal(client_driver_seen().last_nr, 2);
    }
}

/* Whatever the memory held before, the daemon must not take it for a value. */
static void test_client_ready_is_told_when_the_word_was_written(void **state)
{
    struct scene *f = *state;
    for (uint64_t i = 1; i <= 2; i++) {
        struct mlacat_ring_submission entry = submit(f, cuda);
        assert_int_equal(entry.flags, PLAIN);
        assert_true(entry.ready_buffer.id == 0 && entry.ready_buffer.generation == 0 && entry.ready_offset_bytes == 0);
        expect_written(RINGS_BEGIN + i);
    }
    await_gpu();
    const struct mlacat_buffer *words = words_of(f);
    assert_non_null(words);
    for (uint64_t i = 3; i <= 40; i++) {
        struct mlacat_ring_submission entry = run(f, cuda);
        assert_int_equal(entry.flags, TOLD);
        assert_true(entry.ready == RINGS_BEGIN + i);
        assert_int_equal(entry.ready_buffer.id, words->ref.id);
        assert_int_equal(entry.ready_buffer.generation, words->ref.generation);
        assert_int_equal(entry.ready_offset_bytes % MLACAT_ABI_LINE, 0);
        assert_true(expect_written(entry.ready) == entry.ready_offset_bytes);
    }
    struct client_driver_seen seen = client_driver_seen();
    assert_int_equal(seen.allocations, 1);
    assert_int_equal(seen.in_strict, 0);
}

/* The fake has no answer to what it is asked, but the connection is a new one then. */
static void restart(struct scene *f)
{
    struct mlacat_health health = {.size = sizeof(health)};
    fake_die(f->fake, NULL);
    mlacat_health(f->client, &health);
}

/* A CUDA stream may write a word long after the ring has another. */
static void test_client_ready_word_is_new_for_each_stream_and_connection(void **state)
{
    struct scene *f = *state;
    uint64_t offset[4];
    for (int i = 0; i < 4; i++) {
        if (i == 1) {
            mlacat_stream_close(f->stream);
            assert_int_equal(mlacat_stream_open(f->client, "GPU-1", &f->stream), MLACAT_OK);
        } else if (i > 1) {
            restart(f);
        }
        assert_int_equal(run(f, cuda).flags, PLAIN);
        struct mlacat_ring_submission entry = run(f, cuda);
        assert_int_equal(entry.flags, TOLD);
        assert_int_equal(entry.ready_buffer.id, words_of(f)->ref.id); /* as this daemon calls it */
        offset[i] = expect_written(entry.ready);
        assert_true(offset[i] == entry.ready_offset_bytes);
        for (int k = 0; k < i; k++) {
            assert_true(offset[i] != offset[k]);
        }
    }
    assert_int_equal(client_driver_seen().allocations, 1);
}

static void test_client_ready_refused_registration(void **state)
{
    struct scene *f = *state;
    struct fake_mode refusing = mode;
    refusing.refuse_register = true;
    refusing.code = MLACAT_RESOURCE_EXHAUSTED;
    fake_set(f->fake, refusing);
    fake_sync(f->fake);
    unsigned registers = fake_seen(f->fake).registers;
    assert_int_equal(mlacat_submit_on_stream(f->stream, NULL, cuda, NULL), MLACAT_INVALID_ARGUMENT);
    expect_none(f, cuda);
    assert_string_equal(mlacat_error_message(), "call is NULL");   /* these returned no error */
    assert_int_equal(fake_seen(f->fake).registers, registers + 1); /* asked once */
    assert_null(words_of(f));
    fake_set(f->fake, mode);
    fake_sync(f->fake);
    mlacat_stream_close(f->stream);
    assert_int_equal(mlacat_stream_open(f->client, "GPU-1", &f->stream), MLACAT_OK);
    assert_int_equal(run(f, cuda).flags, PLAIN);
    assert_int_equal(run(f, cuda).flags, TOLD);
    assert_int_equal(client_driver_seen().allocations, 1);
}

/* The daemon that has come back takes no buffer more. */
static void test_client_ready_refused_after_a_restart(void **state)
{
    struct scene *f = *state;
    assert_int_equal(run(f, cuda).flags, PLAIN);
    assert_int_equal(run(f, cuda).flags, TOLD);
    words_of(f)->broken.code = MLACAT_FAILED_PRECONDITION; /* as a reconnect leaves it */
    expect_none(f, cuda);
}

static void test_client_ready_no_memory(void **state)
{
    struct scene *f = *state;
    client_driver_fail(CLIENT_DRIVER_ALLOC);
    expect_none(f, cuda);
    assert_null(words_of(f));
}

static void test_client_ready_no_such_device(void **state)
{
    struct scene *f = *state;
    memcpy(f->stream->device, "GPU-2", sizeof("GPU-2"));
    expect_none(f, cuda);
    assert_int_equal(client_driver_seen().allocations, 0);
}

/* With its context, say. What is at its address by then is not written to. */
static void test_client_ready_memory_that_has_gone(void **state)
{
    struct scene *f = *state;
    assert_int_equal(run(f, cuda).flags, PLAIN);
    const struct mlacat_buffer *words = words_of(f);
    client_driver_end_memory();
    while (!words->freed) {
        sched_yield();
    }
    expect_none(f, cuda);
    mlacat_stream_close(f->stream);
    assert_int_equal(mlacat_stream_open(f->client, "GPU-1", &f->stream), MLACAT_OK);
    fake_await_unregisters(f->fake, 1);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_OK);
    expect_written(f->stream->ring->sequence); /* in other memory */
    await_gpu();
    assert_int_equal(client_driver_seen().allocations, 2);
}

/* Who asked for a word, and then did not bind the stream, may have another context than who binds it. */
static void test_client_ready_word_is_in_the_context_that_writes(void **state)
{
    struct scene *f = *state;
    struct mlacat_call wrong = f->call;
    client_driver_apart();
    wrong.operand[1].shape[1] = 5;
    assert_int_equal(mlacat_submit_on_stream(f->stream, &wrong, cuda, NULL), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(run(f, other).flags, PLAIN);
    assert_int_equal(run(f, other).flags, TOLD);
    assert_int_equal(client_driver_seen().allocations, 2);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_FAILED_PRECONDITION);
    assert_int_equal(run(f, other).flags, TOLD);
    restart(f);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, cuda, NULL), MLACAT_FAILED_PRECONDITION);
    assert_int_equal(mlacat_submit_on_stream(f->stream, &f->call, other, NULL), MLACAT_OK);
    expect_written(f->stream->ring->sequence);
    await_gpu();
    assert_int_equal(mlacat_stream_status(f->stream), MLACAT_OK);
    assert_int_equal(client_driver_seen().allocations, 2);
}

struct starter {
    struct scene scene;
    pthread_t thread;
    void *cu_stream;
    enum mlacat_status status;
};

static void *start(void *user)
{
    struct starter *starter = user;
    starter->status = mlacat_submit_on_stream(starter->scene.stream, &starter->scene.call, starter->cu_stream, NULL);
    return NULL;
}

/* So that they meet: whether they do decides what is tested, not what is right. */
static void take_a_while(void)
{
    poll(NULL, 0, 20);
}

/* They take one block, which is registered once, and a word of their own each. */
static void test_client_ready_streams_that_start_at_once(void **state)
{
    struct scene *f = *state;
    struct fake_mode slow = mode;
    struct starter starters[RINGS_NR];
    unsigned registers = fake_seen(f->fake).registers;
    slow.registering = take_a_while;
    fake_set(f->fake, slow);
    for (int i = 0; i < RINGS_NR; i++) {
        starters[i] = (struct starter){.scene = *f, .cu_stream = client_driver_stream((unsigned)i % 2)};
        if (i > 0) {
            assert_int_equal(mlacat_stream_open(f->client, "GPU-1", &starters[i].scene.stream), MLACAT_OK);
        }
    }
    for (int i = 0; i < RINGS_NR; i++) {
        assert_int_equal(pthread_create(&starters[i].thread, NULL, start, &starters[i]), 0);
    }
    for (int i = 0; i < RINGS_NR; i++) {
        pthread_join(starters[i].thread, NULL);
        assert_int_equal(starters[i].status, MLACAT_OK);
        for (int k = 0; k < i; k++) {
            assert_true(starters[i].scene.stream->ring->ready_word.offset_bytes !=
                        starters[k].scene.stream->ring->ready_word.offset_bytes);
        }
    }
    await_gpu();
    assert_int_equal(client_driver_seen().allocations, 1);
    assert_int_equal(fake_seen(f->fake).registers, registers + 1);
    assert_non_null(words_of(f));
}

/* One daemon that does not answer holds up its own client only. */
static void test_client_ready_daemons_are_apart(void **state)
{
    struct scene *f = *state;
    struct starter stuck = {.scene = *f, .cu_stream = cuda};
    struct fake_mode ignoring = mode;
    struct scene second = *f;
    second.fake = fake_start();
    fake_set(second.fake, mode);
    second.client = fake_client(second.fake, MLACAT_DISPATCH_THREAD);
    assert_int_equal(mlacat_stream_open(second.client, NULL, &second.stream), MLACAT_OK);
    assert_int_equal(mlacat_buffer_alloc(second.client, "host", 4096, &second.buffer), MLACAT_OK);
    second.call = fake_call(second.buffer);
    ignoring.ignore = true;
    fake_set(f->fake, ignoring);
    fake_sync(f->fake);
    assert_int_equal(pthread_create(&stuck.thread, NULL, start, &stuck), 0);
    fake_await_ignored(f->fake, 1);
    assert_int_equal(run(&second, other).flags, PLAIN);
    assert_int_equal(run(&second, other).flags, TOLD);
    fake_set(f->fake, mode);
    fake_sync(f->fake);
    fake_die(f->fake, NULL);
    pthread_join(stuck.thread, NULL);
    assert_int_equal(stuck.status, MLACAT_OK);
    await_gpu();
    mlacat_disconnect(second.client);
    fake_stop(second.fake);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, scene_close)
    const struct CMUnitTest tests[] = {
        TEST(test_client_ready_is_told_when_the_word_was_written),
        TEST(test_client_ready_word_is_new_for_each_stream_and_connection),
        TEST(test_client_ready_refused_registration),
        TEST(test_client_ready_refused_after_a_restart),
        TEST(test_client_ready_no_memory),
        TEST(test_client_ready_no_such_device),
        TEST(test_client_ready_memory_that_has_gone),
        TEST(test_client_ready_word_is_in_the_context_that_writes),
        TEST(test_client_ready_streams_that_start_at_once),
        TEST(test_client_ready_daemons_are_apart),
    };
    alarm(120); /* ends a test that waits in vain */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
