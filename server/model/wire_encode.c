/* SPDX-License-Identifier: Apache-2.0 */
#include "wire.h"

#include <assert.h>
#include <string.h>

#include "mlacat.pb-c.h"

/* A packet is built from structs on the stack that point to each other and is then packed in one go: nothing is
 * allocated, and nothing outlives the function. */

/* A copy that bounds the packet's size whatever the caller's text is. Cut between UTF-8 characters: a decoder may
 * refuse a string that ends within one. */
static char *copy_text(const char *text, char *copy, size_t copy_bytes)
{
    size_t length = text == NULL ? 0 : strnlen(text, copy_bytes);
    if (length == copy_bytes) {
        length--;
        while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80) {
            length--;
        }
    }
    if (length > 0) {
        memcpy(copy, text, length);
    }
    copy[length] = '\0';
    return copy;
}

static Mlacat__V1__Status make_status(const struct error *err)
{
    Mlacat__V1__Status status = MLACAT__V1__STATUS__INIT;
    status.code = (uint32_t)err->code;
    status.scope = (uint32_t)err->scope;
    status.message = (char *)err->message; /* only read */
    return status;
}

/* What a Welcome body points to. */
struct welcome_parts {
    Mlacat__V1__Device devices[WIRE_DEVICES_MAX];
    Mlacat__V1__Device *device_list[WIRE_DEVICES_MAX];
    char texts[WIRE_DEVICES_MAX][4][WIRE_TEXT_BYTES];
    Mlacat__V1__Op ops[OP_NUMBER_MAX];
    Mlacat__V1__Op *op_list[OP_NUMBER_MAX];
    Mlacat__V1__Limits limits;
    char version[WIRE_TEXT_BYTES];
    uint8_t boot_id[WIRE_BOOT_ID_BYTES];
};

static void fill_devices(struct welcome_parts *parts, const struct wire_welcome *welcome)
{
    for (uint32_t i = 0; i < welcome->devices_nr; i++) {
        const struct wire_device *source = &welcome->devices[i];
        Mlacat__V1__Device *device = &parts->devices[i];
        mlacat__v1__device__init(device);
        device->uuid = copy_text(source->uuid, parts->texts[i][0], WIRE_TEXT_BYTES);
        device->kind = copy_text(source->kind, parts->texts[i][1], WIRE_TEXT_BYTES);
        device->name = copy_text(source->name, parts->texts[i][2], WIRE_TEXT_BYTES);
        device->reason = copy_text(source->reason, parts->texts[i][3], WIRE_TEXT_BYTES);
        device->available = source->available;
        device->workers = source->workers;
        parts->device_list[i] = device;
    }
}

/* Returns the number of ops. */
static uint32_t fill_op_names(struct welcome_parts *parts)
{
    uint32_t nr = 0;
    for (const struct op_info *op; nr < OP_NUMBER_MAX && (op = op_at(nr)) != NULL; nr++) {
        mlacat__v1__op__init(&parts->ops[nr]);
        parts->ops[nr].op = op->number;
        parts->ops[nr].name = (char *)op->name; /* only read */
        parts->op_list[nr] = &parts->ops[nr];
    }
    return nr;
}

static void fill_limits(struct welcome_parts *parts, const struct wire_limits *limits)
{
    mlacat__v1__limits__init(&parts->limits);
    parts->limits.packet_bytes = WIRE_PACKET_BYTES;
    parts->limits.packet_fds = WIRE_PACKET_FDS;
    parts->limits.streams = limits->streams;
    parts->limits.buffers = limits->buffers;
    parts->limits.mapped_bytes = limits->mapped_bytes;
    parts->limits.stream_calls = limits->stream_calls;
    parts->limits.calls = limits->calls;
    parts->limits.events = limits->events;
}

