/* SPDX-License-Identifier: Apache-2.0 */
/* A client that asks for all it can get, or for more: it is refused, or takes turns with its neighbours. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "proc.h"
#include "require.h"
#include "ring_bench.h"

/* What a neighbour asks for meanwhile takes this long at most. A busy machine may make up to half of it late; if it had
 * to wait for the costly requests, all of it would be. */
#define QUICK_MS 500
#define ASKED 20
#define LATE_MOST (ASKED / 2)

/* ---------------------------------------------------------------------------------------------- refused requests */

#define FLOOD 64 /* packets: more than the daemon reads in a turn of its loop */

static void send_open_stream(struct raw *raw)
{
    Mlacat__V1__OpenStream message = MLACAT__V1__OPEN_STREAM__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    message.device_uuid = (char *)(uintptr_t) "host";
    envelope.request_id = 1000;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_OPEN_STREAM;
    envelope.open_stream = &message;
    REQUIRE(raw_send_envelope(raw, &envelope, NULL, 0) == 0);
}

static void send_register(struct raw *raw, int fd, uint64_t size_bytes)
{
    Mlacat__V1__HostMemory host = MLACAT__V1__HOST_MEMORY__INIT;
    Mlacat__V1__Memory memory = MLACAT__V1__MEMORY__INIT;
    Mlacat__V1__RegisterBuffer message = MLACAT__V1__REGISTER_BUFFER__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    host.size_bytes = size_bytes;
    memory.kind_case = MLACAT__V1__MEMORY__KIND_HOST;
    memory.host = &host;
    message.device_uuid = (char *)(uintptr_t) "host";
    message.memory = &memory;
    envelope.request_id = 1000;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER;
    envelope.register_buffer = &message;
    REQUIRE(raw_send_envelope(raw, &envelope, &fd, 1) == 0);
}

static void expect_refusals(struct raw *raw, const char *option)
{
    for (int i = 0; i < FLOOD; i++) {
        Mlacat__V1__Envelope *reply = raw_receive(raw);
        REQUIRE(reply != NULL && reply->body_case == MLACAT__V1__ENVELOPE__BODY_ANSWER);
        assert_int_equal(reply->answer->status->code, STATUS_RESOURCE_EXHAUSTED);
        REQUIRE(strstr(reply->answer->status->message, option) != NULL, "%s", reply->answer->status->message);
        raw_free(reply);
    }
}

