/* SPDX-License-Identifier: Apache-2.0 */
#include "transport.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "callback.h"
#include "message.h"
#include "reconnect.h"
#include "request.h"
#include "slot.h"
#include "timing.h"

/* ---------------------------------------------------------------------------------------------------- sending */

ssize_t transport_write(int socket, const uint8_t *packet, size_t size, const struct wire_fds *fds)
{
    if (fds == NULL || fds->nr == 0) {
        return send(socket, packet, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(fds->fd))];
    } control = {0};
    size_t fds_bytes = fds->nr * sizeof(fds->fd[0]);
    struct iovec part = {.iov_base = (void *)(uintptr_t)packet, .iov_len = size};
    struct msghdr header = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_SPACE(fds_bytes)};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds_bytes);
    memcpy(CMSG_DATA(rights), fds->fd, fds_bytes);
    return sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
}

enum transport_sent transport_send(struct mlacat_client *client, const uint8_t *packet, size_t size,
                                   const struct wire_fds *fds)
{
    for (;;) {
        if (transport_write(client->fd, packet, size, fds) >= 0) {
            return TRANSPORT_SENT;
        }
        switch (errno) {
        case EINTR:
            continue;
        case EAGAIN:
            return TRANSPORT_FULL;
        case EPIPE:
        case ECONNRESET:
        case ENOTCONN:
            return TRANSPORT_LOST;
        default:
            return TRANSPORT_FAILED;
        }
    }
}

/* ---------------------------------------------------------------------------------------------------- handing out */

/* False: the packet is broken. What is left in `passed` nobody asked for. */
static bool hand_out(struct mlacat_client *client, const uint8_t *packet, size_t size, struct wire_fds *passed)
{
    struct wire_cursor cursor;
    struct wire_completion completion;
    int more = 0;
    switch (wire_open(&cursor, packet, size)) {
    case WIRE_COMPLETIONS:
        while ((more = wire_next_completion(&cursor, &completion)) > 0) {
            slot_complete(client, &completion);
        }
        return more == 0;
    case WIRE_OTHER:
        break;
    default:
        return false;
    }
    message *reply = message_unpack(packet, size);
    if (reply == NULL) {
        return false;
    }
    if (reply->request_id != 0) {
        request_deliver(client, reply, passed);
        return true;
    }
    if (reply->body_case == MLACAT__V1__ENVELOPE__BODY_ANSWER) {
        message_status(reply, &client->last_words);
    }
    message_free(reply);
    return true;
}

/* One packet. NULL, or why the connection ends with it. */
static const char *hand_out_packet(struct mlacat_client *client, const struct mmsghdr *got, const uint8_t *packet,
                                   struct wire_fds *passed)
{
    /* No message of the protocol is empty: a packet of 0 bytes is how a socket says that the peer has closed. */
    if (got->msg_len == 0) {
        return "the daemon closed the connection";
    }
    bool good = (got->msg_hdr.msg_flags & MSG_TRUNC) == 0 && hand_out(client, packet, got->msg_len, passed);
    return good ? NULL : "the daemon sent a packet that is too long or does not parse";
}

/* What comes behind the end is dropped, but not the descriptors with it: they are open here already. */
static void hand_out_batch(struct mlacat_client *client, struct mmsghdr *packets, int nr)
{
    const char *end = NULL;
    for (int i = 0; i < nr; i++) {
        struct wire_fds passed = {0};
        if (packets[i].msg_hdr.msg_controllen > 0) {
            wire_take_fds(&packets[i].msg_hdr, &passed);
        }
        if (end == NULL) {
            end = hand_out_packet(client, &packets[i], client->incoming + (size_t)i * WIRE_PACKET_BYTES, &passed);
        }
        wire_close_fds(&passed);
    }
    if (end != NULL) {
        reconnect_end(client, end);
    }
}

/* ---------------------------------------------------------------------------------------------------- reading */

