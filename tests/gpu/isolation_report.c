/* SPDX-License-Identifier: Apache-2.0 */
/* What gpu_isolation prints, and whether it is as it should be; the rule stands in isolation.c. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "gpu_memory.h"
#include "isolation.h"

#define RATIO_MAX 1.5
#define CALLS_SHOWN 8

/* ----------------------------------------------------------------------------------------------------- adding it up */

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

static struct isolation_times machine_of(const struct isolation *shared, int phase, int from, int to)
{
    struct isolation_times sum = {0};
    for (int i = from; i < to; i++) {
        add(&sum, &shared->machine[i][phase]);
    }
    return sum;
}

static struct isolation_times alone_of(const struct isolation *shared)
{
    struct isolation_times sum = sum_of(shared, ISOLATION_BEFORE, false);
    struct isolation_times after = sum_of(shared, ISOLATION_AFTER, false);
    add(&sum, &after);
    return sum;
}

static struct isolation_longest longest_of(const struct isolation *shared, int phase, uint64_t *over)
{
    struct isolation_longest longest = {0};
    *over = 0;
    for (int i = 0; i < shared->processes; i++) {
        const struct isolation_longest *one = &shared->row[i].longest[phase];
        *over += shared->row[i].over[phase];
        for (int k = 0; k < one->nr; k++) {
            isolation_keep_call(&longest, &one->call[k]);
        }
    }
    return longest;
}

static int lates_of(const struct isolation *shared, int phase, const struct isolation_lates *lates[])
{
    for (int i = 0; i < shared->meters; i++) {
        lates[i] = &shared->lates[i][phase];
    }
    return shared->meters;
}

/* -------------------------------------------------------------------------------------------------------- the table */

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
    struct isolation_times machine = machine_of(shared, phase, 0, ISOLATION_FREE_METERS);
    struct isolation_times each_cpu = machine_of(shared, phase, ISOLATION_FREE_METERS, shared->meters);
    print_times(name, "client", &client);
    print_times(name, "daemon", &daemon);
    print_times(name, "machine", &machine);
    print_times(name, "each CPU", &each_cpu);
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

/* ------------------------------------------------------------------------------------------------ the longest calls */

static void print_held(const struct isolation_held *held)
{
    const struct isolation_late *worst = held->worst;
    if (worst == NULL) {
        printf("no sleeping thread late by %.0f ms then\n", (double)ISOLATION_LATE_NS / 1e6);
        return;
    }
    double ns = (double)(worst->ran_ns - worst->since_ns);
    printf(
        "sleeping threads late by %.2f ms of it, the machine's part %.2f; one was late by %.2f in all and waited %.2f "
        "for %s",
        (double)held->late_ns / 1e6, (double)held->machine_ns / 1e6, (double)(worst->ran_ns - worst->due_ns) / 1e6,
        (double)worst->waited_ns / 1e6, held->cpus == 1 ? "its one CPU" : "a CPU");
    if (worst->holders.longest_ns > 0) {
        printf(", where other programs ran for %.2f; longest of all %s%s: %.2f", (double)worst->holders.others_ns / 1e6,
               worst->holders.longest_is_other ? "another's, " : "", worst->holders.longest,
               (double)worst->holders.longest_ns / 1e6);
    }
    if (worst->use_known) {
        printf("; CPUs in use then: daemon %.1f, test %.1f\n", (double)worst->use.daemon_ns / ns,
               (double)worst->use.test_ns / ns);
    } else {
        printf("; CPUs in use then: not readable\n");
    }
    if (worst->throttled) {
        printf("           (the quota of the cgroup was used up: that excuses nothing)\n");
    }
}

static void print_longest(const struct isolation *shared, const char *name, int phase)
{
    const struct isolation_lates *lates[ISOLATION_METERS_MAX];
    int lates_nr = lates_of(shared, phase, lates);
    uint64_t lost = 0;
    uint64_t over;
    struct isolation_longest longest = longest_of(shared, phase, &over);
    printf("%-10s the longest calls; ms: in all = daemon's queue + device + outside of the daemon\n", name);
    for (int i = 0; i < longest.nr; i++) {
        const struct isolation_call *call = &longest.call[i];
        if (i >= CALLS_SHOWN && isolation_excused(call, lates, lates_nr)) {
            continue; /* shown are all that fail the test */
        }
        struct isolation_held held = isolation_held_up(lates, lates_nr, call->begin_ns, call->end_ns);
        uint64_t call_ns = call->end_ns - call->begin_ns;
        double outside_ns = (double)call_ns - (double)call->queue_ns - (double)call->device_ns;
        printf("  process %d stream %d at %.4f s: %.2f = %.2f + %.2f + %.2f; ", call->process, call->stream,
               (double)(call->begin_ns - shared->before[phase].at_ns) / 1e9, (double)call_ns / 1e6,
               (double)call->queue_ns / 1e6, (double)call->device_ns / 1e6, outside_ns / 1e6);
        print_held(&held);
    }
    for (int i = 0; i < lates_nr; i++) {
        lost += lates[i]->lost;
    }
    if (lost > 0) {
        printf("  %lu more times a sleeping thread was late, for which there was no room: they excuse nothing\n",
               (unsigned long)lost);
    }
}

