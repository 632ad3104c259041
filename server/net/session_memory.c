/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>

#include "buffers.h"
#include "events.h"
#include "rings.h"
#include "session.h"
#include "stream.h"

/* Of memory that was registered, not of a call's own. */
static void count_leaving(struct session *session, const struct buffer *buffer, int change)
{
    if (!buffer->user) {
        session->leaving_nr[buffer->engine - session->service->engines] += (uint32_t)change;
    }
}

static void on_gone(struct buffer *buffer)
{
    struct session *session = buffer->owner;
    count_leaving(session, buffer, -1);
    session->mapped_bytes -= buffer->charged_bytes;
    session->buffers_nr--;
    session_part_gone(session);
}

static void on_unpublished(struct buffer *buffer)
{
    struct session *session = buffer->owner;
    handles_remove(&session->buffers, buffer->ref);
}

/* A worker may find a published buffer by its name for a moment yet: only then the name is free for another. */
static void drop_registered(struct session *session, struct buffer *buffer)
{
    if (!buffer->slot) {
        handles_remove(&session->buffers, buffer->ref);
    }
    count_leaving(session, buffer, 1);
    buffer_drop(buffer);
}

struct buffer *session_find_buffer(struct session *session, struct wire_ref ref)
{
    struct buffer *buffer = handles_find(&session->buffers, ref);
    return buffer && buffer->state == BUFFER_LIVE && !buffer->unwanted ? buffer : NULL;
}

uint64_t session_room_bytes(const struct session *session)
{
    uint64_t limit = session->service->limits.client.mapped_bytes;
    return session->mapped_bytes < limit ? limit - session->mapped_bytes : 0;
}

/* Several imports may have been under way at once, each within the limit: the sum is checked here. */
static enum mlacat_status charge(struct session *session, struct buffer *buffer)
{
    if (buffer->state != BUFFER_LIVE) {
        return buffer->error.code;
    }
    if (buffer->info.charged_bytes > session_room_bytes(session)) {
        return error_set(&buffer->error, MLACAT_RESOURCE_EXHAUSTED,
                         "%" PRIu64 " bytes more would pass this client's limit of %" PRIu64 " (%" PRIu64
                         " are mapped): release buffers, or raise max_mapped",
                         buffer->info.charged_bytes, session->service->limits.client.mapped_bytes,
                         session->mapped_bytes);
    }
    buffer->charged_bytes = buffer->info.charged_bytes;
    session->mapped_bytes += buffer->charged_bytes;
    return MLACAT_OK;
}

static void on_registered(struct session *session, struct buffer *buffer)
{
    if (charge(session, buffer) != MLACAT_OK) {
        session_answer(session, buffer->request_id, &buffer->error);
        drop_registered(session, buffer);
        return;
    }
    if (session->rings) {
        buffer_publish(buffer, &session->rings->table);
    }
    size_t size = wire_encode_buffer_registered(session->service->packet, buffer->request_id, buffer->ref,
                                                buffer->info.memory.size_bytes);
    conn_send(&session->conn, session->service->packet, size, NULL, 0);
}

static void on_imported(struct buffer *buffer)
{
    struct session *session = buffer->owner;
    struct call *call = buffer->user;
    session_count_import(session, -1);
    if (buffer->state == BUFFER_FAILED && buffer->error.scope == MLACAT_SCOPE_DEVICE) {
        session->service->on_device_lost(session->service->owner, &buffer->error);
    }
    if (buffer->unwanted) {
        return;
    }
    if (!call) {
        on_registered(session, buffer);
        return;
    }
    if (charge(session, buffer) != MLACAT_OK && call->error.code == MLACAT_OK) {
        call->error = buffer->error;
    }
    session_call_imported(call);
}

static const struct buffer_handlers buffer_handlers = {
    .on_imported = on_imported, .on_unpublished = on_unpublished, .on_gone = on_gone};

