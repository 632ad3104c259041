/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One device at work: the device, its control thread and its workers. A device that is not there (yet) can be waited
 * for: the engine then has no device, is not `available`, and tries again when told to.
 *
 * Owns:     the device and its threads.
 * Thread:   the loop thread.
 * Lifetime: engine_start -> engine_stop, with all its buffers, events and streams gone.
 * Errors:   engine_start: what the device's open says, or RESOURCE_EXHAUSTED.
 */
#ifndef MLACAT_ENGINE_ENGINE_H
#define MLACAT_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "control.h"
#include "device.h"
#include "histogram.h"
#include "loop_bell.h"
#include "worker.h"

#define ENGINE_WORKERS_MAX 64

struct engine_options {
    const struct device_ops *ops;
    const char *uuid; /* which device; "" for the only one */
    bool wait;        /* a device that is not there is no error */
    uint32_t workers; /* 1..ENGINE_WORKERS_MAX */
    enum worker_poll poll;
    uint64_t spin_ns;     /* poll = balanced */
    uint32_t import_rate; /* imports of one client in a second; 0: no limit */
    struct loop_bell *bell;
};

/* How long the control thread was at memory, by what it did. */
struct engine_times {
    struct histogram import_first; /* the device opened something */
    struct histogram import_known; /* of an allocation that was open */
    struct histogram release;
};

struct engine {
    const struct device_ops *ops;
    struct device *device; /* NULL while not available */
    struct device_info info;
    bool available;
    struct error absent_reason; /* while not available */
    struct control control;
    struct worker *workers;
    uint32_t workers_nr;
    uint32_t buffers_nr;      /* not gone yet */
    uint32_t events_nr;       /* not gone yet */
    uint32_t rings_nr;        /* pages not released yet */
    uint32_t streams_nr;      /* not gone yet */
    struct list_node leaving; /* struct buffer.leaving_link: unwanted, and a worker still has it */
    struct engine_times times;

    /* While the control thread looks for the device: its own, but `opening`. */
    bool opening;
    struct control_job opening_job;
    char wanted[DEVICE_UUID_BYTES];
    struct device_info found_info;
    struct error found_error;
};

enum mlacat_status engine_start(struct engine *engine, const struct engine_options *options, struct error *err);
void engine_stop(struct engine *engine);

/* Looks for a device that is not available, in the control thread; harmless otherwise. */
void engine_retry(struct engine *engine);

/* Hands out what the control thread and the workers have finished. Returns true if there was something. */
bool engine_take(struct engine *engine);

/* Jobs at the control thread. */
uint32_t engine_jobs(const struct engine *engine);

/* Calls at the workers. */
uint32_t engine_calls(const struct engine *engine);

/* True if nothing is left: no buffer, no event, no stream. */
bool engine_idle(const struct engine *engine);

/* True if a worker has made no round between this question and the last though it has calls, or the control thread has
 * been at one job for half a minute. */
bool engine_stuck(struct engine *engine);

/* Calls in flight from rings. */
uint32_t engine_ring_calls(const struct engine *engine);

/* Refuse what comes through rings; engine_ring_calls says when the last one has ended. */
void engine_drain(struct engine *engine);

/* For buffers.c, events.c, rings.c and stream.c. */
void engine_count_rings(struct engine *engine, int change);
void engine_count_buffers(struct engine *engine, int change);
void engine_count_events(struct engine *engine, int change);
/* The worker with the fewest streams; counts one more on it. */
struct worker *engine_assign_worker(struct engine *engine);
void engine_release_worker(struct engine *engine, struct worker *worker);

#endif
