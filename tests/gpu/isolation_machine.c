/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How late this machine lets threads run that only sleep: what no service on it can be better than. Some sleep wherever
 * the scheduler puts them, and one is bound to each CPU. One that is late by ISOLATION_LATE_NS writes down how long it
 * waited for a CPU, how much CPU time our processes used meanwhile, and, if it is bound, who ran there.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "isolation.h"
#include "isolation_switches.h"
#include "require.h"

#define SLEEP_NS 200000u
#define BOUND_SLEEP_NS 500000u /* there are many of these */
#define USE_SLEEP_NS 1000000u
#define QUOTA_TURNS 64 /* of the thread that looks at the use of CPUs */
#define WAIT_TURNS 16  /* after so many sleeps a thread looks how long it has waited so far */
#define SLACK_NS 1000  /* the kernel's default would add 50 us */

struct meter {
    struct isolation *shared;
    int index;
    int cpu; /* < 0: any */
};

/* What our processes have used, as of a moment that has passed. One thread writes it. */
static struct {
    _Atomic uint64_t at_ns;
    _Atomic uint64_t daemon_ns;
    _Atomic uint64_t test_ns;
    _Atomic uint64_t throttled; /* times; of a moment that has passed longer ago */
} known;

static uint64_t sleep_for(uint64_t ns)
{
    const struct timespec time = {.tv_nsec = (long)ns};
    uint64_t due_ns = clock_now_ns() + ns;
    nanosleep(&time, NULL);
    return due_ns;
}

static int phase_of(const struct isolation *shared)
{
    return atomic_load_explicit(&shared->phase, memory_order_relaxed);
}

static void *look_at_use(void *arg)
{
    struct isolation *shared = arg;
    prctl(PR_SET_TIMERSLACK, SLACK_NS);
    for (unsigned turn = 0; phase_of(shared) < ISOLATION_END; turn++) {
        struct isolation_use use;
        uint64_t now_ns = clock_now_ns();
        if (turn % QUOTA_TURNS == 0) {
            atomic_store(&known.throttled, isolation_quota_read().times);
        }
        if (isolation_use_read(&shared->users, &use)) {
            atomic_store(&known.at_ns, now_ns);
            atomic_store(&known.daemon_ns, use.daemon_ns);
            atomic_store(&known.test_ns, use.test_ns);
        }
        sleep_for(USE_SLEEP_NS);
    }
    return NULL;
}

/* What is known before a sleep. */
static struct isolation_late begin(void)
{
    return (struct isolation_late){.since_ns = atomic_load_explicit(&known.at_ns, memory_order_relaxed),
                                   .use = {atomic_load_explicit(&known.daemon_ns, memory_order_relaxed),
                                           atomic_load_explicit(&known.test_ns, memory_order_relaxed)}};
}

/* `late` has what was known before the sleep. */
static void complete(const struct isolation *shared, struct isolation_switches *switches, struct isolation_late *late,
                     uint64_t throttled, uint64_t waited_before_ns, uint64_t waited_ns)
{
    struct isolation_use use;
    bool waited_known = waited_before_ns != UINT64_MAX && waited_ns != UINT64_MAX;
    late->use_known = late->since_ns != 0 && isolation_use_read(&shared->users, &use);
    if (late->use_known) {
        late->use = (struct isolation_use){use.daemon_ns - late->use.daemon_ns, use.test_ns - late->use.test_ns};
    }
    late->waited_ns = waited_known ? waited_ns - waited_before_ns : late->ran_ns - late->due_ns;
    late->throttled = isolation_quota_read().times > throttled;
    if (switches) {
        late->holders = isolation_switches_between(switches, &shared->users, late->due_ns, late->ran_ns);
    }
}

static void bind(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    sched_setaffinity(0, sizeof(set), &set); /* refused: a CPU that has gone meanwhile; then it measures another one */
}

static void *measure(void *arg)
{
    const struct meter *meter = arg;
    struct isolation *shared = meter->shared;
    int schedstat = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    struct isolation_switches *switches = NULL;
    uint64_t waited_before_ns = 0;
    int phase;
    prctl(PR_SET_TIMERSLACK, SLACK_NS);
    if (meter->cpu >= 0) {
        bind(meter->cpu);
        switches = isolation_switches_open(meter->cpu);
        if (!switches) {
            shared->switches_errno = errno;
        }
    }
    for (unsigned turn = 0; (phase = phase_of(shared)) < ISOLATION_END; turn++) {
        if (turn % WAIT_TURNS == 0) {
            waited_before_ns = isolation_waited_ns(schedstat);
            if (switches) {
                isolation_switches_take(switches);
            }
        }
        struct isolation_late late = begin();
        uint64_t throttled = atomic_load_explicit(&known.throttled, memory_order_relaxed);
        late.due_ns = sleep_for(meter->cpu < 0 ? SLEEP_NS : BOUND_SLEEP_NS);
        late.ran_ns = clock_now_ns();
        uint64_t late_ns = late.ran_ns > late.due_ns ? late.ran_ns - late.due_ns : 0;
        isolation_note(&shared->machine[meter->index][phase], late_ns);
        if (late_ns >= ISOLATION_LATE_NS) {
            complete(shared, switches, &late, throttled, waited_before_ns, isolation_waited_ns(schedstat));
            isolation_keep_late(&shared->lates[meter->index][phase], &late);
            waited_before_ns = isolation_waited_ns(schedstat);
        }
    }
    if (switches) {
        isolation_switches_close(switches);
    }
    close(schedstat);
    return NULL;
}

/* One for each CPU, the first ones where there are very many. */
static int bound_meters(struct isolation *shared, struct meter *meter)
{
    cpu_set_t set;
    int nr = 0;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof(set), &set);
    for (int cpu = 0; cpu < CPU_SETSIZE && nr < ISOLATION_BOUND_METERS_MAX; cpu++) {
        if (CPU_ISSET((size_t)cpu, &set)) {
            meter[nr] = (struct meter){shared, ISOLATION_FREE_METERS + nr, cpu};
            nr++;
        }
    }
    return nr;
}

void isolation_machine(void *arg)
{
    const struct isolation_process *process = arg;
    struct isolation *shared = process->shared;
    struct meter meter[ISOLATION_METERS_MAX];
    pthread_t thread[ISOLATION_METERS_MAX];
    pthread_t use;
    for (int i = 0; i < ISOLATION_FREE_METERS; i++) {
        meter[i] = (struct meter){shared, i, -1};
    }
    shared->meters = ISOLATION_FREE_METERS + bound_meters(shared, meter + ISOLATION_FREE_METERS);
    REQUIRE(pthread_create(&use, NULL, look_at_use, shared) == 0);
    for (int i = 0; i < shared->meters; i++) {
        for (int phase = 0; phase < ISOLATION_PHASES; phase++) {
            shared->lates[i][phase].cpus = meter[i].cpu < 0 ? shared->cpus : 1;
        }
        REQUIRE(pthread_create(&thread[i], NULL, measure, &meter[i]) == 0);
    }
    child_ready();
    for (int i = 0; i < shared->meters; i++) {
        pthread_join(thread[i], NULL);
    }
    pthread_join(use, NULL);
}
