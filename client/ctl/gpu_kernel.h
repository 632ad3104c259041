/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A kernel, launched in this process.
 *
 * Owns:     the module and an event.
 * Thread:   that of the GPU.
 * Lifetime: gpu_open -> gpu_kernel_open .. gpu_kernel_close -> gpu_close.
 * Errors:   false; the GPU's `error` says why.
 */
#ifndef MLACAT_CTL_GPU_KERNEL_H
#define MLACAT_CTL_GPU_KERNEL_H

#include <stdbool.h>

#include "gpu.h"

struct gpu_kernel {
    struct gpu *gpu;
    struct gpu_module *module;
    struct gpu_function *function;
    struct gpu_event *event;
};

/* `image`: PTX with its NUL, or a cubin. */
bool gpu_kernel_open(struct gpu_kernel *kernel, struct gpu *gpu, const char *image, const char *name);
/* A zeroed one is fine. */
void gpu_kernel_close(struct gpu_kernel *kernel);

/* Enqueued on the GPU's stream. */
bool gpu_kernel_launch(const struct gpu_kernel *kernel, unsigned grid, unsigned block, void **parameters);
/* Records the event behind all that is enqueued, and asks for it until it is there. */
bool gpu_kernel_wait(const struct gpu_kernel *kernel);

#endif
