/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's end on request, and a change of its configuration, under load. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "require.h"
#include "ring_bench.h"
#include "server.h"
#include "trial.h"

#define QUEUED 12

/* A client with calls in flight that take a while. */
struct load {
    struct raw raw;
    struct trial slow;
    struct ref stream;
    struct ref buffer;
};

static void load_begin(struct load *load, const struct server *server)
{
    raw_open(&load->raw, server->socket);
    slow_make(&load->slow);
    load->buffer = raw_must_register(&load->raw, load->slow.fd, load->slow.bytes);
    load->stream = raw_must_open_stream(&load->raw);
    slow_begin(&load->raw, load->stream, &load->slow, load->buffer, 0);
    for (uint64_t id = 1; id <= QUEUED; id++) {
        struct call call = trial_call(&load->slow, load->buffer, id);
        raw_submit(&load->raw, load->stream, &call, 1);
    }
}

static void load_end(struct load *load)
{
    raw_close(&load->raw);
    trial_free(&load->slow);
}

/* A client with a call that waits for its word: until that comes the daemon has something to wait for, however long the
 * test takes for what it looks at meanwhile. */
static void holder_begin(struct bench *holder, const struct server *server)
{
    bench_open(holder, server);
    struct mlacat_ring_submission entry = bench_entry(holder, 1);
    entry.flags = MLACAT_RING_SUBMIT_READY;
    entry.ready = 1;
    raw_ring_send(&holder->ring, &entry);
    bench_wait_taken(&holder->ring);
}

static void holder_let_go(struct bench *holder)
{
    bench_set_ready(holder, 1);
    assert_int_equal(raw_ring_wait(&holder->ring, 1).code, STATUS_OK);
}

static void assert_ends_well(struct server *server)
{
    int status = server_wait(server);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0, "wait status 0x%x", (unsigned)status);
    assert_int_not_equal(access(server->socket, F_OK), 0);
}

/* A worker may take entries of a ring once more before it hears of the drain. So these calls have an op that does not
 * exist: each is refused, before the drain for that. */
static void assert_refuses_calls(struct load *load)
{
    struct outcome refused;
    struct call call = trial_call(&load->slow, load->buffer, 100);
    uint64_t end_ms = now_ms() + WAIT_MS;
    call.op = 99;
    do {
        call.id++;
        raw_submit(&load->raw, load->stream, &call, 1);
        refused = raw_wait_aside(&load->raw, call.id);
    } while (raw_by_ring() && refused.code == STATUS_UNIMPLEMENTED && now_ms() < end_ms);
    assert_int_equal(refused.code, STATUS_UNAVAILABLE);
    assert_int_equal(refused.scope, SCOPE_CALL);
}

/* Everything new is refused while the old calls run; then every old call is answered and the connections end. */
static void check_drain(struct server *server, struct load *load, struct raw *other, struct bench *holder)
{
    char reason[64];
    struct ref ref = {0};
    struct trial trial;
    WAIT_UNTIL(!raw_ready(other, reason));
    assert_non_null(strstr(reason, "draining"));
    assert_int_equal(raw_open_stream(other, &ref).code, STATUS_UNAVAILABLE);
    trial_make(&trial, &small_shape);
    assert_int_equal(raw_register(other, trial.fd, trial.bytes, &ref).code, STATUS_UNAVAILABLE);
    assert_refuses_calls(load);
    WAIT_UNTIL(access(server->socket, F_OK) != 0);
    for (uint64_t id = 1; id <= QUEUED; id++) {
        (void)raw_cancel(&load->raw, load->stream, id); /* as far as they still wait: to be done sooner */
    }
    uint32_t seen = 0;
    for (int i = 0; i <= QUEUED; i++) {
        struct completion done = raw_next(&load->raw);
        assert_in_range(done.call_id, 0, QUEUED);
        assert_int_equal(seen & 1u << done.call_id, 0);
        seen |= 1u << done.call_id;
        assert_true(done.outcome.code == STATUS_OK || done.outcome.code == STATUS_CANCELLED);
    }
    holder_let_go(holder);
    raw_expect_end(&load->raw);
    raw_expect_end(other);
    trial_free(&trial);
}

