/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "client_clock.h"
#include "test_client_scene.h"
#include "timing.h"

#define PATIENCE_NS (FAKE_PATIENCE_MS * TIMING_MS)
#define SHORT_MS 300 /* where the client waits in vain */

static atomic_uint attempts; /* to connect */

int __real_connect(int fd, const struct sockaddr *address, socklen_t bytes);
int __wrap_connect(int fd, const struct sockaddr *address, socklen_t bytes);

int __wrap_connect(int fd, const struct sockaddr *address, socklen_t bytes)
{
    int result = __real_connect(fd, address, bytes);
    atomic_fetch_add(&attempts, 1);
    return result;
}

static void await_attempts(unsigned more)
{
    unsigned before = atomic_load(&attempts);
    while (atomic_load(&attempts) - before < more) {
        sched_yield();
    }
}

static int setup(void **state)
{
    client_clock_reset();
    *state = scene_open((struct fake_mode){0}, MLACAT_DISPATCH_CALLER);
    return 0;
}

static uint32_t reconnects(struct scene *f)
{
    struct mlacat_server_info info = {.size = sizeof(info)};
    assert_int_equal(mlacat_server_info(f->client, &info), MLACAT_OK);
    return info.reconnects;
}

static void test_client_restart_ends_calls_in_flight(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result)};
    uint64_t ids[2];
    fake_set(f->fake, (struct fake_mode){.hold = true});
    for (int i = 0; i < 2; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[i]), MLACAT_OK);
    }
    fake_await_calls(f->fake, 2);
    fake_die(f->fake, "the test ends it");
    assert_int_equal(mlacat_wait(f->stream, ids[1], -1, &result), MLACAT_UNAVAILABLE);
    assert_int_equal(result.ended, 1);
    assert_int_equal(result.scope, MLACAT_SCOPE_SESSION);
    assert_non_null(strstr(result.message, "the test ends it"));
    assert_int_equal(mlacat_wait(f->stream, ids[0], -1, &result), MLACAT_UNAVAILABLE);
    assert_int_equal(reconnects(f), 0);
}

/* A daemon that dies with our packets unread resets the connection; what it said before is still to be read. */
static void test_client_restart_reset_keeps_the_last_words(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result)};
    struct pollfd item = {.fd = f->client->fd};
    uint64_t id;
    fake_set(f->fake, (struct fake_mode){.deaf = true});
    fake_sync(f->fake);
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    fake_die(f->fake, "reset by the test");
    while ((item.revents & POLLERR) == 0) {
        assert_int_equal(poll(&item, 1, -1), 1);
        sched_yield();
    }
    assert_int_equal(mlacat_wait(f->stream, id, -1, &result), MLACAT_UNAVAILABLE);
    assert_non_null(strstr(result.message, "reset by the test"));
}

static void test_client_restart_restores_buffers_and_streams(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *second;
    struct mlacat_stream *closed;
    assert_int_equal(mlacat_buffer_alloc(f->client, NULL, 64, &second), MLACAT_OK);
    assert_int_equal(mlacat_stream_open(f->client, NULL, &closed), MLACAT_OK);
    mlacat_stream_close(closed);
    for (unsigned i = 1; i <= 3; i++) {
        fake_die(f->fake, NULL);
        assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
        assert_int_equal(reconnects(f), i);
        assert_int_equal(fake_seen(f->fake).registers, 2 + 2 * i);
        assert_int_equal(fake_seen(f->fake).opens, 2 + i);
    }
    mlacat_buffer_release(second);
    assert_int_equal(fake_seen(f->fake).unregisters, 1);
}

static void take_two_thirds(void)
{
    client_clock_pass(PATIENCE_NS / 3 * 2);
}

/* All of them together take longer than a daemon may take to come back, or for one. */
static void test_client_restart_of_a_daemon_that_takes_its_time(void **state)
{
    struct scene *f = *state;
    struct mlacat_buffer *more[9];
    for (int i = 0; i < 9; i++) {
        assert_int_equal(mlacat_buffer_alloc(f->client, NULL, 64, &more[i]), MLACAT_OK);
    }
    fake_set(f->fake, (struct fake_mode){.registering = take_two_thirds});
    fake_die(f->fake, NULL);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    assert_int_equal(fake_seen(f->fake).registers, 20);
}

