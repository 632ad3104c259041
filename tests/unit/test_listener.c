/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "listener.h"

static int accept_calls;
static int accept_error; /* errno of the next `accept_failures` calls of accept4 */
static int accept_failures;

int __real_accept4(int fd, struct sockaddr *address, socklen_t *bytes, int flags);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *bytes, int flags);

int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *bytes, int flags)
{
    accept_calls++;
    if (accept_failures > 0) {
        accept_failures--;
        errno = accept_error;
        return -1;
    }
    return __real_accept4(fd, address, bytes, flags);
}

/* Timers are over when the test says so. */
static uint64_t timer_ms; /* of the last one that was started */
static uv_timer_t *timer;
static uv_timer_cb timer_cb;

int __real_uv_timer_start(uv_timer_t *handle, uv_timer_cb cb, uint64_t timeout, uint64_t repeat);
int __wrap_uv_timer_start(uv_timer_t *handle, uv_timer_cb cb, uint64_t timeout, uint64_t repeat);

int __wrap_uv_timer_start(uv_timer_t *handle, uv_timer_cb cb, uint64_t timeout, uint64_t repeat)
{
    timer_ms = timeout;
    timer = handle;
    timer_cb = cb;
    return __real_uv_timer_start(handle, cb, 3600000, repeat);
}

static void end_timer(void)
{
    __real_uv_timer_start(timer, timer_cb, 0, 0);
}

/* ---- one listener in a folder of its own ---- */

#define CLIENTS_MAX 32

static uv_loop_t loop;
static struct listener listener;
static struct error err;
static char folder[] = "/tmp/mlacat-test-XXXXXX";
static char path[64];
static char lock_path[80];
static int fds_before;
static uint32_t clients_nr;
static int clients[CLIENTS_MAX];
static struct peer last_peer;
static bool close_on_client;
static uint32_t closed_nr;

static int count_entries(const char *name)
{
    int nr = 0;
    DIR *open_folder = opendir(name);
    assert_non_null(open_folder);
    while (readdir(open_folder) != NULL) {
        nr++;
    }
    closedir(open_folder);
    return nr;
}

static void on_client(void *owner, int fd, const struct peer *peer)
{
    assert_ptr_equal(owner, &listener);
    assert_true(clients_nr < CLIENTS_MAX);
    clients[clients_nr++] = fd;
    last_peer = *peer;
    if (close_on_client) {
        listener_close(&listener);
    }
}

static void on_closed(void *owner)
{
    assert_ptr_equal(owner, &listener);
    closed_nr++;
}

static int make_folder(void **state)
{
    (void)state;
    /* The first loop of a process opens descriptors that stay. */
    if (uv_loop_init(&loop) != 0 || uv_loop_close(&loop) != 0) {
        return -1;
    }
    return mkdtemp(folder) == NULL ? -1 : 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

static int set_up(void **state)
{
    (void)state;
    fds_before = count_entries("/proc/self/fd");
    snprintf(path, sizeof(path), "%s/d.sock", folder);
    snprintf(lock_path, sizeof(lock_path), "%s.lock", path);
    memset(&listener, 0xa5, sizeof(listener));
    memset(&err, 0, sizeof(err));
    listener.on_client = on_client;
    listener.on_closed = on_closed;
    listener.owner = &listener;
    clients_nr = closed_nr = 0;
    close_on_client = false;
    accept_calls = accept_failures = 0;
    return uv_loop_init(&loop);
}

static void turn(void)
{
    uv_run(&loop, UV_RUN_NOWAIT);
}

static void close_listener(void)
{
    listener_close(&listener);
    listener_close(&listener); /* a second call does nothing */
    turn();
    turn();
    assert_int_equal(closed_nr, 1);
}

/* Every test ends with all descriptors and files gone, on every path. */
static int tear_down(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < clients_nr; i++) {
        close(clients[i]);
    }
    assert_int_equal(uv_loop_close(&loop), 0);
    assert_int_equal(count_entries("/proc/self/fd"), fds_before);
    assert_int_equal(count_entries(folder), 2); /* . and .. */
    return 0;
}

