/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     nothing; one way to read the time.
 * Thread:   any.
 * Lifetime: -
 * Errors:   none.
 */
#ifndef MLACAT_BASE_CLOCK_H
#define MLACAT_BASE_CLOCK_H

#include <stdint.h>

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t clock_now_ns(void);

#endif
