/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_pages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "clock.h"
#include "cuda_device.h"

struct device_pages {
    struct list_node link;
    const unsigned char *callers; /* the caller's mapping: to tell words by, not to be touched */
    void *own;
    size_t bytes;
    cuda_address address; /* of `own`, for the GPU */
};

void cuda_pages_init(struct cuda_pages *pages, struct device *device)
{
    pages->device = device;
    list_init(&pages->released);
    pages->released_nr = 0;
}

static void unregister(struct device *device, struct device_pages *pages)
{
    int result = device->cuda->cuMemHostUnregister(pages->own);
    if (result != CUDA_RESULT_OK) {
        struct error err;
        cuda_device_fail(device, &err, result, "cuMemHostUnregister", "the pages of a client's rings");
    }
    munmap(pages->own, pages->bytes);
    free(pages);
}

void cuda_pages_fini(struct cuda_pages *pages)
{
    struct list_node *node;
    while (pages->device && (node = list_take(&pages->released))) {
        unregister(pages->device, LIST_ENTRY(node, struct device_pages, link));
    }
    pages->released_nr = 0;
}

static enum mlacat_status tell_driver(struct device *device, struct device_pages *pages, struct error *err)
{
    const struct cuda_api *cuda = device->cuda;
    int result =
        cuda->cuMemHostRegister(pages->own, pages->bytes, CUDA_HOST_REGISTER_PORTABLE | CUDA_HOST_REGISTER_DEVICE_MAP);
    if (result != CUDA_RESULT_OK) {
        return cuda_device_fail(device, err, result, "cuMemHostRegister", "the pages of a client's rings");
    }
    result = cuda->cuMemHostGetDevicePointer(&pages->address, pages->own, 0);
    if (result != CUDA_RESULT_OK) {
        cuda->cuMemHostUnregister(pages->own);
        return cuda_device_fail(device, err, result, "cuMemHostGetDevicePointer", "the pages of a client's rings");
    }
    return MLACAT_OK;
}

static void unregister_oldest(struct cuda_pages *pages)
{
    pages->released_nr--;
    unregister(pages->device, LIST_ENTRY(list_take(&pages->released), struct device_pages, link));
    pages->device->segments.closed_ns = clock_now_ns();
    pages->device->closed_pages = true;
}

/* For clients that come and go faster than the pace. */
static bool has_room(struct cuda_pages *pages)
{
    if (pages->released_nr >= CUDA_PAGES_RELEASED_MAX) {
        cuda_device_close_due(pages->device);
    }
    return pages->released_nr < CUDA_PAGES_RELEASED_MAX;
}

enum device_answer cuda_pages_register(struct cuda_pages *pages, void *address, size_t bytes,
                                       struct device_pages **made, struct error *err)
{
    if (!has_room(pages)) {
        error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                  "the pages of %u rings wait to be released, which takes 10 ms each: connect less often",
                  pages->released_nr);
        return DEVICE_AGAIN;
    }
    struct device_pages *fresh = malloc(sizeof(*fresh));
    /* An old size of 0 makes a second mapping of shared pages. */
    void *own = mremap(address, 0, bytes, MREMAP_MAYMOVE);
    if (!fresh || own == MAP_FAILED) {
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for the pages of a client's rings: %s",
                  strerror(errno));
        goto fail;
    }
    *fresh = (struct device_pages){.callers = address, .own = own, .bytes = bytes};
    if (tell_driver(pages->device, fresh, err) != MLACAT_OK) {
        goto fail;
    }
    *made = fresh;
    return DEVICE_OK;
fail:
    if (own != MAP_FAILED) {
        munmap(own, bytes);
    }
    free(fresh);
    return DEVICE_ERROR;
}

void cuda_pages_release(struct cuda_pages *pages, struct device_pages *released)
{
    list_append(&pages->released, &released->link);
    pages->released_nr++;
}

uint64_t cuda_pages_tend(struct cuda_pages *pages)
{
    if (list_empty(&pages->released)) {
        return UINT64_MAX;
    }
    uint64_t in_ns = cuda_segments_pace_left_ns(&pages->device->segments);
    if (in_ns != 0) {
        return in_ns;
    }
    unregister_oldest(pages);
    return list_empty(&pages->released) ? UINT64_MAX : CUDA_CLOSE_PACE_NS;
}

cuda_address cuda_pages_address(const struct device_pages *pages, const void *word)
{
    return pages->address + (cuda_address)((const unsigned char *)word - pages->callers);
}
