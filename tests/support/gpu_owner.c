/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu_owner.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "require.h"

#define CONNECTIONS_MAX 128
#define MEMORIES_MAX 1024

/* ---------------------------------------------------------------------------------------------------- the askers' side
 */

int gpu_owner_listen(struct gpu_owner_address *address)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    address->address = (struct sockaddr_un){.sun_family = AF_UNIX};
    address->size = sizeof(address->address);
    /* Only the family: the kernel chooses a name that is in no file system. */
    REQUIRE(fd >= 0 && bind(fd, (struct sockaddr *)&address->address, sizeof(sa_family_t)) == 0);
    REQUIRE(listen(fd, CONNECTIONS_MAX) == 0);
    REQUIRE(getsockname(fd, (struct sockaddr *)&address->address, &address->size) == 0);
    return fd;
}

int gpu_owner_connect(const struct gpu_owner_address *address)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    REQUIRE(fd >= 0 && connect(fd, (const struct sockaddr *)&address->address, address->size) == 0);
    return fd;
}

bool gpu_owner_send(int fd, const struct gpu_owner_request *request, int memfd)
{
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)request, .iov_len = sizeof(*request)};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    if (memfd >= 0) {
        header.msg_control = control;
        header.msg_controllen = sizeof(control);
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cmsg), &memfd, sizeof(int));
    }
    return sendmsg(fd, &header, MSG_NOSIGNAL) == (ssize_t)sizeof(*request);
}

/* --------------------------------------------------------------------------------------------------- the owner's side
 */

struct memory {
    int connection; /* index into polled; 0: free */
    struct share share;
    uint8_t *copy;
    size_t bytes;
};

static struct memory memories[MEMORIES_MAX];
static struct pollfd polled[1 + CONNECTIONS_MAX]; /* the listener first */

static void forget(struct memory *memory)
{
    share_free(&memory->share);
    if (memory->copy) {
        munmap(memory->copy, memory->bytes);
    }
    memory->connection = 0;
}

/* Takes the descriptor. */
static void make(struct gpu_owner_reply *reply, const struct gpu_owner_request *request, int connection, int fd)
{
    uint32_t id = 0;
    while (id < MEMORIES_MAX && memories[id].connection != 0) {
        id++;
    }
    REQUIRE(fd >= 0 && id < MEMORIES_MAX);
    struct memory *memory = &memories[id];
    reply->good = share_try_alloc(&memory->share, request->size);
    if (!reply->good) {
        snprintf(reply->text, sizeof(reply->text), "the GPU has no %zu bytes left", request->size);
        close(fd);
        return;
    }
    memory->copy = NULL;
    memory->bytes = request->bytes;
    if (request->bytes > 0) {
        memory->copy = mmap(NULL, request->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        REQUIRE(memory->copy != MAP_FAILED);
    }
    close(fd);
    memory->connection = connection;
    reply->share = memory->share;
    reply->id = id;
}

static void use(struct gpu_owner_reply *reply, const struct gpu_owner_request *request)
{
    struct memory *memory = &memories[request->id];
    REQUIRE(request->id < MEMORIES_MAX);
    reply->good = memory->connection != 0;
    if (!reply->good) {
        return;
    }
    if (request->what == GPU_OWNER_FREE) {
        forget(memory);
    } else if (memory->copy && request->what == GPU_OWNER_UPLOAD) {
        share_write(&memory->share, 0, memory->copy, memory->bytes);
    } else if (memory->copy) {
        share_read(&memory->share, 0, memory->copy, memory->bytes);
    }
}

static void end_connection(int connection)
{
    for (int i = 0; i < MEMORIES_MAX; i++) {
        if (memories[i].connection == connection) {
            forget(&memories[i]);
        }
    }
    close(polled[connection].fd);
    polled[connection].fd = -1;
}

static void serve(int connection, const struct gpu_owner_reply *opened)
{
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(sizeof(int))];
    struct gpu_owner_request request;
    struct gpu_owner_reply reply = {.good = false};
    struct iovec iov = {.iov_base = &request, .iov_len = sizeof(request)};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    int memfd = -1;
    if (recvmsg(polled[connection].fd, &header, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(request)) {
        end_connection(connection);
        return;
    }
    if (header.msg_controllen > 0) {
        memcpy(&memfd, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof(memfd));
    }
    if (request.what == GPU_OWNER_OPEN) {
        reply = *opened;
    } else if (request.what == GPU_OWNER_MAKE) {
        make(&reply, &request, connection, memfd);
    } else {
        use(&reply, &request);
    }
    if (send(polled[connection].fd, &reply, sizeof(reply), MSG_NOSIGNAL) < 0) {
        end_connection(connection);
    }
}

static void accept_one(void)
{
    int fd = accept4(polled[0].fd, NULL, NULL, SOCK_CLOEXEC);
    for (int i = 1; fd >= 0 && i <= CONNECTIONS_MAX; i++) {
        if (polled[i].fd < 0) {
            polled[i] = (struct pollfd){.fd = fd, .events = POLLIN};
            return;
        }
    }
    REQUIRE(fd < 0, "more than %d processes want GPU memory", CONNECTIONS_MAX);
}

void gpu_owner_main(void *arg)
{
    struct gpu_owner_reply opened = {.good = false};
    polled[0] = (struct pollfd){.fd = *(int *)arg, .events = POLLIN};
    for (int i = 1; i <= CONNECTIONS_MAX; i++) {
        polled[i].fd = -1;
    }
    opened.good = share_open(opened.uuid, opened.text, sizeof(opened.text));
    for (;;) {
        REQUIRE(poll(polled, 1 + CONNECTIONS_MAX, -1) > 0);
        for (int i = 1; i <= CONNECTIONS_MAX; i++) {
            if (polled[i].fd >= 0 && polled[i].revents != 0) {
                serve(i, &opened);
            }
        }
        if (polled[0].revents != 0) {
            accept_one();
        }
    }
}
