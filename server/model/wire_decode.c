/* SPDX-License-Identifier: Apache-2.0 */
#include "wire.h"

#include <inttypes.h>
#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mlacat.pb-c.h"

/* Room for the largest Submit of proper calls that one packet can hold (about 750 KiB once decoded); a packet that
 * needs more was built to cost memory. Pages that no packet reached are never touched. */
#define ARENA_BYTES ((size_t)1 << 20)
#define ARENA_ALIGN alignof(max_align_t)

struct wire_decoder {
    ProtobufCAllocator allocator;
    const Mlacat__V1__Submit *submit; /* of the packet decoded last, NULL if that was none */
    size_t used_bytes;                /* a multiple of ARENA_ALIGN */
    bool exhausted;                   /* the packet asked for more than there is */
    alignas(max_align_t) uint8_t arena[ARENA_BYTES];
};

_Static_assert(ARENA_BYTES % ARENA_ALIGN == 0, "rounding a size that fits up to the alignment still fits");

/* Which descriptors of the packet the message has named so far. */
struct fd_claims {
    uint32_t fds_nr;
    uint64_t named;  /* bit i: descriptor i */
    bool incomplete; /* a memory was skipped because its call is refused anyway: unnamed descriptors may be its own */
};

_Static_assert(WIRE_PACKET_FDS <= 64 && MEMORY_CHUNKS_MAX <= WIRE_PACKET_FDS, "fd_claims.named has a bit for each");

static const char *const kind_names[WIRE_KINDS] = {
    [WIRE_HELLO] = "Hello",
    [WIRE_REGISTER_BUFFER] = "RegisterBuffer",
    [WIRE_UNREGISTER_BUFFER] = "UnregisterBuffer",
    [WIRE_OPEN_STREAM] = "OpenStream",
    [WIRE_CLOSE_STREAM] = "CloseStream",
    [WIRE_SUBMIT] = "Submit",
    [WIRE_CANCEL] = "Cancel",
    [WIRE_STATS] = "StatsRequest",
    [WIRE_HEALTH] = "HealthRequest",
    [WIRE_DRAIN] = "Drain",
    [WIRE_SET_LOG_LEVEL] = "SetLogLevel",
    [WIRE_REGISTER_EVENT] = "RegisterEvent",
    [WIRE_UNREGISTER_EVENT] = "UnregisterEvent",
    [WIRE_OPEN_RINGS] = "OpenRings",
};

const char *wire_kind_name(enum wire_kind kind)
{
    return (unsigned)kind < WIRE_KINDS ? kind_names[kind] : "unknown";
}

