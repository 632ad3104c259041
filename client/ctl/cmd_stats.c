/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>

#include "common.h"
#include "measure.h"
#include "names.h"
#include "table.h"

#define TEXT 32

static const char *op_text(enum mlacat_op op)
{
    const struct op_name *name = names_op(op);

    return name ? name->name : "unknown";
}

static json_t *op_json(const struct mlacat_op_stats *op)
{
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "op", op_text(op->op), "device", op->device, "calls",
                     (json_int_t)op->calls, "bytes", (json_int_t)op->bytes, "queue_ns_p50",
                     (json_int_t)op->queue_ns_p50, "queue_ns_p99", (json_int_t)op->queue_ns_p99, "device_ns_p50",
                     (json_int_t)op->device_ns_p50, "device_ns_p99", (json_int_t)op->device_ns_p99);
}

static json_t *client_json(const struct mlacat_client_stats *client)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "name", client->name, "pid", (json_int_t)client->pid,
                     "uid", (json_int_t)client->uid, "streams", (json_int_t)client->streams, "buffers",
                     (json_int_t)client->buffers, "mapped_bytes", (json_int_t)client->mapped_bytes, "calls",
                     (json_int_t)client->calls, "calls_in_flight", (json_int_t)client->calls_in_flight);
}

static json_t *device_json(const struct mlacat_device_stats *device)
{
    return json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "device", device->device,
        "imports_first", (json_int_t)device->imports_first, "imports_known", (json_int_t)device->imports_known,
        "releases", (json_int_t)device->releases, "import_first_ns_p50", (json_int_t)device->import_first_ns_p50,
        "import_first_ns_p99", (json_int_t)device->import_first_ns_p99, "import_known_ns_p50",
        (json_int_t)device->import_known_ns_p50, "import_known_ns_p99", (json_int_t)device->import_known_ns_p99,
        "release_ns_p50", (json_int_t)device->release_ns_p50, "release_ns_p99", (json_int_t)device->release_ns_p99,
        "memory_released", (json_int_t)device->memory_released, "memory_closed", (json_int_t)device->memory_closed,
        "gated_calls", (json_int_t)device->gated_calls, "armed_calls", (json_int_t)device->armed_calls, "armed_lapses",
        (json_int_t)device->armed_lapses);
}

static void print_json(const struct mlacat_stats *stats)
{
    json_t *ops = json_array();
    json_t *outcomes = json_object();
    json_t *clients = json_array();
    json_t *devices = json_array();

    for (uint32_t i = 0; i < stats->ops_nr; i++)
        json_array_append_new(ops, op_json(&stats->ops[i]));
    for (int i = 0; i < MLACAT_STATUS_END_; i++)
        json_object_set_new(outcomes, mlacat_status_name((enum mlacat_status)i),
                            json_integer((json_int_t)stats->outcomes[i]));
    for (uint32_t i = 0; i < stats->client_stats_nr; i++)
        json_array_append_new(clients, client_json(&stats->client_stats[i]));
    for (uint32_t i = 0; i < stats->devices_nr; i++)
        json_array_append_new(devices, device_json(&stats->devices[i]));
    ctl_print_json(json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o}", "uptime_us",
                             (json_int_t)stats->uptime_us, "clients", (json_int_t)stats->clients, "streams",
                             (json_int_t)stats->streams, "buffers", (json_int_t)stats->buffers, "mapped_bytes",
                             (json_int_t)stats->mapped_bytes, "calls_in_flight", (json_int_t)stats->calls_in_flight,
                             "clients_total", (json_int_t)stats->clients_total, "clients_refused",
                             (json_int_t)stats->clients_refused, "sessions_broken", (json_int_t)stats->sessions_broken,
                             "ops", ops, "outcomes", outcomes, "client_stats", clients, "devices", devices));
}

static void number(uint64_t value, char text[TEXT])
{
    snprintf(text, TEXT, "%" PRIu64, value);
}

static void print_summary(const struct mlacat_stats *stats)
{
    char mapped[TEXT];

    measure_bytes_text((double)stats->mapped_bytes, mapped, sizeof(mapped));
    printf("up %.1f s, %" PRIu32 " clients, %" PRIu32 " streams, %" PRIu32 " buffers, %s mapped, %" PRIu32
           " calls in flight\n",
           (double)stats->uptime_us / 1e6, stats->clients, stats->streams, stats->buffers, mapped,
           stats->calls_in_flight);
    printf("since the start: %" PRIu64 " clients, %" PRIu64 " refused, %" PRIu64 " sessions broken\n\n",
           stats->clients_total, stats->clients_refused, stats->sessions_broken);
}

static void print_ops(const struct mlacat_stats *stats)
{
    static const struct table_column columns[] = {
        {"op", 0, false},       {"device", 0, false},   {"calls", 0, true},      {"bytes", 0, true},
        {"queue p50", 0, true}, {"queue p99", 0, true}, {"device p50", 0, true}, {"device p99", 0, true}};
    struct table table;

    table_init(&table, columns, 8);
    for (uint32_t i = 0; i < stats->ops_nr; i++) {
        const struct mlacat_op_stats *op = &stats->ops[i];
        char text[6][TEXT];
        const char *cells[] = {op_text(op->op), op->device, text[0], text[1], text[2], text[3], text[4], text[5]};

        number(op->calls, text[0]);
        measure_bytes_text((double)op->bytes, text[1], TEXT);
        measure_time_text((double)op->queue_ns_p50, text[2], TEXT);
        measure_time_text((double)op->queue_ns_p99, text[3], TEXT);
        measure_time_text((double)op->device_ns_p50, text[4], TEXT);
        measure_time_text((double)op->device_ns_p99, text[5], TEXT);
        table_row(&table, cells);
    }
    table_flush(&table, stdout);
    table_fini(&table);
    putchar('\n');
}

