/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels of one device, loaded: three for each vector, of which one tells its end and one goes between a gate and
 * a tail; these two; and the one for many calls.
 *
 * Owns:     the module.
 * Thread:   cuda_kernels_open, cuda_kernels_close: as the device's open and close. The rest: any worker.
 * Lifetime: open -> find* -> close. No module is loaded after open: loading stops every stream of the process.
 * Errors:   cuda_kernels_open: as jit_load of cuda_jit.h, or what the driver says.
 */
#ifndef MLACAT_DEVICE_CUDA_KERNELS_H
#define MLACAT_DEVICE_CUDA_KERNELS_H

#include "concat_mla_launch.h"
#include "cuda_api.h"
#include "cuda_jit.h"
#include "status.h"

#define CUDA_VECTORS_NR 5 /* 16, 8, 4, 2, 1 bytes */

struct device;

struct cuda_kernels {
    struct cuda_module *module;
    struct cuda_function *vector[CUDA_VECTORS_NR]; /* by the logarithm of its bytes */
    struct cuda_function *signal[CUDA_VECTORS_NR]; /* take a struct concat_mla_signal too */
    struct cuda_function *many;                    /* takes a struct concat_mla_many_args */
    struct cuda_function *gate;                    /* takes a gate and a ticket; NULL: there are none of these */
    struct cuda_function *gated[CUDA_VECTORS_NR];  /* take a ticket too */
    struct cuda_function *tail;                    /* takes an end and a ticket */
    struct jit_report report;
};

/* Builds or finds the machine code, loads it, and launches each kernel once. Blocks, for seconds at worst. */
enum mlacat_status cuda_kernels_open(struct cuda_kernels *kernels, struct device *device, struct error *err);
/* Accepts a zeroed one. */
void cuda_kernels_close(struct cuda_kernels *kernels, struct device *device);

/* The kernels for a launch; there is always one. */
struct cuda_function *cuda_kernels_find(const struct cuda_kernels *kernels, const struct concat_mla_launch *launch);
struct cuda_function *cuda_kernels_find_signal(const struct cuda_kernels *kernels,
                                               const struct concat_mla_launch *launch);

#endif
