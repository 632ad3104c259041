/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One call of the kernel matrix: its operands in arenas of random bytes with guards around them, on the GPU and as
 * images on the CPU, and the comparison of both after the call.
 *
 * Owns:     from matrix_case_open to matrix_case_close the memory of the operands.
 * Thread:   the main thread only.
 * Lifetime: matrix_case_make -> open -> the call -> check -> close; between gpu_open and gpu_close.
 * Errors:   as gpu.h.
 */
#ifndef MLACAT_TESTS_MATRIX_CASE_H
#define MLACAT_TESTS_MATRIX_CASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "concat_mla_args.h"

enum layout {
    CONTIGUOUS,  /* k_rope broadcast over the heads */
    PER_ROW,     /* contiguous, the second input per row */
    HALF,        /* a is one half of a wider tensor, the output has a gap behind each row */
    HEAD_MAJOR,  /* dim1 outermost in a */
    NEGATIVE,    /* all operands upside down */
    REPEATED,    /* a has stride 0 over i, b over j */
    INTERLEAVED, /* a lies behind its destination in the output's own rows */
    LAYOUT_NR
};

struct operand {
    uint64_t width;
    long long stride[2];
    uint64_t misalign;
    uint64_t at;   /* of [0, 0, 0] in the arena */
    uint64_t size; /* of the arena */
    unsigned char *host;
    unsigned char *device;
};

enum { OUT, A, B, OPERANDS };

/* `bytes_per_ms` as in concat_mla_launch.h. */
struct matrix_case {
    uint64_t dim[2];
    enum layout layout;
    bool without[OPERANDS];
    bool tight; /* no guards: any access beside an operand is an invalid one */
    uint64_t bytes_per_ms;
    struct operand operand[OPERANDS];
};

/* Pairs of widths, and of what the addresses are beyond multiples of 256. */
extern const uint64_t matrix_widths[][2];
extern const size_t matrix_widths_nr;
extern const size_t matrix_misalignments_nr;

uint64_t matrix_random(void);

/* Pair of widths and misalignment by their number; dimensions and the rest by `turn`; at most so many output bytes. */
void matrix_case_make(struct matrix_case *c, size_t widths, enum layout layout, size_t misalignment, unsigned turn,
                      uint64_t rows_bytes_max);
void matrix_case_open(struct matrix_case *c);
void matrix_case_close(struct matrix_case *c);

struct concat_mla_args matrix_case_args(const struct matrix_case *c);
/* Waits for the GPU; true if every byte of every arena is what it must be. If not it prints what the call was. */
bool matrix_case_check(struct matrix_case *c);

#endif