size_t wire_encode_welcome(uint8_t *bytes, const struct wire_welcome *welcome)
{
    struct welcome_parts parts;
    Mlacat__V1__Welcome body = MLACAT__V1__WELCOME__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;

    assert(welcome->devices_nr <= WIRE_DEVICES_MAX);
    fill_devices(&parts, welcome);
    fill_limits(&parts, &welcome->limits);
    memcpy(parts.boot_id, welcome->boot_id, sizeof(parts.boot_id));
    body.protocol_version = WIRE_PROTOCOL_VERSION;
    body.features = WIRE_FEATURES;
    body.boot_id = (ProtobufCBinaryData){.len = sizeof(parts.boot_id), .data = parts.boot_id};
    body.server_version = copy_text(welcome->server_version, parts.version, sizeof(parts.version));
    body.server_pid = welcome->server_pid;
    body.n_devices = welcome->devices_nr;
    body.devices = parts.device_list;
    body.n_ops = fill_op_names(&parts);
    body.ops = parts.op_list;
    body.limits = &parts.limits;
    body.has_pidfd = welcome->has_pidfd;
    envelope.request_id = welcome->request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_WELCOME;
    envelope.welcome = &body;
    return mlacat__v1__envelope__pack(&envelope, bytes);
}

size_t wire_encode_answer(uint8_t *bytes, uint64_t request_id, const struct error *err)
{
    Mlacat__V1__Answer body = MLACAT__V1__ANSWER__INIT;
    Mlacat__V1__Status status;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;

    if (err != NULL && err->code != MLACAT_OK) {
        status = make_status(err);
        body.status = &status;
    }
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_ANSWER;
    envelope.answer = &body;
    return mlacat__v1__envelope__pack(&envelope, bytes);
}

size_t wire_encode_buffer_registered(uint8_t *bytes, uint64_t request_id, struct wire_ref buffer, uint64_t size_bytes)
{
    Mlacat__V1__BufferRegistered body = MLACAT__V1__BUFFER_REGISTERED__INIT;
    Mlacat__V1__BufferRef ref = MLACAT__V1__BUFFER_REF__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;

    ref.id = buffer.id;
    ref.generation = buffer.generation;
    body.buffer = &ref;
    body.size_bytes = size_bytes;
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_BUFFER_REGISTERED;
    envelope.buffer_registered = &body;
    return mlacat__v1__envelope__pack(&envelope, bytes);
}

size_t wire_encode_event_registered(uint8_t *bytes, uint64_t request_id, struct wire_ref event)
{
    Mlacat__V1__EventRegistered body = MLACAT__V1__EVENT_REGISTERED__INIT;
    Mlacat__V1__EventRef ref = MLACAT__V1__EVENT_REF__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;

    ref.id = event.id;
    ref.generation = event.generation;
    body.event = &ref;
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_EVENT_REGISTERED;
    envelope.event_registered = &body;
    return mlacat__v1__envelope__pack(&envelope, bytes);
}

size_t wire_encode_stream_opened(uint8_t *bytes, uint64_t request_id, struct wire_ref stream, uint32_t calls,
                                 const struct wire_ring *ring)
{
    Mlacat__V1__StreamOpened body = MLACAT__V1__STREAM_OPENED__INIT;
    Mlacat__V1__StreamRef ref = MLACAT__V1__STREAM_REF__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;

    ref.id = stream.id;
    ref.generation = stream.generation;
    body.stream = &ref;
    body.calls = calls;
    body.has_ring = ring != NULL;
    body.ring = ring != NULL ? ring->index : 0;
    body.sequence = ring != NULL ? ring->sequence : 0;
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_STREAM_OPENED;
    envelope.stream_opened = &body;
    return mlacat__v1__envelope__pack(&envelope, bytes);
}

size_t wire_encode_rings_opened(uint8_t *bytes, uint64_t request_id, const struct wire_rings *rings)
{
    Mlacat__V1__RingsOpened body = MLACAT__V1__RINGS_OPENED__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;

    body.rings = rings->rings;
    body.entries = rings->entries;
    body.client_bytes = rings->client_bytes;
    body.daemon_bytes = rings->daemon_bytes;
    body.client_stride = rings->client_stride;
    body.daemon_stride = rings->daemon_stride;
    body.submissions_offset = rings->submissions_offset;
    body.completions_offset = rings->completions_offset;
    body.messages_offset = rings->messages_offset;
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_RINGS_OPENED;
    envelope.rings_opened = &body;
    return mlacat__v1__envelope__pack(&envelope, bytes);
}

