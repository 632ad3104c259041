/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets as a client makes them, for tests of the decoder and seeds of its fuzzer.
 *
 * Owns:     nothing; a packet's parts stand in one struct of the caller and point to each other, so it must not be
 * copied. Thread:   any. Lifetime: the caller's. Errors:   none.
 */
#ifndef MLACAT_TESTS_WIRE_PACKETS_H
#define MLACAT_TESTS_WIRE_PACKETS_H

#include "mlacat.pb-c.h"

#define PACKET_CALLS_MAX 2000

/* An Envelope with a RegisterBuffer of the given memory. */
struct registration {
    Mlacat__V1__Envelope envelope;
    Mlacat__V1__RegisterBuffer body;
    Mlacat__V1__Memory memory;
    Mlacat__V1__HostMemory host;
    Mlacat__V1__CudaIpcMemory ipc;
    Mlacat__V1__CudaVmmMemory vmm;
    Mlacat__V1__CudaVmmChunk chunks[80];
    Mlacat__V1__CudaVmmChunk *chunk_list[80];
    uint8_t handle[80];
};

/* An Envelope with a RegisterEvent: request 78, handle as that of a registration. */
struct event_registration {
    Mlacat__V1__Envelope envelope;
    Mlacat__V1__RegisterEvent body;
    uint8_t handle[80];
};

/* An Envelope with a Submit of one proper call; `calls` repeats it. */
struct submission {
    Mlacat__V1__Envelope envelope;
    Mlacat__V1__Submit body;
    Mlacat__V1__StreamRef stream;
    Mlacat__V1__Call call;
    Mlacat__V1__Call *calls[PACKET_CALLS_MAX];
    Mlacat__V1__Operand operands[4];
    Mlacat__V1__Operand *operand_list[4];
    Mlacat__V1__BufferRef buffers[4];
    Mlacat__V1__InlineMemory inlines[4];
    Mlacat__V1__EventRef event; /* 50.51; named by no call */
    uint64_t shape[4][4];
    int64_t strides[4][4];
};

/* Request 77 for device "host"; fields of all three kinds are filled, `kind` chooses. Chunk i is descriptor i, 1000 + i
 * bytes. */
void packet_registration(struct registration *r, Mlacat__V1__Memory__KindCase kind);
void packet_event_registration(struct event_registration *r);
/* Call 1234567890123, concat_mla_k on registered buffers; each number of it is another one. */
void packet_submission(struct submission *s);
/* Makes operand `index` carry the memory of `r`. */
void packet_set_inline(struct submission *s, uint32_t index, struct registration *r);

#endif