/* ------------------------------------------------------------------------------------------------------ the verdict */

static bool judge_longest(const struct isolation *shared, const struct isolation_times *alone,
                          const struct isolation_times *together)
{
    const struct isolation_lates *lates[ISOLATION_METERS_MAX];
    int lates_nr = lates_of(shared, ISOLATION_TOGETHER, lates);
    struct isolation_times machine = machine_of(shared, ISOLATION_TOGETHER, 0, ISOLATION_FREE_METERS);
    uint64_t over;
    struct isolation_longest longest = longest_of(shared, ISOLATION_TOGETHER, &over);
    struct isolation_verdict verdict = isolation_judge(&longest, together->histogram.total, over, lates, lates_nr);
    printf("longest call: %.2f ms (at most %.0f)", (double)together->max_ns / 1e6, (double)ISOLATION_LONGEST_NS / 1e6);
    if (over > 0) {
        const struct isolation_call *call = &longest.call[0];
        struct isolation_held held = isolation_held_up(lates, lates_nr, call->begin_ns, call->end_ns);
        printf(", of which the machine held threads up for %.2f ms at that time", (double)held.machine_ns / 1e6);
    }
    printf(": %s; alone %.2f ms; a thread that only sleeps was late by %.2f ms\n", verdict.ok ? "ok" : "FAILED",
           (double)alone->max_ns / 1e6, (double)machine.max_ns / 1e6);
    if (over > 0) {
        printf("calls over %.0f ms: %lu of %lu (at most %lu here), %lu of them made so by the machine (must be all)\n",
               (double)ISOLATION_LONGEST_NS / 1e6, (unsigned long)over, (unsigned long)together->histogram.total,
               (unsigned long)verdict.allowed, (unsigned long)verdict.excused);
    }
    return verdict.ok;
}

/* Of the time beside the bad ones. */
static bool is_noisy(const struct isolation *shared)
{
    const struct isolation_kernel *from = &shared->before[ISOLATION_TOGETHER];
    const struct isolation_kernel *to = &shared->after[ISOLATION_TOGETHER];
    return from->stolen_known && to->stolen_known &&
           isolation_is_noisy(to->stolen_ns - from->stolen_ns, to->at_ns - from->at_ns,
                              (int)sysconf(_SC_NPROCESSORS_ONLN)); /* of all CPUs it was taken */
}

enum isolation_result isolation_report(const struct isolation *shared)
{
    static const struct {
        const char *name;
        int phase;
    } shown[] = {{"before", ISOLATION_BEFORE}, {"together", ISOLATION_TOGETHER}, {"after", ISOLATION_AFTER}};
    struct isolation_times alone = alone_of(shared);
    struct isolation_times together = sum_of(shared, ISOLATION_TOGETHER, false);
    double ratio =
        (double)histogram_quantile(&together.histogram, 0.99) / (double)histogram_quantile(&alone.histogram, 0.99);
    for (int i = 0; i < 3; i++) {
        print_longest(shared, shown[i].name, shown[i].phase);
    }
    if (shared->switches_errno != 0) {
        printf(
            "who ran on a CPU is not known (perf_event_open: %s): a wait for one CPU counts as ours; run it as root\n",
            strerror(shared->switches_errno));
    }
    for (int i = 0; i < 3; i++) {
        int phase = shown[i].phase;
        isolation_kernel_print(shown[i].name, &shared->before[phase], &shared->after[phase], shared->cpus);
    }
    printf("%-10s %-8s %12s %9s %9s %9s %9s\n", "", "", "times", "p50 us", "p99 us", "p99.9 us", "max us");
    for (int i = 0; i < 3; i++) {
        print_phase(shared, shown[i].name, shown[i].phase);
    }
    print_bad(shared);
    bool steady = ratio <= RATIO_MAX;
    printf("p99 together / alone (before and after): %.2f (at most %.1f): %s\n", ratio, RATIO_MAX,
           steady ? "ok" : "FAILED");
    bool prompt = judge_longest(shared, &alone, &together);
    if (gpu_memory_is_fake()) {
        printf("not judged: these are figures of the CPU that plays the GPU\n");
        steady = prompt = true;
    }
    if (steady && prompt && alone.histogram.total > 0 && together.histogram.total > 0) {
        return ISOLATION_GOOD;
    }
    if (is_noisy(shared)) {
        printf("not judged: a hypervisor took more than 1/%d of the CPUs meanwhile; run it again on a quiet machine\n",
               ISOLATION_QUIET_SHARE);
        return ISOLATION_NOISY;
    }
    return ISOLATION_BAD;
}