static enum mlacat_status open_at(const char *at)
{
    return listener_open(&listener, &loop, at, 0660, -1, &err);
}

static void assert_failed(enum mlacat_status code, enum mlacat_status wanted, const char *part)
{
    assert_int_equal(code, wanted);
    assert_int_equal(err.code, wanted);
    assert_non_null(strstr(err.message, part));
}

static struct sockaddr_un address_of(const char *at)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", at);
    return address;
}

/* A socket that somebody else has bound; listening if `backlog` is not -1. */
static int bind_other(int type, int backlog)
{
    struct sockaddr_un address = address_of(path);
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_true(backlog < 0 || listen(fd, backlog) == 0);
    return fd;
}

/* A client; -1: refused. */
static int connect_to(const char *at)
{
    struct sockaddr_un address = address_of(at);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool exists(const char *at)
{
    return access(at, F_OK) == 0;
}

/* ---- opening ---- */

static void test_listener_accepts_clients_with_their_credentials(void **state)
{
    (void)state;
    struct stat there;
    assert_int_equal(open_at(path), MLACAT_OK);
    assert_int_equal(stat(path, &there), 0);
    assert_true(S_ISSOCK(there.st_mode));
    assert_int_equal(there.st_mode & 0777, 0660);
    int client = connect_to(path);
    assert_true(client >= 0);
    turn();
    assert_int_equal(clients_nr, 1);
    assert_int_equal(last_peer.uid, getuid());
    assert_int_equal(last_peer.gid, getgid());
    assert_int_equal(last_peer.pid, getpid());
    assert_int_equal(fcntl(clients[0], F_GETFD), FD_CLOEXEC);
    assert_true((fcntl(clients[0], F_GETFL) & O_NONBLOCK) != 0);
    turn();
    assert_int_equal(clients_nr, 1);
    close(client);
    close_listener();
    assert_false(exists(path));
    assert_false(exists(lock_path));
}

static void test_listener_sets_the_mode_whatever_the_umask(void **state)
{
    (void)state;
    struct stat there;
    mode_t kept = umask(0177);
    assert_int_equal(listener_open(&listener, &loop, path, 0666, -1, &err), MLACAT_OK);
    umask(kept);
    assert_int_equal(stat(path, &there), 0);
    assert_int_equal(there.st_mode & 0777, 0666);
    close_listener();
}

static void test_listener_makes_the_last_folder_only(void **state)
{
    (void)state;
    char deep[100];
    snprintf(deep, sizeof(deep), "%s/a/b/d.sock", folder);
    assert_failed(open_at(deep), MLACAT_INVALID_ARGUMENT, "/a/b");
    snprintf(deep, sizeof(deep), "%s/a/d.sock", folder);
    assert_int_equal(open_at(deep), MLACAT_OK);
    close_listener();
    assert_string_equal(strrchr(deep, '/'), "/d.sock");
    *strrchr(deep, '/') = '\0';
    assert_int_equal(rmdir(deep), 0);
}

static void test_listener_refuses_paths_that_do_not_fit(void **state)
{
    (void)state;
    char longest[sizeof(listener.path) + 1];
    memset(longest, 'x', sizeof(longest));
    longest[sizeof(listener.path)] = '\0';
    assert_failed(open_at(longest), MLACAT_INVALID_ARGUMENT, "108 bytes");
    assert_failed(open_at(""), MLACAT_INVALID_ARGUMENT, "0 bytes");
}

static void test_listener_refuses_a_path_that_a_daemon_serves(void **state)
{
    (void)state;
    struct listener second = listener;
    assert_int_equal(open_at(path), MLACAT_OK);
    assert_failed(listener_open(&second, &loop, path, 0660, -1, &err), MLACAT_ALREADY_EXISTS, lock_path);
    int client = connect_to(path); /* the first one goes on */
    assert_true(client >= 0);
    close(client);
    close_listener();
    closed_nr = 0;
    assert_int_equal(open_at(path), MLACAT_OK); /* and leaves the path free */
    close_listener();
}

static void test_listener_replaces_what_a_dead_daemon_left(void **state)
{
    (void)state;
    close(bind_other(SOCK_SEQPACKET, 1));
    close(open(lock_path, O_CREAT | O_WRONLY, 0600));
    assert_int_equal(open_at(path), MLACAT_OK);
    int client = connect_to(path);
    assert_true(client >= 0);
    close(client);
    close_listener();
}

static void test_listener_keeps_a_socket_that_a_stranger_serves(void **state)
{
    (void)state;
    static const int types[] = {SOCK_SEQPACKET, SOCK_STREAM};
    for (int i = 0; i < 2; i++) {
        int other = bind_other(types[i], 1);
        assert_failed(open_at(path), MLACAT_ALREADY_EXISTS, path);
        assert_true(exists(path));
        assert_false(exists(lock_path));
        close(other);
        unlink(path);
    }
}

static void test_listener_keeps_a_socket_with_a_full_queue(void **state)
{
    (void)state;
    int other = bind_other(SOCK_SEQPACKET, 0);
    int client = connect_to(path);
    assert_true(client >= 0);
    assert_int_equal(connect_to(path), -1);
    assert_failed(open_at(path), MLACAT_ALREADY_EXISTS, path);
    close(client);
    close(other);
    unlink(path);
}

static void test_listener_keeps_a_file(void **state)
{
    (void)state;
    close(open(path, O_CREAT | O_WRONLY, 0600));
    assert_failed(open_at(path), MLACAT_INVALID_ARGUMENT, "is no socket");
    assert_true(exists(path));
    unlink(path);
}

static void test_listener_says_when_it_may_not(void **state)
{
    (void)state;
    bool root = getuid() == 0;
    assert_int_equal(chmod(folder, 0500), 0);
    assert_true(!root || seteuid(1) == 0);
    enum mlacat_status code = open_at(path);
    assert_true(!root || seteuid(0) == 0);
    assert_int_equal(chmod(folder, 0700), 0);
    assert_failed(code, MLACAT_PERMISSION_DENIED, lock_path);
}

static void test_listener_takes_a_passed_socket(void **state)
{
    (void)state;
    int passed = bind_other(SOCK_SEQPACKET, 8);
    assert_int_equal(fcntl(passed, F_SETFD, 0), 0);
    assert_int_equal(listener_open(&listener, &loop, NULL, 0660, passed, &err), MLACAT_OK);
    assert_string_equal(listener.path, path);
    assert_int_equal(fcntl(passed, F_GETFD), FD_CLOEXEC);
    int client = connect_to(path);
    turn();
    turn(); /* accept must not block when nobody is left */
    assert_int_equal(clients_nr, 1);
    close(client);
    close_listener();
    assert_true(exists(path)); /* the unit's, not ours */
    unlink(path);
}

static void test_listener_refuses_a_passed_descriptor_of_another_kind(void **state)
{
    (void)state;
    int descriptors[] = {
        bind_other(SOCK_STREAM, 1),                        /* of another type */
        open("/dev/null", O_RDONLY | O_CLOEXEC),           /* no socket */
        socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), /* not listening */
    };
    for (int i = 0; i < 3; i++) {
        assert_failed(listener_open(&listener, &loop, path, 0660, descriptors[i], &err), MLACAT_INVALID_ARGUMENT,
                      "ListenSequentialPacket=");
    }
    unlink(path);
}

