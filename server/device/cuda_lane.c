/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_lane.h"

#include "cuda_device.h"

enum mlacat_status cuda_lane_open(struct cuda_lane *lane, struct device *device, enum cuda_side side, struct error *err)
{
    if (cuda_fence_take(&device->fences, &lane->fence, err) != MLACAT_OK) {
        return err->code;
    }
    lane->device = device;
    cuda_lane_look(lane);
    return cuda_lane_open_other(lane, side, err);
}

enum mlacat_status cuda_lane_open_other(struct cuda_lane *lane, enum cuda_side side, struct error *err)
{
    if (cuda_channel_take(&lane->device->channels, side, &lane->channel[side], err) != MLACAT_OK) {
        lane->channel[side] = NULL;
        return err->code;
    }
    cuda_lane_turn(lane, side);
    return MLACAT_OK;
}

void cuda_lane_close(struct cuda_lane *lane)
{
    if (!lane->device) {
        return;
    }
    for (int side = 0; side < CUDA_SIDES_NR; side++) {
        if (lane->channel[side]) {
            cuda_channel_give(&lane->device->channels, lane->channel[side]);
        }
    }
    cuda_fence_give(&lane->device->fences, lane->fence);
}

int cuda_lane_write(const struct cuda_lane *lane, const struct concat_mla_end *end)
{
    int result = CUDA_RESULT_OK;
    for (int i = 0; i < CONCAT_MLA_END_WORDS && result == CUDA_RESULT_OK; i++) {
        if (end->address[i] != 0) {
            result = lane->device->cuda->cuStreamWriteValue64(lane->stream, end->address[i], end->value[i], 0);
        }
    }
    return result;
}
