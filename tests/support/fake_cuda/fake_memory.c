/* SPDX-License-Identifier: Apache-2.0 */
/* Allocations, what other processes exported, registered host memory, and what is known of an address. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_inside.h"

#define HANDLE_MAGIC UINT32_C(0xfa4ec0da)
/* Descriptors of allocations are above those that a process uses otherwise, so that handles come back as the true ones
 * do: a new allocation has the handle bytes of one that was freed. */
#define FIRST_FD 600
#define HOST_PAGE 4096

enum pointer_attribute {
    POINTER_CONTEXT = 1,
    POINTER_MEMORY_TYPE = 2,
    POINTER_IS_MANAGED = 8,
    POINTER_LEGACY_IPC = 10,
    POINTER_MAPPED = 13,
    POINTER_HANDLE_TYPES = 14,
    POINTER_MEMPOOL = 17
};

#define MEMORY_DEVICE 2 /* CUmemorytype */

/* What is in the 64 bytes. */
struct fake_handle {
    uint32_t magic;
    int32_t pid;
    int32_t fd;
    int32_t device;
    uint64_t bytes;
};
_Static_assert(sizeof(struct fake_handle) <= sizeof(struct cuda_ipc_handle), "it fits");

/* ---- ranges ---- */

struct fake_range *fake_range_add(enum fake_range_kind kind, cuda_address base, void *host, size_t bytes)
{
    struct fake_range *range = calloc(1, sizeof(*range));
    if (range) {
        range->kind = kind;
        range->base = base;
        range->host = host;
        range->bytes = bytes;
        range->fd = -1;
        range->device = fake_current ? fake_current->device : 0;
        range->buffer_id = ++fake.buffer_ids;
        range->next = fake.ranges;
        fake.ranges = range;
    }
    return range;
}

void fake_range_remove(struct fake_range *range)
{
    struct fake_range **link = &fake.ranges;
    while (*link != range) {
        link = &(*link)->next;
    }
    *link = range->next;
    free(range);
}

struct fake_range *fake_range_find(cuda_address address)
{
    for (struct fake_range *range = fake.ranges; range; range = range->next) {
        if (range->kind != RANGE_RESERVED && address >= range->base && address - range->base < range->bytes) {
            return range;
        }
    }
    return NULL;
}

/* Memory may go on in the next chunk of a reserved range. */
void *fake_reach(cuda_address address, size_t bytes)
{
    struct fake_range *range = fake_range_find(address);
    void *host = range ? (char *)range->host + (address - range->base) : NULL;
    while (range && (range->kind != RANGE_CHUNK || range->accessible)) {
        size_t left = range->bytes - (size_t)(address - range->base);
        if (bytes <= left) {
            return host;
        }
        address += left;
        bytes -= left;
        range = fake_range_find(address);
    }
    return NULL;
}

/* ---- closing ---- */

void fake_begin_close(const char *call)
{
    if (fake.behaviour.daemon && fake.streams) {
        if (fake.control_known && fake.control != gettid()) {
            fake_break("%s on another thread than the one that closed before: launches wait for it", call);
        }
        uint64_t now_ns = fake_now_ns();
        bool quiet = fake_streams_idle() && now_ns - fake.launched_ns >= FAKE_QUIET_NS;
        quiet |= now_ns - fake.busy_since_ns < FAKE_PACE_NS; /* the daemon may not have seen the first call yet */
        bool hasty = fake.control_known && !quiet && now_ns - fake.closed_ns < FAKE_PACE_NS;
        fake.hasty = hasty ? fake.hasty + 1 : 0;
        if (fake.hasty > FAKE_HASTE_MAX) {
            fake_break("%s less than 10 ms after the last of its kind, %u times in a row", call, fake.hasty);
        }
        fake.control_known = true;
        fake.control = gettid();
    }
    fake.closing++; /* as the true one does: it waits until nothing runs, and nobody launches meanwhile */
    while (!fake_streams_idle() && fake.sticky == 0) {
        pthread_cond_wait(&fake.moved, &fake.lock);
    }
}

void fake_end_close(void)
{
    fake.closing--;
    if (fake.behaviour.daemon) {
        fake.closed_ns = fake_now_ns();
    }
    pthread_cond_broadcast(&fake.moved);
}

/* ---- allocations ---- */

