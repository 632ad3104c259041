/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that mlacatctl and the service share, on any device. What the host sees of it is `data`: the memory itself on
 * the host device, on a GPU a copy that area_upload and area_download carry there and back.
 *
 * Owns:     struct area_device: the GPU of a CUDA device. struct area: its memory, its copy, its registration.
 * Thread:   one.
 * Lifetime: area_open -> area_new -> area_free -> area_close; the client outlives all of it.
 * Errors:   as libmlacat's; area_message says why, also when the driver failed (INTERNAL, or RESOURCE_EXHAUSTED: no
 *           memory, or FAILED_PRECONDITION: this process cannot use the GPU).
 */
#ifndef MLACAT_CTL_AREA_H
#define MLACAT_CTL_AREA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu.h"
#include "mlacat/mlacat.h"

struct area_device {
    struct mlacat_client *client;
    struct mlacat_device_info info;
    bool on_gpu;
    struct gpu gpu;
    char error[MLACAT_MESSAGE_BYTES + GPU_ERROR_BYTES];
};

struct area {
    struct mlacat_buffer *buffer;
    uint8_t *data;
    size_t bytes;
    gpu_address address; /* 0: on the host device */
};

/* Only says which device it is. `uuid` NULL: the first available one. */
enum mlacat_status area_find(struct area_device *device, struct mlacat_client *client, const char *uuid);
/* The same, and makes it usable. */
enum mlacat_status area_open(struct area_device *device, struct mlacat_client *client, const char *uuid);
/* A zeroed one is fine. */
void area_close(struct area_device *device);
/* Why the last function of the device failed. */
const char *area_message(const struct area_device *device);

/* A stream on the device. */
enum mlacat_status area_stream_open(struct area_device *device, enum mlacat_transport transport,
                                    struct mlacat_stream **stream);

/* Registered with the service, and zeroed. */
enum mlacat_status area_new(struct area_device *device, size_t bytes, struct area *area);
/* A zeroed one is fine. */
void area_free(struct area_device *device, struct area *area);

/*
 * One registration more of the device's memory: on a GPU of the area's, on the host device, where a registration brings
 * its memory, of memory of its own. The caller releases it.
 */
enum mlacat_status area_register(struct area_device *device, const struct area *area, size_t bytes,
                                 struct mlacat_buffer **buffer);

/* The first `bytes` of `data` to the device, and from there. Not while a call uses them. */
enum mlacat_status area_upload(struct area_device *device, const struct area *area, size_t bytes);
enum mlacat_status area_download(struct area_device *device, const struct area *area, size_t bytes);

#endif
