/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client's registered memory on one device.
 *
 *   IMPORTING -> LIVE       (loop: the import is done)
 *   IMPORTING -> FAILED     (loop: it failed; `error` says why)
 *   LIVE -> RELEASING       (loop: unregistered and no call pins it)
 *   RELEASING, FAILED -> freed
 *
 * A buffer that is unregistered while calls pin it or while it is imported is `unwanted`: it goes as soon as it can.
 * One that workers find by its name (buffer_publish) loses the name first.
 *
 * Owns:     the imported memory and, until the import, the descriptors of its request.
 * Thread:   the loop thread; the import and the release run on the control thread, which then has the buffer to itself.
 * Lifetime: buffer_import -> buffer_drop -> on_gone (the last word; the memory is freed after it).
 * Errors:   buffer_import: RESOURCE_EXHAUSTED without memory. The import's own error comes with on_imported.
 */
#ifndef MLACAT_ENGINE_BUFFERS_H
#define MLACAT_ENGINE_BUFFERS_H

#include <stdbool.h>
#include <stdint.h>

#include "buffer_table.h"
#include "control.h"
#include "device.h"
#include "memory.h"
#include "wire.h"

struct engine;
struct buffer;

enum buffer_state { BUFFER_IMPORTING, BUFFER_LIVE, BUFFER_FAILED, BUFFER_RELEASING };

struct buffer_handlers {
    /* The import has ended: LIVE or FAILED. A buffer that is `unwanted` by now goes by itself; any other may be dropped
     * here. */
    void (*on_imported)(struct buffer *buffer);
    /* After buffer_publish and buffer_drop: no worker has it under its name any more, which may be used again. */
    void (*on_unpublished)(struct buffer *buffer);
    /* The memory is let go; the buffer is freed when this returns. */
    void (*on_gone)(struct buffer *buffer);
};

struct buffer {
    struct control_job job;
    struct control_lane *lane;
    struct engine *engine;
    const struct buffer_handlers *handlers;
    void *owner;
    void *user; /* owner's: what waits for the import */
    uint64_t request_id;
    struct wire_ref ref; /* the owner's name for it; generation 0: none (inline memory) */
    enum buffer_state state;
    bool unwanted;
    uint32_t pins;
    struct buffer_slot *slot;       /* where workers find it; NULL: they do not */
    struct list_node leaving_link;  /* on the engine's list: unwanted, and a worker has it */
    struct memory_request *request; /* until the import */
    struct device_memory *memory;
    struct memory_info info;
    uint64_t took_ns;       /* the import, later the release */
    uint64_t charged_bytes; /* by the owner, against its limit */
    struct error error;
};

/* Starts an import in the client's `lane`, where the release will be too; takes the fds of `request` in every outcome.
 */
enum mlacat_status buffer_import(struct engine *engine, struct control_lane *lane, const struct memory_request *request,
                                 const struct buffer_handlers *handlers, void *owner, struct buffer **buffer,
                                 struct error *err);

/* A call is going to use the buffer, or has ended. */
void buffer_pin(struct buffer *buffer);
void buffer_unpin(struct buffer *buffer);

/* Calls that come through rings may use the LIVE buffer from now on, by its `ref`. */
void buffer_publish(struct buffer *buffer, struct buffer_table *table);

/* What a call gets that names no buffer, or one of another device; `name`: of the operand. */
enum mlacat_status buffer_refuse_unknown(const char *name, struct wire_ref ref, struct error *err);
enum mlacat_status buffer_check_engine(const struct buffer *buffer, const struct engine *engine, const char *name,
                                       struct error *err);

/* For engine.c: an unwanted buffer that a worker had: has it let go? */
bool buffer_leave(struct buffer *buffer);

/* The owner wants it no more: it goes when no call pins it. Once. */
void buffer_drop(struct buffer *buffer);

#endif
