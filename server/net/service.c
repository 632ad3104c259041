/* SPDX-License-Identifier: Apache-2.0 */
#include "service.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "completion.h"
#include "session.h"

_Static_assert(MLACAT_UNAUTHENTICATED < SERVICE_STATUSES, "every status has a counter");

enum mlacat_status service_init(struct service *service, struct error *err)
{
    list_init(&service->sessions);
    list_init(&service->unsent);
    service->started_ns = clock_now_ns();
    service->reader = conn_reader_new();
    service->decoder = wire_decoder_new();
    service->packet = malloc(WIRE_PACKET_BYTES);
    if (!service->reader || !service->decoder || !service->packet) {
        service_fini(service);
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "no memory for the packet buffers");
    }
    return MLACAT_OK;
}

void service_fini(struct service *service)
{
    assert(service->sessions_nr == 0);
    if (service->reader) {
        conn_reader_free(service->reader);
    }
    if (service->decoder) {
        wire_decoder_free(service->decoder);
    }
    free(service->packet);
    service->reader = NULL;
    service->decoder = NULL;
    service->packet = NULL;
}

/* A client knows the UUID of its GPU, but the driver tells it no prefix that says whether it is a part of one. */
static bool is_same_device(const char *a, const char *b)
{
    static const char *const prefixes[] = {"GPU-", "MIG-"};
    for (int i = 0; i < 2; i++) {
        a += strncmp(a, prefixes[i], 4) == 0 ? 4 : 0;
        b += strncmp(b, prefixes[i], 4) == 0 ? 4 : 0;
    }
    return strcmp(a, b) == 0;
}

struct engine *service_find_engine(struct service *service, const char *uuid, struct error *err)
{
    char known[128] = "";
    size_t used = 0;
    for (uint32_t i = 0; i < service->engines_nr; i++) {
        const char *have = service->engines[i].info.uuid;
        if (is_same_device(have, uuid)) {
            if (service->engines[i].available) {
                return &service->engines[i];
            }
            error_set(err, MLACAT_UNAVAILABLE, "the device \"%.64s\" is not available: %s", uuid,
                      service->engines[i].absent_reason.message);
            return NULL;
        }
        int wrote = snprintf(known + used, sizeof(known) - used, "%s\"%s\"", i ? ", " : "", have);
        used = wrote > 0 && used + (size_t)wrote < sizeof(known) ? used + (size_t)wrote : sizeof(known) - 1;
    }
    error_set(err, MLACAT_NOT_FOUND, "this service has no device \"%.64s\": it has %s", uuid, known);
    return NULL;
}

bool service_take(struct service *service)
{
    bool any = false;
    for (uint32_t i = 0; i < service->engines_nr; i++) {
        any |= engine_take(&service->engines[i]);
        const struct error *lost = control_lost(&service->engines[i].control);
        if (lost) {
            service->on_device_lost(service->owner, lost);
        }
    }
    if (!list_empty(&service->unsent)) {
        completion_flush(service);
    }
    return any;
}

uint32_t service_calls_at_workers(const struct service *service)
{
    uint32_t calls_nr = 0;
    for (uint32_t i = 0; i < service->engines_nr; i++) {
        calls_nr += engine_calls(&service->engines[i]);
    }
    return calls_nr;
}

uint32_t service_streams(const struct service *service)
{
    uint32_t streams_nr = 0;
    for (uint32_t i = 0; i < service->engines_nr; i++) {
        streams_nr += service->engines[i].streams_nr;
    }
    return streams_nr;
}

uint32_t service_calls(const struct service *service)
{
    uint32_t calls_nr = 0;
    for (struct list_node *node = service->sessions.next; node != &service->sessions; node = node->next) {
        calls_nr += LIST_ENTRY(node, struct session, link)->calls_nr;
    }
    for (uint32_t i = 0; i < service->engines_nr; i++) {
        calls_nr += engine_ring_calls(&service->engines[i]);
    }
    return calls_nr;
}

bool service_has_rings(const struct service *service)
{
    for (uint32_t i = 0; i < service->engines_nr; i++) {
        if (service->engines[i].rings_nr > 0) {
            return true;
        }
    }
    return false;
}

void service_drain_rings(struct service *service)
{
    for (uint32_t i = 0; i < service->engines_nr; i++) {
        engine_drain(&service->engines[i]);
    }
}

static void merge_rings(const struct engine *engine, uint32_t op, struct op_counters *into)
{
    for (uint32_t i = 0; i < engine->workers_nr; i++) {
        counters_merge_op(into, &engine->workers[i].counters, op);
    }
}

static uint64_t count_outcome(const struct service *service, uint32_t code)
{
    uint64_t count = service->outcomes[code];
    for (uint32_t e = 0; e < service->engines_nr; e++) {
        for (uint32_t i = 0; i < service->engines[e].workers_nr; i++) {
            count += counters_outcome(&service->engines[e].workers[i].counters, code);
        }
    }
    return count;
}

