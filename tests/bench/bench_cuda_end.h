/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rows of bench_cuda_kernel for the end of a launch: a write of the driver behind it, or the kernel's own.
 *
 * Owns:     nothing after it has returned.
 * Thread:   the main thread only.
 * Lifetime: between module_open and module_close.
 * Errors:   as gpu.h.
 */
#ifndef MLACAT_TESTS_BENCH_CUDA_END_H
#define MLACAT_TESTS_BENCH_CUDA_END_H

#include <stdbool.h>
#include <stdint.h>

/* Prints two tables; false if an output was wrong. `bytes_per_ms` and `runs` as in bench_cuda_many.h. */
bool bench_cuda_end(uint64_t bytes_per_ms, int runs);

#endif
