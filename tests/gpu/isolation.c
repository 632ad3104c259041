/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What bad clients do to the others: 64 streams of 8 processes on one daemon, alone, then beside three more, and alone
 * again: one never signals the event that its calls wait for; one has calls on many rings wait for a `ready` word that
 * never comes, cancels them and submits others without end; and one registers and releases memory as fast as it is
 * allowed. The others' p99 beside them may be 1.5 times their p99 alone, and no call may take longer than 3 ms.
 *
 *     gpu_isolation [--seconds 300] [--processes 8] [--streams 64] [--depth 1] [--workers N] [--spin-us N]
 *
 * MLACATD names the daemon. --seconds is the time beside the bad ones; the time alone is a tenth of it, but 5 s if that
 * is not more, before and again after: a machine may get slower or faster meanwhile. --workers and --spin-us are
 * options of the daemon, whose defaults depend on the CPUs.
 *
 * A process is one thread that has one call in flight (--depth: as many), on its streams in turn, and sleeps in the
 * kernel until the completion comes. So all streams are in use, but the machine needs a CPU for each process at most:
 * with 64 threads that spin on 16 CPUs the times would be those of the test's own turns on a CPU. "client" is what a
 * caller sees and what is judged: its own system calls and its wake-up are in it, in all phases alike. "daemon" is
 * from the daemon's receipt to the end of the call, as the completion tells. "machine" is how late threads run again
 * that do nothing but sleep for 200 us, wherever the scheduler puts them; "each CPU" the same with one bound to each.
 *
 * The rule for a call of more than 3 ms. It fails the test, unless the machine held threads up at that moment:
 *
 *     the call's time - the machine's part of a sleeping thread's lateness within the call's time <= 3 ms
 *
 * Of a thread that was late, two things can be ours: it was awake and waited while our processes (the daemon, the
 * clients, the meters) filled the CPUs, or they had used up the quota of the cgroup. The first can not have lasted
 * longer than the thread waited on a run queue; nor longer than the CPU time that our processes used from before its
 * sleep until it ran, divided by the CPUs on which it may run: they need that much to fill them all; nor, of a thread
 * that is bound to its CPU, longer than it was late without the time for which other programs ran there. So
 *
 *     the machine's part = lateness - the least of (its wait on a run queue, CPU time of ours / CPUs,
 *                                                   lateness - time of others on its CPU)
 *
 * and 0 if the cgroup's quota was used up meanwhile. A daemon that crowds the CPUs excuses nothing thereby. (A thread
 * that the scheduler leaves to wait while another CPU is free was held up by the machine.) Who ran on a CPU is told by
 * the kernel's context switches (isolation_switches.h). What can not be read counts as ours, but for the quota: where
 * no cgroup tells of one there is none. One call in 100,000 may be excused, at least one and at most 512; more than
 * that fail, whoever made them. But where a hypervisor took a five-hundredth of the CPUs' time meanwhile or more,
 * which holds up all calls in flight at once, again and again, a failure says nothing: that ends with status 75
 * (EX_TEMPFAIL). All of this is of the time beside the bad ones; the calls alone are not judged, but their longest
 * ones are printed too.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "cpus.h"
#include "gpu_memory.h"
#include "isolation.h"
#include "require.h"
#include "server.h"

#define SECONDS 300
#define ALONE_SECONDS_MIN 5
#define BAD 3 /* clients */

static struct child good[ISOLATION_PROCESSES_MAX];
static struct isolation_process process[ISOLATION_PROCESSES_MAX];

static void pass_time(uint64_t ms)
{
    const struct timespec time = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&time, NULL);
}

