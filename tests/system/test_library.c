/* SPDX-License-Identifier: Apache-2.0 */
/* libmlacat against the real daemon: every way to make a call, several threads, what it tells of the service. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "library.h"
#include "proc.h"

static void test_library_allocates_and_runs(void **state)
{
    struct server *server = *state;
    struct mlacat_client *client = library_connect(server, 0);
    struct mlacat_buffer *buffer = NULL;
    struct mlacat_stream *stream = NULL;
    struct mlacat_result result = {.size = sizeof(result)};
    MUST(mlacat_buffer_alloc(client, "host", 4096, &buffer));
    MUST(mlacat_stream_open(client, "host", &stream));
    uint8_t *data = mlacat_buffer_data(buffer);
    assert_int_equal(mlacat_buffer_bytes(buffer), 4096);
    memcpy(data, "abcdefgh", 8);
    struct mlacat_call call = {.size = sizeof(call),
                               .op = MLACAT_OP_CONCAT_MLA_K,
                               .dtype = MLACAT_DTYPE_FP8_E4M3,
                               .operand = {mlacat_tensor_contiguous(buffer, 64, 1, 1, 8),
                                           mlacat_tensor_contiguous(buffer, 4, 1, 1, 4),
                                           mlacat_tensor_contiguous(buffer, 0, 1, 1, 4)}};
    MUST(mlacat_run(stream, &call, &result));
    assert_memory_equal(data + 64, "efghabcd", 8);
    assert_int_equal(result.ended, 1);
    call.operand[0].shape[2] = 9;
    assert_int_equal(mlacat_run(stream, &call, &result), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(result.scope, MLACAT_SCOPE_CALL);
    assert_non_null(strstr(result.message, "9"));
    mlacat_stream_close(stream);
    mlacat_buffer_release(buffer);
    mlacat_disconnect(client);
    WAIT_UNTIL(proc_maps(server->pid, "memfd:") == 0);
}

static void test_library_batch_and_wait(void **state)
{
    enum { CALLS = 20 };
    struct library library;
    struct mlacat_call calls[CALLS];
    uint64_t ids[CALLS];
    size_t submitted = 0;
    library_open(&library, *state, &small_shape);
    for (int i = 0; i < CALLS; i++) {
        calls[i] = library_call(&library.trial, library.buffer);
    }
    struct mlacat_result result = {.size = sizeof(result)};
    MUST(mlacat_submit_batch(library.stream, calls, CALLS, ids, &submitted));
    assert_int_equal(submitted, CALLS);
    for (int i = CALLS - 1; i >= 0; i--) {
        MUST(mlacat_wait(library.stream, ids[i], -1, &result));
        assert_int_equal(mlacat_wait(library.stream, ids[i], 0, &result), MLACAT_NOT_FOUND);
    }
    assert_true(trial_right(&library.trial));
    library_close(&library);
}

/* Cancels a call that may have begun, or ended; it ends as the answer says. */
static void cancel_and_wait(struct mlacat_stream *stream, uint64_t id)
{
    struct mlacat_result result = {.size = sizeof(result)};
    enum mlacat_status cancelled = mlacat_cancel(stream, id);
    enum mlacat_status ended = mlacat_wait(stream, id, -1, &result);
    assert_true(cancelled == MLACAT_OK || cancelled == MLACAT_FAILED_PRECONDITION || cancelled == MLACAT_NOT_FOUND);
    assert_int_equal(ended, cancelled == MLACAT_OK ? MLACAT_CANCELLED : MLACAT_OK);
}

