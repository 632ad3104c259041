/* SPDX-License-Identifier: Apache-2.0 */
#include "raw.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "raw_by_ring.h"
#include "require.h"

#define FDS_MAX 253 /* what the kernel takes in one packet */

void raw_connect(struct raw *raw, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    *raw = (struct raw){.pidfd = -1, .fds = {-1, -1, -1, -1}};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    raw->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    REQUIRE(raw->fd >= 0 && connect(raw->fd, (struct sockaddr *)&address, sizeof(address)) == 0, "%s", path);
}

void raw_open(struct raw *raw, const char *path)
{
    raw_connect(raw, path);
    struct outcome outcome = raw_hello(raw, 1, 0, "test");
    REQUIRE(outcome.code == STATUS_OK, "Hello: %u: %s", outcome.code, outcome.message);
}

static void drop_fds(struct raw *raw)
{
    for (int i = 0; i < RAW_FDS; i++) {
        if (raw->fds[i] >= 0) {
            close(raw->fds[i]);
            raw->fds[i] = -1;
        }
    }
}

int raw_take_fd(struct raw *raw, int index)
{
    int fd = raw->fds[index];
    REQUIRE(fd >= 0, "the packet had no descriptor %d", index);
    raw->fds[index] = -1;
    return fd;
}

void raw_close(struct raw *raw)
{
    by_ring_end(raw);
    close(raw->fd);
    if (raw->pidfd >= 0) {
        close(raw->pidfd);
    }
    drop_fds(raw);
    free(raw->done);
    *raw = (struct raw){.fd = -1, .pidfd = -1, .fds = {-1, -1, -1, -1}};
}

/* ----------------------------------------------------------------------------------------------------------- packets
 */

static int send_packet(struct raw *raw, const void *bytes, size_t size, const int *fds, uint32_t fds_nr, int flags)
{
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(FDS_MAX * sizeof(int))];
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = size};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    REQUIRE(fds_nr <= FDS_MAX);
    if (fds_nr > 0) {
        memset(control, 0, sizeof(control));
        header.msg_control = control;
        header.msg_controllen = CMSG_SPACE(fds_nr * sizeof(int));
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(fds_nr * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, fds_nr * sizeof(int));
    }
    return sendmsg(raw->fd, &header, flags | MSG_NOSIGNAL) >= 0 ? 0 : errno;
}

int raw_try_send(struct raw *raw, const void *bytes, size_t size, const int *fds, uint32_t fds_nr)
{
    return send_packet(raw, bytes, size, fds, fds_nr, MSG_DONTWAIT);
}

int raw_send(struct raw *raw, const void *bytes, size_t size, const int *fds, uint32_t fds_nr)
{
    return send_packet(raw, bytes, size, fds, fds_nr, 0);
}

int raw_send_envelope(struct raw *raw, const Mlacat__V1__Envelope *envelope, const int *fds, uint32_t fds_nr)
{
    uint8_t packet[RAW_PACKET_BYTES];
    REQUIRE(mlacat__v1__envelope__get_packed_size(envelope) <= sizeof(packet));
    return raw_send(raw, packet, mlacat__v1__envelope__pack(envelope, packet), fds, fds_nr);
}

static void keep_fds(struct raw *raw, struct msghdr *header)
{
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(header); cmsg != NULL; cmsg = CMSG_NXTHDR(header, cmsg)) {
        if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
            drop_fds(raw);
            memcpy(raw->fds, CMSG_DATA(cmsg), cmsg->cmsg_len - CMSG_LEN(0));
        }
    }
}

