/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "closer.h"

/* What op_allocation.hi says of op_allocation.lo. */
enum { NAMED_BY_SEGMENT = 1, NAMED_BY_BLOCK, NAMED_BY_RANGE };

static enum mlacat_status no_memory(struct error *err)
{
    return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for another buffer");
}

/* The buffer [offset, offset + size) lies in `all` bytes. */
static enum mlacat_status check_extent(const struct memory_request *request, uint64_t all, struct error *err)
{
    uint64_t end;
    if (request->size_bytes == 0 || !checked_add_u64(request->offset_bytes, request->size_bytes, &end) || end > all) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "the buffer of %" PRIu64 " bytes at offset %" PRIu64 " is empty or ends past its allocation "
                         "of %" PRIu64 " bytes: correct size and offset",
                         request->size_bytes, request->offset_bytes, all);
    }
    return MLACAT_OK;
}

static enum mlacat_status check_limit(const struct memory_request *request, uint64_t bytes, struct error *err)
{
    if (bytes > request->limit_bytes) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                         "the buffer counts with %" PRIu64 " bytes; this client may map %" PRIu64
                         " more: release buffers or raise max_mapped",
                         bytes, request->limit_bytes);
    }
    return MLACAT_OK;
}

static void describe(struct memory_info *info, const struct memory_request *request, uint64_t kind, uint64_t name,
                     uint64_t charged_bytes)
{
    memset(info, 0, sizeof(*info));
    info->memory.allocation.hi = kind;
    info->memory.allocation.lo = name;
    info->memory.allocation_offset_bytes = request->offset_bytes;
    info->memory.size_bytes = request->size_bytes;
    info->charged_bytes = charged_bytes;
}

/* ------------------------------------------------------------------------------------------------- by IPC handle */

static enum mlacat_status import_handle(struct device *device, const struct memory_request *request,
                                        struct device_memory **memory, struct memory_info *info, struct error *err)
{
    struct cuda_ipc_handle handle;
    struct cuda_segment *segment;
    bool known;
    if (request->chunks_nr != 0) {
        return error_set(err, MLACAT_INVALID_ARGUMENT, "the buffer has an IPC handle and %" PRIu32 " descriptors",
                         request->chunks_nr);
    }
    if (check_extent(request, request->allocation_bytes, err) != MLACAT_OK ||
        check_limit(request, request->size_bytes, err) != MLACAT_OK) {
        return err->code;
    }
    struct device_memory *made = calloc(1, sizeof(*made));
    if (!made) {
        return no_memory(err);
    }
    memcpy(handle.bytes, request->handle, sizeof(handle.bytes));
    if (cuda_segments_get(&device->segments, &handle, request->buffer_id, &segment, &known, err) != MLACAT_OK) {
        free(made);
        return err->code;
    }
    /* The driver's word, not the client's, bounds what calls may touch. */
    if (segment->size_bytes < request->allocation_bytes) {
        error_set(err, MLACAT_INVALID_ARGUMENT,
                  "the allocation has %" PRIu64 " bytes, not %" PRIu64 ": give what cuMemGetAddressRange says",
                  segment->size_bytes, request->allocation_bytes);
        cuda_segments_put(&device->segments, segment);
        free(made);
        return err->code;
    }
    made->segment = segment;
    made->base = segment->base + request->offset_bytes;
    describe(info, request, NAMED_BY_SEGMENT, segment->serial, request->size_bytes);
    info->known = known;
    *memory = made;
    return MLACAT_OK;
}

/* ---------------------------------------------------------------------------------------------------- by chunks */

static void unmap(struct device *device, struct device_memory *memory)
{
    const struct cuda_api *cuda = device->cuda;
    struct error err;
    cuda_address at = memory->range;
    for (uint32_t i = 0; i < memory->mapped_nr; i++) {
        int result = cuda->cuMemUnmap(at, memory->chunk_bytes[i]);
        if (result != CUDA_RESULT_OK) {
            cuda_device_fail(device, &err, result, "cuMemUnmap", "a client's memory");
        }
        at += memory->chunk_bytes[i];
    }
    int result = cuda->cuMemAddressFree(memory->range, memory->range_bytes);
    if (result != CUDA_RESULT_OK) {
        cuda_device_fail(device, &err, result, "cuMemAddressFree", "a client's memory");
    }
}