/* ---- accepting ---- */

static void connect_many(int *fds, uint32_t nr)
{
    for (uint32_t i = 0; i < nr; i++) {
        fds[i] = connect_to(path);
        assert_true(fds[i] >= 0);
    }
}

static void close_many(const int *fds, uint32_t nr)
{
    for (uint32_t i = 0; i < nr; i++) {
        close(fds[i]);
    }
}

static void test_listener_accepts_one_batch_a_turn(void **state)
{
    (void)state;
    int fds[LISTENER_BATCH + 4];
    assert_int_equal(open_at(path), MLACAT_OK);
    connect_many(fds, LISTENER_BATCH + 4);
    turn();
    assert_int_equal(clients_nr, LISTENER_BATCH);
    turn();
    assert_int_equal(clients_nr, LISTENER_BATCH + 4);
    close_many(fds, LISTENER_BATCH + 4);
    close_listener();
}

static void test_listener_may_be_closed_by_its_handler(void **state)
{
    (void)state;
    int fds[4];
    assert_int_equal(open_at(path), MLACAT_OK);
    connect_many(fds, 4);
    close_on_client = true;
    turn();
    assert_int_equal(clients_nr, 1);
    close_many(fds, 4);
    close_listener();
}

static void test_listener_refuses_clients_without_descriptors(void **state)
{
    (void)state;
    int fds[2];
    char byte;
    assert_int_equal(open_at(path), MLACAT_OK);
    connect_many(fds, 2);
    accept_error = EMFILE;
    accept_failures = 1; /* then the spare one is free */
    turn();
    assert_int_equal(clients_nr, 1);
    assert_int_equal(recv(fds[0], &byte, 1, MSG_DONTWAIT), 0); /* told so by the end of its connection */
    assert_int_equal(recv(fds[1], &byte, 1, MSG_DONTWAIT), -1);
    assert_int_equal(errno, EAGAIN);
    assert_true(listener.spare_fd >= 0);
    close_many(fds, 2);
    close_listener();
}

