/* SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"

#include <stdlib.h>
#include <string.h>

#include "callback.h"
#include "reconnect.h"
#include "request.h"
#include "timing.h"
#include "transport.h"

#define STREAMS_MAX (1u << STREAM_INDEX_BITS)
#define SLOTS_MAX (1u << STREAM_SLOT_BITS)

static void discard(struct mlacat_stream *stream)
{
    for (uint32_t i = 0; i < stream->slots_nr; i++) {
        free(stream->slots[i].message);
    }
    free(stream->slots);
    free(stream);
}

void stream_free(struct mlacat_stream *stream)
{
    stream->client->streams[stream->index] = NULL;
    discard(stream);
}

/* ---------------------------------------------------------------------------------------------------- open */

static enum mlacat_status make_slots(struct mlacat_stream *stream, uint32_t nr)
{
    nr = nr < SLOTS_MAX ? nr : SLOTS_MAX;
    stream->slots = calloc(nr, sizeof(*stream->slots));
    if (nr == 0 || stream->slots == NULL) {
        return error_fail(MLACAT_RESOURCE_EXHAUSTED, "no memory for the %u calls of a stream", nr);
    }
    stream->slots_nr = nr;
    stream->limit = nr;
    for (uint32_t i = 0; i < nr; i++) {
        stream->slots[i].generation = 1;
        stream->slots[i].stream = stream;
        STAILQ_INSERT_TAIL(&stream->unused, &stream->slots[i], link);
    }
    return MLACAT_OK;
}

static enum mlacat_status find_index(struct mlacat_client *client, uint32_t *index)
{
    for (*index = 0; *index < client->streams_nr; ++*index) {
        if (client->streams[*index] == NULL) {
            return MLACAT_OK;
        }
    }
    uint32_t nr = client->streams_nr == 0 ? 8 : client->streams_nr * 2;
    struct mlacat_stream **grown =
        nr > STREAMS_MAX ? NULL : realloc(client->streams, nr * sizeof(struct mlacat_stream *));
    if (grown == NULL) {
        return error_fail(MLACAT_RESOURCE_EXHAUSTED, "%u streams are open; close some", client->streams_nr);
    }
    memset(grown + client->streams_nr, 0, (nr - client->streams_nr) * sizeof(struct mlacat_stream *));
    client->streams = grown;
    client->streams_nr = nr;
    return MLACAT_OK;
}

/* Sends one of the requests that name a stream of this connection. Its outcome changes nothing for the caller. */
static void close_at_daemon(struct mlacat_client *client, struct wire_ref stream)
{
    struct error ignored;
    message request = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__CloseStream body = MLACAT__V1__CLOSE_STREAM__INIT;
    Mlacat__V1__StreamRef ref = MLACAT__V1__STREAM_REF__INIT;
    request.body_case = MLACAT__V1__ENVELOPE__BODY_CLOSE_STREAM;
    request.close_stream = &body;
    body.stream = &ref;
    ref.id = stream.id;
    ref.generation = stream.generation;
    (void)request_make(client, &request, NULL, REQUEST_THIS_CONNECTION, MLACAT__V1__ENVELOPE__BODY_ANSWER, NULL,
                       &ignored);
}

static enum mlacat_status open_at_daemon(struct mlacat_client *client, struct mlacat_stream *stream)
{
    struct message_open request;
    message *reply;
    message_open(&request, stream);
    struct error err;
    if (request_make(client, &request.envelope, NULL, REQUEST_NEW_WORK, MLACAT__V1__ENVELOPE__BODY_STREAM_OPENED,
                     &reply, &err) != MLACAT_OK) {
        return error_raise(&err);
    }
    stream->ref = message_stream_ref(reply->stream_opened->stream);
    enum mlacat_status status = make_slots(stream, reply->stream_opened->calls);
    message_free(reply);
    if (status == MLACAT_OK) {
        status = find_index(client, &stream->index);
    }
    if (status != MLACAT_OK) {
        close_at_daemon(client, stream->ref);
        return status;
    }
    client->streams[stream->index] = stream;
    return MLACAT_OK;
}

enum mlacat_status mlacat_stream_open(struct mlacat_client *client, const char *device, struct mlacat_stream **stream)
{
    enum mlacat_status status = client_check(client);
    if (status != MLACAT_OK) {
        return status;
    }
    if (stream == NULL) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "stream is NULL; give the address of a pointer");
    }
    *stream = NULL;
    struct mlacat_stream *made = calloc(1, sizeof(*made));
    if (made == NULL) {
        return error_fail(MLACAT_RESOURCE_EXHAUSTED, "no memory for the handle of a stream");
    }
    made->client = client;
    STAILQ_INIT(&made->unused);
    const struct mlacat_device_info *chosen;
    pthread_mutex_lock(&client->lock);
    status = client_pick_device(client, device, &chosen);
    if (status == MLACAT_OK) {
        memcpy(made->device, chosen->uuid, sizeof(made->device));
        status = open_at_daemon(client, made);
    }
    pthread_mutex_unlock(&client->lock);
    if (status != MLACAT_OK) {
        discard(made);
        return status;
    }
    *stream = made;
    return MLACAT_OK;
}

/* ---------------------------------------------------------------------------------------------------- close */

void mlacat_stream_close(struct mlacat_stream *stream)
{
    if (stream == NULL || client_is_forked(stream->client)) {
        return;
    }
    struct mlacat_client *client = stream->client;
    struct waiter waiter = {.each_round = true};
    pthread_mutex_lock(&client->lock);
    reconnect_settle(client);
    stream->closing = true;
    if (client->fd >= 0 && stream->broken.code == MLACAT_OK) {
        close_at_daemon(client, stream->ref);
    }
    while (stream->flying > 0 && transport_step(client, &waiter, TIMING_NEVER)) {
    }
    transport_leave(client);
    while (stream->due > 0) {
        if (client->dispatch == MLACAT_DISPATCH_CALLER && !STAILQ_EMPTY(&client->due)) {
            callback_run_due(client);
        } else {
            pthread_cond_wait(&client->changed, &client->lock);
        }
    }
    reconnect_settle(client);
    stream_free(stream);
    pthread_mutex_unlock(&client->lock);
}
