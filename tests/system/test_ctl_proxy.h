/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A man in the middle of mlacatctl and a daemon: forwards packets and descriptors, and does one thing wrong.
 *
 * Owns:     a child process and the socket that it listens at.
 * Thread:   the main thread of the test.
 * Lifetime: proxy_start -> proxy_stop; it serves one client after the other.
 * Errors:   a failed check (require.h) in the child.
 */
#ifndef MLACAT_TESTS_CTL_PROXY_H
#define MLACAT_TESTS_CTL_PROXY_H

#include <stddef.h>

#include "require.h"
#include "server.h"

enum proxy_fault {
    PROXY_REFUSES,  /* answers everybody with PERMISSION_DENIED, as the daemon does to a user who is not allowed */
    PROXY_MUTE,     /* forwards the first packet of either side (Hello, Welcome), and nothing after them */
    PROXY_CORRUPTS, /* changes a byte of the first registered buffer before it forwards what the daemon says */
};

struct proxy {
    struct child child;
    enum proxy_fault fault;
    size_t offset; /* PROXY_CORRUPTS: of the byte */
    const char *target;
    char socket[SERVER_PATH_BYTES];
};

/* Listens beside the daemon's socket. */
void proxy_start(struct proxy *proxy, const struct server *server, enum proxy_fault fault, size_t offset);
void proxy_stop(struct proxy *proxy);

#endif
