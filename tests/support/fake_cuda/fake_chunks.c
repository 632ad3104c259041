/* SPDX-License-Identifier: Apache-2.0 */
/* Virtual memory management: chunks by descriptor, mapped into reserved ranges. A chunk is a memfd. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fake_inside.h"

#define FILE_NAME "fake-cuda"

/* The driver's handle of a chunk is its descriptor and a mark; mappings keep the memory, not the handle. */
#define ALLOCATION_MARK ((cuda_allocation)0xfa << 48)

int fake_make_file(size_t bytes)
{
    int fd = memfd_create(FILE_NAME, MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) != 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

bool fake_know_file(int fd, size_t *bytes, uint64_t *block_id)
{
    static const char name[] = "/memfd:" FILE_NAME;
    char path[64];
    char target[64];
    struct stat st;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, target, sizeof(target));
    if (length < (ssize_t)sizeof(name) - 1 || memcmp(target, name, sizeof(name) - 1) != 0 || fstat(fd, &st) != 0) {
        return false;
    }
    *bytes = (size_t)st.st_size;
    *block_id = st.st_ino;
    return true;
}

int fake_open_file(pid_t pid, int fd)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

/* Its descriptor; -1: it is none. */
static int fd_of(cuda_allocation allocation)
{
    int fd = (int)(allocation ^ ALLOCATION_MARK);
    size_t bytes;
    uint64_t block_id;
    return (allocation & ~(cuda_allocation)INT32_MAX) == ALLOCATION_MARK && fake_know_file(fd, &bytes, &block_id) ? fd
                                                                                                                  : -1;
}

static cuda_allocation make_allocation(int fd)
{
    fake.chunks_nr++;
    return ALLOCATION_MARK | (cuda_allocation)fd;
}

