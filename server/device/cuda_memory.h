/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Client memory of the CUDA device: a part of an allocation of another process, opened by its IPC handle, or chunks of
 * cuMemCreate that came as descriptors, mapped one after the other into one range of addresses. Private to the device
 * layer and its tests.
 *
 * Owns:     one use of the allocation's segment; or the range with its mappings, never the descriptors.
 * Thread:   the device's control thread; cuda_memory_pin and cuda_memory_unpin: the workers.
 * Lifetime: cuda_memory_import -> cuda_memory_release.
 * Errors:   as mem_import of device.h.
 */
#ifndef MLACAT_DEVICE_CUDA_MEMORY_H
#define MLACAT_DEVICE_CUDA_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#include "cuda_device.h"
#include "device.h"

struct device_memory {
    cuda_address base;            /* of the buffer */
    struct cuda_segment *segment; /* NULL: chunks */
    cuda_address range;           /* chunks: what was reserved for them */
    uint64_t range_bytes;
    uint32_t mapped_nr; /* chunks that are mapped, from the start of the range */
    uint64_t chunk_bytes[];
};

/* Takes the fds of `request` in every outcome. */
enum mlacat_status cuda_memory_import(struct device *device, struct memory_request *request,
                                      struct device_memory **memory, struct memory_info *info, struct error *err);
/* Chunks are unmapped at once, which does not disturb launches; a segment is closed when it is due. */
void cuda_memory_release(struct device *device, struct device_memory *memory);

/* A call is going to use it; false: the client's process has freed it since. */
static inline bool cuda_memory_pin(struct device_memory *memory)
{
    return !memory->segment || cuda_segment_pin(memory->segment);
}

static inline void cuda_memory_unpin(struct device_memory *memory)
{
    if (memory->segment) {
        cuda_segment_unpin(memory->segment);
    }
}

#endif
