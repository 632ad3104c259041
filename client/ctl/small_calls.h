/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small calls of one shape that have nothing to do with each other, to be made by the service and in this process, on
 * the same memory; and whether every byte of what they wrote is right.
 *
 * Owns:     their memory, and on a GPU the kernel. The streams are the caller's.
 * Thread:   one.
 * Lifetime: bench_need_service -> small_calls_open .. small_calls_close -> bench_close.
 * Errors:   false: printed why.
 */
#ifndef MLACAT_CTL_SMALL_CALLS_H
#define MLACAT_CTL_SMALL_CALLS_H

#include "bench.h"
#include "in_process.h"

struct small_calls {
    struct bench *bench;
    struct shape shape;
    struct shape_layout layout;
    size_t operand_at[SHAPE_OPERANDS]; /* in a call's part of the area */
    size_t call_bytes;                 /* of the area, for each */
    unsigned nr;
    struct area area;
    struct mlacat_call *calls;
    struct concat_mla_launch *launches; /* on the host device only their `args` */
    struct in_process process;          /* on a GPU, where this mlacatctl has a kernel */
};

/* NULL, or why this process cannot make them itself. */
const char *small_calls_missing(const struct bench *bench);

bool small_calls_open(struct small_calls *calls, struct bench *bench, const struct shape *shape, unsigned nr);
/* A zeroed one is fine. */
void small_calls_close(struct small_calls *calls);

/* All of [first, first + nr) in this process: on a GPU launched one by one, then waited for. */
bool small_calls_in_process(const struct small_calls *calls, unsigned first, unsigned nr);

/* Poisons the outputs, lets `side` make each call, and looks at every byte of all outputs. */
bool small_calls_check(const struct small_calls *calls, const char *name, bench_side side, void *context);

#endif
