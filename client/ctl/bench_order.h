/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of stream-ordered calls: what one enqueues between two waits, and how its results are seen to be right.
 *
 * Owns:     nothing; bench_order.c makes and gives back what is in struct order.
 * Thread:   one.
 * Lifetime: that of one bench_order_run.
 * Errors:   false: printed why.
 */
#ifndef MLACAT_CTL_BENCH_ORDER_H
#define MLACAT_CTL_BENCH_ORDER_H

#include "bench.h"
#include "in_process.h"

#define ORDER_CHAIN_MAX 32u
#define ORDER_STEPS 3u /* of a call: the kernel before, itself, the kernel after */
#define ORDER_POISON 0xa5

/* The small kernels concatenate so many rows of bf16. */
#define ORDER_HEADS 16u

struct order;

struct order_case {
    unsigned chain; /* calls in a row */
    bool work;      /* kernels behind each that are busy for 2 ms */
    size_t (*area_bytes)(const struct order *order);
    /* The launches and the calls, on the area. */
    void (*make)(struct order *order);
    /* Inputs, and outputs that cannot be taken for right ones, into the area's copy. */
    void (*fill)(const struct order *order);
    bool (*check)(const struct order *order, const char *name);
};

struct order {
    struct bench *bench;
    const struct order_case *what;
    struct mlacat_stream *stream;
    struct area area;
    struct in_process process;
    struct gpu_kernel spin;
    struct concat_mla_launch launches[ORDER_CHAIN_MAX * ORDER_STEPS]; /* the call's own, too: in process */
    struct mlacat_call calls[ORDER_CHAIN_MAX];
};

/* Both ways are checked before and after the measurement. */
bool bench_order_run(struct bench *bench, struct bench_row *row, const struct order_case *what);

#endif
