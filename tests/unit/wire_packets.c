/* SPDX-License-Identifier: Apache-2.0 */
#include "wire_packets.h"

#include "op.h"

void packet_registration(struct registration *r, Mlacat__V1__Memory__KindCase kind)
{
    mlacat__v1__envelope__init(&r->envelope);
    mlacat__v1__register_buffer__init(&r->body);
    mlacat__v1__memory__init(&r->memory);
    mlacat__v1__host_memory__init(&r->host);
    mlacat__v1__cuda_ipc_memory__init(&r->ipc);
    mlacat__v1__cuda_vmm_memory__init(&r->vmm);
    r->envelope.request_id = 77;
    r->envelope.body_case = MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER;
    r->envelope.register_buffer = &r->body;
    r->body.device_uuid = (char *)"host";
    r->body.memory = &r->memory;
    r->memory.kind_case = kind;
    r->host.size_bytes = 4096;
    r->ipc.handle = (ProtobufCBinaryData){.len = 64, .data = r->handle};
    r->ipc.allocation_bytes = 1 << 20;
    r->ipc.offset_bytes = 512;
    r->ipc.size_bytes = 1024;
    r->ipc.buffer_id = 99;
    r->vmm.chunks = r->chunk_list;
    r->vmm.offset_bytes = 7;
    r->vmm.size_bytes = 8;
    for (uint32_t i = 0; i < 80; i++) {
        r->handle[i] = (uint8_t)(i + 1);
        mlacat__v1__cuda_vmm_chunk__init(&r->chunks[i]);
        r->chunks[i].fd = i;
        r->chunks[i].size_bytes = 1000 + i;
        r->chunk_list[i] = &r->chunks[i];
    }
    if (kind == MLACAT__V1__MEMORY__KIND_HOST) {
        r->memory.host = &r->host;
    } else if (kind == MLACAT__V1__MEMORY__KIND_CUDA_IPC) {
        r->memory.cuda_ipc = &r->ipc;
    } else if (kind == MLACAT__V1__MEMORY__KIND_CUDA_VMM) {
        r->memory.cuda_vmm = &r->vmm;
    }
}

void packet_event_registration(struct event_registration *r)
{
    mlacat__v1__envelope__init(&r->envelope);
    mlacat__v1__register_event__init(&r->body);
    r->envelope.request_id = 78;
    r->envelope.body_case = MLACAT__V1__ENVELOPE__BODY_REGISTER_EVENT;
    r->envelope.register_event = &r->body;
    r->body.device_uuid = (char *)"GPU-1";
    r->body.handle = (ProtobufCBinaryData){.len = 64, .data = r->handle};
    for (uint32_t i = 0; i < 80; i++) {
        r->handle[i] = (uint8_t)(i + 1);
    }
}

void packet_submission(struct submission *s)
{
    mlacat__v1__event_ref__init(&s->event);
    s->event.id = 50;
    s->event.generation = 51;
    mlacat__v1__envelope__init(&s->envelope);
    mlacat__v1__submit__init(&s->body);
    mlacat__v1__stream_ref__init(&s->stream);
    mlacat__v1__call__init(&s->call);
    s->envelope.body_case = MLACAT__V1__ENVELOPE__BODY_SUBMIT;
    s->envelope.submit = &s->body;
    s->body.stream = &s->stream;
    s->body.n_calls = 1;
    s->body.calls = s->calls;
    s->stream.id = 3;
    s->stream.generation = 4;
    s->call.call_id = 1234567890123;
    s->call.op = OP_CONCAT_MLA_K;
    s->call.dtype = 1;
    s->call.deadline_us = 5000;
    s->call.n_operands = 3;
    s->call.operands = s->operand_list;
    for (uint32_t i = 0; i < PACKET_CALLS_MAX; i++) {
        s->calls[i] = &s->call;
    }
    for (uint32_t i = 0; i < 4; i++) {
        mlacat__v1__operand__init(&s->operands[i]);
        mlacat__v1__buffer_ref__init(&s->buffers[i]);
        mlacat__v1__inline_memory__init(&s->inlines[i]);
        s->operand_list[i] = &s->operands[i];
        s->operands[i].where_case = MLACAT__V1__OPERAND__WHERE_BUFFER;
        s->operands[i].buffer = &s->buffers[i];
        s->operands[i].offset_bytes = 100 + i;
        s->operands[i].n_shape = 3;
        s->operands[i].shape = s->shape[i];
        s->operands[i].n_strides = 3;
        s->operands[i].strides = s->strides[i];
        s->buffers[i].id = 10 + i;
        s->buffers[i].generation = 20 + i;
        for (uint32_t k = 0; k < 4; k++) {
            s->shape[i][k] = UINT64_MAX - 10 * i - k;
            s->strides[i][k] = INT64_MIN + (int64_t)(10 * i + k);
        }
    }
}

void packet_set_inline(struct submission *s, uint32_t index, struct registration *r)
{
    s->operands[index].where_case = MLACAT__V1__OPERAND__WHERE_MEMORY;
    s->operands[index].memory = &s->inlines[index];
    s->inlines[index].memory = &r->memory;
}
