/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the daemon costs when nothing happens, and that nothing grows when much has happened. Counts are small; those of
 * a release (20 s of idleness, 10^6 calls, 10^5 registrations) are asked for by the variables that env_number names.
 */
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "mlacat_ring.h"
#include "proc.h"
#include "require.h"
#include "ring_bench.h"

#define CLIENTS 8
#define RINGS 64
#define RSS_KIB 8192
#define GROWTH_KIB 512

/* Lets nothing happen for a while; `raw` hears nothing. The daemon may use 0.2 % of a processor, once its threads look
 * on no more. */
static void spend_idle(const struct server *server, const struct raw *raw)
{
    uint64_t idle_ms = env_number("MLACAT_IDLE_MS", 1500);
    WAIT_UNTIL(proc_running(server->pid) == 0);
    uint64_t cpu_ns = proc_cpu_ns(server->pid);
    uint64_t switches = proc_switches(server->pid);
    struct pollfd poll_fd = {.fd = raw->fd, .events = POLLIN};
    assert_int_equal(poll(&poll_fd, 1, (int)idle_ms), 0); /* and nothing is said unasked */
    cpu_ns = proc_cpu_ns(server->pid) - cpu_ns;
    switches = proc_switches(server->pid) - switches;
    print_message("idle for %lu ms: %lu us of processor time, %lu context switches, RssAnon %lu KiB\n",
                  (unsigned long)idle_ms, (unsigned long)(cpu_ns / 1000), (unsigned long)switches,
                  (unsigned long)proc_status_kib(server->pid, "RssAnon"));
    if (!has_sanitizer()) { /* whose own threads and memory would be counted */
        assert_true(cpu_ns <= idle_ms * 1000000 / 500);
        assert_true(proc_status_kib(server->pid, "RssAnon") < RSS_KIB);
    }
}

static void test_idle_daemon_uses_no_processor(void **state)
{
    struct server *server = *state;
    struct raw raw[CLIENTS];
    struct trial trial;
    trial_make(&trial, &small_shape);
    for (int i = 0; i < CLIENTS; i++) {
        raw_open(&raw[i], server->socket);
        struct ref buffer = raw_must_register(&raw[i], trial.fd, trial.bytes);
        struct ref stream = raw_must_open_stream(&raw[i]);
        struct call call = trial_call(&trial, buffer, 1);
        raw_submit(&raw[i], stream, &call, 1);
        assert_int_equal(raw_wait(&raw[i], 1).code, STATUS_OK);
    }
    spend_idle(server, &raw[0]);
    for (int i = 0; i < CLIENTS; i++) {
        assert_true(raw_ready(&raw[i], NULL));
        raw_close(&raw[i]);
    }
    trial_free(&trial);
}

/* Nobody looks at rings through which nothing comes, though all have been used. */
static void test_idle_rings_use_no_processor(void **state)
{
    static struct raw_ring rings[RINGS];
    struct server *server = *state;
    struct bench bench;
    bench_open(&bench, server);
    rings[0] = bench.ring;
    for (int i = 1; i < RINGS; i++) {
        assert_int_equal(raw_ring_open(&bench.rings, &rings[i]).code, STATUS_OK);
    }
    struct mlacat_ring_submission entry = bench_entry(&bench, 1);
    for (int i = 0; i < RINGS; i++) {
        raw_ring_send(&rings[i], &entry);
        assert_int_equal(raw_ring_wait(&rings[i], 1).code, STATUS_OK);
    }
    for (int i = 0; i < RINGS; i++) {
        WAIT_UNTIL(mlacat_ring_daemon_sleeps(rings[i].daemon));
    }
    spend_idle(server, &bench.raw);
    for (int i = 0; i < RINGS; i++) {
        raw_ring_send(&rings[i], &entry);
        assert_int_equal(raw_ring_wait(&rings[i], 1).code, STATUS_OK);
    }
    for (int i = 1; i < RINGS; i++) {
        raw_ring_close(&rings[i]);
    }
    bench_close(&bench);
}

/* ------------------------------------------------------------------------------------------------------------- soak */

struct footprint {
    uint32_t fds_nr;
    uint32_t maps_nr;
    uint64_t anon_kib;
};

static struct footprint footprint_of(pid_t pid)
{
    return (struct footprint){proc_fds(pid), proc_maps(pid, ""), proc_status_kib(pid, "RssAnon")};
}

