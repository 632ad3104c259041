/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "gpu_memory.h"
#include "raw_by_ring.h"
#include "require.h"

const char *raw_device(void)
{
    return gpu_memory_used() ? gpu_memory_device() : "host";
}

/* A request that is answered with a body of its own, or with Answer. */
static struct outcome ask(struct raw *raw, Mlacat__V1__Envelope *envelope, const int *fds, uint32_t fds_nr,
                          Mlacat__V1__Envelope__BodyCase wanted, Mlacat__V1__Envelope **result)
{
    struct outcome outcome = {0};
    Mlacat__V1__Envelope *reply = raw_request(raw, envelope, fds, fds_nr);
    *result = NULL;
    if (reply->body_case == wanted) {
        *result = reply;
        return outcome;
    }
    REQUIRE(reply->body_case == MLACAT__V1__ENVELOPE__BODY_ANSWER && reply->answer->status != NULL);
    outcome.code = reply->answer->status->code;
    outcome.scope = reply->answer->status->scope;
    snprintf(outcome.message, sizeof(outcome.message), "%s", reply->answer->status->message);
    REQUIRE(outcome.code != STATUS_OK);
    raw_free(reply);
    return outcome;
}

/* RegisterBuffer with the messages that it points to. */
struct register_messages {
    Mlacat__V1__HostMemory host;
    Mlacat__V1__CudaIpcMemory ipc;
    Mlacat__V1__Memory memory;
    Mlacat__V1__RegisterBuffer message;
    Mlacat__V1__Envelope envelope;
};

static void fill_ipc(Mlacat__V1__CudaIpcMemory *ipc, const struct share *share, uint64_t size_bytes)
{
    mlacat__v1__cuda_ipc_memory__init(ipc);
    ipc->handle = (ProtobufCBinaryData){.len = sizeof(share->handle), .data = (uint8_t *)(uintptr_t)share->handle};
    ipc->allocation_bytes = share->size;
    ipc->size_bytes = size_bytes;
    ipc->buffer_id = share->buffer_id;
}

/* Returns how many descriptors go with it. */
static uint32_t fill_register(struct register_messages *to, int fd, uint64_t size_bytes)
{
    const struct share *share = gpu_memory_find(fd);
    mlacat__v1__memory__init(&to->memory);
    if (share) {
        fill_ipc(&to->ipc, share, size_bytes);
        to->memory.kind_case = MLACAT__V1__MEMORY__KIND_CUDA_IPC;
        to->memory.cuda_ipc = &to->ipc;
    } else {
        mlacat__v1__host_memory__init(&to->host);
        to->host.size_bytes = size_bytes;
        to->memory.kind_case = MLACAT__V1__MEMORY__KIND_HOST;
        to->memory.host = &to->host;
    }
    mlacat__v1__register_buffer__init(&to->message);
    to->message.device_uuid = (char *)(uintptr_t)raw_device();
    to->message.memory = &to->memory;
    mlacat__v1__envelope__init(&to->envelope);
    to->envelope.body_case = MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER;
    to->envelope.register_buffer = &to->message;
    return share ? 0 : 1;
}

void raw_send_register(struct raw *raw, int fd, uint64_t size_bytes)
{
    struct register_messages messages;
    uint32_t fds_nr = fill_register(&messages, fd, size_bytes);
    messages.envelope.request_id = ++raw->last_request;
    raw_send_envelope(raw, &messages.envelope, &fd, fds_nr);
}

struct outcome raw_register(struct raw *raw, int fd, uint64_t size_bytes, struct ref *buffer)
{
    struct register_messages messages;
    Mlacat__V1__Envelope *reply;
    uint32_t fds_nr = fill_register(&messages, fd, size_bytes);
    struct outcome outcome =
        ask(raw, &messages.envelope, &fd, fds_nr, MLACAT__V1__ENVELOPE__BODY_BUFFER_REGISTERED, &reply);
    if (reply != NULL) {
        REQUIRE(reply->buffer_registered->size_bytes == size_bytes);
        *buffer = (struct ref){reply->buffer_registered->buffer->id, reply->buffer_registered->buffer->generation};
        raw_free(reply);
    }
    return outcome;
}

struct outcome raw_unregister(struct raw *raw, struct ref buffer)
{
    Mlacat__V1__BufferRef ref = MLACAT__V1__BUFFER_REF__INIT;
    Mlacat__V1__UnregisterBuffer message = MLACAT__V1__UNREGISTER_BUFFER__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    ref.id = buffer.id;
    ref.generation = buffer.generation;
    message.buffer = &ref;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_UNREGISTER_BUFFER;
    envelope.unregister_buffer = &message;
    return raw_answer(raw, &envelope);
}

struct outcome raw_unregister_event(struct raw *raw, struct ref event)
{
    Mlacat__V1__EventRef ref = MLACAT__V1__EVENT_REF__INIT;
    Mlacat__V1__UnregisterEvent message = MLACAT__V1__UNREGISTER_EVENT__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    ref.id = event.id;
    ref.generation = event.generation;
    message.event = &ref;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_UNREGISTER_EVENT;
    envelope.unregister_event = &message;
    return raw_answer(raw, &envelope);
}

