/* SPDX-License-Identifier: Apache-2.0 */
#include "bench.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "table.h"

#define QUICK_NS 50000000u

#define IN_PROCESS "the same in process"
#define COPY "device copy of the same bytes"
#define THREE_KERNELS "the three kernels in process"
#define KNOWN_OPEN "cuIpcOpenMemHandle, close; known"

/* On which device of the service a row means something. */
enum where { ANYWHERE, ON_HOST, ON_GPU };

struct entry {
    const char *name;
    const char *unit;
    const char *reference;
    bool more_is_better;
    enum where where;
    bool (*run)(struct bench *bench, struct bench_row *row);
};

static const struct entry entries[] = {
    {"host.k", "B/s", "memcpy", true, ANYWHERE, bench_host_k},
    {"host.q", "B/s", "memcpy", true, ANYWHERE, bench_host_q},
    {"host.k.unaligned", "B/s", "memcpy", true, ANYWHERE, bench_host_unaligned},
    /* Before all that registers memory: the daemon's times are over all that it has done. */
    {"cuda.memory.import.daemon", "us", "cuIpcOpenMemHandle", false, ON_GPU, bench_cuda_import_daemon},
    {"cuda.memory.import", "us", "cuIpcOpenMemHandle", false, ON_GPU, bench_cuda_import},
    {"message.latency", "us", "socket ping-pong", false, ANYWHERE, bench_message_latency},
    {"message.switches", "switches/call", "socket ping-pong", false, ANYWHERE, bench_message_switches},
    {"message.window64", "calls/s", "socket echo, 64 in flight", true, ANYWHERE, bench_message_window},
    {"message.batch32", "calls/s", "socket echo, 64 in flight", true, ANYWHERE, bench_message_batch},
    {"ring.latency", "us", IN_PROCESS, false, ANYWHERE, bench_ring_latency},
    {"ring.latency.messages", "us", "the same as messages", false, ANYWHERE, bench_ring_latency_messages},
    {"ring.submit", "ns", "the same as messages", false, ANYWHERE, bench_ring_submit},
    {"ring.submit.writes", "writes/call", "eventfd write", false, ANYWHERE, bench_ring_writes},
    {"ring.pipelined", "calls/s", IN_PROCESS, true, ANYWHERE, bench_ring_pipelined},
    {"ring.batch32", "calls/s", IN_PROCESS, true, ANYWHERE, bench_ring_batch},
    {"call.large", "B/s", "kernel in process", true, ON_HOST, bench_call_large},
    {"memory.register", "us", "memfd, mmap, munmap", false, ON_HOST, bench_memory_register},
    {"cuda.memory.register", "us", KNOWN_OPEN, false, ON_GPU, bench_cuda_register},
    {"cuda.memory.register.daemon", "us", KNOWN_OPEN, false, ON_GPU, bench_cuda_register_daemon},
    {"cuda.message.latency", "us", "launch, event, query in process", false, ON_GPU, bench_cuda_latency},
    {"cuda.small4096", "us/call", "launches in process", false, ON_GPU, bench_cuda_small},
    {"order.single", "us/call", THREE_KERNELS, false, ON_GPU, bench_order_single},
    {"order.chained32", "us/call", THREE_KERNELS, false, ON_GPU, bench_order_chained},
    {"order.chained32.work2ms", "us/call", THREE_KERNELS, false, ON_GPU, bench_order_work},
    {"order.large.4096", "us/call", THREE_KERNELS, false, ON_GPU, bench_order_large},
    {"cuda.k.2048", "B/s", COPY, true, ON_GPU, bench_cuda_rate},
    {"cuda.k.8192", "B/s", COPY, true, ON_GPU, bench_cuda_rate},
    {"cuda.k.32768", "B/s", COPY, true, ON_GPU, bench_cuda_rate},
    {"cuda.k.h8", "B/s", COPY, true, ON_GPU, bench_cuda_rate},
    {"cuda.k.h12", "B/s", COPY, true, ON_GPU, bench_cuda_rate},
    {"cuda.k.h16", "B/s", COPY, true, ON_GPU, bench_cuda_rate},
    {"cuda.k.fp8.8192", "B/s", COPY, true, ON_GPU, bench_cuda_rate},
    {"cuda.k.fp8.32768", "B/s", COPY, true, ON_GPU, bench_cuda_rate},
    {"cuda.q.262144", "B/s", COPY, true, ON_GPU, bench_cuda_rate},
};

