/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors that nobody asked for, too many of them, and a daemon that has none left. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "proc.h"
#include "require.h"
#include "server.h"
#include "trial.h"

#define FDS_MAX 253

static const uint8_t health_packet[] = {0x08, 0x01, 0x52, 0x00};

static void fill(int fds[FDS_MAX], int fd)
{
    for (int i = 0; i < FDS_MAX; i++) {
        fds[i] = fd;
    }
}

static void assert_broken(struct raw *raw, uint32_t code, const char *word)
{
    struct outcome outcome = raw_last_words(raw);
    REQUIRE(outcome.code == code, "%u instead of %u: %s", outcome.code, code, outcome.message);
    REQUIRE(strstr(outcome.message, word) != NULL, "\"%s\" does not say \"%s\"", outcome.message, word);
    raw_close(raw);
}

static void test_descriptors_nobody_named(void **state)
{
    static const struct {
        uint32_t fds_nr;
        const char *word;
    } floods[] = {{1, "does not name"}, {64, "does not name"}, {65, "more than 64"}, {253, "more than 64"}};
    struct server *server = *state;
    struct raw watcher;
    struct raw raw;
    int fds[FDS_MAX];
    raw_open(&watcher, server->socket);
    uint32_t fds_nr = proc_fds(server->pid);
    int fd = memfd_make(4096, F_SEAL_SHRINK);
    fill(fds, fd);
    for (int round = 0; round < 40; round++) {
        size_t i = (size_t)round % 4;
        if (round % 8 < 4) {
            raw_open(&raw, server->socket);
        } else {
            raw_connect(&raw, server->socket); /* not even greeted */
        }
        assert_int_equal(raw_send(&raw, health_packet, sizeof(health_packet), fds, floods[i].fds_nr), 0);
        assert_broken(&raw, STATUS_INVALID_ARGUMENT, floods[i].word);
    }
    WAIT_UNTIL(proc_fds(server->pid) == fds_nr);
    assert_int_equal(raw_stats(&watcher).sessions_broken, 40);
    close(fd);
    raw_close(&watcher);
}

static void test_descriptors_many_packets_before_the_daemon_looks(void **state)
{
    struct server *server = *state;
    struct raw watcher;
    struct raw raw;
    int fds[FDS_MAX];
    raw_open(&watcher, server->socket);
    uint32_t fds_nr = proc_fds(server->pid);
    int fd = memfd_make(4096, F_SEAL_SHRINK);
    fill(fds, fd);
    for (int round = 0; round < 10; round++) {
        raw_open(&raw, server->socket);
        for (int i = 0; i < 100 && raw_try_send(&raw, health_packet, sizeof(health_packet), fds, 64) == 0; i++) {
        }
        raw_close(&raw);
    }
    WAIT_UNTIL(raw_stats(&watcher).clients == 1);
    WAIT_UNTIL(proc_fds(server->pid) == fds_nr);
    close(fd);
    raw_close(&watcher);
}

static void test_descriptors_wrong_index(void **state)
{
    struct server *server = *state;
    struct raw watcher;
    struct raw raw;
    raw_open(&watcher, server->socket);
    uint32_t fds_nr = proc_fds(server->pid);
    int fd = memfd_make(4096, F_SEAL_SHRINK);
    int fds[3] = {fd, fd, fd};
    struct call call = row_call(1, (struct ref){0, 1}, 64, 0, 4, 4, 4);
    for (uint32_t i = 0; i < 3; i++) {
        call.operand[i].is_inline = true;
        call.operand[i].size_bytes = 4096;
        call.operand[i].fd = i;
    }
    call.operand[2].fd = 3;
    raw_open(&raw, server->socket);
    raw_submit_fds(&raw, (struct ref){0, 1}, &call, 1, fds, 3);
    assert_broken(&raw, STATUS_INVALID_ARGUMENT, "descriptor 3");
    call.operand[2].fd = 1;
    raw_open(&raw, server->socket);
    raw_submit_fds(&raw, (struct ref){0, 1}, &call, 1, fds, 3);
    assert_broken(&raw, STATUS_INVALID_ARGUMENT, "twice");
    call.operand[2].fd = UINT32_MAX;
    raw_open(&raw, server->socket);
    raw_submit_fds(&raw, (struct ref){0, 1}, &call, 1, fds, 2);
    assert_broken(&raw, STATUS_INVALID_ARGUMENT, "4294967295");
    WAIT_UNTIL(proc_fds(server->pid) == fds_nr);
    close(fd);
    raw_close(&watcher);
}

