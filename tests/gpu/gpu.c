/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Only what is used of cuda.h and nvrtc.h: those headers come with the toolkit, which a build machine may not have. */
typedef unsigned long long device_ptr;
struct context;
struct stream;
struct program;

struct launch_attribute {
    int id;
    int reserved;
    union {
        int programmatic;
        char bytes[64];
    } value;
};

struct launch_config {
    unsigned grid[3];
    unsigned block[3];
    unsigned shared_bytes;
    struct stream *stream;
    struct launch_attribute *attributes;
    unsigned attributes_nr;
};

enum {
    LAUNCH_PROGRAMMATIC_SERIALIZATION = 6,
    ATTRIBUTE_MULTIPROCESSORS = 16,
    ATTRIBUTE_MEMORY_CLOCK_KHZ = 36,
    ATTRIBUTE_MEMORY_BITS = 37,
    ATTRIBUTE_CACHE_BYTES = 38,
    ATTRIBUTE_MAJOR = 75,
    ATTRIBUTE_MINOR = 76,
    STREAM_NON_BLOCKING = 1,
    HOST_ALLOC_MAPPED = 2
};

/* result type of all is int; the suffix is the ABI version that the signature belongs to */
#define DRIVER_CALLS(X)                                                                                             \
    X(cuInit, (unsigned))                                                                                           \
    X(cuDriverGetVersion, (int *))                                                                                  \
    X(cuDeviceGet, (int *, int))                                                                                    \
    X(cuDeviceGetName, (char *, int, int))                                                                          \
    X(cuDeviceTotalMem_v2, (size_t *, int))                                                                         \
    X(cuDeviceGetAttribute, (int *, int, int))                                                                      \
    X(cuDevicePrimaryCtxRetain, (struct context **, int))                                                           \
    X(cuDevicePrimaryCtxRelease_v2, (int))                                                                          \
    X(cuCtxSetCurrent, (struct context *))                                                                          \
    X(cuModuleLoadData, (struct gpu_module **, const void *))                                                       \
    X(cuModuleUnload, (struct gpu_module *))                                                                        \
    X(cuModuleGetFunction, (struct gpu_function **, struct gpu_module *, const char *))                             \
    X(cuMemAlloc_v2, (device_ptr *, size_t))                                                                        \
    X(cuMemFree_v2, (device_ptr))                                                                                   \
    X(cuMemGetInfo_v2, (size_t *, size_t *))                                                                        \
    X(cuMemHostAlloc, (void **, size_t, unsigned))                                                                  \
    X(cuMemFreeHost, (void *))                                                                                      \
    X(cuMemcpyDtoDAsync_v2, (device_ptr, device_ptr, size_t, struct stream *))                                      \
    X(cuMemcpyHtoDAsync_v2, (device_ptr, const void *, size_t, struct stream *))                                    \
    X(cuMemcpyDtoHAsync_v2, (void *, device_ptr, size_t, struct stream *))                                          \
    X(cuMemsetD8Async, (device_ptr, unsigned char, size_t, struct stream *))                                        \
    X(cuStreamCreate, (struct stream **, unsigned))                                                                 \
    X(cuStreamDestroy_v2, (struct stream *))                                                                        \
    X(cuStreamSynchronize, (struct stream *))                                                                       \
    X(cuStreamWriteValue64_v2, (struct stream *, device_ptr, uint64_t, unsigned))                                   \
    X(cuLaunchKernel, (struct gpu_function *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, \
                       struct stream *, void **, void **))                                                          \
    X(cuLaunchKernelEx, (const struct launch_config *, struct gpu_function *, void **, void **))                    \
    X(cuEventCreate, (struct gpu_event **, unsigned))                                                               \
    X(cuEventDestroy_v2, (struct gpu_event *))                                                                      \
    X(cuEventRecord, (struct gpu_event *, struct stream *))                                                         \
    X(cuEventSynchronize, (struct gpu_event *))                                                                     \
    X(cuEventElapsedTime, (float *, struct gpu_event *, struct gpu_event *))                                        \
    X(cuGetErrorName, (int, const char **))

