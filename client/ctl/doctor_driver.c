/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA driver, NVRTC and the GPUs. The driver's table is one of its own, apart from gpu.h's: it asks only what
 * every driver can answer, so that one that is too old can be told as that.
 */
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "doctor.h"
#include "measure.h"

#define DRIVER_LIBRARY "libcuda.so.1"
#define UUID_TEXT_BYTES 64
#define DRIVER_MINIMUM 12000  /* what mlacatd needs */
#define CAPABILITY_MINIMUM 75 /* of the kernels that are built in */

enum { ATTRIBUTE_MAJOR = 75, ATTRIBUTE_MINOR = 76, ATTRIBUTE_MPS = 133, RESULT_NO_DEVICE = 100 };

/* Name, ABI version, parameters; the symbol, where the finder of 12.0 is missing, is of the same version. */
#define DRIVER_CALLS(X)                                                                          \
    X(cuInit, cuInit, 2000, (unsigned flags))                                                    \
    X(cuDriverGetVersion, cuDriverGetVersion, 2020, (int *version))                              \
    X(cuGetErrorName, cuGetErrorName, 6000, (int result, const char **name))                     \
    X(cuDeviceGetCount, cuDeviceGetCount, 2000, (int *devices_nr))                               \
    X(cuDeviceGet, cuDeviceGet, 2000, (int *device, int ordinal))                                \
    X(cuDeviceGetUuid, cuDeviceGetUuid_v2, 11040, (unsigned char *uuid, int device))             \
    X(cuDeviceGetName, cuDeviceGetName, 2000, (char *name, int bytes_nr, int device))            \
    X(cuDeviceGetAttribute, cuDeviceGetAttribute, 2000, (int *value, int attribute, int device)) \
    X(cuDeviceTotalMem, cuDeviceTotalMem_v2, 3020, (size_t * bytes, int device))

struct driver {
#define MEMBER(name, symbol, abi, parameters) int(*name) parameters;
    DRIVER_CALLS(MEMBER)
};

typedef int (*find_call)(const char *name, void **address, int abi, uint64_t flags, int *answer);

static void *find(void *library, const char *name, const char *symbol, int abi)
{
    void *finder = dlsym(library, "cuGetProcAddress_v2");
    void *address = NULL;
    find_call call;
    int answer = 0;

    if (!finder)
        return dlsym(library, symbol);
    memcpy(&call, &finder, sizeof(call));
    return call(name, &address, abi, 0, &answer) == 0 && answer == 0 ? address : NULL;
}

/* The name of an entry point that it lacks, or NULL. */
static const char *fill(struct driver *driver, void *library)
{
    const char *missing = NULL;
    void *address;

#define FILL(name, symbol, abi, parameters)           \
    address = find(library, #name, #symbol, abi);     \
    memcpy(&driver->name, &address, sizeof(address)); \
    missing = missing || address ? missing : #name;
    DRIVER_CALLS(FILL)
#undef FILL
    return missing;
}

/* ----------------------------------------------------------------------------------------------------- the driver */

__attribute__((format(printf, 3, 4))) static void no_gpu(struct doctor *doctor, enum doctor_state state,
                                                         const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(doctor->no_gpu, sizeof(doctor->no_gpu), format, args);
    va_end(args);
    doctor_found(doctor, "driver", state, "%s", doctor->no_gpu);
}

/* The kernel's part of the driver is there, so this machine has GPUs. */
static bool has_kernel_driver(void)
{
    return access("/dev/nvidiactl", F_OK) == 0 || access("/proc/driver/nvidia/version", F_OK) == 0;
}

static void *load(struct doctor *doctor)
{
    void *library = dlopen(DRIVER_LIBRARY, RTLD_NOW | RTLD_LOCAL);

    if (library)
        return library;
    if (has_kernel_driver() || doctor->serves_gpu) {
        no_gpu(doctor, DOCTOR_FAIL, "there is an NVIDIA driver, but this process cannot load it: %s", dlerror());
        doctor_advise(doctor,
                      "put the folder of " DRIVER_LIBRARY " on the library path; in a container, let the NVIDIA "
                      "container toolkit mount it");
    } else {
        no_gpu(doctor, DOCTOR_SKIPPED, "no GPU here: %s", dlerror());
    }
    return NULL;
}

static void tell_start(struct doctor *doctor, const struct driver *driver, int result)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    const char *name = NULL;

    if (driver->cuGetErrorName(result, &name) != 0 || !name)
        name = "an unknown error";
    no_gpu(doctor, result == RESULT_NO_DEVICE && !doctor->serves_gpu ? DOCTOR_WARN : DOCTOR_FAIL,
           "the driver shows no GPU: cuInit: %s (%d)%s%.100s", name, result,
           visible ? "; CUDA_VISIBLE_DEVICES is " : "", visible ? visible : "");
    doctor_advise(doctor, "look at nvidia-smi%s", visible ? ", and at CUDA_VISIBLE_DEVICES" : " and the kernel's log");
}

