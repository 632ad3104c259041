/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA streams of the device. Private to the device layer and its tests.
 *
 * Two streams can hold each other up where they do not share a thing: each process has a number of channels to the GPU
 * (CUDA_DEVICE_MAX_CONNECTIONS), which it gives to its streams in turns when they are first used, and the GPU feeds its
 * channels through units that serve one at a time. Behind a client's stream that waits for a word, at the same unit,
 * what we launch begins 5 us late and what we write lands 2 us late. Measured on an H200 under MPS (performance.md,
 * "Which channel"): with 32 channels every other stream, from the first that a process uses, is at another unit than
 * the streams of clients, which have 2 there unless they ask for more; destroyed ones count. So a stream is used at
 * once, in the order in which they are made, and one that is on the wrong side is kept for whoever wants that.
 *
 * Owns:     the driver's streams, also those that were taken.
 * Thread:   the device's control thread; the device's start.
 * Lifetime: init -> (take/give)*. When all are given back, there are none.
 * Errors:   cuda_channel_take: RESOURCE_EXHAUSTED without memory, or what the driver says.
 */
#ifndef MLACAT_DEVICE_CUDA_CHANNEL_H
#define MLACAT_DEVICE_CUDA_CHANNEL_H

#include <stdint.h>

#include "cuda_api.h"
#include "list.h"
#include "status.h"

struct device;

enum cuda_side {
    CUDA_SIDE_APART,  /* from clients' streams: for what those wait for */
    CUDA_SIDE_BESIDE, /* the others */
    CUDA_SIDES_NR
};

struct cuda_channel {
    struct list_node link; /* idle */
    struct cuda_stream *stream;
    enum cuda_side side;
};

struct cuda_channels {
    struct device *device;
    struct list_node idle[CUDA_SIDES_NR];
    uint32_t taken_nr;
    uint32_t made_nr; /* ever */
};

void cuda_channels_init(struct cuda_channels *channels, struct device *device);

enum mlacat_status cuda_channel_take(struct cuda_channels *channels, enum cuda_side side, struct cuda_channel **channel,
                                     struct error *err);
/* What is left of what it was given touches nothing that others use. */
void cuda_channel_give(struct cuda_channels *channels, struct cuda_channel *channel);

#endif
