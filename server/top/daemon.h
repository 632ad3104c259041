/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon: owns every object and the order in which they start and stop.
 *
 *   STARTING -> SERVING    (devices open, socket listening, READY sent)
 *   SERVING -> DRAINING    (SIGTERM, SIGINT, an operator's Drain, or a lost device: new calls are refused)
 *   DRAINING -> STOPPING   (no call is unanswered, or drain_timeout_ms passed: sessions end)
 *   STOPPING -> STOPPED    (nothing is left: the loop returns; what a device still holds after 5 s ends the process
 *                           with exit code 1)
 *
 * A second SIGTERM or SIGINT ends the process at once with exit code 1, one that comes while it starts with 0. A driver
 * that does not come back at the very end has 5 s; then the exit code is 1 too. SIGHUP reads the configuration again.
 *
 * Owns:     the loop, the devices, the service, the listener.
 * Thread:   the main thread, which is the loop thread.
 * Lifetime: daemon_init -> daemon_run -> daemon_fini.
 * Errors:   daemon_init: what config, device or socket say.
 */
#ifndef MLACAT_TOP_DAEMON_H
#define MLACAT_TOP_DAEMON_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "config.h"
#include "devices.h"
#include "listener.h"
#include "loop_sleep.h"
#include "service.h"

enum daemon_state { DAEMON_STARTING, DAEMON_SERVING, DAEMON_DRAINING, DAEMON_STOPPING, DAEMON_STOPPED };

struct daemon {
    struct config config;
    int argc;
    char *const *argv; /* for SIGHUP */
    enum daemon_state state;
    uv_loop_t loop;
    struct loop_sleep sleep;
    uv_timer_t progress; /* watchdog, and whether the workers move */
    uv_timer_t drain;    /* drain_timeout_ms */
    uv_signal_t signals[3];
    uint64_t progress_ms;
    bool watchdog; /* systemd expects to hear from us */
    struct devices devices;
    struct service service;
    struct listener listener;
    bool listening;
    int exit_code;
    struct error lost; /* why exit_code is not 0 */
};

enum mlacat_status daemon_init(struct daemon *daemon, const struct config *config, int argc, char *const argv[],
                               struct error *err);
/* Until it has stopped. Returns the exit code: 0, or 1 when a device was lost. */
int daemon_run(struct daemon *daemon);
void daemon_fini(struct daemon *daemon);

/* The last line: how it ends and, if badly, why. */
void daemon_log_exit(const struct daemon *daemon);

#endif
