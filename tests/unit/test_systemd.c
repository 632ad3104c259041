/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "log.h"
#include "systemd.h"

static const char *const variables[] = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
                                        "LISTEN_PID",    "LISTEN_FDS",    "LISTEN_FDNAMES"};

static int clear(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++) {
        unsetenv(variables[i]);
    }
    systemd_init();
    return 0;
}

static void set_number(const char *name, long value)
{
    char text[32];
    snprintf(text, sizeof(text), "%ld", value);
    setenv(name, text, 1);
}

/* The service manager's end: a datagram socket at a path, or at an abstract name that begins with '@'. */
static int bind_manager(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    memcpy(address.sun_path, name, length);
    if (name[0] == '@') {
        address.sun_path[0] = '\0';
    }
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    socklen_t bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (name[0] != '@'));
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (const struct sockaddr *)&address, bytes), 0);
    return fd;
}

static void assert_datagram(int fd, const char *expected)
{
    char text[2048];
    ssize_t bytes = recv(fd, text, sizeof(text), MSG_DONTWAIT);
    assert_int_equal(bytes, strlen(expected));
    assert_memory_equal(text, expected, strlen(expected));
}

static void assert_no_datagram(int fd)
{
    char byte;
    assert_int_equal(recv(fd, &byte, 1, MSG_DONTWAIT), -1);
}

static void notify_through(const char *name)
{
    int manager = bind_manager(name);
    setenv("NOTIFY_SOCKET", name, 1);
    systemd_init();
    systemd_notify("READY=1\nSTATUS=%d clients", 3);
    assert_datagram(manager, "READY=1\nSTATUS=3 clients");
    systemd_notify("WATCHDOG=1");
    assert_datagram(manager, "WATCHDOG=1");
    assert_no_datagram(manager);
    close(manager);
    systemd_notify("STOPPING=1"); /* nobody there: logged, no harm */
}

static void test_systemd_notify_path(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof(path), "/tmp/test_systemd_%d.sock", (int)getpid());
    notify_through(path);
    unlink(path);
}

static void test_systemd_notify_abstract(void **state)
{
    (void)state;
    char name[64];
    snprintf(name, sizeof(name), "@test_systemd_%d", (int)getpid());
    notify_through(name);
}

/* The longest path has no room for a NUL after it in sun_path; one byte more is refused. */
static void test_systemd_notify_name_lengths(void **state)
{
    (void)state;
    char name[sizeof(((struct sockaddr_un *)0)->sun_path) + 1];
    int used = snprintf(name, sizeof(name), "@test_systemd_%d", (int)getpid());
    memset(name + used, 'x', sizeof(name) - (size_t)used);
    name[sizeof(name) - 2] = '\0';
    notify_through(name);
    name[sizeof(name) - 2] = 'x';
    name[sizeof(name) - 1] = '\0';
    setenv("NOTIFY_SOCKET", name, 1);
    systemd_init();
    systemd_notify("READY=1");
}

static void test_systemd_notify_too_long_is_not_sent(void **state)
{
    (void)state;
    char name[64];
    char text[SYSTEMD_NOTIFY_BYTES + 2];
    snprintf(name, sizeof(name), "@test_systemd_%d", (int)getpid());
    int manager = bind_manager(name);
    setenv("NOTIFY_SOCKET", name, 1);
    systemd_init();
    memset(text, 's', sizeof(text));
    text[SYSTEMD_NOTIFY_BYTES + 1] = '\0';
    systemd_notify("%s", text);
    assert_no_datagram(manager);
    text[SYSTEMD_NOTIFY_BYTES] = '\0';
    systemd_notify("%s", text);
    assert_datagram(manager, text);
    close(manager);
}

static void test_systemd_notify_without_manager_does_nothing(void **state)
{
    (void)state;
    systemd_notify("READY=1");
    setenv("NOTIFY_SOCKET", "relative/path", 1);
    systemd_init();
    systemd_notify("READY=1");
}

static void test_systemd_variables_are_removed(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++) {
        setenv(variables[i], "0", 1);
    }
    systemd_init();
    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++) {
        assert_null(getenv(variables[i]));
    }
}

