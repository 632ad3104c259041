/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A copy of many blocks that waits for a word: a gate of one warp before it, and behind it a tail of one warp, which
 * tells its end. The three overlap as far as they can, see concat_mla.cu. Private to the device layer and its tests.
 *
 * Owns:     nothing.
 * Thread:   the worker of the stream that it is launched on; the device's start.
 * Lifetime: a plain value; all of it is copied by the launch.
 * Errors:   cuda_gated_launch gives the driver's result as it is.
 */
#ifndef MLACAT_DEVICE_CUDA_GATED_H
#define MLACAT_DEVICE_CUDA_GATED_H

#include <stdbool.h>

#include "concat_mla_launch.h"
#include "cuda_api.h"
#include "cuda_kernels.h"

struct cuda_gated {
    const struct concat_mla_launch *copy;
    struct concat_mla_gate gate;
    struct concat_mla_end end;
    struct concat_mla_ticket ticket;
};

/* The device has the kernels for it: from compute capability 9.0 on, unless they come from the built-in PTX. */
static inline bool cuda_gated_exists(const struct cuda_kernels *kernels)
{
    return kernels->gate;
}

/* `part`, after an error: the gate is there all the same, and the copy may be; the tail is not. */
int cuda_gated_launch(const struct cuda_gated *gated, const struct cuda_kernels *kernels, const struct cuda_api *cuda,
                      struct cuda_stream *stream, bool *part);

#endif
