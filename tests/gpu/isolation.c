/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What bad clients do to the others: 64 streams of 8 processes on one daemon, first alone, then beside three more:
 * one never signals the event that its calls wait for; one has calls on many rings wait for a `ready` word that never
 * comes, cancels them and submits others without end; and one registers and releases memory as fast as it is allowed.
 * The others' p99 beside them may be 1.5 times their p99 alone, and no call may take longer than 3 ms.
 *
 *     gpu_isolation [--seconds 300] [--processes 8] [--streams 64] [--depth 1]      MLACATD names the daemon
 *
 * --seconds is the time beside the bad ones; the time alone is a fifth of it, but 5 s if that is not more.
 *
 * A process is one thread that has one call in flight (--depth: as many), on its streams in turn, and sleeps in the
 * kernel until the completion comes. So all streams are in use, but the machine needs a CPU for each process at most:
 * with 64 threads that spin on 16 CPUs the times would be those of the test's own turns on a CPU. "client" is what a
 * caller sees and what is judged: its own system calls and its wake-up are in it, in both phases alike. "daemon" is
 * from the daemon's receipt to the end of the call, as the completion tells; a maximum that is in the first and not in
 * the second was made by the scheduler. "machine" is how late threads run again that do nothing but sleep for 200 us.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "gpu_memory.h"
#include "isolation.h"
#include "require.h"
#include "server.h"

#define SECONDS 300
#define ALONE_SECONDS_MIN 5
#define RATIO_MAX 1.5
#define LONGEST_NS 3000000u

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

/* ------------------------------------------------------------------------------------------------------- the report */

static void add(struct isolation_times *sum, const struct isolation_times *one)
{
    for (int i = 0; i < HISTOGRAM_BUCKETS; i++) {
        sum->histogram.counts[i] += one->histogram.counts[i];
    }
    sum->histogram.total += one->histogram.total;
    sum->max_ns = one->max_ns > sum->max_ns ? one->max_ns : sum->max_ns;
}

static struct isolation_times sum_of(const struct isolation *shared, int phase, bool daemon)
{
    struct isolation_times sum = {0};
    for (int i = 0; i < shared->processes; i++) {
        const struct isolation_row *row = &shared->row[i];
        add(&sum, daemon ? &row->daemon[phase] : &row->client[phase]);
    }
    return sum;
}

static struct isolation_times machine_of(const struct isolation *shared, int phase)
{
    struct isolation_times sum = {0};
    for (int i = 0; i < ISOLATION_METERS; i++) {
        add(&sum, &shared->machine[i][phase]);
    }
    return sum;
}

static void print_times(const char *phase, const char *where, const struct isolation_times *times)
{
    printf("%-10s %-8s %12lu %9.1f %9.1f %9.1f %9.1f\n", phase, where, (unsigned long)times->histogram.total,
           (double)histogram_quantile(&times->histogram, 0.5) / 1e3,
           (double)histogram_quantile(&times->histogram, 0.99) / 1e3,
           (double)histogram_quantile(&times->histogram, 0.999) / 1e3, (double)times->max_ns / 1e3);
}

static void print_phase(const struct isolation *shared, const char *name, int phase)
{
    struct isolation_times client = sum_of(shared, phase, false);
    struct isolation_times daemon = sum_of(shared, phase, true);
    struct isolation_times machine = machine_of(shared, phase);
    print_times(name, "client", &client);
    print_times(name, "daemon", &daemon);
    print_times(name, "machine", &machine);
}

static void print_bad(const struct isolation *shared)
{
    unsigned long refusals = (unsigned long)shared->refusals;
    printf("beside them: %lu calls that never run, %lu in rings, cancelled and given again; %lu registrations and "
           "calls that bring their memory, %lu refused\n",
           (unsigned long)shared->gated, (unsigned long)shared->gated_in_rings, (unsigned long)shared->registrations,
           refusals);
    if (refusals > 0) {
        printf("the last refusal: %s\n", shared->refusal);
    }
}

