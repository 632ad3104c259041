/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_kernels.h"

#include <string.h>

#include "cuda_device.h"
#include "cuda_gated.h"

/* One cuda_kernels_open. */
struct loading {
    struct device *device;
    struct cuda_kernels *kernels;
};

static void unload(struct cuda_kernels *kernels, struct device *device)
{
    struct error err;
    int result = device->cuda->cuModuleUnload(kernels->module);
    if (result != CUDA_RESULT_OK) {
        cuda_device_fail(device, &err, result, "cuModuleUnload", "the kernels");
    }
    kernels->module = NULL;
}

static enum mlacat_status find(struct device *device, struct cuda_module *module, const char *name,
                               struct cuda_function **function, struct error *err)
{
    int result = device->cuda->cuModuleGetFunction(function, module, name);
    return result == CUDA_RESULT_OK
               ? MLACAT_OK
               : cuda_device_fail(device, err, result, "cuModuleGetFunction", "the kernel %s", name);
}

/* Those that not every GPU has: all or none. */
static enum mlacat_status find_gated(struct cuda_kernels *kernels, struct device *device, struct error *err)
{
    char name[CONCAT_MLA_NAME_BYTES];
    int result = device->cuda->cuModuleGetFunction(&kernels->gate, kernels->module, CONCAT_MLA_GATE_NAME);
    if (result == CUDA_RESULT_NOT_FOUND) {
        kernels->gate = NULL;
        return MLACAT_OK;
    }
    if (result != CUDA_RESULT_OK) {
        return cuda_device_fail(device, err, result, "cuModuleGetFunction", "the kernel %s", CONCAT_MLA_GATE_NAME);
    }
    for (unsigned i = 0; i < CUDA_VECTORS_NR; i++) {
        concat_mla_gated_name(1u << i, name);
        if (find(device, kernels->module, name, &kernels->gated[i], err) != MLACAT_OK) {
            return err->code;
        }
    }
    return find(device, kernels->module, CONCAT_MLA_TAIL_NAME, &kernels->tail, err);
}

static enum mlacat_status find_all(struct cuda_kernels *kernels, struct device *device, struct error *err)
{
    char name[CONCAT_MLA_NAME_BYTES];
    for (unsigned i = 0; i < CUDA_VECTORS_NR; i++) {
        concat_mla_kernel_name(1u << i, name);
        if (find(device, kernels->module, name, &kernels->vector[i], err) != MLACAT_OK) {
            return err->code;
        }
        concat_mla_signal_name(1u << i, name);
        if (find(device, kernels->module, name, &kernels->signal[i], err) != MLACAT_OK) {
            return err->code;
        }
    }
    if (find(device, kernels->module, CONCAT_MLA_MANY_NAME, &kernels->many, err) != MLACAT_OK) {
        return err->code;
    }
    return find_gated(kernels, device, err);
}

static enum mlacat_status launch_empty(struct device *device, struct cuda_stream *stream,
                                       struct cuda_function *function, void **parameters, struct error *err)
{
    int result = device->cuda->cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, parameters, NULL);
    return result == CUDA_RESULT_OK
               ? MLACAT_OK
               : cuda_device_fail(device, err, result, "cuLaunchKernel", "the first launch of a kernel");
}

/* With a gate that lets it pass. */
static enum mlacat_status launch_empty_gated(struct cuda_kernels *kernels, struct device *device,
                                             struct cuda_stream *stream, unsigned vector_bytes, struct error *err)
{
    struct concat_mla_launch copy = {.args = {.dim0 = 1, .dim1 = 1}, .grid = 1, .block = 32};
    struct cuda_gated gated = {.copy = &copy, .ticket = {.address = device->wake, .number = 1}};
    bool part;
    copy.range.vector_bytes = (unsigned char)vector_bytes;
    int result = cuda_gated_launch(&gated, kernels, device->cuda, stream, &part);
    return result == CUDA_RESULT_OK
               ? MLACAT_OK
               : cuda_device_fail(device, err, result, "cuLaunchKernelEx", "the first launch behind a gate");
}

