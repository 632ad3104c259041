/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "listener.h"

/* A peer in more groups than fit: the kernel gives all or none. */
static void read_many_groups(int fd, socklen_t bytes, struct peer *peer)
{
    gid_t *groups = malloc(bytes);
    if (groups != NULL && getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &bytes) == 0) {
        peer->groups_nr = PEER_GROUPS_MAX;
        memcpy(peer->groups, groups, sizeof(peer->groups));
    }
    free(groups);
}

enum mlacat_status peer_read(int fd, struct peer *peer, struct error *err)
{
    struct ucred credentials;
    socklen_t bytes = sizeof(credentials);
    memset(peer, 0, sizeof(*peer));
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0) {
        return error_set(err, MLACAT_INTERNAL, "the kernel does not say who client descriptor %d is: %s", fd,
                         strerror(errno));
    }
    peer->pid = credentials.pid;
    peer->uid = credentials.uid;
    peer->gid = credentials.gid;
    bytes = sizeof(peer->groups);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, peer->groups, &bytes) == 0) {
        peer->groups_nr = (uint32_t)(bytes / sizeof(gid_t));
    } else if (errno == ERANGE) {
        read_many_groups(fd, bytes, peer);
    }
    /* Any other error: no supplementary groups, which allows less and never more. */
    return MLACAT_OK;
}

static bool uid_matches(uid_t uid, uid_t wanted)
{
    return uid == wanted && uid != PEER_OVERFLOW_ID;
}

static bool gid_listed(gid_t gid, const struct allow_list *allow)
{
    for (uint32_t i = 0; i < allow->gids_nr && gid != PEER_OVERFLOW_ID; i++) {
        if (allow->gids[i] == gid) {
            return true;
        }
    }
    return false;
}

bool peer_is_operator(const struct peer *peer)
{
    return peer->uid == 0 || uid_matches(peer->uid, geteuid());
}

bool peer_allowed(const struct peer *peer, const struct allow_list *allow)
{
    if (peer_is_operator(peer) || gid_listed(peer->gid, allow)) {
        return true;
    }
    for (uint32_t i = 0; i < allow->uids_nr; i++) {
        if (uid_matches(peer->uid, allow->uids[i])) {
            return true;
        }
    }
    for (uint32_t i = 0; i < peer->groups_nr; i++) {
        if (gid_listed(peer->groups[i], allow)) {
            return true;
        }
    }
    return false;
}