#define ENTRIES (sizeof(entries) / sizeof(entries[0]))

bool bench_need_service(struct bench *bench)
{
    enum mlacat_status status;

    if (bench->stream)
        return true;
    if (bench->broken)
        return false;
    bench->broken = true;
    if (!bench->client && !ctl_connect(bench->options, &bench->client))
        return false;
    bench->server = (struct mlacat_server_info){.size = sizeof(bench->server)};
    mlacat_server_info(bench->client, &bench->server);
    status = area_find(&bench->device, bench->client, bench->options->device);
    /* Before this process uses CUDA, which its children then could not. */
    if (status == MLACAT_OK && bench->device.on_gpu && !exporter_start(&bench->exporter)) {
        fprintf(stderr, "mlacatctl: cannot start the process that exports memory: %s\n", strerror(errno));
        return false;
    }
    if (status == MLACAT_OK)
        status = area_open(&bench->device, bench->client, bench->options->device);
    if (status == MLACAT_OK)
        status = area_stream_open(&bench->device, MLACAT_TRANSPORT_MESSAGE, &bench->stream);
    if (status != MLACAT_OK) {
        ctl_fail_for("cannot open a stream", status, area_message(&bench->device));
        return false;
    }
    bench->broken = false;
    return true;
}

bool bench_need_echo(struct bench *bench)
{
    for (int place = bench->echoes_nr; place < ECHO_PLACES && echo_possible((enum echo_place)place); place++) {
        if (!echo_start(&bench->echo[place], (enum echo_place)place)) {
            fprintf(stderr, "mlacatctl: cannot start the echo process: %s\n", strerror(errno));
            return false;
        }
        bench->echoes_nr = place + 1;
    }
    if (bench->echoes_nr == 0)
        fprintf(stderr, "mlacatctl: cannot learn which CPUs this process may use: %s\n", strerror(errno));
    return bench->echoes_nr > 0;
}

void bench_close(struct bench *bench)
{
    mlacat_stream_close(bench->stream);
    mlacat_disconnect(bench->client);
    area_close(&bench->device);
    exporter_stop(&bench->exporter);
    for (int place = 0; place < ECHO_PLACES; place++)
        echo_stop(&bench->echo[place]);
}

static double ratio(const struct bench_row *row)
{
    if (row->ratio > 0)
        return row->ratio;
    return row->reference_value > 0 ? row->value / row->reference_value : 0;
}

static json_t *known(double figure)
{
    return isnan(figure) ? json_null() : json_real(figure);
}

static json_t *row_json(const struct bench_row *row)
{
    json_t *json;

    if (row->note)
        return json_pack("{s:s, s:n, s:s, s:s, s:n, s:n, s:n, s:n, s:n, s:n, s:n, s:n, s:n, s:i, s:s}", "name",
                         row->name, "value", "unit", row->unit, "reference", row->reference, "reference_value", "ratio",
                         "p50", "p90", "p99", "p999", "reference_p90", "reference_p99", "reference_p999", "samples", 0,
                         "note", row->note);
    json = json_pack("{s:s, s:f, s:s, s:s, s:f, s:f, s:f, s:o, s:f, s:o, s:f, s:f, s:f, s:I}", "name", row->name,
                     "value", row->value, "unit", row->unit, "reference", row->reference, "reference_value",
                     row->reference_value, "ratio", ratio(row), "p50", row->p50, "p90", known(row->p90), "p99",
                     row->p99, "p999", known(row->p999), "reference_p90", row->reference_p90, "reference_p99",
                     row->reference_p99, "reference_p999", row->reference_p999, "samples", (json_int_t)row->samples);
    if (row->remark[0] != '\0')
        json_object_set_new(json, "note", json_string(row->remark));
    return json;
}

/* "9.7 GB/s", "12.3 us", "80.1 kcalls/s": a figure in the row's unit. */
static void figure_text(const struct bench_row *row, double value, char text[BENCH_TEXT_BYTES])
{
    if (isnan(value))
        snprintf(text, BENCH_TEXT_BYTES, "-");
    else if (strcmp(row->unit, "B/s") == 0 && value >= 1e12) /* a GPU's memory: the third digit is what counts */
        snprintf(text, BENCH_TEXT_BYTES, "%.2f TB/s", value / 1e12);
    else if (strcmp(row->unit, "B/s") == 0)
        measure_rate_text(value, text, BENCH_TEXT_BYTES);
    else if (strcmp(row->unit, "calls/s") == 0)
        snprintf(text, BENCH_TEXT_BYTES, "%.1f kcalls/s", value / 1e3);
    else
        snprintf(text, BENCH_TEXT_BYTES, "%.2f %s", value, row->unit);
}

