/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shared-memory ring with calls too small to count, beside the same calls as messages: two streams of one
 * connection, in turns. On a GPU one call in flight stands beside the same kernel launched in this process instead.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bench.h"
#include "in_process.h"

#define LATENCY_BURST 256
#define SUBMIT_BURST 64
#define WINDOW 64
#define WINDOW_BURST 4096
#define BATCH 32
#define BATCHES_IN_FLIGHT 4
#define TENSOR_BYTES 1024u

/* Buckets of equal ratio: what is plotted over a logarithmic axis. */
#define BUCKETS_PER_OCTAVE 16
#define BUCKETS (20 * BUCKETS_PER_OCTAVE)
#define FIRST_BUCKET_US 0.1

struct histogram {
    uint64_t count[BUCKETS]; /* the last one: all that is longer too */
    uint64_t samples;
};

/* One of the ways. */
struct side {
    struct mlacat_stream *stream; /* NULL: in this process */
    struct histogram histogram;
};

struct ring_bench {
    struct bench *bench;
    struct side ring;
    struct side message;
    struct side own; /* on a GPU */
    struct in_process process;
    struct concat_mla_launch launch;
    struct area area;
    struct mlacat_call calls[BATCH];
    uint64_t ids[BATCHES_IN_FLIGHT * BATCH];
};

static bool failed(const char *what, enum mlacat_status status)
{
    ctl_fail(what, status);
    return false;
}

static void close_ring(struct ring_bench *ring)
{
    in_process_close(&ring->process);
    mlacat_stream_close(ring->ring.stream);
    mlacat_stream_close(ring->message.stream);
    area_free(&ring->bench->device, &ring->area);
}

static bool open_ring(struct ring_bench *ring, struct bench *bench, struct bench_row *row)
{
    enum mlacat_status status;

    *ring = (struct ring_bench){.bench = bench};
    if (!bench_need_service(bench))
        return false;
    status = area_stream_open(&bench->device, MLACAT_TRANSPORT_RING, &ring->ring.stream);
    if (status == MLACAT_UNIMPLEMENTED) {
        row->note = "the service has no rings";
        return true;
    }
    if (status == MLACAT_OK)
        status = area_stream_open(&bench->device, MLACAT_TRANSPORT_MESSAGE, &ring->message.stream);
    if (status == MLACAT_OK)
        status = area_new(&bench->device, 3 * TENSOR_BYTES, &ring->area);
    if (status != MLACAT_OK) {
        ctl_fail_for("cannot open a ring", status, area_message(&bench->device));
        return false;
    }
    for (int i = 0; i < BATCH; i++) {
        struct mlacat_call *call = &ring->calls[i];

        *call = (struct mlacat_call){.size = sizeof(*call), .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16};
        call->operand[0] = mlacat_tensor_contiguous(ring->area.buffer, 0, 1, 1, 16);
        call->operand[1] = mlacat_tensor_contiguous(ring->area.buffer, TENSOR_BYTES, 1, 1, 8);
        call->operand[2] = mlacat_tensor_contiguous(ring->area.buffer, 2 * (uint64_t)TENSOR_BYTES, 1, 1, 8);
    }
    return true;
}

static bool run_row(struct bench *bench, struct bench_row *row, bench_side value, bench_side reference)
{
    struct ring_bench ring;
    bool good = open_ring(&ring, bench, row) && (row->note || bench_pairs(bench, row, value, reference, &ring));

    close_ring(&ring);
    return good;
}

/* ------------------------------------------------------------------------------------------------ one in flight */

static void histogram_add(struct histogram *histogram, double us)
{
    double at = us <= FIRST_BUCKET_US ? 0 : ceil(log2(us / FIRST_BUCKET_US) * BUCKETS_PER_OCTAVE);

    histogram->count[at < BUCKETS - 1 ? (int)at : BUCKETS - 1]++;
    histogram->samples++;
}

