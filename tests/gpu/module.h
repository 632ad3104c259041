/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels of concat_mla.cu and the reference beside them, compiled and looked up, for test programs.
 *
 * Owns:     two modules; module_close unloads them.
 * Thread:   the main thread only.
 * Lifetime: gpu_open -> module_open -> anything -> module_close -> gpu_close.
 * Errors:   as gpu.h: the program ends.
 */
#ifndef MLACAT_TESTS_MODULE_H
#define MLACAT_TESTS_MODULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "concat_mla_launch.h"

enum module_kernel { KERNEL_16, KERNEL_8, KERNEL_4, KERNEL_2, KERNEL_1, KERNEL_NR };

/* `root` is the source tree. */
void module_open(const char *root);
void module_close(void);

/* Enqueues a whole call; `bytes_per_ms` as in concat_mla_launch.h. Adds to `launches` (of KERNEL_NR; NULL = none). */
void module_call(const struct concat_mla_args *args, uint64_t bytes_per_ms, unsigned *launches);
/* Enqueues the calls that were added, if any. */
void module_many(struct concat_mla_many *many);
/* Enqueues a launch that one block can do, which then tells its end. */
void module_signal(const struct concat_mla_launch *launch, const struct concat_mla_signal *signal);
/* Can it be behind a gate? From compute capability 9.0 on. */
bool module_has_gate(void);
/* Enqueues any launch behind the signal's gate, and behind that what tells its end. `number` was never used before. */
void module_gated(const struct concat_mla_launch *launch, const struct concat_mla_signal *signal, uint64_t number);

void module_fill_random(void *to, uint64_t size, uint64_t seed);
/* Bytes of [begin, end) of `at` that are no longer what module_fill_random wrote. */
uint64_t module_count_changed(const void *at, uint64_t begin, uint64_t end, uint64_t seed);
/* Bytes of a call's output that are wrong. */
uint64_t module_count_wrong(const struct concat_mla_args *args);

#endif