size_t wire_encode_completions(uint8_t *bytes, const struct wire_completion *completions, uint32_t nr)
{
    /* Only the first `nr` of each are touched: one completion costs no more than it needs. */
    Mlacat__V1__Completion items[WIRE_COMPLETIONS_MAX];
    Mlacat__V1__Completion *item_list[WIRE_COMPLETIONS_MAX];
    Mlacat__V1__StreamRef refs[WIRE_COMPLETIONS_MAX];
    Mlacat__V1__Status statuses[WIRE_COMPLETIONS_MAX];
    Mlacat__V1__Completions body = MLACAT__V1__COMPLETIONS__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;

    assert(nr >= 1 && nr <= WIRE_COMPLETIONS_MAX);
    for (uint32_t i = 0; i < nr; i++) {
        const struct wire_completion *completion = &completions[i];
        mlacat__v1__stream_ref__init(&refs[i]);
        refs[i].id = completion->stream.id;
        refs[i].generation = completion->stream.generation;
        mlacat__v1__completion__init(&items[i]);
        items[i].stream = &refs[i];
        items[i].call_id = completion->call_id;
        items[i].queue_ns = completion->queue_ns;
        items[i].device_ns = completion->device_ns;
        if (completion->error != NULL && completion->error->code != MLACAT_OK) {
            statuses[i] = make_status(completion->error);
            items[i].status = &statuses[i];
        }
        item_list[i] = &items[i];
    }
    body.n_completions = nr;
    body.completions = item_list;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_COMPLETIONS;
    envelope.completions = &body;
    return mlacat__v1__envelope__pack(&envelope, bytes);
}

/* What a Stats body points to. */
struct stats_parts {
    Mlacat__V1__OpStats ops[WIRE_OP_STATS_MAX];
    Mlacat__V1__OpStats *op_list[WIRE_OP_STATS_MAX];
    char uuids[WIRE_OP_STATS_MAX][WIRE_UUID_BYTES];
    Mlacat__V1__StatusCount outcomes[WIRE_STATUS_COUNTS_MAX];
    Mlacat__V1__StatusCount *outcome_list[WIRE_STATUS_COUNTS_MAX];
    Mlacat__V1__ClientStats clients[WIRE_CLIENT_STATS_MAX];
    Mlacat__V1__ClientStats *client_list[WIRE_CLIENT_STATS_MAX];
    char names[WIRE_CLIENT_STATS_MAX][WIRE_NAME_BYTES];
    Mlacat__V1__DeviceStats devices[WIRE_DEVICES_MAX];
    Mlacat__V1__DeviceStats *device_list[WIRE_DEVICES_MAX];
    char device_uuids[WIRE_DEVICES_MAX][WIRE_UUID_BYTES];
};

static void fill_ops(struct stats_parts *parts, const struct wire_stats *stats)
{
    for (uint32_t i = 0; i < stats->ops_nr; i++) {
        const struct wire_op_stats *source = &stats->ops[i];
        Mlacat__V1__OpStats *op = &parts->ops[i];
        mlacat__v1__op_stats__init(op);
        op->op = source->op;
        op->device_uuid = copy_text(source->device_uuid, parts->uuids[i], WIRE_UUID_BYTES);
        op->calls = source->calls;
        op->bytes = source->bytes;
        op->queue_ns_p50 = source->queue_ns_p50;
        op->queue_ns_p99 = source->queue_ns_p99;
        op->device_ns_p50 = source->device_ns_p50;
        op->device_ns_p99 = source->device_ns_p99;
        parts->op_list[i] = op;
    }
}

static void fill_outcomes(struct stats_parts *parts, const struct wire_stats *stats)
{
    for (uint32_t i = 0; i < stats->outcomes_nr; i++) {
        mlacat__v1__status_count__init(&parts->outcomes[i]);
        parts->outcomes[i].code = stats->outcomes[i].code;
        parts->outcomes[i].count = stats->outcomes[i].count;
        parts->outcome_list[i] = &parts->outcomes[i];
    }
}

