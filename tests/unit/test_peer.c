/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "listener.h"

/* ---- who the daemon runs as, and what the kernel says, are the test's choice ---- */

static uid_t own_uid;
static uint32_t kernel_groups_nr; /* 0: the real answer */
static int groups_error;

uid_t __wrap_geteuid(void);
int __real_getsockopt(int fd, int level, int option, void *value, socklen_t *bytes);
int __wrap_getsockopt(int fd, int level, int option, void *value, socklen_t *bytes);

uid_t __wrap_geteuid(void)
{
    return own_uid;
}

/* A peer in groups 1000, 1001, ...: as the kernel does, all of them or ERANGE with the size that is needed. */
int __wrap_getsockopt(int fd, int level, int option, void *value, socklen_t *bytes)
{
    if (option != SO_PEERGROUPS || (kernel_groups_nr == 0 && groups_error == 0)) {
        return __real_getsockopt(fd, level, option, value, bytes);
    }
    socklen_t needed = (socklen_t)(kernel_groups_nr * sizeof(gid_t));
    if (groups_error != 0 || *bytes < needed) {
        *bytes = needed;
        errno = groups_error != 0 ? groups_error : ERANGE;
        return -1;
    }
    gid_t *groups = value;
    for (uint32_t i = 0; i < kernel_groups_nr; i++) {
        groups[i] = 1000 + i;
    }
    *bytes = needed;
    return 0;
}

static int set_up(void **state)
{
    (void)state;
    own_uid = 500;
    kernel_groups_nr = 0;
    groups_error = 0;
    return 0;
}

static const struct allow_list nobody;

static struct peer make_peer(uid_t uid, gid_t gid)
{
    return (struct peer){.pid = 1, .uid = uid, .gid = gid};
}

static void assert_allowed(const struct peer *peer, const struct allow_list *allow, bool allowed)
{
    assert_int_equal(peer_allowed(peer, allow), allowed);
}

static void test_peer_root_and_own_user_are_operators(void **state)
{
    (void)state;
    static const struct {
        uid_t own;
        uid_t peer;
        bool operates;
    } cases[] = {
        {500, 0, true},
        {500, 500, true},
        {500, 501, false},
        {500, PEER_OVERFLOW_ID, false},
        {0, 0, true},
        {0, 1, false},
        {0, UINT32_MAX, false},
        {PEER_OVERFLOW_ID, PEER_OVERFLOW_ID, false},
        {PEER_OVERFLOW_ID, 0, true},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct peer peer = make_peer(cases[i].peer, 77);
        own_uid = cases[i].own;
        assert_int_equal(peer_is_operator(&peer), cases[i].operates);
        assert_allowed(&peer, &nobody, cases[i].operates); /* without a list, operators only */
    }
}

static void test_peer_gid_zero_is_no_operator(void **state)
{
    (void)state;
    struct peer peer = make_peer(501, 0);
    peer.groups_nr = 1; /* group 0 too */
    assert_false(peer_is_operator(&peer));
    assert_allowed(&peer, &nobody, false);
}

static void test_peer_allowed_by_uid(void **state)
{
    (void)state;
    struct allow_list allow = {.uids_nr = 2, .uids = {10, 11, 12}};
    struct peer peers[] = {make_peer(10, 1), make_peer(11, 1), make_peer(12, 1), make_peer(9, 10)};
    assert_allowed(&peers[0], &allow, true);
    assert_allowed(&peers[1], &allow, true);
    assert_allowed(&peers[2], &allow, false); /* past uids_nr */
    assert_allowed(&peers[3], &allow, false); /* a gid is no uid */
    assert_false(peer_is_operator(&peers[0]));
}

static void test_peer_allowed_by_group(void **state)
{
    (void)state;
    struct allow_list allow = {.gids_nr = 2, .gids = {20, 21, 22}};
    struct peer peer = make_peer(600, 21);
    assert_allowed(&peer, &allow, true);
    peer.gid = 22;
    assert_allowed(&peer, &allow, false);
    peer.groups_nr = 2;
    peer.groups[0] = 5;
    peer.groups[1] = 20;
    peer.groups[2] = 21;
    assert_allowed(&peer, &allow, true);
    peer.groups[1] = 6;
    assert_allowed(&peer, &allow, false); /* the third is past groups_nr */
    peer.uid = 20;
    assert_allowed(&peer, &allow, false); /* a uid is no gid */
}