static void test_client_restart_of_an_idle_client_is_seen_by_requests(void **state)
{
    struct scene *f = *state;
    struct mlacat_stats *stats;
    fake_die(f->fake, NULL);
    assert_int_equal(mlacat_stats(f->client, &stats), MLACAT_OK);
    mlacat_stats_free(stats);
    assert_int_equal(reconnects(f), 1);
}

struct asking {
    struct mlacat_client *client;
    enum mlacat_status status;
    enum mlacat_scope scope;
};

static void *ask(void *user)
{
    struct asking *asking = user;
    asking->status = mlacat_drain(asking->client);
    asking->scope = mlacat_error_scope();
    return NULL;
}

static void test_client_restart_ends_requests_in_flight(void **state)
{
    struct scene *f = *state;
    fake_set(f->fake, (struct fake_mode){.ignore = true});
    pthread_t thread;
    struct asking asking = {.client = f->client};
    assert_int_equal(pthread_create(&thread, NULL, ask, &asking), 0);
    fake_await_ignored(f->fake, 1);
    fake_die(f->fake, NULL);
    pthread_join(thread, NULL);
    assert_int_equal(asking.status, MLACAT_UNAVAILABLE);
    assert_int_equal(asking.scope, MLACAT_SCOPE_SESSION);
}

static void *show_again(void *user)
{
    struct scene *f = user;
    await_attempts(3);
    fake_show(f->fake);
    return NULL;
}

static void test_client_restart_gap_is_waited_out(void **state)
{
    struct scene *f = *state;
    pthread_t thread;
    fake_hide(f->fake);
    fake_die(f->fake, NULL);
    assert_int_equal(pthread_create(&thread, NULL, show_again, f), 0);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    pthread_join(thread, NULL);
}

static void test_client_restart_gap_has_an_end(void **state)
{
    struct scene *f = *state;
    uint64_t id;
    fake_hide(f->fake);
    fake_die(f->fake, "good night");
    f->client->reconnect_timeout_ns = SHORT_MS * TIMING_MS;
    int64_t start = timing_now();
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_UNAVAILABLE);
    assert_true(timing_now() - start >= SHORT_MS * TIMING_MS);
    const char *path = strstr(mlacat_error_message(), fake_path(f->fake));
    assert_non_null(path);
    assert_null(strstr(path + 1, fake_path(f->fake)));
    const char *advice = strstr(mlacat_error_message(), "start mlacatd or name its socket (MLACAT_SOCKET)");
    assert_non_null(advice);
    assert_non_null(strstr(advice, "good night"));
    assert_int_equal(f->stream->taken, 0);
    f->client->reconnect_timeout_ns = PATIENCE_NS;
    fake_show(f->fake);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
}

static void test_client_restart_refusal_for_good_is_told_at_once(void **state)
{
    struct scene *f = *state;
    fake_set(f->fake, (struct fake_mode){.refuse_hello = true, .code = MLACAT_FAILED_PRECONDITION, .text = "version"});
    fake_die(f->fake, NULL);
    unsigned hellos = fake_seen(f->fake).hellos;
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_FAILED_PRECONDITION);
    assert_string_equal(mlacat_error_message(), "version");
    assert_int_equal(fake_seen(f->fake).hellos, hellos + 1); /* not tried again */
}

static void test_client_restart_tells_what_was_not_restored(void **state)
{
    struct scene *f = *state;
    fake_set(f->fake, (struct fake_mode){.refuse_open = true, .code = MLACAT_RESOURCE_EXHAUSTED, .text = "too many"});
    fake_die(f->fake, NULL);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(mlacat_error_message(), "too many"));
    struct mlacat_stats *stats; /* sent, so that the next end of the connection is seen */
    fake_set(f->fake,
             (struct fake_mode){.refuse_register = true, .code = MLACAT_RESOURCE_EXHAUSTED, .text = "no room"});
    fake_die(f->fake, NULL);
    assert_int_equal(mlacat_stats(f->client, &stats), MLACAT_OK);
    mlacat_stats_free(stats);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(mlacat_error_message(), "no room"));
    fake_set(f->fake, (struct fake_mode){0});
    fake_die(f->fake, NULL);
    assert_int_equal(mlacat_stats(f->client, &stats), MLACAT_OK);
    mlacat_stats_free(stats);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
}

static void *end_the_time(void *user)
{
    await_attempts(3); /* the first of them was lost, and tried again */
    client_clock_pass(PATIENCE_NS);
    return user;
}