static void print_devices(const struct mlacat_stats *stats)
{
    static const struct table_column columns[] = {
        {"device", 0, false}, {"memory", 0, false}, {"times", 0, true}, {"p50", 0, true}, {"p99", 0, true}};
    struct table table;

    table_init(&table, columns, 5);
    for (uint32_t i = 0; i < stats->devices_nr; i++) {
        const struct mlacat_device_stats *device = &stats->devices[i];
        const struct {
            const char *what;
            uint64_t nr, p50_ns, p99_ns;
        } rows[] = {
            {"import", device->imports_first, device->import_first_ns_p50, device->import_first_ns_p99},
            {"import, known", device->imports_known, device->import_known_ns_p50, device->import_known_ns_p99},
            {"release", device->releases, device->release_ns_p50, device->release_ns_p99},
        };
        for (int r = 0; r < 3; r++) {
            char text[3][TEXT];
            const char *cells[] = {device->device, rows[r].what, text[0], text[1], text[2]};

            number(rows[r].nr, text[0]);
            measure_time_text((double)rows[r].p50_ns, text[1], TEXT);
            measure_time_text((double)rows[r].p99_ns, text[2], TEXT);
            table_row(&table, cells);
        }
    }
    table_flush(&table, stdout);
    table_fini(&table);
    putchar('\n');
}

/* Calls in the order of a client's CUDA stream; where there were none, nothing. */
static void print_gated(const struct mlacat_stats *stats)
{
    static const struct table_column columns[] = {
        {"device", 0, false}, {"stream-ordered calls", 0, true}, {"started by the GPU", 0, true}, {"lapses", 0, true}};
    struct table table;

    table_init(&table, columns, 4);
    for (uint32_t i = 0; i < stats->devices_nr; i++) {
        const struct mlacat_device_stats *device = &stats->devices[i];
        char text[3][TEXT];
        const char *cells[] = {device->device, text[0], text[1], text[2]};

        number(device->gated_calls, text[0]);
        number(device->armed_calls, text[1]);
        number(device->armed_lapses, text[2]);
        if (device->gated_calls > 0 || device->armed_lapses > 0)
            table_row(&table, cells);
    }
    if (table.rows_nr > 0) {
        table_flush(&table, stdout);
        putchar('\n');
    }
    table_fini(&table);
}

static void print_outcomes(const struct mlacat_stats *stats)
{
    static const struct table_column columns[] = {{"outcome", 0, false}, {"calls", 0, true}};
    struct table table;

    table_init(&table, columns, 2);
    for (int i = 0; i < MLACAT_STATUS_END_; i++) {
        char text[TEXT];
        const char *cells[] = {mlacat_status_name((enum mlacat_status)i), text};

        number(stats->outcomes[i], text);
        if (stats->outcomes[i] > 0 || i == MLACAT_OK)
            table_row(&table, cells);
    }
    table_flush(&table, stdout);
    table_fini(&table);
    putchar('\n');
}

static void print_clients(const struct mlacat_stats *stats)
{
    static const struct table_column columns[] = {{"client", 0, false}, {"pid", 0, true},      {"uid", 0, true},
                                                  {"streams", 0, true}, {"buffers", 0, true},  {"mapped", 0, true},
                                                  {"calls", 0, true},   {"in flight", 0, true}};
    struct table table;

    table_init(&table, columns, 8);
    for (uint32_t i = 0; i < stats->client_stats_nr; i++) {
        const struct mlacat_client_stats *client = &stats->client_stats[i];
        char text[7][TEXT];
        const char *cells[] = {client->name, text[0], text[1], text[2], text[3], text[4], text[5], text[6]};

        number(client->pid, text[0]);
        number(client->uid, text[1]);
        number(client->streams, text[2]);
        number(client->buffers, text[3]);
        measure_bytes_text((double)client->mapped_bytes, text[4], TEXT);
        number(client->calls, text[5]);
        number(client->calls_in_flight, text[6]);
        table_row(&table, cells);
    }
    table_flush(&table, stdout);
    table_fini(&table);
}

int cmd_stats(const struct ctl_options *options)
{
    struct mlacat_client *client = NULL;
    struct mlacat_stats *stats = NULL;
    enum mlacat_status status;
    int result = CTL_OK;

    if (!ctl_connect(options, &client))
        return CTL_UNREACHABLE;
    status = mlacat_stats(client, &stats);
    if (status != MLACAT_OK) {
        result = ctl_fail("stats", status);
    } else if (options->json) {
        print_json(stats);
    } else {
        print_summary(stats);
        print_ops(stats);
        print_devices(stats);
        print_gated(stats);
        print_outcomes(stats);
        print_clients(stats);
    }
    mlacat_stats_free(stats);
    mlacat_disconnect(client);
    return result;
}
