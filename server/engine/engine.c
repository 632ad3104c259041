/* SPDX-License-Identifier: Apache-2.0 */
#include "engine.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "buffers.h"
#include "log.h"
#include "ring_stream.h"
#include "stream.h"

static void describe_absent(struct engine *engine, const struct error *why)
{
    engine->absent_reason = *why;
    engine->absent_reason.code = MLACAT_UNAVAILABLE;
    snprintf(engine->info.uuid, sizeof(engine->info.uuid), "%s", engine->wanted);
    engine->info.kind = engine->ops->kind;
}

/* Opening may block for seconds (a driver starting up), but the loop does not run yet. */
static enum mlacat_status open_device(struct engine *engine, const struct engine_options *options, struct error *err)
{
    snprintf(engine->wanted, sizeof(engine->wanted), "%s", options->uuid);
    switch (engine->ops->open(engine->wanted, &engine->device, &engine->info, err)) {
    case DEVICE_OK:
        engine->available = true;
        return MLACAT_OK;
    case DEVICE_NODEV:
        describe_absent(engine, err);
        err->code = MLACAT_UNAVAILABLE;
        return options->wait ? MLACAT_OK : err->code;
    default:
        return err->code;
    }
}

static void close_device(struct engine *engine)
{
    if (engine->device) {
        engine->ops->close(engine->device);
    }
}

static void run_retry(struct control_job *job)
{
    struct engine *engine = LIST_ENTRY(job, struct engine, opening_job);
    enum device_answer answer =
        engine->ops->open(engine->wanted, &engine->control.device, &engine->found_info, &engine->found_error);
    if (answer != DEVICE_OK) {
        engine->control.device = NULL;
    }
}

static void on_retry_done(struct control_job *job)
{
    struct engine *engine = LIST_ENTRY(job, struct engine, opening_job);
    engine->opening = false;
    engine->device = engine->control.device;
    if (!engine->device) {
        describe_absent(engine, &engine->found_error);
        return;
    }
    engine->info = engine->found_info;
    engine->available = true;
    log_info("device", "uuid=%s kind=%s name=\"%s\" workers=%u", engine->info.uuid, engine->info.kind,
             engine->info.name, engine->workers_nr);
}

void engine_retry(struct engine *engine)
{
    if (engine->available || engine->opening) {
        return;
    }
    engine->opening = true;
    engine->opening_job = (struct control_job){.run = run_retry, .done = on_retry_done};
    list_init(&engine->opening_job.link);
    control_post(&engine->control, &engine->opening_job);
}

static void stop_workers(struct engine *engine)
{
    while (engine->workers_nr > 0) {
        worker_stop(&engine->workers[--engine->workers_nr]);
    }
    free(engine->workers);
}

enum mlacat_status engine_start(struct engine *engine, const struct engine_options *options, struct error *err)
{
    *engine = (struct engine){.ops = options->ops};
    list_init(&engine->leaving);
    if (open_device(engine, options, err) != MLACAT_OK) {
        return err->code;
    }
    engine->workers = aligned_alloc(_Alignof(struct worker), options->workers * sizeof(*engine->workers));
    if (!engine->workers) {
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "no memory for %u workers", options->workers);
        goto fail;
    }
    while (engine->workers_nr < options->workers) {
        if (worker_start(&engine->workers[engine->workers_nr], options->ops, options->bell, options->poll,
                         options->spin_ns, err) != MLACAT_OK) {
            goto fail;
        }
        engine->workers_nr++;
    }
    if (control_start(&engine->control, options->ops, engine->device, options->bell, err) != MLACAT_OK) {
        goto fail;
    }
    control_set_import_rate(&engine->control, options->import_rate);
    return MLACAT_OK;
fail:
    stop_workers(engine);
    close_device(engine);
    return err->code;
}

void engine_stop(struct engine *engine)
{
    assert(engine_idle(engine));
    control_stop(&engine->control);
    engine->device = engine->control.device; /* it may have been found at the last moment */
    stop_workers(engine);
    close_device(engine);
}

/* Buffers that only a worker held on to. */
static bool let_go(struct engine *engine)
{
    bool any = false;
    struct list_node *node = engine->leaving.next;
    while (node != &engine->leaving) {
        struct buffer *buffer = LIST_ENTRY(node, struct buffer, leaving_link);
        node = node->next;
        any |= buffer_leave(buffer);
    }
    return any;
}

bool engine_take(struct engine *engine)
{
    bool any = control_take(&engine->control);
    for (uint32_t i = 0; i < engine->workers_nr; i++) {
        struct call *call;
        while ((call = worker_take(&engine->workers[i]))) {
            stream_end_call(call->stream, call);
            any = true;
        }
        struct ring_report *report;
        while ((report = worker_take_report(&engine->workers[i]))) {
            stream_take_report(report->ring->stream, report);
            any = true;
        }
        any |= worker_take_drain_news(&engine->workers[i]);
    }
    return any | let_go(engine);
}

uint32_t engine_ring_calls(const struct engine *engine)
{
    uint32_t calls_nr = 0;
    for (uint32_t i = 0; i < engine->workers_nr; i++) {
        calls_nr += worker_ring_calls(&engine->workers[i]);
    }
    return calls_nr;
}

void engine_drain(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->workers_nr; i++) {
        worker_drain(&engine->workers[i]);
    }
}

uint32_t engine_jobs(const struct engine *engine)
{
    return engine->control.jobs_nr;
}

uint32_t engine_calls(const struct engine *engine)
{
    uint32_t calls_nr = 0;
    for (uint32_t i = 0; i < engine->workers_nr; i++) {
        calls_nr += engine->workers[i].calls_nr;
    }
    return calls_nr;
}

bool engine_idle(const struct engine *engine)
{
    return engine->buffers_nr == 0 && engine->events_nr == 0 && engine->rings_nr == 0 && engine->streams_nr == 0;
}

bool engine_stuck(struct engine *engine)
{
    bool stuck = control_stuck(&engine->control);
    for (uint32_t i = 0; i < engine->workers_nr; i++) {
        stuck |= worker_stuck(&engine->workers[i]);
    }
    return stuck;
}

void engine_count_buffers(struct engine *engine, int change)
{
    engine->buffers_nr += (uint32_t)change;
}

void engine_count_events(struct engine *engine, int change)
{
    engine->events_nr += (uint32_t)change;
}

void engine_count_rings(struct engine *engine, int change)
{
    engine->rings_nr += (uint32_t)change;
}

struct worker *engine_assign_worker(struct engine *engine)
{
    struct worker *least = &engine->workers[0];
    for (uint32_t i = 1; i < engine->workers_nr; i++) {
        if (worker_streams(&engine->workers[i]) < worker_streams(least)) {
            least = &engine->workers[i];
        }
    }
    worker_count_stream(least, 1);
    engine->streams_nr++;
    return least;
}

void engine_release_worker(struct engine *engine, struct worker *worker)
{
    worker_count_stream(worker, -1);
    engine->streams_nr--;
}
