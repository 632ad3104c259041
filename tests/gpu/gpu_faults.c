/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes wrong around the daemon on a real GPU, and who notices: clients and daemons that are killed, memory that is
 * used up, a GPU that other processes break (MPS), several GPUs.
 *
 *     gpu_faults [case ...]      MLACATD names the daemon
 *
 * This process never starts CUDA: all that does is a child of its own, so that it can be killed and started again.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "gpu_faults.h"
#include "require.h"
#include "server.h"

#define SKIPPED 77
#define KILLS 3
#define CALLS_AFTER 100

static struct faults *faults;
static struct server server;

static void start_daemon(void)
{
    char options[160];
    snprintf(options, sizeof(options), "device = %s\n", faults->uuid[0]);
    server_start(&server, options);
    snprintf(faults->socket, sizeof(faults->socket), "%s", server.socket);
}

/* Waits until somebody has done `nr` more calls, rightly. */
static void wait_for_calls(_Atomic uint64_t *calls, uint64_t nr)
{
    uint64_t wanted = atomic_load(calls) + nr;
    WAIT_UNTIL(atomic_load(calls) >= wanted);
}

/* A client dies with calls queued and running, again and again; its neighbour does not notice. */
static void case_neighbour(void)
{
    struct child neighbour;
    struct child victim;
    start_daemon();
    child_start(&neighbour, faults_run_calls, faults);
    child_wait_ready(&neighbour);
    for (int i = 0; i < KILLS; i++) {
        child_start(&victim, faults_queue_calls, faults);
        child_wait_ready(&victim);
        child_kill(&victim);
        wait_for_calls(&faults->raw_calls, CALLS_AFTER);
    }
    atomic_store(&faults->stop, true);
    child_join(&neighbour);
    server_stop(&server);
}

/* The daemon dies with work queued, again and again. A process with kernels of its own on the same GPU goes on, under
 * MPS too; a client of libmlacat is served by the next daemon. */
static void case_daemon_killed(void)
{
    struct child bystander;
    struct child client;
    struct child busy;
    start_daemon();
    child_start(&bystander, faults_run_copies, faults);
    child_start(&client, faults_run_library, faults);
    child_wait_ready(&bystander);
    child_wait_ready(&client);
    for (int i = 0; i < KILLS; i++) {
        wait_for_calls(&faults->library_calls, CALLS_AFTER);
        child_start(&busy, faults_queue_calls, faults);
        child_wait_ready(&busy);
        server_kill(&server);
        wait_for_calls(&faults->copies, CALLS_AFTER);
        child_kill(&busy);
        server_run(&server);
        wait_for_calls(&faults->library_calls, CALLS_AFTER);
        wait_for_calls(&faults->copies, CALLS_AFTER);
    }
    printf("  %d daemons killed; calls that ended with UNAVAILABLE: %lu\n", KILLS,
           (unsigned long)atomic_load(&faults->unavailable));
    atomic_store(&faults->stop, true);
    child_join(&bystander);
    child_join(&client);
    server_stop(&server);
}

/* Memory that its owner frees is there for other processes within 300 ms: released by its owner before, and without a
 * release, through libmlacat, which looks after what it has registered. */
static void case_give_back(void)
{
    start_daemon();
    for (int by_itself = 0; by_itself <= 1; by_itself++) {
        struct child watcher;
        struct child owner;
        atomic_store(&faults->freed_ns, 0);
        atomic_store(&faults->taken_free_bytes, 0);
        atomic_store(&faults->stop, false);
        child_start(&watcher, faults_watch_memory, faults);
        child_wait_ready(&watcher);
        child_start(&owner, by_itself ? faults_free_registered : faults_free_released, faults);
        child_join(&watcher);
        printf("  %s: another process saw the memory %lu ms after the free\n",
               by_itself ? "registered with libmlacat" : "released", (unsigned long)atomic_load(&faults->seen_ms));
        atomic_store(&faults->stop, true);
        child_join(&owner);
        REQUIRE(atomic_load(&faults->seen_ms) <= 300);
    }
    server_stop(&server);
}

