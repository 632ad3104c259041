/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define DRIVER_LIBRARY "libcuda.so.1"
/* Has five parameters since 12.0; the one without _v2 has four. */
#define FINDER "cuGetProcAddress_v2"
#define UUID_BYTES 16
#define UUID_TEXT_BYTES 48
#define PREFIX_BYTES 4 /* "GPU-" */

enum { ATTRIBUTE_CACHE_BYTES = 38, STREAM_NON_BLOCKING = 1, IPC_LAZY_PEER_ACCESS = 1 };

typedef int (*find_call)(const char *name, void **address, int abi, uint64_t flags, int *answer);

static const struct {
    const char *name;
    int abi;
    size_t offset;
} rows[] = {
#define CUDA_CALL(name, abi, parameters) {#name, abi, offsetof(struct gpu_api, name)},
#include "gpu.def"
};

static struct gpu_api api;
static bool loaded;

__attribute__((format(printf, 2, 3))) static bool fail(struct gpu *gpu, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(gpu->error, sizeof(gpu->error), format, args);
    va_end(args);
    return false;
}

bool gpu_check(struct gpu *gpu, int result, const char *call, const char *what)
{
    const char *name = NULL;

    if (result == 0)
        return true;
    if (api.cuGetErrorName(result, &name) != 0 || !name)
        name = "an unknown error";
    return fail(gpu, "%s: %s: %s (%d)", what, call, name, result);
}

static bool find_calls(struct gpu *gpu, void *library)
{
    void *symbol = dlsym(library, FINDER);
    find_call find;

    if (!symbol)
        return fail(gpu, "the CUDA driver has no " FINDER ": it is older than 12.0; install a newer driver");
    memcpy(&find, &symbol, sizeof(find));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        void *address = NULL;
        int answer = 0;

        if (find(rows[i].name, &address, rows[i].abi, 0, &answer) != 0 || answer != 0 || !address)
            return fail(gpu, "the CUDA driver has no %s of version %d: it is too old; install a newer driver",
                        rows[i].name, rows[i].abi);
        memcpy((char *)&api + rows[i].offset, &address, sizeof(address));
    }
    return true;
}

