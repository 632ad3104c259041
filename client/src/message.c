/* SPDX-License-Identifier: Apache-2.0 */
#include "message.h"

#include "cuda_export.h"

message *message_unpack(const uint8_t *packet, size_t size)
{
    return mlacat__v1__envelope__unpack(NULL, size, packet);
}

void message_free(message *reply)
{
    mlacat__v1__envelope__free_unpacked(reply, NULL);
}

void message_status(const message *reply, struct error *err)
{
    *err = (struct error){0};
    if (reply->body_case != MLACAT__V1__ENVELOPE__BODY_ANSWER || reply->answer->status == NULL) {
        return;
    }
    const Mlacat__V1__Status *status = reply->answer->status;
    err->code = error_status_of(status->code);
    if (err->code != MLACAT_OK) {
        err->scope = error_scope_of(status->scope, err->code);
        error_copy_text(err->message, sizeof(err->message), status->message);
    }
}

enum mlacat_status message_check(const message *reply, int body, struct error *err)
{
    message_status(reply, err);
    if (err->code == MLACAT_OK && (int)reply->body_case != body) {
        return error_set(err, MLACAT_INTERNAL,
                         "the daemon answered with message %d where %d was expected; library and daemon do not match: "
                         "install the same version of both",
                         (int)reply->body_case, body);
    }
    return err->code;
}

static void fill_host(struct message_register *request, const struct mlacat_buffer *buffer)
{
    mlacat__v1__host_memory__init(&request->host);
    request->memory.kind_case = MLACAT__V1__MEMORY__KIND_HOST;
    request->memory.host = &request->host;
    request->host.size_bytes = buffer->bytes;
}

static void fill_handle(struct message_register *request, const struct mlacat_buffer *buffer)
{
    struct cuda_export *memory = buffer->device_memory;
    mlacat__v1__cuda_ipc_memory__init(&request->cuda_ipc);
    request->memory.kind_case = MLACAT__V1__MEMORY__KIND_CUDA_IPC;
    request->memory.cuda_ipc = &request->cuda_ipc;
    request->cuda_ipc.handle.data = memory->handle;
    request->cuda_ipc.handle.len = sizeof(memory->handle);
    request->cuda_ipc.allocation_bytes = memory->allocation_bytes;
    request->cuda_ipc.offset_bytes = memory->offset_bytes;
    request->cuda_ipc.size_bytes = buffer->bytes;
    request->cuda_ipc.buffer_id = memory->pieces[0].buffer_id;
}

static void fill_chunks(struct message_register *request, const struct mlacat_buffer *buffer)
{
    const struct cuda_export *memory = buffer->device_memory;
    mlacat__v1__cuda_vmm_memory__init(&request->cuda_vmm);
    request->memory.kind_case = MLACAT__V1__MEMORY__KIND_CUDA_VMM;
    request->memory.cuda_vmm = &request->cuda_vmm;
    request->cuda_vmm.n_chunks = buffer->fds.nr;
    request->cuda_vmm.chunks = request->chunks;
    request->cuda_vmm.offset_bytes = memory->offset_bytes;
    request->cuda_vmm.size_bytes = buffer->bytes;
    for (uint32_t i = 0; i < buffer->fds.nr; i++) {
        mlacat__v1__cuda_vmm_chunk__init(&request->chunk[i]);
        request->chunk[i].fd = i;
        request->chunk[i].size_bytes = memory->chunk_bytes[i];
        request->chunks[i] = &request->chunk[i];
    }
}

void message_register(struct message_register *request, struct mlacat_buffer *buffer)
{
    mlacat__v1__envelope__init(&request->envelope);
    mlacat__v1__register_buffer__init(&request->body);
    mlacat__v1__memory__init(&request->memory);
    request->envelope.body_case = MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER;
    request->envelope.register_buffer = &request->body;
    request->body.device_uuid = buffer->device;
    request->body.memory = &request->memory;
    if (buffer->device_memory == NULL) {
        fill_host(request, buffer);
    } else if (buffer->fds.nr == 0) {
        fill_handle(request, buffer);
    } else {
        fill_chunks(request, buffer);
    }
}

void message_register_event(struct message_register_event *request, struct mlacat_event *event)
{
    mlacat__v1__envelope__init(&request->envelope);
    mlacat__v1__register_event__init(&request->body);
    request->envelope.body_case = MLACAT__V1__ENVELOPE__BODY_REGISTER_EVENT;
    request->envelope.register_event = &request->body;
    request->body.device_uuid = event->device;
    request->body.handle.data = event->handle;
    request->body.handle.len = sizeof(event->handle);
}

void message_open(struct message_open *request, struct mlacat_stream *stream)
{
    mlacat__v1__envelope__init(&request->envelope);
    mlacat__v1__open_stream__init(&request->body);
    request->envelope.body_case = MLACAT__V1__ENVELOPE__BODY_OPEN_STREAM;
    request->envelope.open_stream = &request->body;
    request->body.device_uuid = stream->device;
    request->body.ring = stream->ring != NULL;
}

struct wire_ref message_buffer_ref(const Mlacat__V1__BufferRef *ref)
{
    return ref == NULL ? (struct wire_ref){0} : (struct wire_ref){ref->id, ref->generation};
}

struct wire_ref message_event_ref(const Mlacat__V1__EventRef *ref)
{
    return ref == NULL ? (struct wire_ref){0} : (struct wire_ref){ref->id, ref->generation};
}

struct wire_ref message_stream_ref(const Mlacat__V1__StreamRef *ref)
{
    return ref == NULL ? (struct wire_ref){0} : (struct wire_ref){ref->id, ref->generation};
}
