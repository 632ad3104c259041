/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The translation between packets (proto/mlacat.proto) and plain structs. Pure: no I/O, no clock, no descriptors (only
 * indices into those of the packet).
 *
 * Owns:     a decoder owns an arena that one decoded message lives in; no other memory is allocated.
 * Thread:   one thread for a decoder; the encoders keep no state.
 * Lifetime: what wire_decode returns is valid until the next wire_decode on the same decoder.
 * Errors:   INVALID_ARGUMENT always; err->scope says what is lost. SESSION: the packet breaks the protocol. CALL: only
 * this request (wire_decode) or this call (wire_submit_call) is refused.
 */
#ifndef MLACAT_MODEL_WIRE_H
#define MLACAT_MODEL_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memory.h"
#include "op.h"
#include "status.h"

#define WIRE_PROTOCOL_VERSION 1
#define WIRE_PACKET_BYTES 65536
#define WIRE_PACKET_FDS 64
#define WIRE_NAME_BYTES 64 /* of client names and versions, with the NUL */
#define WIRE_UUID_BYTES 64 /* with the NUL */
#define WIRE_BOOT_ID_BYTES 16
#define WIRE_COMPLETIONS_MAX 128    /* in one packet: with the longest messages they fit into WIRE_PACKET_BYTES */
#define WIRE_FEATURES ((uint64_t)7) /* FEATURE_INLINE_MEMORY, FEATURE_EVENTS, FEATURE_RING */

/* BufferRef, EventRef and StreamRef. */
struct wire_ref {
    uint32_t id;
    uint32_t generation;
};

enum wire_kind {
    WIRE_HELLO,
    WIRE_REGISTER_BUFFER,
    WIRE_UNREGISTER_BUFFER,
    WIRE_OPEN_STREAM,
    WIRE_CLOSE_STREAM,
    WIRE_SUBMIT,
    WIRE_CANCEL,
    WIRE_STATS,
    WIRE_HEALTH,
    WIRE_DRAIN,
    WIRE_SET_LOG_LEVEL,
    WIRE_REGISTER_EVENT,
    WIRE_UNREGISTER_EVENT,
    WIRE_OPEN_RINGS,
    WIRE_KINDS
};

/* "Submit": for logs and messages. "unknown" for a number out of the enum. */
const char *wire_kind_name(enum wire_kind kind);

/* Texts are NUL-terminated printable ASCII: any other byte has become '?', and a text that did not fit is cut and ends
 * in '?', so that a name that is too long is found nowhere. Only the members of `kind` are filled. */
struct wire_message {
    uint64_t request_id;
    enum wire_kind kind;
    union {
        struct {
            uint32_t protocol_version;
            uint64_t required_features;
            char client_name[WIRE_NAME_BYTES];
            char client_version[WIRE_NAME_BYTES];
        } hello;
        struct {
            char device_uuid[WIRE_UUID_BYTES];
            struct memory_request memory; /* fds[] hold indices */
        } register_buffer;
        struct wire_ref unregister_buffer;
        struct {
            char device_uuid[WIRE_UUID_BYTES];
            bool ring;
        } open_stream;
        struct wire_ref close_stream;
        struct {
            struct wire_ref stream;
            uint32_t calls_nr;
        } submit; /* its calls: wire_submit_call */
        struct {
            struct wire_ref stream;
            uint64_t call_id;
        } cancel;
        struct {
            char level[16];
        } set_log_level;
        struct {
            char device_uuid[WIRE_UUID_BYTES];
            uint8_t handle[MEMORY_HANDLE_BYTES];
        } register_event;
        struct wire_ref unregister_event;
    };
};

/* One operand's memory. */
struct wire_operand {
    bool is_inline;
    struct wire_ref buffer;       /* only if !is_inline */
    struct memory_request memory; /* only if is_inline: else not even cleared, for it is large; fds[] hold indices */
};

struct wire_call {
    uint64_t call_id;
    uint64_t deadline_us; /* 0 = none */
    bool waits;
    struct wire_ref wait_event; /* only if `waits` */
    struct op_request request;
    struct wire_operand operand[OP_OPERANDS];
};

struct wire_decoder;

/* NULL: out of memory. */
struct wire_decoder *wire_decoder_new(void);
void wire_decoder_free(struct wire_decoder *decoder);

/*
 * Reads one client-to-daemon packet that came with `fds_nr` descriptors. Checks that it parses, that its body is one a
 * client may send, that a request has a request_id (Submit needs none), and that its fd indices name each of the
 * packet's descriptors exactly once. Error with scope SESSION: end the connection. message->request_id is what could be
 * read of it, or 0; kind is the body's, or WIRE_KINDS if there is none. Error with scope CALL: answer the request with
 * the error and go on. request_id and kind are valid, the rest is not. It is a RegisterBuffer with memory of no kind, a
 * handle not of 64 bytes, or not 1..64 chunks; or a RegisterEvent with such a handle. `err` is written only on error.
 */
enum mlacat_status wire_decode(struct wire_decoder *decoder, const uint8_t *bytes, size_t size, uint32_t fds_nr,
                               struct wire_message *message, struct error *err);

/*
 * Call `index` (< calls_nr) of the Submit decoded last. On error call->call_id is set all the same, the rest is not:
 * the call can be answered. INVALID_ARGUMENT with scope CALL: not three operands, not three extents or strides, an
 * operand without memory, inline memory that a RegisterBuffer would be refused for. Op, dtype, extents, deadline and
 * references go through unchecked.
 */
