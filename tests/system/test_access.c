/* SPDX-License-Identifier: Apache-2.0 */
/* Who may connect, and what only an operator may do. Needs root, to become other users. */
#include <errno.h>
#include <grp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "require.h"
#include "server.h"
#include "trial.h"

#define FOREIGN_UID 54321
#define FOREIGN_GID 54322
#define EXTRA_GID 54323
#define NOBODY 65534 /* what the kernel says of a user that this namespace has no number for */

struct foreigner {
    const char *socket;
    uid_t uid;
    gid_t gid;
    gid_t extra_gid; /* 0: none */
};

static void become(const struct foreigner *who)
{
    REQUIRE(setgroups(who->extra_gid != 0, &who->extra_gid) == 0);
    REQUIRE(setresgid(who->gid, who->gid, who->gid) == 0);
    REQUIRE(setresuid(who->uid, who->uid, who->uid) == 0);
    REQUIRE(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0); /* the change of user has cleared it */
}

static void run_refused(void *arg)
{
    const struct foreigner *who = arg;
    char uid[16];
    struct raw raw;
    become(who);
    snprintf(uid, sizeof(uid), "%u", who->uid);
    for (int i = 0; i < 10; i++) {
        raw_connect(&raw, who->socket);
        if (i % 2 == 1) {
            raw_send(&raw, "unread", 6, NULL, 0);
        }
        struct outcome outcome = raw_last_words(&raw);
        REQUIRE(outcome.code == STATUS_PERMISSION_DENIED && outcome.scope == SCOPE_SESSION, "%u", outcome.code);
        REQUIRE(strstr(outcome.message, uid) != NULL && strstr(outcome.message, "allow_uids") != NULL);
        REQUIRE(!raw.reset);
        raw_close(&raw);
    }
}

static void run_shut_out(void *arg)
{
    const struct foreigner *who = arg;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    become(who);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", who->socket);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    REQUIRE(connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0 && errno == EACCES);
}

static void run_admitted(void *arg)
{
    const struct foreigner *who = arg;
    struct raw raw;
    struct trial trial;
    become(who);
    raw_open(&raw, who->socket);
    struct outcome outcome = raw_drain(&raw);
    REQUIRE(outcome.code == STATUS_PERMISSION_DENIED && outcome.scope == SCOPE_CALL, "%s", outcome.message);
    outcome = raw_set_log_level(&raw, "debug");
    REQUIRE(outcome.code == STATUS_PERMISSION_DENIED && outcome.scope == SCOPE_CALL, "%s", outcome.message);
    REQUIRE(raw_ready(&raw, NULL));
    trial_make(&trial, &small_shape);
    struct ref buffer = raw_must_register(&raw, trial.fd, trial.bytes);
    struct call call = trial_call(&trial, buffer, 1);
    raw_submit(&raw, raw_must_open_stream(&raw), &call, 1);
    REQUIRE(raw_wait(&raw, 1).code == STATUS_OK && trial_right(&trial));
    raw_close(&raw);
}

static void run_as(struct server *server, uid_t uid, gid_t gid, gid_t extra_gid, void (*main)(void *arg))
{
    struct foreigner who = {server->socket, uid, gid, extra_gid};
    struct child child;
    child_start(&child, main, &who);
    child_join(&child);
}

static void test_access_foreign_users_are_refused(void **state)
{
    struct server server;
    struct raw raw;
    (void)state;
    server_start(&server, "socket_mode = 0666\n");
    raw_open(&raw, server.socket);
    run_as(&server, FOREIGN_UID, FOREIGN_GID, 0, run_refused);
    run_as(&server, FOREIGN_UID, FOREIGN_GID, EXTRA_GID, run_refused);
    run_as(&server, NOBODY, NOBODY, 0, run_refused);
    run_as(&server, FOREIGN_UID, 0, 0, run_refused); /* root's group is no permission */
    assert_int_equal(raw_stats(&raw).clients_refused, 40);
    assert_int_equal(raw_stats(&raw).clients_total, 2); /* ours, and the look whether the daemon is ready */
    raw_close(&raw);
    server_stop(&server);
}

static void test_access_mode_keeps_foreigners_out(void **state)
{
    struct server server;
    (void)state;
    server_start(&server, "allow_uids = 54321\n"); /* mode 0660: the kernel refuses, before the daemon sees anything */
    run_as(&server, FOREIGN_UID, FOREIGN_GID, 0, run_shut_out);
    server_stop(&server);
}

static void test_access_listed_users_and_groups_are_let_in(void **state)
{
    struct server server;
    (void)state;
    server_start(&server, "socket_mode = 0666\nallow_uids = 54321\n");
    run_as(&server, FOREIGN_UID, FOREIGN_GID, 0, run_admitted);
    run_as(&server, FOREIGN_UID + 100, FOREIGN_GID, 0, run_refused);
    server_stop(&server);
    server_start(&server, "socket_mode = 0666\nallow_gids = 54322,54323\n");
    run_as(&server, FOREIGN_UID, FOREIGN_GID, 0, run_admitted);
    run_as(&server, FOREIGN_UID, FOREIGN_GID + 100, EXTRA_GID, run_admitted);
    run_as(&server, FOREIGN_UID, FOREIGN_GID + 100, 0, run_refused);
    server_stop(&server);
}

static void test_access_operator_sets_the_log_level(void **state)
{
    struct server *server = *state;
    struct raw raw;
    raw_open(&raw, server->socket);
    struct outcome outcome = raw_set_log_level(&raw, "loud");
    assert_int_equal(outcome.code, STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(outcome.message, "loud"));
    assert_int_equal(raw_set_log_level(&raw, "error").code, STATUS_OK);
    raw_close(&raw);
    raw_connect(&raw, server->socket);
    assert_int_equal(raw_hello(&raw, 1, 0, "after the change").code, STATUS_OK);
    assert_int_equal(raw_set_log_level(&raw, "info").code, STATUS_OK);
    assert_false(server_log_has(server, "after the change"));
    raw_close(&raw);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_access_foreign_users_are_refused),
        cmocka_unit_test(test_access_mode_keeps_foreigners_out),
        cmocka_unit_test(test_access_listed_users_and_groups_are_let_in),
        WITH_SERVER(test_access_operator_sets_the_log_level),
    };
    if (geteuid() != 0) {
        printf("only root can become another user\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
