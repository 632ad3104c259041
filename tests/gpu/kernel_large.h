/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of kernel_matrix that goes past 2^31 elements and 2^32 bytes, checked on the GPU.
 *
 * Owns:     nothing after it has returned.
 * Thread:   the main thread only.
 * Lifetime: between module_open and module_close.
 * Errors:   as gpu.h. A case that needs more memory than is free is left out, and says so.
 */
#ifndef MLACAT_TESTS_KERNEL_LARGE_H
#define MLACAT_TESTS_KERNEL_LARGE_H

#include <stdbool.h>
#include <stdint.h>

/* Prints a table; false if a byte was wrong. `bytes_per_ms` as in concat_mla_launch.h. */
bool kernel_large_run(uint64_t bytes_per_ms);

#endif
