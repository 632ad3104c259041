/* SPDX-License-Identifier: Apache-2.0 */
#include "test_ctl_proxy.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "raw.h"

#define FDS_MAX 16

struct packet {
    uint8_t bytes[RAW_PACKET_BYTES];
    ssize_t size;
    int fds[FDS_MAX];
    size_t fds_nr;
};

struct middle {
    const struct proxy *proxy;
    int client;
    int daemon;
    int first_buffer;    /* -1: not registered yet */
    unsigned seen_nr[2]; /* packets of client and daemon so far */
};

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    return address;
}

static void receive(int fd, struct packet *packet)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(packet->fds))];
    } control;
    struct iovec part = {packet->bytes, sizeof(packet->bytes)};
    struct msghdr header = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    packet->fds_nr = 0;
    packet->size = recvmsg(fd, &header, MSG_CMSG_CLOEXEC);
    for (struct cmsghdr *item = CMSG_FIRSTHDR(&header); packet->size > 0 && item; item = CMSG_NXTHDR(&header, item)) {
        if (item->cmsg_type == SCM_RIGHTS) {
            packet->fds_nr = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(packet->fds, CMSG_DATA(item), packet->fds_nr * sizeof(int));
        }
    }
}

static void forward(int fd, const struct packet *packet)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(packet->fds))];
    } control = {0};
    struct iovec part = {(void *)(uintptr_t)packet->bytes, (size_t)packet->size};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    if (packet->fds_nr > 0) {
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(packet->fds_nr * sizeof(int));
        struct cmsghdr *item = CMSG_FIRSTHDR(&header);
        item->cmsg_level = SOL_SOCKET;
        item->cmsg_type = SCM_RIGHTS;
        item->cmsg_len = CMSG_LEN(packet->fds_nr * sizeof(int));
        memcpy(CMSG_DATA(item), packet->fds, packet->fds_nr * sizeof(int));
    }
    sendmsg(fd, &header, MSG_NOSIGNAL); /* a side that has gone is seen by the next receive */
    for (size_t i = 0; i < packet->fds_nr; i++) {
        close(packet->fds[i]);
    }
}

static void corrupt(const struct middle *middle)
{
    size_t bytes = middle->proxy->offset + 1;
    if (middle->first_buffer < 0) {
        return;
    }
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, middle->first_buffer, 0);
    REQUIRE(memory != MAP_FAILED);
    memory[bytes - 1] ^= 1;
    munmap(memory, bytes);
}

/* What goes through a ring does not go through here. */
static void hide_rings(struct packet *packet)
{
    Mlacat__V1__Envelope *said = mlacat__v1__envelope__unpack(NULL, (size_t)packet->size, packet->bytes);
    REQUIRE(said != NULL);
    if (said->body_case == MLACAT__V1__ENVELOPE__BODY_WELCOME) {
        said->welcome->features &= ~(uint64_t)MLACAT__V1__FEATURE__FEATURE_RING;
        packet->size = (ssize_t)mlacat__v1__envelope__pack(said, packet->bytes);
    }
    mlacat__v1__envelope__free_unpacked(said, NULL);
}

/* False: that side has gone. */
static bool pass(struct middle *middle, bool from_daemon)
{
    static struct packet packet;
    receive(from_daemon ? middle->daemon : middle->client, &packet);
    if (packet.size <= 0) {
        return false;
    }
    if (middle->seen_nr[from_daemon]++ > 0 && middle->proxy->fault == PROXY_MUTE) {
        return true;
    }
    if (!from_daemon) {
        if (middle->first_buffer < 0 && packet.fds_nr > 0) {
            middle->first_buffer = dup(packet.fds[0]);
        }
        forward(middle->daemon, &packet);
        return true;
    }
    hide_rings(&packet);
    if (middle->proxy->fault == PROXY_CORRUPTS) {
        corrupt(middle);
    }
    forward(middle->client, &packet);
    return true;
}

static void refuse(int client)
{
    uint8_t bytes[256];
    Mlacat__V1__Status status = MLACAT__V1__STATUS__INIT;
    Mlacat__V1__Answer answer = MLACAT__V1__ANSWER__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    status.code = STATUS_PERMISSION_DENIED;
    status.scope = SCOPE_SESSION;
    status.message = (char *)(uintptr_t) "user 54321 may not use this service";
    answer.status = &status;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_ANSWER;
    envelope.answer = &answer;
    REQUIRE(mlacat__v1__envelope__get_packed_size(&envelope) <= sizeof(bytes));
    REQUIRE(send(client, bytes, mlacat__v1__envelope__pack(&envelope, bytes), MSG_NOSIGNAL) > 0);
}

static void serve(const struct proxy *proxy, int client)
{
    struct middle middle = {.proxy = proxy, .client = client, .first_buffer = -1};
    struct sockaddr_un address = address_of(proxy->target);
    middle.daemon = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    REQUIRE(connect(middle.daemon, (struct sockaddr *)&address, sizeof(address)) == 0, "%s", proxy->target);
    struct pollfd sides[2] = {{.fd = client, .events = POLLIN}, {.fd = middle.daemon, .events = POLLIN}};
    bool open = true;
    while (open) {
        REQUIRE(poll(sides, 2, -1) > 0);
        for (int i = 0; i < 2 && open; i++) {
            open = sides[i].revents == 0 || pass(&middle, i == 1);
        }
    }
    close(middle.daemon);
    if (middle.first_buffer >= 0) {
        close(middle.first_buffer);
    }
}

static void run_proxy(void *arg)
{
    const struct proxy *proxy = arg;
    struct sockaddr_un address = address_of(proxy->socket);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    REQUIRE(bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(listener, 8) == 0);
    child_ready();
    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        REQUIRE(client >= 0);
        if (proxy->fault == PROXY_REFUSES) {
            refuse(client);
        } else {
            serve(proxy, client);
        }
        close(client);
    }
}

void proxy_start(struct proxy *proxy, const struct server *server, enum proxy_fault fault, size_t offset)
{
    *proxy = (struct proxy){.fault = fault, .offset = offset, .target = server->socket};
    snprintf(proxy->socket, sizeof(proxy->socket), "%s/proxy", server->folder);
    child_start(&proxy->child, run_proxy, proxy);
    child_wait_ready(&proxy->child);
}

void proxy_stop(struct proxy *proxy)
{
    child_kill(&proxy->child);
    unlink(proxy->socket);
}
