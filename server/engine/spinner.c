/* SPDX-License-Identifier: Apache-2.0 */
#include "spinner.h"

#include <sched.h>

#include "clock.h"

/* Returns for how long. */
static uint64_t let_others_run(struct spinner *spinner)
{
    uint64_t begin_ns = clock_now_ns();
    sched_yield();
    uint64_t now_ns = clock_now_ns();
    spinner->shared_ns = now_ns;
    mlacat_yield_note(&spinner->learnt, now_ns, now_ns - begin_ns);
    return now_ns - begin_ns;
}

void spin_pause(struct spinner *spinner, uint64_t waited_ns)
{
    if (waited_ns < spinner->waited_ns) {
        spinner->yield_ns = MLACAT_YIELD_ALONE_NS; /* another wait */
        spinner->learnt.waits++;
    }
    spinner->waited_ns = waited_ns;
    if (waited_ns < spinner->yield_ns || waited_ns < MLACAT_YIELD_ALONE_NS) {
        mlacat_yield_relax();
        return;
    }
    uint64_t took_ns = let_others_run(spinner);
    mlacat_yield_pace(&spinner->learnt, took_ns);
    spinner->yield_ns = waited_ns + took_ns + spinner->learnt.pace_ns;
}

void spin_share(struct spinner *spinner, uint64_t now_ns)
{
    if (now_ns - spinner->shared_ns >= SPIN_SHARE_NS) {
        let_others_run(spinner);
    }
}
