/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "test_client_scene.h"

static int setup(void **state)
{
    *state = scene_open((struct fake_mode){0}, MLACAT_DISPATCH_THREAD);
    return 0;
}

static void test_client_connect_tells_what_the_daemon_said(void **state)
{
    struct scene *f = *state;
    struct mlacat_server_info info = {.size = sizeof(info)};
    assert_int_equal(mlacat_server_info(f->client, &info), MLACAT_OK);
    assert_string_equal(info.version, "fake 1");
    assert_int_equal(info.pid, 77);
    assert_int_equal(info.boot_id[2], 3);
    assert_int_equal(info.devices, 2);
    assert_int_equal(info.max_calls, 64);
    struct mlacat_device_info device = {.size = sizeof(device)};
    assert_int_equal(mlacat_device_info(f->client, 0, &device), MLACAT_OK);
    assert_string_equal(device.reason, "not there");
    assert_int_equal(mlacat_device_info(f->client, 1, &device), MLACAT_OK);
    assert_string_equal(device.uuid, "host");
    assert_int_equal(device.available, 1);
    assert_int_equal(mlacat_device_info(f->client, 2, &device), MLACAT_OUT_OF_RANGE);
}

static int count_event_fds(void)
{
    int nr = 0;
    for (int fd = 0; fd < 256; fd++) {
        char link[64];
        char target[64] = "";
        snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        if (readlink(link, target, sizeof(target) - 1) > 0) {
            nr += strstr(target, "eventfd") != NULL;
        }
    }
    return nr;
}

/* The fake passes an eventfd for the pidfd of a real daemon. */
static void test_client_connect_gives_the_pidfd_back(void **state)
{
    struct scene *f = *state;
    int before = count_event_fds();
    assert_true(before > 0);
    struct mlacat_client *other = fake_client(f->fake, MLACAT_DISPATCH_THREAD);
    assert_int_equal(count_event_fds(), before + 1);
    mlacat_disconnect(other);
    assert_int_equal(count_event_fds(), before);
}

static void test_client_connect_refuses_what_cannot_work(void **state)
{
    struct scene *f = *state;
    struct mlacat_connect_options options = {
        .size = sizeof(options), .socket = "/nowhere/at/all", .connect_timeout_ms = FAKE_PATIENCE_MS};
    struct mlacat_client *client;
    assert_int_equal(mlacat_connect(&options, &client), MLACAT_UNAVAILABLE);
    assert_non_null(strstr(mlacat_error_message(), "/nowhere/at/all"));
    assert_null(client);
    char path[200];
    memset(path, 'x', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    options.socket = path;
    assert_int_equal(mlacat_connect(&options, &client), MLACAT_INVALID_ARGUMENT);
    options.socket = fake_path(f->fake);
    options.dispatch = (enum mlacat_dispatch)7;
    assert_int_equal(mlacat_connect(&options, &client), MLACAT_INVALID_ARGUMENT);
    fake_set(f->fake, (struct fake_mode){.refuse_hello = true, .code = MLACAT_PERMISSION_DENIED, .text = "not you"});
    options.dispatch = MLACAT_DISPATCH_THREAD;
    assert_int_equal(mlacat_connect(&options, &client), MLACAT_PERMISSION_DENIED);
    assert_string_equal(mlacat_error_message(), "not you");
    assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_SESSION);
    assert_int_equal(mlacat_connect(NULL, NULL), MLACAT_INVALID_ARGUMENT);
}

/* Not silently another daemon than the one that was meant. */
static void test_client_connect_refuses_a_runtime_folder_too_long(void **state)
{
    char folder[120] = "/";
    struct mlacat_client *client;
    (void)state;
    memset(folder + 1, 'x', sizeof(folder) - 2);
    unsetenv("MLACAT_SOCKET");
    setenv("XDG_RUNTIME_DIR", folder, 1);
    assert_int_equal(mlacat_connect(NULL, &client), MLACAT_INVALID_ARGUMENT);
    assert_non_null(strstr(mlacat_error_message(), "/xxxxxxxx"));
    assert_non_null(strstr(mlacat_error_message(), "MLACAT_SOCKET"));
    unsetenv("XDG_RUNTIME_DIR");
}

