/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gpu_owner.h"
#include "require.h"

#define FDS_MAX 1024
#define SKIPPED 77
/* An allocation of its own for each memory: the driver puts small ones together, and a handle gives all of them. */
#define BLOCK_BYTES ((size_t)2 << 20)

struct entry {
    bool made;
    struct share share;
    uint32_t id; /* at the owner */
    size_t bytes;
    uint8_t *copy; /* with gpu_memory_own: the memfd, mapped */
};

static struct {
    struct child child;
    struct gpu_owner_address address;
    int fd;
    pid_t pid; /* of the process that the connection belongs to; 0: none */
    bool started;
    bool own;
    char uuid[SHARE_UUID_BYTES];
    struct entry entries[FDS_MAX];
} memory = {.fd = -1};

bool gpu_memory_used(void)
{
    const char *device = getenv("MLACAT_TEST_DEVICE");
    return device && strcmp(device, "cuda") == 0;
}

bool gpu_memory_is_fake(void)
{
    return getenv("MLACAT_FAKE_CUDA") != NULL;
}

static void leave_out(const char *reason)
{
    printf("SKIPPED: %s\n", reason);
    fflush(stdout);
    _exit(SKIPPED);
}

/* `fd` goes with the request if it is not negative. */
static struct gpu_owner_reply ask(const struct gpu_owner_request *request, int fd)
{
    struct gpu_owner_reply reply;
    if (memory.pid != getpid()) { /* a child has a connection of its own, and what it made goes with it */
        if (memory.fd >= 0) {
            close(memory.fd);
        }
        memory.fd = gpu_owner_connect(&memory.address);
        memory.pid = getpid();
    }
    REQUIRE(gpu_owner_send(memory.fd, request, fd), "the process that owns the GPU memory is gone");
    REQUIRE(recv(memory.fd, &reply, sizeof(reply), 0) == (ssize_t)sizeof(reply), "no answer from the memory's owner");
    return reply;
}

static void start(void)
{
    if (memory.started) {
        return;
    }
    memory.started = true;
    int listener = gpu_owner_listen(&memory.address);
    child_start(&memory.child, gpu_owner_main, &listener);
    close(listener);
    struct gpu_owner_reply reply = ask(&(struct gpu_owner_request){.what = GPU_OWNER_OPEN}, -1);
    if (!reply.good) {
        leave_out(reply.text);
    }
    snprintf(memory.uuid, sizeof(memory.uuid), "%s", reply.uuid);
}

const char *gpu_memory_device(void)
{
    start();
    return memory.uuid;
}

void gpu_memory_own(void)
{
    char reason[256];
    memory.started = memory.own = true;
    if (!share_open(memory.uuid, reason, sizeof(reason))) {
        leave_out(reason);
    }
}

static struct entry *find(int fd)
{
    return fd >= 0 && fd < FDS_MAX && memory.entries[fd].made ? &memory.entries[fd] : NULL;
}

const struct share *gpu_memory_find(int fd)
{
    const struct entry *entry = find(fd);
    return entry ? &entry->share : NULL;
}

void gpu_memory_make(int fd, size_t bytes)
{
    size_t size = (bytes + BLOCK_BYTES) / BLOCK_BYTES * BLOCK_BYTES; /* without bytes there is memory too */
    start();
    REQUIRE(fd >= 0 && fd < FDS_MAX, "descriptor %d", fd);
    gpu_memory_free(fd);
    struct entry *entry = &memory.entries[fd];
    *entry = (struct entry){.made = true, .bytes = bytes};
    if (memory.own) {
        share_alloc(&entry->share, size);
        entry->copy = bytes > 0 ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : NULL;
        REQUIRE(entry->copy != MAP_FAILED);
        return;
    }
    struct gpu_owner_request request = {.what = GPU_OWNER_MAKE, .size = size, .bytes = bytes};
    struct gpu_owner_reply reply = ask(&request, fd);
    REQUIRE(reply.good, "%s", reply.text);
    entry->share = reply.share;
    entry->id = reply.id;
}

static void tell(int fd, enum gpu_owner_what what)
{
    const struct entry *entry = find(fd);
    REQUIRE(entry != NULL, "no GPU memory goes with descriptor %d", fd);
    REQUIRE(ask(&(struct gpu_owner_request){.what = what, .id = entry->id}, -1).good);
}

void gpu_memory_free(int fd)
{
    struct entry *entry = find(fd);
    if (!entry) {
        return;
    }
    if (!memory.own) {
        tell(fd, GPU_OWNER_FREE);
    } else {
        share_free(&entry->share);
        if (entry->copy) {
            munmap(entry->copy, entry->bytes);
        }
    }
    entry->made = false;
}

void gpu_memory_upload(int fd)
{
    if (!gpu_memory_used()) {
        return;
    }
    if (memory.own) {
        const struct entry *entry = find(fd);
        REQUIRE(entry != NULL);
        share_write(&entry->share, 0, entry->copy, entry->bytes);
        return;
    }
    tell(fd, GPU_OWNER_UPLOAD);
}

void gpu_memory_download(int fd)
{
    if (!gpu_memory_used()) {
        return;
    }
    if (memory.own) {
        const struct entry *entry = find(fd);
        REQUIRE(entry != NULL);
        share_read(&entry->share, 0, entry->copy, entry->bytes);
        return;
    }
    tell(fd, GPU_OWNER_DOWNLOAD);
}
