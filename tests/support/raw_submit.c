/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "gpu_memory.h"
#include "raw_by_ring.h"
#include "require.h"

/* The messages of one call, which point to each other. */
struct call_messages {
    Mlacat__V1__Call call;
    Mlacat__V1__EventRef event;
    Mlacat__V1__Operand operand[3];
    Mlacat__V1__Operand *operands[3];
    Mlacat__V1__BufferRef buffer[3];
    Mlacat__V1__InlineMemory inline_memory[3];
    Mlacat__V1__Memory memory[3];
    Mlacat__V1__HostMemory host[3];
    Mlacat__V1__CudaIpcMemory cuda[3];
};

static void fill_cuda(struct call_messages *to, int i, const struct operand *from)
{
    static uint8_t nobodys[64] = {1};
    uint8_t *handle = from->share ? (uint8_t *)(uintptr_t)from->share->handle : nobodys;
    mlacat__v1__cuda_ipc_memory__init(&to->cuda[i]);
    to->cuda[i].handle = (ProtobufCBinaryData){.len = sizeof(nobodys), .data = handle};
    to->cuda[i].allocation_bytes = from->share ? from->share->size : from->size_bytes;
    to->cuda[i].buffer_id = from->share ? from->share->buffer_id : 0;
    to->cuda[i].size_bytes = from->size_bytes;
    to->memory[i].kind_case = MLACAT__V1__MEMORY__KIND_CUDA_IPC;
    to->memory[i].cuda_ipc = &to->cuda[i];
}

static void fill_operand(struct call_messages *to, int i, const struct operand *from)
{
    Mlacat__V1__Operand *operand = &to->operand[i];
    mlacat__v1__operand__init(operand);
    operand->offset_bytes = from->offset_bytes;
    operand->n_shape = 3;
    operand->shape = (uint64_t *)(uintptr_t)from->shape;
    operand->n_strides = 3;
    operand->strides = (int64_t *)(uintptr_t)from->strides;
    to->operands[i] = operand;
    if (!from->is_inline) {
        mlacat__v1__buffer_ref__init(&to->buffer[i]);
        to->buffer[i].id = from->buffer.id;
        to->buffer[i].generation = from->buffer.generation;
        operand->where_case = MLACAT__V1__OPERAND__WHERE_BUFFER;
        operand->buffer = &to->buffer[i];
        return;
    }
    mlacat__v1__inline_memory__init(&to->inline_memory[i]);
    mlacat__v1__memory__init(&to->memory[i]);
    if (from->is_cuda) {
        fill_cuda(to, i, from);
    } else {
        mlacat__v1__host_memory__init(&to->host[i]);
        to->host[i].fd = from->fd;
        to->host[i].size_bytes = from->size_bytes;
        to->memory[i].kind_case = MLACAT__V1__MEMORY__KIND_HOST;
        to->memory[i].host = &to->host[i];
    }
    to->inline_memory[i].memory = &to->memory[i];
    operand->where_case = MLACAT__V1__OPERAND__WHERE_MEMORY;
    operand->memory = &to->inline_memory[i];
}

size_t raw_pack_submit(uint8_t packet[RAW_PACKET_BYTES], struct ref stream, const struct call *calls, size_t calls_nr)
{
    static struct call_messages messages[RAW_CALLS_MAX];
    static Mlacat__V1__Call *pointers[RAW_CALLS_MAX];
    Mlacat__V1__StreamRef ref = MLACAT__V1__STREAM_REF__INIT;
    Mlacat__V1__Submit submit = MLACAT__V1__SUBMIT__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    REQUIRE(calls_nr <= RAW_CALLS_MAX);
    for (size_t c = 0; c < calls_nr; c++) {
        struct call_messages *to = &messages[c];
        mlacat__v1__call__init(&to->call);
        to->call.call_id = calls[c].id;
        to->call.op = calls[c].op;
        to->call.dtype = calls[c].dtype;
        to->call.deadline_us = calls[c].deadline_us;
        if (calls[c].wait_event.generation != 0) {
            mlacat__v1__event_ref__init(&to->event);
            to->event.id = calls[c].wait_event.id;
            to->event.generation = calls[c].wait_event.generation;
            to->call.wait_event = &to->event;
        }
        to->call.n_operands = 3;
        to->call.operands = to->operands;
        for (int i = 0; i < 3; i++) {
            fill_operand(to, i, &calls[c].operand[i]);
        }
        pointers[c] = &to->call;
    }
    ref.id = stream.id;
    ref.generation = stream.generation;
    submit.stream = &ref;
    submit.n_calls = calls_nr;
    submit.calls = pointers;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_SUBMIT;
    envelope.submit = &submit;
    REQUIRE(mlacat__v1__envelope__get_packed_size(&envelope) <= RAW_PACKET_BYTES, "%zu calls are too many for a packet",
            calls_nr);
    return mlacat__v1__envelope__pack(&envelope, packet);
}

/* Inline operands whose descriptor stands for GPU memory carry its handle. */
static void name_handles(struct call *calls, size_t calls_nr, const int *fds, uint32_t fds_nr)
{
    for (size_t c = 0; c < calls_nr; c++) {
        for (int i = 0; i < 3; i++) {
            struct operand *operand = &calls[c].operand[i];
            if (operand->is_inline && !operand->is_cuda && operand->fd < fds_nr) {
                operand->share = gpu_memory_find(fds[operand->fd]);
                operand->is_cuda = operand->share != NULL;
            }
        }
    }
}

int raw_submit_fds(struct raw *raw, struct ref stream, const struct call *calls, size_t calls_nr, const int *fds,
                   uint32_t fds_nr)
{
    struct raw_ring *ring = by_ring_find(raw, stream);
    if (ring) {
        by_ring_submit(raw, ring, calls, calls_nr);
        return 0;
    }
    static struct call named[RAW_CALLS_MAX];
    uint8_t packet[RAW_PACKET_BYTES];
    if (gpu_memory_used() && fds_nr > 0) {
        REQUIRE(calls_nr <= RAW_CALLS_MAX);
        memcpy(named, calls, calls_nr * sizeof(*calls));
        name_handles(named, calls_nr, fds, fds_nr);
        return raw_send(raw, packet, raw_pack_submit(packet, stream, named, calls_nr), NULL, 0);
    }
    return raw_send(raw, packet, raw_pack_submit(packet, stream, calls, calls_nr), fds, fds_nr);
}

void raw_submit(struct raw *raw, struct ref stream, const struct call *calls, size_t calls_nr)
{
    int error = raw_submit_fds(raw, stream, calls, calls_nr, NULL, 0);
    REQUIRE(error == 0, "a Submit cannot be sent: %s", strerror(error));
}