static void test_client_structs_of_other_versions(void **state)
{
    struct scene *f = *state;
    struct {
        struct mlacat_connect_options options;
        uint64_t later;
    } grown = {
        .options = {.size = sizeof(grown), .socket = fake_path(f->fake), .connect_timeout_ms = FAKE_PATIENCE_MS}};
    struct mlacat_client *client;
    assert_int_equal(mlacat_connect(&grown.options, &client), MLACAT_OK);
    mlacat_disconnect(client);
    grown.later = 1;
    assert_int_equal(mlacat_connect(&grown.options, &client), MLACAT_INVALID_ARGUMENT);
    grown.options.size = 8;
    assert_int_equal(mlacat_connect(&grown.options, &client), MLACAT_INVALID_ARGUMENT);
    struct {
        struct mlacat_health health;
        uint64_t later;
    } health = {.health = {.size = sizeof(health)}, .later = 9};
    fake_set(f->fake, (struct fake_mode){0});
    assert_int_equal(mlacat_health(f->client, &health.health), MLACAT_INTERNAL); /* the fake answers with Answer */
    struct mlacat_call call = f->call;
    call.size = offsetof(struct mlacat_call, wait) - 8; /* of no version */
    assert_int_equal(mlacat_run(f->stream, &call, NULL), MLACAT_INVALID_ARGUMENT);
}

/* Before anything happens: a call that has run could not give its result any more. */
static void test_client_refuses_results_that_it_cannot_write(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = 4};
    assert_int_equal(mlacat_run(f->stream, &f->call, &result), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(f->stream->taken, 0);
    uint64_t id;
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    assert_int_equal(mlacat_wait(f->stream, id, -1, &result), MLACAT_INVALID_ARGUMENT);
    result.size = sizeof(result);
    assert_int_equal(mlacat_wait(f->stream, id, -1, &result), MLACAT_OK);
    assert_int_equal(fake_seen(f->fake).calls, 1);
    assert_int_equal(mlacat_server_info(f->client, NULL), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(mlacat_device_info(f->client, 0, NULL), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(mlacat_health(f->client, NULL), MLACAT_INVALID_ARGUMENT);
    assert_non_null(strstr(mlacat_error_message(), "mlacat_health is NULL"));
}

static void test_client_results_tell_why_nothing_ended(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result), .ended = 1};
    struct mlacat_call call = f->call;
    call.operand[2].buffer = NULL;
    assert_int_equal(mlacat_run(f->stream, &call, &result), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(result.ended, 0);
    assert_int_equal(result.status, MLACAT_INVALID_ARGUMENT);
    assert_int_equal(result.scope, MLACAT_SCOPE_CALL);
    assert_string_equal(result.message, mlacat_error_message());
    result.ended = 1;
    assert_int_equal(mlacat_wait(NULL, 1, 0, &result), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(result.ended, 0);
    assert_string_equal(result.message, mlacat_error_message());
    assert_int_equal(mlacat_wait(f->stream, 1, 0, &result), MLACAT_NOT_FOUND);
    assert_non_null(strstr(result.message, "call 0x1"));
}

/* What could not be said to the daemon is no error of the thread: these have no status. */
static void test_client_release_keeps_the_last_error(void **state)
{
    struct scene *f = *state;
    struct mlacat_stream *second;
    assert_int_equal(mlacat_stream_open(f->client, NULL, &second), MLACAT_OK);
    for (int i = 0; i < 3; i++) {
        f->call.operand[i].buffer = NULL;
    }
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_INVALID_ARGUMENT);
    fake_die(f->fake, NULL);
    mlacat_buffer_release(f->buffer);
    assert_non_null(strstr(mlacat_error_message(), "operand 0"));
    mlacat_health(f->client, &(struct mlacat_health){.size = sizeof(struct mlacat_health)}); /* connects again */
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_INVALID_ARGUMENT);
    fake_die(f->fake, NULL);
    mlacat_stream_close(second);
    assert_non_null(strstr(mlacat_error_message(), "operand 0"));
    assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_CALL);
}

static void test_client_run_returns_the_result(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result)};
    assert_int_equal(mlacat_run(f->stream, &f->call, &result), MLACAT_OK);
    assert_int_equal(result.ended, 1);
    assert_int_equal(result.status, MLACAT_OK);
    assert_int_equal(result.scope, MLACAT_SCOPE_NONE);
    assert_int_equal(result.queue_ns, 11);
    assert_int_equal(result.device_ns, 22);
    assert_string_equal(result.message, "");
    fake_set(f->fake, (struct fake_mode){.code = MLACAT_DATA_LOSS, .scope = MLACAT_SCOPE_BUFFER, .text = "gone"});
    assert_int_equal(mlacat_run(f->stream, &f->call, &result), MLACAT_DATA_LOSS);
    assert_int_equal(result.scope, MLACAT_SCOPE_BUFFER);
    assert_string_equal(result.message, "gone");
    assert_string_equal(mlacat_error_message(), "gone");
    assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_BUFFER);
}

