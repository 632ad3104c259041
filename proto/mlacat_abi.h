/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layout of the shared-memory rings: types and asserted offsets, no function. mlacat_ring.h has the rules of who reads
 * and writes which word in which order.
 *
 * A stream with a ring takes its calls from shared memory instead of packets. All rings of a connection stand in two
 * memfds, both made and sized by the daemon and passed with RingsOpened:
 *   C  the client writes, the daemon reads: a struct mlacat_ring_client for each ring, then their submission entries.
 *      To the daemon it is untrusted input: every word is read once, copied, checked, used from the copy.
 *   D  the daemon writes, the client maps it read-only (sealed with F_SEAL_FUTURE_WRITE): a struct mlacat_ring_daemon
 *      for each ring, then their completion entries, then the texts of completions that are not OK.
 * Offsets, the number of entries (a power of two) and the feature bits are told in the RingsOpened message and not
 * compiled in, so that the layout can grow. Indices count up for ever and wrap at 2^32; the entry of an index is
 * index & (entries - 1). Every word that one side polls while the other writes stands on a 128-byte line of its own
 * (processors fetch pairs of lines). All numbers are in host byte order: both sides are one machine.
 *
 * The sequence number of a call is how many entries were submitted on its ring up to and with it: one more than
 * StreamOpened.sequence for a stream's first, 64 bits wide. It is what the fence words hold, and its low 32 bits are
 * submit_tail after it.
 */
#ifndef MLACAT_ABI_H
#define MLACAT_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define MLACAT_ABI_ASSERT(cond, text) static_assert(cond, text)
#define MLACAT_ABI_ALIGN(n) alignas(n)
#else
#define MLACAT_ABI_ASSERT(cond, text) _Static_assert(cond, text)
#define MLACAT_ABI_ALIGN(n) _Alignas(n)
#endif

#define MLACAT_ABI_LINE 128u
#define MLACAT_ABI_OPERANDS 3u
#define MLACAT_ABI_MESSAGE_BYTES 256u

/* A buffer as BufferRef of mlacat.proto. */
struct mlacat_ring_buffer {
    uint32_t id;
    uint32_t generation;
};

/* One call. Shapes follow from the four extents by the op table. */
struct mlacat_ring_submission {
    uint64_t call_id; /* echoed in the completion */
    uint16_t op;      /* mlacat_ops.def */
    uint16_t dtype;   /* mlacat_dtypes.def */
    uint32_t flags;   /* MLACAT_RING_SUBMIT_* */
    uint64_t ready;   /* with MLACAT_RING_SUBMIT_READY: launch when the stream's ready word has reached this value; with
                         MLACAT_RING_SUBMIT_CANCEL: the call_id of the call to drop */
    uint64_t deadline_us; /* as Call.deadline_us */
    struct mlacat_ring_buffer buffer[MLACAT_ABI_OPERANDS];
    uint64_t offset_bytes[MLACAT_ABI_OPERANDS];
    uint64_t dim0;
    uint64_t dim1;
    uint64_t width_first;
    uint64_t width_second;
    int64_t stride[MLACAT_ABI_OPERANDS][2]; /* elements, of dimensions 0 and 1; the last one's is 1 */
    struct mlacat_ring_buffer ready_buffer; /* with MLACAT_RING_SUBMIT_READY_BUFFER, else not looked at: of the */
    uint64_t ready_offset_bytes;            /* stream's device; and where in it the word is, of 8 bytes */
    uint64_t reserved[2];                   /* zero */
};

/* A flag that is not here, another one beside MLACAT_RING_SUBMIT_CANCEL, MLACAT_RING_SUBMIT_READY_BUFFER without
 * MLACAT_RING_SUBMIT_READY, or a reserved word that is not zero ends the connection. */

/* Launch when the stream's `ready` word has reached `ready` (as a signed difference: it may wrap). No
 * doorbell tells of the word. All behind the call on its stream waits with it. One whose value never comes can be
 * cancelled, ends at its deadline, or with the connection. */
#define MLACAT_RING_SUBMIT_READY (1u << 0)
/* The client writes the same value into a word of a buffer too, before it writes it into `ready`: a GPU that waits for
 * the call by itself may look there instead, which takes it half the time if the buffer is in its own memory. It may
 * launch when either word says so; where only this one does not, the call comes later. The word keeps to the rules of
 * `ready` (mlacat_ring.h) and is this stream's alone. From the submit on it must not be at the value, or ahead of it,
 * until the work that the call waits for is done: memory that was never written may hold anything. The daemon never
 * writes it. An unknown buffer, another device's, or a place that is not inside, or in the buffer's allocation not at a
 * multiple of 8 bytes, fails the call, as with an operand. The buffer stays until the call has ended. */
