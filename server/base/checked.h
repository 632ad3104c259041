/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     nothing; integer arithmetic that says when it overflows.
 * Thread:   any.
 * Lifetime: -
 * Errors:   false = the true result does not fit; *out is then not to be used.
 */
#ifndef MLACAT_BASE_CHECKED_H
#define MLACAT_BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

static inline bool checked_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline bool checked_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool checked_add_i64(int64_t a, int64_t b, int64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline bool checked_mul_i64(int64_t a, int64_t b, int64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool checked_u64_to_i64(uint64_t a, int64_t *out)
{
    *out = (int64_t)a;
    return a <= (uint64_t)INT64_MAX;
}

#endif
