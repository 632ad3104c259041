/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A CUDA stream, or one on each side, and the fence word in which the GPU tells how far it is. Private to the device
 * layer and its tests.
 *
 * Owns:     its streams and its fence word, while it is open.
 * Thread:   open, close: the device's control thread. The rest: the worker of the stream that the lane belongs to.
 * Lifetime: open -> open_other or not -> (write, look, turn)* -> close. close accepts a zeroed one.
 * Errors:   cuda_lane_open: RESOURCE_EXHAUSTED, or what the driver says. cuda_lane_write gives the driver's result as
 *           it is.
 */
#ifndef MLACAT_DEVICE_CUDA_LANE_H
#define MLACAT_DEVICE_CUDA_LANE_H

#include <stdatomic.h>
#include <stdint.h>

#include "concat_mla_args.h"
#include "cuda_api.h"
#include "cuda_channel.h"
#include "cuda_fence.h"
#include "status.h"

struct device;

struct cuda_lane {
    struct device *device;
    struct cuda_channel *channel[CUDA_SIDES_NR]; /* NULL: none on that side */
    struct cuda_stream *stream;                  /* of one of them: of the last that was opened or turned to */
    struct cuda_fence *fence;                    /* `written` of it counts what was given to the GPU to move it */
    uint64_t seen;                               /* how far it was when somebody looked last */
};

enum mlacat_status cuda_lane_open(struct cuda_lane *lane, struct device *device, enum cuda_side side,
                                  struct error *err);
/* A stream on the other side too, to which it turns. */
enum mlacat_status cuda_lane_open_other(struct cuda_lane *lane, enum cuda_side side, struct error *err);
void cuda_lane_close(struct cuda_lane *lane);

/* What is launched from now on goes into the stream on that side, which it has. All of before has ended. */
static inline void cuda_lane_turn(struct cuda_lane *lane, enum cuda_side side)
{
    lane->stream = lane->channel[side]->stream;
}

/* After all that was launched before, the GPU writes the words. Anything but OK: it may run, and nobody will ever know
 * when it has ended. */
int cuda_lane_write(const struct cuda_lane *lane, const struct concat_mla_end *end);

static inline void cuda_lane_look(struct cuda_lane *lane)
{
    lane->seen = atomic_load_explicit(lane->fence->word, memory_order_acquire);
}

#endif