/* A kernel's first launch may load it, and then waits for all that runs: so each has it now, with nothing to copy. */
static enum mlacat_status launch_all(struct cuda_kernels *kernels, struct device *device, struct cuda_stream *stream,
                                     struct error *err)
{
    struct concat_mla_args args = {.dim0 = 1, .dim1 = 1};
    struct concat_mla_range range = {.units = 0};
    struct concat_mla_many_args many = {.first_block = {0}};
    struct concat_mla_signal signal = {.gate = {.address = 0}};
    for (unsigned i = 0; i < CUDA_VECTORS_NR; i++) {
        if (launch_empty(device, stream, kernels->vector[i], (void *[]){&args, &range}, err) != MLACAT_OK ||
            launch_empty(device, stream, kernels->signal[i], (void *[]){&args, &range, &signal}, err) != MLACAT_OK) {
            return err->code;
        }
        if (cuda_gated_exists(kernels) && launch_empty_gated(kernels, device, stream, 1u << i, err) != MLACAT_OK) {
            return err->code;
        }
    }
    if (launch_empty(device, stream, kernels->many, (void *[]){&many}, err) != MLACAT_OK) {
        return err->code;
    }
    int result = device->cuda->cuStreamSynchronize(stream);
    return result == CUDA_RESULT_OK
               ? MLACAT_OK
               : cuda_device_fail(device, err, result, "cuStreamSynchronize", "the first launch of the kernels");
}

static enum mlacat_status warm_up(struct cuda_kernels *kernels, struct device *device, struct error *err)
{
    struct cuda_channel *channel;
    if (cuda_channel_take(&device->channels, CUDA_SIDE_APART, &channel, err) != MLACAT_OK) {
        return err->code;
    }
    enum mlacat_status status = launch_all(kernels, device, channel->stream, err);
    cuda_channel_give(&device->channels, channel);
    return status;
}

static enum mlacat_status load_image(void *owner, const struct jit_image *image, struct error *err)
{
    const struct loading *loading = owner;
    struct device *device = loading->device;
    struct cuda_kernels *kernels = loading->kernels;
    int result = device->cuda->cuModuleLoadDataEx(&kernels->module, image->bytes, 0, NULL, NULL);
    if (result != CUDA_RESULT_OK) {
        kernels->module = NULL;
        return cuda_device_fail(device, err, result, "cuModuleLoadDataEx", "the kernels (%s)",
                                jit_source_name(image->source));
    }
    if (find_all(kernels, device, err) != MLACAT_OK) {
        unload(kernels, device);
        return err->code;
    }
    if (warm_up(kernels, device, err) != MLACAT_OK) {
        unload(kernels, device);
        return err->code;
    }
    return MLACAT_OK;
}

enum mlacat_status cuda_kernels_open(struct cuda_kernels *kernels, struct device *device, struct error *err)
{
    struct loading loading = {.device = device, .kernels = kernels};
    struct jit_options options = {0};
    const struct cuda_api *cuda = device->cuda;
    memset(kernels, 0, sizeof(*kernels));
    int result = cuda->cuDeviceGetAttribute(&options.major, CUDA_DEVICE_COMPUTE_MAJOR, device->ordinal);
    if (result == CUDA_RESULT_OK) {
        result = cuda->cuDeviceGetAttribute(&options.minor, CUDA_DEVICE_COMPUTE_MINOR, device->ordinal);
    }
    if (result != CUDA_RESULT_OK) {
        return cuda_device_fail(device, err, result, "cuDeviceGetAttribute", "the compute capability");
    }
    if (jit_load(&options, load_image, &loading, &kernels->report, err) != MLACAT_OK) {
        return err->code;
    }
    return MLACAT_OK;
}

void cuda_kernels_close(struct cuda_kernels *kernels, struct device *device)
{
    if (kernels->module) {
        unload(kernels, device);
    }
}

struct cuda_function *cuda_kernels_find(const struct cuda_kernels *kernels, const struct concat_mla_launch *launch)
{
    return kernels->vector[__builtin_ctz(launch->range.vector_bytes)];
}

struct cuda_function *cuda_kernels_find_signal(const struct cuda_kernels *kernels,
                                               const struct concat_mla_launch *launch)
{
    return kernels->signal[__builtin_ctz(launch->range.vector_bytes)];
}
