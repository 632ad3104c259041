/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shared-memory ring with calls too small to count, each beside the same calls made in this process on the same
 * memory: on a GPU launches and a wait, on the host device the kernel itself. One call in flight, and a submit, stand
 * beside the same as messages too. No two calls share memory, and every output is checked for both sides.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "small_calls.h"

#define LATENCY_BURST 256
#define SUBMIT_BURST 64
#define CALLS 256u /* more than are in flight; in process the launches between two waits */
#define WINDOW 64u
#define BURST 4096u
#define BATCH 32u
#define BATCHES_IN_FLIGHT 4u

static const struct shape shape = {
    .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16, .dim0 = 1, .dim1 = 1, .first = 8, .second = 8};

struct ring_bench {
    struct small_calls calls;
    struct mlacat_stream *stream; /* the ring's */
    uint64_t ids[BATCHES_IN_FLIGHT * BATCH];
};

static bool failed(const char *what, enum mlacat_status status)
{
    ctl_fail(what, status);
    return false;
}

/* Without a ring the row gets a note. */
static bool open_ring(struct ring_bench *ring, struct bench *bench, struct bench_row *row, unsigned calls_nr)
{
    enum mlacat_status status;

    if (!bench_need_service(bench))
        return false;
    status = area_stream_open(&bench->device, MLACAT_TRANSPORT_RING, &ring->stream);
    if (status == MLACAT_UNIMPLEMENTED) {
        row->note = "the service has no rings";
        return true;
    }
    if (status != MLACAT_OK) {
        ctl_fail_for("cannot open a ring", status, area_message(&bench->device));
        return false;
    }
    return small_calls_open(&ring->calls, bench, &shape, calls_nr);
}

static bool measure(struct ring_bench *ring, struct bench_row *row, bench_side value, bench_side reference,
                    bool reference_calls)
{
    const struct small_calls *calls = &ring->calls;

    return small_calls_check(calls, row->name, value, ring) &&
           (!reference_calls || small_calls_check(calls, row->name, reference, ring)) &&
           bench_pairs(calls->bench, row, value, reference, ring);
}

/* `reference_calls`: the reference makes the calls as well. */
static bool run_row(struct bench *bench, struct bench_row *row, unsigned calls_nr, bench_side value,
                    bench_side reference, bool reference_calls)
{
    struct ring_bench ring = {0};
    bool good =
        open_ring(&ring, bench, row, calls_nr) && (row->note || measure(&ring, row, value, reference, reference_calls));

    mlacat_stream_close(ring.stream);
    small_calls_close(&ring.calls);
    return good;
}

/* Beside this process; `on_gpu`: what it does there. */
static bool run_beside_process(struct bench *bench, struct bench_row *row, unsigned calls_nr, bench_side value,
                               bench_side reference, const char *on_gpu)
{
    if (!bench_need_service(bench))
        return false;
    row->reference = bench->device.on_gpu ? on_gpu : "kernel in process";
    row->note = small_calls_missing(bench);
    return row->note || run_row(bench, row, calls_nr, value, reference, true);
}

/* ------------------------------------------------------------------------------------------------ one in flight */

/* The stream's, or this process for none. */
static bool run_once(const struct ring_bench *ring, struct mlacat_stream *stream)
{
    enum mlacat_status status;

    if (!stream)
        return small_calls_in_process(&ring->calls, 0, 1);
    status = mlacat_run(stream, &ring->calls.calls[0], NULL);
    return status == MLACAT_OK || failed("call", status);
}

/* The first one does not count: it wakes the worker, and without MPS the GPU changes over to its process. */
static bool latency(const struct ring_bench *ring, struct mlacat_stream *stream, struct samples *samples)
{
    if (!run_once(ring, stream))
        return false;
    for (int i = 0; i < LATENCY_BURST; i++) {
        uint64_t begin = measure_now_ns();

        if (!run_once(ring, stream))
            return false;
        samples_add(samples, (double)(measure_now_ns() - begin) / 1e3);
    }
    return true;
}

static bool ring_latency(void *context, struct samples *samples)
{
    const struct ring_bench *ring = context;

    return latency(ring, ring->stream, samples);
}

static bool message_latency(void *context, struct samples *samples)
{
    const struct ring_bench *ring = context;

    return latency(ring, ring->calls.bench->stream, samples);
}

static bool process_latency(void *context, struct samples *samples)
{
    return latency(context, NULL, samples);
}

bool bench_ring_latency(struct bench *bench, struct bench_row *row)
{
    bool good = run_beside_process(bench, row, 1, ring_latency, process_latency, "launch, event, query in process");

    bench_remark_p99(row);
    return good;
}

bool bench_ring_latency_messages(struct bench *bench, struct bench_row *row)
{
    return run_row(bench, row, 1, ring_latency, message_latency, true);
}

/* ------------------------------------------------------------------------------------------------ the submit alone */