Mlacat__V1__Envelope *raw_receive(struct raw *raw)
{
    uint8_t packet[RAW_PACKET_BYTES];
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(RAW_FDS * sizeof(int))];
    struct iovec iov = {.iov_base = packet, .iov_len = sizeof(packet)};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct pollfd poll_fd = {.fd = raw->fd, .events = POLLIN};
    int ready = poll(&poll_fd, 1, WAIT_MS);
    REQUIRE(ready == 1, "the daemon says nothing for %d ms", WAIT_MS);
    ssize_t size = recvmsg(raw->fd, &header, MSG_CMSG_CLOEXEC);
    if (size < 0 && errno == ECONNRESET && !raw->reset) {
        raw->reset = true; /* what the daemon said before can still be read */
        return raw_receive(raw);
    }
    if (size <= 0) {
        REQUIRE(size == 0 || errno == ECONNRESET, "recvmsg");
        return NULL;
    }
    REQUIRE((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0);
    keep_fds(raw, &header);
    Mlacat__V1__Envelope *envelope = mlacat__v1__envelope__unpack(NULL, (size_t)size, packet);
    REQUIRE(envelope != NULL, "the daemon sent %zd bytes that do not parse", size);
    return envelope;
}

void raw_free(Mlacat__V1__Envelope *envelope)
{
    mlacat__v1__envelope__free_unpacked(envelope, NULL);
}

static struct outcome read_status(const Mlacat__V1__Status *status)
{
    struct outcome outcome = {0};
    if (status != NULL) {
        outcome.code = status->code;
        outcome.scope = status->scope;
        snprintf(outcome.message, sizeof(outcome.message), "%s", status->message);
    }
    return outcome;
}

/* ------------------------------------------------------------------------------------------------------- completions
 */

void raw_keep(struct raw *raw, const struct completion *completion)
{
    if (raw->done_nr == raw->done_room) {
        raw->done_room = raw->done_room == 0 ? 64 : 2 * raw->done_room;
        raw->done = realloc(raw->done, raw->done_room * sizeof(*raw->done));
        REQUIRE(raw->done != NULL);
    }
    raw->done[raw->done_nr++] = *completion;
}

static void keep_completions(struct raw *raw, const Mlacat__V1__Completions *completions)
{
    for (size_t i = 0; i < completions->n_completions; i++) {
        const Mlacat__V1__Completion *from = completions->completions[i];
        struct completion completion = {
            .stream = {from->stream->id, from->stream->generation},
            .call_id = from->call_id,
            .outcome = read_status(from->status),
            .queue_ns = from->queue_ns,
            .device_ns = from->device_ns,
        };
        raw_keep(raw, &completion);
    }
}

/* Waits for more of them. */
static void receive_completions(struct raw *raw)
{
    size_t before_nr = raw->done_nr;
    by_ring_wait(raw);
    if (raw->done_nr != before_nr) {
        return;
    }
    Mlacat__V1__Envelope *envelope = raw_receive(raw);
    REQUIRE(envelope != NULL, "the daemon ended the connection; a completion was expected");
    if (envelope->body_case == MLACAT__V1__ENVELOPE__BODY_ANSWER) {
        struct outcome outcome = read_status(envelope->answer->status);
        REQUIRE(false, "an Answer came where a completion was expected: %u: %s", outcome.code, outcome.message);
    }
    REQUIRE(envelope->body_case == MLACAT__V1__ENVELOPE__BODY_COMPLETIONS && envelope->request_id == 0);
    keep_completions(raw, envelope->completions);
    raw_free(envelope);
}

/* Completion `place` of those that are kept; those behind it move up. */
static struct completion take_completion(struct raw *raw, size_t place)
{
    struct completion completion = raw->done[place];
    if (place == raw->done_taken) {
        raw->done_taken++;
    } else {
        raw->done_nr--;
        memmove(&raw->done[place], &raw->done[place + 1], (raw->done_nr - place) * sizeof(*raw->done));
    }
    if (raw->done_taken == raw->done_nr) {
        raw->done_taken = raw->done_nr = 0;
    }
    return completion;
}

struct completion raw_next(struct raw *raw)
{
    while (raw->done_taken == raw->done_nr) {
        receive_completions(raw);
    }
    return take_completion(raw, raw->done_taken);
}

struct outcome raw_wait(struct raw *raw, uint64_t call_id)
{
    struct completion completion = raw_next(raw);
    REQUIRE(completion.call_id == call_id, "call %lu ended where %lu was expected: %u: %s",
            (unsigned long)completion.call_id, (unsigned long)call_id, completion.outcome.code,
            completion.outcome.message);
    return completion.outcome;
}

