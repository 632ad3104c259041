/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a thread that looks for work again and again shares its CPU with whoever else could run there. A kernel that
 * preempts by its tick alone leaves a thread that was woken there waiting for a tick or more, 4 ms each, and that may
 * be the very thread whose answer was just sent.
 *
 * Owns:     nothing. Zeroed is ready to use.
 * Thread:   the one that looks.
 * Errors:   none.
 */
#ifndef MLACAT_ENGINE_SPINNER_H
#define MLACAT_ENGINE_SPINNER_H

#include <stdbool.h>
#include <stdint.h>

#include "mlacat_yield.h"

/* For so long a thread without a pause keeps others waiting. */
#define SPIN_SHARE_NS 100000

struct spinner {
    uint64_t waited_ns;         /* at the last turn */
    uint64_t yield_ns;          /* when that has come so far, others go first */
    uint64_t shared_ns;         /* when others last could go first, by clock_now_ns */
    struct mlacat_yield learnt; /* its waits: also turns with an event, where they count */
};

/* One turn without an event, `waited_ns` after the last one. What comes at once is found without a system call; later
 * on, whoever else could run here goes first: it may be the very thread that is waited for. But when nobody wanted to,
 * that is asked ever more rarely: a system call is a time without a look. */
void spin_pause(struct spinner *spinner, uint64_t waited_ns);

/* After a turn with an event, at `now_ns`, when all that came of it is handed on: a thread that always has events makes
 * no pause, and lets others go first all the same. For threads that make system calls in each turn anyway. */
void spin_share(struct spinner *spinner, uint64_t now_ns);

/* A turn with an event, of a thread that gets on well between two long yields. */
static inline void spin_count(struct spinner *spinner)
{
    spinner->learnt.waits++;
}

/* As mlacat_yield_crowded says. */
static inline bool spin_crowded(const struct spinner *spinner, uint64_t now_ns)
{
    return mlacat_yield_crowded(&spinner->learnt, now_ns) != 0;
}

#endif
