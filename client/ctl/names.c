/* SPDX-License-Identifier: Apache-2.0 */
#include "names.h"

#include <string.h>

enum { BROADCAST = 1, PER_ROW = 0 };

#define MLACAT_OP(number, enum_name, name, out, first, second, rows, dim0, dim1, w1, w2) \
    {number, #name, {#out, #first, #second}, {#dim0, #dim1, #w1, #w2}, rows},
static const struct op_name ops[] = {
#include "mlacat_ops.def"
};

struct dtype_name {
    enum mlacat_dtype dtype;
    const char *name;
    size_t bytes;
};

#define MLACAT_DTYPE(number, enum_name, name, bytes) {number, #name, bytes},
static const struct dtype_name dtypes[] = {
#include "mlacat_dtypes.def"
};

/* The lists begin with a separator that the callers skip. */
#define MLACAT_OP(number, enum_name, name, out, first, second, rows, dim0, dim1, w1, w2) ", " #name
static const char op_list[] =
#include "mlacat_ops.def"
    ;
#define MLACAT_DTYPE(number, enum_name, name, bytes) ", " #name
static const char dtype_list[] =
#include "mlacat_dtypes.def"
    ;

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

const struct op_name *names_op(enum mlacat_op op)
{
    for (size_t i = 0; i < COUNT(ops); i++)
        if (ops[i].op == op)
            return &ops[i];
    return NULL;
}

enum mlacat_op names_op_number(const char *name)
{
    for (size_t i = 0; i < COUNT(ops); i++)
        if (strcmp(ops[i].name, name) == 0)
            return ops[i].op;
    return (enum mlacat_op)0;
}

static const struct dtype_name *find_dtype(enum mlacat_dtype dtype)
{
    for (size_t i = 0; i < COUNT(dtypes); i++)
        if (dtypes[i].dtype == dtype)
            return &dtypes[i];
    return NULL;
}

const char *names_dtype(enum mlacat_dtype dtype)
{
    const struct dtype_name *found = find_dtype(dtype);

    return found ? found->name : NULL;
}

size_t names_dtype_bytes(enum mlacat_dtype dtype)
{
    const struct dtype_name *found = find_dtype(dtype);

    return found ? found->bytes : 0;
}

enum mlacat_dtype names_dtype_number(const char *name)
{
    for (size_t i = 0; i < COUNT(dtypes); i++)
        if (strcmp(dtypes[i].name, name) == 0)
            return dtypes[i].dtype;
    return (enum mlacat_dtype)0;
}

const char *names_all_ops(void)
{
    return op_list + 2;
}

const char *names_all_dtypes(void)
{
    return dtype_list + 2;
}
