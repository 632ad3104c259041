/* SPDX-License-Identifier: Apache-2.0 */
#include "completion.h"
#include "ring_stream.h"
#include "session.h"
#include "stream.h"

static void on_opened(struct stream *stream)
{
    struct session *session = stream->owner;
    if (stream->state != STREAM_OPEN) {
        session_answer(session, stream->request_id, &stream->error);
        return;
    }
    const struct ring_stream *ring = stream->ring;
    uint32_t calls = stream->calls_nr;
    struct wire_ring place = {0};
    if (ring) {
        calls = session->rings->pages->calls;
        place = (struct wire_ring){.index = ring->index, .sequence = session->rings->sequence[ring->index]};
    }
    size_t size = wire_encode_stream_opened(session->service->packet, stream->request_id, stream->ref, calls,
                                            ring ? &place : NULL);
    conn_send(&session->conn, session->service->packet, size, ring ? &ring->doorbell_fd : NULL, ring ? 1 : 0);
}

static void on_gone(struct stream *stream)
{
    struct session *session = stream->owner;
    session->streams_nr--;
    list_remove(&stream->link);
    session->ring_calls_total += stream->ring_calls_total;
    if (stream->state == STREAM_OPENING) {
        handles_remove(&session->streams, stream->ref);
    } else if (stream->request_id != 0) {
        session_answer(session, stream->request_id, NULL);
    }
    session_part_gone(session);
}

static const struct stream_handlers stream_handlers = {
    .on_opened = on_opened,
    .on_call_done = session_call_done,
    .on_broken = session_ring_broken,
    .on_gone = on_gone,
};

void session_open_stream(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    struct service *service = session->service;
    uint32_t limit = service->limits.client.streams;
    struct error err;
    struct stream *stream;
    struct ring_stream *ring = NULL;
    uint32_t calls_nr = service->limits.client.stream_calls;
    (void)packet;
    if (service->draining) {
        error_set(&err, MLACAT_UNAVAILABLE, "the service is draining: connect again when it is back");
        goto fail;
    }
    struct engine *engine = service_find_engine(service, message->open_stream.device_uuid, &err);
    if (!engine || session_check_room(&session->streams, session->streams_nr, limit, "streams", &err) != MLACAT_OK) {
        goto fail;
    }
    if (message->open_stream.ring) {
        if (session_new_ring(session, engine, &ring, &err) != MLACAT_OK) {
            goto fail;
        }
        calls_nr = ring->ring.most;
    }
    if (stream_open(engine, session_lane(session, engine), calls_nr, ring, &stream_handlers, session, &stream, &err) !=
        MLACAT_OK) {
        goto fail_ring;
    }
    session->streams_nr++;
    list_append(&session->stream_list, &stream->link);
    if (handles_add(&session->streams, stream, limit, "streams", &stream->ref, &err) != MLACAT_OK) {
        stream_close(stream); /* with no request to answer */
        goto fail;
    }
    stream->request_id = message->request_id;
    return;
fail_ring:
    if (ring) {
        ring_stream_free(ring);
    }
fail:
    session_answer(session, message->request_id, &err);
}

/* A client learns the name only when the stream is open; one that guesses it finds nothing. */
struct stream *session_find_stream(struct session *session, struct wire_ref ref, struct error *err)
{
    struct stream *stream = handles_find(&session->streams, ref);
    if (stream && stream->state == STREAM_OPEN) {
        return stream;
    }
    error_set(err, MLACAT_NOT_FOUND, "this client has no stream %u.%u: it was closed, or never was", ref.id,
              ref.generation);
    return NULL;
}

struct stream *session_find_packet_stream(struct session *session, struct wire_ref ref, struct error *err)
{
    struct stream *stream = session_find_stream(session, ref, err);
    if (!stream || !stream->ring) {
        return stream;
    }
    error_set(err, MLACAT_FAILED_PRECONDITION,
              "stream %u.%u has a ring and takes no packets: write calls and cancellations into ring %u", ref.id,
              ref.generation, stream->ring->index);
    return NULL;
}

void session_close_stream(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    struct error err;
    struct stream *stream = session_find_stream(session, message->close_stream, &err);
    (void)packet;
    if (!stream) {
        session_answer(session, message->request_id, &err);
        return;
    }
    handles_remove(&session->streams, stream->ref);
    stream->request_id = message->request_id;
    stream_close(stream);
}

void session_close_streams(struct session *session)
{
    struct list_node *node = session->stream_list.next;
    while (node != &session->stream_list) {
        struct stream *stream = LIST_ENTRY(node, struct stream, link);
        node = node->next;
        struct list_node *live = stream->live.next;
        while (live != &stream->live) {
            struct call *call = LIST_ENTRY(live, struct call, link);
            live = live->next;
            stream_withdraw(stream, call, CALL_WITHDRAWN_GONE);
        }
        stream_drop_ring(stream);
        if (stream->state != STREAM_CLOSING) {
            handles_remove(&session->streams, stream->ref);
            stream_close(stream);
        }
    }
}
