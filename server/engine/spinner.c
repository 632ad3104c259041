/* SPDX-License-Identifier: Apache-2.0 */
#include "spinner.h"

#include <sched.h>

#include "clock.h"
#include "min_max.h"

/* A yield that takes longer has let somebody run. */
#define YIELD_EMPTY_NS 1500
#define YIELD_PACE_LEAST_NS 1000
#define YIELD_PACE_MOST_NS 16000
/* Of a yield that takes longer a thread has made use that does not sleep. That may be a program that comes and goes, or
 * a client that works between its calls; one more within the time of alert, and after few waits, is not. Whether it is
 * still there is asked ever more rarely: by a yield. */
#define YIELD_LONG_NS 500000
#define WAITS_FEW 16
#define ALERT_FROM_NS 10000000
#define ALERT_NS UINT64_C(2000000000)
#define CROWDED_LEAST_NS UINT64_C(200000000)
#define CROWDED_MOST_NS UINT64_C(1600000000)

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

static void note_long_yield(struct spinner *spinner, uint64_t now_ns)
{
    if (now_ns >= spinner->alert_until_ns) {
        spinner->crowded_ns = 0;
        spinner->alert_from_ns = now_ns + ALERT_FROM_NS;
    } else if (now_ns >= spinner->alert_from_ns && (spinner->waits <= WAITS_FEW || spinner->crowded_ns > 0)) {
        uint64_t twice_ns = max_u64(2 * spinner->crowded_ns, CROWDED_LEAST_NS);
        spinner->crowded_ns = min_u64(twice_ns, CROWDED_MOST_NS);
        spinner->crowded_until_ns = now_ns + spinner->crowded_ns;
    }
    spinner->waits = 0;
    spinner->alert_until_ns = max_u64(now_ns, spinner->crowded_until_ns) + ALERT_NS;
}

/* Returns for how long. */
static uint64_t let_others_run(struct spinner *spinner)
{
    uint64_t begin_ns = clock_now_ns();
    sched_yield();
    uint64_t now_ns = clock_now_ns();
    spinner->shared_ns = now_ns;
    if (now_ns - begin_ns > YIELD_LONG_NS) {
        note_long_yield(spinner, now_ns);
    }
    return now_ns - begin_ns;
}

void spin_pause(struct spinner *spinner, uint64_t waited_ns)
{
    if (waited_ns < spinner->waited_ns) {
        spinner->yield_ns = SPIN_ALONE_NS; /* another wait */
        spinner->waits++;
    }
    spinner->waited_ns = waited_ns;
    if (waited_ns < spinner->yield_ns || waited_ns < SPIN_ALONE_NS) {
        cpu_relax();
        return;
    }
    uint64_t took_ns = let_others_run(spinner);
    spinner->pace_ns = next_pace_ns(spinner->pace_ns, took_ns);
    spinner->yield_ns = waited_ns + took_ns + spinner->pace_ns;
}

void spin_share(struct spinner *spinner, uint64_t now_ns)
{
    if (now_ns - spinner->shared_ns >= SPIN_SHARE_NS) {
        let_others_run(spinner);
    }
}

bool spin_crowded(const struct spinner *spinner, uint64_t now_ns)
{
    return now_ns < spinner->crowded_until_ns;
}