static enum mlacat_status check_chunks(const struct memory_request *request, uint64_t *sum, struct error *err)
{
    *sum = 0;
    if (request->chunks_nr == 0 || request->chunks_nr > MEMORY_CHUNKS_MAX) {
        return error_set(err, MLACAT_INVALID_ARGUMENT, "the buffer has %" PRIu32 " chunks: give 1 to %d",
                         request->chunks_nr, MEMORY_CHUNKS_MAX);
    }
    for (uint32_t i = 0; i < request->chunks_nr; i++) {
        if (request->chunk_bytes[i] == 0 || !checked_add_u64(*sum, request->chunk_bytes[i], sum)) {
            return error_set(err, MLACAT_INVALID_ARGUMENT,
                             "chunk %" PRIu32 " of the buffer has %" PRIu64 " bytes, which is none or too much", i,
                             request->chunk_bytes[i]);
        }
    }
    if (check_extent(request, *sum, err) != MLACAT_OK) {
        return err->code;
    }
    return check_limit(request, *sum, err);
}

static void refuse_place(const struct device *device, const struct cuda_allocation_properties *properties,
                         uint32_t index, struct error *err)
{
    char place[DEVICE_UUID_BYTES];
    if (properties->location.type == CUDA_LOCATION_DEVICE) {
        cuda_device_name(device, properties->location.id, place);
    } else {
        snprintf(place, sizeof(place), "no GPU (location %d)", properties->location.type);
    }
    error_set(err, MLACAT_INVALID_ARGUMENT,
              "chunk %" PRIu32 " is memory of %s, not of %s: register it with the device that it is on", index, place,
              device->uuid);
}

/* Imports one chunk and maps it at `at`. The mapping keeps the memory, so the driver's handle goes at once. */
static enum mlacat_status map_chunk(struct device *device, int fd, cuda_address at, uint64_t bytes, uint32_t index,
                                    struct error *err)
{
    const struct cuda_api *cuda = device->cuda;
    cuda_allocation allocation = 0;
    int result = cuda->cuMemImportFromShareableHandle(&allocation, (void *)(intptr_t)fd, CUDA_HANDLE_POSIX_FD);
    if (result != CUDA_RESULT_OK) {
        return cuda_device_fail(device, err, result, "cuMemImportFromShareableHandle",
                                "the descriptor of chunk %" PRIu32, index);
    }
    struct cuda_allocation_properties properties = {0};
    result = cuda->cuMemGetAllocationPropertiesFromHandle(&properties, allocation);
    if (result != CUDA_RESULT_OK) {
        cuda_device_fail(device, err, result, "cuMemGetAllocationPropertiesFromHandle", "chunk %" PRIu32, index);
    } else if (properties.location.type != CUDA_LOCATION_DEVICE || properties.location.id != device->ordinal) {
        result = CUDA_RESULT_INVALID_VALUE;
        refuse_place(device, &properties, index, err);
    } else {
        result = cuda->cuMemMap(at, bytes, 0, allocation, 0);
        if (result == CUDA_RESULT_NOT_SUPPORTED) { /* what driver 580 says to more bytes than the chunk has */
            error_set(err, MLACAT_INVALID_ARGUMENT,
                      "chunk %" PRIu32 " has not %" PRIu64 " bytes: give what cuMemGetAddressRange says of it", index,
                      bytes);
        } else if (result != CUDA_RESULT_OK) {
            cuda_device_fail(device, err, result, "cuMemMap", "chunk %" PRIu32 " of %" PRIu64 " bytes", index, bytes);
        }
    }
    cuda->cuMemRelease(allocation);
    return result == CUDA_RESULT_OK ? MLACAT_OK : err->code;
}

/* Sizes must fit the driver's grain: a chunk in the middle would else end off it. */
static enum mlacat_status reserve(struct device *device, const struct memory_request *request,
                                  struct device_memory *memory, struct error *err)
{
    const struct cuda_allocation_properties properties = {
        .type = CUDA_ALLOCATION_PINNED, .location = {.type = CUDA_LOCATION_DEVICE, .id = device->ordinal}};
    size_t grain = 0;
    int result = device->cuda->cuMemGetAllocationGranularity(&grain, &properties, CUDA_GRANULARITY_MINIMUM);
    if (result != CUDA_RESULT_OK) {
        return cuda_device_fail(device, err, result, "cuMemGetAllocationGranularity", "the grain of chunks");
    }
    for (uint32_t i = 0; i < request->chunks_nr; i++) {
        if (grain == 0 || request->chunk_bytes[i] % grain != 0) {
            return error_set(err, MLACAT_INVALID_ARGUMENT,
                             "chunk %" PRIu32 " has %" PRIu64 " bytes, no multiple of %zu: give its whole size", i,
                             request->chunk_bytes[i], grain);
        }
    }
    result = device->cuda->cuMemAddressReserve(&memory->range, memory->range_bytes, grain, 0, 0);
    if (result != CUDA_RESULT_OK) {
        return cuda_device_fail(device, err, result, "cuMemAddressReserve", "%" PRIu64 " bytes", memory->range_bytes);
    }
    return MLACAT_OK;
}

