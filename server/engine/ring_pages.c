/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ring.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1 */
#endif

static size_t whole_pages(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static uint32_t entries_for(uint32_t calls)
{
    uint32_t entries = 2;
    while (entries <= calls) {
        entries *= 2;
    }
    return entries;
}

static void lay_out(struct ring_pages *pages)
{
    size_t entries = (size_t)pages->rings * pages->entries;
    pages->client_words_bytes = whole_pages(pages->rings * sizeof(struct mlacat_ring_client));
    pages->daemon_words_bytes = whole_pages(pages->rings * sizeof(struct mlacat_ring_daemon));
    pages->submissions_offset = pages->client_words_bytes;
    pages->completions_offset = pages->daemon_words_bytes;
    pages->messages_offset = pages->completions_offset + entries * sizeof(struct mlacat_ring_completion);
    pages->client_bytes = whole_pages(pages->submissions_offset + entries * sizeof(struct mlacat_ring_submission));
    pages->daemon_bytes = whole_pages(pages->messages_offset + entries * MLACAT_ABI_MESSAGE_BYTES);
}

static enum mlacat_status fail(struct error *err, const char *call, size_t bytes)
{
    return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                     "the service has no %zu bytes for rings (%s: %s): lower max_streams or max_stream_calls, or go on "
                     "without a ring",
                     bytes, call, strerror(errno));
}

/* A file of the daemon's own, mapped for writing; `seals` come after that. */
static enum mlacat_status make(const char *name, size_t bytes, int seals, int *fd, unsigned char **address,
                               struct error *err)
{
    *fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (*fd < 0 || ftruncate(*fd, (off_t)bytes) != 0) {
        return fail(err, "memfd_create", bytes);
    }
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    if (mapped == MAP_FAILED) {
        return fail(err, "mmap", bytes);
    }
    *address = mapped;
    if (fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | seals) != 0) {
        return error_set(err, MLACAT_UNIMPLEMENTED,
                         "rings need a kernel of at least 5.1, which knows F_SEAL_FUTURE_WRITE: go on without a ring");
    }
    return MLACAT_OK;
}

enum mlacat_status ring_pages_new(uint32_t rings, uint32_t calls, struct ring_pages **pages, struct error *err)
{
    struct ring_pages *made = calloc(1, sizeof(*made));
    if (!made) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for rings: go on without a ring");
    }
    *made = (struct ring_pages){
        .client_fd = -1, .daemon_fd = -1, .rings = rings, .calls = calls, .entries = entries_for(calls)};
    lay_out(made);
    if (make("mlacat-ring-client", made->client_bytes, 0, &made->client_fd, &made->client, err) != MLACAT_OK ||
        make("mlacat-ring-daemon", made->daemon_bytes, F_SEAL_FUTURE_WRITE, &made->daemon_fd, &made->daemon, err) !=
            MLACAT_OK) {
        ring_pages_free(made);
        return err->code;
    }
    *pages = made;
    return MLACAT_OK;
}

void ring_pages_close_fds(struct ring_pages *pages)
{
    if (pages->client_fd >= 0) {
        close(pages->client_fd);
    }
    if (pages->daemon_fd >= 0) {
        close(pages->daemon_fd);
    }
    pages->client_fd = -1;
    pages->daemon_fd = -1;
}

void ring_pages_free(struct ring_pages *pages)
{
    ring_pages_close_fds(pages);
    if (pages->client) {
        munmap(pages->client, pages->client_bytes);
    }
    if (pages->daemon) {
        munmap(pages->daemon, pages->daemon_bytes);
    }
    free(pages);
}
