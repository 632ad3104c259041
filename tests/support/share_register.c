/* SPDX-License-Identifier: Apache-2.0 */
#include "share_register.h"

#include <stdio.h>

#include "require.h"

static struct outcome outcome_of(const Mlacat__V1__Envelope *reply)
{
    struct outcome outcome = {0};
    REQUIRE(reply->body_case == MLACAT__V1__ENVELOPE__BODY_ANSWER && reply->answer->status != NULL);
    outcome.code = reply->answer->status->code;
    outcome.scope = reply->answer->status->scope;
    snprintf(outcome.message, sizeof(outcome.message), "%s", reply->answer->status->message);
    return outcome;
}

static struct outcome register_memory(struct raw *raw, const char *uuid, Mlacat__V1__Memory *memory, const int *fds,
                                      uint32_t fds_nr, struct ref *buffer)
{
    Mlacat__V1__RegisterBuffer message = MLACAT__V1__REGISTER_BUFFER__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    struct outcome outcome = {0};
    message.device_uuid = (char *)(uintptr_t)uuid;
    message.memory = memory;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER;
    envelope.register_buffer = &message;
    Mlacat__V1__Envelope *reply = raw_request(raw, &envelope, fds, fds_nr);
    if (reply->body_case == MLACAT__V1__ENVELOPE__BODY_BUFFER_REGISTERED) {
        *buffer = (struct ref){reply->buffer_registered->buffer->id, reply->buffer_registered->buffer->generation};
    } else {
        outcome = outcome_of(reply);
    }
    raw_free(reply);
    return outcome;
}

static struct outcome register_chunks(struct raw *raw, const char *uuid, const struct share *share, size_t offset,
                                      size_t size, size_t claimed, struct ref *buffer)
{
    Mlacat__V1__Memory memory = MLACAT__V1__MEMORY__INIT;
    Mlacat__V1__CudaVmmMemory vmm = MLACAT__V1__CUDA_VMM_MEMORY__INIT;
    Mlacat__V1__CudaVmmChunk chunks[SHARE_CHUNKS];
    Mlacat__V1__CudaVmmChunk *pointers[SHARE_CHUNKS];
    for (uint32_t i = 0; i < SHARE_CHUNKS; i++) {
        mlacat__v1__cuda_vmm_chunk__init(&chunks[i]);
        chunks[i].fd = i;
        chunks[i].size_bytes = claimed / SHARE_CHUNKS;
        pointers[i] = &chunks[i];
    }
    vmm.n_chunks = SHARE_CHUNKS;
    vmm.chunks = pointers;
    vmm.offset_bytes = offset;
    vmm.size_bytes = size;
    memory.kind_case = MLACAT__V1__MEMORY__KIND_CUDA_VMM;
    memory.cuda_vmm = &vmm;
    return register_memory(raw, uuid, &memory, share->fds, SHARE_CHUNKS, buffer);
}

struct outcome share_register(struct raw *raw, const char *uuid, const struct share *share, size_t offset, size_t size,
                              size_t claimed, struct ref *buffer)
{
    Mlacat__V1__Memory memory = MLACAT__V1__MEMORY__INIT;
    Mlacat__V1__CudaIpcMemory ipc = MLACAT__V1__CUDA_IPC_MEMORY__INIT;
    if (share->chunks_nr > 0) {
        return register_chunks(raw, uuid, share, offset, size, claimed, buffer);
    }
    ipc.handle.data = (uint8_t *)(uintptr_t)share->handle;
    ipc.handle.len = sizeof(share->handle);
    ipc.allocation_bytes = claimed;
    ipc.offset_bytes = offset;
    ipc.size_bytes = size;
    ipc.buffer_id = share->buffer_id;
    memory.kind_case = MLACAT__V1__MEMORY__KIND_CUDA_IPC;
    memory.cuda_ipc = &ipc;
    return register_memory(raw, uuid, &memory, NULL, 0, buffer);
}

struct ref share_must_register(struct raw *raw, const char *uuid, const struct share *share, size_t offset, size_t size)
{
    struct ref buffer = {0};
    struct outcome outcome = share_register(raw, uuid, share, offset, size, share->size, &buffer);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    return buffer;
}

struct outcome share_register_event(struct raw *raw, const char *uuid, const unsigned char handle[SHARE_HANDLE_BYTES],
                                    struct ref *event)
{
    Mlacat__V1__RegisterEvent message = MLACAT__V1__REGISTER_EVENT__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    struct outcome outcome = {0};
    message.device_uuid = (char *)(uintptr_t)uuid;
    message.handle = (ProtobufCBinaryData){.len = SHARE_HANDLE_BYTES, .data = (uint8_t *)(uintptr_t)handle};
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_REGISTER_EVENT;
    envelope.register_event = &message;
    Mlacat__V1__Envelope *reply = raw_request(raw, &envelope, NULL, 0);
    if (reply->body_case == MLACAT__V1__ENVELOPE__BODY_EVENT_REGISTERED) {
        *event = (struct ref){reply->event_registered->event->id, reply->event_registered->event->generation};
    } else {
        outcome = outcome_of(reply);
    }
    raw_free(reply);
    return outcome;
}

struct ref share_must_open_stream(struct raw *raw, const char *uuid)
{
    Mlacat__V1__OpenStream message = MLACAT__V1__OPEN_STREAM__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    message.device_uuid = (char *)(uintptr_t)uuid;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_OPEN_STREAM;
    envelope.open_stream = &message;
    Mlacat__V1__Envelope *reply = raw_request(raw, &envelope, NULL, 0);
    REQUIRE(reply->body_case == MLACAT__V1__ENVELOPE__BODY_STREAM_OPENED);
    struct ref stream = {reply->stream_opened->stream->id, reply->stream_opened->stream->generation};
    raw_free(reply);
    return stream;
}
