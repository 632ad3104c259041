/* SPDX-License-Identifier: Apache-2.0 */
#include "handshake.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "timing.h"
#include "transport.h"

#define BACKLOG_RETRY_NS TIMING_MS

/* ---------------------------------------------------------------------------------------------------- packets */

/* True: ready for `events`. */
static bool poll_until(int fd, short events, int64_t deadline)
{
    struct pollfd item = {.fd = fd, .events = events};
    for (;;) {
        int64_t left_ns = deadline - timing_now();
        struct timespec left = timing_spec(left_ns > 0 ? left_ns : 0);
        int rc = ppoll(&item, 1, &left, NULL);
        if (rc >= 0 || errno != EINTR) {
            return rc != 0;
        }
    }
}

static enum mlacat_status send_packet(int socket, const uint8_t *packet, size_t size, const struct wire_fds *fds,
                                      int64_t deadline, struct error *err)
{
    for (;;) {
        if (transport_write(socket, packet, size, fds) >= 0) {
            return MLACAT_OK;
        }
        if (errno == EPIPE || errno == ECONNRESET) {
            return MLACAT_OK; /* the daemon may have said why before it closed: let the reader find that */
        }
        if (errno == EAGAIN && !poll_until(socket, POLLOUT, deadline)) {
            return error_set(err, MLACAT_DEADLINE_EXCEEDED, "the daemon does not take packets; is it stopped?");
        }
        if (errno != EAGAIN && errno != EINTR) {
            return error_set(err, MLACAT_UNAVAILABLE, "cannot send: %s", strerror(errno));
        }
    }
}

static enum mlacat_status receive_packet(int socket, uint8_t *packet, int64_t deadline, size_t *size,
                                         struct wire_fds *passed, struct error *err)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(WIRE_PACKET_FDS * sizeof(int))];
    } control;
    for (;;) {
        if (!poll_until(socket, POLLIN, deadline)) {
            return error_set(err, MLACAT_DEADLINE_EXCEEDED, "the daemon does not answer; is it stopped or overloaded?");
        }
        struct iovec part = {.iov_base = packet, .iov_len = WIRE_PACKET_BYTES};
        struct msghdr header = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
        ssize_t got = recvmsg(socket, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (got > 0) {
            wire_take_fds(&header, passed);
            *size = (size_t)got;
            return MLACAT_OK;
        }
        if (got == 0) {
            return error_set(err, MLACAT_UNAVAILABLE, "the daemon closed the connection without an answer");
        }
        /* ECONNRESET comes once, before what the daemon sent last. */
        if (errno != EINTR && errno != EAGAIN && errno != ECONNRESET) {
            return error_set(err, MLACAT_UNAVAILABLE, "cannot receive: %s", strerror(errno));
        }
    }
}

static enum handshake_answer judge(const message *got, size_t size, uint64_t id, int body, struct error *err)
{
    if (got == NULL) {
        error_set(err, MLACAT_UNAVAILABLE, "an answer of %zu bytes does not parse; is this the socket of mlacatd?",
                  size);
        return HANDSHAKE_LOST;
    }
    if (got->request_id == id) {
        return message_check(got, body, err) == MLACAT_OK ? HANDSHAKE_DONE : HANDSHAKE_REFUSED;
    }
    /* Number 0: the Answer that says why the daemon ends the connection. */
    message_status(got, err);
    if (got->request_id != 0 || err->code == MLACAT_OK) {
        error_set(err, MLACAT_UNAVAILABLE, "the daemon answered request %llu instead of %llu; is this mlacatd?",
                  (unsigned long long)got->request_id, (unsigned long long)id);
    }
    return HANDSHAKE_LOST;
}

enum handshake_answer handshake_exchange(int socket, message *request, const struct wire_fds *fds, int body,
                                         int64_t deadline, message **reply, struct wire_fds *passed, struct error *err)
{
    struct wire_fds came = {0};
    size_t size = mlacat__v1__envelope__get_packed_size(request);
    uint8_t *packet = malloc(WIRE_PACKET_BYTES);
    enum handshake_answer answer = HANDSHAKE_LOST;
    *reply = NULL;
    if (packet == NULL || size > WIRE_PACKET_BYTES) {
        free(packet);
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "no memory for a packet of %zu bytes", size);
        return HANDSHAKE_LOST;
    }
    mlacat__v1__envelope__pack(request, packet);
    if (send_packet(socket, packet, size, fds, deadline, err) == MLACAT_OK &&
        receive_packet(socket, packet, deadline, &size, &came, err) == MLACAT_OK) {
        message *got = message_unpack(packet, size);
        answer = judge(got, size, request->request_id, body, err);
        if (answer == HANDSHAKE_DONE) {
            *reply = got;
        } else {
            message_free(got);
        }
    }
    if (answer == HANDSHAKE_DONE && passed != NULL) {
        *passed = came;
    } else {
        wire_close_fds(&came);
    }
    free(packet);
    return answer;
}

/* ---------------------------------------------------------------------------------------------------- connecting */

