/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The socket that clients connect to: bound by us or passed in by systemd.
 *
 * Owns:     the listening socket, its lock file, and the path if we bound it.
 * Thread:   the loop thread.
 * Lifetime: listener_open -> listener_close -> on_closed.
 * Errors:   listener_open: INVALID_ARGUMENT (path empty or too long, something else than a socket is there, its
 * folder's folder is missing, the passed descriptor is no SOCK_SEQPACKET listener), ALREADY_EXISTS (another process
 * serves the path), PERMISSION_DENIED, INTERNAL. The message names the path and what to do.
 */
#ifndef MLACAT_NET_LISTENER_H
#define MLACAT_NET_LISTENER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/un.h>
#include <uv.h>

#include "status.h"

/* Who is at the other end, from the kernel (SO_PEERCRED, SO_PEERGROUPS), as it was at connect. */
#define PEER_GROUPS_MAX 64
struct peer {
    pid_t pid; /* 0: not in our pid namespace */
    uid_t uid;
    gid_t gid;
    uint32_t groups_nr; /* supplementary; more than PEER_GROUPS_MAX are cut */
    gid_t groups[PEER_GROUPS_MAX];
};

/* The number under which the kernel shows every user and group that our user namespace has no number for: nobody in
 * particular. It never matches anything, so a daemon or a runner cannot run as "nobody" of this number. */
#define PEER_OVERFLOW_ID 65534

#define ALLOW_MAX 64
struct allow_list {
    uint32_t uids_nr;
    uid_t uids[ALLOW_MAX];
    uint32_t gids_nr;
    gid_t gids[ALLOW_MAX];
};

/* Asks the kernel. INTERNAL: it did not say. */
enum mlacat_status peer_read(int fd, struct peer *peer, struct error *err);
/* Root, the daemon's own user, and whoever the list names by user, group or supplementary group may connect. */
bool peer_allowed(const struct peer *peer, const struct allow_list *allow);
/* Root and the daemon's own user may drain and change the log level. */
bool peer_is_operator(const struct peer *peer);

/* Clients accepted in one turn of the loop; then those that are connected have theirs. */
#define LISTENER_BATCH 16
/* How long nothing is accepted after accept failed for a reason that stays (no memory, no descriptor to spare). */
#define LISTENER_RETRY_MS 100

struct listener {
    uv_poll_t poll;
    uv_timer_t retry_timer;
    uint32_t uv_handles; /* open: poll and retry_timer */
    int fd;              /* -1: closed */
    int lock_fd;         /* of "<path>.lock"; -1 if the socket was passed in */
    int spare_fd;        /* given up to accept and refuse a client when no descriptor is left; -1: it is lost */
    bool bound;          /* the path is ours to unlink */
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    /* Set by the caller before listener_open; called from the loop, and may call listener_close. */
    void (*on_client)(void *owner, int fd, const struct peer *peer); /* takes the fd (non-blocking, CLOEXEC) */
    void (*on_closed)(void *owner);
    void *owner;
};

/*
 * Binds `path` with `mode` (its folder is made, mode 0755, if only the last component is missing; a socket that no
 * process serves any more is replaced), or takes `passed_fd` if that is not -1 (in every outcome; `path` is then not
 * used and may be NULL); starts accepting. After an error there is nothing to close.
 */
enum mlacat_status listener_open(struct listener *listener, uv_loop_t *loop, const char *path, mode_t mode,
                                 int passed_fd, struct error *err);

/* Stops accepting, unlinks the path if we bound it, releases the lock; on_closed follows from the loop. A second call
 * does nothing. */
void listener_close(struct listener *listener);

#endif
