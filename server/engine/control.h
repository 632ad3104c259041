/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device-control thread: everything on a device that may be slow or block, one job after the other; between them
 * what the device itself has to do (tend of device.h).
 *
 * Owns:     its thread and the two lists of jobs; a job lives in the object that it is about.
 * Thread:   control_post, control_take: the loop thread. A job's `run` is called on the control thread.
 * Lifetime: control_start -> control_stop, which runs every job that was posted first.
 * Errors:   a job keeps its own.
 */
#ifndef MLACAT_ENGINE_CONTROL_H
#define MLACAT_ENGINE_CONTROL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "device.h"
#include "list.h"
#include "loop_bell.h"
#include "status.h"

struct control_job {
    struct list_node link;
    void (*run)(struct control_job *job);  /* control thread */
    void (*done)(struct control_job *job); /* loop thread, after run; may free the job */
};

/* A mutex and a condition variable: nothing here is on the path of a call. The lists are as long as there are buffers
 * and streams, each of which has at most one job at a time. */
struct control {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t posted;
    struct list_node todo;
    struct list_node finished;
    _Atomic bool any_finished; /* so that the loop takes the mutex only when there is something */
    bool stopping;
    struct loop_bell *bell;
    const struct device_ops *ops;
    struct device *device; /* NULL: none yet; the control thread's own once it runs */
};

enum mlacat_status control_start(struct control *control, const struct device_ops *ops, struct device *device,
                                 struct loop_bell *bell, struct error *err);
void control_stop(struct control *control);

void control_post(struct control *control, struct control_job *job);
/* Calls `done` of every finished job. Returns true if there was one. */
bool control_take(struct control *control);

#endif