static void test_client_submit_refuses_what_only_it_can_see(void **state)
{
    struct scene *f = *state;
    struct mlacat_client *other = fake_client(f->fake, MLACAT_DISPATCH_THREAD);
    struct mlacat_buffer *foreign;
    uint64_t id;
    assert_int_equal(mlacat_buffer_alloc(other, "host", 64, &foreign), MLACAT_OK);
    f->call.operand[1].buffer = foreign;
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_INVALID_ARGUMENT);
    assert_non_null(strstr(mlacat_error_message(), "operand 1"));
    f->call.operand[1].buffer = NULL;
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(mlacat_submit(f->stream, NULL, &id), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(mlacat_submit(NULL, &f->call, &id), MLACAT_INVALID_ARGUMENT);
    f->call.operand[1].buffer = f->buffer;
    assert_int_equal(mlacat_submit(f->stream, &f->call, NULL), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(fake_seen(f->fake).calls, 0);
    mlacat_disconnect(other);
}

static void test_client_wait_takes_a_call_once(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result)};
    uint64_t id;
    fake_set(f->fake, (struct fake_mode){.hold = true});
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    assert_int_equal(mlacat_wait(f->stream, id, 0, &result), MLACAT_DEADLINE_EXCEEDED);
    assert_int_equal(result.ended, 0);
    assert_string_equal(result.message, mlacat_error_message());
    assert_int_equal(mlacat_wait(f->stream, id, 2000, &result), MLACAT_DEADLINE_EXCEEDED);
    assert_int_equal(result.ended, 0);
    fake_await_calls(f->fake, 1);
    fake_release(f->fake, 1, false);
    assert_int_equal(mlacat_wait(f->stream, id, 0, &result), MLACAT_OK);
    assert_int_equal(result.ended, 1);
    assert_int_equal(mlacat_wait(f->stream, id, 0, &result), MLACAT_NOT_FOUND);
    assert_int_equal(mlacat_wait(f->stream, id + 1, -1, NULL), MLACAT_NOT_FOUND);
    assert_int_equal(mlacat_wait(f->stream, UINT64_MAX, -1, NULL), MLACAT_NOT_FOUND);
    /* An id stays gone when its slot is used again. */
    uint64_t next;
    assert_int_equal(mlacat_submit(f->stream, &f->call, &next), MLACAT_OK);
    assert_true(next != id);
    assert_int_equal(mlacat_wait(f->stream, id, 0, &result), MLACAT_NOT_FOUND);
}

static void test_client_wait_takes_completions_in_any_order(void **state)
{
    struct scene *f = *state;
    uint64_t ids[16];
    fake_set(f->fake, (struct fake_mode){.hold = true});
    for (int i = 0; i < 16; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[i]), MLACAT_OK);
    }
    uint64_t one_more;
    assert_int_equal(mlacat_submit(f->stream, &f->call, &one_more), MLACAT_RESOURCE_EXHAUSTED);
    fake_await_calls(f->fake, 16);
    fake_release(f->fake, 16, true);
    for (int i = 0; i < 16; i++) {
        assert_int_equal(mlacat_wait(f->stream, ids[i], -1, NULL), MLACAT_OK);
    }
    fake_set(f->fake, (struct fake_mode){0});
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
}

