/* SPDX-License-Identifier: Apache-2.0 */
#include "slot.h"

#include <stdlib.h>
#include <string.h>

#include "callback.h"
#include "stream.h"
#include "transport.h"

uint64_t slot_call_id(const struct slot *slot)
{
    const struct mlacat_stream *stream = slot->stream;
    return (uint64_t)slot->generation << (STREAM_INDEX_BITS + STREAM_SLOT_BITS) |
           (uint64_t)stream->index << STREAM_SLOT_BITS | (uint64_t)(slot - stream->slots);
}

struct slot *slot_find(struct mlacat_client *client, uint64_t id)
{
    uint32_t stream = (uint32_t)(id >> STREAM_SLOT_BITS) & ((1u << STREAM_INDEX_BITS) - 1);
    uint32_t slot = (uint32_t)id & ((1u << STREAM_SLOT_BITS) - 1);
    if (stream >= client->streams_nr || client->streams[stream] == NULL || slot >= client->streams[stream]->slots_nr) {
        return NULL;
    }
    struct slot *found = &client->streams[stream]->slots[slot];
    return slot_call_id(found) == id && found->state != SLOT_FREE ? found : NULL;
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
    stream->flying++;
    stream->client->flying++;
    stream->client->flying_callbacks += slot->done != NULL;
    return slot;
}

static void land(struct slot *slot)
{
    slot->state = SLOT_ENDED;
    slot->stream->flying--;
    slot->stream->client->flying--;
    slot->stream->client->flying_callbacks -= slot->done != NULL;
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

static void end(struct slot *slot)
{
    struct mlacat_client *client = slot->stream->client;
    land(slot);
    if (slot->done != NULL) {
        slot->stream->due++;
        STAILQ_INSERT_TAIL(&client->due, slot, link);
    } else {
        transport_wake(slot->waiter);
    }
}

void slot_complete(struct mlacat_client *client, const struct wire_completion *completion)
{
    struct slot *slot = slot_find(client, completion->call_id);
    if (slot == NULL || slot->state != SLOT_FLYING) {
        return;
    }
    slot->status = error_status_of(completion->code);
    slot->scope = MLACAT_SCOPE_NONE;
    slot->queue_ns = completion->queue_ns;
    slot->device_ns = completion->device_ns;
    if (slot->status != MLACAT_OK) {
        slot->scope = error_scope_of(completion->scope, slot->status);
        slot->message = strndup(completion->message != NULL ? completion->message : "", completion->message_bytes);
        client->draining |= slot->status == MLACAT_UNAVAILABLE && slot->scope == MLACAT_SCOPE_CALL;
    }
    end(slot);
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
    if (!STAILQ_EMPTY(&stream->client->due)) {
        callback_announce(stream->client);
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
