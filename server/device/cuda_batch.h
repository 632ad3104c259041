/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How calls become launches: one long call several, one call one, and small calls that stand next to each other one for
 * all of them, which costs the GPU a fraction of what a launch for each does. The kernel of a call that is small and by
 * itself tells its end itself; one that is larger does so too, with kernels around it, if it has to wait for a word.
 * Private to the device layer and its tests.
 *
 * Owns:     nothing.
 * Thread:   the worker of the stream that it belongs to.
 * Lifetime: begin -> add* -> launch while `pending`.
 * Errors:   cuda_batch_launch gives the driver's result as it is.
 */
#ifndef MLACAT_DEVICE_CUDA_BATCH_H
#define MLACAT_DEVICE_CUDA_BATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "concat_mla_launch.h"
#include "cuda_kernels.h"
#include "cuda_lane.h"
#include "device.h"

struct cuda_batch {
    bool pending;      /* there is something to launch */
    bool more;         /* it is a long call: with that it will not have been all */
    uint32_t calls_nr; /* that have something to copy */
    uint64_t launch_bytes;
    struct concat_mla_args first;
    struct concat_mla_plan plan; /* one call: the launch that is next, and the one after it */
    struct concat_mla_launch launch;
    struct concat_mla_launch after;
    struct concat_mla_many many; /* more than one */
    struct concat_mla_gate gate; /* what its launch waits for */
};

/* `launch_bytes`: what the memory reads and writes in a millisecond. Call it when nothing is pending. */
void cuda_batch_begin(struct cuda_batch *batch, uint64_t launch_bytes);
/* false: the call does not go with what is there, and nothing has changed. The caller sees to it that no call touches
 * what another one writes. A call that copies nothing always fits. */
bool cuda_batch_add(struct cuda_batch *batch, const struct device_call *call);
/* May the only launch wait for a word? Then it is `gate` that it waits for. */
bool cuda_batch_can_wait(const struct cuda_batch *batch, const struct cuda_kernels *kernels);

/* What there is of a launch. */
enum cuda_launched {
    CUDA_LAUNCHED,       /* it does not tell its end: that is left to the caller. After an error: nothing */
    CUDA_LAUNCHED_TELLS, /* it writes `end` when it is done */
    CUDA_LAUNCHED_PART   /* with an error: some of what waits for a word. It may run, and will not tell its end */
};

/* The next launch; afterwards `pending` tells whether another one has to follow. After an error nothing is pending. */
int cuda_batch_launch(struct cuda_batch *batch, const struct cuda_lane *lane, const struct concat_mla_end *end,
                      enum cuda_launched *launched);

#endif
