/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What it costs to share GPU memory: as the client sees it, and as the daemon timed it, beside what the driver takes
 * in this process for memory of another one.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

#define IMPORTS 20
#define IMPORTS_QUICK 3
#define WARM 1 /* pair before those that count */
#define BURST 16
/* With the warm one 192 registrations: more in a row than 256 would wait for the daemon's import_rate. */
#define REGISTER_PAIRS 11
#define ALLOCATION_BYTES ((size_t)64 << 20)
#define ALLOCATION_BYTES_QUICK ((size_t)2 << 20)

/* Both sides open or register a new allocation in each round, and keep it: handle bytes come again with new memory. */
struct import {
    struct bench *bench;
    gpu_address ours[EXPORTER_HANDLES_MAX];
    struct mlacat_buffer *buffers[EXPORTER_HANDLES_MAX];
    unsigned registered_nr;
    struct gpu_handle theirs[EXPORTER_HANDLES_MAX];
    gpu_address opened[EXPORTER_HANDLES_MAX];
    unsigned opened_nr;
    unsigned nr;
};

static bool gpu_failed(const struct bench *bench)
{
    fprintf(stderr, "mlacatctl: %s\n", bench->device.gpu.error);
    return false;
}

static void add_us(struct samples *samples, uint64_t begin)
{
    samples_add(samples, (double)(measure_now_ns() - begin) / 1e3);
}

static bool register_new(void *context, struct samples *samples)
{
    struct import *import = context;
    unsigned at = import->registered_nr;
    uint64_t begin = measure_now_ns();
    enum mlacat_status status = mlacat_buffer_register_ptr(
        import->bench->client, (const void *)(uintptr_t)import->ours[at], GPU_GRAIN_BYTES, &import->buffers[at]);

    if (status != MLACAT_OK) {
        ctl_fail("cannot register GPU memory", status);
        return false;
    }
    add_us(samples, begin);
    import->registered_nr++;
    return true;
}

static bool open_new(void *context, struct samples *samples)
{
    struct import *import = context;
    unsigned at = import->opened_nr;
    uint64_t begin = measure_now_ns();

    if (!gpu_import(&import->bench->device.gpu, &import->theirs[at], &import->opened[at]))
        return gpu_failed(import->bench);
    add_us(samples, begin);
    import->opened_nr++;
    return true;
}

static bool register_known(void *context, struct samples *samples)
{
    struct import *import = context;

    for (int i = 0; i < BURST; i++) {
        struct mlacat_buffer *buffer = NULL;
        uint64_t begin = measure_now_ns();
        enum mlacat_status status = mlacat_buffer_register_ptr(
            import->bench->client, (const void *)(uintptr_t)import->ours[0], GPU_GRAIN_BYTES, &buffer);

        if (status != MLACAT_OK) {
            ctl_fail("cannot register GPU memory", status);
            return false;
        }
        mlacat_buffer_release(buffer);
        add_us(samples, begin);
    }
    return true;
}

static bool open_known(void *context, struct samples *samples)
{
    struct import *import = context;
    struct gpu *gpu = &import->bench->device.gpu;

    for (int i = 0; i < BURST; i++) {
        gpu_address address = 0;
        uint64_t begin = measure_now_ns();

        if (!gpu_import(gpu, &import->theirs[0], &address) || !gpu_import_close(gpu, address))
            return gpu_failed(import->bench);
        add_us(samples, begin);
    }
    return true;
}

static bool open_import(struct import *import, unsigned nr)
{
    struct bench *bench = import->bench;
    struct gpu *gpu = &bench->device.gpu;
    size_t bytes = bench->options->quick ? ALLOCATION_BYTES_QUICK : ALLOCATION_BYTES;

    if (!exporter_ask(&bench->exporter, bench->device.info.uuid, bytes, nr, import->theirs, gpu->error))
        return gpu_failed(bench);
    for (; import->nr < nr; import->nr++)
        if (!gpu_alloc(gpu, bytes, &import->ours[import->nr]))
            return gpu_failed(bench);
    return true;
}