/* An answer to something else, or none at all, says nothing about the buffer: the connection is what is wrong. */
static void test_client_restart_distrusts_strange_replies(void **state)
{
    struct scene *f = *state;
    static const struct {
        enum fake_register reply;
        const char *text;
    } cases[] = {{FAKE_REGISTER_OTHER_NUMBER, "answered request 1002 instead of 2"},
                 {FAKE_REGISTER_GARBAGE, "does not parse"},
                 {FAKE_REGISTER_END, "ended by the test"}};
    for (unsigned i = 0; i < 3; i++) {
        pthread_t thread;
        fake_set(f->fake, (struct fake_mode){.register_reply = cases[i].reply,
                                             .code = MLACAT_RESOURCE_EXHAUSTED,
                                             .scope = MLACAT_SCOPE_SESSION,
                                             .text = "ended by the test"});
        fake_die(f->fake, NULL);
        assert_int_equal(pthread_create(&thread, NULL, end_the_time, f), 0);
        assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_UNAVAILABLE);
        assert_non_null(strstr(mlacat_error_message(), cases[i].text));
        pthread_join(thread, NULL);
        fake_set(f->fake, (struct fake_mode){0});
        assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    }
}

/* The daemon ends a session after it told of lost memory; both are told, and the next call connects again. */
static void test_client_restart_after_lost_memory(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result)};
    uint64_t ids[2];
    fake_set(f->fake, (struct fake_mode){.hold = true, .code = MLACAT_DATA_LOSS, .text = "the memory shrank"});
    for (int i = 0; i < 2; i++) {
        assert_int_equal(mlacat_submit(f->stream, &f->call, &ids[i]), MLACAT_OK);
    }
    fake_await_calls(f->fake, 2);
    fake_release(f->fake, 1, false);
    fake_die(f->fake, "a client that shrinks memory is not served");
    assert_int_equal(mlacat_wait(f->stream, ids[0], -1, &result), MLACAT_DATA_LOSS);
    assert_int_equal(result.scope, MLACAT_SCOPE_SESSION);
    assert_int_equal(mlacat_wait(f->stream, ids[1], -1, &result), MLACAT_UNAVAILABLE);
    assert_non_null(strstr(result.message, "is not served"));
    fake_set(f->fake, (struct fake_mode){0});
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
}

/* A call refused by a draining daemon is told; the next one waits for the daemon to go. */
static void *die_later(void *user)
{
    struct scene *f = user;
    for (bool waiting = false; !waiting; sched_yield()) {
        pthread_mutex_lock(&f->client->lock);
        waiting = f->client->reading;
        pthread_mutex_unlock(&f->client->lock);
    }
    fake_set(f->fake, (struct fake_mode){0});
    fake_die(f->fake, NULL);
    return NULL;
}

static void test_client_restart_by_drain_is_waited_out(void **state)
{
    struct scene *f = *state;
    struct mlacat_result result = {.size = sizeof(result)};
    pthread_t thread;
    fake_set(f->fake, (struct fake_mode){.code = MLACAT_UNAVAILABLE, .scope = MLACAT_SCOPE_CALL, .text = "draining"});
    assert_int_equal(mlacat_run(f->stream, &f->call, &result), MLACAT_UNAVAILABLE);
    assert_int_equal(result.scope, MLACAT_SCOPE_CALL);
    assert_int_equal(pthread_create(&thread, NULL, die_later, f), 0);
    assert_int_equal(mlacat_run(f->stream, &f->call, &result), MLACAT_OK);
    assert_int_equal(reconnects(f), 1);
    pthread_join(thread, NULL);
}

static void test_client_restart_by_drain_is_seen_by_requests(void **state)
{
    struct scene *f = *state;
    struct mlacat_stream *stream;
    struct mlacat_buffer *buffer;
    pthread_t thread;
    fake_set(f->fake, (struct fake_mode){.refuse_open = true, .code = MLACAT_UNAVAILABLE, .text = "draining"});
    assert_int_equal(mlacat_stream_open(f->client, "GPU-1", &stream), MLACAT_UNAVAILABLE);
    assert_false(f->client->draining); /* the device was not there before either */
    assert_int_equal(mlacat_stream_open(f->client, "host", &stream), MLACAT_UNAVAILABLE);
    assert_int_equal(pthread_create(&thread, NULL, die_later, f), 0);
    assert_int_equal(mlacat_buffer_alloc(f->client, NULL, 64, &buffer), MLACAT_OK);
    assert_int_equal(reconnects(f), 1);
    pthread_join(thread, NULL);
}

