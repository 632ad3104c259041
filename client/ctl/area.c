/* SPDX-License-Identifier: Apache-2.0 */
#include "area.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static enum mlacat_status fail(struct area_device *device, enum mlacat_status status, const char *message)
{
    snprintf(device->error, sizeof(device->error), "%s", message);
    return status;
}

/* What the library's function gave. */
static enum mlacat_status told(struct area_device *device, enum mlacat_status status)
{
    return status == MLACAT_OK ? status : fail(device, status, mlacat_error_message());
}

const char *area_message(const struct area_device *device)
{
    return device->error;
}

enum mlacat_status area_find(struct area_device *device, struct mlacat_client *client, const char *uuid)
{
    struct mlacat_server_info server = {.size = sizeof(server)};
    enum mlacat_status status = mlacat_server_info(client, &server);

    *device = (struct area_device){.client = client};
    for (uint32_t i = 0; status == MLACAT_OK && i < server.devices; i++) {
        device->info = (struct mlacat_device_info){.size = sizeof(device->info)};
        status = mlacat_device_info(client, i, &device->info);
        if (status == MLACAT_OK && (uuid ? strcmp(device->info.uuid, uuid) == 0 : device->info.available != 0)) {
            device->on_gpu = strcmp(device->info.kind, "cuda") == 0;
            return MLACAT_OK;
        }
    }
    if (status != MLACAT_OK)
        return told(device, status);
    snprintf(device->error, sizeof(device->error), "the daemon has no %s%.63s; see mlacatctl info",
             uuid ? "device " : "available device", uuid ? uuid : "");
    return uuid ? MLACAT_NOT_FOUND : MLACAT_UNAVAILABLE;
}

enum mlacat_status area_open(struct area_device *device, struct mlacat_client *client, const char *uuid)
{
    enum mlacat_status status = area_find(device, client, uuid);

    if (status != MLACAT_OK)
        return status;
    if (device->on_gpu && !gpu_open(&device->gpu, device->info.uuid))
        return fail(device, MLACAT_FAILED_PRECONDITION, device->gpu.error);
    return MLACAT_OK;
}

void area_close(struct area_device *device)
{
    gpu_close(&device->gpu);
}

enum mlacat_status area_stream_open(struct area_device *device, enum mlacat_transport transport,
                                    struct mlacat_stream **stream)
{
    struct mlacat_stream_options options = {.size = sizeof(options), .transport = transport};

    return told(device, mlacat_stream_open_with(device->client, device->info.uuid, &options, stream));
}

static enum mlacat_status make_on_gpu(struct area_device *device, size_t bytes, struct area *area)
{
    if (!gpu_alloc(&device->gpu, bytes, &area->address))
        return fail(device, MLACAT_RESOURCE_EXHAUSTED, device->gpu.error);
    if (!gpu_fill(&device->gpu, area->address, 0, bytes))
        return fail(device, MLACAT_INTERNAL, device->gpu.error);
    area->data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area->data == MAP_FAILED) {
        area->data = NULL;
        return fail(device, MLACAT_RESOURCE_EXHAUSTED,
                    "no host memory for the copy of a GPU buffer; take smaller ones");
    }
    return area_register(device, area, bytes, &area->buffer);
}

enum mlacat_status area_new(struct area_device *device, size_t bytes, struct area *area)
{
    enum mlacat_status status;

    *area = (struct area){.bytes = bytes};
    if (device->on_gpu) {
        status = make_on_gpu(device, bytes, area);
    } else {
        status = area_register(device, area, bytes, &area->buffer);
        area->data = status == MLACAT_OK ? mlacat_buffer_data(area->buffer) : NULL;
    }
    if (status != MLACAT_OK)
        area_free(device, area);
    return status;
}

void area_free(struct area_device *device, struct area *area)
{
    mlacat_buffer_release(area->buffer);
    if (area->address != 0) {
        gpu_free(&device->gpu, area->address);
        if (area->data)
            munmap(area->data, area->bytes);
    }
    *area = (struct area){0};
}

enum mlacat_status area_register(struct area_device *device, const struct area *area, size_t bytes,
                                 struct mlacat_buffer **buffer)
{
    if (device->on_gpu)
        return told(device,
                    mlacat_buffer_register_ptr(device->client, (const void *)(uintptr_t)area->address, bytes, buffer));
    return told(device, mlacat_buffer_alloc(device->client, device->info.uuid, bytes, buffer));
}

enum mlacat_status area_upload(struct area_device *device, const struct area *area, size_t bytes)
{
    if (!device->on_gpu || gpu_upload(&device->gpu, area->address, area->data, bytes))
        return MLACAT_OK;
    return fail(device, MLACAT_INTERNAL, device->gpu.error);
}

enum mlacat_status area_download(struct area_device *device, const struct area *area, size_t bytes)
{
    if (!device->on_gpu || gpu_download(&device->gpu, area->data, area->address, bytes))
        return MLACAT_OK;
    return fail(device, MLACAT_INTERNAL, device->gpu.error);
}
