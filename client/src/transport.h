/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets in and out of the connection, shared by all threads of a client. There is no reader thread: of the threads
 * that wait for something, one reads (blocking in recvmmsg) and hands out what arrives; the others are parked and one
 * of them takes over when it leaves. So a call that one thread makes and waits for costs one send and one receive.
 * A thread that wants space in the socket while another one reads polls for it beside the reader.
 *
 * Owns:     `reading`, `waiters`, `watchers`, and the packet buffers of a client.
 * Thread:   every function with the lock held; what waits lets go of it meanwhile.
 * Lifetime: -
 * Errors:   enum transport_sent; transport_recover: RESOURCE_EXHAUSTED, in `err`. A connection that ends while reading
 *           is ended here (reconnect_end).
 */
#ifndef MLACAT_CLIENT_TRANSPORT_H
#define MLACAT_CLIENT_TRANSPORT_H

#include <sys/types.h>

#include "client.h"

/* send() of one packet with its descriptors (NULL: none) that neither blocks nor raises SIGPIPE. Needs no lock. */
ssize_t transport_write(int socket, const uint8_t *packet, size_t size, const struct wire_fds *fds);

enum transport_sent {
    TRANSPORT_SENT,
    TRANSPORT_FULL,  /* the socket takes no more now */
    TRANSPORT_LOST,  /* the connection has ended */
    TRANSPORT_FAILED /* errno says why; the connection is as good as before */
};

/* Sends one packet with its descriptors (NULL: none), or nothing; never blocks. */
enum transport_sent transport_send(struct mlacat_client *client, const uint8_t *packet, size_t size,
                                   const struct wire_fds *fds);

/*
 * Makes one step in waiting: reads and hands out one batch of packets, or sleeps while another thread reads, until
 * `deadline` (TIMING_NEVER, TIMING_NO_WAIT). False: the time is over or there is no connection. The caller looks after
 * each step whether what it waits for has happened, and calls transport_leave after the last one.
 */
bool transport_step(struct mlacat_client *client, struct waiter *waiter, int64_t deadline);
/* Lets a parked thread read. */
void transport_leave(struct mlacat_client *client);

/* Wakes a thread that may be parked; NULL is fine. */
void transport_wake(struct waiter *waiter);
void transport_wake_all(struct mlacat_client *client);

/* After a packet was not sent (and before errno changes): waits for space until `deadline`, or for the end of the
 * connection. MLACAT_OK: try again, but check everything before, because the lock was free meanwhile. */
enum mlacat_status transport_recover(struct mlacat_client *client, enum transport_sent sent, int64_t deadline,
                                     struct error *err);
/* Ends the connection and waits until that is seen. */
void transport_await_end(struct mlacat_client *client);

/* Closes a socket that is not client->fd any more; as long as another thread polls it, it is only shut down. */
void transport_close(struct mlacat_client *client, int fd);

#endif