struct outcome raw_open_stream(struct raw *raw, struct ref *stream)
{
    if (raw_by_ring()) {
        return by_ring_open(raw, stream);
    }
    Mlacat__V1__OpenStream message = MLACAT__V1__OPEN_STREAM__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__Envelope *reply;
    message.device_uuid = (char *)(uintptr_t)raw_device();
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_OPEN_STREAM;
    envelope.open_stream = &message;
    struct outcome outcome = ask(raw, &envelope, NULL, 0, MLACAT__V1__ENVELOPE__BODY_STREAM_OPENED, &reply);
    if (reply != NULL) {
        *stream = (struct ref){reply->stream_opened->stream->id, reply->stream_opened->stream->generation};
        raw_free(reply);
    }
    return outcome;
}

struct outcome raw_close_stream(struct raw *raw, struct ref stream)
{
    Mlacat__V1__StreamRef ref = MLACAT__V1__STREAM_REF__INIT;
    Mlacat__V1__CloseStream message = MLACAT__V1__CLOSE_STREAM__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    ref.id = stream.id;
    ref.generation = stream.generation;
    message.stream = &ref;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_CLOSE_STREAM;
    envelope.close_stream = &message;
    struct outcome outcome = raw_answer(raw, &envelope);
    if (outcome.code == STATUS_OK) {
        by_ring_closed(raw, stream);
    }
    return outcome;
}

struct outcome raw_cancel(struct raw *raw, struct ref stream, uint64_t call_id)
{
    struct raw_ring *ring = by_ring_find(raw, stream);
    if (ring) {
        return by_ring_cancel(raw, ring, call_id);
    }
    Mlacat__V1__StreamRef ref = MLACAT__V1__STREAM_REF__INIT;
    Mlacat__V1__Cancel message = MLACAT__V1__CANCEL__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    ref.id = stream.id;
    ref.generation = stream.generation;
    message.stream = &ref;
    message.call_id = call_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_CANCEL;
    envelope.cancel = &message;
    return raw_answer(raw, &envelope);
}

struct outcome raw_drain(struct raw *raw)
{
    Mlacat__V1__Drain message = MLACAT__V1__DRAIN__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_DRAIN;
    envelope.drain = &message;
    return raw_answer(raw, &envelope);
}

struct outcome raw_set_log_level(struct raw *raw, const char *level)
{
    Mlacat__V1__SetLogLevel message = MLACAT__V1__SET_LOG_LEVEL__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    message.level = (char *)(uintptr_t)level;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_SET_LOG_LEVEL;
    envelope.set_log_level = &message;
    return raw_answer(raw, &envelope);
}

struct counts raw_stats(struct raw *raw)
{
    Mlacat__V1__StatsRequest message = MLACAT__V1__STATS_REQUEST__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__Envelope *reply;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_STATS_REQUEST;
    envelope.stats_request = &message;
    struct outcome outcome = ask(raw, &envelope, NULL, 0, MLACAT__V1__ENVELOPE__BODY_STATS, &reply);
    REQUIRE(reply != NULL, "Stats: %s", outcome.message);
    const Mlacat__V1__Stats *stats = reply->stats;
    struct counts counts = {
        .clients = stats->clients,
        .streams = stats->streams,
        .buffers = stats->buffers,
        .mapped_bytes = stats->mapped_bytes,
        .calls_in_flight = stats->calls_in_flight,
        .clients_total = stats->clients_total,
        .clients_refused = stats->clients_refused,
        .sessions_broken = stats->sessions_broken,
    };
    for (size_t i = 0; i < stats->n_devices; i++) {
        counts.memory_leaving += stats->devices[i]->memory_leaving;
        counts.memory_released += stats->devices[i]->memory_released;
        counts.memory_closed += stats->devices[i]->memory_closed;
        counts.gated_calls += stats->devices[i]->gated_calls;
    }
    for (size_t i = 0; i < stats->n_outcomes; i++) {
        REQUIRE(stats->outcomes[i]->code < RAW_STATUSES);
        counts.outcomes[stats->outcomes[i]->code] = stats->outcomes[i]->count;
    }
    raw_free(reply);
    return counts;
}

bool raw_ready(struct raw *raw, char *reason)
{
    Mlacat__V1__HealthRequest message = MLACAT__V1__HEALTH_REQUEST__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__Envelope *reply;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_HEALTH_REQUEST;
    envelope.health_request = &message;
    struct outcome outcome = ask(raw, &envelope, NULL, 0, MLACAT__V1__ENVELOPE__BODY_HEALTH, &reply);
    REQUIRE(reply != NULL && reply->health->live, "Health: %s", outcome.message);
    bool ready = reply->health->ready;
    if (reason != NULL) {
        snprintf(reason, 64, "%s", reply->health->reason);
    }
    raw_free(reply);
    return ready;
}

void raw_ping(struct raw *raw)
{
    raw_ready(raw, NULL);
}

struct ref raw_must_register(struct raw *raw, int fd, uint64_t size_bytes)
{
    struct ref buffer = {0};
    struct outcome outcome = raw_register(raw, fd, size_bytes, &buffer);
    REQUIRE(outcome.code == STATUS_OK && buffer.generation != 0, "RegisterBuffer: %u: %s", outcome.code,
            outcome.message);
    return buffer;
}

struct ref raw_must_open_stream(struct raw *raw)
{
    struct ref stream = {0};
    struct outcome outcome = raw_open_stream(raw, &stream);
    REQUIRE(outcome.code == STATUS_OK && stream.generation != 0, "OpenStream: %u: %s", outcome.code, outcome.message);
    return stream;
}
