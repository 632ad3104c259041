/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of the bare protocol (proto/mlacat.proto), which can say anything, wrong things too.
 *
 * Owns:     its socket, the daemon's pidfd, descriptors that nobody took, and the completions that came while it waited
 *           for something else.
 * Thread:   one thread or process for a client.
 * Lifetime: raw_connect or raw_open -> raw_close.
 * Errors:   a failed check (require.h) when the daemon does not answer in time or answers something else than a reply;
 * what the daemon says comes back as a struct outcome.
 */
#ifndef MLACAT_TESTS_RAW_H
#define MLACAT_TESTS_RAW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mlacat.pb-c.h"

#define MLACAT_STATUS(name, number, scope, text) STATUS_##name = number,
enum status_number {
#include "mlacat_status.def"
};
#define MLACAT_SCOPE(name, number, text) SCOPE_##name = number,
enum scope_number {
#include "mlacat_status.def"
};
#define MLACAT_OP(number, enum_name, name, out, first, second, rows, d0, d1, w1, w2) OP_##enum_name = number,
enum op_number {
#include "mlacat_ops.def"
};
#define MLACAT_DTYPE(number, enum_name, name, bytes) DTYPE_##enum_name = number,
enum dtype_number {
#include "mlacat_dtypes.def"
};

#define RAW_PACKET_BYTES 65536
#define RAW_CALLS_MAX 1000
#define RAW_STATUSES 17

struct by_ring;
struct share;

struct ref {
    uint32_t id;
    uint32_t generation;
};

struct outcome {
    uint32_t code;
    uint32_t scope;
    char message[256];
};

struct completion {
    struct ref stream;
    uint64_t call_id;
    struct outcome outcome;
    uint64_t queue_ns;
    uint64_t device_ns;
};

struct operand {
    struct ref buffer;
    bool is_inline; /* then descriptor `fd` of the packet, `size_bytes` of it */
    uint32_t fd;
    bool is_cuda; /* inline, but a handle of device memory instead of the descriptor: of `share`, or one of nobody */
    const struct share *share;
    uint64_t size_bytes;
    uint64_t offset_bytes;
    uint64_t shape[3];
    int64_t strides[3];
};

struct call {
    uint64_t id;
    uint32_t op;
    uint32_t dtype;
    uint64_t deadline_us;
    struct ref wait_event; /* generation 0: none */
    struct operand operand[3];
};

/* What Stats says, as far as the tests ask. */
struct counts {
    uint32_t clients;
    uint32_t streams;
    uint32_t buffers;
    uint64_t mapped_bytes;
    uint32_t calls_in_flight;
    uint64_t clients_total;
    uint64_t clients_refused;
    uint64_t sessions_broken;
    uint64_t memory_leaving; /* these of all devices together */
    uint64_t memory_released;
    uint64_t memory_closed;
    uint64_t gated_calls;
    uint64_t outcomes[RAW_STATUSES];
};

#define RAW_FDS 4

struct raw {
    int fd;
    int pidfd;
    int fds[RAW_FDS]; /* of the last packet that had any; -1: none, or taken */
    uint8_t boot_id[16];
    uint32_t server_pid;
    uint64_t last_request;
    bool reset; /* the kernel said ECONNRESET: the daemon closed with packets unread */
    struct completion *done;
    size_t done_nr;
    size_t done_taken;
    size_t done_room;
    struct by_ring *by_ring; /* raw_by_ring.h */
};

/* With MLACAT_TEST_TRANSPORT=ring the streams of raw_open_stream take calls through rings (raw_by_ring.h): what is
 * said of calls here holds, but for memory and events that come with a call. */
bool raw_by_ring(void);
/* Of the mapped bytes that are counted for this client: its rings, which come with its first stream. */
uint64_t raw_by_ring_bytes(const struct raw *raw);

void raw_connect(struct raw *raw, const char *path);
/* Connects and says Hello, which must succeed. */
void raw_open(struct raw *raw, const char *path);
void raw_close(struct raw *raw);

