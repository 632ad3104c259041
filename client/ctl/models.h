/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     the models whose shapes `run models` goes through.
 * Thread:   any; a constant table.
 * Lifetime: static.
 * Errors:   none.
 */
#ifndef MLACAT_CTL_MODELS_H
#define MLACAT_CTL_MODELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shape.h"

struct model {
    const char *name;
    uint64_t heads; /* on one rank */
    uint64_t nope, rope, v;
    uint64_t latent; /* rank of the compressed KV: the width of absorbed Q's first part */
};

extern const struct model models[];
extern const size_t models_nr;

/* The call of one model: K or absorbed Q over `tokens`. */
struct shape models_shape(const struct model *model, enum mlacat_op op, enum mlacat_dtype dtype, bool strided,
                          uint64_t tokens);

#endif
