/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     what the rows of `bench` share: the pair runner, the connection, the device and the child processes, made
 *           when a row first needs them.
 * Thread:   one; the library may have threads of its own.
 * Lifetime: bench_close undoes whatever was made.
 * Errors:   a row that fails prints why and is false; the others go on.
 */
#ifndef MLACAT_CTL_BENCH_H
#define MLACAT_CTL_BENCH_H

#include "area.h"
#include "common.h"
#include "concat_mla_args.h"
#include "echo.h"
#include "exporter.h"
#include "measure.h"

#define BENCH_TEXT_BYTES 96

/* The parts of one row that its function fills; bench_pairs.c adds the figures. */
struct bench_row {
    const char *name;
    const char *unit;
    const char *reference;
    bool more_is_better;
    unsigned pairs;                /* exactly so many, and the ratio is the median of theirs; 0: until the time is up */
    double value, reference_value; /* medians */
    double ratio;                  /* 0: of the medians */
    double p50, p90, p99, p999;    /* of the value: p90 = nine of ten samples were at least as good; NAN: not known */
    double reference_p90, reference_p99, reference_p999;
    size_t samples;
    const char *note;              /* why there is no value */
    char chosen[BENCH_TEXT_BYTES]; /* `reference` where it had to be chosen */
    char remark[BENCH_TEXT_BYTES]; /* what must be known to read the figures; "": nothing */
};

struct bench {
    const struct ctl_options *options;
    struct mlacat_client *client;
    struct area_device device;
    struct mlacat_stream *stream;
    struct mlacat_server_info server;
    struct exporter exporter;  /* on a GPU */
    struct bench_row imported; /* what the rows of imports share; without samples: not measured yet */
    struct bench_row known;    /* likewise those of known allocations */
    struct echo echo[ECHO_PLACES];
    int echoes_nr;
    json_t *histograms; /* NULL: nobody asked for them */
    uint64_t budget_ns; /* of one row */
    bool broken;        /* the service could not be reached: it is not tried again */
};

/* Measures once, or a burst, and adds the samples in the row's unit; false: printed why. */
typedef bool (*bench_side)(void *context, struct samples *samples);

#define BENCH_REFERENCES_MAX 2

/* One way to do what a row is compared with. */
struct bench_reference {
    bench_side measure;
    void *context;
    const char *way; /* NULL: there is no other */
};

/*
 * Alternates value and reference until the budget is spent, at least 5 times (3 with --quick), and fills the row's
 * figures. Of several references, which all do the same work, the fastest counts; the row says which.
 */
bool bench_rivals(const struct bench *bench, struct bench_row *row, bench_side value, void *context,
                  const struct bench_reference *references, int references_nr);
/* The same with one reference and one context. */
bool bench_pairs(const struct bench *bench, struct bench_row *row, bench_side value, bench_side reference,
                 void *context);

/* Adds the sorted samples of both sides to what --histogram writes, if they are times in us. */
void bench_histogram_add(json_t *histograms, const struct bench_row *row, const struct samples *value,
                         const struct samples *reference);
bool bench_histogram_write(const json_t *histograms, const char *path);

/* Make a remark of what the ratio of the medians does not say: of the reference's p99, and of the differences. */
void bench_remark_p99(struct bench_row *row);
void bench_remark_difference(struct bench_row *row);

/* Connected, with a device and a stream of messages; false: printed why. */
bool bench_need_service(struct bench *bench);
bool bench_need_echo(struct bench *bench);
void bench_close(struct bench *bench);

/* The kernel's arguments for a layout in memory of this process. */
struct concat_mla_args bench_kernel_args(const struct shape *shape, const struct shape_layout *layout,
                                         uint8_t *const data[3]);
/* Whether the host device would write a call of so many bytes past the caches. Asks the machine: not for timed code. */
bool bench_streaming(uint64_t bytes);
/* Runs the kernel on this thread. */
void bench_kernel(const struct concat_mla_args *args, bool streaming);

/* The rows. */
bool bench_host_k(struct bench *bench, struct bench_row *row);
bool bench_host_q(struct bench *bench, struct bench_row *row);
bool bench_host_unaligned(struct bench *bench, struct bench_row *row);
bool bench_message_latency(struct bench *bench, struct bench_row *row);
bool bench_message_switches(struct bench *bench, struct bench_row *row);
bool bench_message_window(struct bench *bench, struct bench_row *row);
bool bench_message_batch(struct bench *bench, struct bench_row *row);
bool bench_call_large(struct bench *bench, struct bench_row *row);
bool bench_ring_latency(struct bench *bench, struct bench_row *row);
bool bench_ring_latency_messages(struct bench *bench, struct bench_row *row);
bool bench_ring_submit(struct bench *bench, struct bench_row *row);
bool bench_ring_writes(struct bench *bench, struct bench_row *row);
bool bench_ring_pipelined(struct bench *bench, struct bench_row *row);
bool bench_ring_batch(struct bench *bench, struct bench_row *row);
bool bench_memory_register(struct bench *bench, struct bench_row *row);

/* The rows of a GPU; the first one finds its shape by the row's name. */
bool bench_cuda_rate(struct bench *bench, struct bench_row *row);
bool bench_cuda_latency(struct bench *bench, struct bench_row *row);
bool bench_cuda_small(struct bench *bench, struct bench_row *row);
bool bench_order_single(struct bench *bench, struct bench_row *row);
bool bench_order_chained(struct bench *bench, struct bench_row *row);
bool bench_order_work(struct bench *bench, struct bench_row *row);
bool bench_order_large(struct bench *bench, struct bench_row *row);
bool bench_cuda_register(struct bench *bench, struct bench_row *row);
bool bench_cuda_import(struct bench *bench, struct bench_row *row);
/* The same as the daemon timed them. */
bool bench_cuda_register_daemon(struct bench *bench, struct bench_row *row);
bool bench_cuda_import_daemon(struct bench *bench, struct bench_row *row);

#endif
