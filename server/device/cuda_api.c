/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_api.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"

/* The major number is the ABI; the name without it belongs to development packages. */
#define DRIVER_LIBRARY "libcuda.so.1"
/* The form with five parameters, since 12.0; the older one of the same base name has four. */
#define FINDER "cuGetProcAddress_v2"

typedef int (*find_call)(const char *name, void **address, int abi, uint64_t flags, int *answer);

struct row {
    const char *name;
    int abi;
    bool required;
    size_t offset; /* of the pointer in struct cuda_api */
};

#define IS_REQUIRED true
#define IS_OPTIONAL false
#define CUDA_CALL(need, name, abi, parameters) {#name, abi, IS_##need, offsetof(struct cuda_api, name)},
static const struct row rows[] = {
#include "cuda_api.def"
};

static struct cuda_api api;
static bool loaded;

/* Read by the driver when it starts. More hardware connections: a stream's work does not queue behind another's. Eager:
 * a module that is loaded at its first launch would stop every stream then. */
static void set_environment(void)
{
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
}

static enum mlacat_status find_calls(void *library, struct error *err)
{
    find_call find;
    void *symbol = dlsym(library, FINDER);
    if (!symbol) {
        return error_set(err, MLACAT_UNAVAILABLE,
                         "the CUDA driver has no " FINDER ": it is older than 12.0; install a newer driver");
    }
    memcpy(&find, &symbol, sizeof(find));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        void *address = NULL;
        int answer = 0;
        int result = find(rows[i].name, &address, rows[i].abi, 0, &answer);
        if (result != CUDA_RESULT_OK || answer != 0) {
            address = NULL;
        }
        if (!address && rows[i].required) {
            return error_set(err, MLACAT_UNAVAILABLE,
                             "the CUDA driver has no %s of version %d: it is too old; install a newer driver",
                             rows[i].name, rows[i].abi);
        }
        memcpy((char *)&api + rows[i].offset, &address, sizeof(address));
    }
    return MLACAT_OK;
}

static const char *result_name(int result)
{
    const char *name = NULL;
    return api.cuGetErrorName(result, &name) == CUDA_RESULT_OK && name ? name : "an unknown error";
}

static enum mlacat_status start(struct error *err)
{
    int result = api.cuInit(0);
    if (result != CUDA_RESULT_OK) {
        return error_set(err, MLACAT_UNAVAILABLE, "the CUDA driver does not start: cuInit: %s (%d); see nvidia-smi",
                         result_name(result), result);
    }
    result = api.cuDriverGetVersion(&api.driver_version);
    if (result != CUDA_RESULT_OK || api.driver_version < CUDA_DRIVER_MINIMUM) {
        return error_set(err, MLACAT_UNAVAILABLE, "the CUDA driver is of version %d; %d or newer is needed",
                         api.driver_version, CUDA_DRIVER_MINIMUM);
    }
    return MLACAT_OK;
}

const struct cuda_api *cuda_api_get(struct error *err)
{
    if (loaded) {
        return &api;
    }
    set_environment();
    void *library = dlopen(DRIVER_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *reason = dlerror();
        error_set(err, MLACAT_UNAVAILABLE, "no CUDA driver: %s", reason ? reason : DRIVER_LIBRARY);
        return NULL;
    }
    if (find_calls(library, err) != MLACAT_OK || start(err) != MLACAT_OK) {
        dlclose(library); /* a driver that was installed meanwhile is found by the next try */
        return NULL;
    }
    loaded = true;
    log_info("cuda_driver", "version=%d.%d", api.driver_version / 1000, api.driver_version % 1000 / 10);
    return &api;
}
