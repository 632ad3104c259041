/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA driver that this process has loaded already: a library that only shares memory must not be what starts it.
 *
 * Owns:     a table of entry points, filled once.
 * Thread:   any.
 * Lifetime: the process.
 * Errors:   raised by cuda_driver: INVALID_ARGUMENT (this process has no GPU memory), FAILED_PRECONDITION (the driver
 *           is too old).
 */
#ifndef MLACAT_CLIENT_CUDA_DRIVER_H
#define MLACAT_CLIENT_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#include "mlacat/mlacat.h"

/* CUstreamBatchMemOpParams: what a stream writes into a word, or waits for it to have. */
struct cuda_word_op {
    unsigned int operation;
    unsigned long long address;
    uint64_t value;
    unsigned int flags;
    unsigned long long alias; /* the driver's */
    uint64_t unused;
};
_Static_assert(sizeof(struct cuda_word_op) == 48, "as the driver has it");

struct cuda_driver {
#define CUDA_CALL(name, abi, parameters) int(*name) parameters;
#include "cuda_driver.def"
};

/* CUpointer_attribute */
enum {
    CUDA_POINTER_CONTEXT = 1,
    CUDA_POINTER_MEMORY_TYPE = 2,
    CUDA_POINTER_BUFFER_ID = 7,
    CUDA_POINTER_IS_MANAGED = 8,
    CUDA_POINTER_DEVICE_ORDINAL = 9,
    CUDA_POINTER_IS_LEGACY_IPC = 10,
    CUDA_POINTER_MAPPED = 13,
    CUDA_POINTER_MEMPOOL = 17
};

enum { CUDA_MEMORY_DEVICE = 2, CUDA_HANDLE_POSIX_FD = 1, CUDA_CAPTURE_RELAXED = 2 };
enum { CUDA_HOST_REGISTER_PORTABLE = 1, CUDA_HOST_REGISTER_DEVICEMAP = 2 };
/* CUstreamBatchMemOpType, of 64 bits; CUstreamWaitValue_flags: as a signed difference */
enum { CUDA_WORD_WAIT = 4, CUDA_WORD_WRITE = 5, CUDA_WAIT_GREATER_OR_EQUAL = 0 };

/* CUresult: an address that the driver does not know is an invalid value; the legacy stream, asked while another one is
 * being captured, would be drawn into that. */
enum { CUDA_RESULT_OK = 0, CUDA_RESULT_INVALID_VALUE = 1, CUDA_RESULT_CAPTURE_IMPLICIT = 906 };

enum mlacat_status cuda_driver(const struct cuda_driver **driver);

#define CUDA_DEVICE_NAME_BYTES 64
/* "GPU-...", as the daemon names the device; returns the driver's result. */
int cuda_driver_name_device(const struct cuda_driver *driver, int device, char uuid[CUDA_DEVICE_NAME_BYTES]);

#endif
