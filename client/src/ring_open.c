/* SPDX-License-Identifier: Apache-2.0 */
/* How a stream gets its ring from the daemon. */
#include <stdlib.h>
#include <string.h>

#include "reconnect.h"
#include "request.h"
#include "ring.h"

enum mlacat_status ring_wanted(const struct mlacat_client *client, enum mlacat_transport transport, bool *wanted)
{
    const char *choice = transport == MLACAT_TRANSPORT_AUTO ? getenv("MLACAT_TRANSPORT") : NULL;
    if (choice != NULL && strcmp(choice, "message") == 0) {
        transport = MLACAT_TRANSPORT_MESSAGE;
    }
    bool has_rings = (client->server.features & MLACAT__V1__FEATURE__FEATURE_RING) != 0;
    *wanted = transport != MLACAT_TRANSPORT_MESSAGE && has_rings && client->dispatch == MLACAT_DISPATCH_THREAD;
    if (transport != MLACAT_TRANSPORT_RING || *wanted) {
        return MLACAT_OK;
    }
    if (!has_rings) {
        return error_fail(MLACAT_UNIMPLEMENTED, "the daemon (version %.40s) has no rings; use MLACAT_TRANSPORT_AUTO",
                          client->server.info.version);
    }
    return error_fail(MLACAT_FAILED_PRECONDITION,
                      "streams of a client with MLACAT_DISPATCH_CALLER have no ring; connect with "
                      "MLACAT_DISPATCH_THREAD, or use MLACAT_TRANSPORT_AUTO");
}

uint32_t ring_limit(const struct ring_pages *pages, uint32_t calls)
{
    return calls < pages->entries - 1 ? calls : pages->entries - 1; /* one is for a request to cancel */
}

enum mlacat_status ring_take_offer(struct mlacat_stream *stream, const Mlacat__V1__StreamOpened *opened,
                                   const struct ring_pages *pages, struct wire_fds *passed, struct error *err)
{
    if (!opened->has_ring || opened->ring >= pages->rings || passed->nr != 1) {
        return error_set(err, MLACAT_INTERNAL,
                         "the daemon opened the stream without the ring that was asked for (ring %u of %u)",
                         opened->ring, pages->rings);
    }
    ring_offer(stream, opened->ring, opened->sequence, passed->fd[0]);
    passed->nr = 0;
    return MLACAT_OK;
}

/* The pages of this connection. */
static enum mlacat_status open_pages(struct mlacat_client *client, struct error *err)
{
    while (client->opening_pages) {
        pthread_cond_wait(&client->changed, &client->lock);
    }
    if (client->fd < 0) {
        return error_set(err, MLACAT_UNAVAILABLE, "the connection ended while a ring was asked for");
    }
    if (client->pages != NULL) {
        return MLACAT_OK;
    }
    struct wire_fds passed = {0};
    message request = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__OpenRings body = MLACAT__V1__OPEN_RINGS__INIT;
    message *reply;
    request.body_case = MLACAT__V1__ENVELOPE__BODY_OPEN_RINGS;
    request.open_rings = &body;
    client->opening_pages = true;
    if (request_make_passing(client, &request, REQUEST_THIS_CONNECTION, MLACAT__V1__ENVELOPE__BODY_RINGS_OPENED, &reply,
                             &passed, err) == MLACAT_OK) {
        ring_pages_map(reply->rings_opened, &passed, &client->pages, err);
        message_free(reply);
    }
    wire_close_fds(&passed);
    client->opening_pages = false;
    pthread_cond_broadcast(&client->changed);
    return err->code;
}

/* On this connection. */
static enum mlacat_status open_here(struct mlacat_stream *stream, message **reply, struct error *err)
{
    struct mlacat_client *client = stream->client;
    struct message_open request;
    struct wire_fds passed = {0};
    if (open_pages(client, err) != MLACAT_OK) {
        return err->code;
    }
    message_open(&request, stream);
    if (request_make_passing(client, &request.envelope, REQUEST_THIS_CONNECTION,
                             MLACAT__V1__ENVELOPE__BODY_STREAM_OPENED, reply, &passed, err) == MLACAT_OK) {
        if (ring_take_offer(stream, (*reply)->stream_opened, client->pages, &passed, err) == MLACAT_OK) {
            ring_attach(stream, client->pages);
        } else {
            message_free(*reply);
        }
    }
    wire_close_fds(&passed);
    return err->code;
}

enum mlacat_status ring_open_stream(struct mlacat_stream *stream, message **reply, struct error *err)
{
    struct mlacat_client *client = stream->client;
    for (;;) {
        if (reconnect_ready(client, true, err) != MLACAT_OK) {
            return err->code;
        }
        uint64_t epoch = client->epoch;
        *err = (struct error){0};
        if (open_here(stream, reply, err) == MLACAT_OK || client->epoch == epoch) {
            return err->code;
        }
    }
}