static enum mlacat_status connect_error(const char *path, struct error *err)
{
    switch (errno) {
    case EACCES:
    case EPERM:
        return error_set(err, MLACAT_PERMISSION_DENIED,
                         "may not connect to %s: %s; join the group of the socket or ask the operator", path,
                         strerror(errno));
    case EAGAIN:
        return error_set(err, MLACAT_DEADLINE_EXCEEDED, "%s does not accept connections; is mlacatd stopped?", path);
    case EPROTOTYPE:
        return error_set(err, MLACAT_INVALID_ARGUMENT, "%s is a socket of another type; is this the one of mlacatd?",
                         path);
    default:
        return error_set(err, MLACAT_UNAVAILABLE,
                         "nobody listens at %s (%s); start mlacatd or name its socket (MLACAT_SOCKET)", path,
                         strerror(errno));
    }
}

static enum mlacat_status open_socket(const char *path, int64_t deadline, int *fd, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    error_copy_text(address.sun_path, sizeof(address.sun_path), path);
    /* Not blocking while it connects: a full backlog would block without a limit. */
    int made = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (made < 0) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "cannot make a socket: %s", strerror(errno));
    }
    while (connect(made, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        if (errno == EINTR) {
            continue;
        }
        if (errno != EAGAIN || timing_now() + BACKLOG_RETRY_NS > deadline) {
            connect_error(path, err);
            close(made);
            return err->code;
        }
        struct timespec pause = timing_spec(BACKLOG_RETRY_NS);
        nanosleep(&pause, NULL);
    }
    fcntl(made, F_SETFL, 0);
    *fd = made;
    return MLACAT_OK;
}

static void copy_welcome(const Mlacat__V1__Welcome *welcome, struct server *server)
{
    *server = (struct server){.features = welcome->features, .pidfd = -1};
    struct mlacat_server_info *info = &server->info;
    error_copy_text(info->version, sizeof(info->version), welcome->server_version);
    info->pid = welcome->server_pid;
    server->features = welcome->features;
    if (welcome->boot_id.len == sizeof(info->boot_id)) {
        memcpy(info->boot_id, welcome->boot_id.data, sizeof(info->boot_id));
    }
    if (welcome->limits != NULL) {
        info->max_streams = welcome->limits->streams;
        info->max_buffers = welcome->limits->buffers;
        info->max_mapped_bytes = welcome->limits->mapped_bytes;
        info->max_stream_calls = welcome->limits->stream_calls;
        info->max_calls = welcome->limits->calls;
        info->max_events = welcome->limits->events;
    }
    for (size_t i = 0; i < welcome->n_devices && i < CLIENT_DEVICES_MAX; i++) {
        const Mlacat__V1__Device *from = welcome->devices[i];
        struct mlacat_device_info *to = &server->devices[info->devices++];
        error_copy_text(to->uuid, sizeof(to->uuid), from->uuid);
        error_copy_text(to->kind, sizeof(to->kind), from->kind);
        error_copy_text(to->name, sizeof(to->name), from->name);
        error_copy_text(to->reason, sizeof(to->reason), from->reason);
        to->available = from->available != 0;
        to->workers = from->workers;
    }
}

static enum mlacat_status greet(int fd, const char *name, int64_t deadline, struct server *server, struct error *err)
{
    message request = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__Hello hello = MLACAT__V1__HELLO__INIT;
    request.body_case = MLACAT__V1__ENVELOPE__BODY_HELLO;
    request.hello = &hello;
    hello.protocol_version = WIRE_PROTOCOL_VERSION;
    hello.client_name = (char *)(uintptr_t)name;
    hello.client_version = (char *)(uintptr_t)mlacat_version();
    message *reply;
    struct wire_fds passed = {0};
    request.request_id = HANDSHAKE_HELLO_ID;
    if (handshake_exchange(fd, &request, NULL, MLACAT__V1__ENVELOPE__BODY_WELCOME, deadline, &reply, &passed, err) !=
        HANDSHAKE_DONE) {
        return err->code;
    }
    if (reply->welcome->protocol_version == WIRE_PROTOCOL_VERSION) {
        copy_welcome(reply->welcome, server);
        if (reply->welcome->has_pidfd && passed.nr > 0) {
            server->pidfd = passed.fd[--passed.nr];
        }
    } else {
        error_set(err, MLACAT_FAILED_PRECONDITION,
                  "the daemon speaks protocol version %u, this library %u; install the same version of both",
                  reply->welcome->protocol_version, WIRE_PROTOCOL_VERSION);
    }
    wire_close_fds(&passed);
    message_free(reply);
    return err->code;
}

enum mlacat_status handshake_connect(const char *path, const char *name, int64_t deadline, int *fd,
                                     struct server *server, struct error *err)
{
    *err = (struct error){0};
    if (open_socket(path, deadline, fd, err) != MLACAT_OK) {
        return err->code;
    }
    if (greet(*fd, name, deadline, server, err) != MLACAT_OK) {
        close(*fd);
        *fd = -1;
    }
    return err->code;
}
