/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_current.h"

#include <string.h>

#define DEVICES_MOST 64 /* more than a process sees */
#define PREFIX_BYTES 4  /* "GPU-", "MIG-" */

/* The parts of a GPU have names that begin otherwise at a daemon. */
static bool is_same(const char *name, const char *uuid)
{
    return strlen(uuid) > PREFIX_BYTES && strcmp(name + PREFIX_BYTES, uuid + PREFIX_BYTES) == 0;
}

int cuda_current_find(const struct cuda_driver *cuda, const char *uuid)
{
    char name[CUDA_DEVICE_NAME_BYTES];
    int device;
    for (int ordinal = 0; ordinal < DEVICES_MOST && cuda->cuDeviceGet(&device, ordinal) == CUDA_RESULT_OK; ordinal++) {
        if (cuda_driver_name_device(cuda, device, name) == CUDA_RESULT_OK && is_same(name, uuid)) {
            return device;
        }
    }
    return CUDA_CURRENT_NO_DEVICE;
}

bool cuda_current_is(const struct cuda_driver *cuda, int device)
{
    int current;
    return cuda->cuCtxGetDevice(&current) == CUDA_RESULT_OK && current == device;
}

int cuda_current_hold_primary(const struct cuda_driver *cuda, int device, void **context)
{
    unsigned int flags = 0;
    int active = 0;
    int result = cuda->cuDevicePrimaryCtxGetState(device, &flags, &active);
    *context = NULL;
    if (result == CUDA_RESULT_OK && active != 0) {
        result = cuda->cuDevicePrimaryCtxRetain(context, device);
    }
    return result;
}

void cuda_current_begin(struct cuda_current *current, const struct cuda_driver *cuda, int device)
{
    void *context;
    *current = (struct cuda_current){.cuda = cuda, .device = device};
    if (device == CUDA_CURRENT_NO_DEVICE || cuda_current_is(cuda, device) ||
        cuda_current_hold_primary(cuda, device, &context) != CUDA_RESULT_OK || context == NULL) {
        return;
    }
    current->pushed = cuda->cuCtxPushCurrent(context) == CUDA_RESULT_OK;
    if (!current->pushed) {
        cuda->cuDevicePrimaryCtxRelease(device);
    }
}

void cuda_current_end(const struct cuda_current *current)
{
    void *context;
    if (current->pushed) {
        current->cuda->cuCtxPopCurrent(&context);
        current->cuda->cuDevicePrimaryCtxRelease(current->device);
    }
}