static void test_library_wait_and_cancel_of_long_calls(void **state)
{
    enum { CALLS = 100 }; /* seconds of work */
    struct library library;
    uint64_t ids[CALLS];
    uint64_t late_id;
    struct trial slow;
    struct mlacat_result result = {.size = sizeof(result)};
    library_open(&library, *state, &small_shape);
    slow_make(&slow);
    struct mlacat_buffer *slow_buffer = library_register(library.client, &slow);
    struct mlacat_call call = library_call(&slow, slow_buffer);
    for (int i = 0; i < CALLS; i++) {
        MUST(mlacat_submit(library.stream, &call, &ids[i]));
    }
    call.deadline_us = 1;
    MUST(mlacat_submit(library.stream, &call, &late_id));
    assert_int_equal(mlacat_wait(library.stream, ids[CALLS - 1], 0, &result), MLACAT_DEADLINE_EXCEEDED);
    assert_int_equal(result.ended, 0);
    MUST(mlacat_cancel(library.stream, ids[CALLS - 1]));
    assert_int_equal(mlacat_wait(library.stream, ids[CALLS - 1], -1, &result), MLACAT_CANCELLED);
    for (int i = CALLS - 2; i >= 0; i--) {
        cancel_and_wait(library.stream, ids[i]);
    }
    assert_int_equal(mlacat_wait(library.stream, late_id, -1, &result), MLACAT_DEADLINE_EXCEEDED);
    assert_int_equal(result.ended, 1);
    assert_int_equal(mlacat_cancel(library.stream, ids[0]), MLACAT_NOT_FOUND);
    mlacat_buffer_release(slow_buffer);
    trial_free(&slow);
    library_close(&library);
}

/* -------------------------------------------------------------------------------------------------------- callbacks */

static void count_ok(void *user, uint64_t call_id, const struct mlacat_result *result)
{
    _Atomic uint32_t *ended = user;
    (void)call_id;
    if (result->status == MLACAT_OK && result->ended) {
        atomic_fetch_add(ended, 1);
    }
}

static void test_library_callbacks_come_once(void **state)
{
    enum { CALLS = 100 };
    struct library library;
    _Atomic uint32_t ended = 0;
    library_open(&library, *state, &small_shape);
    struct mlacat_call call = library_call(&library.trial, library.buffer);
    call.done = count_ok;
    call.user = &ended;
    for (int i = 0; i < CALLS; i++) {
        MUST(mlacat_submit(library.stream, &call, NULL));
    }
    mlacat_stream_close(library.stream); /* waits for all */
    WAIT_UNTIL(atomic_load(&ended) == CALLS);
    MUST(mlacat_stream_open(library.client, NULL, &library.stream));
    assert_int_equal(library_run(&library, 5), MLACAT_OK);
    library_close(&library);
    assert_int_equal(atomic_load(&ended), CALLS);
}

/* ---------------------------------------------------------------------------------------------------------- threads */

struct worker {
    pthread_t thread;
    struct mlacat_client *client;
    uint32_t number;
    bool right;
};

/* As library_register, without its check. */
static bool try_register(struct library *library)
{
    const struct trial *trial = &library->trial;
    const struct share *share = gpu_memory_find(trial->fd);
    void *address = share ? (void *)(uintptr_t)share->address : NULL;
    return (share ? mlacat_buffer_register_ptr(library->client, address, trial->bytes, &library->buffer)
                  : mlacat_buffer_register_fd(library->client, NULL, trial->fd, trial->bytes, &library->buffer)) ==
           MLACAT_OK;
}

/* A stream and buffers of its own on the client of all; no checks here, they belong to the main thread. */
static void *run_worker(void *arg)
{
    struct worker *worker = arg;
    struct library library = {.client = worker->client};
    struct trial_shape shape = {1 + worker->number % 2, 1 + worker->number % 5, 8, 8, 32, 16, true, worker->number};
    trial_make(&library.trial, &shape);
    bool right = mlacat_stream_open(library.client, NULL, &library.stream) == MLACAT_OK;
    for (uint32_t i = 0; right && i < 50; i++) {
        right = try_register(&library);
        trial_refill(&library.trial, i);
        struct mlacat_call call = library_call(&library.trial, library.buffer);
        right = right && mlacat_run(library.stream, &call, NULL) == MLACAT_OK && trial_right(&library.trial);
        mlacat_buffer_release(library.buffer);
    }
    mlacat_stream_close(library.stream);
    trial_free(&library.trial);
    worker->right = right;
    return NULL;
}

