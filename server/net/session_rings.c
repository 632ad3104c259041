/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>

#include "buffers.h"
#include "ring_stream.h"
#include "rings.h"
#include "session.h"
#include "stream.h"

static uint64_t charged_bytes(const struct session *session)
{
    return (uint64_t)session->rings->pages->client_bytes + session->rings->pages->daemon_bytes;
}

void session_drop_rings(struct session *session)
{
    if (session->rings) {
        session->mapped_bytes -= charged_bytes(session);
        rings_free(session->rings);
        session->rings = NULL;
    }
}

/* They count like memory that the client has mapped: the pages are touched when the client, or its calls, want. */
static enum mlacat_status charge(struct session *session, struct error *err)
{
    uint64_t bytes = charged_bytes(session);
    if (bytes <= session_room_bytes(session)) {
        session->mapped_bytes += bytes;
        return MLACAT_OK;
    }
    error_set(err, MLACAT_RESOURCE_EXHAUSTED,
              "rings of %" PRIu64 " bytes would pass this client's limit of %" PRIu64 " (%" PRIu64
              " are mapped): lower max_streams or max_stream_calls, raise max_mapped, or go on without a ring",
              bytes, session->service->limits.client.mapped_bytes, session->mapped_bytes);
    rings_free(session->rings); /* at once: no device has them yet */
    session->rings = NULL;
    return err->code;
}

static void publish_buffers(struct session *session)
{
    for (uint32_t id = 0; id < session->buffers.slots_nr; id++) {
        struct buffer *buffer = session->buffers.slots[id].object;
        if (buffer && buffer->state == BUFFER_LIVE) {
            buffer_publish(buffer, &session->rings->table);
        }
    }
}

static void answer(struct session *session, uint64_t request_id)
{
    struct ring_pages *pages = session->rings->pages;
    const struct wire_rings rings = {
        .rings = pages->rings,
        .entries = pages->entries,
        .client_bytes = pages->client_bytes,
        .daemon_bytes = pages->daemon_bytes,
        .client_stride = sizeof(struct mlacat_ring_client),
        .daemon_stride = sizeof(struct mlacat_ring_daemon),
        .submissions_offset = pages->submissions_offset,
        .completions_offset = pages->completions_offset,
        .messages_offset = pages->messages_offset,
    };
    const int fds[] = {pages->client_fd, pages->daemon_fd};
    size_t size = wire_encode_rings_opened(session->service->packet, request_id, &rings);
    conn_send(&session->conn, session->service->packet, size, fds, 2);
    ring_pages_close_fds(pages);
}

void session_open_rings(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    const struct wire_limits *limits = &session->service->limits.client;
    uint32_t rings_nr = limits->streams < RINGS_MAX ? limits->streams : RINGS_MAX;
    struct error err;
    (void)packet;
    if (session->service->draining) {
        error_set(&err, MLACAT_UNAVAILABLE, "the service is draining: connect again when it is back");
    } else if (session->rings) {
        error_set(&err, MLACAT_ALREADY_EXISTS, "this connection has its rings already: it gets them once");
    } else if (rings_new(rings_nr, limits->stream_calls, &session->rings, &err) == MLACAT_OK &&
               charge(session, &err) == MLACAT_OK) {
        publish_buffers(session);
        answer(session, message->request_id);
        return;
    }
    session_answer(session, message->request_id, &err);
}

enum mlacat_status session_new_ring(struct session *session, struct engine *engine, struct ring_stream **ring,
                                    struct error *err)
{
    if (!session->rings) {
        return error_set(err, MLACAT_FAILED_PRECONDITION,
                         "a stream with a ring needs the rings of the connection: send OpenRings first");
    }
    return ring_stream_new(session->rings, engine, ring, err);
}

void session_ring_broken(struct stream *stream, const struct error *why)
{
    struct session *session = stream->owner;
    if (why->scope >= MLACAT_SCOPE_DEVICE) {
        session->service->on_device_lost(session->service->owner, why);
    } else {
        session_end(session, why);
    }
}

void session_count_ring_calls(const struct session *session, uint64_t *total, uint32_t *in_flight)
{
    *total = session->ring_calls_total;
    *in_flight = 0;
    for (struct list_node *node = session->stream_list.next; node != &session->stream_list; node = node->next) {
        const struct ring_stream *ring = LIST_ENTRY(node, struct stream, link)->ring;
        if (ring) {
            *total += atomic_load_explicit(&ring->calls_total, memory_order_relaxed);
            *in_flight += atomic_load_explicit(&ring->calls_nr, memory_order_relaxed);
        }
    }
}
