/* SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"

#include <stdlib.h>
#include <string.h>

#include "callback.h"
#include "reconnect.h"
#include "request.h"
#include "ring.h"
#include "sized.h"
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
    ring_free(stream->ring);
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

static enum mlacat_status open_for_messages(struct mlacat_stream *stream, message **reply, struct error *err)
{
    struct message_open request;
    message_open(&request, stream);
    return request_make(stream->client, &request.envelope, NULL, REQUEST_NEW_WORK,
                        MLACAT__V1__ENVELOPE__BODY_STREAM_OPENED, reply, err);
}

static enum mlacat_status open_at_daemon(struct mlacat_client *client, struct mlacat_stream *stream,
                                         enum mlacat_transport transport)
{
    message *reply;
    struct error err;
    enum mlacat_status status =
        stream->ring != NULL ? ring_open_stream(stream, &reply, &err) : open_for_messages(stream, &reply, &err);
    /* The connection may have no ring left, or the daemon no memory for rings. */
    if (status == MLACAT_RESOURCE_EXHAUSTED && stream->ring != NULL && transport == MLACAT_TRANSPORT_AUTO) {
        ring_free(stream->ring);
        stream->ring = NULL;
        status = open_for_messages(stream, &reply, &err);
    }
    if (status != MLACAT_OK) {
        return error_raise(&err);
    }
    uint32_t calls = reply->stream_opened->calls;
    stream->ref = message_stream_ref(reply->stream_opened->stream);
    message_free(reply);
    status = make_slots(stream, stream->ring != NULL ? ring_limit(client->pages, calls) : calls);
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

static enum mlacat_status open_stream(struct mlacat_stream *stream, const char *device, enum mlacat_transport transport)
{
    const struct mlacat_device_info *chosen;
    bool wants_ring;
    enum mlacat_status status = client_pick_device(stream->client, device, &chosen);
    if (status == MLACAT_OK) {
        status = ring_wanted(stream->client, transport, &wants_ring);
    }
    if (status != MLACAT_OK) {
        return status;
    }
    if (wants_ring) {
        stream->ring = ring_new();
        if (stream->ring == NULL) {
            return error_fail(MLACAT_RESOURCE_EXHAUSTED, "no memory for the ring of a stream");
        }
    }
    memcpy(stream->device, chosen->uuid, sizeof(stream->device));
    stream->on_host = strcmp(chosen->kind, "host") == 0;
    return open_at_daemon(stream->client, stream, transport);
}

static enum mlacat_status check_options(const struct mlacat_stream_options *options,
                                        struct mlacat_stream_options *known)
{
    *known = (struct mlacat_stream_options){0};
    struct error err;
    if (options != NULL &&
        sized_read(known, sizeof(*known), options, SIZED_STREAM_OPTIONS, "mlacat_stream_options", &err) != MLACAT_OK) {
        return error_raise(&err);
    }
    if ((uint32_t)known->transport > MLACAT_TRANSPORT_RING) {
        return error_fail(MLACAT_INVALID_ARGUMENT,
                          "transport is %d; MLACAT_TRANSPORT_AUTO is 0, _MESSAGE is 1, _RING is 2",
                          (int)known->transport);
    }
    return MLACAT_OK;
}

enum mlacat_status mlacat_stream_open_with(struct mlacat_client *client, const char *device,
                                           const struct mlacat_stream_options *options, struct mlacat_stream **stream)
{
    struct mlacat_stream_options known;
    enum mlacat_status status = client_check(client);
    if (status != MLACAT_OK) {
        return status;
    }
    if (stream == NULL) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "stream is NULL; give the address of a pointer");
    }
    *stream = NULL;
    status = check_options(options, &known);
    if (status != MLACAT_OK) {
        return status;
    }
    struct mlacat_stream *made = calloc(1, sizeof(*made));
    if (made == NULL) {
        return error_fail(MLACAT_RESOURCE_EXHAUSTED, "no memory for the handle of a stream");
    }
    made->client = client;
    made->cuda_device = CLIENT_CUDA_UNKNOWN;
    STAILQ_INIT(&made->unused);
    pthread_mutex_lock(&client->lock);
    status = open_stream(made, device, known.transport);
    pthread_mutex_unlock(&client->lock);
    if (status != MLACAT_OK) {
        discard(made);
        return status;
    }
    *stream = made;
    return MLACAT_OK;
}

enum mlacat_status mlacat_stream_open(struct mlacat_client *client, const char *device, struct mlacat_stream **stream)
{
    return mlacat_stream_open_with(client, device, NULL, stream);
}

enum mlacat_transport mlacat_stream_transport(const struct mlacat_stream *stream)
{
    return stream == NULL         ? MLACAT_TRANSPORT_AUTO
           : stream->ring != NULL ? MLACAT_TRANSPORT_RING
                                  : MLACAT_TRANSPORT_MESSAGE;
}

/* ---------------------------------------------------------------------------------------------------- close */

/* Waits for the calls in flight and their callbacks. With the lock. */
static void finish_messages(struct mlacat_stream *stream)
{
    struct mlacat_client *client = stream->client;
    struct waiter waiter = {.each_round = true};
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
}

/* The same with a ring. */
static void finish_ring(struct mlacat_stream *stream)
{
    pthread_mutex_unlock(&stream->client->lock);
    ring_drain(stream);
    ring_callback_stop(stream);
    pthread_mutex_lock(&stream->client->lock);
}

static void set_closing(struct mlacat_stream *stream)
{
    if (stream->ring != NULL) {
        pthread_mutex_lock(&stream->ring->lock);
    }
    stream->closing = true;
    if (stream->ring != NULL) {
        pthread_mutex_unlock(&stream->ring->lock);
    }
}

void mlacat_stream_close(struct mlacat_stream *stream)
{
    if (stream == NULL || client_is_forked(stream->client)) {
        return;
    }
    struct mlacat_client *client = stream->client;
    pthread_mutex_lock(&client->lock);
    reconnect_settle(client);
    set_closing(stream);
    uint64_t epoch = client->epoch;
    bool known = client->fd >= 0 && stream->broken.code == MLACAT_OK;
    if (stream->ring != NULL) {
        finish_ring(stream); /* first: from the close on the daemon may give the ring to another stream */
    }
    if (known && client->fd >= 0 && client->epoch == epoch) {
        close_at_daemon(client, stream->ref);
    }
    if (stream->ring == NULL) {
        finish_messages(stream);
    }
    reconnect_settle(client);
    stream_free(stream);
    pthread_mutex_unlock(&client->lock);
}
