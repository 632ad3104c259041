/* SPDX-License-Identifier: Apache-2.0 */
/* What a hostile client hands over or sends out of turn costs itself, not the service and not its neighbours. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "lingering.h"
#include "proc.h"
#include "require.h"
#include "server.h"
#include "trial.h"

#define QUICK_MS 5000 /* far less than LINGERING_SECONDS, and far more than it takes: a busy machine gets room */
#define DRAIN_MS 500
#define STOP_MS 5000 /* what the daemon allows for calls that the device is at */
#define PACKET_FDS_MAX 253

/* ------------------------------------------------------------------------------------- descriptors that block */

/* The neighbour's requests that pass the loop thread, and the device's control thread. */
static void assert_quick(struct raw *neighbour, const char *what)
{
    uint64_t start_ms = now_ms();
    assert_true(raw_ready(neighbour, NULL));
    REQUIRE(now_ms() - start_ms < QUICK_MS, "%s: Health took %lu ms", what, (unsigned long)(now_ms() - start_ms));
    int fd = memfd_make(4096, F_SEAL_SHRINK);
    start_ms = now_ms();
    assert_int_equal(raw_unregister(neighbour, raw_must_register(neighbour, fd, 4096)).code, STATUS_OK);
    REQUIRE(now_ms() - start_ms < QUICK_MS, "%s: Register took %lu ms", what, (unsigned long)(now_ms() - start_ms));
    close(fd);
}

/* A packet whose last descriptor blocks when it is closed, which the daemon will be the last to do: it does not run
 * until ours is closed. */
static void send_blocking(const struct server *server, struct raw *raw, const void *packet, size_t size,
                          uint32_t fds_nr, struct lingering *blocking)
{
    int fds[PACKET_FDS_MAX];
    REQUIRE(lingering_make(blocking), "no loopback network: a lingering socket cannot be made");
    for (uint32_t i = 0; i < fds_nr; i++) {
        fds[i] = i + 1 < fds_nr ? STDERR_FILENO : blocking->fd;
    }
    REQUIRE(kill(server->pid, SIGSTOP) == 0);
    REQUIRE(raw_send(raw, packet, size, fds, fds_nr) == 0);
    close(blocking->fd);
    REQUIRE(kill(server->pid, SIGCONT) == 0);
}

static size_t pack_health(uint8_t packet[64], uint64_t request_id)
{
    Mlacat__V1__HealthRequest message = MLACAT__V1__HEALTH_REQUEST__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_HEALTH_REQUEST;
    envelope.health_request = &message;
    return mlacat__v1__envelope__pack(&envelope, packet);
}

static size_t pack_register(uint8_t packet[64], uint64_t request_id, bool with_memory)
{
    Mlacat__V1__HostMemory host = MLACAT__V1__HOST_MEMORY__INIT;
    Mlacat__V1__Memory memory = MLACAT__V1__MEMORY__INIT;
    Mlacat__V1__RegisterBuffer message = MLACAT__V1__REGISTER_BUFFER__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    host.size_bytes = 4096;
    memory.kind_case = MLACAT__V1__MEMORY__KIND_HOST;
    memory.host = &host;
    message.device_uuid = (char *)(uintptr_t) "host";
    message.memory = with_memory ? &memory : NULL;
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER;
    envelope.register_buffer = &message;
    return mlacat__v1__envelope__pack(&envelope, packet);
}

static void test_hostile_descriptor_before_hello(void **state)
{
    struct server *server = *state;
    struct lingering blocking;
    struct raw raw;
    struct raw neighbour;
    uint8_t packet[64];
    raw_open(&neighbour, server->socket);
    raw_connect(&raw, server->socket);
    send_blocking(server, &raw, packet, pack_health(packet, 1), 1, &blocking);
    assert_quick(&neighbour, "a descriptor that no message names");
    assert_int_equal(raw_last_words(&raw).code, STATUS_INVALID_ARGUMENT);
    assert_quick(&neighbour, "a descriptor that no message names, later");
    raw_close(&raw);
    lingering_release(&blocking);

    /* More than a packet may have: the kernel must not close the rest in the middle of the daemon's recvmsg. */
    raw_connect(&raw, server->socket);
    send_blocking(server, &raw, packet, pack_health(packet, 1), PACKET_FDS_MAX, &blocking);
    assert_quick(&neighbour, "too many descriptors");
    assert_int_equal(raw_last_words(&raw).code, STATUS_INVALID_ARGUMENT);
    raw_close(&raw);
    lingering_release(&blocking);
    raw_close(&neighbour);
}

