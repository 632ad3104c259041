/* SPDX-License-Identifier: Apache-2.0 */
/* kill -9 of a client at each step of its life: the daemon lets go of all that it had, and a neighbour's calls go on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "proc.h"
#include "require.h"
#include "server.h"
#include "trial.h"

enum step {
    STEP_CONNECTED,
    STEP_GREETED,
    STEP_REGISTERING, /* requests sent, replies not awaited */
    STEP_BUFFERS_IDLE,
    STEP_STREAM_OPENING,
    STEP_CALL_RUNNING,
    STEP_CALLS_QUEUED,
    STEP_UNREGISTERING, /* buffers given back while calls use them */
    STEP_CLOSING,       /* a stream closing while calls run */
    STEP_IMPORTING_INLINE,
    STEPS
};

static const char *const step_names[STEPS] = {"connected",      "greeted",         "registering",  "buffers idle",
                                              "stream opening", "call running",    "calls queued", "unregistering",
                                              "closing",        "importing inline"};

#define QUEUED 150 /* calls behind the one that runs: seconds of work, of which most is never done */

struct victim {
    const char *socket;
    enum step step;
};

static void send_with_stream(struct raw *raw, struct ref stream, Mlacat__V1__Envelope__BodyCase body)
{
    Mlacat__V1__StreamRef ref = MLACAT__V1__STREAM_REF__INIT;
    Mlacat__V1__CloseStream closing = MLACAT__V1__CLOSE_STREAM__INIT;
    Mlacat__V1__OpenStream opening = MLACAT__V1__OPEN_STREAM__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    ref.id = stream.id;
    ref.generation = stream.generation;
    closing.stream = &ref;
    opening.device_uuid = (char *)(uintptr_t)raw_device();
    envelope.request_id = ++raw->last_request;
    envelope.body_case = body;
    if (body == MLACAT__V1__ENVELOPE__BODY_OPEN_STREAM) {
        envelope.open_stream = &opening;
    } else {
        envelope.close_stream = &closing;
    }
    raw_send_envelope(raw, &envelope, NULL, 0);
}

static void use_memory(struct raw *raw, const struct trial *slow, enum step step)
{
    int fds[3] = {slow->fd, slow->fd, slow->fd};
    struct ref buffer = raw_must_register(raw, slow->fd, slow->bytes);
    raw_must_register(raw, slow->fd, slow->bytes);
    if (step == STEP_BUFFERS_IDLE) {
        return;
    }
    if (step == STEP_STREAM_OPENING) {
        send_with_stream(raw, (struct ref){0}, MLACAT__V1__ENVELOPE__BODY_OPEN_STREAM);
        return;
    }
    struct ref stream = raw_must_open_stream(raw);
    raw_must_open_stream(raw);
    slow_begin(raw, stream, slow, buffer, 1);
    if (step == STEP_CALL_RUNNING) {
        return;
    }
    struct call call = trial_call(slow, buffer, 0);
    for (call.id = 2; call.id < 2 + QUEUED; call.id++) {
        raw_submit(raw, stream, &call, 1);
    }
    if (step == STEP_UNREGISTERING) {
        REQUIRE(raw_unregister(raw, buffer).code == STATUS_OK);
    } else if (step == STEP_CLOSING) {
        send_with_stream(raw, stream, MLACAT__V1__ENVELOPE__BODY_CLOSE_STREAM);
    } else if (step == STEP_IMPORTING_INLINE) {
        for (uint32_t i = 0; i < 3; i++) {
            call.operand[i].is_inline = true;
            call.operand[i].fd = i;
            call.operand[i].size_bytes = slow->bytes;
        }
        for (call.id = 1000; call.id < 1004; call.id++) {
            raw_submit_fds(raw, stream, &call, 1, fds, 3);
        }
    }
}

static void run_victim(void *arg)
{
    const struct victim *victim = arg;
    struct raw raw;
    struct trial slow;
    slow_make(&slow);
    raw_connect(&raw, victim->socket);
    if (victim->step > STEP_CONNECTED) {
        REQUIRE(raw_hello(&raw, 1, 0, "victim").code == STATUS_OK);
    }
    if (victim->step == STEP_REGISTERING) {
        for (int i = 0; i < 20; i++) {
            raw_send_register(&raw, slow.fd, slow.bytes);
        }
    } else if (victim->step > STEP_REGISTERING) {
        use_memory(&raw, &slow, victim->step);
    }
    child_ready();
    child_park();
}

/* A client that works all the time and checks every result. */
struct neighbour {
    struct raw raw;
    struct trial trial;
    struct ref buffer;
    struct ref stream;
    uint64_t calls_nr;
};

static void work(struct neighbour *neighbour)
{
    uint64_t id = ++neighbour->calls_nr;
    trial_refill(&neighbour->trial, (uint32_t)id);
    struct call call = trial_call(&neighbour->trial, neighbour->buffer, id);
    raw_submit(&neighbour->raw, neighbour->stream, &call, 1);
    struct outcome outcome = raw_wait(&neighbour->raw, id);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    REQUIRE(trial_right(&neighbour->trial));
}