/* A socket in flight inside itself lives until the kernel's collector finds the ring. */
static void test_descriptors_own_socket(void **state)
{
    struct server *server = *state;
    struct raw watcher;
    struct raw raw;
    struct ref buffer;
    int fds[FDS_MAX];
    raw_open(&watcher, server->socket);
    uint32_t fds_nr = proc_fds(server->pid);
    raw_open(&raw, server->socket);
    assert_int_equal(raw_register(&raw, raw.fd, 4096, &buffer).code, STATUS_INVALID_ARGUMENT);
    assert_int_equal(raw_register(&raw, watcher.fd, 4096, &buffer).code, STATUS_INVALID_ARGUMENT);
    assert_true(raw_ready(&raw, NULL));
    raw_close(&raw);
    WAIT_UNTIL(proc_fds(server->pid) == fds_nr);
    for (int i = 0; i < 20; i++) {
        raw_connect(&raw, server->socket);
        fill(fds, raw.fd);
        while (raw_try_send(&raw, health_packet, sizeof(health_packet), fds, 64) == 0) {
        }
        raw_close(&raw);
    }
    WAIT_UNTIL(raw_stats(&watcher).clients == 1);
    WAIT_UNTIL(proc_fds(server->pid) == fds_nr);
    raw_close(&watcher);
}

/* ---------------------------------------------------------------------------------------------- none are left there */

static void set_fd_limit(pid_t pid, rlim_t fds_nr, rlim_t *before)
{
    struct rlimit limit;
    assert_int_equal(prlimit(pid, RLIMIT_NOFILE, NULL, &limit), 0);
    if (before != NULL) {
        *before = limit.rlim_cur;
    }
    limit.rlim_cur = fds_nr;
    assert_int_equal(prlimit(pid, RLIMIT_NOFILE, &limit, NULL), 0);
}

/* The number that the next descriptor of the process gets. */
static rlim_t first_free_fd(pid_t pid)
{
    char path[64];
    for (rlim_t fd = 0;; fd++) {
        snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, (int)fd);
        if (faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) != 0) {
            return fd;
        }
    }
}

static void test_descriptors_exhausted_in_the_daemon(void **state)
{
    struct server *server = *state;
    struct raw watcher;
    struct raw raw;
    int fds[FDS_MAX];
    rlim_t before;
    raw_open(&watcher, server->socket);
    int fd = memfd_make(4096, F_SEAL_SHRINK);
    fill(fds, fd);
    raw_open(&raw, server->socket);
    uint32_t fds_nr = proc_fds(server->pid);
    set_fd_limit(server->pid, first_free_fd(server->pid), &before);
    /* A registration cannot be taken: that client is told, the others go on. */
    struct call call = row_call(1, (struct ref){0, 1}, 64, 0, 4, 4, 4);
    call.operand[0].is_inline = true;
    call.operand[0].size_bytes = 4096;
    raw_submit_fds(&raw, (struct ref){0, 1}, &call, 1, fds, 1);
    assert_broken(&raw, STATUS_RESOURCE_EXHAUSTED, "limit of open files");
    assert_true(raw_ready(&watcher, NULL));
    WAIT_UNTIL(proc_fds(server->pid) == fds_nr - 1);
    /* New clients: the one descriptor that came free serves one, the next is turned away. */
    raw_open(&raw, server->socket);
    struct raw late;
    raw_connect(&late, server->socket);
    raw_expect_end(&late);
    raw_close(&late);
    assert_true(raw_ready(&watcher, NULL));
    set_fd_limit(server->pid, before, NULL);
    raw_must_register(&raw, fd, 4096);
    raw_close(&raw);
    raw_open(&raw, server->socket);
    WAIT_UNTIL(proc_fds(server->pid) == fds_nr);
    raw_close(&raw);
    raw_close(&watcher);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_descriptors_nobody_named),
        WITH_SERVER(test_descriptors_many_packets_before_the_daemon_looks),
        WITH_SERVER(test_descriptors_wrong_index),
        WITH_SERVER(test_descriptors_own_socket),
        WITH_SERVER(test_descriptors_exhausted_in_the_daemon),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