int fake_cuMemAlloc(cuda_address *address, size_t bytes)
{
    int result = fake_enter_context(CALL_cuMemAlloc);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (bytes == 0 || bytes > fake.behaviour.memory_bytes - fake.allocated_bytes) {
        return fake_leave(bytes == 0 ? CUDA_RESULT_INVALID_VALUE : CUDA_RESULT_OUT_OF_MEMORY);
    }
    int low = fake_make_file(bytes);
    int fd = low >= 0 ? fcntl(low, F_DUPFD_CLOEXEC, FIRST_FD) : -1;
    void *memory = fd >= 0 ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    struct fake_range *range = NULL;
    if (memory != MAP_FAILED) {
        range = fake_range_add(RANGE_ALLOCATION, (uintptr_t)memory, memory, bytes);
    }
    if (low >= 0) {
        close(low);
    }
    if (!range) {
        fake_break("no memory for an allocation of %zu bytes: %s", bytes, strerror(errno));
    }
    range->fd = fd;
    size_t file_bytes;
    fake_know_file(fd, &file_bytes, &range->block_id);
    fake.allocated_bytes += bytes;
    *address = range->base;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuMemFree(cuda_address address)
{
    int result = fake_enter_context(CALL_cuMemFree);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    struct fake_range *range = fake_range_find(address);
    if (!range || range->kind != RANGE_ALLOCATION || range->base != address) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    fake_begin_close("cuMemFree");
    munmap(range->host, range->bytes);
    close(range->fd);
    fake.allocated_bytes -= range->bytes;
    fake_range_remove(range);
    fake_end_close();
    return fake_leave(CUDA_RESULT_OK);
}

/* ---- memory of other processes ---- */

int fake_cuIpcGetMemHandle(struct cuda_ipc_handle *handle, cuda_address address)
{
    int result = fake_enter_context(CALL_cuIpcGetMemHandle);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    const struct fake_range *range = fake_range_find(address);
    if (!range || range->kind != RANGE_ALLOCATION) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    struct fake_handle inside = {.magic = HANDLE_MAGIC,
                                 .pid = getpid(),
                                 .fd = range->fd,
                                 .device = fake.behaviour.gpus[range->device],
                                 .bytes = range->bytes};
    memset(handle, 0, sizeof(*handle));
    memcpy(handle, &inside, sizeof(inside));
    return fake_leave(CUDA_RESULT_OK);
}

/* -1: this process does not see it. */
static int ordinal_of(int gpu)
{
    for (int i = 0; i < fake.behaviour.devices; i++) {
        if (fake.behaviour.gpus[i] == gpu) {
            return i;
        }
    }
    return -1;
}

/* -1 and a result: its process is gone, or its memory. */
static int open_exported(const struct fake_handle *inside, int *result)
{
    char path[64];
    size_t bytes = 0;
    uint64_t block_id;
    int fd = fake_open_file(inside->pid, inside->fd);
    if (fd >= 0 && fake_know_file(fd, &bytes, &block_id) && bytes == inside->bytes) {
        return fd;
    }
    if (fd >= 0) {
        close(fd);
    }
    snprintf(path, sizeof(path), "/proc/%d/fd", inside->pid);
    *result = access(path, R_OK) == 0 ? CUDA_RESULT_INVALID_HANDLE : RESULT_INVALID_CONTEXT;
    return -1;
}

static struct fake_range *find_opened(const struct cuda_ipc_handle *handle)
{
    for (struct fake_range *range = fake.ranges; range; range = range->next) {
        if (range->kind == RANGE_OPENED && memcmp(&range->handle, handle, sizeof(*handle)) == 0) {
            return range;
        }
    }
    return NULL;
}

static int open_handle(cuda_address *address, const struct cuda_ipc_handle *handle)
{
    struct fake_handle inside;
    int result = CUDA_RESULT_OK;
    size_t bytes;
    uint64_t block_id;
    memcpy(&inside, handle, sizeof(inside));
    if (inside.magic != HANDLE_MAGIC) {
        return CUDA_RESULT_INVALID_VALUE;
    }
    if (inside.pid == getpid() && !fake.behaviour.same_process) {
        return RESULT_INVALID_CONTEXT;
    }
    if (ordinal_of(inside.device) < 0) {
        return RESULT_INVALID_DEVICE;
    }
    int fd = open_exported(&inside, &result);
    struct fake_range *known = find_opened(handle);
    if (fd < 0) {
        return result;
    }
    fake_know_file(fd, &bytes, &block_id);
    if (known) {
        close(fd);
        if (known->block_id != block_id && fake.behaviour.already_mapped) {
            return CUDA_RESULT_ALREADY_MAPPED;
        }
        known->opens++;
        *address = known->base;
        return CUDA_RESULT_OK;
    }
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    struct fake_range *range =
        memory == MAP_FAILED ? NULL : fake_range_add(RANGE_OPENED, (uintptr_t)memory, memory, bytes);
    if (!range) {
        return CUDA_RESULT_OUT_OF_MEMORY;
    }
    range->handle = *handle;
    range->block_id = block_id;
    range->device = ordinal_of(inside.device);
    range->opens = 1;
    *address = range->base;
    return CUDA_RESULT_OK;
}

int fake_cuIpcOpenMemHandle(cuda_address *address, struct cuda_ipc_handle handle, unsigned int flags)
{
    int result = fake_enter_context(CALL_cuIpcOpenMemHandle);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    fake.ready = true; /* no client registers memory before */
    return fake_leave(flags == CUDA_IPC_LAZY_PEER_ACCESS ? open_handle(address, &handle) : CUDA_RESULT_INVALID_VALUE);
}

int fake_cuIpcCloseMemHandle(cuda_address address)
{
    int result = fake_enter_context(CALL_cuIpcCloseMemHandle);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    struct fake_range *range = fake_range_find(address);
    if (!range || range->kind != RANGE_OPENED || range->base != address) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    fake_begin_close("cuIpcCloseMemHandle");
    if (--range->opens == 0) {
        munmap(range->host, range->bytes);
        fake_range_remove(range);
    }
    fake_end_close();
    return fake_leave(CUDA_RESULT_OK);
}

/* ---- host memory ---- */

static struct fake_range *find_host(const void *memory)
{
    struct fake_range *range = fake_range_find((uintptr_t)memory + FAKE_HOST_OFFSET);
    return range && range->kind == RANGE_HOST ? range : NULL;
}

int fake_cuMemHostRegister(void *memory, size_t bytes, unsigned int flags)
{
    int result = fake_enter_context(CALL_cuMemHostRegister);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (bytes == 0 || (uintptr_t)memory % HOST_PAGE != 0 || !(flags & CUDA_HOST_REGISTER_DEVICE_MAP)) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    for (size_t at = 0; at < bytes; at += HOST_PAGE) {
        if (find_host((char *)memory + at)) {
            return fake_leave(RESULT_ALREADY_REGISTERED);
        }
    }
    bool added = fake_range_add(RANGE_HOST, (uintptr_t)memory + FAKE_HOST_OFFSET, memory, bytes) != NULL;
    return fake_leave(added ? CUDA_RESULT_OK : CUDA_RESULT_OUT_OF_MEMORY);
}

int fake_cuMemHostUnregister(void *memory)
{
    int result = fake_enter_context(CALL_cuMemHostUnregister);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    struct fake_range *range = find_host(memory);
    if (!range || range->host != memory) {
        return fake_leave(RESULT_NOT_REGISTERED);
    }
    fake_begin_close("cuMemHostUnregister");
    fake_range_remove(range);
    fake_end_close();
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuMemHostGetDevicePointer(cuda_address *address, void *memory, unsigned int flags)
{
    int result = fake_enter_context(CALL_cuMemHostGetDevicePointer);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (flags != 0 || !find_host(memory)) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    *address = (uintptr_t)memory + FAKE_HOST_OFFSET;
    return fake_leave(CUDA_RESULT_OK);
}

/* ---- what is known of an address ---- */

int fake_cuMemGetAddressRange(cuda_address *base, size_t *bytes, cuda_address address)
{
    int result = fake_enter_context(CALL_cuMemGetAddressRange);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    const struct fake_range *range = fake_range_find(address);
    if (!range || range->kind == RANGE_HOST) {
        return fake_leave(RESULT_NOT_FOUND);
    }
    *base = range->base;
    *bytes = range->bytes;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuPointerGetAttribute(void *value, int attribute, cuda_address address)
{
    int result = fake_enter(CALL_cuPointerGetAttribute);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    const struct fake_range *range = fake_range_find(address);
    if (!range || range->kind == RANGE_HOST) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    bool chunk = range->kind == RANGE_CHUNK;
    struct cuda_context *context = chunk ? NULL : &fake.contexts[range->device];
    switch (attribute) {
    case CUDA_POINTER_BUFFER_ID:
        memcpy(value, &range->buffer_id, sizeof(range->buffer_id));
        break;
    case CUDA_POINTER_MEMORY_BLOCK_ID:
        memcpy(value, &range->block_id, sizeof(range->block_id));
        break;
    case CUDA_POINTER_DEVICE_ORDINAL:
        *(int *)value = range->device;
        break;
    case POINTER_CONTEXT:
        memcpy(value, &context, sizeof(context));
        break;
    case POINTER_MEMORY_TYPE:
        *(unsigned *)value = MEMORY_DEVICE;
        break;
    case POINTER_MAPPED:
        *(unsigned *)value = 1;
        break;
    case POINTER_MEMPOOL:
        memset(value, 0, sizeof(void *));
        break;
    case POINTER_IS_MANAGED:
        *(unsigned *)value = 0;
        break;
    case POINTER_LEGACY_IPC:
        *(unsigned *)value = range->kind == RANGE_ALLOCATION;
        break;
    case POINTER_HANDLE_TYPES:
        *(unsigned long long *)value = chunk ? CUDA_HANDLE_POSIX_FD : 0;
        break;
    default:
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    return fake_leave(CUDA_RESULT_OK);
}
