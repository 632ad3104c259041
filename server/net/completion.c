/* SPDX-License-Identifier: Apache-2.0 */
#include "completion.h"

#include "session.h"
#include "stream.h"

static void queue_session(struct session *session)
{
    if (list_empty(&session->unsent_link)) {
        list_append(&session->service->unsent, &session->unsent_link);
    }
}

void completion_add(struct session *session, struct call *call)
{
    list_append(&session->done, &call->link);
    queue_session(session);
}

void completion_resume(struct session *session)
{
    if (!list_empty(&session->done)) {
        queue_session(session);
    }
}

static void describe(const struct call *call, struct wire_completion *out)
{
    uint64_t queued_until_ns = call->launched_ns ? call->launched_ns : call->received_ns;
    *out = (struct wire_completion){
        .stream = call->stream->ref,
        .call_id = call->call_id,
        .error = &call->error,
        .queue_ns = queued_until_ns - call->received_ns,
        .device_ns = call->ended_ns > queued_until_ns ? call->ended_ns - queued_until_ns : 0,
    };
}

static void free_sent(struct session *session, uint32_t nr)
{
    while (nr-- > 0) {
        struct call *call = LIST_ENTRY(session->done.next, struct call, link);
        session->calls_nr--;
        stream_put_call(call->stream, call);
    }
}

/* `done` is not empty. false: the socket takes no more for now. */
static bool send_some(struct session *session)
{
    struct wire_completion completions[WIRE_COMPLETIONS_MAX];
    struct list_node *node = session->done.next;
    uint32_t nr = 0;
    do {
        describe(LIST_ENTRY(node, struct call, link), &completions[nr++]);
        node = node->next;
    } while (node != &session->done && nr < WIRE_COMPLETIONS_MAX);
    size_t size = wire_encode_completions(session->service->packet, completions, nr);
    if (!conn_try_send(&session->conn, session->service->packet, size)) {
        return false;
    }
    free_sent(session, nr);
    return true;
}

void completion_flush(struct service *service)
{
    struct list_node *node;
    while ((node = list_take(&service->unsent))) {
        struct session *session = LIST_ENTRY(node, struct session, unsent_link);
        while (!list_empty(&session->done) && send_some(session)) {
        }
    }
}

void completion_send_refused(struct session *session)
{
    struct service *service = session->service;
    struct service_refused *refused = &service->refused;
    if (refused->nr > 0) {
        size_t size = wire_encode_completions(service->packet, refused->completions, refused->nr);
        refused->nr = 0;
        conn_send(&session->conn, service->packet, size, NULL, 0);
    }
}

void completion_refuse(struct session *session, struct wire_ref stream, uint64_t call_id, const struct error *err)
{
    struct service_refused *refused = &session->service->refused;
    uint32_t i = refused->nr++;
    session->service->outcomes[err->code]++;
    refused->errors[i] = *err;
    refused->completions[i] =
        (struct wire_completion){.stream = stream, .call_id = call_id, .error = &refused->errors[i]};
    if (refused->nr == WIRE_COMPLETIONS_MAX) {
        completion_send_refused(session);
    }
}

void completion_discard(struct session *session)
{
    uint32_t nr = 0;
    for (struct list_node *node = session->done.next; node != &session->done; node = node->next) {
        nr++;
    }
    list_remove(&session->unsent_link);
    free_sent(session, nr);
}
