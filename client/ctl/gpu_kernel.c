/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu_kernel.h"

/* An event that is only asked whether it is there. */
#define EVENT_DISABLE_TIMING 2

bool gpu_kernel_open(struct gpu_kernel *kernel, struct gpu *gpu, const char *image, const char *name)
{
    const struct gpu_api *api = gpu->api;

    *kernel = (struct gpu_kernel){.gpu = gpu};
    if (!gpu_check(gpu, api->cuModuleLoadDataEx(&kernel->module, image, 0, NULL, NULL), "cuModuleLoadDataEx", name)) {
        kernel->module = NULL;
        return false;
    }
    if (gpu_check(gpu, api->cuModuleGetFunction(&kernel->function, kernel->module, name), "cuModuleGetFunction",
                  name) &&
        gpu_check(gpu, api->cuEventCreate(&kernel->event, EVENT_DISABLE_TIMING), "cuEventCreate", name))
        return true;
    kernel->event = NULL;
    gpu_kernel_close(kernel);
    return false;
}

void gpu_kernel_close(struct gpu_kernel *kernel)
{
    if (kernel->event)
        kernel->gpu->api->cuEventDestroy(kernel->event);
    if (kernel->module)
        kernel->gpu->api->cuModuleUnload(kernel->module);
    *kernel = (struct gpu_kernel){0};
}

bool gpu_kernel_launch(const struct gpu_kernel *kernel, unsigned grid, unsigned block, void **parameters)
{
    struct gpu *gpu = kernel->gpu;
    int result = gpu->api->cuLaunchKernel(kernel->function, grid, 1, 1, block, 1, 1, 0, gpu->stream, parameters, NULL);

    return gpu_check(gpu, result, "cuLaunchKernel", "a launch in process");
}

bool gpu_kernel_wait(const struct gpu_kernel *kernel)
{
    struct gpu *gpu = kernel->gpu;
    int result = gpu->api->cuEventRecord(kernel->event, gpu->stream);

    if (!gpu_check(gpu, result, "cuEventRecord", "launches in process"))
        return false;
    do {
        result = gpu->api->cuEventQuery(kernel->event);
    } while (result == GPU_RESULT_NOT_READY);
    return gpu_check(gpu, result, "cuEventQuery", "launches in process");
}
