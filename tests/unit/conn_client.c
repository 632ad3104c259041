/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "closer.h"
#include "conn_client.h"

#define FLUSH_MS 10000

/* ---- the wrapped calls: counted, and made to fail on demand ---- */

int client_recv_calls;
int client_recv_error;
int client_send_error;
int client_mask_changes;

int __real_recvmmsg(int fd, struct mmsghdr *headers, unsigned nr, int flags, struct timespec *timeout);
int __wrap_recvmmsg(int fd, struct mmsghdr *headers, unsigned nr, int flags, struct timespec *timeout);
ssize_t __real_sendmsg(int fd, const struct msghdr *header, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *header, int flags);
int __real_uv_poll_start(uv_poll_t *poll, int events, uv_poll_cb cb);
int __wrap_uv_poll_start(uv_poll_t *poll, int events, uv_poll_cb cb);

int __wrap_recvmmsg(int fd, struct mmsghdr *headers, unsigned nr, int flags, struct timespec *timeout)
{
    client_recv_calls++;
    if (client_recv_error != 0) {
        errno = client_recv_error;
        client_recv_error = 0;
        return -1;
    }
    return __real_recvmmsg(fd, headers, nr, flags, timeout);
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *header, int flags)
{
    if (client_send_error != 0) {
        errno = client_send_error;
        return -1;
    }
    return __real_sendmsg(fd, header, flags);
}

int __wrap_uv_poll_start(uv_poll_t *poll, int events, uv_poll_cb cb)
{
    client_mask_changes++;
    return __real_uv_poll_start(poll, events, cb);
}

/* ---- one connection and its peer ---- */

uv_loop_t client_loop;
struct conn_reader *client_reader;
struct client client;
static int fds_before;
uint8_t client_bytes[CONN_PACKET_BYTES + 1];

/* What conn gave up is closed on another thread: the count is taken when that has come to its end. */
int client_count_fds(void)
{
    int nr = 0;
    assert_true(closer_flush(FLUSH_MS));
    DIR *folder = opendir("/proc/self/fd");
    assert_non_null(folder);
    while (readdir(folder) != NULL) {
        nr++;
    }
    closedir(folder);
    return nr;
}

static void on_packet(void *owner, struct conn_packet *packet)
{
    struct client *c = owner;
    c->packets++;
    c->last_size = packet->size;
    c->last_byte = packet->bytes[0];
    c->last_fds = packet->fds_nr;
    if (c->taken_fd == CLIENT_KEEP_FD) {
        c->taken_fd = packet->fds[0];
        packet->fds[0] = -1;
    }
    if (c->packets == c->act_at) {
        c->act(c);
    }
}

static void on_end(void *owner, const struct error *why)
{
    struct client *c = owner;
    c->ends++;
    c->why = *why;
    if (c->act_on_end != NULL) {
        c->act_on_end(c);
    }
}

static void on_writable(void *owner)
{
    struct client *c = owner;
    c->writables++;
}

static void on_closed(void *owner)
{
    struct client *c = owner;
    c->closed++;
}

const struct conn_handlers client_handlers = {on_packet, on_end, on_writable, on_closed};

void client_open(struct client *c)
{
    int pair[2];
    struct error err;
    memset(c, 0, sizeof(*c));
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    c->peer = pair[1];
    c->taken_fd = -1;
    assert_int_equal(conn_open(&c->conn, &client_loop, client_reader, pair[0], 0, &client_handlers, c, &err),
                     MLACAT_OK);
}

/* One turn of the loop that does not wait. */
void client_turn(void)
{
    uv_run(&client_loop, UV_RUN_NOWAIT);
}

void client_settle(void)
{
    for (int i = 0; i < 4; i++) {
        client_turn();
    }
}

void client_close(struct client *c)
{
    conn_close(&c->conn);
    conn_close(&c->conn); /* a second call does nothing */
    client_settle();
    assert_int_equal(c->closed, 1);
    if (c->peer >= 0) {
        close(c->peer);
    }
}

int client_group_set_up(void **state)
{
    (void)state;
    return uv_loop_init(&client_loop) == 0 ? uv_loop_close(&client_loop) : -1;
}

int client_set_up(void **state)
{
    (void)state;
    fds_before = client_count_fds();
    client_recv_calls = client_recv_error = client_send_error = client_mask_changes = 0;
    uv_loop_init(&client_loop);
    client_reader = conn_reader_new();
    assert_non_null(client_reader);
    client_open(&client);
    return 0;
}

int client_tear_down(void **state)
{
    (void)state;
    client_send_error = 0;
    client_close(&client);
    assert_int_equal(uv_loop_close(&client_loop), 0);
    conn_reader_free(client_reader);
    assert_int_equal(client_count_fds(), fds_before);
    return 0;
}

/* ---- what a peer does ---- */

void peer_send(int peer, uint8_t first, size_t size, uint32_t fds_nr)
{
    uint8_t control[CMSG_SPACE(100 * sizeof(int))] = {0};
    struct iovec iov = {.iov_base = client_bytes, .iov_len = size};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    client_bytes[0] = first;
    if (fds_nr > 0) {
        header.msg_control = control;
        header.msg_controllen = CMSG_SPACE(fds_nr * sizeof(int));
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(fds_nr * sizeof(int));
        for (uint32_t i = 0; i < fds_nr; i++) {
            memcpy(CMSG_DATA(cmsg) + i * sizeof(int), &(int){STDERR_FILENO}, sizeof(int));
        }
    }
    assert_int_equal(__real_sendmsg(peer, &header, MSG_NOSIGNAL), (ssize_t)size);
}

ssize_t peer_receive(int peer, uint32_t *fds_nr)
{
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(CONN_PACKET_FDS * sizeof(int))];
    struct iovec iov = {.iov_base = client_bytes, .iov_len = sizeof(client_bytes)};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    ssize_t size = recvmsg(peer, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    *fds_nr = 0;
    for (struct cmsghdr *cmsg = size < 0 ? NULL : CMSG_FIRSTHDR(&header); cmsg != NULL;
         cmsg = CMSG_NXTHDR(&header, cmsg)) {
        *fds_nr = (uint32_t)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (uint32_t i = 0; i < *fds_nr; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(int));
            close(fd);
        }
    }
    return size;
}

uint32_t client_fill_socket(struct client *c)
{
    static uint8_t data[32768];
    uint32_t sent = 0;
    for (; conn_can_send(&c->conn); sent++) {
        data[0] = (uint8_t)sent;
        conn_send(&c->conn, data, sizeof(data), NULL, 0);
    }
    return sent;
}

void client_assert_ended(enum mlacat_status code, const char *part)
{
    assert_int_equal(client.ends, 1);
    assert_int_equal(client.why.code, code);
    if (code != MLACAT_OK) {
        assert_int_equal(client.why.scope, MLACAT_SCOPE_SESSION);
        assert_non_null(strstr(client.why.message, part));
    }
    int calls = client_recv_calls;
    client_settle();
    assert_int_equal(client.ends, 1);
    assert_int_equal(client_recv_calls, calls);
}