/* In packets that the daemon never reads, because the connection ends before. */
static void test_hostile_descriptor_that_is_never_read(void **state)
{
    struct server *server = *state;
    struct lingering blocking;
    struct raw raw;
    struct raw neighbour;
    uint8_t packet[64];
    raw_open(&neighbour, server->socket);
    raw_connect(&raw, server->socket);
    REQUIRE(kill(server->pid, SIGSTOP) == 0);
    for (int i = 0; i < 40; i++) {
        REQUIRE(raw_send(&raw, packet, pack_health(packet, 1), NULL, 0) == 0);
    }
    send_blocking(server, &raw, packet, pack_health(packet, 1), 1, &blocking);
    assert_quick(&neighbour, "an unread descriptor");
    assert_int_equal(raw_last_words(&raw).code, STATUS_UNAUTHENTICATED);
    raw_close(&raw);
    lingering_release(&blocking);
    raw_close(&neighbour);
}

static void test_hostile_descriptor_in_register_and_submit(void **state)
{
    struct server *server = *state;
    struct lingering blocking;
    struct raw raw;
    struct raw neighbour;
    uint8_t packet[RAW_PACKET_BYTES];
    raw_open(&neighbour, server->socket);
    raw_open(&raw, server->socket);
    struct ref stream = raw_must_open_stream(&raw);
    send_blocking(server, &raw, packet, pack_register(packet, 1000, true), 1, &blocking);
    assert_quick(&neighbour, "RegisterBuffer");
    Mlacat__V1__Envelope *reply = raw_receive(&raw);
    assert_non_null(reply);
    assert_int_equal(reply->request_id, 1000);
    assert_int_equal(reply->body_case, MLACAT__V1__ENVELOPE__BODY_ANSWER);
    assert_int_equal(reply->answer->status->code, STATUS_INVALID_ARGUMENT);
    raw_free(reply);
    lingering_release(&blocking);

    int fd = memfd_make(4096, F_SEAL_SHRINK);
    struct ref buffer = raw_must_register(&raw, fd, 4096);
    struct call call = row_call(1, buffer, 100, 0, 4, 8, 4);
    call.operand[1].is_inline = true;
    call.operand[1].size_bytes = 4096;
    send_blocking(server, &raw, packet, raw_pack_submit(packet, stream, &call, 1), 1, &blocking);
    assert_quick(&neighbour, "inline memory of Submit");
    assert_int_equal(raw_wait(&raw, 1).code, STATUS_INVALID_ARGUMENT);
    lingering_release(&blocking);
    close(fd);
    raw_close(&raw);
    raw_close(&neighbour);
}

/* The status code of what the daemon says to it: of the answer, or of the last words. */
static uint32_t register_again(struct raw *raw, int fd)
{
    uint8_t packet[64];
    REQUIRE(raw_send(raw, packet, pack_register(packet, 1000, true), &fd, 1) == 0);
    Mlacat__V1__Envelope *reply = raw_receive(raw);
    REQUIRE(reply && reply->body_case == MLACAT__V1__ENVELOPE__BODY_ANSWER);
    uint32_t code = reply->answer->status->code;
    REQUIRE(code != STATUS_RESOURCE_EXHAUSTED || strstr(reply->answer->status->message, "wait to be closed"));
    raw_free(reply);
    return code;
}

/* Behind one that blocks they pile up, and whoever goes on ends; not a client of the same user with memory. */
static void test_hostile_descriptors_that_wait_are_bounded(void **state)
{
    struct server *server = *state;
    struct lingering blocking;
    struct raw raw;
    struct raw neighbour;
    uint8_t packet[64];
    uint32_t taken_nr = 0;
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    raw_open(&neighbour, server->socket);
    uint32_t fds_nr = proc_fds(server->pid);
    raw_open(&raw, server->socket);
    send_blocking(server, &raw, packet, pack_register(packet, 1000, true), 1, &blocking);
    raw_free(raw_receive(&raw));
    uint32_t code = register_again(&raw, null_fd);
    for (; code == STATUS_INVALID_ARGUMENT && taken_nr < 2000; taken_nr++) {
        code = register_again(&raw, null_fd);
    }
    assert_int_equal(code, STATUS_RESOURCE_EXHAUSTED);
    assert_in_range(taken_nr, 1000, 1024);
    raw_expect_end(&raw);
    raw_close(&raw);
    assert_quick(&neighbour, "descriptors that wait");
    raw_open(&raw, server->socket);
    assert_int_equal(register_again(&raw, null_fd), STATUS_RESOURCE_EXHAUSTED); /* nor does a new session help */
    raw_close(&raw);
    lingering_release(&blocking);
    WAIT_UNTIL(proc_fds(server->pid) == fds_nr);
    raw_open(&raw, server->socket);
    assert_int_equal(register_again(&raw, null_fd), STATUS_INVALID_ARGUMENT);
    raw_close(&raw);
    raw_close(&neighbour);
    close(null_fd);
}

