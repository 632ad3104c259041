/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The message path with calls too small to count, beside packets between two processes that do nothing else. These two
 * are measured on one CPU and on two, and the faster counts: left to the scheduler they would be at either, by chance.
 * Client and daemon are the scheduler's.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

#define LATENCY_BURST 64
#define WINDOW 64
#define WINDOW_BURST 2048
#define BATCH 32
#define SWITCH_BURST 1000
#define TENSOR_BYTES 1024u

struct message {
    struct bench *bench;
    struct area area;
    struct mlacat_call calls[BATCH];
    uint64_t ids[WINDOW];
};

static bool open_message(struct message *message, struct bench *bench)
{
    enum mlacat_status status;

    *message = (struct message){.bench = bench};
    /* The children first: they then have nothing of the connection. */
    if (!bench_need_echo(bench) || !bench_need_service(bench))
        return false;
    status = area_new(&bench->device, 3 * TENSOR_BYTES, &message->area);
    if (status != MLACAT_OK) {
        ctl_fail_for("cannot make a buffer", status, area_message(&bench->device));
        return false;
    }
    for (int i = 0; i < BATCH; i++) {
        struct mlacat_call *call = &message->calls[i];

        *call = (struct mlacat_call){.size = sizeof(*call), .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16};
        call->operand[0] = mlacat_tensor_contiguous(message->area.buffer, 0, 1, 1, 16);
        call->operand[1] = mlacat_tensor_contiguous(message->area.buffer, TENSOR_BYTES, 1, 1, 8);
        call->operand[2] = mlacat_tensor_contiguous(message->area.buffer, 2 * (uint64_t)TENSOR_BYTES, 1, 1, 8);
    }
    return true;
}

static bool run_row(struct bench *bench, struct bench_row *row, bench_side value, bench_side echo_side)
{
    const struct bench_reference references[ECHO_PLACES] = {
        [ECHO_ONE_CPU] = {echo_side, &bench->echo[ECHO_ONE_CPU], "one CPU"},
        [ECHO_TWO_CPUS] = {echo_side, &bench->echo[ECHO_TWO_CPUS], "two CPUs"},
    };
    struct message message;
    bool good =
        open_message(&message, bench) && bench_rivals(bench, row, value, &message, references, bench->echoes_nr);

    area_free(&bench->device, &message.area);
    return good;
}

static bool call_failed(const char *what, enum mlacat_status status)
{
    ctl_fail(what, status);
    return false;
}

static bool echo_failed(void)
{
    fprintf(stderr, "mlacatctl: the echo process does not answer: %s\n", strerror(errno));
    return false;
}

/* Runs an echo's side at its place. */
static bool run_at_place(const struct echo *echo, struct samples *samples,
                         bool (*measure)(const struct echo *echo, struct samples *samples))
{
    cpu_set_t before;
    bool good;

    if (!echo_enter(echo, &before)) {
        fprintf(stderr, "mlacatctl: cannot move to CPU %d: %s\n", echo->cpu, strerror(errno));
        return false;
    }
    good = measure(echo, samples);
    if (echo_leave(&before))
        return good;
    fprintf(stderr, "mlacatctl: cannot move back from CPU %d: %s\n", echo->cpu, strerror(errno));
    return false;
}

static bool one_call(const void *context)
{
    const struct message *message = context;
    enum mlacat_status status = mlacat_run(message->bench->stream, &message->calls[0], NULL);

    return status == MLACAT_OK || call_failed("call", status);
}

static bool one_echo(const void *context)
{
    return (echo_send(context) && echo_receive(context)) || echo_failed();
}

static bool latency(const void *context, struct samples *samples, bool (*once)(const void *context))
{
    for (int i = 0; i < LATENCY_BURST; i++) {
        uint64_t begin = measure_now_ns();

        if (!once(context))
            return false;
        samples_add(samples, (double)(measure_now_ns() - begin) / 1e3);
    }
    return true;
}

static bool call_latency(void *context, struct samples *samples)
{
    return latency(context, samples, one_call);
}

static bool measure_echo_latency(const struct echo *echo, struct samples *samples)
{
    return latency(echo, samples, one_echo);
}

static bool echo_latency(void *context, struct samples *samples)
{
    return run_at_place(context, samples, measure_echo_latency);
}

bool bench_message_latency(struct bench *bench, struct bench_row *row)
{
    return run_row(bench, row, call_latency, echo_latency);
}

