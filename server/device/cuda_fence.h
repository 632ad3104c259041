/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words in host memory that the GPU writes and a worker's CPU reads: how a stream learns of its progress without asking
 * the driver. Each stands on a line of its own in a page that the driver knows; pages are registered as streams need
 * them and unregistered only with the device, because unregistering stops launches. With each goes a word in the GPU's
 * memory, also on a line of its own, in which one launch of the stream tells another something.
 *
 * Owns:     the pages.
 * Thread:   the device's control thread; the word itself: the stream's worker.
 * Lifetime: init -> (take/give)* -> fini, with the GPU idle.
 * Errors:   cuda_fence_take: RESOURCE_EXHAUSTED without memory, or what the driver says.
 */
#ifndef MLACAT_DEVICE_CUDA_FENCE_H
#define MLACAT_DEVICE_CUDA_FENCE_H

#include <stdatomic.h>
#include <stdint.h>

#include "cuda_api.h"
#include "list.h"
#include "status.h"

#define CUDA_FENCE_LINE 128
#define CUDA_FENCE_PAGES_BYTES 65536
#define CUDA_FENCES_PER_SLAB (CUDA_FENCE_PAGES_BYTES / CUDA_FENCE_LINE)

struct device;

struct cuda_fence {
    struct list_node link; /* free */
    _Atomic uint64_t *word;
    cuda_address address; /* of the word, for the GPU */
    cuda_address ticket;  /* the other word: a concat_mla_ticket's; its numbers are those that `written` counts */
    uint64_t written;     /* the last value that the GPU was told to write: a stream goes on from there */
};

struct cuda_fences {
    struct device *device;
    struct list_node slabs;
    struct list_node free;
};

/* Registers the first pages: a stream's opening then costs nothing of the kind. */
enum mlacat_status cuda_fences_init(struct cuda_fences *fences, struct device *device, struct error *err);
/* Accepts a zeroed one. */
void cuda_fences_fini(struct cuda_fences *fences);

enum mlacat_status cuda_fence_take(struct cuda_fences *fences, struct cuda_fence **fence, struct error *err);
/* The GPU has written all that it was told to, or never will. */
void cuda_fence_give(struct cuda_fences *fences, struct cuda_fence *fence);

#endif
