/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels of one device, loaded: the generic one for each vector, and those that were compiled for their widths.
 *
 * Owns:     the module.
 * Thread:   cuda_kernels_open, cuda_kernels_close: as the device's open and close. cuda_kernels_find: any worker.
 * Lifetime: open -> find* -> close. No module is loaded after open: loading stops every stream of the process.
 * Errors:   cuda_kernels_open: as jit_load of cuda_jit.h, or what the driver says.
 */
#ifndef MLACAT_DEVICE_CUDA_KERNELS_H
#define MLACAT_DEVICE_CUDA_KERNELS_H

#include <stdint.h>

#include "concat_mla_launch.h"
#include "cuda_api.h"
#include "cuda_jit.h"
#include "status.h"

#define CUDA_VECTORS_NR 5 /* 16, 8, 4, 2, 1 bytes */

struct device;

struct cuda_widths_kernel {
    uint64_t a_bytes;
    uint64_t b_bytes;
    struct cuda_function *function;
};

struct cuda_kernels {
    struct cuda_module *module;
    struct cuda_function *generic[CUDA_VECTORS_NR]; /* by the logarithm of the vector's bytes */
    struct cuda_widths_kernel widths[JIT_GEOMETRIES_MAX];
    uint32_t widths_nr;
    struct jit_report report;
};

/* Builds or finds the machine code, loads it, and launches each kernel once. Blocks, for seconds at worst. */
enum mlacat_status cuda_kernels_open(struct cuda_kernels *kernels, struct device *device, struct error *err);
/* Accepts a zeroed one. */
void cuda_kernels_close(struct cuda_kernels *kernels, struct device *device);

/* The kernel for a launch; there is always one. */
struct cuda_function *cuda_kernels_find(const struct cuda_kernels *kernels, const struct concat_mla_launch *launch);

#endif