int fake_cuMemCreate(cuda_allocation *allocation, size_t bytes, const struct cuda_allocation_properties *properties,
                     unsigned long long flags)
{
    int result = fake_enter(CALL_cuMemCreate);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (bytes == 0 || bytes % FAKE_GRAIN != 0 || flags != 0 || properties->type != CUDA_ALLOCATION_PINNED ||
        properties->location.type != CUDA_LOCATION_DEVICE || properties->location.id != 0) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    int fd = fake_make_file(bytes);
    if (fd < 0) {
        return fake_leave(CUDA_RESULT_OUT_OF_MEMORY);
    }
    *allocation = make_allocation(fd);
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuMemRelease(cuda_allocation allocation)
{
    int result = fake_enter(CALL_cuMemRelease);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    int fd = fd_of(allocation);
    if (fd < 0) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    close(fd);
    fake.chunks_nr--;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuMemRetainAllocationHandle(cuda_allocation *allocation, void *address)
{
    int result = fake_enter(CALL_cuMemRetainAllocationHandle);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    const struct fake_range *range = fake_range_find((uintptr_t)address);
    int fd = range && range->kind == RANGE_CHUNK ? fcntl(range->fd, F_DUPFD_CLOEXEC, 0) : -1;
    if (fd < 0) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    *allocation = make_allocation(fd);
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuMemExportToShareableHandle(void *handle, cuda_allocation allocation, int handle_type,
                                      unsigned long long flags)
{
    int result = fake_enter(CALL_cuMemExportToShareableHandle);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    int fd = handle_type == CUDA_HANDLE_POSIX_FD && flags == 0 ? fd_of(allocation) : -1;
    int exported = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
    if (exported < 0) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    *(int *)handle = exported;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuMemImportFromShareableHandle(cuda_allocation *allocation, void *handle, int handle_type)
{
    int result = fake_enter(CALL_cuMemImportFromShareableHandle);
    size_t bytes;
    uint64_t block_id;
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    fake.ready = true; /* no client registers memory before */
    int fd = (int)(intptr_t)handle;
    if (handle_type != CUDA_HANDLE_POSIX_FD) {
        return fake_leave(RESULT_NOT_SUPPORTED);
    }
    int own = fake_know_file(fd, &bytes, &block_id) ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
    if (own < 0) {
        return fake_leave(RESULT_OPERATING_SYSTEM);
    }
    *allocation = make_allocation(own);
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuMemGetAllocationPropertiesFromHandle(struct cuda_allocation_properties *properties,
                                                cuda_allocation allocation)
{
    int result = fake_enter(CALL_cuMemGetAllocationPropertiesFromHandle);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (fd_of(allocation) < 0) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    *properties = (struct cuda_allocation_properties){.type = CUDA_ALLOCATION_PINNED,
                                                      .handle_types = CUDA_HANDLE_POSIX_FD,
                                                      .location = {.type = CUDA_LOCATION_DEVICE, .id = 0}};
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuMemGetAllocationGranularity(size_t *bytes, const struct cuda_allocation_properties *properties, int option)
{
    int result = fake_enter(CALL_cuMemGetAllocationGranularity);
    (void)option;
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (properties->type != CUDA_ALLOCATION_PINNED) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    *bytes = FAKE_GRAIN;
    return fake_leave(CUDA_RESULT_OK);
}

/* ---- ranges ---- */

static struct fake_range *find_reserved(cuda_address address, size_t bytes)
{
    for (struct fake_range *range = fake.ranges; range; range = range->next) {
        if (range->kind == RANGE_RESERVED && address >= range->base && bytes <= range->bytes &&
            address - range->base <= range->bytes - bytes) {
            return range;
        }
    }
    return NULL;
}

/* A chunk that is mapped somewhere in there. */
static struct fake_range *find_chunk(cuda_address address, size_t bytes)
{
    for (struct fake_range *range = fake.ranges; range; range = range->next) {
        if (range->kind == RANGE_CHUNK && range->base < address + bytes && address < range->base + range->bytes) {
            return range;
        }
    }
    return NULL;
}

int fake_cuMemAddressReserve(cuda_address *address, size_t bytes, size_t alignment, cuda_address wanted,
                             unsigned long long flags)
{
    int result = fake_enter(CALL_cuMemAddressReserve);
    (void)wanted;
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (bytes == 0 || bytes % FAKE_GRAIN != 0 || flags != 0 || alignment > FAKE_GRAIN) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    void *memory = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || !fake_range_add(RANGE_RESERVED, (uintptr_t)memory, memory, bytes)) {
        return fake_leave(CUDA_RESULT_OUT_OF_MEMORY);
    }
    *address = (uintptr_t)memory;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuMemAddressFree(cuda_address address, size_t bytes)
{
    int result = fake_enter(CALL_cuMemAddressFree);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    struct fake_range *range = find_reserved(address, bytes);
    if (!range || range->base != address || range->bytes != bytes || find_chunk(address, bytes)) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    munmap(range->host, bytes);
    fake_range_remove(range);
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuMemMap(cuda_address address, size_t bytes, size_t offset, cuda_allocation allocation,
                  unsigned long long flags)
{
    int result = fake_enter(CALL_cuMemMap);
    size_t file_bytes = 0;
    uint64_t block_id = 0;
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    int fd = fd_of(allocation);
    if (fd < 0 || !fake_know_file(fd, &file_bytes, &block_id) || offset != 0 || flags != 0 || bytes == 0 ||
        bytes % FAKE_GRAIN != 0 || bytes > file_bytes || !find_reserved(address, bytes) || find_chunk(address, bytes)) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    void *host = (void *)(uintptr_t)address;
    int kept = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    struct fake_range *range = kept >= 0 ? fake_range_add(RANGE_CHUNK, address, host, bytes) : NULL;
    if (!range || mmap(host, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        fake_break("no memory to map a chunk: %s", strerror(errno));
    }
    range->fd = kept;
    range->block_id = block_id;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuMemUnmap(cuda_address address, size_t bytes)
{
    int result = fake_enter(CALL_cuMemUnmap);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    struct fake_range *range = find_chunk(address, 1);
    if (!range || range->base != address || range->bytes != bytes) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    mmap(range->host, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    close(range->fd);
    fake_range_remove(range);
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuMemSetAccess(cuda_address address, size_t bytes, const struct cuda_access *access, size_t access_nr)
{
    int result = fake_enter(CALL_cuMemSetAccess);
    size_t found = 0;
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    for (struct fake_range *range = fake.ranges; range; range = range->next) {
        if (range->kind == RANGE_CHUNK && range->base >= address && range->base + range->bytes <= address + bytes) {
            found += range->bytes;
        }
    }
    if (found != bytes || access_nr != 1 || access->flags != CUDA_ACCESS_READ_WRITE ||
        access->location.type != CUDA_LOCATION_DEVICE) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    for (struct fake_range *range = fake.ranges; range; range = range->next) {
        if (range->kind == RANGE_CHUNK && range->base >= address && range->base + range->bytes <= address + bytes) {
            mprotect(range->host, range->bytes, PROT_READ | PROT_WRITE);
            range->accessible = true;
        }
    }
    return fake_leave(CUDA_RESULT_OK);
}