static bool run_once(struct ring_bench *ring, const struct side *side)
{
    enum mlacat_status status;

    if (!side->stream)
        return in_process_run(&ring->process, &ring->launch);
    status = mlacat_run(side->stream, &ring->calls[0], NULL);
    return status == MLACAT_OK || failed("call", status);
}

/* The first one does not count: it wakes the worker, and without MPS the GPU changes over to its process. */
static bool latency(struct ring_bench *ring, struct side *side, struct samples *samples)
{
    if (!run_once(ring, side))
        return false;
    for (int i = 0; i < LATENCY_BURST; i++) {
        uint64_t begin = measure_now_ns();
        bool good = run_once(ring, side);
        double us = (double)(measure_now_ns() - begin) / 1e3;

        if (!good)
            return false;
        samples_add(samples, us);
        histogram_add(&side->histogram, us);
    }
    return true;
}

static bool ring_latency(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;

    return latency(ring, &ring->ring, samples);
}

static bool message_latency(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;

    return latency(ring, &ring->message, samples);
}

static bool own_latency(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;

    return latency(ring, &ring->own, samples);
}

/* The kernel of calls[0], on the same memory. */
static bool open_own(struct ring_bench *ring)
{
    uint8_t *memory = (uint8_t *)(uintptr_t)ring->area.address;
    const struct concat_mla_args args = {.out = memory,
                                         .a = memory + TENSOR_BYTES,
                                         .b = memory + 2 * (size_t)TENSOR_BYTES,
                                         .dim0 = 1,
                                         .dim1 = 1,
                                         .a_bytes = 16,
                                         .b_bytes = 16};

    in_process_plan(&args, &ring->launch);
    return in_process_open(&ring->process, &ring->bench->device.gpu, &ring->launch);
}

/* [longest time in us, calls]; empty buckets are left out. */
static json_t *histogram_json(const char *name, const struct histogram *histogram)
{
    json_t *buckets = json_array();

    for (int i = 0; i < BUCKETS; i++)
        if (histogram->count[i] > 0)
            json_array_append_new(buckets, json_pack("[f, I]", FIRST_BUCKET_US * exp2((double)i / BUCKETS_PER_OCTAVE),
                                                     (json_int_t)histogram->count[i]));
    return json_pack("{s:s, s:s, s:I, s:o}", "name", name, "unit", "us", "samples", (json_int_t)histogram->samples,
                     "buckets", buckets);
}

static bool write_histograms(const struct ring_bench *ring, const char *path)
{
    json_t *json =
        json_pack("[o, o]", histogram_json("ring.latency", &ring->ring.histogram),
                  ring->own.histogram.samples > 0 ? histogram_json("in process", &ring->own.histogram)
                                                  : histogram_json("message.latency", &ring->message.histogram));
    bool good = json != NULL && json_dump_file(json, path, JSON_COMPACT) == 0;

    if (!good)
        fprintf(stderr, "mlacatctl: --histogram: cannot write %s: %s\n", path, strerror(errno));
    json_decref(json);
    return good;
}

bool bench_ring_latency(struct bench *bench, struct bench_row *row)
{
    const char *path = bench->options->histogram;
    struct ring_bench ring;
    bool good = open_ring(&ring, bench, row);
    bool own = good && !row->note && bench->device.on_gpu && !in_process_missing();

    if (own)
        row->reference = "launch, event, query in process";
    if (good && !row->note)
        good = (!own || open_own(&ring)) &&
               bench_pairs(bench, row, ring_latency, own ? own_latency : message_latency, &ring);
    if (good && own)
        bench_remark_p99(row);
    if (good && !row->note && path)
        good = write_histograms(&ring, path);
    close_ring(&ring);
    return good;
}

/* ------------------------------------------------------------------------------------------------ the submit alone */

/* A burst after a call that has woken the worker; `begin` and `end` see the submits only. */
static bool submit_burst(struct ring_bench *ring, struct mlacat_stream *stream, uint64_t (*look)(void), uint64_t *spent)
{
    enum mlacat_status status = mlacat_run(stream, &ring->calls[0], NULL);
    uint64_t begin = look();

    for (int i = 0; i < SUBMIT_BURST && status == MLACAT_OK; i++)
        status = mlacat_submit(stream, &ring->calls[0], &ring->ids[i]);
    *spent = look() - begin;
    for (int i = 0; i < SUBMIT_BURST && status == MLACAT_OK; i++)
        status = mlacat_wait(stream, ring->ids[i], -1, NULL);
    return status == MLACAT_OK || failed("submit", status);
}

