/* SPDX-License-Identifier: Apache-2.0 */
#include "host_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "closer.h"
#include "log.h"

/* <linux/magic.h> */
#define HUGETLBFS_MAGIC_NUMBER 0x958458f6

/* A kernel call that has no reason to fail did: logged raw here, told in words. */
static enum mlacat_status refuse_errno(const char *what, struct error *err)
{
    int code = errno;
    char text[128];
    const char *reason = strerror_r(code, text, sizeof(text));
    log_warning("host_import", "call=%s errno=%d", what, code);
    if (code == ENOMEM || code == EMFILE || code == ENFILE) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                         "the host device cannot map the buffer: %s: %s; release buffers or raise the system's limit",
                         what, reason);
    }
    return error_set(err, MLACAT_INTERNAL, "the host device cannot map the buffer: %s: %s", what, reason);
}

/* The file must stay as long as it is, and be writable by us: else a client could stop a worker with SIGBUS. */
static enum mlacat_status check_file(int fd, struct error *err)
{
    struct statfs fs;
    /* First: asking a stranger's file system anything else may block for as long as it likes. */
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "the buffer's descriptor is not a memfd: make one with memfd_create and MFD_ALLOW_SEALING");
    }
    if (fstatfs(fd, &fs) != 0) {
        return refuse_errno("fstatfs", err);
    }
    if ((unsigned long)fs.f_type == HUGETLBFS_MAGIC_NUMBER) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "the buffer is a memfd of huge pages, which the host device does not take: make it without "
                         "MFD_HUGETLB");
    }
    if (!(seals & F_SEAL_SHRINK)) {
        return error_set(err, MLACAT_FAILED_PRECONDITION,
                         "the buffer's memfd has seals 0x%x, without F_SEAL_SHRINK (0x%x): add it with F_ADD_SEALS, so "
                         "that the file cannot shrink while it is shared",
                         (unsigned)seals, (unsigned)F_SEAL_SHRINK);
    }
    if (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) {
        return error_set(err, MLACAT_FAILED_PRECONDITION,
                         "the buffer's memfd has seals 0x%x, which forbid writing: make one without F_SEAL_WRITE and "
                         "F_SEAL_FUTURE_WRITE",
                         (unsigned)seals);
    }
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) != O_RDWR) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "the buffer's descriptor has access mode %d, not O_RDWR (%d): pass the one that memfd_create "
                         "gave",
                         flags & O_ACCMODE, O_RDWR);
    }
    return MLACAT_OK;
}

static enum mlacat_status map_file(int fd, const struct memory_request *request, struct device_memory *memory,
                                   struct memory_info *info, struct error *err)
{
    enum mlacat_status status = check_file(fd, err);
    if (status != MLACAT_OK) {
        return status;
    }
    struct stat file; /* after the seal was seen: from then on the size only grows */
    if (fstat(fd, &file) != 0) {
        return refuse_errno("fstat", err);
    }
    uint64_t file_bytes = (uint64_t)file.st_size;
    if (request->size_bytes == 0 || request->size_bytes > file_bytes) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "the buffer has size %" PRIu64 " of a memfd of %" PRIu64 " bytes: give 1 to %" PRIu64,
                         request->size_bytes, file_bytes, file_bytes);
    }
    if (file_bytes > request->limit_bytes) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                         "the buffer's memfd has %" PRIu64 " bytes and counts in full; this client may map %" PRIu64
                         " more: release buffers or raise max_mapped",
                         file_bytes, request->limit_bytes);
    }
    void *base = mmap(NULL, request->size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        return refuse_errno("mmap", err);
    }
    if (madvise(base, request->size_bytes, MADV_DONTDUMP) != 0) { /* a core file must never hold tensor data */
        status = refuse_errno("madvise", err);
        munmap(base, request->size_bytes);
        return status;
    }
    memory->base = base;
    memory->size_bytes = request->size_bytes;
    info->memory.allocation.hi = (uint64_t)file.st_dev;
    info->memory.allocation.lo = (uint64_t)file.st_ino;
    info->memory.allocation_offset_bytes = 0;
    info->memory.size_bytes = request->size_bytes;
    info->charged_bytes = file_bytes;
    info->known = false;
    return MLACAT_OK;
}

static enum mlacat_status import(const struct memory_request *request, struct device_memory **memory,
                                 struct memory_info *info, struct error *err)
{
    if (request->kind != MEMORY_HOST) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "the buffer is memory of a CUDA device; the host device takes memfds: register it with the "
                         "device that it is on");
    }
    if (request->chunks_nr != 1) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "the buffer has %" PRIu32 " descriptors: the host device takes one memfd", request->chunks_nr);
    }
    struct device_memory *made = calloc(1, sizeof(*made));
    if (!made) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the daemon is out of memory: release buffers");
    }
    enum mlacat_status status = map_file(request->fds[0], request, made, info, err);
    if (status != MLACAT_OK) {
        free(made);
        return status;
    }
    *memory = made;
    return MLACAT_OK;
}

enum mlacat_status host_memory_import(struct memory_request *request, struct device_memory **memory,
                                      struct memory_info *info, struct error *err)
{
    enum mlacat_status status = import(request, memory, info, err);
    /* A mapping holds its file by itself. */
    for (uint32_t i = 0; i < request->chunks_nr && i < MEMORY_CHUNKS_MAX; i++) {
        if (request->fds[i] >= 0) {
            closer_close(request->fds[i], request->user);
            request->fds[i] = -1;
        }
    }
    return status;
}

void host_memory_release(struct device_memory *memory)
{
    if (munmap(memory->base, memory->size_bytes) != 0) {
        log_error("host_release", "call=munmap errno=%d", errno);
    }
    free(memory);
}
