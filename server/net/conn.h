/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One client's socket: packets in with their descriptors, packets out, back-pressure. Knows no protobuf.
 *
 * Owns:     the socket, its poll handle, and the packets that the socket would not take yet.
 * Thread:   the loop thread.
 * Lifetime: conn_open -> conn_close -> on_closed (then the memory may be freed). conn_close may be called from a
 *           handler.
 * Errors:   given to on_end: OK = the peer closed; else what the peer broke or what the socket said.
 */
#ifndef MLACAT_NET_CONN_H
#define MLACAT_NET_CONN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "list.h"
#include "status.h"

#define CONN_PACKET_BYTES 65536
#define CONN_PACKET_FDS 64
/* Packets read from one connection in one turn of the loop; then the others have theirs. */
#define CONN_BATCH_PACKETS 16
/* Packets that may wait for a slow reader; nothing is read from a client while one waits, so only replies to requests
 * that were under way can add to it. One more breaks the connection (on_end with RESOURCE_EXHAUSTED). */
#define CONN_QUEUE_PACKETS 256

struct conn_packet {
    const uint8_t *bytes; /* until the handler returns */
    size_t size;          /* never 0 */
    uint32_t fds_nr;
    int fds[CONN_PACKET_FDS]; /* CLOEXEC. The handler takes one by putting -1 in its place; conn closes the rest. */
};

/* All are called from the loop, never from within a function of this header. Each may call any of those functions. */
struct conn_handlers {
    void (*on_packet)(void *owner, struct conn_packet *packet);
    /* Nothing more will be read; called once, never after conn_close. The owner calls conn_close, now or later.
     * OK: the peer is gone. Else with scope SESSION: INVALID_ARGUMENT (a packet too large or with too many
     * descriptors), RESOURCE_EXHAUSTED (the queue is full, no memory or descriptor was left), INTERNAL (an error of the
     * socket). */
    void (*on_end)(void *owner, const struct error *why);
    /* The queue is empty again after a packet had to wait or conn_try_send was false. */
    void (*on_writable)(void *owner);
    /* After conn_close: the memory of the conn is the owner's again. */
    void (*on_closed)(void *owner);
};

/* Buffers that all connections of one loop read into (a batch of packets by one recvmmsg). */
struct conn_reader;

/* NULL: out of memory. */
struct conn_reader *conn_reader_new(void);
void conn_reader_free(struct conn_reader *reader);

/*
 * OPEN -> ENDING    (a send failed: on_end is due in the next turn of the loop)
 * OPEN -> ENDED     (the peer is gone or broke the protocol: on_end was called)
 * ENDING -> ENDED   (on_end was called)
 * any -> CLOSING    (conn_close was called)
 */
enum conn_state { CONN_OPEN, CONN_ENDING, CONN_ENDED, CONN_CLOSING };

struct conn {
    uv_poll_t poll;
    uv_timer_t end_timer; /* brings a failed send to on_end from the loop */
    uint32_t uv_handles;  /* open: poll and end_timer */
    enum conn_state state;
    int fd;
    uint32_t user; /* at the other end: whose descriptors come */
    int events;    /* that the poll handle is armed for */
    struct conn_reader *reader;
    const struct conn_handlers *handlers;
    void *owner;
    struct list_node queue; /* packets not yet taken by the socket */
    uint32_t queue_nr;
    bool costly;         /* its last batch took long */
    bool paused;         /* by conn_pause */
    bool wants_writable; /* conn_try_send was false */
    struct error why;    /* ENDING: for on_end */
};

/* Takes `fd` (non-blocking SOCK_SEQPACKET) in every outcome and starts reading. INTERNAL: the loop refused it; then the
 * conn is not open: no conn_close, no on_closed. */
enum mlacat_status conn_open(struct conn *conn, uv_loop_t *loop, struct conn_reader *reader, int fd, uint32_t user,
                             const struct conn_handlers *handlers, void *owner, struct error *err);

/* Sends one packet of 1..CONN_PACKET_BYTES bytes, or keeps a copy until the socket takes it, in order. `fds` stay the
 * caller's (duplicated if kept). After on_end it is tried once and never kept: so the peer can be told why. */
void conn_send(struct conn *conn, const uint8_t *bytes, size_t size, const int *fds, uint32_t fds_nr);

/* True if a packet given to conn_send now would not have to wait behind others. */
bool conn_can_send(const struct conn *conn);

/* Sends one packet if the socket takes it now; false = it does not: nothing was kept, on_writable will come. True
 * without effect when the connection has ended. For completions, which wait in their calls and need no copy. */
bool conn_try_send(struct conn *conn, const uint8_t *bytes, size_t size);

/* Stops and resumes reading, for an owner that has no room for more requests. A pause from within on_packet holds from
 * the next batch on: up to CONN_BATCH_PACKETS - 1 packets that were read already still come. The end of a paused peer
 * is told at once, and what it sent before is lost. */
void conn_pause(struct conn *conn, bool paused);

/* Drops what is queued and what was not read, closes the socket; on_closed follows from the loop. Packets that the
 * socket took before can still be read by the peer. A second call does nothing. */
void conn_close(struct conn *conn);

#endif
