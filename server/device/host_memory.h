/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Client memory of the host device: a mapped memfd. Private to the device layer and its tests.
 *
 * Owns:     the mapping; never the descriptor, which is closed once it is mapped.
 * Thread:   the device's control thread.
 * Lifetime: host_memory_import -> host_memory_release.
 * Errors:   as mem_import of device.h.
 */
#ifndef MLACAT_DEVICE_HOST_MEMORY_H
#define MLACAT_DEVICE_HOST_MEMORY_H

#include <stdint.h>

#include "device.h"

struct device_memory {
    unsigned char *base;
    uint64_t size_bytes;
};

/* Takes the fds of `request` in every outcome. */
enum mlacat_status host_memory_import(struct memory_request *request, struct device_memory **memory,
                                      struct memory_info *info, struct error *err);
void host_memory_release(struct device_memory *memory);

#endif