/* Nobody has a byte left: a client is told, the others go on; a daemon that starts says why it has no GPU, or ends. */
static void case_out_of_memory(void)
{
    struct child neighbour;
    struct child hog;
    struct child late;
    if (getenv("MLACAT_FAKE_CUDA")) {
        printf("  left out: each process of the fake driver has memory of its own\n");
        return;
    }
    start_daemon();
    child_start(&neighbour, faults_run_calls, faults);
    child_wait_ready(&neighbour);
    child_start(&late, faults_register_small, faults); /* its context is there before the memory goes */
    child_wait_ready(&late);
    child_start(&hog, faults_take_all_memory, faults);
    child_wait_ready(&hog);
    atomic_store(&faults->freed_ns, 1); /* now it registers */
    wait_for_calls(&faults->raw_calls, CALLS_AFTER);
    child_join(&late);
    atomic_store(&faults->stop, true);
    child_join(&neighbour);
    uint64_t pieces = atomic_load(&faults->pieces);
    server_kill(&server);
    WAIT_UNTIL(atomic_load(&faults->pieces) > pieces); /* what the daemon had is taken too */
    server_launch(&server);
    WAIT_UNTIL(server_log_has(&server, "level=error") || server_log_has(&server, "level=warning"));
    child_kill(&hog);
    int status = 0;
    if (waitpid(server.pid, &status, WNOHANG) == server.pid) {
        printf("  a daemon without memory ended with status 0x%x\n", (unsigned)status);
        REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) != 0);
        server_run(&server);
    }
    uint64_t end_ms = now_ms() + WAIT_MS;
    while (!faults_is_served(faults)) {
        REQUIRE(now_ms() < end_ms, "a new client is not served: %s", faults->reason);
        nap();
    }
    server_stop(&server);
}

/* MPS: a process is killed in a long kernel, which takes every process of the GPU with it. The daemon says so and ends;
 * one that is started again is of use as soon as MPS is. */
static void case_sticky(void)
{
    struct child victim;
    struct child client;
    bool ended = false;
    bool served = false;
    if (!getenv("CUDA_MPS_PIPE_DIRECTORY") || getenv("MLACAT_FAKE_CUDA")) {
        printf("  left out: only under MPS does one process break another one's GPU\n");
        return;
    }
    start_daemon();
    child_start(&client, faults_run_calls, faults);
    child_wait_ready(&client);
    wait_for_calls(&faults->raw_calls, CALLS_AFTER);
    child_start(&victim, faults_run_long_kernels, faults);
    child_wait_ready(&victim);
    child_kill(&victim);
    uint64_t start_ms = now_ms();
    while (!served && now_ms() < start_ms + 4 * (uint64_t)WAIT_MS) {
        int status;
        if (waitpid(server.pid, &status, WNOHANG) == server.pid) {
            printf("  after %lu ms the daemon had ended with status 0x%x\n", (unsigned long)(now_ms() - start_ms),
                   (unsigned)status);
            REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) != 0);
            ended = true;
            server_launch(&server); /* as a service manager does */
        }
        served = faults_is_served(faults);
    }
    if (!served || (ended && !server_log_has(&server, "event=device_lost"))) {
        server_show_log(&server);
    }
    REQUIRE(served, "a new client is not served: %s", faults->reason);
    REQUIRE(!ended || server_log_has(&server, "event=device_lost"));
    printf("  %s; a new client was served after %lu ms\n", ended ? "started again" : "the daemon survived",
           (unsigned long)(now_ms() - start_ms));
    atomic_store(&faults->stop, true);
    waitpid(client.pid, NULL, 0); /* its own context is broken with the others: it may have ended by a failed check */
    server_stop(&server);
}

/* One daemon with two GPUs, and clients that see them under other numbers. */
static void case_two_gpus(void)
{
    char options[200];
    struct child client;
    if (faults->devices < 2) {
        printf("  left out: there is one GPU\n");
        return;
    }
    snprintf(options, sizeof(options), "device = %s, %s\n", faults->uuid[0], faults->uuid[1]);
    server_start(&server, options);
    snprintf(faults->socket, sizeof(faults->socket), "%s", server.socket);
    child_start(&client, faults_use_both, faults);
    child_join(&client);
    child_start(&client, faults_use_second_as_first, faults);
    child_join(&client);
    server_stop(&server);
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"neighbour", case_neighbour},         {"daemon_killed", case_daemon_killed}, {"give_back", case_give_back},
    {"out_of_memory", case_out_of_memory}, {"two_gpus", case_two_gpus},           {"sticky", case_sticky},
};

static bool is_wanted(int argc, char *argv[], const char *name)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0) {
            return true;
        }
    }
    return argc == 1;
}

int main(int argc, char *argv[])
{
    struct child look;
    setvbuf(stdout, NULL, _IOLBF, 0);
    faults = mmap(NULL, sizeof(*faults), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(faults != MAP_FAILED);
    child_start(&look, faults_look, faults);
    child_join(&look);
    if (faults->devices == 0) {
        printf("SKIPPED: %s\n", faults->reason);
        return SKIPPED;
    }
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (is_wanted(argc, argv, cases[i].name)) {
            printf("%s\n", cases[i].name);
            atomic_store(&faults->stop, false);
            atomic_store(&faults->freed_ns, 0);
            cases[i].run();
        }
    }
    printf("gpu_faults: all passed\n");
    return 0;
}
