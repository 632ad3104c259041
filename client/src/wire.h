/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two messages of the fast path, Submit and Completions, without protobuf-c: no memory is allocated, a call costs
 * tens of nanoseconds. Every other message goes through the generated code (message.h).
 *
 * Owns:     nothing.
 * Thread:   any.
 * Lifetime: what is decoded points into the packet.
 * Errors:   WIRE_BROKEN / -1: the packet is no valid protobuf.
 */
#ifndef MLACAT_CLIENT_WIRE_H
#define MLACAT_CLIENT_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "mlacat/mlacat.h"

#define WIRE_PACKET_BYTES 65536u
#define WIRE_PACKET_FDS 64
#define WIRE_PROTOCOL_VERSION 1u
#define WIRE_CALL_BYTES_MAX 384u /* no encoded call is longer */
/* Calls that surely fit into one packet beside its head. */
#define WIRE_PACKET_CALLS ((WIRE_PACKET_BYTES - 64u) / WIRE_CALL_BYTES_MAX)

/* BufferRef, EventRef and StreamRef. */
struct wire_ref {
    uint32_t id;
    uint32_t generation;
};

/* Descriptors that go with a packet. */
struct wire_fds {
    uint32_t nr;
    int fd[WIRE_PACKET_FDS];
};
struct msghdr;
/* Adds those of a received packet. */
void wire_take_fds(struct msghdr *header, struct wire_fds *fds);
void wire_close_fds(struct wire_fds *fds);

/*
 * Messages are written from their end to their front, because a protobuf message stands behind its own length: give the
 * end of the free space and go on with the start that is returned. The last call of a Submit is written first. `event`
 * NULL: the call waits for none.
 */
uint8_t *wire_put_call(uint8_t *end, const struct mlacat_call *call, const struct wire_ref buffers[3],
                       const struct wire_ref *event, uint64_t call_id);
/* Puts the Envelope and the stream before the calls, which end at `packet_end`. */
uint8_t *wire_put_submit_head(uint8_t *calls, const uint8_t *packet_end, struct wire_ref stream);

enum wire_packet {
    WIRE_COMPLETIONS, /* read them with wire_next_completion */
    WIRE_OTHER,       /* some other message */
    WIRE_BROKEN
};

struct wire_cursor {
    const uint8_t *at;
    const uint8_t *end;
};

enum wire_packet wire_open(struct wire_cursor *cursor, const uint8_t *packet, size_t size);

struct wire_completion {
    uint64_t call_id;
    uint64_t queue_ns;
    uint64_t device_ns;
    uint32_t code; /* as sent: any number */
    uint32_t scope;
    size_t message_bytes;
    const char *message; /* not NUL-terminated */
};

/* 1: *completion is the next one. 0: there is none. -1: broken. */
int wire_next_completion(struct wire_cursor *cursor, struct wire_completion *completion);

#endif