#define NVRTC_CALLS(X)                                                                                \
    X(nvrtcVersion, (int *, int *))                                                                   \
    X(nvrtcCreateProgram,                                                                             \
      (struct program **, const char *, const char *, int, const char *const *, const char *const *)) \
    X(nvrtcCompileProgram, (struct program *, int, const char *const *))                              \
    X(nvrtcGetProgramLogSize, (struct program *, size_t *))                                           \
    X(nvrtcGetProgramLog, (struct program *, char *))                                                 \
    X(nvrtcGetCUBINSize, (struct program *, size_t *))                                                \
    X(nvrtcGetCUBIN, (struct program *, char *))                                                      \
    X(nvrtcDestroyProgram, (struct program **))

#define MEMBER(name, arguments) int(*name) arguments;
static struct {
    DRIVER_CALLS(MEMBER)
} driver;
static struct {
    NVRTC_CALLS(MEMBER)
} nvrtc;

struct entry {
    const char *name;
    void *slot;
};
#define DRIVER_ENTRY(name, arguments) {#name, &driver.name},
#define NVRTC_ENTRY(name, arguments) {#name, &nvrtc.name},
static const struct entry driver_entries[] = {DRIVER_CALLS(DRIVER_ENTRY){NULL, NULL}};
static const struct entry nvrtc_entries[] = {NVRTC_CALLS(NVRTC_ENTRY){NULL, NULL}};

static struct {
    int device;
    int arch;
    struct context *context;
    struct stream *stream;
    struct stream *beside;
} gpu;

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fflush(stdout);
    vfprintf(stderr, format, args);
    va_end(args);
    exit(1);
}

static const char *error_name(int result)
{
    const char *name = NULL;
    return driver.cuGetErrorName(result, &name) == 0 && name ? name : "an unknown error";
}

static void check(int result, const char *call)
{
    if (result != 0) {
        die("%s: %s (%d)\n", call, error_name(result), result);
    }
}

#define CHECK(call) check(driver.call, #call)

static void check_nvrtc(int result, const char *call)
{
    if (result != 0) {
        die("%s: NVRTC error %d\n", call, result);
    }
}

#define CHECK_NVRTC(call) check_nvrtc(nvrtc.call, #call)

/* The first library of a list that opens and has every entry point. */
static bool load(const char *const *names, const struct entry *entries, char *reason, size_t reason_size)
{
    void *library = NULL;
    for (; *names && !library; names++) {
        library = dlopen(*names, RTLD_NOW);
        if (!library) {
            snprintf(reason, reason_size, "%s", dlerror());
        }
    }
    if (!library) {
        return false;
    }
    for (; entries->name; entries++) {
        void *symbol = dlsym(library, entries->name);
        if (!symbol) {
            snprintf(reason, reason_size, "%s has no %s: too old", names[-1], entries->name);
            return false;
        }
        memcpy(entries->slot, &symbol, sizeof(symbol));
    }
    return true;
}

static bool start_driver(char *reason, size_t reason_size)
{
    static const char *const names[] = {"libcuda.so.1", NULL};
    int result;
    if (!load(names, driver_entries, reason, reason_size)) {
        return false;
    }
    result = driver.cuInit(0);
    if (result == 0) {
        result = driver.cuDeviceGet(&gpu.device, 0);
    }
    if (result == 0) {
        result = driver.cuDevicePrimaryCtxRetain(&gpu.context, gpu.device);
    }
    if (result != 0) {
        snprintf(reason, reason_size, "the driver finds no usable GPU: %s (%d)", error_name(result), result);
        return false;
    }
    return true;
}

