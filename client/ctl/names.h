/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     the names of ops and dtypes, for what people type and read.
 * Thread:   any; constant tables.
 * Lifetime: static.
 * Errors:   an unknown name or number gives 0 or NULL.
 */
#ifndef MLACAT_CTL_NAMES_H
#define MLACAT_CTL_NAMES_H

#include <stddef.h>
#include <stdint.h>

#include "mlacat/mlacat.h"

struct op_name {
    enum mlacat_op op;
    const char *name;
    const char *operand[3]; /* output, first input, second input */
    const char *extent[4];  /* dim0, dim1, first width, second width */
    int broadcast;          /* the second input has one row for all of dim1 */
};

/* NULL for a number that is not in mlacat_ops.def. */
const struct op_name *names_op(enum mlacat_op op);
/* 0 for a name that is not in mlacat_ops.def. */
enum mlacat_op names_op_number(const char *name);

/* NULL, 0 and 0 for what is not in mlacat_dtypes.def. */
const char *names_dtype(enum mlacat_dtype dtype);
size_t names_dtype_bytes(enum mlacat_dtype dtype);
enum mlacat_dtype names_dtype_number(const char *name);

/* "concat_mla_k, concat_mla_absorb_q", for messages. */
const char *names_all_ops(void);
const char *names_all_dtypes(void);

#endif
