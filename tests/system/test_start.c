/* SPDX-License-Identifier: Apache-2.0 */
/* How the daemon comes up: beside another one, over a dead one's socket, under a service manager. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "require.h"
#include "server.h"
#include "trial.h"

/* A second daemon for the same socket, with a log of its own. */
static struct server rival_of(const struct server *server, int number)
{
    struct server rival = *server;
    rival.pid = 0;
    snprintf(rival.log, sizeof(rival.log), "%s/log%d", server->folder, number);
    return rival;
}

static void test_start_second_daemon_is_refused(void **state)
{
    struct server *server = *state;
    struct server rival = rival_of(server, 1);
    struct raw raw;
    raw_open(&raw, server->socket);
    server_launch(&rival);
    int status = server_wait(&rival);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_true(server_log_has(&rival, "another daemon serves"));
    assert_true(raw_ready(&raw, NULL));
    raw_close(&raw);
    raw_open(&raw, server->socket);
    raw_close(&raw);
    unlink(rival.log);
}

static void test_start_one_of_many_wins(void **state)
{
    enum { RIVALS = 4 };
    struct server server;
    struct server rival[RIVALS];
    int status;
    int running = -1;
    int ended_nr = 0;
    (void)state;
    server_prepare(&server);
    server_configure(&server, "");
    for (int i = 0; i < RIVALS; i++) {
        rival[i] = rival_of(&server, i);
        server_launch(&rival[i]);
    }
    uint64_t end_ms = now_ms() + WAIT_MS;
    while (ended_nr < RIVALS - 1) {
        REQUIRE(now_ms() < end_ms);
        for (int i = 0; i < RIVALS; i++) {
            if (rival[i].pid != 0 && waitpid(rival[i].pid, &status, WNOHANG) == rival[i].pid) {
                assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
                rival[i].pid = 0;
                ended_nr++;
            }
        }
        nap();
    }
    for (int i = 0; i < RIVALS; i++) {
        running = rival[i].pid != 0 ? i : running;
    }
    server_wait_ready(&rival[running]);
    server_drain(&rival[running]);
    for (int i = 0; i < RIVALS; i++) {
        unlink(rival[i].log);
    }
    server_stop(&server);
}

static void test_start_dead_daemons_socket_is_replaced(void **state)
{
    struct server *server = *state;
    struct raw before;
    struct raw after;
    raw_open(&before, server->socket);
    server_kill(server);
    raw_expect_end(&before);
    assert_int_equal(access(server->socket, F_OK), 0);
    server_run(server);
    raw_open(&after, server->socket);
    assert_memory_not_equal(before.boot_id, after.boot_id, sizeof(before.boot_id));
    raw_close(&before);
    raw_close(&after);
}

static void test_start_keeps_a_file_that_is_no_socket(void **state)
{
    struct server server;
    struct stat there;
    (void)state;
    server_prepare(&server);
    server_configure(&server, "");
    FILE *file = fopen(server.socket, "we");
    assert_non_null(file);
    fputs("precious", file);
    fclose(file);
    server_launch(&server);
    int status = server_wait(&server);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_true(server_log_has(&server, "no socket"));
    assert_int_equal(stat(server.socket, &there), 0);
    assert_int_equal(there.st_size, 8);
    server_stop(&server);
}

static void test_start_bad_configuration_is_told(void **state)
{
    struct server server;
    (void)state;
    server_prepare(&server);
    server_configure(&server, "max_clients = 0\n");
    server_launch(&server);
    int status = server_wait(&server);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 2);
    assert_true(server_log_has(&server, "max_clients"));
    server_stop(&server);
}

static void test_start_socket_mode(void **state)
{
    struct server server;
    struct stat there;
    (void)state;
    server_start(&server, "socket_mode = 0600\n");
    assert_int_equal(stat(server.socket, &there), 0);
    assert_int_equal(there.st_mode & 0777, 0600);
    assert_true(S_ISSOCK(there.st_mode));
    server_stop(&server);
}

/* --------------------------------------------------------------------------------------------------- service manager
 */

static int bind_socket(int type, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    REQUIRE(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0, "%s", path);
    return fd;
}

static void test_start_by_socket_activation(void **state)
{
    struct server server;
    struct raw early;
    struct raw raw;
    (void)state;
    server_prepare(&server);
    server_configure(&server, "");
    server.listen_fd = bind_socket(SOCK_SEQPACKET, server.socket);
    assert_int_equal(listen(server.listen_fd, 8), 0);
    raw_connect(&early, server.socket); /* before there is a daemon */
    server_run(&server);
    assert_int_equal(raw_hello(&early, 1, 0, "early").code, STATUS_OK);
    raw_open(&raw, server.socket);
    assert_true(raw_ready(&raw, NULL));
    raw_close(&raw);
    raw_close(&early);
    server_drain(&server);
    assert_int_equal(access(server.socket, F_OK), 0); /* the manager's */
    server_run(&server);                              /* and again, on the same socket */
    raw_open(&raw, server.socket);
    raw_close(&raw);
    server_drain(&server);
    close(server.listen_fd);
    server_stop(&server);
}

static void test_start_refuses_a_passed_socket_of_another_kind(void **state)
{
    struct server server;
    (void)state;
    server_prepare(&server);
    server_configure(&server, "");
    server.listen_fd = bind_socket(SOCK_STREAM, server.socket);
    assert_int_equal(listen(server.listen_fd, 8), 0);
    server_launch(&server);
    int status = server_wait(&server);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_true(server_log_has(&server, "ListenSequentialPacket"));
    close(server.listen_fd);
    server_stop(&server);
}

/* The next datagram of the daemon must begin with `line`. */
static void expect_notice(int fd, const char *line)
{
    char text[1024];
    ssize_t size = recv(fd, text, sizeof(text) - 1, 0);
    REQUIRE(size > 0, "no datagram came; %s was expected", line);
    text[size] = '\0';
    REQUIRE(strncmp(text, line, strlen(line)) == 0, "\"%s\" came; %s was expected", text, line);
}

static void test_start_notifies_its_manager(void **state)
{
    const struct timeval wait = {.tv_sec = WAIT_MS / 1000};
    struct server server;
    char path[SERVER_PATH_BYTES];
    (void)state;
    server_prepare(&server);
    server_configure(&server, "");
    snprintf(path, sizeof(path), "%s/notify", server.folder);
    int fd = bind_socket(SOCK_DGRAM, path);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)), 0);
    server.notify_socket = path;
    server_run(&server);
    expect_notice(fd, "READY=1");
    assert_int_equal(kill(server.pid, SIGHUP), 0);
    expect_notice(fd, "RELOADING=1");
    expect_notice(fd, "READY=1");
    server_drain(&server);
    expect_notice(fd, "STOPPING=1");
    server.watchdog_us = "20000";
    server_run(&server);
    expect_notice(fd, "READY=1");
    for (int i = 0; i < 3; i++) {
        expect_notice(fd, "WATCHDOG=1");
    }
    server_kill(&server);
    unlink(path);
    close(fd);
    server_stop(&server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_start_second_daemon_is_refused),
        cmocka_unit_test(test_start_one_of_many_wins),
        WITH_SERVER(test_start_dead_daemons_socket_is_replaced),
        cmocka_unit_test(test_start_keeps_a_file_that_is_no_socket),
        cmocka_unit_test(test_start_bad_configuration_is_told),
        cmocka_unit_test(test_start_socket_mode),
        cmocka_unit_test(test_start_by_socket_activation),
        cmocka_unit_test(test_start_refuses_a_passed_socket_of_another_kind),
        cmocka_unit_test(test_start_notifies_its_manager),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
