/* SPDX-License-Identifier: Apache-2.0 */
/* kill -9 of a client at each step of a submission through its ring: the daemon lets go of all that it had, and a
 * neighbour's calls go on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu_memory.h"
#include "mlacat_ring.h"
#include "proc.h"
#include "require.h"
#include "ring_bench.h"

enum step {
    STEP_RINGS_OPEN,  /* no stream yet */
    STEP_STREAM_OPEN, /* nothing submitted */
    STEP_WRITTEN,     /* entries written, the tail not moved */
    STEP_TAIL_MOVED,  /* and no doorbell rung */
    STEP_GATED,       /* taken, waiting for a word that never comes */
    STEP_SIGNALLING,  /* a failed call waits behind it to tell its end */
    STEP_RUNNING,
    STEP_QUEUED,
    STEP_UNREAD, /* ended, its completions not read */
    STEP_FULL,   /* more written than the ring takes */
    STEP_UNREGISTERING,
    STEP_CLOSING, /* with a call that never ends */
    STEP_PARKED,  /* on the futex */
    STEPS
};

static const char *const step_names[STEPS] = {"rings open", "stream open", "written", "tail moved", "gated",
                                              "signalling", "running",     "queued",  "unread",     "full",
                                              "unregister", "closing",     "parked"};

struct victim {
    const struct server *server;
    enum step step;
};

static void send_close(struct raw *raw, struct ref stream)
{
    Mlacat__V1__StreamRef ref = MLACAT__V1__STREAM_REF__INIT;
    Mlacat__V1__CloseStream closing = MLACAT__V1__CLOSE_STREAM__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    ref.id = stream.id;
    ref.generation = stream.generation;
    closing.stream = &ref;
    envelope.request_id = ++raw->last_request;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_CLOSE_STREAM;
    envelope.close_stream = &closing;
    raw_send_envelope(raw, &envelope, NULL, 0);
}

static void send_gated(struct bench *bench)
{
    struct mlacat_ring_submission entry = bench_entry(bench, 1);
    entry.flags = MLACAT_RING_SUBMIT_READY;
    entry.ready = 1;
    raw_ring_send(&bench->ring, &entry);
    bench_wait_taken(&bench->ring);
}

static void send_slow(struct bench *bench, const struct trial *slow, uint32_t calls_nr)
{
    struct ref buffer = raw_must_register(&bench->raw, slow->fd, slow->bytes);
    struct call call = trial_call(slow, buffer, 1);
    for (uint32_t i = 0; i < calls_nr; i++) {
        raw_ring_call(&bench->ring, &call, 1);
    }
    bench_wait_taken(&bench->ring);
}

static void go_to(struct bench *bench, const struct trial *slow, enum step step)
{
    struct mlacat_ring_submission entry = bench_entry(bench, 1);
    uint32_t many = step == STEP_FULL ? bench->ring.calls + 6 : 5;
    switch (step) {
    case STEP_WRITTEN:
    case STEP_TAIL_MOVED:
        raw_ring_write(&bench->ring, &entry);
        raw_ring_write(&bench->ring, &entry);
        if (step == STEP_TAIL_MOVED) {
            mlacat_ring_submit(bench->ring.client, bench->ring.tail);
        }
        break;
    case STEP_RUNNING:
        send_slow(bench, slow, 1);
        break;
    case STEP_QUEUED:
        send_slow(bench, slow, 40);
        break;
    case STEP_UNREAD:
    case STEP_FULL:
        for (uint32_t i = 0; i < many; i++) {
            raw_ring_send(&bench->ring, &entry);
            if (i == bench->ring.calls) {
                bench_wait_taken(&bench->ring);
            }
        }
        WAIT_UNTIL(raw_ring_has(&bench->ring));
        break;
    case STEP_GATED:
    case STEP_SIGNALLING:
    case STEP_UNREGISTERING:
    case STEP_CLOSING:
    case STEP_PARKED:
        send_gated(bench);
        break;
    default:
        break;
    }
    if (step == STEP_SIGNALLING) {
        entry.op = 99;
        entry.flags = MLACAT_RING_SUBMIT_DONE;
        raw_ring_send(&bench->ring, &entry);
        bench_wait_taken(&bench->ring);
    } else if (step == STEP_UNREGISTERING) {
        REQUIRE(raw_unregister(&bench->raw, bench->buffer).code == STATUS_OK);
    } else if (step == STEP_CLOSING) {
        send_close(&bench->raw, bench->ring.stream);
        raw_stats(&bench->raw); /* so it was read */
    } else if (step == STEP_PARKED) {
        mlacat_ring_wait(bench->ring.client, 1);
    }
}