/* Works on while it looks. */
static bool is_alone(struct neighbour *neighbour, pid_t server, uint32_t fds_nr)
{
    work(neighbour);
    struct counts counts = raw_stats(&neighbour->raw);
    return counts.clients == 1 && counts.streams == 1 && counts.buffers == 1 && counts.calls_in_flight == 0 &&
           counts.mapped_bytes == neighbour->trial.bytes + raw_by_ring_bytes(&neighbour->raw) &&
           descriptors_open(server, fds_nr) && memfds_mapped(server, 1);
}

static void test_death_of_a_client_at_each_step(void **state)
{
    const struct trial_shape shape = {OP_CONCAT_MLA_K, DTYPE_BF16, 64, 16, 128, 64, true, 1};
    struct server *server = *state;
    struct neighbour neighbour = {0};
    raw_open(&neighbour.raw, server->socket);
    trial_make(&neighbour.trial, &shape);
    neighbour.buffer = raw_must_register(&neighbour.raw, neighbour.trial.fd, neighbour.trial.bytes);
    neighbour.stream = raw_must_open_stream(&neighbour.raw);
    work(&neighbour);
    uint32_t fds_nr = proc_fds(server->pid);
    for (int i = 0; i < 2 * STEPS; i++) {
        struct victim victim = {server->socket, (enum step)(i % STEPS)};
        struct child child;
        if (raw_by_ring() && victim.step == STEP_IMPORTING_INLINE) {
            continue; /* no ring takes that */
        }
        child_start(&child, run_victim, &victim);
        child_wait_ready(&child);
        work(&neighbour);
        child_kill(&child);
        uint64_t end_ms = now_ms() + WAIT_MS;
        while (!is_alone(&neighbour, server->pid, fds_nr)) {
            REQUIRE(now_ms() < end_ms, "something of the client killed while %s is left", step_names[victim.step]);
        }
    }
    struct counts counts = raw_stats(&neighbour.raw);
    assert_int_equal(counts.sessions_broken, 0);
    assert_int_equal(counts.outcomes[STATUS_OK] >= neighbour.calls_nr, 1);
    raw_close(&neighbour.raw);
    trial_free(&neighbour.trial);
}

static void test_death_drops_queued_calls(void **state)
{
    struct server *server = *state;
    struct victim victim = {server->socket, STEP_CALLS_QUEUED};
    struct child child;
    struct raw watcher;
    raw_open(&watcher, server->socket);
    child_start(&child, run_victim, &victim);
    child_wait_ready(&child);
    child_kill(&child);
    WAIT_UNTIL(raw_stats(&watcher).clients == 1 && raw_stats(&watcher).streams == 0);
    WAIT_UNTIL(memfds_mapped(server->pid, 0));
    assert_true(raw_stats(&watcher).outcomes[STATUS_OK] < QUEUED); /* the one that ran, and few more */
    raw_close(&watcher);
}

/* Many at once, in the middle of whatever they do. */
static void run_busy_client(void *arg)
{
    const struct victim *victim = arg;
    struct raw raw;
    struct trial trial;
    struct ref buffer;
    trial_make(&trial, &small_shape);
    for (;;) {
        raw_open(&raw, victim->socket);
        struct ref stream = raw_must_open_stream(&raw);
        buffer = raw_must_register(&raw, trial.fd, trial.bytes);
        child_ready();
        for (uint64_t id = 0; id < 20; id++) {
            struct call call = trial_call(&trial, buffer, id);
            raw_submit(&raw, stream, &call, 1);
        }
        for (uint64_t id = 0; id < 20; id++) {
            REQUIRE(raw_wait(&raw, id).code == STATUS_OK);
        }
        raw_close(&raw);
    }
}

static void test_death_of_many_busy_clients(void **state)
{
    enum { CLIENTS = 8, ROUNDS = 5 };
    struct server *server = *state;
    struct victim victim = {server->socket, STEP_CONNECTED};
    struct child child[CLIENTS];
    struct raw watcher;
    raw_open(&watcher, server->socket);
    uint32_t fds_nr = proc_fds(server->pid);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < CLIENTS; i++) {
            child_start(&child[i], run_busy_client, &victim);
        }
        for (int i = 0; i < CLIENTS; i++) {
            child_wait_ready(&child[i]);
        }
        for (int i = 0; i < CLIENTS; i++) {
            child_kill(&child[i]);
        }
        WAIT_UNTIL(raw_stats(&watcher).clients == 1);
    }
    WAIT_UNTIL(memfds_mapped(server->pid, 0) && descriptors_open(server->pid, fds_nr));
    WAIT_UNTIL(raw_stats(&watcher).buffers == 0);
    struct counts counts = raw_stats(&watcher);
    assert_int_equal(counts.streams, 0);
    assert_int_equal(counts.calls_in_flight, 0);
    assert_int_equal(counts.sessions_broken, 0);
    raw_close(&watcher);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_death_of_a_client_at_each_step),
        WITH_SERVER(test_death_drops_queued_calls),
        WITH_SERVER(test_death_of_many_busy_clients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
