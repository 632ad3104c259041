/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the processes of gpu_isolation share.
 *
 * Owns:     nothing; the table is a shared mapping of the parent.
 * Thread:   a process writes its own row; the parent writes `phase`, and reads the rows when the processes have ended.
 * Lifetime: the parent's.
 * Errors:   a failed check (require.h) in the process that saw it.
 */
#ifndef MLACAT_TESTS_ISOLATION_H
#define MLACAT_TESTS_ISOLATION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "histogram.h"
#include "isolation_kernel.h"
#include "isolation_verdict.h"

#define ISOLATION_PROCESSES_MAX 32
#define ISOLATION_STREAMS_MAX 64 /* of one process */
#define ISOLATION_FREE_METERS 4
#define ISOLATION_BOUND_METERS_MAX 32
#define ISOLATION_METERS_MAX (ISOLATION_FREE_METERS + ISOLATION_BOUND_METERS_MAX)
#define ISOLATION_TEXT_BYTES 200

/* Each is measured by itself. READY: the bad ones are being started; CALM: they go. */
enum isolation_phase {
    ISOLATION_WARM_UP,
    ISOLATION_BEFORE,
    ISOLATION_READY,
    ISOLATION_TOGETHER,
    ISOLATION_CALM,
    ISOLATION_AFTER,
    ISOLATION_END,
    ISOLATION_PHASES
};

struct isolation_times {
    uint64_t max_ns;
    struct histogram histogram;
};

struct isolation_row {
    _Atomic int step;                                /* how often the process has met the others */
    struct isolation_times client[ISOLATION_PHASES]; /* from before the send to after the receipt */
    struct isolation_times daemon[ISOLATION_PHASES]; /* from the daemon's receipt to the end, as it says */
    uint64_t over[ISOLATION_PHASES];                 /* calls that took longer than ISOLATION_LONGEST_NS */
    struct isolation_longest longest[ISOLATION_PHASES];
};

struct isolation {
    const char *socket;
    int processes;
    int streams; /* of one process */
    int depth;   /* calls that a process has in flight, each on another of its streams */
    int cpus;    /* that the processes may use */
    pid_t daemon;
    struct isolation_users users;
    _Atomic int phase;
    _Atomic int gone;                   /* bad ones that have closed their connection */
    _Atomic uint64_t registrations;     /* of the process that registers; a call with its own memory counts as one */
    _Atomic uint64_t refusals;          /* of its requests: RESOURCE_EXHAUSTED */
    char refusal[ISOLATION_TEXT_BYTES]; /* what the daemon said to the last of them */
    _Atomic uint64_t gated;             /* calls of the one that never signals */
    _Atomic uint64_t gated_in_rings;    /* of the one whose rings are never ready */
    struct isolation_row row[ISOLATION_PROCESSES_MAX];
    struct isolation_kernel before[ISOLATION_PHASES]; /* as a phase began, and as it ended; the parent's */
    struct isolation_kernel after[ISOLATION_PHASES];
    _Atomic int switches_errno; /* why it is not known who ran on a CPU; 0: it is */
    int meters;                 /* threads that sleep: first those that run on any CPU, then one for each CPU */
    struct isolation_times machine[ISOLATION_METERS_MAX][ISOLATION_PHASES]; /* how much longer than asked they slept */
    struct isolation_lates lates[ISOLATION_METERS_MAX][ISOLATION_PHASES];
};

struct isolation_process {
    struct isolation *shared;
    int index;
};

static inline void isolation_note(struct isolation_times *times, uint64_t ns)
{
    histogram_add(&times->histogram, ns);
    times->max_ns = ns > times->max_ns ? ns : times->max_ns;
}

/* For child_start; each says when it is ready. `arg`: a struct isolation_process. */
void isolation_good(void *arg);
/* Calls that wait for an event that never comes, on as many streams as the others have. */
void isolation_silent(void *arg);
/* Calls on as many rings as one client may have, each behind a `ready` word that never comes; it takes them back and
 * gives others as fast as it gets answers. */
void isolation_never_ready(void *arg);
/* Registers and releases buffers, and has memory imported for single calls, as fast as it gets answers. */
void isolation_registering(void *arg);
/* Threads that only sleep, for a moment each time. */
void isolation_machine(void *arg);

/* NOISY: not as it should be, on a machine that was too busy with others to say whose doing that is. */
enum isolation_result { ISOLATION_GOOD, ISOLATION_BAD, ISOLATION_NOISY };

/* When all have ended: prints what was measured. */
enum isolation_result isolation_report(const struct isolation *shared);

#endif
