/* SPDX-License-Identifier: Apache-2.0 */
#include "buffers.h"

#include <assert.h>
#include <stdlib.h>

#include "clock.h"
#include "closer.h"
#include "engine.h"

/* Of a request that goes nowhere. */
static void close_fds(struct memory_request *request)
{
    for (uint32_t i = 0; i < request->chunks_nr; i++) {
        if (request->fds[i] >= 0) {
            closer_close(request->fds[i], request->user);
            request->fds[i] = -1;
        }
    }
}

static void buffer_free(struct buffer *buffer)
{
    buffer->handlers->on_gone(buffer);
    engine_count_buffers(buffer->engine, -1);
    free(buffer);
}

static void on_released(struct control_job *job)
{
    struct buffer *buffer = LIST_ENTRY(job, struct buffer, job);
    histogram_add(&buffer->engine->times.release, buffer->took_ns);
    buffer_free(buffer);
}

static void run_release(struct control_job *job)
{
    struct buffer *buffer = LIST_ENTRY(job, struct buffer, job);
    uint64_t start_ns = clock_now_ns();
    buffer->engine->ops->mem_release(buffer->engine->device, buffer->memory);
    buffer->took_ns = clock_now_ns() - start_ns;
}

static void release_if_unused(struct buffer *buffer)
{
    if (!buffer->unwanted || buffer->pins > 0 || buffer->slot || buffer->state == BUFFER_IMPORTING) {
        return;
    }
    if (buffer->state == BUFFER_FAILED) {
        buffer_free(buffer);
        return;
    }
    buffer->state = BUFFER_RELEASING;
    buffer->job = (struct control_job){.run = run_release, .done = on_released, .lane = buffer->lane};
    list_init(&buffer->job.link);
    control_post(&buffer->engine->control, &buffer->job);
}

static void run_import(struct control_job *job)
{
    struct buffer *buffer = LIST_ENTRY(job, struct buffer, job);
    struct engine *engine = buffer->engine;
    uint64_t start_ns = clock_now_ns();
    if (engine->ops->mem_import(engine->device, buffer->request, &buffer->memory, &buffer->info, &buffer->error) ==
        MLACAT_OK) {
        buffer->error.code = MLACAT_OK;
    }
    buffer->took_ns = clock_now_ns() - start_ns;
}

static void count_import(struct engine *engine, const struct buffer *buffer)
{
    struct engine_times *times = &engine->times;
    histogram_add(buffer->info.known ? &times->import_known : &times->import_first, buffer->took_ns);
}

static void on_import_done(struct control_job *job)
{
    struct buffer *buffer = LIST_ENTRY(job, struct buffer, job);
    free(buffer->request);
    buffer->request = NULL;
    buffer->state = buffer->error.code == MLACAT_OK ? BUFFER_LIVE : BUFFER_FAILED;
    if (buffer->state == BUFFER_LIVE) {
        count_import(buffer->engine, buffer);
    }
    /* Read before: the handler may drop the buffer, and then it may be freed. */
    bool unwanted = buffer->unwanted;
    buffer->handlers->on_imported(buffer);
    if (unwanted) {
        release_if_unused(buffer);
    }
}

enum mlacat_status buffer_import(struct engine *engine, struct control_lane *lane, const struct memory_request *request,
                                 const struct buffer_handlers *handlers, void *owner, struct buffer **buffer,
                                 struct error *err)
{
    struct buffer *made = calloc(1, sizeof(*made));
    struct memory_request *kept = malloc(sizeof(*kept));
    if (!made || !kept) {
        struct memory_request closing = *request;
        close_fds(&closing);
        free(made);
        free(kept);
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for another buffer");
    }
    *kept = *request;
    made->engine = engine;
    made->handlers = handlers;
    made->owner = owner;
    made->state = BUFFER_IMPORTING;
    made->request = kept;
    made->lane = lane;
    made->job = (struct control_job){
        .run = run_import, .done = on_import_done, .lane = lane, .is_import = engine->ops->import_holds_up};
    list_init(&made->job.link);
    list_init(&made->leaving_link);
    engine_count_buffers(engine, 1);
    control_post(&engine->control, &made->job);
    *buffer = made;
    return MLACAT_OK;
}

void buffer_pin(struct buffer *buffer)
{
    buffer->pins++;
}

void buffer_unpin(struct buffer *buffer)
{
    assert(buffer->pins > 0);
    buffer->pins--;
    release_if_unused(buffer);
}

enum mlacat_status buffer_refuse_unknown(const char *name, struct wire_ref ref, struct error *err)
{
    return error_set(err, MLACAT_NOT_FOUND, "%s: this client has no buffer %u.%u: it was unregistered, or never was",
                     name, ref.id, ref.generation);
}

enum mlacat_status buffer_check_engine(const struct buffer *buffer, const struct engine *engine, const char *name,
                                       struct error *err)
{
    if (buffer->engine == engine) {
        return MLACAT_OK;
    }
    return error_set(err, MLACAT_INVALID_ARGUMENT,
                     "%s: its buffer is on device \"%s\", the stream is on \"%s\": use a stream of the buffer's device",
                     name, buffer->engine->info.uuid, engine->info.uuid);
}

void buffer_publish(struct buffer *buffer, struct buffer_table *table)
{
    assert(buffer->state == BUFFER_LIVE && !buffer->unwanted && !buffer->slot);
    buffer->slot = buffer_table_slot(table, buffer->ref.id);
    if (buffer->slot) {
        buffer_slot_publish(buffer->slot, buffer->ref.generation, buffer);
    }
}

bool buffer_leave(struct buffer *buffer)
{
    if (!buffer_slot_unused(buffer->slot)) {
        return false;
    }
    list_remove(&buffer->leaving_link);
    buffer->slot = NULL;
    buffer->handlers->on_unpublished(buffer);
    release_if_unused(buffer);
    return true;
}

void buffer_drop(struct buffer *buffer)
{
    assert(!buffer->unwanted);
    buffer->unwanted = true;
    if (!buffer->slot) {
        release_if_unused(buffer);
        return;
    }
    buffer_slot_withdraw(buffer->slot);
    list_append(&buffer->engine->leaving, &buffer->leaving_link);
    buffer_leave(buffer);
}