static void test_client_submit_batch_takes_what_it_can(void **state)
{
    struct scene *f = *state;
    struct mlacat_call calls[20];
    uint64_t ids[20];
    size_t submitted;
    for (int i = 0; i < 20; i++) {
        calls[i] = f->call;
    }
    assert_int_equal(mlacat_submit_batch(f->stream, calls, 10, ids, &submitted), MLACAT_OK);
    assert_int_equal(submitted, 10);
    assert_int_equal(fake_seen(f->fake).submits <= 1, 1); /* one packet */
    for (int i = 0; i < 10; i++) {
        assert_int_equal(mlacat_wait(f->stream, ids[i], -1, NULL), MLACAT_OK);
    }
    calls[3].operand[0].buffer = NULL;
    assert_int_equal(mlacat_submit_batch(f->stream, calls, 10, ids, &submitted), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(submitted, 3);
    calls[3] = f->call;
    assert_int_equal(mlacat_submit_batch(f->stream, calls, 20, ids + 3, &submitted), MLACAT_RESOURCE_EXHAUSTED);
    assert_int_equal(submitted, 13);
    for (int i = 0; i < 16; i++) {
        assert_int_equal(mlacat_wait(f->stream, ids[i], -1, NULL), MLACAT_OK);
    }
    calls[1].size--;
    assert_int_equal(mlacat_submit_batch(f->stream, calls, 2, ids, &submitted), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(submitted, 1);
    assert_int_equal(mlacat_wait(f->stream, ids[0], -1, NULL), MLACAT_OK);
    assert_int_equal(mlacat_submit_batch(f->stream, NULL, 0, NULL, NULL), MLACAT_OK);
}

/* The daemon blocks on completions that nobody reads and so reads no calls: submits must take completions in. */
static void test_client_submit_into_a_full_socket_makes_progress(void **state)
{
    enum { CALLS = 4000 };
    static uint64_t ids[CALLS];
    struct scene *f = *state;
    struct mlacat_stream *stream;
    fake_set(f->fake, (struct fake_mode){.stream_calls = CALLS});
    assert_int_equal(mlacat_stream_open(f->client, NULL, &stream), MLACAT_OK);
    for (int i = 0; i < CALLS; i++) {
        assert_int_equal(mlacat_submit(stream, &f->call, &ids[i]), MLACAT_OK);
    }
    for (int i = 0; i < CALLS; i++) {
        assert_int_equal(mlacat_wait(stream, ids[i], -1, NULL), MLACAT_OK);
    }
    assert_int_equal(fake_seen(f->fake).calls, CALLS);
    mlacat_stream_close(stream);
}

static void *run_many(void *user)
{
    struct scene *f = user;
    struct mlacat_stream *stream;
    if (mlacat_stream_open(f->client, NULL, &stream) != MLACAT_OK) {
        return NULL;
    }
    for (int i = 0; i < 500; i++) {
        struct mlacat_stats *stats;
        uint64_t id;
        if (mlacat_submit(stream, &f->call, &id) != MLACAT_OK ||
            (i % 50 == 0 && mlacat_stats(f->client, &stats) != MLACAT_OK) ||
            mlacat_wait(stream, id, i % 3 == 0 ? 10000000 : -1, NULL) != MLACAT_OK) {
            return NULL;
        }
        if (i % 50 == 0) {
            mlacat_stats_free(stats);
        }
    }
    mlacat_stream_close(stream);
    return user;
}

static void test_client_threads_share_a_connection(void **state)
{
    struct scene *f = *state;
    pthread_t threads[6];
    for (int i = 0; i < 6; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, run_many, f), 0);
    }
    for (int i = 0; i < 6; i++) {
        void *done;
        pthread_join(threads[i], &done);
        assert_non_null(done);
    }
    assert_int_equal(fake_seen(f->fake).calls, 3000);
    assert_int_equal(fake_seen(f->fake).hellos, 1);
}

struct waiting {
    struct scene *f;
    uint64_t id;
    pthread_t thread;
    enum mlacat_status status;
};

static void *wait_for_one(void *user)
{
    struct waiting *w = user;
    w->status = mlacat_wait(w->f->stream, w->id, -1, NULL);
    return NULL;
}

/* Until one thread reads and `parked` others wait behind it. */
static void await_waiters(struct mlacat_client *client, unsigned parked)
{
    for (bool there = false; !there; sched_yield()) {
        unsigned nr = 0;
        struct waiter *waiter;
        pthread_mutex_lock(&client->lock);
        TAILQ_FOREACH(waiter, &client->waiters, link)
        {
            nr++;
        }
        there = client->reading && nr == parked;
        pthread_mutex_unlock(&client->lock);
    }
}