static void gather_ops(struct service *service, struct wire_stats *stats)
{
    for (uint32_t e = 0; e < service->engines_nr; e++) {
        for (uint32_t i = 0; op_at(i) && stats->ops_nr < WIRE_OP_STATS_MAX; i++) {
            struct op_counters counters = service->ops[e][op_at(i)->number];
            merge_rings(&service->engines[e], op_at(i)->number, &counters);
            stats->ops[stats->ops_nr++] = (struct wire_op_stats){
                .op = op_at(i)->number,
                .device_uuid = service->engines[e].info.uuid,
                .calls = counters.calls,
                .bytes = counters.bytes,
                .queue_ns_p50 = histogram_quantile(&counters.queue, 0.5),
                .queue_ns_p99 = histogram_quantile(&counters.queue, 0.99),
                .device_ns_p50 = histogram_quantile(&counters.device, 0.5),
                .device_ns_p99 = histogram_quantile(&counters.device, 0.99),
            };
        }
    }
    for (uint32_t code = 0; code < SERVICE_STATUSES; code++) {
        uint64_t count = count_outcome(service, code);
        if (count) {
            stats->outcomes[stats->outcomes_nr++] = (struct wire_status_count){.code = code, .count = count};
        }
    }
}

static struct gate_counters merge_gates(const struct engine *engine)
{
    struct gate_counters gates = {0};
    for (uint32_t i = 0; i < engine->workers_nr; i++) {
        counters_merge_gates(&gates, &engine->workers[i].counters);
    }
    return gates;
}

static void gather_devices(const struct service *service, const struct session *asking, struct wire_stats *stats)
{
    for (uint32_t e = 0; e < service->engines_nr; e++) {
        const struct engine *engine = &service->engines[e];
        const struct engine_times *times = &engine->times;
        struct gate_counters gates = merge_gates(engine);
        struct wire_device_stats *device = &stats->devices[stats->devices_nr++];
        *device = (struct wire_device_stats){
            .device_uuid = engine->info.uuid,
            .imports_first = times->import_first.total,
            .imports_known = times->import_known.total,
            .releases = times->release.total,
            .import_first_ns_p50 = histogram_quantile(&times->import_first, 0.5),
            .import_first_ns_p99 = histogram_quantile(&times->import_first, 0.99),
            .import_known_ns_p50 = histogram_quantile(&times->import_known, 0.5),
            .import_known_ns_p99 = histogram_quantile(&times->import_known, 0.99),
            .release_ns_p50 = histogram_quantile(&times->release, 0.5),
            .release_ns_p99 = histogram_quantile(&times->release, 0.99),
            .memory_leaving = asking->leaving_nr[e],
            .gated_calls = gates.calls,
            .armed_calls = gates.armed,
            .armed_lapses = gates.lapses,
        };
        if (engine->available) {
            engine->ops->mem_closed(engine->device, &device->memory_released, &device->memory_closed);
        }
    }
}

static void gather_clients(struct service *service, struct wire_stats *stats)
{
    for (struct list_node *node = service->sessions.next; node != &service->sessions; node = node->next) {
        const struct session *session = LIST_ENTRY(node, struct session, link);
        stats->streams += session->streams.used_nr;
        stats->buffers += session->buffers_nr;
        stats->mapped_bytes += session->mapped_bytes;
        uint64_t ring_calls_total;
        uint32_t ring_calls_nr;
        session_count_ring_calls(session, &ring_calls_total, &ring_calls_nr);
        stats->calls_in_flight += session->calls_nr + ring_calls_nr;
        if (session->state != SESSION_OPEN || stats->client_stats_nr == WIRE_CLIENT_STATS_MAX) {
            continue;
        }
        stats->clients++;
        stats->client_stats[stats->client_stats_nr++] = (struct wire_client_stats){
            .name = session->name,
            .pid = (uint32_t)session->peer.pid,
            .uid = session->peer.uid,
            .streams = session->streams.used_nr,
            .buffers = session->buffers.used_nr,
            .mapped_bytes = session->mapped_bytes,
            .calls = session->calls_total + ring_calls_total,
            .calls_in_flight = session->calls_nr + ring_calls_nr,
        };
    }
}

size_t service_pack_stats(struct service *service, const struct session *asking, uint64_t request_id)
{
    struct wire_stats stats = {
        .uptime_us = (clock_now_ns() - service->started_ns) / 1000,
        .clients_total = service->clients_total,
        .clients_refused = service->clients_refused,
        .sessions_broken = service->sessions_broken,
    };
    gather_ops(service, &stats);
    gather_clients(service, &stats);
    gather_devices(service, asking, &stats);
    return wire_encode_stats(service->packet, request_id, &stats);
}
