/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Closing descriptors that a stranger made. The last close of one may block for as long as its maker likes (a socket
 * with SO_LINGER, a file of a FUSE mount), and so may the last close of a client's socket, which drops the descriptors
 * in packets that nobody read. So it happens on a thread of its own.
 *
 * Owns:     that thread, started at the first use, and the descriptors that wait for it.
 * Thread:   any.
 * Lifetime: the process; what still waits at its end the system closes.
 * Errors:   none; where the system gives no thread, the descriptor is closed by the caller.
 */
#ifndef MLACAT_BASE_CLOSER_H
#define MLACAT_BASE_CLOSER_H

#include <stdbool.h>
#include <stdint.h>

/* Descriptors that may wait. A process that limits itself to as many open files never has more. */
#define CLOSER_FDS 65536

/* Takes the descriptor. One that is a memfd of few pages is closed at once: that cannot block. */
void closer_close(int fd);

/* Takes a connected socket: the peer sees the end at once; then what is unread is dropped and the socket closed.
 * Dropping first lets the peer read our last packet; a socket closed with packets unread gives it ECONNRESET
 * instead. */
void closer_hang_up(int fd);

/* Waits until everything is closed; false: that took longer. */
bool closer_flush(uint32_t timeout_ms);

#endif