enum mlacat_status wire_submit_call(const struct wire_decoder *decoder, uint32_t index, struct wire_call *call,
                                    struct error *err);

/* Encoders: write one packet to `bytes` of WIRE_PACKET_BYTES and return its size (never 0: every packet here fits).
 * Texts of Welcome, Stats and Health longer than WIRE_TEXT_BYTES - 1 are cut; NULL is the empty text. */
#define WIRE_TEXT_BYTES 240

struct wire_device {
    const char *uuid;
    const char *kind;
    const char *name;
    bool available;
    const char *reason;
    uint32_t workers;
};

struct wire_limits {
    uint32_t streams;
    uint32_t buffers;
    uint64_t mapped_bytes;
    uint32_t stream_calls;
    uint32_t calls;
    uint32_t events;
};

#define WIRE_DEVICES_MAX 16

struct wire_welcome {
    uint64_t request_id;
    uint8_t boot_id[WIRE_BOOT_ID_BYTES];
    const char *server_version;
    uint32_t server_pid;
    uint32_t devices_nr; /* at most WIRE_DEVICES_MAX */
    const struct wire_device *devices;
    struct wire_limits limits;
    bool has_pidfd;
};

size_t wire_encode_welcome(uint8_t *bytes, const struct wire_welcome *welcome);

/* The reply to a request: `err` NULL or OK = success. request_id 0 = why the daemon ends the connection. */
size_t wire_encode_answer(uint8_t *bytes, uint64_t request_id, const struct error *err);
size_t wire_encode_buffer_registered(uint8_t *bytes, uint64_t request_id, struct wire_ref buffer, uint64_t size_bytes);
size_t wire_encode_event_registered(uint8_t *bytes, uint64_t request_id, struct wire_ref event);
/* The place of a stream's ring. */
struct wire_ring {
    uint32_t index;
    uint64_t sequence;
};

/* `ring` NULL: its calls come by packets. */
size_t wire_encode_stream_opened(uint8_t *bytes, uint64_t request_id, struct wire_ref stream, uint32_t calls,
                                 const struct wire_ring *ring);

/* The members of RingsOpened. */
struct wire_rings {
    uint32_t rings;
    uint32_t entries;
    uint64_t client_bytes;
    uint64_t daemon_bytes;
    uint32_t client_stride;
    uint32_t daemon_stride;
    uint64_t submissions_offset;
    uint64_t completions_offset;
    uint64_t messages_offset;
};

size_t wire_encode_rings_opened(uint8_t *bytes, uint64_t request_id, const struct wire_rings *rings);

struct wire_completion {
    struct wire_ref stream;
    uint64_t call_id;
    const struct error *error; /* NULL or OK = success */
    uint64_t queue_ns;
    uint64_t device_ns;
};

/* nr: 1..WIRE_COMPLETIONS_MAX */
size_t wire_encode_completions(uint8_t *bytes, const struct wire_completion *completions, uint32_t nr);

struct wire_op_stats {
    uint32_t op;
    const char *device_uuid;
    uint64_t calls;
    uint64_t bytes;
    uint64_t queue_ns_p50;
    uint64_t queue_ns_p99;
    uint64_t device_ns_p50;
    uint64_t device_ns_p99;
};

struct wire_device_stats {
    const char *device_uuid;
    uint64_t imports_first;
    uint64_t imports_known;
    uint64_t releases;
    uint64_t import_first_ns_p50;
    uint64_t import_first_ns_p99;
    uint64_t import_known_ns_p50;
    uint64_t import_known_ns_p99;
    uint64_t release_ns_p50;
    uint64_t release_ns_p99;
    uint32_t memory_leaving;
    uint64_t memory_released;
    uint64_t memory_closed;
    uint64_t gated_calls;
    uint64_t armed_calls;
    uint64_t armed_lapses;
};

struct wire_status_count {
    uint32_t code;
    uint64_t count;
};

struct wire_client_stats {
    const char *name;
    uint32_t pid;
    uint32_t uid;
    uint32_t streams;
    uint32_t buffers;
    uint64_t mapped_bytes;
    uint64_t calls;
    uint32_t calls_in_flight;
};

#define WIRE_OP_STATS_MAX 32
#define WIRE_STATUS_COUNTS_MAX 32
#define WIRE_CLIENT_STATS_MAX 256

struct wire_stats {
    uint64_t uptime_us;
    uint32_t clients;
    uint32_t streams;
    uint32_t buffers;
    uint64_t mapped_bytes;
    uint32_t calls_in_flight;
    uint64_t clients_total;
    uint64_t clients_refused;
    uint64_t sessions_broken;
    uint32_t ops_nr;
    struct wire_op_stats ops[WIRE_OP_STATS_MAX];
    uint32_t outcomes_nr;
    struct wire_status_count outcomes[WIRE_STATUS_COUNTS_MAX];
    uint32_t client_stats_nr;
    struct wire_client_stats client_stats[WIRE_CLIENT_STATS_MAX];
    uint32_t devices_nr;
    struct wire_device_stats devices[WIRE_DEVICES_MAX];
};

size_t wire_encode_stats(uint8_t *bytes, uint64_t request_id, const struct wire_stats *stats);
size_t wire_encode_health(uint8_t *bytes, uint64_t request_id, bool live, bool ready, const char *reason);

#endif