struct outcome raw_wait_aside(struct raw *raw, uint64_t call_id)
{
    for (size_t place = raw->done_taken;; place++) {
        while (place == raw->done_nr) {
            receive_completions(raw);
        }
        if (raw->done[place].call_id == call_id) {
            return take_completion(raw, place).outcome;
        }
    }
}

/* ---------------------------------------------------------------------------------------------------------- requests
 */

Mlacat__V1__Envelope *raw_request(struct raw *raw, Mlacat__V1__Envelope *envelope, const int *fds, uint32_t fds_nr)
{
    envelope->request_id = ++raw->last_request;
    int error = raw_send_envelope(raw, envelope, fds, fds_nr);
    REQUIRE(error == 0, "a request cannot be sent: %s", strerror(error));
    for (;;) {
        Mlacat__V1__Envelope *reply = raw_receive(raw);
        REQUIRE(reply != NULL, "the daemon ended the connection instead of a reply");
        if (reply->body_case == MLACAT__V1__ENVELOPE__BODY_COMPLETIONS) {
            keep_completions(raw, reply->completions);
            raw_free(reply);
            continue;
        }
        REQUIRE(reply->request_id == envelope->request_id, "a reply to request %lu came, not to %lu: %s",
                (unsigned long)reply->request_id, (unsigned long)envelope->request_id,
                reply->body_case == MLACAT__V1__ENVELOPE__BODY_ANSWER ? read_status(reply->answer->status).message
                                                                      : "");
        by_ring_collect(raw);
        return reply;
    }
}

/* The outcome of a reply that is an Answer, or OK with the reply in *result. */
static struct outcome request_for(struct raw *raw, Mlacat__V1__Envelope *envelope, const int *fds, uint32_t fds_nr,
                                  Mlacat__V1__Envelope **result)
{
    struct outcome outcome = {0};
    Mlacat__V1__Envelope *reply = raw_request(raw, envelope, fds, fds_nr);
    *result = reply;
    if (reply->body_case == MLACAT__V1__ENVELOPE__BODY_ANSWER) {
        outcome = read_status(reply->answer->status);
        raw_free(reply);
        *result = NULL;
    }
    return outcome;
}

struct outcome raw_answer(struct raw *raw, Mlacat__V1__Envelope *envelope)
{
    Mlacat__V1__Envelope *result;
    struct outcome outcome = request_for(raw, envelope, NULL, 0, &result);
    REQUIRE(result == NULL, "the reply is no Answer");
    return outcome;
}

struct outcome raw_last_words(struct raw *raw)
{
    struct outcome outcome = {0};
    bool said = false;
    Mlacat__V1__Envelope *envelope;
    while ((envelope = raw_receive(raw)) != NULL) {
        if (envelope->body_case == MLACAT__V1__ENVELOPE__BODY_ANSWER && envelope->request_id == 0) {
            outcome = read_status(envelope->answer->status);
            said = true;
        }
        raw_free(envelope);
    }
    REQUIRE(said, "the daemon ended the connection without a word");
    return outcome;
}

void raw_expect_end(struct raw *raw)
{
    Mlacat__V1__Envelope *envelope;
    while ((envelope = raw_receive(raw)) != NULL) {
        raw_free(envelope);
    }
}

struct outcome raw_hello(struct raw *raw, uint32_t version, uint64_t features, const char *name)
{
    Mlacat__V1__Hello hello = MLACAT__V1__HELLO__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__Envelope *reply;
    hello.protocol_version = version;
    hello.required_features = features;
    hello.client_name = (char *)(uintptr_t)name;
    hello.client_version = (char *)(uintptr_t) "1";
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_HELLO;
    envelope.hello = &hello;
    struct outcome outcome = request_for(raw, &envelope, NULL, 0, &reply);
    if (reply != NULL) {
        REQUIRE(reply->body_case == MLACAT__V1__ENVELOPE__BODY_WELCOME && reply->welcome->boot_id.len == 16);
        memcpy(raw->boot_id, reply->welcome->boot_id.data, sizeof(raw->boot_id));
        raw->server_pid = reply->welcome->server_pid;
        if (reply->welcome->has_pidfd) {
            raw->pidfd = raw_take_fd(raw, 0);
        }
        raw_free(reply);
    }
    return outcome;
}