static void run_drain(struct server *server, bool by_message)
{
    struct load load;
    struct bench holder;
    struct raw other;
    holder_begin(&holder, server);
    load_begin(&load, server);
    raw_open(&other, server->socket);
    if (by_message) {
        assert_int_equal(raw_drain(&other).code, STATUS_OK);
    } else {
        assert_int_equal(kill(server->pid, SIGTERM), 0);
    }
    check_drain(server, &load, &other, &holder);
    assert_ends_well(server);
    assert_true(server_log_has(server, "draining"));
    raw_close(&other);
    load_end(&load);
    bench_close(&holder);
}

static void test_drain_by_signal_answers_all(void **state)
{
    run_drain(*state, false);
}

static void test_drain_by_message_answers_all(void **state)
{
    run_drain(*state, true);
}

static void test_drain_timeout_ends_it(void **state)
{
    struct server server;
    struct load load;
    struct bench holder;
    (void)state;
    server_start(&server, "drain_timeout_ms = 20\n");
    holder_begin(&holder, &server);
    load_begin(&load, &server);
    assert_int_equal(kill(server.pid, SIGTERM), 0);
    raw_expect_end(&load.raw);
    assert_ends_well(&server);
    assert_true(server_log_has(&server, "drain_timeout"));
    load_end(&load);
    bench_close(&holder);
    server_stop(&server);
}

static void test_drain_does_not_wait_for_ever_for_a_reader(void **state)
{
    struct server server;
    struct raw raw;
    struct trial trial;
    (void)state;
    server_start(&server, "drain_timeout_ms = 100\n");
    raw_open(&raw, server.socket);
    trial_make(&trial, &small_shape);
    struct ref buffer = raw_must_register(&raw, trial.fd, trial.bytes);
    struct ref stream = raw_must_open_stream(&raw);
    struct call call = trial_call(&trial, buffer, 0);
    uint8_t packet[RAW_PACKET_BYTES];
    size_t size = raw_pack_submit(packet, stream, &call, 1);
    uint64_t end_ms = now_ms() + 200; /* until nothing goes in any more, or nearly */
    while (now_ms() < end_ms && raw_try_send(&raw, packet, size, NULL, 0) == 0) {
    }
    assert_int_equal(kill(server.pid, SIGTERM), 0);
    assert_ends_well(&server);
    trial_free(&trial);
    raw_close(&raw);
    server_stop(&server);
}

static void test_drain_second_signal_ends_at_once(void **state)
{
    struct server *server = *state;
    struct load load;
    struct bench holder;
    holder_begin(&holder, server);
    load_begin(&load, server);
    assert_int_equal(kill(server->pid, SIGTERM), 0);
    WAIT_UNTIL(!raw_ready(&load.raw, NULL));
    assert_int_equal(kill(server->pid, SIGINT), 0);
    int status = server_wait(server);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    raw_expect_end(&load.raw);
    assert_int_not_equal(access(server->socket, F_OK), 0);
    load_end(&load);
    bench_close(&holder);
}