static bool submits(struct ring_bench *ring, const struct side *side, struct samples *samples)
{
    uint64_t spent_ns;
    bool good = submit_burst(ring, side->stream, measure_now_ns, &spent_ns);

    samples_add(samples, (double)spent_ns / SUBMIT_BURST);
    return good;
}

static bool ring_submits(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;

    return submits(ring, &ring->ring, samples);
}

static bool message_submits(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;

    return submits(ring, &ring->message, samples);
}

bool bench_ring_submit(struct bench *bench, struct bench_row *row)
{
    return run_row(bench, row, ring_submits, message_submits);
}

static bool ring_writes(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;
    uint64_t writes;
    bool good = submit_burst(ring, ring->ring.stream, measure_own_writes, &writes);

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
    return run_row(bench, row, ring_writes, eventfd_writes);
}

/* ------------------------------------------------------------------------------------------------ many in flight */

static void add_rate(struct samples *samples, uint64_t begin)
{
    samples_add(samples, WINDOW_BURST / ((double)(measure_now_ns() - begin) / 1e9));
}

/* The window slides: the oldest call ends, one more is sent. */
static bool window(struct ring_bench *ring, struct mlacat_stream *stream, struct samples *samples)
{
    uint64_t begin = measure_now_ns();

    for (int i = 0; i < WINDOW_BURST + WINDOW; i++) {
        enum mlacat_status status = MLACAT_OK;

        if (i >= WINDOW)
            status = mlacat_wait(stream, ring->ids[i % WINDOW], -1, NULL);
        if (status == MLACAT_OK && i < WINDOW_BURST)
            status = mlacat_submit(stream, &ring->calls[0], &ring->ids[i % WINDOW]);
        if (status != MLACAT_OK)
            return failed("64 calls in flight", status);
    }
    add_rate(samples, begin);
    return true;
}

static bool ring_window(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;

    return window(ring, ring->ring.stream, samples);
}

static bool message_window(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;

    return window(ring, ring->message.stream, samples);
}

bool bench_ring_pipelined(struct bench *bench, struct bench_row *row)
{
    return run_row(bench, row, ring_window, message_window);
}

static enum mlacat_status wait_batch(struct mlacat_stream *stream, const uint64_t *ids)
{
    enum mlacat_status status = MLACAT_OK;

    for (int i = 0; i < BATCH && status == MLACAT_OK; i++)
        status = mlacat_wait(stream, ids[i], -1, NULL);
    return status;
}

static bool batches(struct ring_bench *ring, struct mlacat_stream *stream, struct samples *samples)
{
    uint64_t begin = measure_now_ns();

    for (int i = 0; i < WINDOW_BURST / BATCH + BATCHES_IN_FLIGHT; i++) {
        uint64_t *ids = &ring->ids[i % BATCHES_IN_FLIGHT * BATCH];
        enum mlacat_status status = MLACAT_OK;

        if (i >= BATCHES_IN_FLIGHT)
            status = wait_batch(stream, ids);
        if (status == MLACAT_OK && i < WINDOW_BURST / BATCH)
            status = mlacat_submit_batch(stream, ring->calls, BATCH, ids, NULL);
        if (status != MLACAT_OK)
            return failed("batches of 32 calls", status);
    }
    add_rate(samples, begin);
    return true;
}

static bool ring_batches(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;

    return batches(ring, ring->ring.stream, samples);
}

static bool message_batches(void *context, struct samples *samples)
{
    struct ring_bench *ring = context;

    return batches(ring, ring->message.stream, samples);
}

bool bench_ring_batch(struct bench *bench, struct bench_row *row)
{
    return run_row(bench, row, ring_batches, message_batches);
}
