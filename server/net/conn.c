/* SPDX-License-Identifier: Apache-2.0 */
#include "conn.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "closer.h"

/* A batch that takes longer is felt by other clients. */
#define COSTLY_NS 500000

/* Descriptors that the kernel takes in one packet (SCM_MAX_FD). */
#define KERNEL_PACKET_FDS 253

struct reader_slot {
    struct iovec iov;
    /* Room for all that can come: the kernel would close what does not fit within our recvmmsg, and the last close of
     * a stranger's descriptor may block. */
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(KERNEL_PACKET_FDS * sizeof(int))];
    uint8_t bytes[CONN_PACKET_BYTES];
};

struct conn_reader {
    struct mmsghdr headers[CONN_BATCH_PACKETS];
    struct reader_slot slots[CONN_BATCH_PACKETS];
};

struct queued_packet {
    struct list_node link;
    size_t size;
    uint32_t fds_nr;
    int fds[CONN_PACKET_FDS];
    uint8_t bytes[];
};

static void on_poll(uv_poll_t *poll, int status, int events);

/* recvmmsg overwrites these fields of each header that it fills. */
static void rearm_slot(struct conn_reader *reader, uint32_t index)
{
    struct msghdr *header = &reader->headers[index].msg_hdr;
    header->msg_control = reader->slots[index].control;
    header->msg_controllen = sizeof(reader->slots[index].control);
    header->msg_flags = 0;
}

struct conn_reader *conn_reader_new(void)
{
    struct conn_reader *reader = calloc(1, sizeof(*reader));
    if (reader == NULL) {
        return NULL;
    }
    for (uint32_t i = 0; i < CONN_BATCH_PACKETS; i++) {
        struct reader_slot *slot = &reader->slots[i];
        slot->iov = (struct iovec){.iov_base = slot->bytes, .iov_len = sizeof(slot->bytes)};
        reader->headers[i].msg_hdr.msg_iov = &slot->iov;
        reader->headers[i].msg_hdr.msg_iovlen = 1;
        rearm_slot(reader, i);
    }
    return reader;
}

void conn_reader_free(struct conn_reader *reader)
{
    free(reader);
}

/* Our own duplicates. */
static void close_fds(const int *fds, uint32_t fds_nr)
{
    for (uint32_t i = 0; i < fds_nr; i++) {
        close(fds[i]);
    }
}

/* What came with a packet and nobody took (-1: taken). */
static void close_received(const int *fds, uint32_t fds_nr, uint32_t user)
{
    for (uint32_t i = 0; i < fds_nr; i++) {
        if (fds[i] >= 0) {
            closer_close(fds[i], user);
        }
    }
}

/* What to wait for now. While nothing is read, the end of the peer still is of interest. */
static int wanted_events(const struct conn *conn)
{
    if (conn->state != CONN_OPEN) {
        return 0;
    }
    bool reads = !conn->paused && conn->queue_nr == 0;
    bool writes = conn->queue_nr > 0 || conn->wants_writable;
    return (reads ? UV_READABLE : UV_DISCONNECT) | (writes ? UV_WRITABLE : 0);
}

/* A change of the mask is a system call: only when it is one. */
static void update_events(struct conn *conn)
{
    int events = wanted_events(conn);
    if (conn->state == CONN_CLOSING || events == conn->events) {
        return;
    }
    conn->events = events;
    if (events == 0) {
        uv_poll_stop(&conn->poll);
    } else {
        uv_poll_start(&conn->poll, events, on_poll);
    }
}

static void drop_queue(struct conn *conn)
{
    struct list_node *node;
    while ((node = list_take(&conn->queue)) != NULL) {
        struct queued_packet *packet = LIST_ENTRY(node, struct queued_packet, link);
        close_fds(packet->fds, packet->fds_nr);
        free(packet);
    }
    conn->queue_nr = 0;
}

/* ---- end ---- */

static const struct error peer_gone; /* OK */

/* From the loop only. */
static void end_now(struct conn *conn, const struct error *why)
{
    assert(conn->state == CONN_OPEN || conn->state == CONN_ENDING);
    conn->state = CONN_ENDED;
    uv_timer_stop(&conn->end_timer);
    drop_queue(conn);
    update_events(conn);
    conn->handlers->on_end(conn->owner, why);
}

