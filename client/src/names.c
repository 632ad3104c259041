/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers to names, from the tables of proto/. */
#include "mlacat/mlacat.h"

const char *mlacat_status_name(enum mlacat_status status)
{
    switch ((uint32_t)status) {
#define MLACAT_STATUS(name, number, scope, text) \
    case number:                                 \
        return #name;
#include "mlacat_status.def"
    default:
        return "UNKNOWN";
    }
}

const char *mlacat_scope_name(enum mlacat_scope scope)
{
    switch ((uint32_t)scope) {
#define MLACAT_SCOPE(name, number, text) \
    case number:                         \
        return #name;
#include "mlacat_status.def"
    default:
        return "UNKNOWN";
    }
}

const char *mlacat_op_name(enum mlacat_op op)
{
    switch ((uint32_t)op) {
#define MLACAT_OP(number, enum_name, name, out, first, second, second_rows, dim0, dim1, w1, w2) \
    case number:                                                                                \
        return #name;
#include "mlacat_ops.def"
    default:
        return NULL;
    }
}

const char *mlacat_dtype_name(enum mlacat_dtype dtype)
{
    switch ((uint32_t)dtype) {
#define MLACAT_DTYPE(number, enum_name, name, bytes) \
    case number:                                     \
        return #name;
#include "mlacat_dtypes.def"
    default:
        return NULL;
    }
}

size_t mlacat_dtype_bytes(enum mlacat_dtype dtype)
{
    switch ((uint32_t)dtype) {
#define MLACAT_DTYPE(number, enum_name, name, bytes) \
    case number:                                     \
        return bytes;
#include "mlacat_dtypes.def"
    default:
        return 0;
    }
}

const char *mlacat_version(void)
{
    return MLACAT_VERSION;
}
