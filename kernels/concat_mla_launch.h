/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a call becomes launches of the kernels in concat_mla.cu: the vector, the kernel's name, the grid, and the pieces
 * of a long call. Plain arithmetic; the device file launches.
 *
 * Owns:     nothing.
 * Thread:   any; no state but the caller's plan.
 * Lifetime: concat_mla_plan_init -> concat_mla_plan_next until it returns 0.
 * Errors:   none; the arguments were proven good (server/model/op.h).
 */
#ifndef CONCAT_MLA_LAUNCH_H
#define CONCAT_MLA_LAUNCH_H

#include "concat_mla_args.h"

#define CONCAT_MLA_NAME_BYTES 64
#define CONCAT_MLA_WIDTHS_OPTION_BYTES 32 /* for each pair of widths, and once more for the option's name */

/* Widths in bytes that a kernel is specialised for; both are multiples of 16. */
struct concat_mla_widths {
    unsigned a_bytes;
    unsigned b_bytes;
};

/* Those that are compiled whatever the configuration says: DeepSeek's and its relatives' heads of 1 and 2 bytes. */
const struct concat_mla_widths *concat_mla_start_set(unsigned *nr);

/*
 * The compiler option that makes a module have these kernels beside the generic ones. `size` is at least (nr + 1) *
 * CONCAT_MLA_WIDTHS_OPTION_BYTES.
 */
void concat_mla_widths_option(const struct concat_mla_widths *widths, unsigned nr, char *option, unsigned long size);

/* The name of the generic kernel for a vector, or of the one for vectors of 16 and these widths. */
void concat_mla_generic_name(unsigned vector_bytes, char name[CONCAT_MLA_NAME_BYTES]);
void concat_mla_widths_name(const struct concat_mla_widths *widths, char name[CONCAT_MLA_NAME_BYTES]);

struct concat_mla_launch {
    struct concat_mla_args args;
    struct concat_mla_range range;
    unsigned vector_bytes; /* 16: the kernel for args.a_bytes and args.b_bytes if there is one, else the generic one */
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

#endif
