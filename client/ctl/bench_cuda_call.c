/* SPDX-License-Identifier: Apache-2.0 */
/* The smallest call through the service, one in flight, beside a launch of the same kernel on the same memory in this
 * process, whose end is asked for until it is there. */
#include "small_calls.h"

#define BURST 64

static const struct shape shape = {
    .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16, .dim0 = 1, .dim1 = 16, .first = 128, .second = 64};

static bool run_in_service(const struct small_calls *calls)
{
    enum mlacat_status status = mlacat_run(calls->bench->stream, &calls->calls[0], NULL);

    return status == MLACAT_OK || (ctl_fail("call", status), false);
}

static bool run_in_process(const struct small_calls *calls)
{
    return small_calls_in_process(calls, 0, 1);
}

/* The first one does not count: without MPS the GPU changes over from the other process to ours. */
static bool burst(const struct small_calls *calls, struct samples *samples,
                  bool (*once)(const struct small_calls *calls))
{
    if (!once(calls))
        return false;
    for (int i = 0; i < BURST; i++) {
        uint64_t begin = measure_now_ns();

        if (!once(calls))
            return false;
        samples_add(samples, (double)(measure_now_ns() - begin) / 1e3);
    }
    return true;
}

static bool service_side(void *context, struct samples *samples)
{
    return burst(context, samples, run_in_service);
}

static bool process_side(void *context, struct samples *samples)
{
    return burst(context, samples, run_in_process);
}

bool bench_cuda_latency(struct bench *bench, struct bench_row *row)
{
    struct small_calls calls;
    bool good;

    row->note = small_calls_missing(bench);
    if (row->note)
        return true;
    good = small_calls_open(&calls, bench, &shape, 1) && small_calls_check(&calls, row->name, service_side, &calls) &&
           small_calls_check(&calls, row->name, process_side, &calls) &&
           bench_pairs(bench, row, service_side, process_side, &calls);
    bench_remark_p99(row);
    small_calls_close(&calls);
    return good;
}