/* --------------------------------------------------------------------------------------------- out of turn */

static void test_hostile_bad_request_before_hello_ends_the_session(void **state)
{
    struct server *server = *state;
    struct raw raw;
    struct raw watcher;
    uint8_t packet[64];
    raw_open(&watcher, server->socket);
    raw_connect(&raw, server->socket);
    REQUIRE(raw_send(&raw, packet, pack_register(packet, 1, false), NULL, 0) == 0);
    struct outcome last = raw_last_words(&raw);
    assert_int_equal(last.code, STATUS_UNAUTHENTICATED);
    assert_int_equal(last.scope, SCOPE_SESSION);
    assert_non_null(strstr(last.message, "RegisterBuffer came before Hello"));
    assert_int_equal(raw_stats(&watcher).sessions_broken, 1);
    raw_close(&raw);
    /* After Hello it is one bad request, no more. */
    raw_open(&raw, server->socket);
    REQUIRE(raw_send(&raw, packet, pack_register(packet, 1000, false), NULL, 0) == 0);
    Mlacat__V1__Envelope *reply = raw_receive(&raw);
    assert_non_null(reply);
    assert_int_equal(reply->request_id, 1000);
    assert_int_equal(reply->answer->status->code, STATUS_INVALID_ARGUMENT);
    raw_free(reply);
    assert_true(raw_ready(&raw, NULL));
    assert_int_equal(raw_stats(&watcher).sessions_broken, 1);
    raw_close(&raw);
    raw_close(&watcher);
}

/* ------------------------------------------------------------------------------------------------- the log's reader */

static void test_hostile_log_reader_that_stalls(void **state)
{
    struct server server;
    struct raw raw;
    char byte = '\n';
    (void)state;
    server_prepare(&server);
    server_configure(&server, "");
    REQUIRE(mkfifo(server.log, 0600) == 0);
    int reader = open(server.log, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    int writer = open(server.log, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    REQUIRE(reader >= 0 && writer >= 0);
    while (write(writer, &byte, 1) == 1) {
    }
    REQUIRE(errno == EAGAIN);
    close(writer);
    server_run(&server);
    for (int i = 0; i < 30; i++) {
        raw_open(&raw, server.socket);
        assert_true(raw_ready(&raw, NULL));
        raw_close(&raw);
        raw_connect(&raw, server.socket);
        raw_send(&raw, "no packet", 9, NULL, 0);
        raw_last_words(&raw);
        raw_close(&raw);
    }
    server_stop(&server);
    close(reader);
}

/* ------------------------------------------------------------------------------------------------------- the end */

/* Calls that the device is at cannot be taken back; the daemon does not wait for all of them. */
static void test_hostile_long_calls_do_not_hold_the_end(void **state)
{
    enum { STREAMS = 512 };
    struct server server;
    struct raw raw;
    struct trial slow;
    (void)state;
    server_start(&server, "workers = 1\nmax_streams = 1024\nmax_stream_calls = 1\ndrain_timeout_ms = 500\n");
    raw_open(&raw, server.socket);
    slow_make(&slow);
    struct ref buffer = raw_must_register(&raw, slow.fd, slow.bytes);
    for (uint64_t i = 0; i < STREAMS; i++) {
        struct ref stream = raw_must_open_stream(&raw);
        struct call call = trial_call(&slow, buffer, i + 1);
        raw_submit(&raw, stream, &call, 1);
    }
    /* The worker takes streams in turn: when this one is done, all of those are at the device. */
    struct ref last = raw_must_open_stream(&raw);
    struct call tiny = row_call(1000, buffer, 100, 0, 4, 8, 4);
    raw_submit(&raw, last, &tiny, 1);
    while (raw_next(&raw).call_id != 1000) {
    }
    uint64_t start_ms = now_ms();
    REQUIRE(kill(server.pid, SIGTERM) == 0);
    int status = server_wait(&server);
    uint64_t took_ms = now_ms() - start_ms;
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
    assert_in_range(took_ms, DRAIN_MS + STOP_MS - 100, DRAIN_MS + STOP_MS + WAIT_MS);
    assert_true(server_log_has(&server, "event=stop_timeout"));
    raw_close(&raw);
    trial_free(&slow);
    server_stop(&server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_hostile_descriptor_before_hello),
        WITH_SERVER(test_hostile_descriptor_that_is_never_read),
        WITH_SERVER(test_hostile_descriptor_in_register_and_submit),
        WITH_SERVER(test_hostile_descriptors_that_wait_are_bounded),
        WITH_SERVER(test_hostile_bad_request_before_hello_ends_the_session),
        cmocka_unit_test(test_hostile_log_reader_that_stalls),
        cmocka_unit_test(test_hostile_long_calls_do_not_hold_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
