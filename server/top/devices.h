/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices that the configuration names, and their engines: which there are, their start and stop, and looking again
 * for one that is absent.
 *
 * Owns:     the engines.
 * Thread:   the main thread, which is the loop thread.
 * Lifetime: devices_init -> devices_start -> devices_stop; the timer is closed with the others of the loop (uv_walk).
 * Errors:   devices_start: INVALID_ARGUMENT that names what is wrong with the option `device`, UNAVAILABLE where no GPU
 *           is there, else what a device's open says. What was started stays started until devices_stop.
 */
#ifndef MLACAT_TOP_DEVICES_H
#define MLACAT_TOP_DEVICES_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "config.h"
#include "engine.h"
#include "service.h"

struct devices {
    struct engine engines[SERVICE_ENGINES_MAX];
    uint32_t nr;
    uv_timer_t retry; /* while one is absent */
};

void devices_init(struct devices *devices, uv_loop_t *loop);
enum mlacat_status devices_start(struct devices *devices, const struct config *config, struct loop_bell *bell,
                                 struct error *err);
/* With no buffer, event or stream left. */
void devices_stop(struct devices *devices);

/* Takes the new values that need no restart. */
void devices_reload(struct devices *devices, const struct config *config);
/* Looks no more for those that are absent. */
void devices_give_up(struct devices *devices);

/* True if nothing is left on them: no buffer, no event, no stream. */
bool devices_idle(const struct devices *devices);
/* engine_stuck of one of them. */
bool devices_stuck(struct devices *devices);
/* Jobs at their control threads. */
uint32_t devices_jobs(const struct devices *devices);

/* How threads wait, in the words of worker.h. */
enum worker_poll devices_poll(const struct config *config);

#endif
