/* SPDX-License-Identifier: Apache-2.0 */
#include "slot.h"

#include <stdlib.h>
#include <string.h>

#include "ring.h"
#include "stream.h"
#include "transport.h"

uint64_t slot_call_id(const struct slot *slot)
{
    const struct mlacat_stream *stream = slot->stream;
    return (uint64_t)slot->generation << (STREAM_INDEX_BITS + STREAM_SLOT_BITS) |
           (uint64_t)stream->index << STREAM_SLOT_BITS | (uint64_t)(slot - stream->slots);
}

struct slot *slot_find(struct mlacat_stream *stream, uint64_t id)
{
    uint32_t index = (uint32_t)id & ((1u << STREAM_SLOT_BITS) - 1);
    if (index >= stream->slots_nr) {
        return NULL;
    }
    struct slot *found = &stream->slots[index];
    return slot_call_id(found) == id && found->state != SLOT_FREE ? found : NULL;
}

/* +1 and -1: a call more, or less, is in flight. */
static void count_flying(const struct slot *slot, uint32_t step)
{
    struct mlacat_stream *stream = slot->stream;
    uint32_t callback = slot->done != NULL ? step : 0;
    stream->flying += step;
    if (stream->ring != NULL) {
        stream->ring->flying_callbacks += callback;
    } else {
        stream->client->flying += step;
        stream->client->flying_callbacks += callback;
    }
}

struct slot *slot_take(struct mlacat_stream *stream, const struct mlacat_call *call)
{
    struct slot *slot = STAILQ_FIRST(&stream->unused);
    STAILQ_REMOVE_HEAD(&stream->unused, link);
    stream->taken++;
    slot->state = SLOT_FLYING;
    slot->waiter = NULL;
    slot->done = call->done;
    slot->user = call->user;
    slot->detached = false;
    count_flying(slot, 1);
    return slot;
}

static void land(struct slot *slot)
{
    slot->state = SLOT_ENDED;
    count_flying(slot, UINT32_MAX);
}

static void make_free(struct slot *slot)
{
    slot->state = SLOT_FREE;
    slot->generation += slot->generation == UINT32_MAX ? 2 : 1; /* never 0 */
    slot->stream->taken--;
    STAILQ_INSERT_HEAD(&slot->stream->unused, slot, link);
}

void slot_give_back(struct slot *slot)
{
    land(slot);
    make_free(slot);
}

/* Nobody will ask for the result: what is of interest in it stays with the stream. */
static void end_detached(struct slot *slot)
{
    struct mlacat_stream *stream = slot->stream;
    if (slot->status != MLACAT_OK && stream->failure.code == MLACAT_OK) {
        stream->failure.code = slot->status;
        stream->failure.scope = slot->scope > MLACAT_SCOPE_STREAM ? slot->scope : MLACAT_SCOPE_STREAM;
        error_copy_text(stream->failure.message, sizeof(stream->failure.message), slot->message);
    }
    free(slot->message);
    slot->message = NULL;
    make_free(slot);
}

static void end(struct slot *slot)
{
    struct mlacat_stream *stream = slot->stream;
    land(slot);
    if (slot->detached) {
        end_detached(slot);
    } else if (slot->done == NULL) {
        transport_wake(slot->waiter);
    } else {
        stream->due++;
        if (stream->ring != NULL) {
            STAILQ_INSERT_TAIL(&stream->ring->due, slot, link);
            pthread_cond_broadcast(&stream->ring->changed);
        } else {
            STAILQ_INSERT_TAIL(&stream->client->due, slot, link);
        }
    }
}

bool slot_end(struct slot *slot, const struct wire_completion *completion)
{
    slot->status = error_status_of(completion->code);
    slot->scope = MLACAT_SCOPE_NONE;
    slot->queue_ns = completion->queue_ns;
    slot->device_ns = completion->device_ns;
    if (slot->status != MLACAT_OK) {
        slot->scope = error_scope_of(completion->scope, slot->status);
        slot->message = strndup(completion->message != NULL ? completion->message : "", completion->message_bytes);
    }
    bool going = slot->status == MLACAT_UNAVAILABLE && slot->scope == MLACAT_SCOPE_CALL;
    end(slot);
    return going;
}

void slot_end_ok(struct slot *slot)
{
    slot_end(slot, &(struct wire_completion){0});
}

void slot_complete(struct mlacat_client *client, const struct wire_completion *completion)
{
    uint32_t index = (uint32_t)(completion->call_id >> STREAM_SLOT_BITS) & ((1u << STREAM_INDEX_BITS) - 1);
    struct mlacat_stream *stream = index < client->streams_nr ? client->streams[index] : NULL;
    if (stream == NULL || stream->ring != NULL) {
        return;
    }
    struct slot *slot = slot_find(stream, completion->call_id);
    if (slot != NULL && slot->state == SLOT_FLYING) {
        client->draining |= slot_end(slot, completion);
    }
}

void slot_end_all(struct mlacat_stream *stream, const char *reason)
{
    for (uint32_t i = 0; i < stream->slots_nr && stream->flying > 0; i++) {
        struct slot *slot = &stream->slots[i];
        if (slot->state != SLOT_FLYING) {
            continue;
        }
        slot->status = MLACAT_UNAVAILABLE;
        slot->scope = MLACAT_SCOPE_SESSION;
        slot->queue_ns = slot->device_ns = 0;
        struct error err;
        error_set(&err, MLACAT_UNAVAILABLE,
                  "the connection ended while the call was in flight: %.90s; its output is undefined: submit it again",
                  reason);
        slot->message = strdup(err.message);
        end(slot);
    }
}

void slot_take_result(struct slot *slot, struct mlacat_result *result)
{
    result->ended = 1;
    result->status = slot->status;
    result->scope = slot->scope;
    result->queue_ns = slot->queue_ns;
    result->device_ns = slot->device_ns;
    result->message[0] = '\0';
    if (slot->status != MLACAT_OK) {
        error_copy_text(result->message, sizeof(result->message), slot->message);
        free(slot->message);
        slot->message = NULL;
    }
    make_free(slot);
}
