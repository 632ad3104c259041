/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When the event loop sleeps. To wake a thread costs more than a small call takes, for whoever wakes it as well as for
 * the thread. So after a packet or a completion the loop looks on, yielding (spinner.h), for spin_ns before it sleeps
 * (poll = balanced), or as long as a stream is open (spin), or not at all (sleep). A loop that looks on and always has
 * events lets others run on its CPU now and then: the client that it has just answered may have been woken there. Where
 * somebody runs on its CPU who does not sleep, it sleeps at once (balanced).
 *
 * Owns:     the handles by which the loop goes round, and the bell that the other threads ring.
 * Thread:   the loop thread.
 * Lifetime: loop_sleep_init -> its handles are closed with the others of the loop (uv_walk).
 * Errors:   none.
 */
#ifndef MLACAT_TOP_LOOP_SLEEP_H
#define MLACAT_TOP_LOOP_SLEEP_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "loop_bell.h"
#include "service.h"
#include "spinner.h"
#include "worker.h"

struct loop_sleep {
    uv_async_t wake;      /* other threads -> loop */
    uv_prepare_t prepare; /* before the loop waits for its sockets */
    uv_check_t check;     /* after it waited */
    uv_idle_t busy;       /* active: it only looks at them */
    struct loop_bell bell;
    struct service *service;
    enum worker_poll poll;
    uint64_t spin_ns; /* how long it goes on looking (poll = balanced) */
    struct spinner spinner;
    uint64_t last_event_ns;       /* a packet or a completion */
    void (*on_turn)(void *owner); /* once a turn, when everything that was finished is handed out */
    void *owner;
};

void loop_sleep_init(struct loop_sleep *sleep, uv_loop_t *loop, struct service *service, enum worker_poll poll,
                     uint64_t spin_ns, void (*on_turn)(void *owner), void *owner);

#endif
