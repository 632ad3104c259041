/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Host pages of the daemon's rings that the GPU writes words into. Each registration has a mapping of its own of the
 * same shared pages: whoever registered them may unmap theirs at once, while the driver lets go of them later, at the
 * pace that cuda_segments.h explains.
 *
 * Owns:     the registrations and their mappings.
 * Thread:   the device's control thread; cuda_pages_address: any.
 * Lifetime: init -> (register/release, tend)* -> fini.
 * Errors:   cuda_pages_register: AGAIN while too many wait to go; RESOURCE_EXHAUSTED without memory, or what the driver
 *           says.
 */
#ifndef MLACAT_DEVICE_CUDA_PAGES_H
#define MLACAT_DEVICE_CUDA_PAGES_H

#include <stddef.h>
#include <stdint.h>

#include "cuda_api.h"
#include "device.h"
#include "list.h"
#include "status.h"

/* Clients may come and go faster than the pace: with as many released registrations a new one waits for an old one. */
#define CUDA_PAGES_RELEASED_MAX 64

struct cuda_pages {
    struct device *device;
    struct list_node released; /* struct device_pages.link: to be unregistered */
    uint32_t released_nr;
};

void cuda_pages_init(struct cuda_pages *pages, struct device *device);
/* Unregisters what was released, without pace. Accepts a zeroed one. */
void cuda_pages_fini(struct cuda_pages *pages);

enum device_answer cuda_pages_register(struct cuda_pages *pages, void *address, size_t bytes,
                                       struct device_pages **made, struct error *err);
void cuda_pages_release(struct cuda_pages *pages, struct device_pages *released);

/* Unregisters at most one, if the pace allows. Returns as cuda_segments_tend. */
uint64_t cuda_pages_tend(struct cuda_pages *pages);

/* The GPU's address of a word in the caller's mapping of the pages. */
cuda_address cuda_pages_address(const struct device_pages *pages, const void *word);

#endif