/* The driver stays in the process: libmlacat uses it too. */
static bool load(struct gpu *gpu)
{
    void *library;

    if (loaded)
        return true;
    library = dlopen(DRIVER_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return fail(gpu, "no CUDA driver for this client: %s", dlerror());
    loaded = find_calls(gpu, library) && gpu_check(gpu, api.cuInit(0), "cuInit", "the CUDA driver does not start");
    return loaded;
}

static void format_uuid(const unsigned char uuid[UUID_BYTES], char text[UUID_TEXT_BYTES])
{
    int at = snprintf(text, UUID_TEXT_BYTES, "GPU-");

    for (int i = 0; i < UUID_BYTES; i++)
        at += snprintf(text + at, UUID_TEXT_BYTES - (size_t)at, "%s%02x",
                       i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
}

static bool find_device(struct gpu *gpu, const char *uuid)
{
    unsigned char bytes[UUID_BYTES];
    char text[UUID_TEXT_BYTES];
    int devices_nr = 0;

    if (!gpu_check(gpu, api.cuDeviceGetCount(&devices_nr), "cuDeviceGetCount", "no GPU for this client"))
        return false;
    for (int i = 0; i < devices_nr; i++) {
        if (!gpu_check(gpu, api.cuDeviceGet(&gpu->device, i), "cuDeviceGet", uuid) ||
            !gpu_check(gpu, api.cuDeviceGetUuid(bytes, gpu->device), "cuDeviceGetUuid", uuid))
            return false;
        format_uuid(bytes, text);
        /* A part of a GPU (MIG) has a UUID of its own, and another prefix. */
        if (strlen(uuid) > PREFIX_BYTES && strcasecmp(text + PREFIX_BYTES, uuid + PREFIX_BYTES) == 0)
            return true;
    }
    return fail(gpu, "this client sees %d GPUs, and %s is none of them; look at CUDA_VISIBLE_DEVICES and nvidia-smi -L",
                devices_nr, uuid);
}

bool gpu_open(struct gpu *gpu, const char *uuid)
{
    *gpu = (struct gpu){.api = &api};
    if (!load(gpu) || !find_device(gpu, uuid))
        return false;
    if (!gpu_check(gpu, api.cuDevicePrimaryCtxRetain(&gpu->context, gpu->device), "cuDevicePrimaryCtxRetain", uuid)) {
        gpu->context = NULL;
        return false;
    }
    if (gpu_check(gpu, api.cuCtxSetCurrent(gpu->context), "cuCtxSetCurrent", uuid) &&
        gpu_check(gpu, api.cuStreamCreate(&gpu->stream, STREAM_NON_BLOCKING), "cuStreamCreate", uuid))
        return true;
    gpu->stream = NULL;
    gpu_close(gpu);
    return false;
}

void gpu_close(struct gpu *gpu)
{
    if (!gpu->context)
        return;
    if (gpu->stream)
        api.cuStreamDestroy(gpu->stream);
    api.cuCtxSetCurrent(NULL);
    api.cuDevicePrimaryCtxRelease(gpu->device);
    gpu->stream = NULL;
    gpu->context = NULL;
}

bool gpu_alloc(struct gpu *gpu, size_t bytes, gpu_address *address)
{
    char what[64];
    size_t whole = (bytes + GPU_GRAIN_BYTES - 1) / GPU_GRAIN_BYTES * GPU_GRAIN_BYTES;

    snprintf(what, sizeof(what), "%zu bytes of GPU memory", bytes);
    if (gpu_check(gpu, api.cuMemAlloc(address, whole), "cuMemAlloc", what))
        return true;
    *address = 0;
    return false;
}

void gpu_free(struct gpu *gpu, gpu_address address)
{
    if (address != 0 && gpu->context)
        api.cuMemFree(address);
}

bool gpu_free_bytes(struct gpu *gpu, size_t *bytes)
{
    size_t all = 0;

    return gpu_check(gpu, api.cuMemGetInfo(bytes, &all), "cuMemGetInfo", "free memory of the GPU");
}

bool gpu_cache_bytes(struct gpu *gpu, size_t *bytes)
{
    int value = 0;
    int result = api.cuDeviceGetAttribute(&value, ATTRIBUTE_CACHE_BYTES, gpu->device);

    *bytes = value > 0 ? (size_t)value : 0;
    return gpu_check(gpu, result, "cuDeviceGetAttribute", "the size of the L2 cache");
}

bool gpu_wait(struct gpu *gpu)
{
    return gpu_check(gpu, api.cuStreamSynchronize(gpu->stream), "cuStreamSynchronize", "work on the GPU");
}

bool gpu_upload(struct gpu *gpu, gpu_address to, const void *from, size_t bytes)
{
    return bytes == 0 || (gpu_check(gpu, api.cuMemcpyHtoDAsync(to, from, bytes, gpu->stream), "cuMemcpyHtoDAsync",
                                    "copy to the GPU") &&
                          gpu_wait(gpu));
}

bool gpu_download(struct gpu *gpu, void *to, gpu_address from, size_t bytes)
{
    return bytes == 0 || (gpu_check(gpu, api.cuMemcpyDtoHAsync(to, from, bytes, gpu->stream), "cuMemcpyDtoHAsync",
                                    "copy from the GPU") &&
                          gpu_wait(gpu));
}

bool gpu_fill(struct gpu *gpu, gpu_address to, uint8_t byte, size_t bytes)
{
    return gpu_check(gpu, api.cuMemsetD8Async(to, byte, bytes, gpu->stream), "cuMemsetD8Async", "fill GPU memory") &&
           gpu_wait(gpu);
}

bool gpu_copy(struct gpu *gpu, gpu_address to, gpu_address from, size_t bytes)
{
    return gpu_check(gpu, api.cuMemcpyDtoDAsync(to, from, bytes, gpu->stream), "cuMemcpyDtoDAsync", "copy on the GPU");
}

bool gpu_export(struct gpu *gpu, gpu_address address, struct gpu_handle *handle)
{
    return gpu_check(gpu, api.cuIpcGetMemHandle(handle, address), "cuIpcGetMemHandle", "export of GPU memory");
}

bool gpu_import(struct gpu *gpu, const struct gpu_handle *handle, gpu_address *address)
{
    return gpu_check(gpu, api.cuIpcOpenMemHandle(address, *handle, IPC_LAZY_PEER_ACCESS), "cuIpcOpenMemHandle",
                     "import of GPU memory");
}

bool gpu_import_close(struct gpu *gpu, gpu_address address)
{
    return gpu_check(gpu, api.cuIpcCloseMemHandle(address), "cuIpcCloseMemHandle", "imported GPU memory");
}
