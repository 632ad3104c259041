/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device-control thread: everything on a device that may be slow or block, one job after the other; between them
 * what the device itself has to do (tend of device.h).
 *
 * Each client has a lane. The jobs of a lane run in order; the lanes take turns, one job each, so a client that asks
 * for much delays another one by no more than the job that runs. Imports of a lane that would hold up the calls of
 * others come at a bounded rate: a lane whose next job is an import too many waits, and the others go on. What a client
 * that goes owes of that rate, the next one of its user begins with: to connect again gains nothing. A lane waits as
 * well while the device has no room for its next job.
 *
 * Owns:     its thread and the lists of jobs; a job lives in the object that it is about, a lane in its client.
 * Thread:   the loop thread. A job's `run` is called on the control thread.
 * Lifetime: control_start -> control_stop, which runs every job that was posted first. A lane may go when `done` of its
 *           last job was called.
 * Errors:   a job keeps its own.
 */
#ifndef MLACAT_ENGINE_CONTROL_H
#define MLACAT_ENGINE_CONTROL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "device.h"
#include "list.h"
#include "loop_bell.h"
#include "status.h"
#include "token_bucket.h"

/* Imports that a client may make at once before import_rate holds it back. */
#define CONTROL_IMPORT_BURST 256
/* How long a lane waits before its next job is tried again. */
#define CONTROL_AGAIN_NS UINT64_C(10000000)

/* Under the mutex of its control. */
struct control_lane {
    struct list_node jobs;
    struct list_node turn; /* among the lanes that have jobs; alone while one of its jobs runs */
    bool running;
    bool hurried;
    uint32_t user;
    struct token_bucket imports;
    uint64_t again_ns; /* when its next job may be tried again */
};

struct control_job {
    struct list_node link;
    void (*run)(struct control_job *job);  /* control thread; more than once if it sets `again` */
    void (*done)(struct control_job *job); /* loop thread, after run; may free the job */
    struct control_lane *lane;             /* NULL: of nobody in particular */
    bool is_import;                        /* counts against the lane's import rate */
    bool again; /* set by run: nothing was done for want of room; it is tried again, unless the client goes */
};

/* A mutex and a condition variable: nothing here is on the path of a call. The lists are as long as there are buffers,
 * events and streams, each of which has at most one job at a time. */
struct control {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t posted;
    struct list_node turns;       /* struct control_lane.turn: the next one first */
    struct control_lane own_lane; /* of jobs without a lane */
    bool news;                    /* since the thread last looked for a job */
    struct list_node finished;
    _Atomic bool any_finished; /* so that the loop takes the mutex only when there is something */
    bool stopping;
    uint32_t jobs_nr;         /* the loop's: posted, and not handed out as finished */
    _Atomic uint64_t busy_ns; /* since when the thread runs a job or tends the device; 0: it does not */
    struct token_rate import_rate;
    struct token_debts debts; /* of clients that have gone */
    struct error lost;        /* the control thread's until is_lost */
    _Atomic bool is_lost;
    struct loop_bell *bell;
    const struct device_ops *ops;
    struct device *device; /* NULL: none yet; the control thread's own once it runs */
};

enum mlacat_status control_start(struct control *control, const struct device_ops *ops, struct device *device,
                                 struct loop_bell *bell, struct error *err);
void control_stop(struct control *control);

void control_lane_init(struct control_lane *lane);
/* The lane, not used yet, is a client's of `user`. */
void control_lane_open(struct control *control, struct control_lane *lane, uint32_t user);
/* Imports of each lane in a second; 0, as at the start: no limit. */
void control_set_import_rate(struct control *control, uint32_t imports_per_s);
/* The client is going: what it still has to do is not held back any more, and what has no room ends. */
void control_hurry(struct control *control, struct control_lane *lane);

void control_post(struct control *control, struct control_job *job);
/* NULL, or how the device was found to be lost. */
const struct error *control_lost(const struct control *control);
/* Calls `done` of every finished job. Returns true if there was one. */
bool control_take(struct control *control);
/* What the thread is at takes so long that the driver will not come back from it. */
bool control_stuck(const struct control *control);

#endif
