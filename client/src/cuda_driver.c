/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

#define DRIVER_LIBRARY "libcuda.so.1"

typedef int (*find_call)(const char *name, void **address, int abi, uint64_t flags, int *answer);

static const struct {
    const char *name;
    int abi;
    size_t offset;
} rows[] = {
#define CUDA_CALL(name, abi, parameters) {#name, abi, offsetof(struct cuda_driver, name)},
#include "cuda_driver.def"
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct cuda_driver table;
static _Atomic bool filled; /* after the table: whoever sees it set may read that */

static enum mlacat_status fill(void *library)
{
    find_call find;
    void *symbol = dlsym(library, "cuGetProcAddress_v2");
    if (symbol == NULL) {
        return error_fail(MLACAT_FAILED_PRECONDITION, "the CUDA driver is older than 12.0; install a newer one");
    }
    memcpy(&find, &symbol, sizeof(find));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        void *address = NULL;
        int answer = 0;
        if (find(rows[i].name, &address, rows[i].abi, 0, &answer) != 0 || answer != 0 || address == NULL) {
            return error_fail(MLACAT_FAILED_PRECONDITION,
                              "the CUDA driver has no %s of version %d; install a newer one", rows[i].name,
                              rows[i].abi);
        }
        memcpy((char *)&table + rows[i].offset, &address, sizeof(address));
    }
    filled = true;
    return MLACAT_OK;
}

enum mlacat_status cuda_driver(const struct cuda_driver **driver)
{
    enum mlacat_status status = MLACAT_OK;
    *driver = &table;
    if (atomic_load_explicit(&filled, memory_order_acquire)) {
        return MLACAT_OK;
    }
    pthread_mutex_lock(&lock);
    if (!filled) {
        /* Never unloaded: the process goes on using it. */
        void *library = dlopen(DRIVER_LIBRARY, RTLD_NOW | RTLD_NOLOAD);
        status = library == NULL ? error_fail(MLACAT_INVALID_ARGUMENT,
                                              "this process has not loaded the CUDA driver (" DRIVER_LIBRARY
                                              "), so this is nothing of a GPU; make it with CUDA first")
                                 : fill(library);
    }
    pthread_mutex_unlock(&lock);
    return status;
}

int cuda_driver_name_device(const struct cuda_driver *driver, int device, char uuid[CUDA_DEVICE_NAME_BYTES])
{
    unsigned char b[16];
    int result = driver->cuDeviceGetUuid(b, device);
    if (result == CUDA_RESULT_OK) {
        snprintf(uuid, CUDA_DEVICE_NAME_BYTES,
                 "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2], b[3],
                 b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
    }
    return result;
}