static void test_listener_waits_when_accept_keeps_failing(void **state)
{
    (void)state;
    static const int errors[] = {EMFILE, ENFILE, ENOMEM};
    for (int i = 0; i < 3; i++) {
        int fds[1];
        closed_nr = clients_nr = 0;
        assert_int_equal(open_at(path), MLACAT_OK);
        connect_many(fds, 1);
        accept_error = errors[i];
        accept_failures = errors[i] == ENOMEM ? 1 : 2; /* the second: with the spare descriptor given up */
        accept_calls = 0;
        turn();
        int calls = accept_calls;
        assert_int_equal(accept_failures, 0);
        turn();
        turn();
        assert_int_equal(accept_calls, calls); /* no busy loop */
        assert_int_equal(clients_nr, 0);
        assert_int_equal(timer_ms, LISTENER_RETRY_MS);
        end_timer();
        turn();
        turn();
        assert_int_equal(clients_nr, 1);
        close_many(fds, 1);
        close_many(clients, 1);
        clients_nr = 0;
        close_listener();
    }
}

static void test_listener_goes_on_after_a_client_that_gave_up(void **state)
{
    (void)state;
    int fds[1];
    assert_int_equal(open_at(path), MLACAT_OK);
    connect_many(fds, 1);
    accept_error = ECONNABORTED;
    accept_failures = 1;
    turn();
    assert_int_equal(clients_nr, 1);
    close_many(fds, 1);
    close_listener();
}

#define LISTENER_TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        LISTENER_TEST(test_listener_accepts_clients_with_their_credentials),
        LISTENER_TEST(test_listener_sets_the_mode_whatever_the_umask),
        LISTENER_TEST(test_listener_makes_the_last_folder_only),
        LISTENER_TEST(test_listener_refuses_paths_that_do_not_fit),
        LISTENER_TEST(test_listener_refuses_a_path_that_a_daemon_serves),
        LISTENER_TEST(test_listener_replaces_what_a_dead_daemon_left),
        LISTENER_TEST(test_listener_keeps_a_socket_that_a_stranger_serves),
        LISTENER_TEST(test_listener_keeps_a_socket_with_a_full_queue),
        LISTENER_TEST(test_listener_keeps_a_file),
        LISTENER_TEST(test_listener_says_when_it_may_not),
        LISTENER_TEST(test_listener_takes_a_passed_socket),
        LISTENER_TEST(test_listener_refuses_a_passed_descriptor_of_another_kind),
        LISTENER_TEST(test_listener_accepts_one_batch_a_turn),
        LISTENER_TEST(test_listener_may_be_closed_by_its_handler),
        LISTENER_TEST(test_listener_refuses_clients_without_descriptors),
        LISTENER_TEST(test_listener_waits_when_accept_keeps_failing),
        LISTENER_TEST(test_listener_goes_on_after_a_client_that_gave_up),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
