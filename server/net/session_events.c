/* SPDX-License-Identifier: Apache-2.0 */
#include "events.h"
#include "session.h"
#include "stream.h"

static void on_gone(struct event *event)
{
    struct session *session = event->owner;
    session->events_nr--;
    session_part_gone(session);
}

static void on_imported(struct event *event)
{
    struct session *session = event->owner;
    struct service *service = session->service;
    session_count_import(session, -1);
    if (event->state == EVENT_FAILED && event->error.scope == MLACAT_SCOPE_DEVICE) {
        service->on_device_lost(service->owner, &event->error);
    }
    if (event->unwanted) {
        return;
    }
    if (event->state == EVENT_FAILED) {
        session_answer(session, event->request_id, &event->error);
        handles_remove(&session->events, event->ref);
        event_drop(event);
        return;
    }
    size_t size = wire_encode_event_registered(service->packet, event->request_id, event->ref);
    conn_send(&session->conn, service->packet, size, NULL, 0);
}

static const struct event_handlers event_handlers = {.on_imported = on_imported, .on_gone = on_gone};

void session_register_event(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    struct service *service = session->service;
    uint32_t limit = service->limits.client.events;
    struct error err;
    struct event *event;
    (void)packet;
    if (service->draining) {
        error_set(&err, MLACAT_UNAVAILABLE, "the service is draining: connect again when it is back");
        goto fail;
    }
    struct engine *engine = service_find_engine(service, message->register_event.device_uuid, &err);
    if (!engine || session_check_room(&session->events, session->events_nr, limit, "events", &err) != MLACAT_OK ||
        event_import(engine, session_lane(session, engine), message->register_event.handle, &event_handlers, session,
                     &event, &err) != MLACAT_OK) {
        goto fail;
    }
    session->events_nr++;
    session_count_import(session, 1);
    event->request_id = message->request_id;
    if (handles_add(&session->events, event, limit, "events", &event->ref, &err) != MLACAT_OK) {
        event_drop(event);
        goto fail;
    }
    return;
fail:
    session_answer(session, message->request_id, &err);
}

/* A client learns the name only when the import is done; one that guesses it finds nothing. */
static struct event *find(struct session *session, struct wire_ref ref, struct error *err)
{
    struct event *event = handles_find(&session->events, ref);
    if (event && event->state == EVENT_LIVE) {
        return event;
    }
    error_set(err, MLACAT_NOT_FOUND, "this client has no event %u.%u: it was unregistered, or never was", ref.id,
              ref.generation);
    return NULL;
}

void session_unregister_event(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    struct error err;
    struct event *event = find(session, message->unregister_event, &err);
    (void)packet;
    if (!event) {
        session_answer(session, message->request_id, &err);
        return;
    }
    handles_remove(&session->events, event->ref);
    event_drop(event);
    session_answer(session, message->request_id, NULL);
}

enum mlacat_status session_bind_event(struct session *session, struct call *call, struct wire_ref ref,
                                      struct error *err)
{
    struct event *event = find(session, ref, err);
    if (!event) {
        return err->code;
    }
    if (event->engine != call->stream->engine) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "event %u.%u is of device \"%s\", the stream is on \"%s\": use a stream of the event's device",
                         ref.id, ref.generation, event->engine->info.uuid, call->stream->engine->info.uuid);
    }
    event_pin(event);
    call->event = event;
    return MLACAT_OK;
}

void session_drop_events(struct session *session)
{
    for (uint32_t id = 0; id < session->events.slots_nr; id++) {
        struct event *event = session->events.slots[id].object;
        if (event) {
            handles_remove(&session->events, event->ref);
            event_drop(event);
        }
    }
}
