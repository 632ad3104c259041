/* SPDX-License-Identifier: Apache-2.0 */
#include "events.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

static void event_free(struct event *event)
{
    event->handlers->on_gone(event);
    engine_count_events(event->engine, -1);
    free(event);
}

static void run_release(struct control_job *job)
{
    struct event *event = LIST_ENTRY(job, struct event, job);
    event->engine->ops->event_release(event->engine->device, event->device_event);
}

static void on_released(struct control_job *job)
{
    event_free(LIST_ENTRY(job, struct event, job));
}

static void release_if_unused(struct event *event)
{
    if (!event->unwanted || event->pins > 0 || event->state == EVENT_IMPORTING) {
        return;
    }
    if (event->state == EVENT_FAILED) {
        event_free(event);
        return;
    }
    event->state = EVENT_RELEASING;
    event->job = (struct control_job){.run = run_release, .done = on_released, .lane = event->lane};
    list_init(&event->job.link);
    control_post(&event->engine->control, &event->job);
}

static void run_import(struct control_job *job)
{
    struct event *event = LIST_ENTRY(job, struct event, job);
    struct engine *engine = event->engine;
    if (engine->ops->event_import(engine->device, event->handle, &event->device_event, &event->error) == MLACAT_OK) {
        event->error.code = MLACAT_OK;
    }
}

static void on_import_done(struct control_job *job)
{
    struct event *event = LIST_ENTRY(job, struct event, job);
    event->state = event->error.code == MLACAT_OK ? EVENT_LIVE : EVENT_FAILED;
    /* Read before: the handler may drop the event, and then it may be freed. */
    bool unwanted = event->unwanted;
    event->handlers->on_imported(event);
    if (unwanted) {
        release_if_unused(event);
    }
}

enum mlacat_status event_import(struct engine *engine, struct control_lane *lane,
                                const uint8_t handle[MEMORY_HANDLE_BYTES], const struct event_handlers *handlers,
                                void *owner, struct event **event, struct error *err)
{
    struct event *made = calloc(1, sizeof(*made));
    if (!made) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for another event");
    }
    made->engine = engine;
    made->handlers = handlers;
    made->owner = owner;
    made->lane = lane;
    made->state = EVENT_IMPORTING;
    made->job = (struct control_job){.run = run_import, .done = on_import_done, .lane = lane, .is_import = true};
    list_init(&made->job.link);
    memcpy(made->handle, handle, sizeof(made->handle));
    engine_count_events(engine, 1);
    control_post(&engine->control, &made->job);
    *event = made;
    return MLACAT_OK;
}

void event_pin(struct event *event)
{
    event->pins++;
}

void event_unpin(struct event *event)
{
    assert(event->pins > 0);
    event->pins--;
    release_if_unused(event);
}

void event_drop(struct event *event)
{
    assert(!event->unwanted);
    event->unwanted = true;
    release_if_unused(event);
}