static void print_row(struct table *table, const struct bench_row *row)
{
    char text[7][BENCH_TEXT_BYTES];
    const char *cells[] = {row->name, text[0], row->reference, text[1], text[2],
                           text[3],   text[4], text[5],        text[6], row->remark};

    if (row->note) {
        const char *none[] = {row->name, "-", row->reference, "-", "-", "-", "-", "-", "", row->note};

        table_row(table, none);
    } else {
        figure_text(row, row->value, text[0]);
        figure_text(row, row->reference_value, text[1]);
        snprintf(text[2], BENCH_TEXT_BYTES, "%.3f", ratio(row));
        figure_text(row, row->p90, text[3]);
        figure_text(row, row->p99, text[4]);
        figure_text(row, row->p999, text[5]);
        snprintf(text[6], BENCH_TEXT_BYTES, "%zu", row->samples);
        table_row(table, cells);
    }
    table_flush(table, stdout);
}

static bool chosen(const struct ctl_options *options, const char *name)
{
    return !options->filter || strstr(name, options->filter);
}

/* Whether the row is for the service's device; else it gets a note. False: the service cannot be reached. */
static bool fit_device(struct bench *bench, enum where where, struct bench_row *row)
{
    if (where == ANYWHERE)
        return true;
    if (!bench_need_service(bench))
        return false;
    if (where == ON_HOST && bench->device.on_gpu)
        row->note = "for the host device; the service's is a GPU: see the rows cuda.";
    else if (where == ON_GPU && !bench->device.on_gpu)
        row->note = "for a GPU; the service's device is the host";
    return true;
}

/* All chosen rows; false when one failed. *nr: how many were chosen. */
static bool run_rows(struct bench *bench, struct table *table, json_t *array, size_t *nr)
{
    bool good = true;

    for (size_t i = 0; i < ENTRIES; i++) {
        struct bench_row row = {.name = entries[i].name,
                                .unit = entries[i].unit,
                                .reference = entries[i].reference,
                                .more_is_better = entries[i].more_is_better};

        if (!chosen(bench->options, row.name))
            continue;
        ++*nr;
        if (!fit_device(bench, entries[i].where, &row) || (!row.note && !entries[i].run(bench, &row))) {
            good = false;
            continue;
        }
        if (array)
            json_array_append_new(array, row_json(&row));
        else
            print_row(table, &row);
    }
    return good;
}

int cmd_bench(const struct ctl_options *options)
{
    static const struct table_column columns[] = {
        {"name", 27, false}, {"median", 19, true}, {"reference", 36, false}, {"median", 19, true}, {"ratio", 6, true},
        {"p90", 19, true},   {"p99", 19, true},    {"p99.9", 19, true},      {"samples", 7, true}, {"note", 0, false}};
    struct bench bench = {.options = options,
                          .histograms = options->histogram ? json_array() : NULL,
                          .budget_ns = options->quick ? QUICK_NS : (uint64_t)(options->seconds * 1e9)};
    json_t *array = options->json ? json_array() : NULL;
    struct table table;
    size_t nr = 0;
    bool good;

    table_init(&table, columns, sizeof(columns) / sizeof(columns[0]));
    good = run_rows(&bench, &table, array, &nr);
    table_fini(&table);
    bench_close(&bench);
    if (bench.histograms && nr > 0)
        good = bench_histogram_write(bench.histograms, options->histogram) && good;
    json_decref(bench.histograms);
    if (nr == 0) {
        fprintf(stderr, "mlacatctl: --filter: no row has \"%s\" in its name; rows are:", options->filter);
        for (size_t i = 0; i < ENTRIES; i++)
            fprintf(stderr, " %s", entries[i].name);
        fputc('\n', stderr);
        json_decref(array);
        return CTL_USAGE;
    }
    if (array)
        ctl_print_json(array);
    return good ? CTL_OK : bench.broken ? CTL_UNREACHABLE : CTL_FAILED;
}
