/* SPDX-License-Identifier: Apache-2.0 */
/* How late this machine lets threads run that only sleep: what no service on it can be better than. */
#include <pthread.h>
#include <sys/prctl.h>
#include <time.h>

#include "clock.h"
#include "isolation.h"
#include "require.h"

#define SLEEP_NS 200000u
#define SLACK_NS 1000 /* the kernel's default would add 50 us */

struct meter {
    struct isolation *shared;
    struct isolation_times *times; /* of each phase */
};

static void *measure(void *arg)
{
    const struct meter *meter = arg;
    const struct timespec time = {.tv_nsec = SLEEP_NS};
    int phase;
    prctl(PR_SET_TIMERSLACK, SLACK_NS);
    while ((phase = atomic_load_explicit(&meter->shared->phase, memory_order_relaxed)) < ISOLATION_END) {
        uint64_t until_ns = clock_now_ns() + SLEEP_NS;
        nanosleep(&time, NULL);
        uint64_t now_ns = clock_now_ns();
        isolation_note(&meter->times[phase], now_ns > until_ns ? now_ns - until_ns : 0);
    }
    return NULL;
}

void isolation_machine(void *arg)
{
    const struct isolation_process *process = arg;
    struct isolation *shared = process->shared;
    struct meter meter[ISOLATION_METERS];
    pthread_t thread[ISOLATION_METERS];
    for (int i = 0; i < ISOLATION_METERS; i++) {
        meter[i] = (struct meter){.shared = shared, .times = shared->machine[i]};
        REQUIRE(pthread_create(&thread[i], NULL, measure, &meter[i]) == 0);
    }
    child_ready();
    for (int i = 0; i < ISOLATION_METERS; i++) {
        pthread_join(thread[i], NULL);
    }
}
