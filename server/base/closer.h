/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Closing descriptors that a stranger made. The last close of one may block for as long as its maker likes (a socket
 * with SO_LINGER, a file of a FUSE mount), and so may the last close of a client's socket, which drops the descriptors
 * in packets that nobody read. So it happens on threads of its own, one for each user who has something to close: one
 * user's descriptors do not wait for another's.
 *
 * Owns:     those threads, started at the first use, and the descriptors that wait for them.
 * Thread:   any.
 * Lifetime: the process; what still waits at its end the system closes.
 * Errors:   none; where the system gives no thread, the descriptor is closed by the caller.
 */
#ifndef MLACAT_BASE_CLOSER_H
#define MLACAT_BASE_CLOSER_H

#include <stdbool.h>
#include <stdint.h>

/* Users with a thread; where there are more, some share one. */
#define CLOSER_USERS 64
/* Descriptors of one user that may wait before nothing more should be taken from that user. */
#define CLOSER_USER_FDS 1024
/* Descriptors that may wait. A process that limits itself to as many open files never has more. */
#define CLOSER_FDS 65536

/* True if the close cannot block: a memfd of few pages. */
bool closer_is_quick(int fd);

/* Takes the descriptor, which came from `user`. One that is quick is closed at once. */
void closer_close(int fd, uint32_t user);

/* Takes a connected socket of `user`: the peer sees the end at once; then what is unread is dropped and the socket
 * closed. Dropping first lets the peer read our last packet; a socket closed with packets unread gives it ECONNRESET
 * instead. */
void closer_hang_up(int fd, uint32_t user);

/* Descriptors of the user that are not closed yet. */
uint32_t closer_waiting(uint32_t user);

/* Waits until everything is closed; false: that took longer. */
bool closer_flush(uint32_t timeout_ms);

#endif