static void assert_flat(pid_t pid, const struct footprint *before)
{
    WAIT_UNTIL(proc_fds(pid) <= before->fds_nr); /* one of those may have been on its way out */
    WAIT_UNTIL(proc_maps(pid, MEMFD_NAME) <= 1);
    WAIT_UNTIL(proc_maps(pid, "") <= before->maps_nr || has_sanitizer());
    struct footprint after = footprint_of(pid);
    print_message("RssAnon %lu KiB before, %lu KiB after\n", (unsigned long)before->anon_kib,
                  (unsigned long)after.anon_kib);
    if (!has_sanitizer()) {
        assert_true(after.anon_kib <= before->anon_kib + GROWTH_KIB);
    }
}

static void register_and_release(struct raw *raw, uint64_t times)
{
    int fd = memfd_make(8192, F_SEAL_SHRINK);
    for (uint64_t i = 0; i < times; i++) {
        struct ref buffer = raw_must_register(raw, fd, 8192);
        REQUIRE(raw_unregister(raw, buffer).code == STATUS_OK);
    }
    close(fd);
}

static void test_idle_registrations_leave_nothing(void **state)
{
    struct server *server = *state;
    struct raw raw;
    uint64_t times = env_number("MLACAT_SOAK_REGISTRATIONS", 2000);
    raw_open(&raw, server->socket);
    register_and_release(&raw, 200);
    WAIT_UNTIL(raw_stats(&raw).mapped_bytes == 0);
    struct footprint before = footprint_of(server->pid);
    register_and_release(&raw, times);
    assert_flat(server->pid, &before);
    WAIT_UNTIL(raw_stats(&raw).mapped_bytes == 0);
    assert_int_equal(raw_stats(&raw).buffers, 0);
    raw_close(&raw);
}

static void run_calls(struct raw *raw, struct ref stream, const struct trial *trial, struct ref buffer, uint64_t times)
{
    enum { BATCH = 64 };
    struct call calls[BATCH];
    for (uint64_t done_nr = 0; done_nr < times; done_nr += BATCH) {
        for (uint64_t i = 0; i < BATCH; i++) {
            calls[i] = trial_call(trial, buffer, done_nr + i);
        }
        raw_submit(raw, stream, calls, BATCH);
        for (uint64_t i = 0; i < BATCH; i++) {
            REQUIRE(raw_wait(raw, done_nr + i).code == STATUS_OK);
        }
    }
}

static void test_idle_calls_leave_nothing(void **state)
{
    struct server *server = *state;
    struct raw raw;
    struct trial trial;
    uint64_t times = env_number("MLACAT_SOAK_CALLS", 20000);
    raw_open(&raw, server->socket);
    trial_make(&trial, &small_shape);
    struct ref buffer = raw_must_register(&raw, trial.fd, trial.bytes);
    struct ref stream = raw_must_open_stream(&raw);
    run_calls(&raw, stream, &trial, buffer, 2000);
    struct footprint before = footprint_of(server->pid);
    run_calls(&raw, stream, &trial, buffer, times);
    assert_flat(server->pid, &before);
    assert_true(trial_right(&trial));
    assert_true(raw_stats(&raw).outcomes[STATUS_OK] >= times);
    trial_free(&trial);
    raw_close(&raw);
}

static void come_and_go(struct server *server, const struct trial *trial, uint64_t times)
{
    for (uint64_t i = 0; i < times; i++) {
        struct raw raw;
        raw_open(&raw, server->socket);
        struct ref buffer = raw_must_register(&raw, trial->fd, trial->bytes);
        struct ref stream = raw_must_open_stream(&raw);
        struct call call = trial_call(trial, buffer, i);
        raw_submit(&raw, stream, &call, 1);
        if (i % 2 == 0) {
            REQUIRE(raw_wait(&raw, i).code == STATUS_OK);
        }
        raw_close(&raw);
    }
}

static void test_idle_clients_leave_nothing(void **state)
{
    struct server *server = *state;
    struct raw watcher;
    struct trial trial;
    raw_open(&watcher, server->socket);
    trial_make(&trial, &small_shape);
    come_and_go(server, &trial, 100);
    WAIT_UNTIL(raw_stats(&watcher).clients == 1 && raw_stats(&watcher).buffers == 0);
    struct footprint before = footprint_of(server->pid);
    come_and_go(server, &trial, env_number("MLACAT_SOAK_CLIENTS", 1000));
    WAIT_UNTIL(raw_stats(&watcher).clients == 1 && raw_stats(&watcher).buffers == 0);
    assert_flat(server->pid, &before);
    trial_free(&trial);
    raw_close(&watcher);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_idle_daemon_uses_no_processor),    WITH_SERVER(test_idle_rings_use_no_processor),
        WITH_SERVER(test_idle_registrations_leave_nothing), WITH_SERVER(test_idle_calls_leave_nothing),
        WITH_SERVER(test_idle_clients_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
