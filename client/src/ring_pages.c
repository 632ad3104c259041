/* SPDX-License-Identifier: Apache-2.0 */
#include "ring_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define RINGS_MAX 65536u
#define ENTRIES_MAX (1u << 20)

/* Whether `nr` things of `bytes` each stand at `offset` within `all`. */
static bool fits(uint64_t offset, uint64_t nr, uint64_t bytes, uint64_t all)
{
    return offset % MLACAT_ABI_LINE == 0 && offset <= all && nr <= (all - offset) / bytes;
}

/* The counts are bounded first, so that the products fit. */
static bool makes_sense(const Mlacat__V1__RingsOpened *told)
{
    uint64_t entries = (uint64_t)told->rings * told->entries;
    return told->rings > 0 && told->rings <= RINGS_MAX && told->entries > 1 && told->entries <= ENTRIES_MAX &&
           (told->entries & (told->entries - 1)) == 0 && told->client_bytes <= PTRDIFF_MAX &&
           told->daemon_bytes <= PTRDIFF_MAX && told->client_stride >= sizeof(struct mlacat_ring_client) &&
           told->daemon_stride >= sizeof(struct mlacat_ring_daemon) && told->client_stride % MLACAT_ABI_LINE == 0 &&
           told->daemon_stride % MLACAT_ABI_LINE == 0 &&
           fits(0, told->rings, told->client_stride, told->client_bytes) &&
           fits(0, told->rings, told->daemon_stride, told->daemon_bytes) &&
           fits(told->submissions_offset, entries, sizeof(struct mlacat_ring_submission), told->client_bytes) &&
           fits(told->completions_offset, entries, sizeof(struct mlacat_ring_completion), told->daemon_bytes) &&
           fits(told->messages_offset, entries, MLACAT_ABI_MESSAGE_BYTES, told->daemon_bytes);
}

/* Whether the file has so many bytes, and keeps them: a look past its end would end the program with SIGBUS. */
static bool holds(int fd, uint64_t bytes)
{
    struct stat file;
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && fstat(fd, &file) == 0 && (uint64_t)file.st_size >= bytes;
}

static unsigned char *map(int fd, size_t bytes, int protection)
{
    void *at = mmap(NULL, bytes, protection, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        return NULL;
    }
    madvise(at, bytes, MADV_DONTFORK);
    return at;
}

static void unmap(struct ring_pages *pages)
{
    if (pages->client != NULL && pages->kept_bytes < pages->client_bytes) {
        munmap(pages->client + pages->kept_bytes, pages->client_bytes - pages->kept_bytes);
    }
    if (pages->daemon != NULL) {
        munmap(pages->daemon, pages->daemon_bytes);
    }
    free(pages);
}

enum mlacat_status ring_pages_map(const Mlacat__V1__RingsOpened *told, const struct wire_fds *fds,
                                  struct ring_pages **pages, struct error *err)
{
    *pages = NULL;
    if (fds->nr != 2 || !makes_sense(told)) {
        return error_set(err, MLACAT_INTERNAL,
                         "the daemon's rings make no sense (%u rings of %u entries, %u descriptors); install the same "
                         "version of both",
                         told->rings, told->entries, fds->nr);
    }
    if (!holds(fds->fd[0], told->client_bytes) || !holds(fds->fd[1], told->daemon_bytes)) {
        return error_set(
            err, MLACAT_INTERNAL,
            "the pages of the daemon's rings are shorter than the %llu and %llu bytes that it told, or not "
            "sealed; install the same version of both",
            (unsigned long long)told->client_bytes, (unsigned long long)told->daemon_bytes);
    }
    struct ring_pages *made = calloc(1, sizeof(*made));
    if (made == NULL) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "no memory for the rings of a connection");
    }
    *made = (struct ring_pages){.references = 1,
                                .client_bytes = told->client_bytes,
                                .daemon_bytes = told->daemon_bytes,
                                .rings = told->rings,
                                .entries = told->entries,
                                .client_stride = told->client_stride,
                                .daemon_stride = told->daemon_stride,
                                .submissions_offset = told->submissions_offset,
                                .completions_offset = told->completions_offset,
                                .messages_offset = told->messages_offset};
    made->client = map(fds->fd[0], made->client_bytes, PROT_READ | PROT_WRITE);
    made->daemon = map(fds->fd[1], made->daemon_bytes, PROT_READ);
    if (made->client == NULL || made->daemon == NULL) {
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "cannot map the rings of a connection (%zu and %zu bytes): %s",
                  made->client_bytes, made->daemon_bytes, strerror(errno));
        unmap(made);
        return err->code;
    }
    *pages = made;
    return MLACAT_OK;
}

struct ring_pages *ring_pages_get(struct ring_pages *pages)
{
    __atomic_add_fetch(&pages->references, 1, __ATOMIC_RELAXED);
    return pages;
}

void ring_pages_put(struct ring_pages *pages)
{
    if (pages != NULL && __atomic_sub_fetch(&pages->references, 1, __ATOMIC_ACQ_REL) == 0) {
        unmap(pages);
    }
}

struct mlacat_ring_client *ring_pages_client(const struct ring_pages *pages, uint32_t index)
{
    return (void *)(pages->client + (size_t)index * pages->client_stride);
}

const struct mlacat_ring_daemon *ring_pages_daemon(const struct ring_pages *pages, uint32_t index)
{
    return (const void *)(pages->daemon + (size_t)index * pages->daemon_stride);
}

/* Where the entries of ring `index` begin. */
static size_t entries_at(const struct ring_pages *pages, uint64_t offset, uint32_t index, size_t bytes)
{
    return (size_t)offset + (size_t)index * pages->entries * bytes;
}

struct mlacat_ring_submission *ring_pages_submissions(const struct ring_pages *pages, uint32_t index)
{
    return (void *)(pages->client +
                    entries_at(pages, pages->submissions_offset, index, sizeof(struct mlacat_ring_submission)));
}

const struct mlacat_ring_completion *ring_pages_completions(const struct ring_pages *pages, uint32_t index)
{
    return (const void *)(pages->daemon +
                          entries_at(pages, pages->completions_offset, index, sizeof(struct mlacat_ring_completion)));
}

const char *ring_pages_messages(const struct ring_pages *pages, uint32_t index)
{
    return (const char *)pages->daemon + entries_at(pages, pages->messages_offset, index, MLACAT_ABI_MESSAGE_BYTES);
}
