/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An NVIDIA GPU as a device, through the driver's own interface. One context (the primary one) for all clients: the
 * driver lets memory of one process be open in one context of another only.
 *
 * What other processes can make wait, and for how long, decides this code more than speed does:
 *   - nothing that a client must do first is waited for on the GPU without a bound of ours: a pending wait holds a
 *     hardware connection, and when all are held every stream of the process stops. Only an armed call waits there, and
 *     gives up soon (`arm` of device.h);
 *   - closing, freeing and unregistering run on the control thread only, paced: they stop every launch while they wait
 *     for a running kernel;
 *   - modules are loaded, and each kernel launched once, before the device is open.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "clock.h"
#include "cuda_device.h"
#include "cuda_event.h"
#include "cuda_memory.h"
#include "cuda_stream.h"
#include "device.h"
#include "log.h"
#include "min_max.h"

/* For a GPU that does not tell its memory's speed. */
#define UNKNOWN_BYTES_PER_MS ((uint64_t)100 << 20)
/* What one multiprocessor reads and writes at best: MPS may give us few of them. */
#define MULTIPROCESSOR_BYTES_PER_MS ((uint64_t)40 << 20)
#define CHECK_NS UINT64_C(1000000000)

/* Which context is the calling thread's: asking the driver each time would cost more than the rest of a poll. */
static _Thread_local const struct device *entered;
static _Thread_local struct cuda_context *entered_context;

void cuda_device_enter(const struct device *device)
{
    if (entered != device || entered_context != device->context) {
        device->cuda->cuCtxSetCurrent(device->context);
        entered = device;
        entered_context = device->context;
    }
}