static struct isolation *share_table(void)
{
    void *memory = mmap(NULL, sizeof(struct isolation), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    return memory;
}

/* ---------------------------------------------------------------------------------------------------------- running */

/* A process whose use of CPUs counts as ours. */
static void start(struct isolation *shared, struct child *child, void (*main)(void *arg), struct isolation_process *arg)
{
    child_start(child, main, arg);
    isolation_use_add(&shared->users, child->pid);
}

static void measure(struct isolation *shared, int phase, uint64_t ms)
{
    isolation_kernel_read(&shared->before[phase], &shared->users, shared->daemon);
    atomic_store(&shared->phase, phase);
    pass_time(ms);
    isolation_kernel_read(&shared->after[phase], &shared->users, shared->daemon);
}

static void start_all(struct isolation *shared, struct child *machine)
{
    struct isolation_process any = {.shared = shared};
    for (int i = 0; i < shared->processes; i++) {
        process[i] = (struct isolation_process){shared, i};
        start(shared, &good[i], isolation_good, &process[i]);
    }
    for (int i = 0; i < shared->processes; i++) {
        child_wait_ready(&good[i]);
    }
    start(shared, machine, isolation_machine, &any);
    child_wait_ready(machine);
}

static void run(struct isolation *shared, uint64_t seconds)
{
    static void (*const bad_main[BAD])(void *arg) = {isolation_silent, isolation_never_ready, isolation_registering};
    struct child machine;
    struct child bad[BAD];
    struct isolation_process any = {.shared = shared};
    uint64_t least = seconds < ALONE_SECONDS_MIN ? seconds : ALONE_SECONDS_MIN;
    uint64_t alone = seconds / 10 > least ? seconds / 10 : least;
    start_all(shared, &machine);
    pass_time(500);
    measure(shared, ISOLATION_BEFORE, alone * 1000);
    atomic_store(&shared->phase, ISOLATION_READY);
    for (int i = 0; i < BAD; i++) {
        start(shared, &bad[i], bad_main[i], &any);
    }
    for (int i = 0; i < BAD; i++) {
        child_wait_ready(&bad[i]);
    }
    measure(shared, ISOLATION_TOGETHER, seconds * 1000);
    atomic_store(&shared->phase, ISOLATION_CALM);
    WAIT_UNTIL(atomic_load(&shared->gone) == BAD);
    pass_time(500);
    measure(shared, ISOLATION_AFTER, alone * 1000);
    atomic_store(&shared->phase, ISOLATION_END);
    for (int i = 0; i < shared->processes; i++) {
        child_join(&good[i]);
    }
    child_join(&machine);
    for (int i = 0; i < BAD; i++) {
        child_kill(&bad[i]);
    }
}

static uint64_t take_number(int *argc, char ***argv, const char *name, uint64_t value, uint64_t most)
{
    if (*argc < 3 || strcmp((*argv)[1], name) != 0) {
        return value;
    }
    value = strtoull((*argv)[2], NULL, 10);
    *argc -= 2;
    *argv += 2;
    if (value < 1 || value > most) {
        fprintf(stderr, "gpu_isolation: %s: 1 to %lu\n", name, (unsigned long)most);
        exit(2);
    }
    return value;
}

/* 0: as the daemon has it by itself. Ends the test here where there is no GPU. */
static void start_server(struct server *server, uint64_t workers, uint64_t spin_us)
{
    char options[256];
    int used = snprintf(options, sizeof(options), "device = %s\n", gpu_memory_device());
    if (workers > 0) {
        used += snprintf(options + used, sizeof(options) - (size_t)used, "workers = %lu\n", (unsigned long)workers);
    }
    if (spin_us > 0) {
        snprintf(options + used, sizeof(options) - (size_t)used, "spin_us = %lu\n", (unsigned long)spin_us);
    }
    server_start(server, options);
}

int main(int argc, char *argv[])
{
    struct isolation *shared = share_table();
    struct server server = {0};
    uint64_t seconds = SECONDS;
    uint64_t processes = 8;
    uint64_t streams = 64;
    uint64_t depth = 1;
    uint64_t workers = 0;
    uint64_t spin_us = 0;
    for (int left = 0; left != argc;) {
        left = argc;
        seconds = take_number(&argc, &argv, "--seconds", seconds, 86400);
        processes = take_number(&argc, &argv, "--processes", processes, ISOLATION_PROCESSES_MAX);
        streams = take_number(&argc, &argv, "--streams", streams, ISOLATION_PROCESSES_MAX * ISOLATION_STREAMS_MAX);
        depth = take_number(&argc, &argv, "--depth", depth, ISOLATION_STREAMS_MAX);
        workers = take_number(&argc, &argv, "--workers", workers, 64);
        spin_us = take_number(&argc, &argv, "--spin-us", spin_us, 10000);
    }
    shared->processes = (int)processes;
    shared->streams = (int)(streams / processes);
    shared->depth = (int)depth;
    if (argc != 1 || shared->streams < shared->depth || shared->streams > ISOLATION_STREAMS_MAX) {
        fprintf(stderr,
                "gpu_isolation: --seconds N --processes N --streams N --depth N --workers N --spin-us N; %d streams a "
                "process at most, and as many as its depth at least\n",
                ISOLATION_STREAMS_MAX);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    start_server(&server, workers, spin_us);
    shared->socket = server.socket;
    shared->daemon = server.pid;
    shared->cpus = (int)cpus_usable();
    isolation_use_add(&shared->users, server.pid);
    isolation_use_add(&shared->users, getpid());
    run(shared, seconds);
    enum isolation_result result = isolation_report(shared);
    if (result != ISOLATION_GOOD) {
        server_show_log(&server);
    }
    server_stop(&server);
    return result == ISOLATION_GOOD ? 0 : result == ISOLATION_BAD ? 1 : EX_TEMPFAIL;
}
