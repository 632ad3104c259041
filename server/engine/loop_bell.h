/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the other threads wake the event loop: only when it sleeps, so that a busy service makes no system call for it.
 *
 * Owns:     nothing; `wake` is given by whoever owns the loop (uv_async_send).
 * Thread:   loop_bell_ring: any thread. The loop sets `asleep` before its last look at the mailboxes and clears it
 *           after the sleep (the order that doorbell.h explains).
 * Lifetime: longer than every thread that rings it.
 * Errors:   none.
 */
#ifndef MLACAT_ENGINE_LOOP_BELL_H
#define MLACAT_ENGINE_LOOP_BELL_H

#include <stdatomic.h>
#include <stdint.h>

struct loop_bell {
    _Alignas(128) _Atomic uint32_t asleep;
    void (*wake)(void *arg);
    void *arg;
};

static inline void loop_bell_ring(struct loop_bell *bell)
{
    if (atomic_load(&bell->asleep) && atomic_exchange(&bell->asleep, 0)) {
        bell->wake(bell->arg);
    }
}

#endif
