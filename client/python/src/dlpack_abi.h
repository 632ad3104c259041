/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of DLPack's binary interface (https://dmlc.github.io/dlpack, versions 0.x to 1.x) is used here: how an array of
 * another library says where it is.
 *
 * Owns:     -
 * Thread:   -
 * Lifetime: the producer's.
 * Errors:   -
 */
#ifndef MLACAT_PYTHON_DLPACK_ABI_H
#define MLACAT_PYTHON_DLPACK_ABI_H

#include <stdint.h>

enum { DLPACK_CPU = 1, DLPACK_CUDA = 2, DLPACK_CUDA_HOST = 3 };
enum { DLPACK_FLOAT = 2, DLPACK_BFLOAT = 4, DLPACK_FLOAT8_E4M3FN = 10, DLPACK_FLOAT8_E5M2 = 12 };
enum { DLPACK_READ_ONLY = 1, DLPACK_IS_COPIED = 2 };

struct dlpack_version {
    uint32_t major;
    uint32_t minor;
};

struct dlpack_tensor {
    void *data;
    int32_t device_type;
    int32_t device_id;
    int32_t dims;
    uint8_t type_code;
    uint8_t type_bits;
    uint16_t type_lanes;
    int64_t *shape;
    int64_t *strides; /* elements; NULL: row-major without gaps */
    uint64_t byte_offset;
};

/* Capsule "dltensor". */
struct dlpack_managed {
    struct dlpack_tensor tensor;
    void *context;
    void (*deleter)(struct dlpack_managed *self);
};

/* Capsule "dltensor_versioned". */
struct dlpack_managed_versioned {
    struct dlpack_version version;
    void *context;
    void (*deleter)(struct dlpack_managed_versioned *self);
    uint64_t flags;
    struct dlpack_tensor tensor;
};

/* Capsule "dlpack_exchange_api", attribute __dlpack_c_exchange_api__ of an array type (version 1.3). The functions
 * return 0, or -1 with a Python exception set. */
struct dlpack_exchange {
    struct dlpack_version version;
    const void *older;
    void (*allocate)(void);
    void (*managed_of)(void);
    void (*object_of)(void);
    int (*tensor_of)(void *object, struct dlpack_tensor *tensor); /* valid while the object is; may be NULL */
    int (*current_stream)(int32_t device_type, int32_t device_id, void **stream);
};

#endif