bool gpu_open(struct gpu_info *info, char *reason, size_t reason_size)
{
    static const char *const names[] = {"libnvrtc.so.13",
                                        "libnvrtc.so.12",
                                        "libnvrtc.so",
                                        "/usr/local/cuda/lib64/libnvrtc.so.13",
                                        "/usr/local/cuda/lib64/libnvrtc.so.12",
                                        NULL};
    int major = 0;
    int minor = 0;
    int cache_bytes = 0;
    int clock_khz = 0;
    int memory_bits = 0;
    if (!start_driver(reason, reason_size) || !load(names, nvrtc_entries, reason, reason_size)) {
        return false;
    }
    CHECK(cuCtxSetCurrent(gpu.context));
    CHECK(cuStreamCreate(&gpu.stream, STREAM_NON_BLOCKING));
    CHECK(cuStreamCreate(&gpu.beside, STREAM_NON_BLOCKING));
    CHECK(cuDeviceGetName(info->name, (int)sizeof(info->name), gpu.device));
    CHECK(cuDriverGetVersion(&info->driver_version));
    CHECK(cuDeviceTotalMem_v2(&info->memory_bytes, gpu.device));
    CHECK(cuDeviceGetAttribute(&info->multiprocessors, ATTRIBUTE_MULTIPROCESSORS, gpu.device));
    CHECK(cuDeviceGetAttribute(&cache_bytes, ATTRIBUTE_CACHE_BYTES, gpu.device));
    CHECK(cuDeviceGetAttribute(&major, ATTRIBUTE_MAJOR, gpu.device));
    CHECK(cuDeviceGetAttribute(&minor, ATTRIBUTE_MINOR, gpu.device));
    CHECK(cuDeviceGetAttribute(&clock_khz, ATTRIBUTE_MEMORY_CLOCK_KHZ, gpu.device));
    CHECK(cuDeviceGetAttribute(&memory_bits, ATTRIBUTE_MEMORY_BITS, gpu.device));
    /* two transfers a clock: kHz * 2 * bits / 8 bytes each ms */
    info->memory_bytes_per_ms = (uint64_t)clock_khz * (uint64_t)memory_bits / 4;
    info->cache_bytes = (size_t)cache_bytes;
    info->arch = gpu.arch = major * 10 + minor;
    CHECK_NVRTC(nvrtcVersion(&major, &minor));
    info->nvrtc_version = major * 1000 + minor * 10;
    return true;
}

void gpu_close(void)
{
    driver.cuStreamDestroy_v2(gpu.stream);
    driver.cuStreamDestroy_v2(gpu.beside);
    driver.cuDevicePrimaryCtxRelease_v2(gpu.device);
}

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "re");
    char *text = NULL;
    long size = -1;
    if (file && fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0) {
        text = calloc((size_t)size + 1, 1);
    }
    if (!text || fread(text, 1, (size_t)size, file) != (size_t)size) {
        die("cannot read %s; start the program in the root of the source tree or give the root as its argument\n",
            path);
    }
    fclose(file);
    return text;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void print_log(struct program *program, const char *path)
{
    size_t size = 0;
    CHECK_NVRTC(nvrtcGetProgramLogSize(program, &size));
    char *log = calloc(size + 1, 1);
    if (log && size > 1) {
        CHECK_NVRTC(nvrtcGetProgramLog(program, log));
        fprintf(stderr, "%s: %s\n", path, log);
    }
    free(log);
}

struct gpu_module *gpu_compile(const char *path, const char *header, const char *const *options)
{
    char arch[64];
    const char *all[32] = {arch, "-std=c++17"};
    int options_nr = 2;
    char *text = read_file(path);
    char *header_text = header ? read_file(header) : NULL;
    const char *header_name = header ? base_name(header) : NULL;
    struct program *program = NULL;
    struct gpu_module *module = NULL;
    size_t size = 0;
    snprintf(arch, sizeof(arch), "-arch=sm_%d", gpu.arch);
    while (options && *options && options_nr < 32) {
        all[options_nr++] = *options++;
    }
    CHECK_NVRTC(nvrtcCreateProgram(&program, text, base_name(path), header ? 1 : 0, (const char *const *)&header_text,
                                   &header_name));
    int result = nvrtc.nvrtcCompileProgram(program, options_nr, all);
    print_log(program, path);
    check_nvrtc(result, path);
    CHECK_NVRTC(nvrtcGetCUBINSize(program, &size));
    char *cubin = calloc(size, 1);
    if (!cubin) {
        die("no memory for %zu bytes of machine code\n", size);
    }
    CHECK_NVRTC(nvrtcGetCUBIN(program, cubin));
    CHECK_NVRTC(nvrtcDestroyProgram(&program));
    CHECK(cuModuleLoadData(&module, cubin));
    free(cubin);
    free(header_text);
    free(text);
    return module;
}

struct gpu_function *gpu_find(struct gpu_module *module, const char *name)
{
    struct gpu_function *function = NULL;
    return driver.cuModuleGetFunction(&function, module, name) == 0 ? function : NULL;
}