static void test_systemd_watchdog(void **state)
{
    (void)state;
    static const struct {
        const char *usec;
        long pid; /* 0: not set, 1: another process, 2: this one */
        uint64_t expected_ms;
    } cases[] = {
        {"30000000", 2, 15000},
        {"30000000", 0, 15000},
        {"30000000", 1, 0},
        {"3000", 2, 1},
        {"1", 2, 1},
        {"0", 2, 0},
        {"x", 2, 0},
        {"30000000x", 2, 0},
        {"-5", 2, 0},
        {"99999999999999999999999", 2, 0},
    };
    assert_int_equal(systemd_watchdog_ms(), 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        clear(NULL);
        setenv("WATCHDOG_USEC", cases[i].usec, 1);
        if (cases[i].pid) {
            set_number("WATCHDOG_PID", cases[i].pid == 2 ? getpid() : getpid() + 1);
        }
        systemd_init();
        assert_int_equal(systemd_watchdog_ms(), cases[i].expected_ms);
    }
}

/* Descriptors 3 and 4 as a service manager leaves them: inherited, not CLOEXEC. What was there comes back afterwards.
 */
static int saved[2];

static int pass_fds(void **state)
{
    clear(state);
    for (int i = 0; i < 2; i++) {
        saved[i] = fcntl(3 + i, F_DUPFD_CLOEXEC, 10);
        int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
        assert_true(fd >= 0);
        if (fd != 3 + i) {
            assert_int_equal(dup2(fd, 3 + i), 3 + i);
            close(fd);
        }
    }
    return 0;
}

static int take_fds_back(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        close(3 + i);
        if (saved[i] >= 0) {
            dup2(saved[i], 3 + i);
            close(saved[i]);
        }
    }
    return 0;
}

static void test_systemd_listen_fd_is_taken(void **state)
{
    (void)state;
    assert_int_equal(fcntl(3, F_GETFD), 0);
    set_number("LISTEN_PID", getpid());
    setenv("LISTEN_FDS", "1", 1);
    setenv("LISTEN_FDNAMES", "mlacatd.socket", 1);
    systemd_init();
    assert_int_equal(systemd_listen_fd(), 3);
    assert_int_equal(fcntl(3, F_GETFD), FD_CLOEXEC);
    assert_int_equal(fcntl(4, F_GETFD), 0);
}

static void test_systemd_listen_fds_of_another_process_are_left(void **state)
{
    (void)state;
    set_number("LISTEN_PID", getpid() + 1);
    setenv("LISTEN_FDS", "1", 1);
    systemd_init();
    assert_int_equal(systemd_listen_fd(), -1);
    assert_int_equal(fcntl(3, F_GETFD), 0);
    setenv("LISTEN_FDS", "1", 1); /* no LISTEN_PID at all */
    systemd_init();
    assert_int_equal(systemd_listen_fd(), -1);
}

static void test_systemd_two_listen_fds_are_refused(void **state)
{
    (void)state;
    set_number("LISTEN_PID", getpid());
    setenv("LISTEN_FDS", "2", 1);
    setenv("LISTEN_FDNAMES", "one:two", 1);
    systemd_init();
    assert_int_equal(systemd_listen_fd(), -1);
    assert_int_equal(fcntl(3, F_GETFD), FD_CLOEXEC);
    assert_int_equal(fcntl(4, F_GETFD), FD_CLOEXEC);
}

static void test_systemd_bad_listen_fds(void **state)
{
    (void)state;
    static const char *const counts[] = {"0", "", "x", "1x", "-1", "4294967297", "99999999999999999999"};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        set_number("LISTEN_PID", getpid());
        setenv("LISTEN_FDS", counts[i], 1);
        systemd_init();
        assert_int_equal(systemd_listen_fd(), -1);
    }
    close(3);
    set_number("LISTEN_PID", getpid());
    setenv("LISTEN_FDS", "1", 1);
    systemd_init();
    assert_int_equal(systemd_listen_fd(), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_systemd_notify_path, clear),
        cmocka_unit_test_setup(test_systemd_notify_abstract, clear),
        cmocka_unit_test_setup(test_systemd_notify_name_lengths, clear),
        cmocka_unit_test_setup(test_systemd_notify_too_long_is_not_sent, clear),
        cmocka_unit_test_setup(test_systemd_notify_without_manager_does_nothing, clear),
        cmocka_unit_test_setup(test_systemd_variables_are_removed, clear),
        cmocka_unit_test_setup(test_systemd_watchdog, clear),
        cmocka_unit_test_setup_teardown(test_systemd_listen_fd_is_taken, pass_fds, take_fds_back),
        cmocka_unit_test_setup_teardown(test_systemd_listen_fds_of_another_process_are_left, pass_fds, take_fds_back),
        cmocka_unit_test_setup_teardown(test_systemd_two_listen_fds_are_refused, pass_fds, take_fds_back),
        cmocka_unit_test_setup_teardown(test_systemd_bad_listen_fds, pass_fds, take_fds_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
