/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     nothing; puts interleave.h in the place of the compiler's atomic builtins.
 * Thread:   -
 * Lifetime: to be included before the code under test, and after all system headers.
 * Errors:   -
 */
#ifndef MLACAT_TESTS_INTERLEAVE_ATOMICS_H
#define MLACAT_TESTS_INTERLEAVE_ATOMICS_H

#include "interleave.h"

#define __atomic_store_n(word, value, order) \
    interleave_store((void *)(uintptr_t)(word), sizeof(*(word)), (uint64_t)(value), order)
#define __atomic_load_n(word, order) ((__typeof__(*(word)))interleave_load((word), sizeof(*(word)), order))
#define __atomic_thread_fence(order) interleave_fence(order)

#endif
