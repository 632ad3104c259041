/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An event of a client's own work on one device, which its calls may wait for.
 *
 *   IMPORTING -> LIVE       (loop: the import is done)
 *   IMPORTING -> FAILED     (loop: it failed; `error` says why)
 *   LIVE -> RELEASING       (loop: unregistered and no call pins it)
 *   RELEASING, FAILED -> freed
 *
 * Owns:     the device's side of the event.
 * Thread:   the loop thread; the import and the release run on the control thread, which then has the event to itself.
 *           The worker of a call that pins the event asks for it (device.h: event_query).
 * Lifetime: event_import -> event_drop -> on_gone (the last word; the memory is freed after it).
 * Errors:   event_import: RESOURCE_EXHAUSTED without memory. The import's own error comes with on_imported.
 */
#ifndef MLACAT_ENGINE_EVENTS_H
#define MLACAT_ENGINE_EVENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "control.h"
#include "device.h"
#include "wire.h"

struct engine;
struct event;

enum event_state { EVENT_IMPORTING, EVENT_LIVE, EVENT_FAILED, EVENT_RELEASING };

struct event_handlers {
    /* The import has ended: LIVE or FAILED. An event that is `unwanted` by now goes by itself; any other may be dropped
     * here. */
    void (*on_imported)(struct event *event);
    /* The event is let go; it is freed when this returns. */
    void (*on_gone)(struct event *event);
};

struct event {
    struct control_job job;
    struct engine *engine;
    struct control_lane *lane;
    const struct event_handlers *handlers;
    void *owner;
    uint64_t request_id;
    struct wire_ref ref; /* the owner's name for it */
    enum event_state state;
    bool unwanted;
    uint32_t pins;
    uint8_t handle[MEMORY_HANDLE_BYTES];
    struct device_event *device_event; /* constant while LIVE */
    struct error error;
};

/* Starts an import in the client's `lane`, where the release will be too. */
enum mlacat_status event_import(struct engine *engine, struct control_lane *lane,
                                const uint8_t handle[MEMORY_HANDLE_BYTES], const struct event_handlers *handlers,
                                void *owner, struct event **event, struct error *err);

/* A call waits for the event, or has ended. */
void event_pin(struct event *event);
void event_unpin(struct event *event);

/* The owner wants it no more: it goes when no call pins it. Once. */
void event_drop(struct event *event);

#endif