#define MLACAT_RING_SUBMIT_READY_BUFFER (1u << 3)
/* When the call has ended, also when it failed or was dropped with its connection, its sequence number is written into
 * the stream's `done` word, in order. */
#define MLACAT_RING_SUBMIT_DONE (1u << 1)
/* Not a call: asks to drop the call whose id is in `ready`, if it is not launched. `call_id` is that of the request,
 * which gets a completion of its own: OK, NOT_FOUND or FAILED_PRECONDITION (launched: it will finish). It counts as an
 * entry in sequence numbers; its other fields are not looked at. */
#define MLACAT_RING_SUBMIT_CANCEL (1u << 2)

/* How an entry ended: one for each, in the order that OpenStream of mlacat.proto promises. When status is not OK the
 * text at the same index of the texts says why, NUL-terminated. */
struct mlacat_ring_completion {
    uint64_t call_id;
    uint16_t status; /* mlacat_status.def */
    uint16_t scope;
    uint32_t reserved;
    uint64_t queue_ns;
    uint64_t device_ns;
};

/* One ring in page C. */
struct mlacat_ring_client {
    MLACAT_ABI_ALIGN(128) uint32_t submit_tail;   /* client: entries written; daemon polls */
    MLACAT_ABI_ALIGN(128) uint32_t complete_head; /* client: completions read; daemon reads when it may be full */
    MLACAT_ABI_ALIGN(128)
    uint32_t waiting;                     /* client: 1 while it sleeps on the futex complete_tail, or is about to */
    MLACAT_ABI_ALIGN(128) uint64_t ready; /* client, or its GPU: value reached by the work that calls wait for */
    MLACAT_ABI_ALIGN(128)
    uint64_t done; /* daemon, or its GPU: sequence number that a client's GPU waits for; never read back */
};

/* One ring in page D. */
struct mlacat_ring_daemon {
    MLACAT_ABI_ALIGN(128) uint32_t submit_head;   /* daemon: entries taken; client reads when the ring may be full */
    MLACAT_ABI_ALIGN(128) uint32_t complete_tail; /* daemon: completions written; client polls, and sleeps on it */
    MLACAT_ABI_ALIGN(128) uint32_t sleeping;      /* daemon: 1 when the worker must be woken through the doorbell */
    uint32_t reserved;
    uint64_t looked_ns; /* daemon: when, by CLOCK_MONOTONIC, the worker looked into the ring, to 100 us, while it does
                           not sleep or work on a call; 0: never yet, or no more */
    /* device: sequence number of the last call whose output is written. All calls up to it have ended, and those that
     * failed are counted in `failed`. A call that failed moves it only with MLACAT_RING_SUBMIT_DONE, a request to
     * cancel never; the next call that ends OK moves it past them. */
    MLACAT_ABI_ALIGN(128) uint64_t fence;
    uint32_t failed; /* daemon: entries that did not end OK, of all streams that the ring had; counted before the fence
                        passes them */
};

MLACAT_ABI_ASSERT(sizeof(struct mlacat_ring_submission) == 192, "a submission entry is 192 bytes");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, op) == 8, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, dtype) == 10, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, flags) == 12, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, ready) == 16, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, deadline_us) == 24, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, buffer) == 32, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, offset_bytes) == 56, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, dim0) == 80, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, dim1) == 88, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, width_first) == 96, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, width_second) == 104, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, stride) == 112, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, ready_buffer) == 160, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, ready_offset_bytes) == 168, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_submission, reserved) == 176, "layout");

MLACAT_ABI_ASSERT(sizeof(struct mlacat_ring_completion) == 32, "a completion entry is 32 bytes");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_completion, status) == 8, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_completion, scope) == 10, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_completion, queue_ns) == 16, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_completion, device_ns) == 24, "layout");

MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_client, submit_tail) == 0, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_client, complete_head) == 128, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_client, waiting) == 256, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_client, ready) == 384, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_client, done) == 512, "layout");
MLACAT_ABI_ASSERT(sizeof(struct mlacat_ring_client) == 640, "layout");

MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_daemon, submit_head) == 0, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_daemon, complete_tail) == 128, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_daemon, sleeping) == 256, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_daemon, fence) == 384, "layout");
MLACAT_ABI_ASSERT(offsetof(struct mlacat_ring_daemon, failed) == 392, "layout");
MLACAT_ABI_ASSERT(sizeof(struct mlacat_ring_daemon) == 512, "layout");

#endif