static void run_victim(void *arg)
{
    const struct victim *victim = arg;
    struct bench bench;
    struct trial slow;
    slow_make(&slow);
    if (victim->step == STEP_RINGS_OPEN) {
        raw_open(&bench.raw, victim->server->socket);
        REQUIRE(raw_rings_open(&bench.raw, &bench.rings).code == STATUS_OK);
    } else {
        bench_open(&bench, victim->server);
        go_to(&bench, &slow, victim->step);
    }
    child_ready();
    child_park();
}

/* Works on while it looks. */
static bool is_alone(struct bench *neighbour, pid_t server, uint32_t fds_nr)
{
    static uint64_t id = 100;
    bench_work(neighbour, ++id);
    struct counts counts = raw_stats(&neighbour->raw);
    uint64_t mapped_bytes =
        neighbour->trial.bytes + neighbour->rings.opened.client_bytes + neighbour->rings.opened.daemon_bytes;
    return counts.clients == 1 && counts.streams == 1 && counts.buffers == 1 && counts.calls_in_flight == 0 &&
           counts.mapped_bytes == mapped_bytes && descriptors_open(server, fds_nr) && memfds_mapped(server, 1) &&
           proc_maps(server, "mlacat-ring") == (gpu_memory_used() ? 4 : 2);
}

static void test_death_of_a_client_at_each_step_of_its_ring(void **state)
{
    struct server *server = *state;
    struct bench neighbour;
    bench_open(&neighbour, server);
    bench_work(&neighbour, 1);
    uint32_t fds_nr = proc_fds(server->pid);
    for (int i = 0; i < 2 * STEPS; i++) {
        struct victim victim = {server, (enum step)(i % STEPS)};
        struct child child;
        child_start(&child, run_victim, &victim);
        child_wait_ready(&child);
        bench_work(&neighbour, 2);
        child_kill(&child);
        print_message("killed: %s\n", step_names[victim.step]);
        WAIT_UNTIL(is_alone(&neighbour, server->pid, fds_nr));
    }
    bench_close(&neighbour);
}

/* Many at once, in the middle of whatever they do. */
static void run_busy_client(void *arg)
{
    const struct victim *victim = arg;
    for (;;) {
        struct bench bench;
        bench_open(&bench, victim->server);
        struct mlacat_ring_submission entry = bench_entry(&bench, 0);
        child_ready();
        for (entry.call_id = 0; entry.call_id < 2000; entry.call_id++) {
            raw_ring_send(&bench.ring, &entry);
            if (entry.call_id >= 20) {
                REQUIRE(raw_ring_next(&bench.ring).outcome.code == STATUS_OK);
            }
        }
        bench_close(&bench);
    }
}

static void test_death_of_many_busy_clients_with_rings(void **state)
{
    enum { CLIENTS = 6, ROUNDS = 5 };
    struct server *server = *state;
    struct victim victim = {server, STEPS};
    struct bench neighbour;
    bench_open(&neighbour, server);
    bench_work(&neighbour, 1);
    uint32_t fds_nr = proc_fds(server->pid);
    for (int round = 0; round < ROUNDS; round++) {
        struct child child[CLIENTS];
        for (int i = 0; i < CLIENTS; i++) {
            child_start(&child[i], run_busy_client, &victim);
        }
        for (int i = 0; i < CLIENTS; i++) {
            child_wait_ready(&child[i]);
            bench_work(&neighbour, 2);
        }
        for (int i = 0; i < CLIENTS; i++) {
            child_kill(&child[i]);
        }
        WAIT_UNTIL(is_alone(&neighbour, server->pid, fds_nr));
    }
    bench_close(&neighbour);
}

/* Clients see on the pidfd that the daemon is gone; what it had written stays readable. */
static void test_death_of_the_daemon_leaves_the_pages(void **state)
{
    struct server *server = *state;
    struct bench bench;
    bench_open(&bench, server);
    bench_work(&bench, 1);
    send_gated(&bench);
    server_kill(server);
    assert_int_equal(raw_ring_fence(&bench.ring), 1);
    assert_int_equal(mlacat_ring_completed(bench.ring.daemon), 1);
    bench.ring.client->submit_tail++; /* and writable */
    server_run(server);
    bench_close(&bench);
    bench_open(&bench, server);
    bench_work(&bench, 2);
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_death_of_a_client_at_each_step_of_its_ring),
        WITH_SERVER(test_death_of_many_busy_clients_with_rings),
        WITH_SERVER(test_death_of_the_daemon_leaves_the_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
