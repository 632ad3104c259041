/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     nothing.
 * Thread:   any.
 * Lifetime: -
 * Errors:   none.
 */
#ifndef MLACAT_BASE_MIN_MAX_H
#define MLACAT_BASE_MIN_MAX_H

#include <stdint.h>

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

#endif
