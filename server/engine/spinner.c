/* SPDX-License-Identifier: Apache-2.0 */
#include "spinner.h"

#include <sched.h>

#include "clock.h"

/* Longer than a hand-over between two threads that both run. */
#define SPIN_ALONE_NS 2000
/* A yield that takes longer has let somebody run. */
#define YIELD_EMPTY_NS 1500
#define YIELD_PACE_LEAST_NS 1000
#define YIELD_PACE_MOST_NS 16000

/* Tells the processor that this is a spin loop. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static uint64_t next_pace_ns(uint64_t pace_ns, uint64_t yield_took_ns)
{
    if (yield_took_ns > YIELD_EMPTY_NS) {
        return 0;
    }
    pace_ns = pace_ns == 0 ? YIELD_PACE_LEAST_NS : 2 * pace_ns;
    return pace_ns < YIELD_PACE_MOST_NS ? pace_ns : YIELD_PACE_MOST_NS;
}

void spin_pause(struct spinner *spinner, uint64_t waited_ns)
{
    if (waited_ns < spinner->waited_ns) {
        spinner->yield_ns = SPIN_ALONE_NS; /* another wait */
    }
    spinner->waited_ns = waited_ns;
    if (waited_ns < spinner->yield_ns || waited_ns < SPIN_ALONE_NS) {
        cpu_relax();
        return;
    }
    uint64_t begin_ns = clock_now_ns();
    sched_yield();
    spinner->shared_ns = clock_now_ns();
    uint64_t took_ns = spinner->shared_ns - begin_ns;
    spinner->pace_ns = next_pace_ns(spinner->pace_ns, took_ns);
    spinner->yield_ns = waited_ns + took_ns + spinner->pace_ns;
}

void spin_share(struct spinner *spinner, uint64_t now_ns)
{
    if (now_ns - spinner->shared_ns >= SPIN_SHARE_NS) {
        sched_yield();
        spinner->shared_ns = clock_now_ns();
    }
}