static void on_end_timer(uv_timer_t *timer)
{
    struct conn *conn = timer->data;
    end_now(conn, &conn->why);
}

/* From anywhere: conn->why is set. */
static void end_later(struct conn *conn)
{
    assert(conn->state == CONN_OPEN);
    conn->state = CONN_ENDING;
    drop_queue(conn);
    update_events(conn);
    uv_timer_start(&conn->end_timer, on_end_timer, 0, 0);
}

static bool is_peer_gone(int error)
{
    return error == EPIPE || error == ECONNRESET || error == ENOTCONN;
}

/* Fills `why` for an errno of the socket. */
static void explain(struct error *why, const char *what, int error)
{
    if (is_peer_gone(error)) {
        *why = peer_gone;
    } else if (error == ENOBUFS || error == ENOMEM || error == ETOOMANYREFS || error == EMFILE || error == ENFILE) {
        error_set_scoped(why, MLACAT_RESOURCE_EXHAUSTED, MLACAT_SCOPE_SESSION,
                         "%s: %s; the service's host is short of memory or descriptors", what, strerror(error));
    } else {
        error_set_scoped(why, MLACAT_INTERNAL, MLACAT_SCOPE_SESSION,
                         "%s: %s; connect again, and report it if it comes back", what, strerror(error));
    }
}

static void explain_send(struct error *why, size_t size, uint32_t fds_nr, int error)
{
    char what[96];
    snprintf(what, sizeof(what), "a packet of %zu bytes with %u descriptors could not be sent", size, (unsigned)fds_nr);
    explain(why, what, error);
}

/* ---- send ---- */

/* 0, or an errno; EAGAIN when the socket is full. */
static int send_packet(int fd, const uint8_t *bytes, size_t size, const int *fds, uint32_t fds_nr)
{
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(CONN_PACKET_FDS * sizeof(int))];
    struct iovec iov = {.iov_base = (void *)bytes, .iov_len = size}; /* only read */
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fds_nr > 0) {
        size_t fds_bytes = fds_nr * sizeof(int);
        header.msg_control = control;
        header.msg_controllen = CMSG_SPACE(fds_bytes);
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(fds_bytes);
        memcpy(CMSG_DATA(cmsg), fds, fds_bytes);
    }
    ssize_t sent;
    do {
        sent = sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent >= 0) {
        return 0;
    }
    return errno == EWOULDBLOCK ? EAGAIN : errno;
}

static void enqueue(struct conn *conn, const uint8_t *bytes, size_t size, const int *fds, uint32_t fds_nr)
{
    if (conn->queue_nr == CONN_QUEUE_PACKETS) {
        error_set_scoped(&conn->why, MLACAT_RESOURCE_EXHAUSTED, MLACAT_SCOPE_SESSION,
                         "%d packets wait for a client that does not read its socket: read replies while sending",
                         CONN_QUEUE_PACKETS);
        end_later(conn);
        return;
    }
    struct queued_packet *packet = malloc(sizeof(*packet) + size);
    if (packet == NULL) {
        explain_send(&conn->why, size, fds_nr, ENOMEM);
        end_later(conn);
        return;
    }
    packet->size = size;
    memcpy(packet->bytes, bytes, size);
    /* The caller may close its own at once. */
    for (packet->fds_nr = 0; packet->fds_nr < fds_nr; packet->fds_nr++) {
        int copy = fcntl(fds[packet->fds_nr], F_DUPFD_CLOEXEC, 0);
        if (copy < 0) {
            explain_send(&conn->why, size, fds_nr, errno);
            close_fds(packet->fds, packet->fds_nr);
            free(packet);
            end_later(conn);
            return;
        }
        packet->fds[packet->fds_nr] = copy;
    }
    list_append(&conn->queue, &packet->link);
    conn->queue_nr++;
    update_events(conn);
}

void conn_send(struct conn *conn, const uint8_t *bytes, size_t size, const int *fds, uint32_t fds_nr)
{
    assert(size >= 1 && size <= CONN_PACKET_BYTES && fds_nr <= CONN_PACKET_FDS);
    if (conn->state != CONN_OPEN) {
        /* The owner's last words: the socket may well take them, for what ended may be only our patience. */
        if (conn->state == CONN_ENDED) {
            (void)send_packet(conn->fd, bytes, size, fds, fds_nr);
        }
        return;
    }
    int error = conn->queue_nr > 0 ? EAGAIN : send_packet(conn->fd, bytes, size, fds, fds_nr);
    if (error == EAGAIN) {
        enqueue(conn, bytes, size, fds, fds_nr);
    } else if (error != 0) {
        explain_send(&conn->why, size, fds_nr, error);
        end_later(conn);
    }
}

