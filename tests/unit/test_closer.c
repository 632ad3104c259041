/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "clock.h"
#include "closer.h"
#include "lingering.h"

#define FLUSH_MS (LINGERING_SECONDS * 1000 - 2000) /* less than a lingering close takes by itself */
#define QUICK_MS FLUSH_MS
#define USER 7

int __real_clock_gettime(clockid_t clock, struct timespec *time);
int __wrap_clock_gettime(clockid_t clock, struct timespec *time);

static time_t wall_clock_ahead_s;

int __wrap_clock_gettime(clockid_t clock, struct timespec *time)
{
    int result = __real_clock_gettime(clock, time);
    time->tv_sec += clock == CLOCK_REALTIME ? wall_clock_ahead_s : 0;
    return result;
}

static uint64_t now_ms(void)
{
    return clock_now_ns() / 1000000;
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static struct lingering lingering_new(void)
{
    struct lingering made;
    assert_true(lingering_make(&made));
    return made;
}

static void let_go(struct lingering *blocking)
{
    lingering_release(blocking);
    assert_true(closer_flush(FLUSH_MS));
}

static void socket_pair(int pair[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
}

static void test_closer_closes_a_small_memfd_at_once(void **state)
{
    (void)state;
    struct lingering blocking = lingering_new();
    int fd = memfd_create("test", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, (off_t)1 << 40), 0); /* large, but without pages */
    closer_close(blocking.fd, USER);
    closer_close(fd, USER);
    assert_false(is_open(fd)); /* though the thread is held */
    let_go(&blocking);
}

/* To give back the pages of a large file takes long: that is the thread's work. */
static void test_closer_leaves_a_memfd_of_many_pages_to_the_thread(void **state)
{
    (void)state;
    struct lingering blocking = lingering_new();
    int fd = memfd_create("test", MFD_CLOEXEC);
    assert_int_equal(fallocate(fd, 0, 0, 16 << 20), 0);
    closer_close(blocking.fd, USER);
    closer_close(fd, USER);
    assert_true(is_open(fd));
    let_go(&blocking);
    assert_false(is_open(fd));
}

static void test_closer_closes_anything_else_on_its_thread(void **state)
{
    (void)state;
    enum { FILES = 200 };
    int fds[FILES];
    for (int i = 0; i < FILES; i++) {
        fds[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
        assert_true(fds[i] >= 0);
    }
    for (int i = 0; i < FILES; i++) {
        closer_close(fds[i], USER);
    }
    assert_true(closer_flush(FLUSH_MS));
    for (int i = 0; i < FILES; i++) {
        assert_false(is_open(fds[i]));
    }
}

static void test_closer_does_not_wait_for_a_close_that_blocks(void **state)
{
    (void)state;
    struct lingering blocking = lingering_new();
    int behind = open("/dev/null", O_RDWR | O_CLOEXEC);
    uint64_t start_ms = now_ms();
    closer_close(blocking.fd, USER);
    closer_close(behind, USER);
    assert_in_range(now_ms() - start_ms, 0, QUICK_MS);
    assert_false(closer_flush(50));
    assert_in_range(now_ms() - start_ms, 50, 50 + QUICK_MS);
    assert_true(is_open(behind));
    let_go(&blocking);
    assert_false(is_open(behind));
}

static void test_closer_one_user_does_not_wait_for_another(void **state)
{
    (void)state;
    struct lingering blocking = lingering_new();
    int own[5];
    closer_close(blocking.fd, USER);
    for (int i = 0; i < 5; i++) {
        own[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
        closer_close(own[i], USER);
    }
    uint64_t start_ms = now_ms();
    for (uint32_t user = 100; user < 110; user++) {
        int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
        closer_close(fd, user);
        while (closer_waiting(user) > 0) {
            assert_in_range(now_ms() - start_ms, 0, FLUSH_MS);
            sched_yield();
        }
        assert_false(is_open(fd));
    }
    assert_int_equal(closer_waiting(USER), 6);
    assert_int_equal(closer_waiting(USER + 1), 0);
    assert_true(is_open(own[4]));
    let_go(&blocking);
    assert_int_equal(closer_waiting(USER), 0);
    assert_false(is_open(own[4]));
}

/* Somebody sets it while the daemon waits: then it is an hour before what it was, or after. */
static void test_closer_flush_does_not_go_by_the_wall_clock(void **state)
{
    enum { TIMEOUT_MS = 20 };
    (void)state;
    struct lingering blocking = lingering_new();
    closer_close(blocking.fd, USER);
    uint64_t start_ms = now_ms();
    wall_clock_ahead_s = -3600;
    assert_false(closer_flush(TIMEOUT_MS));
    wall_clock_ahead_s = 0;
    assert_true(now_ms() - start_ms >= TIMEOUT_MS);
    let_go(&blocking);
}

static void test_closer_flush_of_nothing_returns_at_once(void **state)
{
    (void)state;
    uint64_t start_ms = now_ms();
    assert_true(closer_flush(FLUSH_MS));
    assert_true(closer_flush(0));
    assert_in_range(now_ms() - start_ms, 0, QUICK_MS);
}

/* Unread packets, empty ones and descriptors in them among them, do not cost the peer our last words. */
static void test_closer_hang_up_lets_the_peer_read_the_last_packet(void **state)
{
    (void)state;
    char byte;
    char text[16];
    int pair[2];
    socket_pair(pair);
    assert_int_equal(send(pair[1], "", 0, 0), 0);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(send(pair[1], "unread", 6, 0), 6);
    }
    assert_int_equal(send(pair[0], "last words", 10, 0), 10);
    closer_hang_up(pair[0], USER);
    assert_true(closer_flush(FLUSH_MS));
    assert_false(is_open(pair[0]));
    assert_int_equal(recv(pair[1], text, sizeof(text), MSG_DONTWAIT), 10);
    assert_memory_equal(text, "last words", 10);
    assert_int_equal(recv(pair[1], &byte, 1, MSG_DONTWAIT), 0); /* the end, no ECONNRESET */
    close(pair[1]);
}

static void test_closer_hang_up_is_seen_before_the_thread_comes_to_it(void **state)
{
    (void)state;
    char byte;
    int pair[2];
    socket_pair(pair);
    struct lingering blocking = lingering_new();
    closer_close(blocking.fd, USER);
    closer_hang_up(pair[0], USER);
    assert_int_equal(recv(pair[1], &byte, 1, MSG_DONTWAIT), 0);
    assert_int_equal(send(pair[1], "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT), -1);
    assert_int_equal(errno, EPIPE);
    let_go(&blocking);
    close(pair[1]);
}

struct feeder {
    int fd;
    _Atomic int sent;
};

static void *feed(void *arg)
{
    struct feeder *feeder = arg;
    ssize_t sent;
    do {
        sent = send(feeder->fd, "more", 4, MSG_NOSIGNAL | MSG_DONTWAIT);
        atomic_fetch_add(&feeder->sent, sent > 0);
    } while (sent > 0 || errno == EAGAIN);
    return NULL;
}

static void test_closer_hang_up_does_not_read_for_ever(void **state)
{
    (void)state;
    int pair[2];
    pthread_t thread;
    socket_pair(pair);
    struct feeder feeder = {.fd = pair[1]};
    assert_int_equal(pthread_create(&thread, NULL, feed, &feeder), 0);
    while (atomic_load(&feeder.sent) == 0) {
    }
    closer_hang_up(pair[0], USER);
    assert_true(closer_flush(FLUSH_MS));
    assert_false(is_open(pair[0]));
    pthread_join(thread, NULL);
    close(pair[1]);
}

/* A descriptor in an unread packet that blocks when it is dropped holds up the thread alone. */
static void test_closer_hang_up_drops_what_blocks_on_its_thread(void **state)
{
    (void)state;
    int pair[2];
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(sizeof(int))] = {0};
    char byte = 'x';
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
    struct lingering blocking = lingering_new();
    socket_pair(pair);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cmsg), &blocking.fd, sizeof(int));
    assert_int_equal(sendmsg(pair[1], &header, 0), 1);
    close(blocking.fd); /* not the last one */
    uint64_t start_ms = now_ms();
    closer_hang_up(pair[0], USER);
    assert_in_range(now_ms() - start_ms, 0, QUICK_MS);
    assert_false(closer_flush(50));
    let_go(&blocking);
    close(pair[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_closer_closes_a_small_memfd_at_once),
        cmocka_unit_test(test_closer_leaves_a_memfd_of_many_pages_to_the_thread),
        cmocka_unit_test(test_closer_closes_anything_else_on_its_thread),
        cmocka_unit_test(test_closer_does_not_wait_for_a_close_that_blocks),
        cmocka_unit_test(test_closer_one_user_does_not_wait_for_another),
        cmocka_unit_test(test_closer_flush_does_not_go_by_the_wall_clock),
        cmocka_unit_test(test_closer_flush_of_nothing_returns_at_once),
        cmocka_unit_test(test_closer_hang_up_lets_the_peer_read_the_last_packet),
        cmocka_unit_test(test_closer_hang_up_is_seen_before_the_thread_comes_to_it),
        cmocka_unit_test(test_closer_hang_up_does_not_read_for_ever),
        cmocka_unit_test(test_closer_hang_up_drops_what_blocks_on_its_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
