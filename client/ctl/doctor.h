/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `mlacatctl doctor` looks at: each part of it, doctor_*.c, makes some checks and adds a finding for each.
 *
 * Owns:     the findings, and what one part learns for those after it.
 * Thread:   one.
 * Lifetime: one run of the command; the parts run in the order of this header. No CUDA context is ever created.
 * Errors:   none: what a part cannot find out is a finding too.
 */
#ifndef MLACAT_CTL_DOCTOR_H
#define MLACAT_CTL_DOCTOR_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "options.h"

#define DOCTOR_FINDINGS_MAX 128
#define DOCTOR_TEXT_BYTES 512
#define DOCTOR_PATH_BYTES 4096

enum doctor_state { DOCTOR_OK, DOCTOR_WARN, DOCTOR_FAIL, DOCTOR_SKIPPED, DOCTOR_STATES_NR };

struct doctor_finding {
    const char *check;
    enum doctor_state state;
    char found[DOCTOR_TEXT_BYTES];
    char advice[DOCTOR_TEXT_BYTES]; /* "": nothing is to be done */
};

struct doctor {
    const struct ctl_options *options;
    struct doctor_finding findings[DOCTOR_FINDINGS_MAX];
    size_t findings_nr;

    /* doctor_service */
    struct mlacat_client *client; /* NULL: not connected */
    pid_t pid;                    /* of the daemon, in our pid namespace; 0: unknown */
    uid_t uid;                    /* of the daemon; holds if uid_known */
    bool uid_known;
    bool serves_gpu; /* the daemon has a device of kind cuda, available or not */

    /* doctor_driver */
    char no_gpu[DOCTOR_TEXT_BYTES]; /* why GPU checks make no sense; "": there are GPUs */
    bool mps;                       /* this process is a client of MPS */
};

/* The socket, the connection, the daemon's version, readiness and devices. Leaves the connection open. */
void doctor_service(struct doctor *doctor);
/* The CUDA driver, NVRTC, the GPUs. */
void doctor_driver(struct doctor *doctor);
/* MPS: on or off, and whose it is. */
void doctor_mps(struct doctor *doctor);
/* The GPU memory that the daemon itself takes. */
void doctor_memory(struct doctor *doctor);
/* Limits of the daemon's process: descriptors, locked memory, CPUs. */
void doctor_limits(struct doctor *doctor);
/* The daemon's folder of compiled kernels. */
void doctor_cache(struct doctor *doctor);

/* Adds a finding that needs nothing done. */
__attribute__((format(printf, 4, 5))) void doctor_found(struct doctor *doctor, const char *check,
                                                        enum doctor_state state, const char *format, ...);
/* Says what to do about the last finding. */
__attribute__((format(printf, 2, 3))) void doctor_advise(struct doctor *doctor, const char *format, ...);

/* A variable of the daemon's environment, from where it was started; false: it is not set, or (*readable false) its
 * environment cannot be read. */
bool doctor_daemon_variable(const struct doctor *doctor, const char *name, char *value, size_t size, bool *readable);

#endif