/* Context switches of this process and `other` together, for each of SWITCH_BURST rounds. */
static bool switches(const void *context, struct samples *samples, pid_t other, bool (*once)(const void *context))
{
    uint64_t before = measure_own_switches();
    uint64_t other_before;
    uint64_t other_after;

    if (!measure_switches(other, &other_before))
        return false;
    for (int i = 0; i < SWITCH_BURST; i++)
        if (!once(context))
            return false;
    if (!measure_switches(other, &other_after))
        return false;
    samples_add(samples, (double)(measure_own_switches() - before + other_after - other_before) / SWITCH_BURST);
    return true;
}

static bool call_switches(void *context, struct samples *samples)
{
    struct message *message = context;

    return switches(message, samples, (pid_t)message->bench->server.pid, one_call);
}

static bool measure_echo_switches(const struct echo *echo, struct samples *samples)
{
    return switches(echo, samples, echo->pid, one_echo);
}

static bool echo_switches(void *context, struct samples *samples)
{
    return run_at_place(context, samples, measure_echo_switches);
}

bool bench_message_switches(struct bench *bench, struct bench_row *row)
{
    uint64_t unused;

    if (!bench_need_echo(bench) || !bench_need_service(bench))
        return false;
    if (!measure_switches((pid_t)bench->server.pid, &unused)) {
        row->note = "/proc of the daemon is not readable here: another user or pid namespace";
        return true;
    }
    return run_row(bench, row, call_switches, echo_switches);
}

static void add_rate(struct samples *samples, uint64_t begin)
{
    samples_add(samples, WINDOW_BURST / ((double)(measure_now_ns() - begin) / 1e9));
}

/* The window slides: the oldest call ends, one more is sent. */
static bool call_window(void *context, struct samples *samples)
{
    struct message *message = context;
    struct mlacat_stream *stream = message->bench->stream;
    uint64_t begin = measure_now_ns();

    for (int i = 0; i < WINDOW_BURST + WINDOW; i++) {
        enum mlacat_status status = MLACAT_OK;

        if (i >= WINDOW)
            status = mlacat_wait(stream, message->ids[i % WINDOW], -1, NULL);
        if (status == MLACAT_OK && i < WINDOW_BURST)
            status = mlacat_submit(stream, &message->calls[0], &message->ids[i % WINDOW]);
        if (status != MLACAT_OK)
            return call_failed("64 calls in flight", status);
    }
    add_rate(samples, begin);
    return true;
}

static bool measure_echo_window(const struct echo *echo, struct samples *samples)
{
    uint64_t begin = measure_now_ns();

    for (int i = 0; i < WINDOW_BURST + WINDOW; i++) {
        if (i >= WINDOW && !echo_receive(echo))
            return echo_failed();
        if (i < WINDOW_BURST && !echo_send(echo))
            return echo_failed();
    }
    add_rate(samples, begin);
    return true;
}

static bool echo_window(void *context, struct samples *samples)
{
    return run_at_place(context, samples, measure_echo_window);
}

bool bench_message_window(struct bench *bench, struct bench_row *row)
{
    return run_row(bench, row, call_window, echo_window);
}

static enum mlacat_status wait_batch(struct message *message, const uint64_t *ids)
{
    for (int i = 0; i < BATCH; i++) {
        enum mlacat_status status = mlacat_wait(message->bench->stream, ids[i], -1, NULL);

        if (status != MLACAT_OK)
            return status;
    }
    return MLACAT_OK;
}

/* Two batches in flight: the older one ends, one more is sent. */
static bool call_batches(void *context, struct samples *samples)
{
    struct message *message = context;
    uint64_t begin = measure_now_ns();

    for (int i = 0; i < WINDOW_BURST / BATCH + 2; i++) {
        uint64_t *ids = &message->ids[i % 2 * BATCH];
        enum mlacat_status status = MLACAT_OK;

        if (i >= 2)
            status = wait_batch(message, ids);
        if (status == MLACAT_OK && i < WINDOW_BURST / BATCH)
            status = mlacat_submit_batch(message->bench->stream, message->calls, BATCH, ids, NULL);
        if (status != MLACAT_OK)
            return call_failed("batches of 32 calls", status);
    }
    add_rate(samples, begin);
    return true;
}

bool bench_message_batch(struct bench *bench, struct bench_row *row)
{
    return run_row(bench, row, call_batches, echo_window);
}
