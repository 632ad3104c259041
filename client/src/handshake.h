/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A new connection before other threads see it: connect, Hello, and requests one at a time.
 *
 * Owns:     the new socket, and the pidfd in `server`, until handshake_connect returns them.
 * Thread:   any; touches no client. Blocks until `deadline` (timing.h).
 * Lifetime: -
 * Errors:   in `err`. UNAVAILABLE: nobody listens, or the connection ended; DEADLINE_EXCEEDED: no answer in time;
 *           PERMISSION_DENIED; FAILED_PRECONDITION: another protocol version; what else the daemon answers.
 */
#ifndef MLACAT_CLIENT_HANDSHAKE_H
#define MLACAT_CLIENT_HANDSHAKE_H

#include "message.h"

/* Connects to the socket at `path` and says Hello as `name`. The socket is blocking and close-on-exec. */
enum mlacat_status handshake_connect(const char *path, const char *name, int64_t deadline, int *fd,
                                     struct server *server, struct error *err);

#define HANDSHAKE_HELLO_ID 1 /* request_id of Hello; every later request has a number of its own */

enum handshake_answer {
    HANDSHAKE_DONE,    /* the reply is there */
    HANDSHAKE_REFUSED, /* the daemon answered this request with an error; the connection is good */
    HANDSHAKE_LOST     /* the connection is of no use any more: it ended, is silent, or says what was not asked */
};

/* Sends a request, whose request_id is set, with its descriptors (NULL: none) and waits for the reply to it with the
 * body `body`; with HANDSHAKE_DONE the reply and the descriptors in *passed (NULL: they are closed) are the caller's,
 * else `err` is filled. */
enum handshake_answer handshake_exchange(int socket, message *request, const struct wire_fds *fds, int body,
                                         int64_t deadline, message **reply, struct wire_fds *passed, struct error *err);

#endif