bool conn_can_send(const struct conn *conn)
{
    return conn->queue_nr == 0 && !conn->wants_writable;
}

bool conn_try_send(struct conn *conn, const uint8_t *bytes, size_t size)
{
    assert(size >= 1 && size <= CONN_PACKET_BYTES);
    if (conn->state != CONN_OPEN) {
        return true;
    }
    int error = conn_can_send(conn) ? send_packet(conn->fd, bytes, size, NULL, 0) : EAGAIN;
    if (error == EAGAIN) {
        conn->wants_writable = true;
        update_events(conn);
        return false;
    }
    if (error != 0) {
        explain_send(&conn->why, size, 0, error);
        end_later(conn);
    }
    return true;
}

/* The socket takes packets again. */
static void flush_queue(struct conn *conn)
{
    while (conn->queue_nr > 0) {
        struct queued_packet *packet = LIST_ENTRY(conn->queue.next, struct queued_packet, link);
        int error = send_packet(conn->fd, packet->bytes, packet->size, packet->fds, packet->fds_nr);
        if (error == EAGAIN) {
            return;
        }
        if (error != 0) {
            explain_send(&conn->why, packet->size, packet->fds_nr, error);
            end_now(conn, &conn->why);
            return;
        }
        list_remove(&packet->link);
        conn->queue_nr--;
        close_fds(packet->fds, packet->fds_nr);
        free(packet);
    }
    conn->wants_writable = false;
    /* The mask is set after the handler: it may fill the socket again at once. */
    conn->handlers->on_writable(conn->owner);
    update_events(conn);
}

/* ---- receive ---- */

/* Takes the descriptors out of the control data. */
static uint32_t collect_fds(struct msghdr *header, int fds[KERNEL_PACKET_FDS])
{
    uint32_t fds_nr = 0;
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(header); cmsg != NULL; cmsg = CMSG_NXTHDR(header, cmsg)) {
        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
            continue; /* nothing else that the kernel sends unasked holds a descriptor */
        }
        size_t nr = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < nr && fds_nr < KERNEL_PACKET_FDS; i++) {
            memcpy(&fds[fds_nr++], CMSG_DATA(cmsg) + i * sizeof(int), sizeof(int));
        }
    }
    return fds_nr;
}

/* A packet that is too much, or that the kernel had to cut. */
static void explain_cut(struct error *why, const struct msghdr *header, size_t size, uint32_t fds_nr)
{
    if ((header->msg_flags & MSG_TRUNC) != 0) {
        error_set_scoped(why, MLACAT_INVALID_ARGUMENT, MLACAT_SCOPE_SESSION,
                         "a packet of %zu bytes: at most %d are taken, split it", size, CONN_PACKET_BYTES);
    } else if (fds_nr > CONN_PACKET_FDS) {
        error_set_scoped(why, MLACAT_INVALID_ARGUMENT, MLACAT_SCOPE_SESSION,
                         "a packet with more than %d descriptors: send fewer in one packet", CONN_PACKET_FDS);
    } else {
        error_set_scoped(why, MLACAT_RESOURCE_EXHAUSTED, MLACAT_SCOPE_SESSION,
                         "only %u of a packet's descriptors could be taken: the service has no more to give; raise its "
                         "limit of open files",
                         (unsigned)fds_nr);
    }
}

