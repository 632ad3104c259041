/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of kernel_matrix for launches that tell their end, and may wait for a word: of one block, and of any number
 * of them between a gate and a tail.
 *
 * Owns:     nothing after it has returned.
 * Thread:   the main thread only.
 * Lifetime: between module_open and module_close.
 * Errors:   as gpu.h.
 */
#ifndef MLACAT_TESTS_KERNEL_SIGNAL_H
#define MLACAT_TESTS_KERNEL_SIGNAL_H

#include <stdbool.h>
#include <stdint.h>

/* Prints what ran; false if a byte or a word was wrong, or a kind of launch never ran. `bytes_per_ms` as in
 * concat_mla_launch.h, `tight` as in matrix_case.h; then no kernel waits for the CPU, which a tool may hold up. */
bool kernel_signal_run(uint64_t bytes_per_ms, bool tight);

#endif