void gpu_unload(struct gpu_module *module)
{
    CHECK(cuModuleUnload(module));
}

void gpu_launch(struct gpu_function *function, unsigned grid, unsigned block, void **arguments)
{
    CHECK(cuLaunchKernel(function, grid, 1, 1, block, 1, 1, 0, gpu.stream, arguments, NULL));
}

void gpu_launch_behind(struct gpu_function *function, unsigned grid, unsigned block, void **arguments)
{
    struct launch_attribute attribute = {.id = LAUNCH_PROGRAMMATIC_SERIALIZATION, .value = {.programmatic = 1}};
    struct launch_config config = {.grid = {grid, 1, 1},
                                   .block = {block, 1, 1},
                                   .stream = gpu.stream,
                                   .attributes = &attribute,
                                   .attributes_nr = 1};
    CHECK(cuLaunchKernelEx(&config, function, arguments, NULL));
}

void gpu_copy(void *to, const void *from, size_t size)
{
    CHECK(cuMemcpyDtoDAsync_v2((uintptr_t)to, (uintptr_t)from, size, gpu.stream));
}

void gpu_fill(void *to, unsigned char value, size_t size)
{
    CHECK(cuMemsetD8Async((uintptr_t)to, value, size, gpu.stream));
}

void gpu_write_word(_Atomic uint64_t *word, uint64_t value)
{
    /* The driver's own host memory has one address for both. */
    CHECK(cuStreamWriteValue64_v2(gpu.stream, (uintptr_t)word, value, 0));
}

void gpu_sync(void)
{
    CHECK(cuStreamSynchronize(gpu.stream));
}

void gpu_use_stream(void *stream)
{
    gpu.stream = stream;
}

void gpu_upload(void *to, const void *from, size_t size)
{
    CHECK(cuMemcpyHtoDAsync_v2((uintptr_t)to, from, size, gpu.stream));
    gpu_sync();
}

void gpu_upload_beside(void *to, const void *from, size_t size)
{
    CHECK(cuMemcpyHtoDAsync_v2((uintptr_t)to, from, size, gpu.beside));
    CHECK(cuStreamSynchronize(gpu.beside));
}

void gpu_download(void *to, const void *from, size_t size)
{
    CHECK(cuMemcpyDtoHAsync_v2(to, (uintptr_t)from, size, gpu.stream));
    gpu_sync();
}

void *gpu_alloc(size_t size)
{
    device_ptr memory = 0;
    int result = driver.cuMemAlloc_v2(&memory, size);
    if (result != 0) {
        die("cuMemAlloc of %zu bytes: %s (%d)\n", size, error_name(result), result);
    }
    return (void *)(uintptr_t)memory;
}

void gpu_free(void *memory)
{
    CHECK(cuMemFree_v2((uintptr_t)memory));
}

size_t gpu_free_bytes(void)
{
    size_t free_bytes = 0;
    size_t all_bytes = 0;
    CHECK(cuMemGetInfo_v2(&free_bytes, &all_bytes));
    return free_bytes;
}

_Atomic uint64_t *gpu_word_new(void)
{
    void *memory = NULL;
    CHECK(cuMemHostAlloc(&memory, sizeof(uint64_t), HOST_ALLOC_MAPPED));
    memset(memory, 0, sizeof(uint64_t));
    return memory;
}

void gpu_word_free(_Atomic uint64_t *word)
{
    CHECK(cuMemFreeHost((void *)(uintptr_t)word));
}

struct gpu_event *gpu_event_new(void)
{
    struct gpu_event *event = NULL;
    CHECK(cuEventCreate(&event, 0));
    return event;
}

void gpu_event_free(struct gpu_event *event)
{
    CHECK(cuEventDestroy_v2(event));
}

void gpu_event_record(struct gpu_event *event)
{
    CHECK(cuEventRecord(event, gpu.stream));
}

double gpu_event_us(struct gpu_event *begin, struct gpu_event *end)
{
    float ms = 0;
    CHECK(cuEventSynchronize(end));
    CHECK(cuEventElapsedTime(&ms, begin, end));
    return (double)ms * 1000;
}