/* What the socket is ready for, of POLLIN and, where that is wanted, POLLOUT. 0: the time is over. */
static short poll_socket(int fd, bool wants_space, int64_t deadline)
{
    struct pollfd item = {.fd = fd, .events = (short)(wants_space ? POLLIN | POLLOUT : POLLIN)};
    for (;;) {
        struct timespec left = {0};
        if (deadline != TIMING_NEVER) {
            int64_t ns = deadline - timing_now();
            left = timing_spec(ns > 0 ? ns : 0);
        }
        int rc = ppoll(&item, 1, deadline == TIMING_NEVER ? NULL : &left, NULL);
        if (rc >= 0 || errno != EINTR) {
            return rc < 0 ? POLLERR : item.revents;
        }
    }
}

/* Number of packets, 0 when the time is over, -1 with errno. Without the lock. */
static int receive(int fd, struct mmsghdr *packets, unsigned nr, bool wants_space, int64_t deadline)
{
    /* WAITFORONE: blocks for the first packet only and takes along what else is there. Descriptors for which there is
     * no place are closed by the kernel. */
    int flags = MSG_WAITFORONE | MSG_CMSG_CLOEXEC;
    if (deadline != TIMING_NEVER || wants_space) {
        flags = MSG_DONTWAIT | MSG_CMSG_CLOEXEC;
        if (deadline != TIMING_NO_WAIT && poll_socket(fd, wants_space, deadline) == 0) {
            return 0;
        }
    }
    int got;
    do {
        got = recvmmsg(fd, packets, nr, flags, NULL);
    } while (got < 0 && errno == EINTR);
    return got < 0 && errno == EAGAIN ? 0 : got;
}

static void wake_each_round(struct mlacat_client *client)
{
    struct waiter *waiter;
    TAILQ_FOREACH(waiter, &client->waiters, link)
    {
        if (waiter->each_round) {
            pthread_cond_signal(&waiter->cond);
        }
    }
}

/* True: something was read or, if wanted, can be written. */
static bool read_batch(struct mlacat_client *client, const struct waiter *waiter, int64_t deadline)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(CLIENT_PACKET_FDS_MAX * sizeof(int))];
    } control[CLIENT_BATCH_PACKETS];
    struct mmsghdr packets[CLIENT_BATCH_PACKETS];
    struct iovec parts[CLIENT_BATCH_PACKETS];
    unsigned nr = client->flying > 1 ? CLIENT_BATCH_PACKETS : 1;
    for (unsigned i = 0; i < nr; i++) {
        parts[i] = (struct iovec){client->incoming + (size_t)i * WIRE_PACKET_BYTES, WIRE_PACKET_BYTES};
        packets[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &parts[i],
                                                  .msg_iovlen = 1,
                                                  .msg_control = &control[i],
                                                  .msg_controllen = sizeof(control[i])}};
    }
    int fd = client->fd;
    client->reading = true;
    pthread_mutex_unlock(&client->lock);
    int got = receive(fd, packets, nr, waiter->wants_space, deadline);
    int error = errno;
    pthread_mutex_lock(&client->lock);
    client->reading = false;
    client->rounds++;
    if (got > 0) {
        hand_out_batch(client, packets, got);
    } else if (got < 0 && error != ECONNRESET) {
        reconnect_end(client, strerror(error));
    }
    /* ECONNRESET comes once, before what the daemon sent last: the next step reads that, then the end. */
    if (!STAILQ_EMPTY(&client->due) && !waiter->runs_callbacks) {
        callback_announce(client);
    }
    wake_each_round(client);
    return got != 0 || waiter->wants_space;
}

