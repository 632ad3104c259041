/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a call becomes launches of the kernels in concat_mla.cu: the vector, the kernel's name, the grid, and the pieces
 * of a long call; and how many short calls become one launch. Plain arithmetic; the device file launches.
 *
 * Owns:     nothing.
 * Thread:   any; no state but the caller's.
 * Lifetime: concat_mla_plan_init -> concat_mla_plan_next until it returns 0.
 *           concat_mla_many_init -> concat_mla_many_add until it returns 0 or there are no more calls.
 * Errors:   none; the arguments were proven good (server/model/op.h).
 */
#ifndef CONCAT_MLA_LAUNCH_H
#define CONCAT_MLA_LAUNCH_H

#include "concat_mla_args.h"

#define CONCAT_MLA_NAME_BYTES 32
#define CONCAT_MLA_MANY_NAME "concat_mla_many"
/* Before and behind the gated ones. A GPU before 9.0 has none of these. */
#define CONCAT_MLA_GATE_NAME "concat_mla_gate"
#define CONCAT_MLA_TAIL_NAME "concat_mla_tail"

/* The names of the kernels for a vector: the plain one, the one that tells its end, the one between gate and tail. */
void concat_mla_kernel_name(unsigned vector_bytes, char name[CONCAT_MLA_NAME_BYTES]);
void concat_mla_signal_name(unsigned vector_bytes, char name[CONCAT_MLA_NAME_BYTES]);
void concat_mla_gated_name(unsigned vector_bytes, char name[CONCAT_MLA_NAME_BYTES]);

struct concat_mla_launch {
    struct concat_mla_args args;
    struct concat_mla_range range; /* its vector_bytes tells which kernel */
    unsigned grid;
    unsigned block;
};

/* A call on its way; the members are concat_mla_launch.c's. */
struct concat_mla_plan {
    struct concat_mla_args args;
    unsigned vector_bytes;
    unsigned long long launch_bytes;
    unsigned long long column; /* of the next launch: byte in the row ... */
    unsigned long long row;    /* ... and row */
};

/*
 * `bytes_per_ms`: what the device's memory reads and writes in a millisecond at best. A launch of the plan takes about
 * that long at most, so that nobody waits longer for the GPU, however large a call is.
 */
void concat_mla_plan_init(struct concat_mla_plan *plan, const struct concat_mla_args *args,
                          unsigned long long bytes_per_ms);
/* Fills the next launch; 0 when there is none left. The launches of a call may run in any order and together. */
int concat_mla_plan_next(struct concat_mla_plan *plan, struct concat_mla_launch *launch);

/*
 * The threads of the one block that can copy all of the launch and then tells its end (concat_mla_V_signal); 0: it is
 * too much for one.
 */
unsigned concat_mla_signal_threads(const struct concat_mla_launch *launch);

/* One launch of concat_mla_many: `grid` blocks of CONCAT_MLA_MANY_THREADS, with `args`. */
struct concat_mla_many {
    struct concat_mla_many_args args;
    unsigned grid;     /* 0: there is nothing to launch */
    unsigned calls_nr; /* that have blocks */
    unsigned long long bytes_per_ms;
    unsigned long long bytes_left; /* until the launch would be too long */
};

/* `bytes_per_ms` as in concat_mla_plan_init: all calls of the launch together take no longer than that either. */
void concat_mla_many_init(struct concat_mla_many *many, unsigned long long bytes_per_ms);
/*
 * 1: the call goes with the launch, or has nothing to copy. 0: it does not fit: launch what is there and begin again;
 * a call that does not fit into an empty one is longer than a launch and needs a plan. The calls of a launch run in any
 * order and together, so the caller adds none that touches another one's output.
 */
int concat_mla_many_add(struct concat_mla_many *many, const struct concat_mla_args *args);

#endif