/* Hands out one received packet, or closes its descriptors when there is nobody to take it any more. */
static void deliver(struct conn *conn, struct mmsghdr *received, const uint8_t *bytes)
{
    struct msghdr *header = &received->msg_hdr;
    struct conn_packet packet;
    struct error why;
    int fds[KERNEL_PACKET_FDS];
    uint32_t fds_nr = collect_fds(header, fds);
    packet.bytes = bytes;
    packet.size = received->msg_len;
    if (conn->state != CONN_OPEN) {
        close_received(fds, fds_nr, conn->user);
    } else if ((header->msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 || fds_nr > CONN_PACKET_FDS) {
        close_received(fds, fds_nr, conn->user);
        explain_cut(&why, header, packet.size, fds_nr);
        end_now(conn, &why);
    } else if (packet.size == 0) {
        /* The end of the stream has no descriptors; an empty packet looks the same else. */
        close_received(fds, fds_nr, conn->user);
        end_now(conn, &peer_gone);
    } else {
        packet.fds_nr = fds_nr;
        memcpy(packet.fds, fds, fds_nr * sizeof(int));
        conn->handlers->on_packet(conn->owner, &packet);
        close_received(packet.fds, packet.fds_nr, conn->user);
    }
}

/* One batch at most. What is left makes the socket readable in the next turn, after the other connections; a client
 * whose packets take long gets one packet a turn. */
static void read_batch(struct conn *conn)
{
    struct conn_reader *reader = conn->reader;
    unsigned int packets_nr = conn->costly ? 1 : CONN_BATCH_PACKETS;
    /* MSG_TRUNC: tells the true size of a packet that was cut. */
    int nr = recvmmsg(conn->fd, reader->headers, packets_nr, MSG_DONTWAIT | MSG_CMSG_CLOEXEC | MSG_TRUNC, NULL);
    uint64_t start_ns = clock_now_ns();
    if (nr < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
            struct error why;
            explain(&why, "nothing could be received", errno);
            end_now(conn, &why);
        }
        return;
    }
    for (uint32_t i = 0; i < (uint32_t)nr; i++) {
        deliver(conn, &reader->headers[i], reader->slots[i].bytes);
        rearm_slot(reader, i);
    }
    conn->costly = clock_now_ns() - start_ns > COSTLY_NS;
}

/* The socket is in error or hung up: what the kernel says of it. */
static void end_by_socket(struct conn *conn)
{
    /* A plain hang-up leaves no errno: it counts as a reset. */
    struct error why;
    int error = 0;
    socklen_t length = sizeof(error);
    if (getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) {
        error = errno;
    }
    explain(&why, "the socket is broken", error == 0 ? ECONNRESET : error);
    end_now(conn, &why);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct conn *conn = poll->data;
    if (status < 0) {
        conn->events = 0; /* libuv has stopped the handle */
        end_by_socket(conn);
        return;
    }
    /* Each handler may pause, end or close the connection: the state and the mask are asked anew. */
    if ((events & UV_WRITABLE) != 0 && conn->state == CONN_OPEN) {
        flush_queue(conn);
    }
    if ((events & UV_READABLE) != 0 && (conn->events & UV_READABLE) != 0 && conn->state == CONN_OPEN) {
        read_batch(conn);
    } else if ((events & UV_DISCONNECT) != 0 && conn->state == CONN_OPEN) {
        end_by_socket(conn);
    }
}

/* ---- open and close ---- */

enum mlacat_status conn_open(struct conn *conn, uv_loop_t *loop, struct conn_reader *reader, int fd, uint32_t user,
                             const struct conn_handlers *handlers, void *owner, struct error *err)
{
    memset(conn, 0, sizeof(*conn));
    conn->fd = fd;
    conn->user = user;
    conn->reader = reader;
    conn->handlers = handlers;
    conn->owner = owner;
    list_init(&conn->queue);
    int result = uv_poll_init(loop, &conn->poll, fd);
    if (result != 0) {
        closer_hang_up(fd, user);
        return error_set(err, MLACAT_INTERNAL, "descriptor %d of a new client cannot be polled: %s", fd,
                         uv_strerror(result));
    }
    uv_timer_init(loop, &conn->end_timer);
    conn->poll.data = conn;
    conn->end_timer.data = conn;
    conn->uv_handles = 2;
    update_events(conn);
    return MLACAT_OK;
}

void conn_pause(struct conn *conn, bool paused)
{
    conn->paused = paused;
    update_events(conn);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct conn *conn = handle->data;
    if (--conn->uv_handles == 0) {
        conn->handlers->on_closed(conn->owner);
    }
}

void conn_close(struct conn *conn)
{
    if (conn->state == CONN_CLOSING) {
        return;
    }
    conn->state = CONN_CLOSING;
    drop_queue(conn);
    uv_close((uv_handle_t *)&conn->poll, on_handle_closed);
    uv_close((uv_handle_t *)&conn->end_timer, on_handle_closed);
    closer_hang_up(conn->fd, conn->user);
    conn->fd = -1;
}
