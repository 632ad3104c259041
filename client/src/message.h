/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The requests of mlacat.proto and their replies, all but Submit and Completions (wire.h).
 *
 * Owns:     nothing; an unpacked Envelope is the caller's: message_free.
 * Thread:   any.
 * Lifetime: a request message lives in the caller's memory.
 * Errors:   message_check: what the daemon answered, or INTERNAL for a reply of another kind.
 */
#ifndef MLACAT_CLIENT_MESSAGE_H
#define MLACAT_CLIENT_MESSAGE_H

#include <mlacat.pb-c.h>

#include "client.h"

typedef Mlacat__V1__Envelope message;

/* NULL: it does not parse, or memory is out. */
message *message_unpack(const uint8_t *packet, size_t size);
void message_free(message *reply);

/* The status that a message carries: an Answer's; OK for any other. */
void message_status(const message *reply, struct error *err);
/* OK: the reply has the body that was asked for (MLACAT__V1__ENVELOPE__BODY_...; ANSWER: success without a result). */
enum mlacat_status message_check(const message *reply, int body, struct error *err);

/* RegisterBuffer of `buffer`, whose descriptors are those of the packet; OpenStream on `device`. It points into itself
 * and into the buffer. */
struct message_register {
    message envelope;
    Mlacat__V1__RegisterBuffer body;
    Mlacat__V1__Memory memory;
    union {
        Mlacat__V1__HostMemory host;
        Mlacat__V1__CudaIpcMemory cuda_ipc;
        Mlacat__V1__CudaVmmMemory cuda_vmm;
    };
    Mlacat__V1__CudaVmmChunk chunk[WIRE_PACKET_FDS];
    Mlacat__V1__CudaVmmChunk *chunks[WIRE_PACKET_FDS];
};
void message_register(struct message_register *request, struct mlacat_buffer *buffer);

struct message_register_event {
    message envelope;
    Mlacat__V1__RegisterEvent body;
};
/* Points into the event. */
void message_register_event(struct message_register_event *request, struct mlacat_event *event);

struct message_open {
    message envelope;
    Mlacat__V1__OpenStream body;
};
void message_open(struct message_open *request, struct mlacat_stream *stream);

/* References of the daemon's replies. */
struct wire_ref message_buffer_ref(const Mlacat__V1__BufferRef *ref);
struct wire_ref message_event_ref(const Mlacat__V1__EventRef *ref);
struct wire_ref message_stream_ref(const Mlacat__V1__StreamRef *ref);

#endif