static void test_client_restart_drain_that_does_not_end_speaks_for_itself(void **state)
{
    struct scene *f = *state;
    fake_set(f->fake, (struct fake_mode){.code = MLACAT_UNAVAILABLE, .scope = MLACAT_SCOPE_CALL, .text = "draining"});
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_UNAVAILABLE);
    f->client->reconnect_timeout_ns = SHORT_MS * TIMING_MS;
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_UNAVAILABLE);
    assert_string_equal(mlacat_error_message(), "draining");
    f->client->reconnect_timeout_ns = PATIENCE_NS;
    struct mlacat_stats *stats; /* requests do not wait for a drain */
    int64_t start = timing_now();
    assert_int_equal(mlacat_stats(f->client, &stats), MLACAT_OK);
    assert_true(timing_now() - start < PATIENCE_NS / 2);
    mlacat_stats_free(stats);
}

static void test_client_restart_after_a_broken_packet(void **state)
{
    struct scene *f = *state;
    static const uint8_t garbage[] = {0xff, 0xff, 0xff};
    fake_send_raw(f->fake, garbage, sizeof(garbage), -1);
    struct mlacat_result result = {.size = sizeof(result)};
    assert_int_equal(mlacat_run(f->stream, &f->call, &result), MLACAT_UNAVAILABLE);
    assert_non_null(strstr(result.message, "does not parse"));
    assert_int_equal(mlacat_run(f->stream, &f->call, &result), MLACAT_OK);
    assert_int_equal(reconnects(f), 1);
}

static void test_client_restart_keeps_the_poll_fd(void **state)
{
    struct scene *f = *state;
    int fd = mlacat_client_fd(f->client);
    struct pollfd item = {.fd = fd, .events = POLLIN};
    uint64_t id;
    assert_true(fd >= 0);
    assert_int_equal(poll(&item, 1, 0), 0);
    fake_die(f->fake, NULL);
    assert_int_equal(poll(&item, 1, -1), 1); /* the end of the connection is something to dispatch */
    assert_int_equal(mlacat_dispatch(f->client, 0), MLACAT_OK);
    assert_int_equal(mlacat_dispatch(f->client, -1), MLACAT_UNAVAILABLE);
    assert_int_equal(poll(&item, 1, 0), 0);
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    assert_int_equal(mlacat_client_fd(f->client), fd);
    assert_int_equal(poll(&item, 1, -1), 1);
    assert_int_equal(mlacat_wait(f->stream, id, -1, NULL), MLACAT_OK);
}

static void *run_through_restarts(void *user)
{
    struct scene *f = user;
    struct mlacat_stream *stream;
    enum mlacat_status opened;
    do {
        opened = mlacat_stream_open(f->client, NULL, &stream);
    } while (opened == MLACAT_UNAVAILABLE);
    if (opened != MLACAT_OK) {
        print_error("open: %s\n", mlacat_error_message());
        return NULL;
    }
    for (int good = 0; good < 200;) {
        struct mlacat_stream *brief;
        if (good % 10 == 0 && mlacat_stream_open(f->client, NULL, &brief) == MLACAT_OK) {
            mlacat_stream_close(brief);
        }
        enum mlacat_status status = mlacat_run(stream, &f->call, NULL);
        if (status != MLACAT_OK && status != MLACAT_UNAVAILABLE) {
            print_error("run: %s\n", mlacat_error_message());
            return NULL;
        }
        good += status == MLACAT_OK;
    }
    mlacat_stream_close(stream);
    return user;
}

static void *close_stream(void *user)
{
    mlacat_stream_close(user);
    return NULL;
}

static void *run_one(void *user)
{
    struct scene *f = user;
    return mlacat_run(f->stream, &f->call, NULL) == MLACAT_OK ? user : NULL;
}

/* While another thread connects again the stream is being opened again too: the close has to wait for that. */
static void test_client_restart_while_a_stream_closes(void **state)
{
    struct scene *f = *state;
    struct mlacat_stream *second;
    pthread_t threads[2];
    void *done;
    assert_int_equal(mlacat_stream_open(f->client, NULL, &second), MLACAT_OK);
    fake_hide(f->fake);
    fake_die(f->fake, NULL);
    assert_int_equal(pthread_create(&threads[0], NULL, run_one, f), 0);
    for (bool connecting = false; !connecting; sched_yield()) {
        pthread_mutex_lock(&f->client->lock);
        connecting = f->client->connecting;
        pthread_mutex_unlock(&f->client->lock);
    }
    assert_int_equal(pthread_create(&threads[1], NULL, close_stream, second), 0);
    fake_show(f->fake);
    pthread_join(threads[0], &done);
    assert_non_null(done);
    pthread_join(threads[1], NULL);
    assert_int_equal(fake_seen(f->fake).opens, 4);
    assert_int_equal(fake_seen(f->fake).closes, 1);
}