enum mlacat_status cuda_device_fail(struct device *device, struct error *err, int result, const char *call,
                                    const char *format, ...)
{
    char what[ERROR_MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    if (cuda_error_is_lost(result)) {
        atomic_store(&device->lost, true);
    }
    return cuda_error_set(err, result, call, "%s", what);
}

/* ------------------------------------------------------------------------------------------------------ which GPU */

static void format_uuid(const char *prefix, const struct cuda_uuid *uuid, char text[DEVICE_UUID_BYTES])
{
    const unsigned char *b = uuid->bytes;
    snprintf(text, DEVICE_UUID_BYTES, "%s-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", prefix,
             b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

static const char *after_prefix(const char *uuid)
{
    bool prefix = strncasecmp(uuid, "GPU-", 4) == 0 || strncasecmp(uuid, "MIG-", 4) == 0;
    return prefix ? uuid + 4 : uuid;
}

/* Whatever the prefix: the driver gives the UUID of a part of a GPU (MIG) too, but no prefix with it. */
static bool is_named(const struct device *device, const char *uuid)
{
    const char *name = after_prefix(uuid);
    return name[0] != '\0' && strncasecmp(after_prefix(device->uuid), name, strlen(name)) == 0;
}

/* Of a part of a GPU it is the GPU's name, " MIG ", and what part ("1g.10gb"). */
static void read_name(const struct device *device, char name[DEVICE_NAME_BYTES])
{
    if (device->cuda->cuDeviceGetName(name, DEVICE_NAME_BYTES, device->ordinal) != CUDA_RESULT_OK) {
        snprintf(name, DEVICE_NAME_BYTES, "NVIDIA GPU");
    }
    name[DEVICE_NAME_BYTES - 1] = '\0';
}

static enum mlacat_status read_uuid(struct device *device, struct error *err)
{
    struct cuda_uuid uuid;
    char name[DEVICE_NAME_BYTES];
    int result = device->cuda->cuDeviceGetUuid(&uuid, device->ordinal);
    if (result != CUDA_RESULT_OK) {
        return cuda_device_fail(device, err, result, "cuDeviceGetUuid", "CUDA device %d", device->ordinal);
    }
    read_name(device, name);
    format_uuid(strstr(name, " MIG ") ? "MIG" : "GPU", &uuid, device->uuid);
    return MLACAT_OK;
}

static enum mlacat_status look_at(struct device *device, int ordinal, struct error *err)
{
    int result = device->cuda->cuDeviceGet(&device->ordinal, ordinal);
    if (result != CUDA_RESULT_OK) {
        return cuda_device_fail(device, err, result, "cuDeviceGet", "CUDA device %d", ordinal);
    }
    return read_uuid(device, err);
}

void cuda_device_name(const struct device *device, int ordinal, char uuid[DEVICE_UUID_BYTES])
{
    struct device other = {.cuda = device->cuda};
    struct error err;
    if (look_at(&other, ordinal, &err) != MLACAT_OK) {
        snprintf(other.uuid, sizeof(other.uuid), "CUDA device %d", ordinal);
    }
    memcpy(uuid, other.uuid, DEVICE_UUID_BYTES);
}

static enum mlacat_status count_devices(struct device *device, int *devices_nr, struct error *err)
{
    int result = device->cuda->cuDeviceGetCount(devices_nr);
    if (result != CUDA_RESULT_OK || *devices_nr == 0) {
        return cuda_device_fail(device, err, result == CUDA_RESULT_OK ? CUDA_RESULT_NO_DEVICE : result,
                                "cuDeviceGetCount", "no GPU");
    }
    return MLACAT_OK;
}

uint32_t device_cuda_list(char (*uuids)[DEVICE_UUID_BYTES], uint32_t max, struct error *err)
{
    struct device device = {.cuda = cuda_api_get(err)};
    int devices_nr;
    uint32_t nr = 0;
    if (!device.cuda || count_devices(&device, &devices_nr, err) != MLACAT_OK) {
        return 0;
    }
    for (; nr < max && nr < (uint32_t)devices_nr; nr++) {
        if (look_at(&device, (int)nr, err) != MLACAT_OK) {
            return 0;
        }
        memcpy(uuids[nr], device.uuid, sizeof(uuids[nr]));
    }
    return nr;
}

/* `uuid` NULL or empty: the first one. */
static enum mlacat_status find_device(struct device *device, const char *uuid, struct error *err)
{
    int devices_nr;
    if (count_devices(device, &devices_nr, err) != MLACAT_OK) {
        return err->code;
    }
    for (int i = 0; i < devices_nr; i++) {
        if (look_at(device, i, err) != MLACAT_OK) {
            return err->code;
        }
        if (!uuid || uuid[0] == '\0' || is_named(device, uuid)) {
            return MLACAT_OK;
        }
    }
    return error_set(err, MLACAT_NOT_FOUND,
                     "no GPU \"%.63s\" among the %d that this process sees: see nvidia-smi -L and CUDA_VISIBLE_DEVICES",
                     uuid, devices_nr);
}

/* 0 for what the driver does not know. */
static uint64_t attribute(const struct device *device, enum cuda_device_attribute number)
{
    int value = 0;
    int result = device->cuda->cuDeviceGetAttribute(&value, (int)number, device->ordinal);
    return result == CUDA_RESULT_OK && value > 0 ? (uint64_t)value : 0;
}

static enum mlacat_status check_abilities(struct device *device, struct error *err)
{
    static const struct {
        enum cuda_device_attribute number;
        const char *what;
    } needed[] = {
        {CUDA_DEVICE_UNIFIED_ADDRESSING, "unified addressing"},
        {CUDA_DEVICE_HOST_REGISTER, "registered host memory"},
        {CUDA_DEVICE_STREAM_MEM_OPS_64, "stream memory operations of 64 bits"},
    };
    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
        if (attribute(device, needed[i].number) == 0) {
            return error_set(err, MLACAT_UNIMPLEMENTED, "%s has no %s, which the service needs", device->uuid,
                             needed[i].what);
        }
    }
    device->vmm = attribute(device, CUDA_DEVICE_VMM) && attribute(device, CUDA_DEVICE_VMM_POSIX_FD);
    return MLACAT_OK;
}

/* Two transfers a clock. Under MPS the driver tells how many multiprocessors this process may use. */
static uint64_t memory_bytes_per_ms(const struct device *device)
{
    uint64_t memory =
        attribute(device, CUDA_DEVICE_MEMORY_CLOCK_KHZ) * 2 * attribute(device, CUDA_DEVICE_MEMORY_BUS_BITS) / 8;
    uint64_t processors = attribute(device, CUDA_DEVICE_MULTIPROCESSORS) * MULTIPROCESSOR_BYTES_PER_MS;
    if (memory == 0) {
        memory = UNKNOWN_BYTES_PER_MS;
    }
    return processors != 0 && processors < memory ? processors : memory;
}

/* --------------------------------------------------------------------------------------------------- open, close */

static void cuda_close(struct device *device)
{
    if (device->context) {
        cuda_device_enter(device);
        cuda_pages_fini(&device->pages);
        cuda_segments_fini(&device->segments);
        cuda_fences_fini(&device->fences);
        if (device->wake != 0) {
            device->cuda->cuMemFree(device->wake);
        }
        cuda_kernels_close(&device->kernels, device);
        entered = NULL;
        device->cuda->cuCtxSetCurrent(NULL);
        device->cuda->cuDevicePrimaryCtxRelease(device->ordinal);
    }
    free(device);
}

static void describe(struct device *device, struct device_info *info)
{
    memset(info, 0, sizeof(*info));
    memcpy(info->uuid, device->uuid, sizeof(info->uuid));
    info->kind = device_cuda_ops.kind;
    read_name(device, info->name);
}

static void log_open(const struct device *device)
{
    size_t free_bytes = 0;
    size_t all_bytes = 0;
    device->cuda->cuMemGetInfo(&free_bytes, &all_bytes);
    log_info("cuda_device", "uuid=%s mps=%s bytes_per_ms=%" PRIu64 " free_mib=%zu of_mib=%zu vmm=%s context_ms=%.1f",
             device->uuid, device->mps ? "on" : "off", device->launch_bytes, free_bytes >> 20, all_bytes >> 20,
             device->vmm ? "yes" : "no", (double)device->context_ns / 1e6);
    if (!device->mps) {
        log_info("cuda_no_mps",
                 "uuid=%s note=\"each hand-over between a client's kernels and ours costs a context "
                 "switch of about 150 us: start nvidia-cuda-mps-control to avoid it\"",
                 device->uuid);
    }
}

/* Everything that needs the context. */
static enum mlacat_status start(struct device *device, struct error *err)
{
    cuda_device_enter(device);
    device->launch_bytes = memory_bytes_per_ms(device);
    device->mps = attribute(device, CUDA_DEVICE_MPS_ENABLED) != 0;
    cuda_pages_init(&device->pages, device);
    int result = device->cuda->cuMemAlloc(&device->wake, sizeof(uint64_t));
    if (result != CUDA_RESULT_OK) {
        device->wake = 0;
        return cuda_device_fail(device, err, result, "cuMemAlloc", "a word of the GPU's memory");
    }
    cuda_channels_init(&device->channels, device);
    if (cuda_fences_init(&device->fences, device, err) != MLACAT_OK ||
        cuda_segments_init(&device->segments, device, err) != MLACAT_OK) {
        return err->code;
    }
    return cuda_kernels_open(&device->kernels, device, err);
}

static enum mlacat_status find_and_check(struct device *device, const char *uuid, struct error *err)
{
    device->cuda = cuda_api_get(err);
    if (!device->cuda || find_device(device, uuid, err) != MLACAT_OK || check_abilities(device, err) != MLACAT_OK) {
        return err->code;
    }
    uint64_t begin_ns = clock_now_ns();
    int result = device->cuda->cuDevicePrimaryCtxRetain(&device->context, device->ordinal);
    device->context_ns = clock_now_ns() - begin_ns;
    if (result != CUDA_RESULT_OK) {
        device->context = NULL;
        return cuda_device_fail(device, err, result, "cuDevicePrimaryCtxRetain", "%s cannot be opened", device->uuid);
    }
    return MLACAT_OK;
}

static enum device_answer cuda_open(const char *uuid, struct device **device, struct device_info *info,
                                    struct error *err)
{
    struct device *made = calloc(1, sizeof(*made));
    if (!made) {
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "no memory for the CUDA device");
        return DEVICE_ERROR;
    }
    if (find_and_check(made, uuid, err) != MLACAT_OK) {
        bool lost = atomic_load(&made->lost);
        cuda_close(made);
        return lost ? DEVICE_ERROR : DEVICE_NODEV;
    }
    if (start(made, err) != MLACAT_OK) {
        cuda_close(made);
        return DEVICE_ERROR;
    }
    describe(made, info);
    log_open(made);
    *device = made;
    return DEVICE_OK;
}

/* Another process under MPS may have taken the context with it, or the GPU has gone. Without calls nothing else would
 * tell. The query of a stream that has no work asks the GPU for nothing. */
static uint64_t check_context(struct device *device, struct error *err)
{
    uint64_t now_ns = clock_now_ns();
    uint64_t since_ns = now_ns - device->checked_ns;
    if (since_ns < CHECK_NS) {
        return CHECK_NS - since_ns;
    }
    device->checked_ns = now_ns;
    int result = device->cuda->cuStreamQuery(NULL);
    if (cuda_error_is_lost(result)) {
        cuda_device_fail(device, err, result, "cuStreamQuery", "%s cannot be used any more", device->uuid);
    }
    return CHECK_NS;
}

/* They share one pace: who goes second finds the time used up. */
uint64_t cuda_device_close_due(struct device *device)
{
    bool memory_first = device->closed_pages;
    uint64_t first_ns = memory_first ? cuda_segments_tend(&device->segments) : cuda_pages_tend(&device->pages);
    uint64_t second_ns = memory_first ? cuda_pages_tend(&device->pages) : cuda_segments_tend(&device->segments);
    return min_u64(first_ns, second_ns);
}

static uint64_t cuda_tend(struct device *device, struct error *err)
{
    cuda_device_enter(device);
    uint64_t check_in_ns = check_context(device, err);
    return min_u64(check_in_ns, cuda_device_close_due(device));
}

static void mem_closed(const struct device *device, uint64_t *released, uint64_t *closed)
{
    *closed = atomic_load_explicit(&device->segments.closed, memory_order_relaxed);
    *released = atomic_load_explicit(&device->segments.released, memory_order_relaxed);
}

static enum device_answer pages_register(struct device *device, void *address, size_t bytes,
                                         struct device_pages **pages, struct error *err)
{
    cuda_device_enter(device);
    return cuda_pages_register(&device->pages, address, bytes, pages, err);
}

static void pages_release(struct device *device, struct device_pages *pages)
{
    cuda_pages_release(&device->pages, pages);
}

const struct device_ops device_cuda_ops = {
    .kind = "cuda",
    .import_holds_up = true,
    .open = cuda_open,
    .close = cuda_close,
    .mem_import = cuda_memory_import,
    .mem_release = cuda_memory_release,
    .mem_closed = mem_closed,
    .event_import = cuda_event_import,
    .event_release = cuda_event_release,
    .event_query = cuda_event_query,
    .tend = cuda_tend,
    .pages_register = pages_register,
    .pages_release = pages_release,
    .stream_open = cuda_stream_open,
    .stream_close = cuda_stream_close,
    .submit = cuda_stream_submit,
    .arm = cuda_stream_arm,
    .poll = cuda_stream_poll,
};