/* Registers and gives back until the daemon says no or ends the connection. */
static void run_registrar(void *arg)
{
    const struct server *server = arg;
    struct raw raw;
    struct ref buffer;
    int fd = memfd_make(4096, F_SEAL_SHRINK);
    Mlacat__V1__HealthRequest health = MLACAT__V1__HEALTH_REQUEST__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    raw_open(&raw, server->socket);
    raw_must_register(&raw, fd, 4096);
    child_ready();
    envelope.request_id = 1;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_HEALTH_REQUEST;
    envelope.health_request = &health;
    for (;;) {
        /* A packet without a reply first: after the end raw_register would fail the check. */
        if (raw_send_envelope(&raw, &envelope, NULL, 0) != 0) {
            return;
        }
        Mlacat__V1__Envelope *reply = raw_receive(&raw);
        if (reply == NULL) {
            return;
        }
        bool ready = reply->health->ready;
        raw_free(reply);
        if (!ready) {
            return;
        }
        struct outcome outcome = raw_register(&raw, fd, 4096, &buffer);
        REQUIRE(outcome.code == STATUS_OK || outcome.code == STATUS_UNAVAILABLE, "%s", outcome.message);
        if (outcome.code != STATUS_OK) {
            return;
        }
        REQUIRE(raw_unregister(&raw, buffer).code == STATUS_OK);
    }
}

static void test_drain_while_clients_register(void **state)
{
    enum { CLIENTS = 4 };
    struct server *server = *state;
    struct child child[CLIENTS];
    struct load load;
    struct bench holder;
    holder_begin(&holder, server);
    load_begin(&load, server);
    for (int i = 0; i < CLIENTS; i++) {
        child_start(&child[i], run_registrar, server);
        child_wait_ready(&child[i]);
    }
    assert_int_equal(kill(server->pid, SIGTERM), 0);
    for (int i = 0; i < CLIENTS; i++) {
        child_join(&child[i]); /* the holder keeps the daemon up until they are told */
    }
    for (uint64_t id = 1; id <= QUEUED; id++) {
        (void)raw_cancel(&load.raw, load.stream, id);
    }
    for (int i = 0; i <= QUEUED; i++) {
        raw_next(&load.raw);
    }
    holder_let_go(&holder);
    assert_ends_well(server);
    load_end(&load);
    bench_close(&holder);
}

/* ------------------------------------------------------------------------------------------------------------ reload
 */

static bool can_open_stream(struct raw *raw)
{
    struct ref stream;
    struct outcome outcome = raw_open_stream(raw, &stream);
    if (outcome.code == STATUS_OK) {
        REQUIRE(raw_close_stream(raw, stream).code == STATUS_OK);
        return true;
    }
    REQUIRE(outcome.code == STATUS_RESOURCE_EXHAUSTED, "%s", outcome.message);
    return false;
}

static void test_drain_reload_changes_limits(void **state)
{
    struct server *server = *state;
    struct raw raw;
    raw_open(&raw, server->socket);
    raw_must_open_stream(&raw);
    assert_true(can_open_stream(&raw));
    server_configure(server, "max_streams = 1\nlog_level = debug\n");
    assert_int_equal(kill(server->pid, SIGHUP), 0);
    WAIT_UNTIL(!can_open_stream(&raw));
    server_configure(server, "max_streams = many\n");
    assert_int_equal(kill(server->pid, SIGHUP), 0);
    WAIT_UNTIL(server_log_has(server, "reload_failed"));
    assert_true(server_log_has(server, "many"));
    assert_false(can_open_stream(&raw)); /* the old configuration stays */
    server_configure(server, "max_streams = 2\n");
    assert_int_equal(kill(server->pid, SIGHUP), 0);
    WAIT_UNTIL(can_open_stream(&raw));
    assert_true(raw_ready(&raw, NULL));
    raw_close(&raw);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_drain_by_signal_answers_all),  WITH_SERVER(test_drain_by_message_answers_all),
        cmocka_unit_test(test_drain_timeout_ends_it),   WITH_SERVER(test_drain_second_signal_ends_at_once),
        WITH_SERVER(test_drain_while_clients_register), WITH_SERVER(test_drain_reload_changes_limits),
    };
    const struct CMUnitTest packet_tests[] = {
        cmocka_unit_test(test_drain_does_not_wait_for_ever_for_a_reader),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return raw_by_ring() ? failed : failed + cmocka_run_group_tests(packet_tests, NULL, NULL);
}
