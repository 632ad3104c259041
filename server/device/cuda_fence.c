/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_fence.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cuda_device.h"
#include "log.h"

struct slab {
    struct list_node link;
    unsigned char *pages;
    cuda_address tickets; /* in the GPU's memory */
    struct cuda_fence fences[CUDA_FENCES_PER_SLAB];
};

static enum mlacat_status register_pages(struct device *device, struct slab *slab, cuda_address *address,
                                         struct error *err)
{
    const struct cuda_api *cuda = device->cuda;
    int result = cuda->cuMemHostRegister(slab->pages, CUDA_FENCE_PAGES_BYTES,
                                         CUDA_HOST_REGISTER_PORTABLE | CUDA_HOST_REGISTER_DEVICE_MAP);
    if (result != CUDA_RESULT_OK) {
        return cuda_device_fail(device, err, result, "cuMemHostRegister", "the page of fence words");
    }
    result = cuda->cuMemHostGetDevicePointer(address, slab->pages, 0);
    if (result != CUDA_RESULT_OK) {
        cuda->cuMemHostUnregister(slab->pages);
        return cuda_device_fail(device, err, result, "cuMemHostGetDevicePointer", "the page of fence words");
    }
    return MLACAT_OK;
}

/* `address`: of the pages, as the GPU knows them. */
static enum mlacat_status open_slab(struct device *device, struct slab *slab, cuda_address *address, struct error *err)
{
    if (register_pages(device, slab, address, err) != MLACAT_OK) {
        return err->code;
    }
    int result = device->cuda->cuMemAlloc(&slab->tickets, CUDA_FENCE_PAGES_BYTES);
    if (result != CUDA_RESULT_OK) {
        device->cuda->cuMemHostUnregister(slab->pages);
        return cuda_device_fail(device, err, result, "cuMemAlloc", "words between launches");
    }
    return MLACAT_OK;
}

static enum mlacat_status add_slab(struct cuda_fences *fences, struct error *err)
{
    struct slab *slab = calloc(1, sizeof(*slab));
    if (!slab) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for another stream");
    }
    void *pages = mmap(NULL, CUDA_FENCE_PAGES_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        free(slab);
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for fence words: %s",
                         strerror(errno));
    }
    slab->pages = pages;
    cuda_address address = 0;
    if (open_slab(fences->device, slab, &address, err) != MLACAT_OK) {
        munmap(pages, CUDA_FENCE_PAGES_BYTES);
        free(slab);
        return err->code;
    }
    list_append(&fences->slabs, &slab->link);
    for (uint32_t i = 0; i < CUDA_FENCES_PER_SLAB; i++) {
        struct cuda_fence *fence = &slab->fences[i];
        fence->word = (_Atomic uint64_t *)(void *)(slab->pages + (size_t)i * CUDA_FENCE_LINE);
        fence->address = address + i * CUDA_FENCE_LINE;
        fence->ticket = slab->tickets + i * CUDA_FENCE_LINE;
        list_append(&fences->free, &fence->link);
    }
    return MLACAT_OK;
}

enum mlacat_status cuda_fences_init(struct cuda_fences *fences, struct device *device, struct error *err)
{
    fences->device = device;
    list_init(&fences->slabs);
    list_init(&fences->free);
    return add_slab(fences, err);
}

void cuda_fences_fini(struct cuda_fences *fences)
{
    struct list_node *node;
    while (fences->device && (node = list_take(&fences->slabs))) {
        struct slab *slab = LIST_ENTRY(node, struct slab, link);
        int result = fences->device->cuda->cuMemHostUnregister(slab->pages);
        if (result != CUDA_RESULT_OK) {
            struct error err;
            cuda_device_fail(fences->device, &err, result, "cuMemHostUnregister", "the page of fence words");
        }
        fences->device->cuda->cuMemFree(slab->tickets);
        munmap(slab->pages, CUDA_FENCE_PAGES_BYTES);
        free(slab);
    }
}

enum mlacat_status cuda_fence_take(struct cuda_fences *fences, struct cuda_fence **fence, struct error *err)
{
    if (list_empty(&fences->free) && add_slab(fences, err) != MLACAT_OK) {
        return err->code;
    }
    *fence = LIST_ENTRY(list_take(&fences->free), struct cuda_fence, link);
    return MLACAT_OK;
}

void cuda_fence_give(struct cuda_fences *fences, struct cuda_fence *fence)
{
    list_append(&fences->free, &fence->link);
}
