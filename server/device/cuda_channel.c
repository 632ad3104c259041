/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_channel.h"

#include <stdlib.h>

#include "cuda_device.h"

void cuda_channels_init(struct cuda_channels *channels, struct device *device)
{
    channels->device = device;
    for (int side = 0; side < CUDA_SIDES_NR; side++) {
        list_init(&channels->idle[side]);
    }
}

static void destroy(struct device *device, struct cuda_channel *channel)
{
    int result = device->cuda->cuStreamDestroy(channel->stream);
    if (result != CUDA_RESULT_OK) {
        struct error err;
        cuda_device_fail(device, &err, result, "cuStreamDestroy", "a stream");
    }
    free(channel);
}

/* The next one, whichever side it is on. */
static enum mlacat_status make(struct cuda_channels *channels, struct error *err)
{
    struct device *device = channels->device;
    struct cuda_channel *channel = calloc(1, sizeof(*channel));
    if (!channel) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for another stream");
    }
    int result = device->cuda->cuStreamCreate(&channel->stream, CUDA_STREAM_NON_BLOCKING);
    if (result != CUDA_RESULT_OK) {
        free(channel);
        return cuda_device_fail(device, err, result, "cuStreamCreate", "another stream");
    }
    result = device->cuda->cuStreamWriteValue64(channel->stream, device->wake, 1, 0); /* its first use */
    if (result != CUDA_RESULT_OK) {
        destroy(device, channel);
        return cuda_device_fail(device, err, result, "cuStreamWriteValue64", "another stream");
    }
    channel->side = (enum cuda_side)(channels->made_nr++ % CUDA_SIDES_NR);
    list_prepend(&channels->idle[channel->side], &channel->link);
    return MLACAT_OK;
}

static void destroy_idle(struct cuda_channels *channels)
{
    for (int side = 0; side < CUDA_SIDES_NR; side++) {
        struct list_node *node;
        while ((node = list_take(&channels->idle[side]))) {
            destroy(channels->device, LIST_ENTRY(node, struct cuda_channel, link));
        }
    }
}

enum mlacat_status cuda_channel_take(struct cuda_channels *channels, enum cuda_side side, struct cuda_channel **channel,
                                     struct error *err)
{
    while (list_empty(&channels->idle[side])) {
        if (make(channels, err) != MLACAT_OK) {
            if (channels->taken_nr == 0) {
                destroy_idle(channels);
            }
            return err->code;
        }
    }
    *channel = LIST_ENTRY(list_take(&channels->idle[side]), struct cuda_channel, link);
    channels->taken_nr++;
    return MLACAT_OK;
}

void cuda_channel_give(struct cuda_channels *channels, struct cuda_channel *channel)
{
    list_prepend(&channels->idle[channel->side], &channel->link);
    channels->taken_nr--;
    if (channels->taken_nr == 0) {
        destroy_idle(channels);
    }
}