/* True: started, and its table filled. */
static bool check_driver(struct doctor *doctor, struct driver *driver)
{
    void *library = load(doctor);
    const char *missing;
    int version = 0;
    int result;

    if (!library)
        return false;
    missing = fill(driver, library);
    if (driver->cuDriverGetVersion)
        driver->cuDriverGetVersion(&version);
    if (missing || version < DRIVER_MINIMUM) {
        no_gpu(doctor, DOCTOR_FAIL, "the driver is of CUDA %d.%d; mlacatd needs %d.%d or newer", version / 1000,
               version % 1000 / 10, DRIVER_MINIMUM / 1000, DRIVER_MINIMUM % 1000 / 10);
        doctor_advise(doctor, "install a newer NVIDIA driver%s%s", missing ? "; this one lacks " : "",
                      missing ? missing : "");
        return false;
    }
    result = driver->cuInit(0);
    if (result != 0) {
        tell_start(doctor, driver, result);
        return false;
    }
    doctor_found(doctor, "driver", DOCTOR_OK, DRIVER_LIBRARY " of CUDA %d.%d (at least %d.%d is needed)",
                 version / 1000, version % 1000 / 10, DRIVER_MINIMUM / 1000, DRIVER_MINIMUM % 1000 / 10);
    return true;
}

/* ----------------------------------------------------------------------------------------------------- NVRTC */

/* Where mlacatd looks, in its order. */
static void *load_nvrtc(const char **name)
{
    static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "/usr/local/cuda/lib64/libnvrtc.so.13",
                                        "/usr/local/cuda/lib64/libnvrtc.so.12"};
    void *library = NULL;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && !library; i++) {
        *name = names[i];
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    }
    return library;
}

static void check_nvrtc(struct doctor *doctor)
{
    const char *name = NULL;
    void *library = load_nvrtc(&name);
    void *symbol = library ? dlsym(library, "nvrtcVersion") : NULL;
    int (*get_version)(int *major, int *minor);
    int major = 0;
    int minor = 0;

    memcpy(&get_version, &symbol, sizeof(symbol));
    if (symbol && get_version(&major, &minor) == 0) {
        doctor_found(doctor, "nvrtc", DOCTOR_OK, "%s of CUDA %d.%d", name, major, minor);
    } else {
        doctor_found(doctor, "nvrtc", DOCTOR_WARN,
                     library ? "%s does not tell its version"
                             : "neither libnvrtc.so.13 nor libnvrtc.so.12 can be loaded (%s was the last try)",
                     name);
        doctor_advise(doctor, "install NVRTC (libnvrtc); without it mlacatd has the kernels of its cache, else those "
                              "that it was built with, if nvcc was there: the driver translates these, and large "
                              "stream-ordered calls then begin later");
    }
    if (library)
        dlclose(library);
}

/* ----------------------------------------------------------------------------------------------------- the GPUs */

static void format_uuid(const unsigned char b[16], char text[UUID_TEXT_BYTES])
{
    int at = snprintf(text, UUID_TEXT_BYTES, "GPU-");

    for (int i = 0; i < 16; i++)
        at += snprintf(text + at, (size_t)(UUID_TEXT_BYTES - at), "%s%02x",
                       i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", b[i]);
}

static void check_gpu(struct doctor *doctor, const struct driver *driver, int ordinal)
{
    unsigned char uuid[16] = {0};
    char text[UUID_TEXT_BYTES];
    char name[128] = "";
    char memory[32];
    size_t bytes = 0;
    int device = 0;
    int major = 0;
    int minor = 0;
    int mps = 0;

    if (driver->cuDeviceGet(&device, ordinal) != 0 || driver->cuDeviceGetUuid(uuid, device) != 0 ||
        driver->cuDeviceGetName(name, sizeof(name), device) != 0 || driver->cuDeviceTotalMem(&bytes, device) != 0 ||
        driver->cuDeviceGetAttribute(&major, ATTRIBUTE_MAJOR, device) != 0 ||
        driver->cuDeviceGetAttribute(&minor, ATTRIBUTE_MINOR, device) != 0) {
        doctor_found(doctor, "gpu", DOCTOR_FAIL, "GPU %d does not tell what it is", ordinal);
        doctor_advise(doctor, "look at nvidia-smi and the kernel's log");
        return;
    }
    if (driver->cuDeviceGetAttribute(&mps, ATTRIBUTE_MPS, device) == 0 && mps != 0)
        doctor->mps = true;
    format_uuid(uuid, text);
    measure_bytes_text((double)bytes, memory, sizeof(memory));
    doctor_found(doctor, "gpu", 10 * major + minor >= CAPABILITY_MINIMUM ? DOCTOR_OK : DOCTOR_FAIL,
                 "%s: %s, %s, compute capability %d.%d", text, name, memory, major, minor);
    if (10 * major + minor < CAPABILITY_MINIMUM)
        doctor_advise(doctor, "mlacatd needs a GPU of compute capability %d.%d or newer", CAPABILITY_MINIMUM / 10,
                      CAPABILITY_MINIMUM % 10);
}

void doctor_driver(struct doctor *doctor)
{
    struct driver driver = {0};
    int gpus_nr = 0;

    if (!check_driver(doctor, &driver)) {
        doctor_found(doctor, "nvrtc", DOCTOR_SKIPPED, "%s", doctor->no_gpu);
        doctor_found(doctor, "gpu", DOCTOR_SKIPPED, "%s", doctor->no_gpu);
        return;
    }
    check_nvrtc(doctor);
    if (driver.cuDeviceGetCount(&gpus_nr) != 0)
        gpus_nr = 0;
    for (int i = 0; i < gpus_nr; i++)
        check_gpu(doctor, &driver, i);
}
