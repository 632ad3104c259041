/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a thread that looks on, for an event of either side of a ring, shares its CPU with whoever else could run there:
 * what it learns from how long a yield took. A second client may do it otherwise.
 *
 * Owns:     nothing. Zeroed is ready to use.
 * Thread:   one at a time.
 * Errors:   none.
 */
#ifndef MLACAT_YIELD_H
#define MLACAT_YIELD_H

#include <stdint.h>

/* Longer than a hand-over between two threads that both run: so long a look costs nobody anything. After that the other
 * side may need this very CPU. */
#define MLACAT_YIELD_ALONE_NS 2000
/* A yield that takes longer has let somebody run; after others the next one is further away. */
#define MLACAT_YIELD_EMPTY_NS 1500
#define MLACAT_YIELD_PACE_LEAST_NS 1000
#define MLACAT_YIELD_PACE_MOST_NS 16000
/* Of a yield that takes longer a thread has made use that does not sleep. That may be a program that comes and goes, or
 * a client that works between its calls; one more within the time of alert, and after few waits, is not. Whether it is
 * still there is asked ever more rarely: by a yield. */
#define MLACAT_YIELD_LONG_NS 500000
#define MLACAT_YIELD_WAITS_FEW 16
#define MLACAT_YIELD_ALERT_FROM_NS 10000000
#define MLACAT_YIELD_ALERT_NS UINT64_C(2000000000)
#define MLACAT_YIELD_CROWDED_LEAST_NS UINT64_C(200000000)
#define MLACAT_YIELD_CROWDED_MOST_NS UINT64_C(1600000000)

struct mlacat_yield {
    uint64_t pace_ns; /* after a yield it is worth another one after so long */
    uint64_t waits;   /* counted by the owner; since others ran for long */
    uint64_t alert_from_ns;
    uint64_t alert_until_ns;
    uint64_t crowded_until_ns;
    uint64_t crowded_ns; /* for how long, at the last time; 0: not lately */
};

/* Tells the processor that this is a spin loop. */
static inline void mlacat_yield_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* A yield took so long: how long after it another one is worth it. */
static inline void mlacat_yield_pace(struct mlacat_yield *yield, uint64_t took_ns)
{
    if (took_ns > MLACAT_YIELD_EMPTY_NS) {
        yield->pace_ns = 0;
        return;
    }
    yield->pace_ns = yield->pace_ns == 0 ? MLACAT_YIELD_PACE_LEAST_NS : 2 * yield->pace_ns;
    if (yield->pace_ns > MLACAT_YIELD_PACE_MOST_NS) {
        yield->pace_ns = MLACAT_YIELD_PACE_MOST_NS;
    }
}

/* A yield took so long, until `now_ns`: whether the CPU is crowded. */
static inline void mlacat_yield_note(struct mlacat_yield *yield, uint64_t now_ns, uint64_t took_ns)
{
    if (took_ns <= MLACAT_YIELD_LONG_NS) {
        return;
    }
    if (now_ns >= yield->alert_until_ns) {
        yield->crowded_ns = 0;
        yield->alert_from_ns = now_ns + MLACAT_YIELD_ALERT_FROM_NS;
    } else if (now_ns >= yield->alert_from_ns && (yield->waits <= MLACAT_YIELD_WAITS_FEW || yield->crowded_ns > 0)) {
        yield->crowded_ns = yield->crowded_ns == 0 ? MLACAT_YIELD_CROWDED_LEAST_NS : 2 * yield->crowded_ns;
        if (yield->crowded_ns > MLACAT_YIELD_CROWDED_MOST_NS) {
            yield->crowded_ns = MLACAT_YIELD_CROWDED_MOST_NS;
        }
        yield->crowded_until_ns = now_ns + yield->crowded_ns;
    }
    yield->waits = 0;
    yield->alert_until_ns =
        (now_ns < yield->crowded_until_ns ? yield->crowded_until_ns : now_ns) + MLACAT_YIELD_ALERT_NS;
}

/* Somebody runs on this CPU who does not sleep. Who goes first there is away for a tick, so that a thread that looks on
 * is the last to learn of its event; one that sleeps is let in as soon as it is woken. Not 0: true. */
static inline int mlacat_yield_crowded(const struct mlacat_yield *yield, uint64_t now_ns)
{
    return now_ns < yield->crowded_until_ns;
}

#endif