static void fill_clients(struct stats_parts *parts, const struct wire_stats *stats)
{
    for (uint32_t i = 0; i < stats->client_stats_nr; i++) {
        const struct wire_client_stats *source = &stats->client_stats[i];
        Mlacat__V1__ClientStats *client = &parts->clients[i];
        mlacat__v1__client_stats__init(client);
        client->name = copy_text(source->name, parts->names[i], WIRE_NAME_BYTES);
        client->pid = source->pid;
        client->uid = source->uid;
        client->streams = source->streams;
        client->buffers = source->buffers;
        client->mapped_bytes = source->mapped_bytes;
        client->calls = source->calls;
        client->calls_in_flight = source->calls_in_flight;
        parts->client_list[i] = client;
    }
}

static void fill_device_stats(struct stats_parts *parts, const struct wire_stats *stats)
{
    for (uint32_t i = 0; i < stats->devices_nr; i++) {
        const struct wire_device_stats *source = &stats->devices[i];
        Mlacat__V1__DeviceStats *device = &parts->devices[i];
        mlacat__v1__device_stats__init(device);
        device->device_uuid = copy_text(source->device_uuid, parts->device_uuids[i], WIRE_UUID_BYTES);
        device->imports_first = source->imports_first;
        device->imports_known = source->imports_known;
        device->releases = source->releases;
        device->import_first_ns_p50 = source->import_first_ns_p50;
        device->import_first_ns_p99 = source->import_first_ns_p99;
        device->import_known_ns_p50 = source->import_known_ns_p50;
        device->import_known_ns_p99 = source->import_known_ns_p99;
        device->release_ns_p50 = source->release_ns_p50;
        device->release_ns_p99 = source->release_ns_p99;
        device->memory_leaving = source->memory_leaving;
        device->memory_released = source->memory_released;
        device->memory_closed = source->memory_closed;
        device->gated_calls = source->gated_calls;
        device->armed_calls = source->armed_calls;
        device->armed_lapses = source->armed_lapses;
        parts->device_list[i] = device;
    }
}

size_t wire_encode_stats(uint8_t *bytes, uint64_t request_id, const struct wire_stats *stats)
{
    struct stats_parts parts; /* about 60 KiB, of which only what is used is touched */
    Mlacat__V1__Stats body = MLACAT__V1__STATS__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;

    assert(stats->ops_nr <= WIRE_OP_STATS_MAX && stats->outcomes_nr <= WIRE_STATUS_COUNTS_MAX);
    assert(stats->client_stats_nr <= WIRE_CLIENT_STATS_MAX && stats->devices_nr <= WIRE_DEVICES_MAX);
    fill_ops(&parts, stats);
    fill_outcomes(&parts, stats);
    fill_clients(&parts, stats);
    fill_device_stats(&parts, stats);
    body.uptime_us = stats->uptime_us;
    body.clients = stats->clients;
    body.streams = stats->streams;
    body.buffers = stats->buffers;
    body.mapped_bytes = stats->mapped_bytes;
    body.calls_in_flight = stats->calls_in_flight;
    body.clients_total = stats->clients_total;
    body.clients_refused = stats->clients_refused;
    body.sessions_broken = stats->sessions_broken;
    body.n_ops = stats->ops_nr;
    body.ops = parts.op_list;
    body.n_outcomes = stats->outcomes_nr;
    body.outcomes = parts.outcome_list;
    body.n_client_stats = stats->client_stats_nr;
    body.client_stats = parts.client_list;
    body.n_devices = stats->devices_nr;
    body.devices = parts.device_list;
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_STATS;
    envelope.stats = &body;
    return mlacat__v1__envelope__pack(&envelope, bytes);
}

size_t wire_encode_health(uint8_t *bytes, uint64_t request_id, bool live, bool ready, const char *reason)
{
    char text[WIRE_TEXT_BYTES];
    Mlacat__V1__Health body = MLACAT__V1__HEALTH__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;

    body.live = live;
    body.ready = ready;
    body.reason = copy_text(reason, text, sizeof(text));
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_HEALTH;
    envelope.health = &body;
    return mlacat__v1__envelope__pack(&envelope, bytes);
}
