/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_event.h"

#include <stdlib.h>
#include <string.h>

#include "cuda_device.h"

struct device_event {
    struct device *device;
    struct cuda_event *event;
};

enum mlacat_status cuda_event_import(struct device *device, const uint8_t handle[MEMORY_HANDLE_BYTES],
                                     struct device_event **event, struct error *err)
{
    struct cuda_ipc_handle bytes;
    struct device_event *made = malloc(sizeof(*made));
    if (!made) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for another event");
    }
    cuda_device_enter(device);
    memcpy(bytes.bytes, handle, sizeof(bytes.bytes));
    int result = device->cuda->cuIpcOpenEventHandle(&made->event, bytes);
    if (result != CUDA_RESULT_OK) {
        free(made);
        return cuda_device_fail(device, err, result, "cuIpcOpenEventHandle",
                                "the event of the handle cannot be opened: it must live, and be of a process with the "
                                "same /dev/shm");
    }
    made->device = device;
    *event = made;
    return MLACAT_OK;
}

void cuda_event_release(struct device *device, struct device_event *event)
{
    cuda_device_enter(device);
    int result = device->cuda->cuEventDestroy(event->event);
    if (result != CUDA_RESULT_OK) {
        struct error err;
        cuda_device_fail(device, &err, result, "cuEventDestroy", "a client's event");
    }
    free(event);
}

enum device_answer cuda_event_query(struct device_event *event, struct error *err)
{
    cuda_device_enter(event->device);
    int result = event->device->cuda->cuEventQuery(event->event);
    if (result == CUDA_RESULT_OK) {
        return DEVICE_OK;
    }
    if (result == CUDA_RESULT_NOT_READY) {
        return DEVICE_AGAIN;
    }
    cuda_device_fail(event->device, err, result, "cuEventQuery", "the event that the call waits for");
    return DEVICE_ERROR;
}
