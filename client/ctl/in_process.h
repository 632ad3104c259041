/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The service's kernels without the service: calls launched on the GPU's stream of this process, as a program that has
 * the kernel itself would. What the rows of a GPU are measured beside.
 *
 * Owns:     the kernel. The launches are the caller's.
 * Thread:   that of the GPU.
 * Lifetime: gpu_open -> in_process_open .. in_process_close -> gpu_close.
 * Errors:   false: printed why.
 */
#ifndef MLACAT_CTL_IN_PROCESS_H
#define MLACAT_CTL_IN_PROCESS_H

#include <stdbool.h>

#include "concat_mla_launch.h"
#include "gpu_kernel.h"

struct in_process {
    struct gpu_kernel kernel;
};

/* NULL, or why this mlacatctl has no kernel. */
const char *in_process_missing(void);

/* The one launch of a small call; its addresses are of the device. */
void in_process_plan(const struct concat_mla_args *args, struct concat_mla_launch *launch);
/* The kernel that `launch` needs; it serves every launch of that vector. */
bool in_process_open(struct in_process *process, struct gpu *gpu, const struct concat_mla_launch *launch);
/* A zeroed one is fine. */
void in_process_close(struct in_process *process);

/* Enqueued. */
bool in_process_launch(const struct in_process *process, const struct concat_mla_launch *launch);
/* Records an event behind all that is enqueued, and asks for it until it is there. */
bool in_process_wait(const struct in_process *process);
/* Both. */
bool in_process_run(const struct in_process *process, const struct concat_mla_launch *launch);

#endif