/* The one that reads gets its own call first and leaves: another must go on reading. */
static void test_client_wait_hands_the_reading_over(void **state)
{
    struct scene *f = *state;
    struct waiting waiting[4];
    fake_set(f->fake, (struct fake_mode){.hold = true});
    for (unsigned i = 0; i < 4; i++) {
        waiting[i].f = f;
        assert_int_equal(mlacat_submit(f->stream, &f->call, &waiting[i].id), MLACAT_OK);
        assert_int_equal(pthread_create(&waiting[i].thread, NULL, wait_for_one, &waiting[i]), 0);
        await_waiters(f->client, i);
    }
    fake_await_calls(f->fake, 4);
    for (int i = 0; i < 4; i++) {
        fake_release(f->fake, 1, false); /* of the one that reads, each time */
        pthread_join(waiting[i].thread, NULL);
        assert_int_equal(waiting[i].status, MLACAT_OK);
    }
}

static void test_client_requests_reach_the_daemon(void **state)
{
    struct scene *f = *state;
    uint64_t id;
    fake_set(f->fake, (struct fake_mode){.hold = true});
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    assert_int_equal(mlacat_cancel(f->stream, id), MLACAT_OK);
    assert_int_equal(mlacat_cancel(f->stream, id + 1), MLACAT_NOT_FOUND);
    assert_int_equal(fake_seen(f->fake).cancels, 1);
    fake_release(f->fake, 1, false);
    assert_int_equal(mlacat_wait(f->stream, id, -1, NULL), MLACAT_OK);
    assert_int_equal(mlacat_cancel(f->stream, id), MLACAT_NOT_FOUND);
    assert_int_equal(mlacat_drain(f->client), MLACAT_OK);
    assert_int_equal(mlacat_set_log_level(f->client, "debug"), MLACAT_OK);
    struct mlacat_stats *stats;
    assert_int_equal(mlacat_stats(f->client, &stats), MLACAT_OK);
    assert_int_equal(stats->clients, 2);
    assert_int_equal(stats->outcomes[MLACAT_UNKNOWN], 3); /* a code of a later daemon */
    assert_int_equal(stats->ops_nr, 1);
    assert_int_equal(stats->ops[0].calls, 12);
    assert_int_equal(stats->client_stats_nr, 2);
    assert_string_equal(stats->client_stats[1].name, "someone");
    assert_int_equal(stats->devices_nr, 2);
    assert_int_equal(stats->devices[1].gated_calls, 21);
    assert_int_equal(stats->devices[1].armed_calls, 22);
    assert_int_equal(stats->devices[1].armed_lapses, 23);
    mlacat_stats_free(stats);
}