static void close_import(struct import *import)
{
    struct gpu *gpu = &import->bench->device.gpu;

    for (unsigned i = 0; i < import->opened_nr; i++)
        gpu_import_close(gpu, import->opened[i]);
    for (unsigned i = 0; i < import->registered_nr; i++)
        mlacat_buffer_release(import->buffers[i]);
    for (unsigned i = 0; i < import->nr; i++)
        gpu_free(gpu, import->ours[i]);
}

static bool measure_imports(struct bench *bench, struct bench_row *row)
{
    struct import import = {.bench = bench};
    bool good;

    row->pairs = bench->options->quick ? IMPORTS_QUICK : IMPORTS;
    good = open_import(&import, row->pairs + WARM) && bench_pairs(bench, row, register_new, open_new, &import);
    close_import(&import);
    return good;
}

/* One registration and one open are kept, so that the others find the allocation open. */
static bool measure_known(struct bench *bench, struct bench_row *row)
{
    struct import import = {.bench = bench};
    struct samples none = {0};
    bool good;

    row->pairs = bench->options->quick ? IMPORTS_QUICK : REGISTER_PAIRS;
    good = open_import(&import, 1) && register_new(&import, &none) && open_new(&import, &none) &&
           bench_pairs(bench, row, register_known, open_known, &import);
    snprintf(row->remark, sizeof(row->remark), "%u samples: more in a row would wait for import_rate",
             row->pairs * BURST);
    close_import(&import);
    return good;
}

/* Once for both rows: the handles of a second time would be those of the first, and wait until the daemon has closed
 * these, which it does at its own pace. */
static bool measure_once(struct bench *bench, struct bench_row *row, struct bench_row *kept,
                         bool (*measure)(struct bench *bench, struct bench_row *row))
{
    const char *name = row->name;

    if (kept->samples == 0) {
        *kept = *row;
        if (!measure(bench, kept))
            return false;
    }
    *row = *kept;
    row->name = name;
    return true;
}

bool bench_cuda_import(struct bench *bench, struct bench_row *row)
{
    return measure_once(bench, row, &bench->imported, measure_imports);
}

bool bench_cuda_register(struct bench *bench, struct bench_row *row)
{
    return measure_once(bench, row, &bench->known, measure_known);
}

/* What the daemon tells of the device; false: printed why, or `row` has the note. */
static bool find_stats(struct bench *bench, struct bench_row *row, struct mlacat_device_stats *found)
{
    struct mlacat_stats *stats = NULL;
    enum mlacat_status status = mlacat_stats(bench->client, &stats);

    *found = (struct mlacat_device_stats){0};
    if (status != MLACAT_OK) {
        ctl_fail("stats", status);
        return false;
    }
    for (uint32_t i = 0; i < stats->devices_nr; i++)
        if (strcmp(stats->devices[i].device, bench->device.info.uuid) == 0)
            *found = stats->devices[i];
    mlacat_stats_free(stats);
    if (found->device[0] == '\0')
        row->note = "the daemon is older than this client, and tells no times of imports";
    return true;
}

/* The daemon keeps two quantiles. They are over all that it has done since its start. */
static void set_daemon_figures(struct bench_row *row, uint64_t p50_ns, uint64_t p99_ns, uint64_t nr)
{
    row->value = row->p50 = (double)p50_ns / 1e3;
    row->p99 = (double)p99_ns / 1e3;
    row->p90 = row->p999 = NAN;
    row->ratio = 0;
    row->samples = nr;
    row->remark[0] = '\0'; /* it is about the client's samples */
}

bool bench_cuda_import_daemon(struct bench *bench, struct bench_row *row)
{
    struct mlacat_device_stats stats;

    if (!bench_cuda_import(bench, row) || !find_stats(bench, row, &stats))
        return false;
    set_daemon_figures(row, stats.import_first_ns_p50, stats.import_first_ns_p99, stats.imports_first);
    return true;
}

bool bench_cuda_register_daemon(struct bench *bench, struct bench_row *row)
{
    struct mlacat_device_stats stats;

    if (!bench_cuda_register(bench, row) || !find_stats(bench, row, &stats))
        return false;
    set_daemon_figures(row, stats.import_known_ns_p50 + stats.release_ns_p50,
                       stats.import_known_ns_p99 + stats.release_ns_p99, stats.imports_known);
    return true;
}
