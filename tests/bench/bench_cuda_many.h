/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rows of bench_cuda_kernel for many small calls: one launch each against one launch for all.
 *
 * Owns:     nothing after it has returned.
 * Thread:   the main thread only.
 * Lifetime: between module_open and module_close.
 * Errors:   as gpu.h.
 */
#ifndef MLACAT_TESTS_BENCH_CUDA_MANY_H
#define MLACAT_TESTS_BENCH_CUDA_MANY_H

#include <stdbool.h>
#include <stdint.h>

#define BENCH_PAIRS_MAX 99

double bench_now_us(void);
/* Sorts. */
double bench_median(double *values, int nr);

/*
 * Prints a table of wall times; false if an output was wrong. `bytes_per_ms` as in concat_mla_launch.h; `runs`: of each
 * row, at most BENCH_PAIRS_MAX.
 */
bool bench_cuda_many(uint64_t bytes_per_ms, int runs);

#endif