/* False: the time is over. */
static bool park(struct mlacat_client *client, struct waiter *waiter, int64_t deadline)
{
    if (deadline == TIMING_NO_WAIT) {
        return false;
    }
    timing_cond_init(&waiter->cond);
    /* The thread of the callbacks stands last: it takes over the reading only if no other thread waits. */
    if (waiter == &client->thread_waiter) {
        TAILQ_INSERT_TAIL(&client->waiters, waiter, link);
    } else {
        TAILQ_INSERT_HEAD(&client->waiters, waiter, link);
    }
    waiter->parked = true;
    int rc = timing_cond_wait(&waiter->cond, &client->lock, deadline);
    waiter->parked = false;
    TAILQ_REMOVE(&client->waiters, waiter, link);
    pthread_cond_destroy(&waiter->cond);
    return rc == 0;
}

bool transport_step(struct mlacat_client *client, struct waiter *waiter, int64_t deadline)
{
    if (client->fd < 0) {
        return false;
    }
    return client->reading ? park(client, waiter, deadline) : read_batch(client, waiter, deadline);
}

void transport_leave(struct mlacat_client *client)
{
    if (!client->reading && !TAILQ_EMPTY(&client->waiters)) {
        pthread_cond_signal(&TAILQ_FIRST(&client->waiters)->cond);
    }
}

void transport_wake(struct waiter *waiter)
{
    if (waiter != NULL && waiter->parked) {
        pthread_cond_signal(&waiter->cond);
    }
}

void transport_wake_all(struct mlacat_client *client)
{
    struct waiter *waiter;
    TAILQ_FOREACH(waiter, &client->waiters, link)
    {
        pthread_cond_signal(&waiter->cond);
    }
}

/* ---------------------------------------------------------------------------------------------------- space, end */

static bool is_watched(const struct mlacat_client *client, int fd)
{
    const struct waiter *waiter;
    TAILQ_FOREACH(waiter, &client->watchers, link)
    {
        if (waiter->watched == fd) {
            return true;
        }
    }
    return false;
}

void transport_close(struct mlacat_client *client, int fd)
{
    shutdown(fd, SHUT_RDWR); /* wakes those who poll it; the last of them closes it */
    if (!is_watched(client, fd)) {
        close(fd);
    }
}

/* Waits for space while another thread reads: that one would not come back for space. */
static void watch_space(struct mlacat_client *client, int64_t deadline)
{
    struct waiter waiter = {.each_round = true, .watched = client->fd};
    uint64_t round = client->rounds;
    TAILQ_INSERT_TAIL(&client->watchers, &waiter, link);
    pthread_mutex_unlock(&client->lock);
    short ready = poll_socket(waiter.watched, true, deadline);
    pthread_mutex_lock(&client->lock);
    TAILQ_REMOVE(&client->watchers, &waiter, link);
    if (client->fd != waiter.watched) {
        transport_close(client, waiter.watched);
    } else if ((ready & POLLOUT) == 0 && client->reading && client->rounds == round) {
        /* Only readable, and the reader has not come back since: it is about to. Polling until then would spin. */
        park(client, &waiter, deadline);
    }
}

static void await_space(struct mlacat_client *client, int64_t deadline)
{
    if (client->reading) {
        watch_space(client, deadline);
    } else {
        /* Reads as well: the daemon may have stopped taking packets because we do not take its completions. */
        struct waiter waiter = {.each_round = true, .wants_space = true};
        transport_step(client, &waiter, deadline);
    }
    transport_leave(client);
}

enum mlacat_status transport_recover(struct mlacat_client *client, enum transport_sent sent, int64_t deadline,
                                     struct error *err)
{
    if (sent == TRANSPORT_FAILED) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "cannot send to %s: %s; release memory or close descriptors",
                         client->socket, strerror(errno));
    }
    if (sent == TRANSPORT_FULL) {
        await_space(client, deadline);
    } else {
        transport_await_end(client);
    }
    return MLACAT_OK;
}

void transport_await_end(struct mlacat_client *client)
{
    uint64_t epoch = client->epoch;
    struct waiter waiter = {0};
    shutdown(client->fd, SHUT_RDWR);
    while (client->epoch == epoch && transport_step(client, &waiter, TIMING_NEVER)) {
    }
    transport_leave(client);
}