static void test_library_threads_share_a_client(void **state)
{
    enum { THREADS = 8 };
    struct server *server = *state;
    struct worker workers[THREADS];
    struct mlacat_client *client = library_connect(server, 0);
    for (uint32_t i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.client = client, .number = i};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, run_worker, &workers[i]), 0);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        assert_true(workers[i].right);
    }
    mlacat_disconnect(client);
    WAIT_UNTIL(memfds_mapped(server->pid, 0));
}

/* -------------------------------------------------------------------------------------------------------- operation */

static void test_library_tells_of_the_service(void **state)
{
    struct server *server = *state;
    struct library library;
    struct mlacat_stats *stats = NULL;
    struct mlacat_health health = {.size = sizeof(health)};
    struct mlacat_server_info info = {.size = sizeof(info)};
    struct mlacat_device_info device = {.size = sizeof(device)};
    library_open(&library, server, &small_shape);
    assert_int_equal(library_run(&library, 1), MLACAT_OK);
    MUST(mlacat_server_info(library.client, &info));
    assert_int_equal(info.pid, server->pid);
    assert_true(info.devices >= 1);
    assert_int_equal(info.reconnects, 0);
    MUST(mlacat_device_info(library.client, 0, &device));
    assert_string_equal(device.uuid, raw_device());
    assert_int_equal(device.available, 1);
    assert_int_equal(mlacat_device_info(library.client, info.devices, &device), MLACAT_OUT_OF_RANGE);
    MUST(mlacat_stats(library.client, &stats));
    assert_int_equal(stats->clients, 1);
    assert_int_equal(stats->streams, 1);
    assert_int_equal(stats->buffers, 1);
    assert_int_equal(stats->outcomes[MLACAT_OK], 1);
    assert_int_equal(stats->client_stats_nr, 1);
    assert_string_equal(stats->client_stats[0].name, "library test");
    mlacat_stats_free(stats);
    MUST(mlacat_health(library.client, &health));
    assert_int_equal(health.ready, 1);
    MUST(mlacat_set_log_level(library.client, "warning"));
    assert_int_equal(mlacat_set_log_level(library.client, "shout"), MLACAT_INVALID_ARGUMENT);
    assert_non_null(strstr(mlacat_error_message(), "shout"));
    MUST(mlacat_drain(library.client));
    int status = server_wait(server);
    assert_int_equal(status, 0);
    library_close(&library);
}

static void test_library_says_who_is_not_there(void **state)
{
    struct mlacat_client *client = NULL;
    struct mlacat_connect_options options = {
        .size = sizeof(options), .socket = "/tmp/no-mlacat-here/socket", .connect_timeout_ms = 50};
    (void)state;
    assert_int_equal(mlacat_connect(&options, &client), MLACAT_UNAVAILABLE);
    assert_non_null(strstr(mlacat_error_message(), "/tmp/no-mlacat-here/socket"));
    assert_null(client);
}

int main(void)
{
    const struct CMUnitTest memfd_tests[] = {
        WITH_SERVER(test_library_allocates_and_runs),
    };
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_library_batch_and_wait),       WITH_SERVER(test_library_wait_and_cancel_of_long_calls),
        WITH_SERVER(test_library_callbacks_come_once),  WITH_SERVER(test_library_threads_share_a_client),
        WITH_SERVER(test_library_tells_of_the_service), cmocka_unit_test(test_library_says_who_is_not_there),
    };
    if (gpu_memory_used()) {
        gpu_memory_own(); /* libmlacat exports from a pointer of this process */
        return cmocka_run_group_tests(tests, NULL, NULL);
    }
    return cmocka_run_group_tests(memfd_tests, NULL, NULL) + cmocka_run_group_tests(tests, NULL, NULL);
}