/* The request's indices into the packet's descriptors become the descriptors. */
static void take_fds(struct memory_request *memory, struct conn_packet *packet)
{
    for (uint32_t i = 0; i < memory->chunks_nr; i++) {
        uint32_t index = (uint32_t)memory->fds[i];
        memory->fds[i] = packet->fds[index];
        packet->fds[index] = -1;
    }
}

static enum mlacat_status import(struct session *session, struct engine *engine, struct memory_request *memory,
                                 struct conn_packet *packet, struct buffer **buffer, struct error *err)
{
    take_fds(memory, packet);
    memory->user = session->peer.uid;
    memory->limit_bytes = session_room_bytes(session);
    if (buffer_import(engine, session_lane(session, engine), memory, &buffer_handlers, session, buffer, err) !=
        MLACAT_OK) {
        return err->code;
    }
    session->buffers_nr++;
    session_count_import(session, 1);
    return MLACAT_OK;
}

void session_register_buffer(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    struct service *service = session->service;
    uint32_t limit = service->limits.client.buffers;
    struct error err;
    struct buffer *buffer;
    if (service->draining) {
        error_set(&err, MLACAT_UNAVAILABLE, "the service is draining: connect again when it is back");
        goto fail;
    }
    struct engine *engine = service_find_engine(service, message->register_buffer.device_uuid, &err);
    if (!engine) {
        goto fail;
    }
    if (session_check_room(&session->buffers, session->buffers_nr, limit, "buffers", &err) != MLACAT_OK ||
        import(session, engine, &message->register_buffer.memory, packet, &buffer, &err) != MLACAT_OK) {
        goto fail;
    }
    buffer->request_id = message->request_id;
    if (handles_add(&session->buffers, buffer, limit, "buffers", &buffer->ref, &err) != MLACAT_OK) {
        count_leaving(session, buffer, 1);
        buffer_drop(buffer);
        goto fail;
    }
    return;
fail:
    session_answer(session, message->request_id, &err);
}

void session_unregister_buffer(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    struct wire_ref ref = message->unregister_buffer;
    struct buffer *buffer = session_find_buffer(session, ref);
    (void)packet;
    if (!buffer) {
        struct error err;
        error_set(&err, MLACAT_NOT_FOUND, "this client has no buffer %u.%u: it was unregistered, or never was", ref.id,
                  ref.generation);
        session_answer(session, message->request_id, &err);
        return;
    }
    drop_registered(session, buffer);
    session_answer(session, message->request_id, NULL);
}

enum mlacat_status session_import_inline(struct session *session, struct call *call, int operand,
                                         struct memory_request *memory, struct conn_packet *packet, struct error *err)
{
    struct buffer *buffer;
    if (session->imports_nr >= SESSION_IMPORTS_MAX) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                         "%u imports of this client are under way: wait for some calls to end, or register the memory",
                         session->imports_nr);
    }
    if (import(session, call->stream->engine, memory, packet, &buffer, err) != MLACAT_OK) {
        return err->code;
    }
    buffer->user = call;
    buffer_pin(buffer);
    call->buffer[operand] = buffer;
    call->imports_pending++;
    return MLACAT_OK;
}

void session_unpin(struct call *call)
{
    if (call->event) {
        event_unpin(call->event);
        call->event = NULL;
    }
    for (int i = 0; i < OP_OPERANDS; i++) {
        struct buffer *buffer = call->buffer[i];
        call->buffer[i] = NULL;
        if (!buffer) {
            continue;
        }
        if (buffer->user) {
            buffer_drop(buffer);
        }
        buffer_unpin(buffer);
    }
}

void session_drop_buffers(struct session *session)
{
    for (uint32_t id = 0; id < session->buffers.slots_nr; id++) {
        struct buffer *buffer = session->buffers.slots[id].object;
        if (buffer && !buffer->unwanted) {
            drop_registered(session, buffer);
        }
    }
}