/* A burst after a call that has woken the worker; `begin` and `end` see the submits only. */
static bool submit_burst(struct ring_bench *ring, struct mlacat_stream *stream, uint64_t (*look)(void), uint64_t *spent)
{
    const struct mlacat_call *calls = ring->calls.calls;
    enum mlacat_status status = mlacat_run(stream, &calls[0], NULL);
    uint64_t begin = look();

    for (int i = 0; i < SUBMIT_BURST && status == MLACAT_OK; i++)
        status = mlacat_submit(stream, &calls[i], &ring->ids[i]);
    *spent = look() - begin;
    for (int i = 0; i < SUBMIT_BURST && status == MLACAT_OK; i++)
        status = mlacat_wait(stream, ring->ids[i], -1, NULL);
    return status == MLACAT_OK || failed("submit", status);
}

static bool submits(struct ring_bench *ring, struct mlacat_stream *stream, struct samples *samples)
{
    uint64_t spent_ns;
    bool good = submit_burst(ring, stream, measure_now_ns, &spent_ns);

    samples_add(samples, (double)spent_ns / SUBMIT_BURST);
    return good;
}

static bool ring_submits(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;

    return submits(ring, ring->stream, samples);
}

static bool message_submits(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;

    return submits(ring, ring->calls.bench->stream, samples);
}

bool bench_ring_submit(struct bench *bench, struct bench_row *row)
{
    return run_row(bench, row, SUBMIT_BURST, ring_submits, message_submits, true);
}

static bool ring_writes(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;
    uint64_t writes;
    bool good = submit_burst(ring, ring->stream, measure_own_writes, &writes);

    samples_add(samples, (double)writes / SUBMIT_BURST);
    return good;
}

/* Shows that the counter counts. */
static bool eventfd_writes(void *context, struct samples *samples)
{
    const uint64_t one = 1;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    uint64_t begin = measure_own_writes();

    (void)context;
    for (int i = 0; i < SUBMIT_BURST; i++) {
        if (fd < 0 || write(fd, &one, sizeof(one)) < 0) {
            fprintf(stderr, "mlacatctl: eventfd: %s\n", strerror(errno));
            return false;
        }
    }
    samples_add(samples, (double)(measure_own_writes() - begin) / SUBMIT_BURST);
    close(fd);
    return true;
}

bool bench_ring_writes(struct bench *bench, struct bench_row *row)
{
    return run_row(bench, row, SUBMIT_BURST, ring_writes, eventfd_writes, false);
}

/* ------------------------------------------------------------------------------------------------ many in flight */

static void add_rate(struct samples *samples, uint64_t begin)
{
    samples_add(samples, BURST / ((double)(measure_now_ns() - begin) / 1e9));
}

/* As many calls: on a GPU they are waited for after each CALLS. */
static bool process_many(void *context, struct samples *samples)
{
    const struct ring_bench *ring = context;
    bool good = small_calls_in_process(&ring->calls, 0, 1);
    uint64_t begin = measure_now_ns();

    for (unsigned i = 0; i < BURST / CALLS && good; i++)
        good = small_calls_in_process(&ring->calls, 0, CALLS);
    if (good)
        add_rate(samples, begin);
    return good;
}

/* The window slides: the oldest call ends, one more is sent. */
static bool ring_window(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;
    uint64_t begin;

    if (!run_once(ring, ring->stream))
        return false;
    begin = measure_now_ns();
    for (unsigned i = 0; i < BURST + WINDOW; i++) {
        enum mlacat_status status = MLACAT_OK;

        if (i >= WINDOW)
            status = mlacat_wait(ring->stream, ring->ids[i % WINDOW], -1, NULL);
        if (status == MLACAT_OK && i < BURST)
            status = mlacat_submit(ring->stream, &ring->calls.calls[i % CALLS], &ring->ids[i % WINDOW]);
        if (status != MLACAT_OK)
            return failed("64 calls in flight", status);
    }
    add_rate(samples, begin);
    return true;
}

bool bench_ring_pipelined(struct bench *bench, struct bench_row *row)
{
    return run_beside_process(bench, row, CALLS, ring_window, process_many, "256 launches, wait in process");
}

static enum mlacat_status wait_batch(struct mlacat_stream *stream, const uint64_t *ids)
{
    enum mlacat_status status = MLACAT_OK;

    for (unsigned i = 0; i < BATCH && status == MLACAT_OK; i++)
        status = mlacat_wait(stream, ids[i], -1, NULL);
    return status;
}

static bool ring_batches(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;
    uint64_t begin;

    if (!run_once(ring, ring->stream))
        return false;
    begin = measure_now_ns();
    for (unsigned i = 0; i < BURST / BATCH + BATCHES_IN_FLIGHT; i++) {
        const struct mlacat_call *calls = &ring->calls.calls[i * BATCH % CALLS];
        uint64_t *ids = &ring->ids[i % BATCHES_IN_FLIGHT * BATCH];
        enum mlacat_status status = MLACAT_OK;

        if (i >= BATCHES_IN_FLIGHT)
            status = wait_batch(ring->stream, ids);
        if (status == MLACAT_OK && i < BURST / BATCH)
            status = mlacat_submit_batch(ring->stream, calls, BATCH, ids, NULL);
        if (status != MLACAT_OK)
            return failed("batches of 32 calls", status);
    }
    add_rate(samples, begin);
    return true;
}

bool bench_ring_batch(struct bench *bench, struct bench_row *row)
{
    return run_beside_process(bench, row, CALLS, ring_batches, process_many, "256 launches, wait in process");
}
