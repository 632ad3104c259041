/* SPDX-License-Identifier: Apache-2.0 */
/* What operators ask: statistics, health, drain, log level. */
#include <stdlib.h>
#include <string.h>

#include "request.h"
#include "sized.h"

static enum mlacat_status ask(struct mlacat_client *client, message *request, int body, message **reply)
{
    enum mlacat_status status = client_check(client);
    if (status == MLACAT_OK) {
        struct error err;
        pthread_mutex_lock(&client->lock);
        status = request_make(client, request, NULL, REQUEST_ANY, body, reply, &err);
        pthread_mutex_unlock(&client->lock);
        if (status != MLACAT_OK) {
            error_raise(&err);
        }
    }
    return status;
}

/* ---------------------------------------------------------------------------------------------------- statistics */

static void copy_op(struct mlacat_op_stats *to, const Mlacat__V1__OpStats *from)
{
    to->op = (enum mlacat_op)from->op;
    error_copy_text(to->device, sizeof(to->device), from->device_uuid);
    to->calls = from->calls;
    to->bytes = from->bytes;
    to->queue_ns_p50 = from->queue_ns_p50;
    to->queue_ns_p99 = from->queue_ns_p99;
    to->device_ns_p50 = from->device_ns_p50;
    to->device_ns_p99 = from->device_ns_p99;
}

static void copy_client(struct mlacat_client_stats *to, const Mlacat__V1__ClientStats *from)
{
    error_copy_text(to->name, sizeof(to->name), from->name);
    to->pid = from->pid;
    to->uid = from->uid;
    to->streams = from->streams;
    to->buffers = from->buffers;
    to->mapped_bytes = from->mapped_bytes;
    to->calls = from->calls;
    to->calls_in_flight = from->calls_in_flight;
}

static void copy_device(struct mlacat_device_stats *to, const Mlacat__V1__DeviceStats *from)
{
    error_copy_text(to->device, sizeof(to->device), from->device_uuid);
    to->imports_first = from->imports_first;
    to->imports_known = from->imports_known;
    to->releases = from->releases;
    to->import_first_ns_p50 = from->import_first_ns_p50;
    to->import_first_ns_p99 = from->import_first_ns_p99;
    to->import_known_ns_p50 = from->import_known_ns_p50;
    to->import_known_ns_p99 = from->import_known_ns_p99;
    to->release_ns_p50 = from->release_ns_p50;
    to->release_ns_p99 = from->release_ns_p99;
    to->memory_leaving = from->memory_leaving;
    to->memory_released = from->memory_released;
    to->memory_closed = from->memory_closed;
    to->gated_calls = from->gated_calls;
    to->armed_calls = from->armed_calls;
    to->armed_lapses = from->armed_lapses;
}

static void copy_counters(struct mlacat_stats *to, const Mlacat__V1__Stats *from)
{
    to->uptime_us = from->uptime_us;
    to->clients = from->clients;
    to->streams = from->streams;
    to->buffers = from->buffers;
    to->mapped_bytes = from->mapped_bytes;
    to->calls_in_flight = from->calls_in_flight;
    to->clients_total = from->clients_total;
    to->clients_refused = from->clients_refused;
    to->sessions_broken = from->sessions_broken;
    for (size_t i = 0; i < from->n_outcomes; i++) {
        to->outcomes[error_status_of(from->outcomes[i]->code)] += from->outcomes[i]->count;
    }
}