/* The end of the connection ends the close; the stream is not opened again. */
static void test_client_restart_ends_a_close_that_waits(void **state)
{
    struct scene *f = *state;
    struct mlacat_stream *second;
    struct mlacat_stats *stats;
    pthread_t thread;
    uint64_t id;
    assert_int_equal(mlacat_stream_open(f->client, NULL, &second), MLACAT_OK);
    fake_set(f->fake, (struct fake_mode){.hold = true});
    assert_int_equal(mlacat_submit(second, &f->call, &id), MLACAT_OK);
    fake_await_calls(f->fake, 1);
    fake_set(f->fake, (struct fake_mode){.ignore = true});
    assert_int_equal(pthread_create(&thread, NULL, close_stream, second), 0);
    fake_await_ignored(f->fake, 1);
    fake_set(f->fake, (struct fake_mode){0});
    fake_die(f->fake, NULL);
    pthread_join(thread, NULL);
    assert_int_equal(mlacat_stats(f->client, &stats), MLACAT_OK);
    mlacat_stats_free(stats);
    assert_int_equal(fake_seen(f->fake).opens, 3);
}

static void test_client_restart_under_threads(void **state)
{
    struct scene *f = *state;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, run_through_restarts, f), 0);
    }
    for (unsigned i = 1; i <= 6; i++) {
        fake_await_calls(f->fake, 100 * i);
        fake_die(f->fake, NULL);
    }
    for (int i = 0; i < 4; i++) {
        void *done;
        pthread_join(threads[i], &done);
        assert_non_null(done);
    }
    assert_true(reconnects(f) >= 1);
}

static int in_child(struct scene *f)
{
    struct mlacat_buffer *buffer;
    uint64_t id;
    if (mlacat_submit(f->stream, &f->call, &id) != MLACAT_FAILED_PRECONDITION ||
        mlacat_buffer_alloc(f->client, NULL, 64, &buffer) != MLACAT_FAILED_PRECONDITION ||
        strstr(mlacat_error_message(), "forked") == NULL || mlacat_client_fd(f->client) != -1) {
        return 1;
    }
    mlacat_buffer_release(f->buffer);
    mlacat_stream_close(f->stream);
    mlacat_disconnect(f->client);
    struct mlacat_client *own = fake_client(f->fake, MLACAT_DISPATCH_THREAD);
    mlacat_disconnect(own);
    return 0;
}

static void test_client_in_a_forked_child_is_refused(void **state)
{
    struct scene *f = *state;
    pid_t child = fork();
    if (child == 0) {
        _exit(in_child(f));
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(mlacat_run(f->stream, &f->call, NULL), MLACAT_OK);
    assert_int_equal(reconnects(f), 0);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, scene_close)
    const struct CMUnitTest tests[] = {
        CASE(test_client_restart_ends_calls_in_flight),
        CASE(test_client_restart_reset_keeps_the_last_words),
        CASE(test_client_restart_restores_buffers_and_streams),
        CASE(test_client_restart_of_a_daemon_that_takes_its_time),
        CASE(test_client_restart_of_an_idle_client_is_seen_by_requests),
        CASE(test_client_restart_ends_requests_in_flight),
        CASE(test_client_restart_gap_is_waited_out),
        CASE(test_client_restart_gap_has_an_end),
        CASE(test_client_restart_refusal_for_good_is_told_at_once),
        CASE(test_client_restart_tells_what_was_not_restored),
        CASE(test_client_restart_distrusts_strange_replies),
        CASE(test_client_restart_after_lost_memory),
        CASE(test_client_restart_by_drain_is_waited_out),
        CASE(test_client_restart_by_drain_is_seen_by_requests),
        CASE(test_client_restart_drain_that_does_not_end_speaks_for_itself),
        CASE(test_client_restart_after_a_broken_packet),
        CASE(test_client_restart_keeps_the_poll_fd),
        CASE(test_client_restart_while_a_stream_closes),
        CASE(test_client_restart_ends_a_close_that_waits),
        CASE(test_client_restart_under_threads),
        CASE(test_client_in_a_forked_child_is_refused),
    };
    return cmocka_run_group_tests_name("client_restart", tests, NULL, NULL);
}