static void test_client_buffer_is_sealed_shared_memory(void **state)
{
    struct scene *f = *state;
    char *data = mlacat_buffer_data(f->buffer);
    assert_int_equal(mlacat_buffer_bytes(f->buffer), 4096);
    assert_int_equal(data[0] | data[4095], 0);
    int seals = fcntl(f->buffer->fds.fd[0], F_GET_SEALS);
    assert_int_equal(seals, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    assert_int_equal(fcntl(f->buffer->fds.fd[0], F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    data[5] = 'x';
    char read_back;
    assert_int_equal(pread(f->buffer->fds.fd[0], &read_back, 1, 5), 1);
    assert_int_equal(read_back, 'x');
    mlacat_buffer_release(f->buffer);
    assert_int_equal(fake_seen(f->fake).unregisters, 1);
}

static void test_client_buffer_refuses_what_cannot_be(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *buffer;
    assert_int_equal(mlacat_buffer_alloc(f->client, NULL, 0, &buffer), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(mlacat_buffer_alloc(f->client, NULL, SIZE_MAX, &buffer), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(mlacat_buffer_alloc(f->client, NULL, SIZE_MAX / 2, &buffer), MLACAT_RESOURCE_EXHAUSTED);
    assert_int_equal(mlacat_buffer_alloc(f->client, "GPU-2", 64, &buffer), MLACAT_NOT_FOUND);
    assert_int_equal(mlacat_buffer_alloc(f->client, "GPU-1", 64, &buffer), MLACAT_UNIMPLEMENTED);
    assert_int_equal(mlacat_buffer_register_fd(f->client, NULL, -1, 64, &buffer), MLACAT_INVALID_ARGUMENT);
    fake_set(f->fake, (struct fake_mode){.refuse_register = true, .code = MLACAT_RESOURCE_EXHAUSTED, .text = "full"});
    assert_int_equal(mlacat_buffer_alloc(f->client, NULL, 64, &buffer), MLACAT_RESOURCE_EXHAUSTED);
    assert_string_equal(mlacat_error_message(), "full");
    assert_null(buffer);
}

static void test_client_buffer_keeps_a_duplicate_of_the_callers_fd(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *buffer;
    int fd = memfd_create("test", MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(fd, 4096), 0);
    assert_int_equal(mlacat_buffer_register_fd(f->client, "host", fd, 4000, &buffer), MLACAT_OK);
    assert_int_equal(close(fd), 0);
    assert_null(mlacat_buffer_data(buffer));
    assert_int_equal(mlacat_buffer_bytes(buffer), 4000);
    assert_int_equal(fcntl(buffer->fds.fd[0], F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    mlacat_buffer_release(buffer);
}

/* Descriptors that nobody asked for must not pile up, and an unknown reply must not disturb. */
static void test_client_drops_what_it_did_not_ask_for(void **state)
{
    struct scene *f = *state;
    static const uint8_t answer_of_nothing[] = {0x08, 0x7f, 0x8a, 0x02, 0x00};
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK); /* the fake has closed what it got so far */
    int before = dup(STDERR_FILENO);                                    /* the lowest free number */
    close(before);
    for (int i = 0; i < 20; i++) {
        fake_send_raw(f->fake, answer_of_nothing, sizeof(answer_of_nothing), STDERR_FILENO);
    }
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    int after = dup(STDERR_FILENO);
    close(after);
    assert_int_equal(after, before);
}

/* The connection ends in the middle of a batch that one system call has read. */
static void test_client_drops_what_comes_behind_the_end(void **state)
{
    struct scene *f = *state;
    static const uint8_t garbage[] = {0xff, 0xff, 0xff};
    int passed = eventfd(0, EFD_CLOEXEC);
    int before = count_event_fds();
    uint64_t ids[2];
    fake_set(f->fake, (struct fake_mode){.hold = true});
    for (int i = 0; i < 2; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[i]), MLACAT_OK);
    }
    fake_await_calls(f->fake, 2);
    fake_send_raw(f->fake, garbage, sizeof(garbage), passed);
    fake_send_raw(f->fake, garbage, sizeof(garbage), passed);
    assert_int_equal(mlacat_wait(f->stream, ids[0], -1, NULL), MLACAT_UNAVAILABLE);
    assert_int_equal(count_event_fds(), before);
    close(passed);
}

static void test_client_stream_close_waits_for_its_calls(void **state)
{
    struct scene *f = *state;
    uint64_t id;
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    mlacat_stream_close(f->stream);
    assert_int_equal(fake_seen(f->fake).closes, 1);
    assert_int_equal(f->client->flying, 0);
    assert_int_equal(mlacat_stream_open(f->client, NULL, &f->stream), MLACAT_OK);
    assert_int_equal(mlacat_wait(f->stream, UINT64_MAX, 0, NULL), MLACAT_NOT_FOUND);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, scene_close)
    const struct CMUnitTest tests[] = {
        CASE(test_client_connect_tells_what_the_daemon_said),
        CASE(test_client_connect_gives_the_pidfd_back),
        CASE(test_client_connect_refuses_what_cannot_work),
        CASE(test_client_connect_refuses_a_runtime_folder_too_long),
        CASE(test_client_structs_of_other_versions),
        CASE(test_client_refuses_results_that_it_cannot_write),
        CASE(test_client_results_tell_why_nothing_ended),
        CASE(test_client_release_keeps_the_last_error),
        CASE(test_client_run_returns_the_result),
        CASE(test_client_submit_refuses_what_only_it_can_see),
        CASE(test_client_wait_takes_a_call_once),
        CASE(test_client_wait_takes_completions_in_any_order),
        CASE(test_client_submit_batch_takes_what_it_can),
        CASE(test_client_submit_into_a_full_socket_makes_progress),
        CASE(test_client_threads_share_a_connection),
        CASE(test_client_wait_hands_the_reading_over),
        CASE(test_client_requests_reach_the_daemon),
        CASE(test_client_buffer_is_sealed_shared_memory),
        CASE(test_client_buffer_refuses_what_cannot_be),
        CASE(test_client_buffer_keeps_a_duplicate_of_the_callers_fd),
        CASE(test_client_drops_what_it_did_not_ask_for),
        CASE(test_client_drops_what_comes_behind_the_end),
        CASE(test_client_stream_close_waits_for_its_calls),
    };
    return cmocka_run_group_tests_name("client_call", tests, NULL, NULL);
}
