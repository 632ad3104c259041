/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     the random content of inputs: a pure function of seed, dtype and position, so that it can be made again to
 * see whether somebody changed it. Thread:   any. Lifetime: - Errors:   none.
 */
#ifndef MLACAT_CTL_RANDOM_H
#define MLACAT_CTL_RANDOM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mlacat/mlacat.h"

/*
 * Random bits; every 13th element is one that arithmetic would not survive: NaNs with payloads, infinities, denormals,
 * -0 of the dtype, in turn.
 */
void random_fill(uint64_t seed, enum mlacat_dtype dtype, uint8_t *data, size_t bytes);

/* Whether data is still what random_fill made; else *offset is the first byte that differs, *expected what it was. */
bool random_unchanged(uint64_t seed, enum mlacat_dtype dtype, const uint8_t *data, size_t bytes, size_t *offset,
                      uint8_t *expected);

#endif
