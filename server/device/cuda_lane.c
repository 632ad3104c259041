/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_lane.h"

#include "cuda_device.h"

enum mlacat_status cuda_lane_open(struct cuda_lane *lane, struct device *device, struct error *err)
{
    struct cuda_fence *fence;
    if (cuda_fence_take(&device->fences, &fence, err) != MLACAT_OK) {
        return err->code;
    }
    int result = device->cuda->cuStreamCreate(&lane->stream, CUDA_STREAM_NON_BLOCKING);
    if (result != CUDA_RESULT_OK) {
        cuda_fence_give(&device->fences, fence);
        return cuda_device_fail(device, err, result, "cuStreamCreate", "another stream");
    }
    lane->device = device;
    lane->fence = fence;
    cuda_lane_look(lane);
    return MLACAT_OK;
}

void cuda_lane_close(struct cuda_lane *lane)
{
    if (!lane->device) {
        return;
    }
    int result = lane->device->cuda->cuStreamDestroy(lane->stream);
    if (result != CUDA_RESULT_OK) {
        struct error err;
        cuda_device_fail(lane->device, &err, result, "cuStreamDestroy", "a stream");
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