/* A request past its limit is refused before anything is made for it: the daemon's largest size ever stays. */
static void test_hostile_refused_requests_cost_nothing(void **state)
{
    enum { BYTES = 64 << 20 };
    struct server server;
    struct raw raw;
    struct ref ref;
    (void)state;
    server_start(&server, "max_streams = 2\nmax_buffers = 2\nmax_stream_calls = 4096\n");
    raw_open(&raw, server.socket);
    int fd = memfd_make(BYTES, F_SEAL_SHRINK);
    for (int i = 0; i < 2; i++) {
        raw_must_open_stream(&raw);
        raw_must_register(&raw, fd, BYTES);
    }
    assert_int_equal(raw_open_stream(&raw, &ref).code, STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(raw_register(&raw, fd, BYTES, &ref).code, STATUS_RESOURCE_EXHAUSTED);
    assert_true(raw_ready(&raw, NULL)); /* the descriptor of the request before it is closed */
    uint64_t peak_kib = proc_status_kib(server.pid, "VmPeak");
    uint32_t fds_nr = proc_fds(server.pid);
    for (int round = 0; round < 4; round++) {
        REQUIRE(kill(server.pid, SIGSTOP) == 0); /* then it reads as many at a time as it can */
        for (int i = 0; i < FLOOD; i++) {
            round % 2 == 0 ? send_open_stream(&raw) : send_register(&raw, fd, BYTES);
        }
        REQUIRE(kill(server.pid, SIGCONT) == 0);
        expect_refusals(&raw, round % 2 == 0 ? "max_streams" : "max_buffers");
    }
    uint64_t grown_kib = proc_status_kib(server.pid, "VmPeak") - peak_kib;
    REQUIRE(has_sanitizer() || grown_kib < 4096, "%lu KiB more", (unsigned long)grown_kib);
    WAIT_UNTIL(proc_fds(server.pid) == fds_nr);
    struct counts counts = raw_stats(&raw);
    assert_int_equal(counts.streams, 2);
    assert_int_equal(counts.buffers, 2);
    close(fd);
    raw_close(&raw);
    server_stop(&server);
}

/* All in one packet: none of its imports can have ended before the last call is looked at. */
static void test_hostile_inline_memory_is_bounded(void **state)
{
    enum { CALLS = 200, IMPORTS = 64 };
    struct server *server = *state;
    struct raw raw;
    struct call calls[CALLS];
    uint32_t refused = 0;
    uint32_t failed = 0;
    bool seen[CALLS] = {false};
    raw_open(&raw, server->socket);
    int fd = memfd_make(4096, F_SEAL_SHRINK);
    struct ref buffer = raw_must_register(&raw, fd, 4096);
    struct ref stream = raw_must_open_stream(&raw);
    for (uint64_t i = 0; i < CALLS; i++) {
        calls[i] = row_call(i, buffer, 100, 0, 4, 8, 4);
        calls[i].operand[1].is_inline = true;
        calls[i].operand[1].is_cuda = true;
        calls[i].operand[1].size_bytes = 4096;
    }
    raw_submit(&raw, stream, calls, CALLS);
    for (int i = 0; i < CALLS; i++) {
        struct completion done = raw_next(&raw);
        assert_true(done.call_id < CALLS && !seen[done.call_id]);
        seen[done.call_id] = true;
        if (done.outcome.code == STATUS_RESOURCE_EXHAUSTED) {
            assert_non_null(strstr(done.outcome.message, "64 imports of this client are under way"));
            assert_true(done.call_id >= IMPORTS);
            refused++;
        } else {
            assert_int_equal(done.outcome.code, STATUS_INVALID_ARGUMENT); /* the host has no such memory */
            failed++;
        }
    }
    assert_int_equal(failed, IMPORTS);
    assert_int_equal(refused, CALLS - IMPORTS);
    WAIT_UNTIL(raw_stats(&raw).buffers == 1);
    close(fd);
    raw_close(&raw);
}

/* ----------------------------------------------------------------------------------------- clients at their limits */

static void test_hostile_clients_at_their_limits_leave_room(void **state)
{
    enum { CLIENTS = 8, CALLS = 1024, SLOW = 256, PACKET = 508 };
    struct server server;
    struct raw raw[CLIENTS];
    struct raw ninth;
    struct trial slow;
    struct trial small;
    static struct call calls[CALLS];
    (void)state;
    server_start(&server, "workers = 1\nmax_calls = 1024\nmax_stream_calls = 1024\n");
    slow_make(&slow);
    trial_make(&small, &small_shape);
    raw_open(&ninth, server.socket);
    struct ref ninth_buffer = raw_must_register(&ninth, small.fd, small.bytes);
    struct ref ninth_stream = raw_must_open_stream(&ninth);
    for (int c = 0; c < CLIENTS; c++) {
        raw_open(&raw[c], server.socket);
        struct ref buffer = raw_must_register(&raw[c], slow.fd, slow.bytes);
        struct ref stream = raw_must_open_stream(&raw[c]);
        for (uint64_t i = 0; i < CALLS; i++) {
            calls[i] = i < SLOW ? trial_call(&slow, buffer, i) : row_call(i, buffer, 100, 0, 4, 8, 4);
        }
        for (int at = 0; at < CALLS; at += PACKET) {
            raw_submit(&raw[c], stream, &calls[at], at + PACKET < CALLS ? PACKET : (size_t)(CALLS - at));
        }
    }
    /* No small call can end before its client's slow ones, which are seconds of work. */
    WAIT_UNTIL(raw_stats(&ninth).calls_in_flight > CLIENTS * (CALLS - SLOW));
    struct call call = trial_call(&small, ninth_buffer, 1);
    raw_submit(&ninth, ninth_stream, &call, 1);
    struct outcome outcome = raw_wait(&ninth, 1);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    assert_true(trial_right(&small));
    assert_true(raw_stats(&ninth).calls_in_flight >= CLIENTS * (CALLS - SLOW));
    for (int c = 0; c < CLIENTS; c++) {
        raw_close(&raw[c]);
    }
    WAIT_UNTIL(raw_stats(&ninth).calls_in_flight == 0);
    assert_int_equal(raw_stats(&ninth).outcomes[STATUS_RESOURCE_EXHAUSTED], 0);
    raw_close(&ninth);
    trial_free(&slow);
    trial_free(&small);
    server_stop(&server);
}

/* ---------------------------------------------------------------------------------------------- costly proofs */

#define COSTLY_CALLS 400 /* of a packet */

static struct operand costly_operand(struct ref buffer, uint64_t offset, uint64_t width, int64_t stride0,
                                     int64_t stride1)
{
    return (struct operand){
        .buffer = buffer, .offset_bytes = offset, .shape = {288, 874, width}, .strides = {stride0, stride1, 1}};
}

/* Strides that no tensor has: whether these rows overlap takes long to find out. */
static void run_costly_client(void *arg)
{
    const struct server *server = arg;
    static struct call calls[COSTLY_CALLS];
    struct raw raw;
    raw_open(&raw, server->socket);
    int fd = memfd_make((size_t)1 << 34, F_SEAL_SHRINK);
    struct ref buffer = raw_must_register(&raw, fd, (uint64_t)1 << 34);
    struct ref stream = raw_must_open_stream(&raw);
    for (uint64_t i = 0; i < COSTLY_CALLS; i++) {
        calls[i] = (struct call){.id = i, .op = OP_CONCAT_MLA_ABSORB_Q, .dtype = DTYPE_BF16};
        calls[i].operand[0] = costly_operand(buffer, 543848186, 2, 1661394, 1746967);
        calls[i].operand[1] = costly_operand(buffer, 276075256, 1, 13423, 180102);
        calls[i].operand[2] = costly_operand(buffer, 1164980380, 1, 368344, 1990222);
    }
    for (uint64_t packets = 0;; packets++) {
        raw_submit(&raw, stream, calls, COSTLY_CALLS);
        if (packets == 8) {
            child_ready();
        }
        for (int i = 0; packets >= 8 && i < COSTLY_CALLS; i++) { /* eight packets ahead */
            struct outcome outcome = raw_next(&raw).outcome;
            REQUIRE(outcome.code == STATUS_INVALID_ARGUMENT, "%u: %s", outcome.code, outcome.message);
            raw.done_nr = raw.done_taken == raw.done_nr ? 0 : raw.done_nr;
            raw.done_taken = raw.done_nr == 0 ? 0 : raw.done_taken;
        }
    }
}

static void test_hostile_costly_proofs_leave_others_quick(void **state)
{
    struct server *server = *state;
    struct child child;
    struct raw neighbour;
    uint32_t late_nr = 0;
    raw_open(&neighbour, server->socket);
    child_start(&child, run_costly_client, server);
    child_wait_ready(&child);
    for (int i = 0; i < ASKED; i++) {
        uint64_t start_ms = now_ms();
        raw_ping(&neighbour);
        late_nr += now_ms() - start_ms >= QUICK_MS;
    }
    assert_in_range(late_nr, 0, LATE_MOST);
    WAIT_UNTIL(raw_stats(&neighbour).outcomes[STATUS_INVALID_ARGUMENT] > COSTLY_CALLS);
    child_kill(&child);
    raw_close(&neighbour);
}

static void run_costly_ring_client(void *arg)
{
    REQUIRE(setenv("MLACAT_TEST_TRANSPORT", "ring", 1) == 0);
    run_costly_client(arg);
}

/* Through a ring the worker proves them: it does no more than a few before the next ring has its turn. */
static void test_hostile_costly_ring_leaves_others_quick(void **state)
{
    struct server server;
    struct child child;
    struct bench neighbour;
    uint32_t late_nr = 0;
    (void)state;
    server_start(&server, "workers = 1\n");
    bench_open(&neighbour, &server);
    child_start(&child, run_costly_ring_client, &server);
    child_wait_ready(&child);
    for (uint64_t id = 1; id <= ASKED; id++) {
        uint64_t start_ms = now_ms();
        bench_work(&neighbour, id);
        late_nr += now_ms() - start_ms >= QUICK_MS;
        raw_ping(&neighbour.raw);
    }
    assert_in_range(late_nr, 0, LATE_MOST);
    WAIT_UNTIL(raw_stats(&neighbour.raw).outcomes[STATUS_INVALID_ARGUMENT] > COSTLY_CALLS);
    child_kill(&child);
    bench_close(&neighbour);
    server_stop(&server);
}

/* ---------------------------------------------------------------------------------------------- withdrawals */

#define PAIRS 50

static void send_cancel(struct raw *raw, struct ref stream, uint64_t call_id)
{
    Mlacat__V1__StreamRef ref = MLACAT__V1__STREAM_REF__INIT;
    Mlacat__V1__Cancel message = MLACAT__V1__CANCEL__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    ref.id = stream.id;
    ref.generation = stream.generation;
    message.stream = &ref;
    message.call_id = call_id;
    envelope.request_id = call_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_CANCEL;
    envelope.cancel = &message;
    REQUIRE(raw_send_envelope(raw, &envelope, NULL, 0) == 0);
}

/* What came for one call: its completion, and the answer to its Cancel. */
struct fate {
    uint32_t completions;
    uint32_t answers;
    uint32_t ended;
    uint32_t answered;
};

static void take_fates(struct raw *raw, uint64_t first_id, struct fate fates[PAIRS])
{
    for (uint32_t left = 2 * PAIRS; left > 0;) {
        Mlacat__V1__Envelope *envelope = raw_receive(raw);
        REQUIRE(envelope != NULL);
        if (envelope->body_case == MLACAT__V1__ENVELOPE__BODY_COMPLETIONS) {
            for (size_t i = 0; i < envelope->completions->n_completions; i++, left--) {
                const Mlacat__V1__Completion *completion = envelope->completions->completions[i];
                REQUIRE(left > 0 && completion->call_id - first_id < PAIRS);
                struct fate *fate = &fates[completion->call_id - first_id];
                fate->completions++;
                fate->ended = completion->status ? completion->status->code : 0;
            }
        } else {
            REQUIRE(envelope->body_case == MLACAT__V1__ENVELOPE__BODY_ANSWER && left > 0);
            REQUIRE(envelope->request_id - first_id < PAIRS);
            struct fate *fate = &fates[envelope->request_id - first_id];
            fate->answers++;
            fate->answered = envelope->answer->status ? envelope->answer->status->code : 0;
            left--;
        }
        raw_free(envelope);
    }
}

static void check_fates(const struct fate fates[PAIRS])
{
    for (int i = 0; i < PAIRS; i++) {
        assert_int_equal(fates[i].completions, 1);
        assert_int_equal(fates[i].answers, 1);
        if (fates[i].answered == STATUS_OK) {
            assert_int_equal(fates[i].ended, STATUS_CANCELLED);
        } else {
            REQUIRE(fates[i].answered == STATUS_FAILED_PRECONDITION || fates[i].answered == STATUS_NOT_FOUND);
            assert_int_equal(fates[i].ended, STATUS_OK);
        }
    }
}

/* Submit and Cancel right behind it, again and again: whoever wins, each call ends once, as Cancel has said. */
static void test_hostile_withdrawals_end_each_call_once(void **state)
{
    enum { ROUNDS = 40 };
    struct server *server = *state;
    struct raw raw;
    struct counts counts = {0};
    uint64_t rounds = 0;
    uint64_t end_ms = now_ms() + WAIT_MS;
    raw_open(&raw, server->socket);
    int fd = memfd_make(1 << 20, F_SEAL_SHRINK);
    struct ref buffer = raw_must_register(&raw, fd, 1 << 20);
    struct ref stream = raw_must_open_stream(&raw);
    for (; rounds < ROUNDS || (counts.outcomes[STATUS_CANCELLED] == 0 && now_ms() < end_ms); rounds++) {
        struct fate fates[PAIRS] = {{0}};
        uint64_t first_id = 1 + rounds * PAIRS;
        for (uint64_t id = first_id; id < first_id + PAIRS; id++) {
            uint64_t width = rounds % 2 == 0 ? 4 : 100000; /* with short calls, and with some that hold up the rest */
            struct call call = row_call(id, buffer, 1 << 19, 0, width, 1 << 18, width);
            raw_submit(&raw, stream, &call, 1);
            send_cancel(&raw, stream, id);
        }
        take_fates(&raw, first_id, fates);
        check_fates(fates);
        raw.last_request = first_id + PAIRS;
        counts = raw_stats(&raw);
    }
    assert_int_equal(counts.calls_in_flight, 0);
    assert_int_equal(counts.outcomes[STATUS_OK] + counts.outcomes[STATUS_CANCELLED], rounds * PAIRS);
    assert_true(counts.outcomes[STATUS_CANCELLED] > 0);
    assert_int_equal(raw_close_stream(&raw, stream).code, STATUS_OK);
    close(fd);
    raw_close(&raw);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile_refused_requests_cost_nothing),
        WITH_SERVER(test_hostile_inline_memory_is_bounded),
        cmocka_unit_test(test_hostile_clients_at_their_limits_leave_room),
        WITH_SERVER(test_hostile_costly_proofs_leave_others_quick),
        cmocka_unit_test(test_hostile_costly_ring_leaves_others_quick),
        WITH_SERVER(test_hostile_withdrawals_end_each_call_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