/* One piece of memory: the struct, then the arrays. */
static struct mlacat_stats *copy_stats(const Mlacat__V1__Stats *from)
{
    size_t ops_bytes = from->n_ops * sizeof(struct mlacat_op_stats);
    size_t clients_bytes = from->n_client_stats * sizeof(struct mlacat_client_stats);
    size_t devices_bytes = from->n_devices * sizeof(struct mlacat_device_stats);
    struct mlacat_stats *to = calloc(1, sizeof(*to) + ops_bytes + devices_bytes + clients_bytes);
    if (to == NULL) {
        return NULL;
    }
    struct mlacat_op_stats *ops = (struct mlacat_op_stats *)(void *)(to + 1);
    struct mlacat_device_stats *devices = (struct mlacat_device_stats *)(void *)(ops + from->n_ops);
    struct mlacat_client_stats *clients = (struct mlacat_client_stats *)(void *)(devices + from->n_devices);
    copy_counters(to, from);
    for (size_t i = 0; i < from->n_ops; i++) {
        copy_op(&ops[i], from->ops[i]);
    }
    for (size_t i = 0; i < from->n_client_stats; i++) {
        copy_client(&clients[i], from->client_stats[i]);
    }
    for (size_t i = 0; i < from->n_devices; i++) {
        copy_device(&devices[i], from->devices[i]);
    }
    to->ops_nr = (uint32_t)from->n_ops;
    to->ops = ops;
    to->client_stats_nr = (uint32_t)from->n_client_stats;
    to->client_stats = clients;
    to->devices_nr = (uint32_t)from->n_devices;
    to->devices = devices;
    return to;
}

enum mlacat_status mlacat_stats(struct mlacat_client *client, struct mlacat_stats **stats)
{
    message request = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__StatsRequest body = MLACAT__V1__STATS_REQUEST__INIT;
    message *reply;
    if (stats == NULL) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "stats is NULL; give the address of a pointer");
    }
    *stats = NULL;
    request.body_case = MLACAT__V1__ENVELOPE__BODY_STATS_REQUEST;
    request.stats_request = &body;
    enum mlacat_status status = ask(client, &request, MLACAT__V1__ENVELOPE__BODY_STATS, &reply);
    if (status != MLACAT_OK) {
        return status;
    }
    *stats = copy_stats(reply->stats);
    message_free(reply);
    return *stats != NULL ? MLACAT_OK : error_fail(MLACAT_RESOURCE_EXHAUSTED, "no memory for the statistics");
}

void mlacat_stats_free(struct mlacat_stats *stats)
{
    free(stats);
}

/* ---------------------------------------------------------------------------------------------------- the rest */

enum mlacat_status mlacat_health(struct mlacat_client *client, struct mlacat_health *health)
{
    message request = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__HealthRequest body = MLACAT__V1__HEALTH_REQUEST__INIT;
    message *reply;
    enum mlacat_status status = sized_check(health, SIZED_HEALTH, "mlacat_health");
    if (status != MLACAT_OK) {
        return status;
    }
    request.body_case = MLACAT__V1__ENVELOPE__BODY_HEALTH_REQUEST;
    request.health_request = &body;
    status = ask(client, &request, MLACAT__V1__ENVELOPE__BODY_HEALTH, &reply);
    if (status != MLACAT_OK) {
        return status;
    }
    struct mlacat_health now = {.live = reply->health->live != 0, .ready = reply->health->ready != 0};
    error_copy_text(now.reason, sizeof(now.reason), reply->health->reason);
    message_free(reply);
    sized_write(health, &now, sizeof(now));
    return MLACAT_OK;
}

enum mlacat_status mlacat_drain(struct mlacat_client *client)
{
    message request = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__Drain body = MLACAT__V1__DRAIN__INIT;
    request.body_case = MLACAT__V1__ENVELOPE__BODY_DRAIN;
    request.drain = &body;
    return ask(client, &request, MLACAT__V1__ENVELOPE__BODY_ANSWER, NULL);
}

enum mlacat_status mlacat_set_log_level(struct mlacat_client *client, const char *level)
{
    message request = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__SetLogLevel body = MLACAT__V1__SET_LOG_LEVEL__INIT;
    if (level == NULL) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "level is NULL; give error, warning, info or debug");
    }
    request.body_case = MLACAT__V1__ENVELOPE__BODY_SET_LOG_LEVEL;
    request.set_log_level = &body;
    body.level = (char *)(uintptr_t)level;
    return ask(client, &request, MLACAT__V1__ENVELOPE__BODY_ANSWER, NULL);
}