static enum mlacat_status map_all(struct device *device, const struct memory_request *request,
                                  struct device_memory *memory, struct error *err)
{
    const struct cuda_access access = {.location = {.type = CUDA_LOCATION_DEVICE, .id = device->ordinal},
                                       .flags = CUDA_ACCESS_READ_WRITE};
    cuda_address at = memory->range;
    for (uint32_t i = 0; i < request->chunks_nr; i++) {
        if (map_chunk(device, request->fds[i], at, request->chunk_bytes[i], i, err) != MLACAT_OK) {
            return err->code;
        }
        memory->chunk_bytes[i] = request->chunk_bytes[i];
        memory->mapped_nr++;
        at += request->chunk_bytes[i];
    }
    int result = device->cuda->cuMemSetAccess(memory->range, memory->range_bytes, &access, 1);
    if (result != CUDA_RESULT_OK) {
        return cuda_device_fail(device, err, result, "cuMemSetAccess", "%" PRIu64 " bytes of chunks",
                                memory->range_bytes);
    }
    return MLACAT_OK;
}

/* Equal memory shall have an equal name, so that calls on overlapping parts of it are seen. A driver that names blocks
 * does that for us; else a range is taken for memory of its own. */
static void name_chunks(struct device *device, const struct memory_request *request, const struct device_memory *memory,
                        struct memory_info *info)
{
    unsigned long long block = 0;
    int result = device->cuda->cuPointerGetAttribute(&block, CUDA_POINTER_MEMORY_BLOCK_ID, memory->range);
    bool named = result == CUDA_RESULT_OK && block != 0;
    describe(info, request, named ? NAMED_BY_BLOCK : NAMED_BY_RANGE, named ? block : memory->range,
             memory->range_bytes);
}

static enum mlacat_status import_chunks(struct device *device, const struct memory_request *request,
                                        struct device_memory **memory, struct memory_info *info, struct error *err)
{
    uint64_t sum;
    if (!device->vmm) {
        return error_set(err, MLACAT_UNIMPLEMENTED, "%s takes no chunks by descriptor: use memory of cudaMalloc",
                         device->uuid);
    }
    if (check_chunks(request, &sum, err) != MLACAT_OK) {
        return err->code;
    }
    struct device_memory *made = calloc(1, sizeof(*made) + request->chunks_nr * sizeof(made->chunk_bytes[0]));
    if (!made) {
        return no_memory(err);
    }
    made->range_bytes = sum;
    if (reserve(device, request, made, err) != MLACAT_OK) {
        free(made);
        return err->code;
    }
    if (map_all(device, request, made, err) != MLACAT_OK) {
        unmap(device, made);
        free(made);
        return err->code;
    }
    made->base = made->range + request->offset_bytes;
    name_chunks(device, request, made, info);
    *memory = made;
    return MLACAT_OK;
}

/* ------------------------------------------------------------------------------------------------------ the slots */

enum mlacat_status cuda_memory_import(struct device *device, struct memory_request *request,
                                      struct device_memory **memory, struct memory_info *info, struct error *err)
{
    enum mlacat_status status;
    cuda_device_enter(device);
    if (request->kind == MEMORY_CUDA_IPC) {
        status = import_handle(device, request, memory, info, err);
    } else if (request->kind == MEMORY_CUDA_VMM) {
        status = import_chunks(device, request, memory, info, err);
    } else {
        status =
            error_set(err, MLACAT_INVALID_ARGUMENT,
                      "the buffer is a memfd; %s takes device memory: register it with the host device", device->uuid);
    }
    for (uint32_t i = 0; i < request->chunks_nr && i < MEMORY_CHUNKS_MAX; i++) {
        if (request->fds[i] >= 0) {
            closer_close(request->fds[i], request->user);
            request->fds[i] = -1;
        }
    }
    return status;
}

void cuda_memory_release(struct device *device, struct device_memory *memory)
{
    cuda_device_enter(device);
    if (memory->segment) {
        cuda_segments_put(&device->segments, memory->segment);
    } else {
        unmap(device, memory);
    }
    free(memory);
}