/* 0, or the errno; waits while the socket is full. */
int raw_send(struct raw *raw, const void *bytes, size_t size, const int *fds, uint32_t fds_nr);
/* The same, EAGAIN at once when the socket is full. */
int raw_try_send(struct raw *raw, const void *bytes, size_t size, const int *fds, uint32_t fds_nr);
int raw_send_envelope(struct raw *raw, const Mlacat__V1__Envelope *envelope, const int *fds, uint32_t fds_nr);
/* The next packet; NULL: the connection has ended. To be freed with raw_free. */
Mlacat__V1__Envelope *raw_receive(struct raw *raw);
void raw_free(Mlacat__V1__Envelope *envelope);
/* Descriptor `index` of the last packet that had any; it must be there. */
int raw_take_fd(struct raw *raw, int index);

/* Sends with a fresh request id and waits for the reply; completions that come before are kept. */
Mlacat__V1__Envelope *raw_request(struct raw *raw, Mlacat__V1__Envelope *envelope, const int *fds, uint32_t fds_nr);
/* For requests that are answered with Answer. */
struct outcome raw_answer(struct raw *raw, Mlacat__V1__Envelope *envelope);
/* The Answer with request id 0 that says why the daemon ends the connection, and then the end. */
struct outcome raw_last_words(struct raw *raw);
/* Waits for the end of the connection, whatever comes before. */
void raw_expect_end(struct raw *raw);

/* The device under test: "host", or the UUID of a GPU (gpu_memory.h). */
const char *raw_device(void);

struct outcome raw_hello(struct raw *raw, uint32_t version, uint64_t features, const char *name);
/* `fd`: of memfd_make, whichever memory it stands for (gpu_memory.h). */
struct outcome raw_register(struct raw *raw, int fd, uint64_t size_bytes, struct ref *buffer);
/* Without waiting for the reply. */
void raw_send_register(struct raw *raw, int fd, uint64_t size_bytes);
struct outcome raw_unregister(struct raw *raw, struct ref buffer);
struct outcome raw_unregister_event(struct raw *raw, struct ref event);
struct outcome raw_open_stream(struct raw *raw, struct ref *stream);
struct outcome raw_close_stream(struct raw *raw, struct ref stream);
struct outcome raw_cancel(struct raw *raw, struct ref stream, uint64_t call_id);
struct outcome raw_drain(struct raw *raw);
struct outcome raw_set_log_level(struct raw *raw, const char *level);
struct counts raw_stats(struct raw *raw);
/* Health.ready, which a busy machine can make false while calls run; `reason` (64 bytes, may be NULL) takes why. */
bool raw_ready(struct raw *raw, char *reason);
/* Until the loop has answered, and all that it sent before has been taken in. */
void raw_ping(struct raw *raw);

/* The same, and the reply must be OK. */
struct ref raw_must_register(struct raw *raw, int fd, uint64_t size_bytes);
struct ref raw_must_open_stream(struct raw *raw);

/* The bytes of a Submit packet; at most RAW_CALLS_MAX calls. */
size_t raw_pack_submit(uint8_t packet[RAW_PACKET_BYTES], struct ref stream, const struct call *calls, size_t calls_nr);
/* Returns what raw_send does. */
int raw_submit_fds(struct raw *raw, struct ref stream, const struct call *calls, size_t calls_nr, const int *fds,
                   uint32_t fds_nr);
void raw_submit(struct raw *raw, struct ref stream, const struct call *calls, size_t calls_nr);
/* Keeps a completion for raw_next. */
void raw_keep(struct raw *raw, const struct completion *completion);
/* The next completion in the order in which they came. */
struct completion raw_next(struct raw *raw);
/* Takes the next completion, which must be of this call. */
struct outcome raw_wait(struct raw *raw, uint64_t call_id);
/* Takes the completion of this call, whichever come before it: those are kept. */
struct outcome raw_wait_aside(struct raw *raw, uint64_t call_id);

#endif
