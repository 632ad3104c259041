/* SPDX-License-Identifier: Apache-2.0 */
/* Start, devices, primary contexts, modules and their functions. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fake_inside.h"

#define PUSHED_MAX 8
#define CAPTURE_RELAXED 2 /* the last of CUstreamCaptureMode */

static bool is_device(int device)
{
    return device >= 0 && device < fake.behaviour.devices;
}

int fake_cuInit(unsigned int flags)
{
    int result = fake_enter(CALL_cuInit);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (flags != 0) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    if (fake.behaviour.devices == 0) {
        return fake_leave(CUDA_RESULT_NO_DEVICE);
    }
    fake.initialized = true;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuGetErrorName(int result, const char **name)
{
    static _Thread_local char text[32];
    int entered = fake_enter(CALL_cuGetErrorName);
    if (entered != CUDA_RESULT_OK) {
        return entered;
    }
    snprintf(text, sizeof(text), "FAKE_ERROR_%d", result);
    *name = text;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuDriverGetVersion(int *version)
{
    int result = fake_enter(CALL_cuDriverGetVersion);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    *version = fake.behaviour.driver;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuDeviceGetCount(int *devices_nr)
{
    int result = fake_enter(CALL_cuDeviceGetCount);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    *devices_nr = fake.behaviour.devices;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuDeviceGet(int *device, int ordinal)
{
    int result = fake_enter(CALL_cuDeviceGet);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_device(ordinal)) {
        return fake_leave(RESULT_INVALID_DEVICE);
    }
    *device = ordinal;
    return fake_leave(CUDA_RESULT_OK);
}

/* GPU-fafafafa-fafa-fafa-fafa-fafafafafaNN */
int fake_cuDeviceGetUuid(struct cuda_uuid *uuid, int device)
{
    int result = fake_enter(CALL_cuDeviceGetUuid);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_device(device)) {
        return fake_leave(RESULT_INVALID_DEVICE);
    }
    memset(uuid->bytes, 0xfa, sizeof(uuid->bytes));
    uuid->bytes[sizeof(uuid->bytes) - 1] = (unsigned char)fake.behaviour.gpus[device];
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuDeviceGetName(char *name, int name_bytes, int device)
{
    int result = fake_enter(CALL_cuDeviceGetName);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_device(device) || name_bytes <= 0) {
        return fake_leave(RESULT_INVALID_DEVICE);
    }
    snprintf(name, (size_t)name_bytes, "Fake GPU %d%s", fake.behaviour.gpus[device],
             fake.behaviour.mig ? " MIG 1g.10gb" : "");
    return fake_leave(CUDA_RESULT_OK);
}

/* A small GPU of compute capability 9.0. */
static int attribute_of(int attribute)
{
    static const int known[][2] = {
        {CUDA_DEVICE_MULTIPROCESSORS, 16},
        {CUDA_DEVICE_MEMORY_CLOCK_KHZ, FAKE_MEMORY_CLOCK_KHZ},
        {CUDA_DEVICE_MEMORY_BUS_BITS, FAKE_MEMORY_BUS_BITS},
        {CUDA_DEVICE_UNIFIED_ADDRESSING, 1},
        {CUDA_DEVICE_COMPUTE_MAJOR, 9},
        {CUDA_DEVICE_HOST_REGISTER, 1},
        {CUDA_DEVICE_VMM, 1},
        {CUDA_DEVICE_VMM_POSIX_FD, 1},
        {CUDA_DEVICE_STREAM_MEM_OPS_64, 1},
    };
    for (unsigned i = 0; i < fake.behaviour.attributes_nr; i++) {
        if (fake.behaviour.attributes[i][0] == attribute) {
            return fake.behaviour.attributes[i][1];
        }
    }
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (known[i][0] == attribute) {
            return known[i][1];
        }
    }
    return 0;
}

int fake_cuDeviceGetAttribute(int *value, int attribute, int device)
{
    int result = fake_enter(CALL_cuDeviceGetAttribute);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_device(device)) {
        return fake_leave(RESULT_INVALID_DEVICE);
    }
    *value = attribute_of(attribute);
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuDeviceTotalMem(size_t *bytes, int device)
{
    int result = fake_enter(CALL_cuDeviceTotalMem);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_device(device)) {
        return fake_leave(RESULT_INVALID_DEVICE);
    }
    *bytes = fake.behaviour.memory_bytes;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuMemGetInfo(size_t *free_bytes, size_t *all_bytes)
{
    int result = fake_enter_context(CALL_cuMemGetInfo);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    *all_bytes = fake.behaviour.memory_bytes;
    *free_bytes = fake.behaviour.memory_bytes - fake.allocated_bytes;
    return fake_leave(CUDA_RESULT_OK);
}

/* ---- contexts ---- */

int fake_cuDevicePrimaryCtxRetain(struct cuda_context **context, int device)
{
    int result = fake_enter(CALL_cuDevicePrimaryCtxRetain);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_device(device)) {
        return fake_leave(RESULT_INVALID_DEVICE);
    }
    fake.contexts[device].device = device;
    fake.contexts[device].retains++;
    *context = &fake.contexts[device];
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuDevicePrimaryCtxRelease(int device)
{
    int result = fake_enter(CALL_cuDevicePrimaryCtxRelease);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_device(device) || fake.contexts[device].retains == 0) {
        return fake_leave(RESULT_INVALID_CONTEXT);
    }
    fake.contexts[device].retains--;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuCtxSetCurrent(struct cuda_context *context)
{
    int result = fake_enter(CALL_cuCtxSetCurrent);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (context && context->retains == 0) {
        return fake_leave(RESULT_INVALID_CONTEXT);
    }
    fake_current = context;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuCtxGetCurrent(struct cuda_context **context)
{
    int result = fake_enter(CALL_cuCtxGetCurrent);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    *context = fake_current;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuCtxGetDevice(int *device)
{
    int result = fake_enter_context(CALL_cuCtxGetDevice);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    *device = fake_current->device;
    return fake_leave(CUDA_RESULT_OK);
}

/* What is below the current one. */
static _Thread_local struct cuda_context *pushed[PUSHED_MAX];
static _Thread_local unsigned pushed_nr;

int fake_cuCtxPushCurrent(struct cuda_context *context)
{
    int result = fake_enter(CALL_cuCtxPushCurrent);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!context || context->retains == 0 || pushed_nr == PUSHED_MAX) {
        return fake_leave(RESULT_INVALID_CONTEXT);
    }
    pushed[pushed_nr++] = fake_current;
    fake_current = context;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuCtxPopCurrent(struct cuda_context **context)
{
    int result = fake_enter(CALL_cuCtxPopCurrent);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!fake_current) {
        return fake_leave(RESULT_INVALID_CONTEXT);
    }
    if (context) {
        *context = fake_current;
    }
    fake_current = pushed_nr > 0 ? pushed[--pushed_nr] : NULL;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuDevicePrimaryCtxGetState(int device, unsigned int *flags, int *active)
{
    int result = fake_enter(CALL_cuDevicePrimaryCtxGetState);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_device(device)) {
        return fake_leave(RESULT_INVALID_DEVICE);
    }
    *flags = 0;
    *active = fake.contexts[device].retains > 0;
    return fake_leave(CUDA_RESULT_OK);
}

/* Nothing is captured here, so the mode is only kept. */
int fake_cuThreadExchangeStreamCaptureMode(int *mode)
{
    static _Thread_local int current;
    int result = fake_enter(CALL_cuThreadExchangeStreamCaptureMode);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (*mode < 0 || *mode > CAPTURE_RELAXED) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    int before = current;
    current = *mode;
    *mode = before;
    return fake_leave(CUDA_RESULT_OK);
}

/* ---- modules ---- */

static void check_not_ready(const char *what)
{
    if (fake.behaviour.daemon && fake.ready) {
        fake_break("%s after READY: it waits for running kernels, and every launch of the process for it", what);
    }
}

/* A cubin, PTX, or what the fake NVRTC makes. */
static bool is_image(const char *image)
{
    return strncmp(image, "\177ELF", 4) == 0 || strncmp(image, "//", 2) == 0 || strncmp(image, ".version", 8) == 0 ||
           strncmp(image, "--gpu", 5) == 0;
}

/* What PTX, or what the fake NVRTC makes, says that it is for; else what the device is. Only PTX ends with a NUL. */
static int arch_of(const char *image)
{
    static const char option[] = "--gpu-architecture=sm_";
    const char *name = NULL;
    if (strncmp(image, option, strlen(option)) == 0) {
        name = image + strlen(option) - 3;
    } else if (strncmp(image, "//", 2) == 0 || strncmp(image, ".version", 8) == 0) {
        name = strstr(image, "sm_");
    }
    int arch = 0;
    for (const char *at = name ? name + 3 : ""; *at >= '0' && *at <= '9'; at++) {
        arch = 10 * arch + (*at - '0');
    }
    return arch != 0 ? arch : attribute_of(CUDA_DEVICE_COMPUTE_MAJOR) * 10 + attribute_of(CUDA_DEVICE_COMPUTE_MINOR);
}

int fake_cuModuleLoadDataEx(struct cuda_module **module, const void *image, unsigned int options_nr, int *options,
                            void **values)
{
    int result = fake_enter_context(CALL_cuModuleLoadDataEx);
    (void)options_nr;
    (void)options;
    (void)values;
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    check_not_ready("cuModuleLoadDataEx");
    if (!is_image(image)) {
        return fake_leave(RESULT_INVALID_IMAGE);
    }
    *module = calloc(1, sizeof(**module));
    if (!*module) {
        return fake_leave(CUDA_RESULT_OUT_OF_MEMORY);
    }
    (*module)->arch = arch_of(image);
    fake.modules_nr++;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuModuleUnload(struct cuda_module *module)
{
    int result = fake_enter_context(CALL_cuModuleUnload);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (fake.streams) {
        check_not_ready("cuModuleUnload");
    }
    struct cuda_function *function = module->functions;
    while (function) {
        struct cuda_function *next = function->next;
        free(function);
        function = next;
    }
    free(module);
    fake.modules_nr--;
    return fake_leave(CUDA_RESULT_OK);
}

/* Is it in a program for the architecture? The gate and what goes behind it need 9.0. */
static bool has_kernel(const struct cuda_module *module, const struct cuda_function *function)
{
    bool newer = function->kind == KERNEL_GATE || function->kind == KERNEL_GATED || function->kind == KERNEL_TAIL;
    return !newer || module->arch >= 90;
}

/* The names of concat_mla.cu, and mlacat_spin. */
static bool parse_name(const char *name, struct cuda_function *function)
{
    static const struct {
        const char *name;
        enum fake_kernel kind;
    } whole[] = {{"mlacat_spin", KERNEL_SPIN},
                 {"concat_mla_many", KERNEL_MANY},
                 {"concat_mla_gate", KERNEL_GATE},
                 {"concat_mla_tail", KERNEL_TAIL}},
      suffix[] = {{"", KERNEL_PLAIN}, {"_signal", KERNEL_SIGNAL}, {"_gated", KERNEL_GATED}};
    static const char prefix[] = "concat_mla_";
    char *end;
    for (size_t i = 0; i < sizeof(whole) / sizeof(whole[0]); i++) {
        if (strcmp(name, whole[i].name) == 0) {
            function->kind = whole[i].kind;
            return true;
        }
    }
    if (strncmp(name, prefix, sizeof(prefix) - 1) != 0) {
        return false;
    }
    unsigned long vector = strtoul(name + sizeof(prefix) - 1, &end, 10);
    function->vector_bytes = (unsigned)vector;
    for (size_t i = 0; i < sizeof(suffix) / sizeof(suffix[0]); i++) {
        if (strcmp(end, suffix[i].name) == 0) {
            function->kind = suffix[i].kind;
            return vector >= 1 && vector <= 16 && (vector & (vector - 1)) == 0;
        }
    }
    return false;
}

int fake_cuModuleGetFunction(struct cuda_function **function, struct cuda_module *module, const char *name)
{
    struct cuda_function parsed = {0};
    int result = fake_enter_context(CALL_cuModuleGetFunction);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    struct cuda_function *made =
        parse_name(name, &parsed) && has_kernel(module, &parsed) ? malloc(sizeof(*made)) : NULL;
    if (!made) {
        return fake_leave(RESULT_NOT_FOUND);
    }
    *made = parsed;
    made->next = module->functions;
    module->functions = made;
    *function = made;
    return fake_leave(CUDA_RESULT_OK);
}