static void test_peer_overflow_ids_match_nothing(void **state)
{
    (void)state;
    struct allow_list allow = {.uids_nr = 1, .uids = {PEER_OVERFLOW_ID}, .gids_nr = 1, .gids = {PEER_OVERFLOW_ID}};
    struct peer peer = make_peer(PEER_OVERFLOW_ID, PEER_OVERFLOW_ID);
    peer.groups_nr = 1;
    peer.groups[0] = PEER_OVERFLOW_ID;
    assert_allowed(&peer, &allow, false);
    own_uid = PEER_OVERFLOW_ID;
    assert_allowed(&peer, &allow, false);
    /* a real group of a user without a number still counts */
    allow.gids[0] = 30;
    peer.groups[0] = 30;
    assert_allowed(&peer, &allow, true);
}

static void test_peer_full_lists(void **state)
{
    (void)state;
    struct allow_list allow = {.uids_nr = ALLOW_MAX, .gids_nr = ALLOW_MAX};
    struct peer peer = make_peer(1063, 1);
    for (uint32_t i = 0; i < ALLOW_MAX; i++) {
        allow.uids[i] = 1000 + i;
        allow.gids[i] = 2000 + i;
    }
    assert_allowed(&peer, &allow, true);
    peer.uid = 1064;
    assert_allowed(&peer, &allow, false);
    peer.groups_nr = PEER_GROUPS_MAX;
    peer.groups[PEER_GROUPS_MAX - 1] = 2063;
    assert_allowed(&peer, &allow, true);
}

static void read_own_end(struct peer *peer)
{
    int pair[2];
    struct error err;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    memset(peer, 0xa5, sizeof(*peer));
    assert_int_equal(peer_read(pair[0], peer, &err), MLACAT_OK);
    close(pair[0]);
    close(pair[1]);
}

static void test_peer_read_asks_the_kernel(void **state)
{
    (void)state;
    struct peer peer;
    read_own_end(&peer);
    assert_int_equal(peer.pid, getpid());
    assert_int_equal(peer.uid, getuid());
    assert_int_equal(peer.gid, getgid());
    kernel_groups_nr = 3;
    read_own_end(&peer);
    assert_int_equal(peer.groups_nr, 3);
    assert_int_equal(peer.groups[2], 1002);
}

static void test_peer_read_cuts_many_groups(void **state)
{
    (void)state;
    struct peer peer;
    kernel_groups_nr = PEER_GROUPS_MAX + 1;
    read_own_end(&peer);
    assert_int_equal(peer.groups_nr, PEER_GROUPS_MAX);
    assert_int_equal(peer.groups[PEER_GROUPS_MAX - 1], 1000 + PEER_GROUPS_MAX - 1);
}

static void test_peer_read_without_groups_allows_less(void **state)
{
    (void)state;
    struct peer peer;
    groups_error = ENOPROTOOPT;
    read_own_end(&peer);
    assert_int_equal(peer.groups_nr, 0);
}

static void test_peer_read_fails_on_a_strange_descriptor(void **state)
{
    (void)state;
    struct peer peer;
    struct error err;
    assert_int_equal(peer_read(-1, &peer, &err), MLACAT_INTERNAL);
    assert_non_null(strstr(err.message, strerror(EBADF)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_peer_root_and_own_user_are_operators, set_up),
        cmocka_unit_test_setup(test_peer_gid_zero_is_no_operator, set_up),
        cmocka_unit_test_setup(test_peer_allowed_by_uid, set_up),
        cmocka_unit_test_setup(test_peer_allowed_by_group, set_up),
        cmocka_unit_test_setup(test_peer_overflow_ids_match_nothing, set_up),
        cmocka_unit_test_setup(test_peer_full_lists, set_up),
        cmocka_unit_test_setup(test_peer_read_asks_the_kernel, set_up),
        cmocka_unit_test_setup(test_peer_read_cuts_many_groups, set_up),
        cmocka_unit_test_setup(test_peer_read_without_groups_allows_less, set_up),
        cmocka_unit_test_setup(test_peer_read_fails_on_a_strange_descriptor, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
