/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of kernel_matrix that runs many calls in one launch.
 *
 * Owns:     nothing after it has returned.
 * Thread:   the main thread only.
 * Lifetime: between module_open and module_close.
 * Errors:   as gpu.h.
 */
#ifndef MLACAT_TESTS_KERNEL_MANY_H
#define MLACAT_TESTS_KERNEL_MANY_H

#include <stdbool.h>
#include <stdint.h>

/* Prints what ran; false if a byte was wrong. `bytes_per_ms` as in concat_mla_launch.h, `tight` as in matrix_case.h. */
bool kernel_many_run(uint64_t bytes_per_ms, bool tight);

#endif
