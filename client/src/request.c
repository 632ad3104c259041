/* SPDX-License-Identifier: Apache-2.0 */
#include "request.h"

#include <string.h>

#include "reconnect.h"
#include "timing.h"
#include "transport.h"

static void end_request(struct mlacat_client *client, struct request *request, message *reply)
{
    TAILQ_REMOVE(&client->requests, request, link);
    request->reply = reply;
    request->ended = true;
    transport_wake(&request->waiter);
}

void request_deliver(struct mlacat_client *client, message *reply, struct wire_fds *passed)
{
    struct request *request;
    TAILQ_FOREACH(request, &client->requests, link)
    {
        if (request->id == reply->request_id) {
            if (request->passed != NULL) {
                *request->passed = *passed;
                passed->nr = 0;
            }
            end_request(client, request, reply);
            return;
        }
    }
    message_free(reply);
}

void request_end_all(struct mlacat_client *client)
{
    while (!TAILQ_EMPTY(&client->requests)) {
        end_request(client, TAILQ_FIRST(&client->requests), NULL);
    }
}

static enum mlacat_status fail_lost(const struct mlacat_client *client, struct error *err)
{
    error_set(err, MLACAT_UNAVAILABLE, "the connection to %s ended before the answer; try again%s%s", client->socket,
              client->last_words.code != MLACAT_OK ? "; it ended: " : "", client->last_words.message);
    err->scope = MLACAT_SCOPE_SESSION;
    return err->code;
}

static bool is_over(int64_t until)
{
    return until != TIMING_NEVER && timing_now() >= until;
}

static enum mlacat_status fail_late(const struct mlacat_client *client, struct error *err)
{
    return error_set(err, MLACAT_DEADLINE_EXCEEDED, "%s has not answered in time; is it stopped or stuck?",
                     client->socket);
}

/* Sends, and connects again as often as need be until the packet is in the socket. */
static enum mlacat_status send_request(struct mlacat_client *client, message *request, const struct wire_fds *fds,
                                       enum request_when when, int64_t until, struct error *err)
{
    uint64_t epoch = client->epoch;
    size_t size = mlacat__v1__envelope__get_packed_size(request);
    if (size > WIRE_PACKET_BYTES) {
        return error_set(err, MLACAT_INVALID_ARGUMENT, "the request takes %zu bytes; at most %u fit into a packet",
                         size, WIRE_PACKET_BYTES);
    }
    for (;;) {
        if (when == REQUEST_THIS_CONNECTION) {
            if (client->fd < 0 || client->epoch != epoch) {
                return fail_lost(client, err);
            }
        } else if (reconnect_ready(client, when == REQUEST_NEW_WORK, err) != MLACAT_OK) {
            return err->code;
        }
        mlacat__v1__envelope__pack(request, client->outgoing);
        enum transport_sent sent = transport_send(client, client->outgoing, size, fds);
        if (sent == TRANSPORT_SENT) {
            return MLACAT_OK;
        }
        if (is_over(until)) {
            return fail_late(client, err);
        }
        if (transport_recover(client, sent, until, err) != MLACAT_OK) {
            return err->code;
        }
    }
}

/* New work is refused as unavailable by a daemon that drains, but also where the device is not there; that one was not
 * there when we connected either. */
static bool tells_of_drain(const struct mlacat_client *client, const message *request, const struct error *err)
{
    const char *device =
        request->body_case == MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER ? request->register_buffer->device_uuid
        : request->body_case == MLACAT__V1__ENVELOPE__BODY_OPEN_STREAM   ? request->open_stream->device_uuid
                                                                         : NULL;
    if (device == NULL || err->code != MLACAT_UNAVAILABLE || err->scope != MLACAT_SCOPE_CALL) {
        return false;
    }
    for (uint32_t i = 0; i < client->server.info.devices; i++) {
        if (strcmp(client->server.devices[i].uuid, device) == 0) {
            return client->server.devices[i].available != 0;
        }
    }
    return false;
}

/* With descriptors in one direction at most. */
static enum mlacat_status make(struct mlacat_client *client, message *message_out, const struct wire_fds *fds,
                               enum request_when when, int body, int64_t until, message **reply,
                               struct wire_fds *passed, struct error *err)
{
    struct request request = {.id = ++client->last_request_id, .passed = passed};
    message_out->request_id = request.id;
    if (send_request(client, message_out, fds, when, until, err) != MLACAT_OK) {
        return err->code;
    }
    uint64_t epoch = client->epoch;
    TAILQ_INSERT_TAIL(&client->requests, &request, link);
    while (!request.ended && !is_over(until)) {
        transport_step(client, &request.waiter, until);
    }
    transport_leave(client);
    if (!request.ended) {
        TAILQ_REMOVE(&client->requests, &request, link); /* the reply finds nobody */
        return fail_late(client, err);
    }
    if (request.reply == NULL || client->epoch != epoch) {
        if (request.reply != NULL) {
            message_free(request.reply);
        }
        return fail_lost(client, err);
    }
    if (message_check(request.reply, body, err) != MLACAT_OK) {
        client->draining |= tells_of_drain(client, message_out, err);
        message_free(request.reply);
        return err->code;
    }
    if (reply == NULL) {
        message_free(request.reply);
    } else {
        *reply = request.reply;
    }
    return MLACAT_OK;
}

enum mlacat_status request_make(struct mlacat_client *client, message *request, const struct wire_fds *fds,
                                enum request_when when, int body, message **reply, struct error *err)
{
    return make(client, request, fds, when, body, TIMING_NEVER, reply, NULL, err);
}

enum mlacat_status request_make_until(struct mlacat_client *client, message *request, enum request_when when, int body,
                                      int64_t until, message **reply, struct error *err)
{
    return make(client, request, NULL, when, body, until, reply, NULL, err);
}

enum mlacat_status request_make_passing(struct mlacat_client *client, message *request, enum request_when when,
                                        int body, message **reply, struct wire_fds *passed, struct error *err)
{
    return make(client, request, NULL, when, body, TIMING_NEVER, reply, passed, err);
}
