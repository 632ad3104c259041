/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection on a loop of its own, the peer's end of its socket, and what its handlers were told: for tests of
 * conn.
 *
 * Owns:     all of that; client_tear_down checks that every descriptor has been closed.
 * Thread:   one.
 * Lifetime: client_set_up -> client_tear_down.
 * Errors:   fail the running test.
 */
#ifndef MLACAT_TESTS_CONN_CLIENT_H
#define MLACAT_TESTS_CONN_CLIENT_H

#include <sys/types.h>

#include "conn.h"

#define CLIENT_KEEP_FD (-2)

struct client {
    struct conn conn;
    int peer;
    uint32_t packets;
    size_t last_size;
    uint8_t last_byte;
    uint32_t last_fds;
    int taken_fd; /* CLIENT_KEEP_FD: take the first descriptor of the next packet */
    uint32_t ends;
    struct error why;
    uint32_t writables;
    uint32_t closed;
    uint32_t act_at; /* on the packet of this number (from 1) ... */
    void (*act)(struct client *client);
    void (*act_on_end)(struct client *client);
};

extern uv_loop_t client_loop;
extern struct conn_reader *client_reader;
extern const struct conn_handlers client_handlers;
extern struct client client;
extern uint8_t client_bytes[CONN_PACKET_BYTES + 1]; /* of the packet that the peer sent or received last */

/* recvmmsg, sendmsg and uv_poll_start are wrapped (ld --wrap). */
extern int client_recv_calls;   /* of recvmmsg */
extern int client_recv_error;   /* errno of the next recvmmsg; 0: the real one */
extern int client_send_error;   /* errno of every sendmsg; 0: the real one */
extern int client_mask_changes; /* calls of uv_poll_start */

/* The first loop of a process opens descriptors that stay. */
int client_group_set_up(void **state);
int client_set_up(void **state);
int client_tear_down(void **state);

/* A second connection on the same loop and reader. */
void client_open(struct client *c);
void client_close(struct client *c);

/* One turn of the loop that does not wait; as many as it takes for all that is due. */
void client_turn(void);
void client_settle(void);
int client_count_fds(void);

/* Sends packets of 32 KiB, each with its number as first byte, until one has to wait. Returns how many were sent. */
uint32_t client_fill_socket(struct client *c);
/* on_end was called once with this code and text, and nothing is read any more. */
void client_assert_ended(enum mlacat_status code, const char *part);

/* Sends client_bytes with another first byte, and copies of standard error. */
void peer_send(int peer, uint8_t first, size_t size, uint32_t fds_nr);
/* Reads one packet; its descriptors are counted and closed. -1: there is none, errno says why. */
ssize_t peer_receive(int peer, uint32_t *fds_nr);

#endif
