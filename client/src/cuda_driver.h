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
enum { CUDA_HOST_REGISTER_PORTABLE = 1, CUDA_HOST_REGISTER_DEVICEMAP = 2, CUDA_WAIT_GREATER_OR_EQUAL = 0 };

/* CUresult: an address that the driver does not know is an invalid value; the legacy stream, asked while another one is
 * being captured, would be drawn into that. */
enum { CUDA_RESULT_OK = 0, CUDA_RESULT_INVALID_VALUE = 1, CUDA_RESULT_CAPTURE_IMPLICIT = 906 };

enum mlacat_status cuda_driver(const struct cuda_driver **driver);

#define CUDA_DEVICE_NAME_BYTES 64
/* "GPU-...", as the daemon names the device; returns the driver's result. */
int cuda_driver_name_device(const struct cuda_driver *driver, int device, char uuid[CUDA_DEVICE_NAME_BYTES]);

#endif