static bool report(const struct isolation *shared)
{
    struct isolation_times alone = sum_of(shared, ISOLATION_ALONE, false);
    struct isolation_times together = sum_of(shared, ISOLATION_TOGETHER, false);
    struct isolation_times machine = machine_of(shared, ISOLATION_TOGETHER);
    double ratio =
        (double)histogram_quantile(&together.histogram, 0.99) / (double)histogram_quantile(&alone.histogram, 0.99);
    printf("%-10s %-8s %12s %9s %9s %9s %9s\n", "", "", "times", "p50 us", "p99 us", "p99.9 us", "max us");
    print_phase(shared, "alone", ISOLATION_ALONE);
    print_phase(shared, "together", ISOLATION_TOGETHER);
    print_bad(shared);
    bool steady = ratio <= RATIO_MAX;
    bool prompt = together.max_ns <= LONGEST_NS;
    printf("p99 together / alone: %.2f (at most %.1f): %s\n", ratio, RATIO_MAX, steady ? "ok" : "FAILED");
    printf("longest call: %.2f ms (at most %.0f): %s; alone %.2f ms; a thread that only sleeps was late by %.2f ms\n",
           (double)together.max_ns / 1e6, (double)LONGEST_NS / 1e6, prompt ? "ok" : "FAILED",
           (double)alone.max_ns / 1e6, (double)machine.max_ns / 1e6);
    if (gpu_memory_is_fake()) {
        printf("not judged: these are figures of the CPU that plays the GPU\n");
        steady = prompt = true;
    }
    return steady && prompt && alone.histogram.total > 0 && together.histogram.total > 0;
}

/* ---------------------------------------------------------------------------------------------------------- running */

static void run(struct isolation *shared, uint64_t seconds)
{
    struct child machine;
    struct child silent;
    struct child never_ready;
    struct child registering;
    struct isolation_process bad = {.shared = shared};
    uint64_t least = seconds < ALONE_SECONDS_MIN ? seconds : ALONE_SECONDS_MIN;
    uint64_t alone = seconds / 5 > least ? seconds / 5 : least;
    for (int i = 0; i < shared->processes; i++) {
        process[i] = (struct isolation_process){shared, i};
        child_start(&good[i], isolation_good, &process[i]);
    }
    for (int i = 0; i < shared->processes; i++) {
        child_wait_ready(&good[i]);
    }
    child_start(&machine, isolation_machine, &bad);
    child_wait_ready(&machine);
    pass_time(500);
    atomic_store(&shared->phase, ISOLATION_ALONE);
    pass_time(alone * 1000);
    atomic_store(&shared->phase, ISOLATION_READY);
    child_start(&silent, isolation_silent, &bad);
    child_start(&never_ready, isolation_never_ready, &bad);
    child_start(&registering, isolation_registering, &bad);
    child_wait_ready(&silent);
    child_wait_ready(&never_ready);
    child_wait_ready(&registering);
    atomic_store(&shared->phase, ISOLATION_TOGETHER);
    pass_time(seconds * 1000);
    atomic_store(&shared->phase, ISOLATION_END);
    for (int i = 0; i < shared->processes; i++) {
        child_join(&good[i]);
    }
    child_join(&machine);
    child_join(&registering);
    child_join(&never_ready);
    child_kill(&silent);
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

int main(int argc, char *argv[])
{
    struct isolation *shared = share_table();
    struct server server = {0};
    uint64_t seconds = SECONDS;
    uint64_t processes = 8;
    uint64_t streams = 64;
    uint64_t depth = 1;
    for (int left = 0; left != argc;) {
        left = argc;
        seconds = take_number(&argc, &argv, "--seconds", seconds, 86400);
        processes = take_number(&argc, &argv, "--processes", processes, ISOLATION_PROCESSES_MAX);
        streams = take_number(&argc, &argv, "--streams", streams, ISOLATION_PROCESSES_MAX * ISOLATION_STREAMS_MAX);
        depth = take_number(&argc, &argv, "--depth", depth, ISOLATION_STREAMS_MAX);
    }
    shared->processes = (int)processes;
    shared->streams = (int)(streams / processes);
    shared->depth = (int)depth;
    if (argc != 1 || shared->streams < shared->depth || shared->streams > ISOLATION_STREAMS_MAX) {
        fprintf(stderr,
                "gpu_isolation: --seconds N --processes N --streams N --depth N; %d streams a process at most, "
                "and as many as its depth at least\n",
                ISOLATION_STREAMS_MAX);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    char device[128];
    snprintf(device, sizeof(device), "device = %s\n", gpu_memory_device()); /* and ends here where there is no GPU */
    server_start(&server, device);
    shared->socket = server.socket;
    run(shared, seconds);
    bool good_enough = report(shared);
    if (!good_enough) {
        server_show_log(&server);
    }
    server_stop(&server);
    return good_enough ? 0 : 1;
}