static void *arena_alloc(void *data, size_t size)
{
    struct wire_decoder *decoder = data;
    if (size > ARENA_BYTES - decoder->used_bytes) {
        decoder->exhausted = true;
        return NULL;
    }
    void *memory = decoder->arena + decoder->used_bytes;
    decoder->used_bytes += (size + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    return memory;
}

/* The whole arena is taken back at the next packet. */
static void arena_free(void *data, void *memory)
{
    (void)data;
    (void)memory;
}

struct wire_decoder *wire_decoder_new(void)
{
    struct wire_decoder *decoder = malloc(sizeof(*decoder));
    if (decoder == NULL) {
        return NULL;
    }
    decoder->allocator = (ProtobufCAllocator){.alloc = arena_alloc, .free = arena_free, .allocator_data = decoder};
    decoder->submit = NULL;
    decoder->used_bytes = 0;
    decoder->exhausted = false;
    return decoder;
}

void wire_decoder_free(struct wire_decoder *decoder)
{
    free(decoder);
}

#define broken(err, ...) error_set_scoped(err, MLACAT_INVALID_ARGUMENT, MLACAT_SCOPE_SESSION, __VA_ARGS__)
#define refused(err, ...) error_set_scoped(err, MLACAT_INVALID_ARGUMENT, MLACAT_SCOPE_CALL, __VA_ARGS__)

static void read_text(const char *text, char *out, size_t out_bytes)
{
    size_t i = 0;
    for (; text[i] != '\0' && i < out_bytes - 1; i++) {
        out[i] = text[i] >= 0x20 && text[i] < 0x7f ? text[i] : '?';
    }
    if (text[i] != '\0') {
        out[out_bytes - 2] = '?';
    }
    out[i] = '\0';
}

/* A reference that is absent has generation 0, which names nothing. */
#define READ_REF(ref) ((ref) == NULL ? (struct wire_ref){0, 0} : (struct wire_ref){(ref)->id, (ref)->generation})

static enum mlacat_status claim_fd(struct fd_claims *claims, uint32_t index, struct error *err)
{
    if (index >= claims->fds_nr) {
        return broken(err,
                      "the message names descriptor %" PRIu32 " but its packet carries %" PRIu32 ": send the "
                      "descriptors with the packet that names them, counted from 0",
                      index, claims->fds_nr);
    }
    uint64_t bit = (uint64_t)1 << index;
    if ((claims->named & bit) != 0) {
        return broken(err, "the message names descriptor %" PRIu32 " twice: send one descriptor for each use", index);
    }
    claims->named |= bit;
    return MLACAT_OK;
}

static enum mlacat_status claim_memory(struct fd_claims *claims, const Mlacat__V1__Memory *memory, struct error *err)
{
    if (memory == NULL) {
        return MLACAT_OK;
    }
    if (memory->kind_case == MLACAT__V1__MEMORY__KIND_HOST) {
        return claim_fd(claims, memory->host->fd, err);
    }
    if (memory->kind_case == MLACAT__V1__MEMORY__KIND_CUDA_VMM) {
        const Mlacat__V1__CudaVmmMemory *vmm = memory->cuda_vmm;
        if (vmm->n_chunks > MEMORY_CHUNKS_MAX) {
            claims->incomplete = true;
            return MLACAT_OK;
        }
        for (size_t i = 0; i < vmm->n_chunks; i++) {
            enum mlacat_status code = claim_fd(claims, vmm->chunks[i]->fd, err);
            if (code != MLACAT_OK) {
                return code;
            }
        }
    }
    return MLACAT_OK;
}

static enum mlacat_status claim_operand(struct fd_claims *claims, const Mlacat__V1__Operand *operand, struct error *err)
{
    return operand->where_case == MLACAT__V1__OPERAND__WHERE_MEMORY ? claim_memory(claims, operand->memory->memory, err)
                                                                    : MLACAT_OK;
}

static enum mlacat_status claim_submit(struct fd_claims *claims, const Mlacat__V1__Submit *submit, struct error *err)
{
    for (size_t i = 0; i < submit->n_calls; i++) {
        const Mlacat__V1__Call *call = submit->calls[i];
        for (size_t k = 0; k < call->n_operands; k++) {
            enum mlacat_status code = claim_operand(claims, call->operands[k], err);
            if (code != MLACAT_OK) {
                return code;
            }
        }
    }
    return MLACAT_OK;
}

/* The fd rule of the protocol: each descriptor of the packet is named exactly once. */
static enum mlacat_status check_fds(const Mlacat__V1__Envelope *envelope, uint32_t fds_nr, struct error *err)
{
    struct fd_claims claims = {.fds_nr = fds_nr};
    enum mlacat_status code = MLACAT_OK;
    if (envelope->body_case == MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER) {
        code = claim_memory(&claims, envelope->register_buffer->memory, err);
    } else if (envelope->body_case == MLACAT__V1__ENVELOPE__BODY_SUBMIT) {
        code = claim_submit(&claims, envelope->submit, err);
    }
    if (code != MLACAT_OK || claims.incomplete) {
        return code;
    }
    uint64_t all = fds_nr == 0 ? 0 : UINT64_MAX >> (64 - fds_nr);
    if (claims.named != all) {
        return broken(err,
                      "the packet carries %" PRIu32 " descriptors but its message does not name descriptor %d: send "
                      "only descriptors that the message names",
                      fds_nr, __builtin_ctzll(all & ~claims.named));
    }
    return MLACAT_OK;
}

static enum mlacat_status read_chunks(const Mlacat__V1__CudaVmmMemory *vmm, struct memory_request *out,
                                      struct error *err)
{
    if (vmm->n_chunks == 0 || vmm->n_chunks > MEMORY_CHUNKS_MAX) {
        return refused(err, "CUDA VMM memory of %zu chunks: register 1 to %d chunks as one buffer", vmm->n_chunks,
                       MEMORY_CHUNKS_MAX);
    }
    out->kind = MEMORY_CUDA_VMM;
    out->chunks_nr = (uint32_t)vmm->n_chunks;
    out->size_bytes = vmm->size_bytes;
    out->offset_bytes = vmm->offset_bytes;
    for (size_t i = 0; i < vmm->n_chunks; i++) {
        out->fds[i] = (int)vmm->chunks[i]->fd;
        out->chunk_bytes[i] = vmm->chunks[i]->size_bytes;
    }
    return MLACAT_OK;
}

/* `source`: the driver's call that makes such handles. */
static enum mlacat_status read_handle(const ProtobufCBinaryData *handle, const char *source,
                                      uint8_t out[MEMORY_HANDLE_BYTES], struct error *err)
{
    if (handle->len != MEMORY_HANDLE_BYTES) {
        return refused(err, "a CUDA IPC handle of %zu bytes: send the %d bytes of %s", handle->len, MEMORY_HANDLE_BYTES,
                       source);
    }
    memcpy(out, handle->data, MEMORY_HANDLE_BYTES);
    return MLACAT_OK;
}

static enum mlacat_status read_ipc(const Mlacat__V1__CudaIpcMemory *ipc, struct memory_request *out, struct error *err)
{
    out->kind = MEMORY_CUDA_IPC;
    out->size_bytes = ipc->size_bytes;
    out->offset_bytes = ipc->offset_bytes;
    out->allocation_bytes = ipc->allocation_bytes;
    out->buffer_id = ipc->buffer_id;
    return read_handle(&ipc->handle, "cuIpcGetMemHandle", out->handle, err);
}

/* The fd indices were checked by check_fds. */
static enum mlacat_status read_memory(const Mlacat__V1__Memory *memory, struct memory_request *out, struct error *err)
{
    out->chunks_nr = 0;
    out->offset_bytes = 0;
    out->allocation_bytes = 0;
    out->buffer_id = 0;
    out->limit_bytes = 0;
    switch (memory == NULL ? MLACAT__V1__MEMORY__KIND__NOT_SET : memory->kind_case) {
    case MLACAT__V1__MEMORY__KIND_HOST:
        out->kind = MEMORY_HOST;
        out->chunks_nr = 1;
        out->size_bytes = memory->host->size_bytes;
        out->fds[0] = (int)memory->host->fd;
        return MLACAT_OK;
    case MLACAT__V1__MEMORY__KIND_CUDA_IPC:
        return read_ipc(memory->cuda_ipc, out, err);
    case MLACAT__V1__MEMORY__KIND_CUDA_VMM:
        return read_chunks(memory->cuda_vmm, out, err);
    default:
        return refused(err, "memory of no known kind: set one of host, cuda_ipc and cuda_vmm");
    }
}

/* `kind` of a body that a client may send; false for all others. */
static bool find_kind(Mlacat__V1__Envelope__BodyCase body, enum wire_kind *kind)
{
    static const uint8_t kinds[] = {
        [MLACAT__V1__ENVELOPE__BODY_HELLO] = WIRE_HELLO,
        [MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER] = WIRE_REGISTER_BUFFER,
        [MLACAT__V1__ENVELOPE__BODY_UNREGISTER_BUFFER] = WIRE_UNREGISTER_BUFFER,
        [MLACAT__V1__ENVELOPE__BODY_OPEN_STREAM] = WIRE_OPEN_STREAM,
        [MLACAT__V1__ENVELOPE__BODY_CLOSE_STREAM] = WIRE_CLOSE_STREAM,
        [MLACAT__V1__ENVELOPE__BODY_SUBMIT] = WIRE_SUBMIT,
        [MLACAT__V1__ENVELOPE__BODY_CANCEL] = WIRE_CANCEL,
        [MLACAT__V1__ENVELOPE__BODY_STATS_REQUEST] = WIRE_STATS,
        [MLACAT__V1__ENVELOPE__BODY_HEALTH_REQUEST] = WIRE_HEALTH,
        [MLACAT__V1__ENVELOPE__BODY_DRAIN] = WIRE_DRAIN,
        [MLACAT__V1__ENVELOPE__BODY_SET_LOG_LEVEL] = WIRE_SET_LOG_LEVEL,
        [MLACAT__V1__ENVELOPE__BODY_REGISTER_EVENT] = WIRE_REGISTER_EVENT,
        [MLACAT__V1__ENVELOPE__BODY_UNREGISTER_EVENT] = WIRE_UNREGISTER_EVENT,
        [MLACAT__V1__ENVELOPE__BODY_OPEN_RINGS] = WIRE_OPEN_RINGS,
    };
    /* Field 1 of Envelope is no body: the table is dense from Hello on. */
    if (body < MLACAT__V1__ENVELOPE__BODY_HELLO || body >= sizeof(kinds)) {
        return false;
    }
    *kind = (enum wire_kind)kinds[body];
    return true;
}

static enum mlacat_status refuse_body(Mlacat__V1__Envelope__BodyCase body, struct error *err)
{
    const ProtobufCFieldDescriptor *field =
        protobuf_c_message_descriptor_get_field(&mlacat__v1__envelope__descriptor, body);
    if (field == NULL) {
        return broken(err,
                      "the packet has no body that this service knows: send one of Envelope.body of protocol "
                      "version %d",
                      WIRE_PROTOCOL_VERSION);
    }
    return broken(err, "the packet's body is `%s`, which only the service sends: is the peer a client?", field->name);
}

static enum mlacat_status read_body(struct wire_decoder *decoder, const Mlacat__V1__Envelope *envelope,
                                    struct wire_message *message, struct error *err)
{
    switch (message->kind) {
    case WIRE_HELLO:
        message->hello.protocol_version = envelope->hello->protocol_version;
        message->hello.required_features = envelope->hello->required_features;
        read_text(envelope->hello->client_name, message->hello.client_name, WIRE_NAME_BYTES);
        read_text(envelope->hello->client_version, message->hello.client_version, WIRE_NAME_BYTES);
        return MLACAT_OK;
    case WIRE_REGISTER_BUFFER:
        read_text(envelope->register_buffer->device_uuid, message->register_buffer.device_uuid, WIRE_UUID_BYTES);
        return read_memory(envelope->register_buffer->memory, &message->register_buffer.memory, err);
    case WIRE_UNREGISTER_BUFFER:
        message->unregister_buffer = READ_REF(envelope->unregister_buffer->buffer);
        return MLACAT_OK;
    case WIRE_OPEN_STREAM:
        read_text(envelope->open_stream->device_uuid, message->open_stream.device_uuid, WIRE_UUID_BYTES);
        message->open_stream.ring = envelope->open_stream->ring;
        return MLACAT_OK;
    case WIRE_CLOSE_STREAM:
        message->close_stream = READ_REF(envelope->close_stream->stream);
        return MLACAT_OK;
    case WIRE_SUBMIT:
        message->submit.stream = READ_REF(envelope->submit->stream);
        message->submit.calls_nr = (uint32_t)envelope->submit->n_calls;
        decoder->submit = envelope->submit;
        return MLACAT_OK;
    case WIRE_CANCEL:
        message->cancel.stream = READ_REF(envelope->cancel->stream);
        message->cancel.call_id = envelope->cancel->call_id;
        return MLACAT_OK;
    case WIRE_SET_LOG_LEVEL:
        read_text(envelope->set_log_level->level, message->set_log_level.level, sizeof(message->set_log_level.level));
        return MLACAT_OK;
    case WIRE_REGISTER_EVENT:
        read_text(envelope->register_event->device_uuid, message->register_event.device_uuid, WIRE_UUID_BYTES);
        return read_handle(&envelope->register_event->handle, "cuIpcGetEventHandle", message->register_event.handle,
                           err);
    case WIRE_UNREGISTER_EVENT:
        message->unregister_event = READ_REF(envelope->unregister_event->event);
        return MLACAT_OK;
    default: /* StatsRequest, HealthRequest, Drain and OpenRings say nothing more */
        return MLACAT_OK;
    }
}

/* The request_id of a packet that does not parse, if it stands in front, where encoders put it. */
static uint64_t guess_request_id(const uint8_t *bytes, size_t size)
{
    uint64_t value = 0;
    if (size == 0 || bytes[0] != 0x08) { /* field 1, varint */
        return 0;
    }
    for (size_t i = 1; i < size && i <= 10; i++) {
        value |= (uint64_t)(bytes[i] & 0x7f) << (7 * (i - 1));
        if ((bytes[i] & 0x80) == 0) {
            return value;
        }
    }
    return 0;
}

enum mlacat_status wire_decode(struct wire_decoder *decoder, const uint8_t *bytes, size_t size, uint32_t fds_nr,
                               struct wire_message *message, struct error *err)
{
    decoder->submit = NULL;
    decoder->used_bytes = 0;
    decoder->exhausted = false;
    message->request_id = 0;
    message->kind = WIRE_KINDS;
    if (size > WIRE_PACKET_BYTES || fds_nr > WIRE_PACKET_FDS) {
        return broken(err,
                      "a packet of %zu bytes with %" PRIu32 " descriptors: at most %d bytes and %d descriptors fit",
                      size, fds_nr, WIRE_PACKET_BYTES, WIRE_PACKET_FDS);
    }
    const Mlacat__V1__Envelope *envelope = mlacat__v1__envelope__unpack(&decoder->allocator, size, bytes);
    if (envelope == NULL) {
        message->request_id = guess_request_id(bytes, size);
        return decoder->exhausted
                   ? broken(err,
                            "a packet of %zu bytes is too complex, it needs more than %zu bytes once decoded: send "
                            "fewer parts in one packet",
                            size, ARENA_BYTES)
                   : broken(err,
                            "a packet of %zu bytes is no Envelope of mlacat.proto: check the encoder and that each "
                            "message is one packet",
                            size);
    }
    message->request_id = envelope->request_id;
    if (!find_kind(envelope->body_case, &message->kind)) {
        return refuse_body(envelope->body_case, err);
    }
    if (envelope->request_id == 0 && message->kind != WIRE_SUBMIT) {
        return broken(err, "%s with request_id 0: give each request an id other than 0", wire_kind_name(message->kind));
    }
    enum mlacat_status code = check_fds(envelope, fds_nr, err);
    return code != MLACAT_OK ? code : read_body(decoder, envelope, message, err);
}

/* "operand 1 (k_nope) of call 7: ...". */
__attribute__((format(printf, 4, 5))) static enum mlacat_status
refuse_operand(struct error *err, const Mlacat__V1__Call *call, uint32_t index, const char *format, ...)
{
    const struct op_info *op = op_find(call->op);
    char text[ERROR_MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return refused(err, "operand %" PRIu32 " (%s) of call %" PRIu64 ": %s", index,
                   op == NULL ? "of no known op" : op->operand[index], call->call_id, text);
}

static enum mlacat_status read_operand(const Mlacat__V1__Call *source, uint32_t index, struct wire_call *call,
                                       struct error *err)
{
    const Mlacat__V1__Operand *operand = source->operands[index];
    struct op_view *view = &call->request.view[index];
    struct wire_operand *out = &call->operand[index];
    if (operand->n_shape != OP_DIMS || operand->n_strides != OP_DIMS) {
        return refuse_operand(err, source, index, "%zu extents and %zu strides: send %d of each", operand->n_shape,
                              operand->n_strides, OP_DIMS);
    }
    view->offset_bytes = operand->offset_bytes;
    memcpy(view->shape, operand->shape, sizeof(view->shape));
    memcpy(view->stride, operand->strides, sizeof(view->stride));
    if (operand->where_case == MLACAT__V1__OPERAND__WHERE_BUFFER) {
        out->is_inline = false;
        out->buffer = READ_REF(operand->buffer);
        return MLACAT_OK;
    }
    if (operand->where_case != MLACAT__V1__OPERAND__WHERE_MEMORY) {
        return refuse_operand(err, source, index, "no memory: name a registered buffer or send inline memory");
    }
    struct error why;
    out->is_inline = true;
    if (read_memory(operand->memory->memory, &out->memory, &why) != MLACAT_OK) {
        return refuse_operand(err, source, index, "%s", why.message);
    }
    return MLACAT_OK;
}

enum mlacat_status wire_submit_call(const struct wire_decoder *decoder, uint32_t index, struct wire_call *call,
                                    struct error *err)
{
    const Mlacat__V1__Call *source = decoder->submit->calls[index];
    call->call_id = source->call_id;
    call->deadline_us = source->deadline_us;
    call->waits = source->wait_event != NULL;
    call->wait_event = READ_REF(source->wait_event);
    call->request.op = source->op;
    call->request.dtype = source->dtype;
    if (source->n_operands != OP_OPERANDS) {
        return refused(err, "call %" PRIu64 " has %zu operands: send %d, the output first", source->call_id,
                       source->n_operands, OP_OPERANDS);
    }
    for (uint32_t i = 0; i < OP_OPERANDS; i++) {
        enum mlacat_status code = read_operand(source, i, call, err);
        if (code != MLACAT_OK) {
            return code;
        }
    }
    return MLACAT_OK;
}
