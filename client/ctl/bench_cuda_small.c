/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many small calls that have nothing to do with each other, submitted one by one through one stream, beside as many
 * launches of the same kernel on the same memory in this process. Every byte of all outputs is checked for both.
 */
#include <stdio.h>

#include "small_calls.h"

#define CALLS 4096u
#define CALLS_QUICK 256u
#define IN_FLIGHT_MAX 128u

static const struct shape shape = {
    .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16, .dim0 = 1, .dim1 = 16, .first = 128, .second = 64};

struct small {
    struct small_calls calls;
    struct mlacat_stream *stream;
    unsigned in_flight; /* at most */
    uint64_t ids[IN_FLIGHT_MAX];
};

/* The window slides: the oldest call ends, one more is sent. */
static bool run_in_service(struct small *small)
{
    unsigned calls_nr = small->calls.nr;
    enum mlacat_status status = MLACAT_OK;

    for (unsigned i = 0; i < calls_nr + small->in_flight && status == MLACAT_OK; i++) {
        uint64_t *id = &small->ids[i % small->in_flight];

        if (i >= small->in_flight)
            status = mlacat_wait(small->stream, *id, -1, NULL);
        if (status == MLACAT_OK && i < calls_nr)
            status = mlacat_submit(small->stream, &small->calls.calls[i], id);
    }
    if (status != MLACAT_OK)
        ctl_fail("many small calls", status);
    return status == MLACAT_OK;
}

static void add_time(const struct small *small, struct samples *samples, uint64_t begin)
{
    samples_add(samples, (double)(measure_now_ns() - begin) / 1e3 / small->calls.nr);
}

/* One that does not count comes first: it wakes the worker, and without MPS the GPU changes over to its process. */
static bool service_side(void *context, struct samples *samples)
{
    struct small *small = context;
    enum mlacat_status status = mlacat_run(small->stream, &small->calls.calls[0], NULL);
    uint64_t begin = measure_now_ns();

    if (status != MLACAT_OK) {
        ctl_fail("small call", status);
        return false;
    }
    if (!run_in_service(small))
        return false;
    add_time(small, samples, begin);
    return true;
}

static bool process_side(void *context, struct samples *samples)
{
    struct small *small = context;
    bool good = small_calls_in_process(&small->calls, 0, 1);
    uint64_t begin = measure_now_ns();

    if (!good || !small_calls_in_process(&small->calls, 0, small->calls.nr))
        return false;
    add_time(small, samples, begin);
    return true;
}

static bool open_small(struct small *small, struct bench *bench)
{
    uint32_t most = bench->server.max_stream_calls;
    enum mlacat_status status = area_stream_open(&bench->device, MLACAT_TRANSPORT_AUTO, &small->stream);

    if (status != MLACAT_OK) {
        ctl_fail_for("cannot open a stream", status, area_message(&bench->device));
        return false;
    }
    small->in_flight = most < IN_FLIGHT_MAX ? most : IN_FLIGHT_MAX;
    return small_calls_open(&small->calls, bench, &shape, bench->options->quick ? CALLS_QUICK : CALLS);
}

bool bench_cuda_small(struct bench *bench, struct bench_row *row)
{
    struct small small = {0};
    bool good;

    row->note = small_calls_missing(bench);
    if (row->note)
        return true;
    good = open_small(&small, bench) && small_calls_check(&small.calls, row->name, service_side, &small) &&
           small_calls_check(&small.calls, row->name, process_side, &small) &&
           bench_pairs(bench, row, service_side, process_side, &small);
    if (good && bench->options->quick)
        snprintf(row->remark, sizeof(row->remark), "%u calls: --quick", small.calls.nr);
    mlacat_stream_close(small.stream);
    small_calls_close(&small.calls);
    return good;
}
