/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libmlacat: run the concat-MLA kernels of the mlacat service on buffers that this process shares with it.
 *
 *     connect -> buffers, events, streams -> submit, wait -> release, close -> disconnect
 *
 * Threads     Every function may be called from any thread, also on the same handle. Do not use a handle that another
 *             thread is releasing. Callbacks run where `dispatch` of mlacat_connect_options says.
 * Errors      A function that returns enum mlacat_status returns MLACAT_OK or the reason; mlacat_error_message() of the
 *             same thread then says what was wrong, with which value, and what to do. The comments below name the codes
 *             with a meaning of their own; any function may also return INVALID_ARGUMENT (a NULL or a wrong `size`),
 *             FAILED_PRECONDITION (a forked child), RESOURCE_EXHAUSTED (memory), where it asks the daemon
 *             UNAVAILABLE, and where it asks the CUDA driver INTERNAL with scope CALL (the driver failed) and
 *             FAILED_PRECONDITION (it is older than CUDA 12.0).
 *             A submit that returns an error never completes; one that returns MLACAT_OK completes exactly once.
 * Blocking    What asks the daemon (all but names, buffer_data and the like) waits for its answer as long as the
 *             connection lasts; only mlacat_connect, mlacat_wait, mlacat_reclaim and mlacat_dispatch have time limits.
 * Ownership   Strings and structs that are given in are copied before the function returns. Handles that come out are
 *             the caller's until the function that releases them.
 * Restart     When the daemon goes away, calls and requests in flight end with MLACAT_UNAVAILABLE and scope SESSION;
 *             the content of the calls' outputs is undefined. The next submit or request connects again, for which it
 *             waits up to `reconnect_timeout_ms`, then registers all buffers and events and opens all streams again,
 *             which takes what the daemon needs (up to as long for each of them); other threads that need the
 *             connection then get UNAVAILABLE after that time. Handles stay valid. What could not be restored gives
 *             MLACAT_FAILED_PRECONDITION when it is used; release it.
 *             A daemon that drains ends new calls, and refuses new buffers and streams, with MLACAT_UNAVAILABLE and
 *             scope CALL: nothing was written. Those after that wait for it to go (within the same time) and then
 *             connect again.
 *             No call is repeated by the library.
 * Fork        A client belongs to the process that connected. In a forked child every function on it returns
 *             MLACAT_FAILED_PRECONDITION; mlacat_disconnect does no more than close descriptors, and
 *             mlacat_buffer_release, mlacat_event_release, mlacat_stream_close do nothing: none of them frees memory
 *             there. Connect again in the child. The memory of buffers stays shared with it.
 * Rings       Calls of a stream that has a ring go through memory that is shared with the daemon, with the same meaning
 *             and less delay (docs/performance.md). Submits and waits on such a stream take a lock of the stream's
 *             own, and a submit makes no system call while the daemon's worker is awake. The end of the daemon is
 *             noticed by a thread that waits, within 100 ms; what is submitted within 0.5 ms of a kill may end with
 *             UNAVAILABLE, and what is submitted later connects again.
 * Structs     that begin with `size` have it set to their sizeof by the caller, so that program and library may be of
 *             different age: members that one side does not know count as 0.
 *             Structs that are elements of an array (mlacat_tensor, mlacat_op_stats, mlacat_device_stats,
 *             mlacat_client_stats) never change.
 *             mlacat_stats comes from the library and may get more members at its end.
 */
#ifndef MLACAT_MLACAT_H
#define MLACAT_MLACAT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MLACAT_API __attribute__((visibility("default")))
#else
#define MLACAT_API
#endif

/* gRPC's canonical codes: MLACAT_OK = 0, MLACAT_INVALID_ARGUMENT = 3, ...: mlacat_status.def says what each means. */
#define MLACAT_STATUS(name, number, scope, text) MLACAT_##name = number,
enum mlacat_status {
#include "mlacat_status.def"
    MLACAT_STATUS_END_ = 17
};

/* What is lost with an error: MLACAT_SCOPE_CALL = 1 ... MLACAT_SCOPE_DEVICE = 5 (mlacat_status.def). */
#define MLACAT_SCOPE(name, number, text) MLACAT_SCOPE_##name = number,
enum mlacat_scope {
#include "mlacat_status.def"
    MLACAT_SCOPE_END_ = 6
};

/*
 * What a call does; operands in the order of mlacat_call.operand (mlacat_ops.def). Bits are copied as they are. Any
 * extent may be 0.
 *     MLACAT_OP_CONCAT_MLA_K = 1:         k [N,H,P+R] = k_nope [N,H,P], then k_rope [N,1,R], which all H share
 *     MLACAT_OP_CONCAT_MLA_ABSORB_Q = 2:  out [D0,D1,A+B] = a [D0,D1,A], then b [D0,D1,B]
 */
#define MLACAT_OP(number, enum_name, name, out, first, second, second_rows, dim0, dim1, w1, w2) \
    MLACAT_OP_##enum_name = number,
enum mlacat_op {
#include "mlacat_ops.def"
    MLACAT_OP_END_ = 3
};

/* MLACAT_DTYPE_BF16 = 1, FP16, FP8_E4M3, FP8_E5M2, FP32 (mlacat_dtypes.def). */
#define MLACAT_DTYPE(number, enum_name, name, bytes) MLACAT_DTYPE_##enum_name = number,
enum mlacat_dtype {
#include "mlacat_dtypes.def"
    MLACAT_DTYPE_END_ = 6
};

struct mlacat_client;
struct mlacat_stream;
struct mlacat_buffer;
struct mlacat_event;

#define MLACAT_MESSAGE_BYTES 240 /* of a text, with its NUL */

/* ------------------------------------------------------------------------------------------------ errors, names */

/* What went wrong in the last function of this thread that returned an error; valid until the next one does. Never
 * NULL. A call that failed counts as an error of the mlacat_wait or mlacat_run that returned its status. */
MLACAT_API const char *mlacat_error_message(void);
/* What is lost by that error. */
MLACAT_API enum mlacat_scope mlacat_error_scope(void);
/* "INVALID_ARGUMENT"; "UNKNOWN" for a number that is not in the table. */
MLACAT_API const char *mlacat_status_name(enum mlacat_status status);
/* "CALL" */
MLACAT_API const char *mlacat_scope_name(enum mlacat_scope scope);
/* "concat_mla_k"; NULL for a number that is not in the table. */
MLACAT_API const char *mlacat_op_name(enum mlacat_op op);
/* "bf16"; NULL for a number that is not in the table. */
MLACAT_API const char *mlacat_dtype_name(enum mlacat_dtype dtype);
/* Bytes of one element; 0 for a number that is not in the table. */
MLACAT_API size_t mlacat_dtype_bytes(enum mlacat_dtype dtype);
/* "0.1.0": of this library. */
MLACAT_API const char *mlacat_version(void);

/* ------------------------------------------------------------------------------------------------ connection */

enum mlacat_dispatch {
    /* Callbacks run on a thread of the library, started with the first call that has one (a stream with a ring has its
     * own), and one at a time. */
    MLACAT_DISPATCH_THREAD = 0,
    /* Callbacks run inside mlacat_dispatch, mlacat_wait, mlacat_run, mlacat_stream_close and mlacat_disconnect, and
     * nowhere else; poll mlacat_client_fd. Streams of such a client have no ring: nothing would make that descriptor
     * readable. */
    MLACAT_DISPATCH_CALLER = 1
};

struct mlacat_connect_options {
    size_t size; /* sizeof(struct mlacat_connect_options) */
    /* NULL: $MLACAT_SOCKET, else $XDG_RUNTIME_DIR/mlacat/mlacatd.sock if it exists, else /run/mlacat/mlacatd.sock.
     * INVALID_ARGUMENT: a path too long for a socket, also where it would have come from XDG_RUNTIME_DIR. */
    const char *socket;
    const char *name;              /* for statistics and logs; NULL: the name of the program */
    uint32_t connect_timeout_ms;   /* how long mlacat_connect waits for a daemon that listens to answer; 0: 2000 */
    uint32_t reconnect_timeout_ms; /* how long a request waits for a daemon that went away to come back; 0: 2000 */
    enum mlacat_dispatch dispatch;
    /* how long a wait for a call of a ring looks at shared memory, yielding, before it sleeps; hardly at all beside a
     * program that never sleeps on its CPU; 0: 50; 1: hardly */
    uint32_t spin_us;
};

/*
 * Connects and says Hello. `options` NULL: all defaults.
 * UNAVAILABLE (nobody listens, told at once; the message names the path), PERMISSION_DENIED, FAILED_PRECONDITION
 * (another protocol version), RESOURCE_EXHAUSTED (the daemon has max_clients), DEADLINE_EXCEEDED.
 */
MLACAT_API enum mlacat_status mlacat_connect(const struct mlacat_connect_options *options,
                                             struct mlacat_client **client);

/* Ends the calls in flight with UNAVAILABLE, releases every buffer, event and stream of the client (their handles are
 * then gone) and frees it. Callbacks that are due run before it returns. It may take 2 s with stream-ordered calls in
 * flight. NULL is fine. Not from a callback, and not while another thread is in a function on the client. */
MLACAT_API void mlacat_disconnect(struct mlacat_client *client);

struct mlacat_server_info {
    size_t size;
    char version[64];
    uint32_t pid;        /* in the daemon's pid namespace */
    uint8_t boot_id[16]; /* new at each start of the daemon */
    uint32_t devices;
    /* what one client may have */
    uint32_t max_streams;
    uint32_t max_buffers;
    uint64_t max_mapped_bytes; /* buffers, those of descriptors in full, and rings */
    uint32_t max_stream_calls; /* in flight on one stream */
    uint32_t max_calls;        /* in flight on all streams of messages together */
    uint32_t reconnects;       /* of this client, so far */
    uint32_t max_events;       /* 0: the daemon knows no events */
};

/* What the daemon said when this client last connected. Does not ask it. */
MLACAT_API enum mlacat_status mlacat_server_info(struct mlacat_client *client, struct mlacat_server_info *info);

struct mlacat_device_info {
    size_t size;
    char uuid[64];  /* "host", "GPU-...", "MIG-...": how the device is named everywhere */
    char kind[16];  /* "host", "cuda" */
    char name[128]; /* for people */
    uint32_t available;
    char reason[240]; /* why it is not available */
    uint32_t workers; /* threads of the daemon that drive its streams */
};

/* Device `index` < mlacat_server_info.devices, as of when this client last connected; OUT_OF_RANGE past that. */
MLACAT_API enum mlacat_status mlacat_device_info(struct mlacat_client *client, uint32_t index,
                                                 struct mlacat_device_info *info);

/* ------------------------------------------------------------------------------------------------ buffers */

/*
 * Makes memory of `bytes` (> 0) that both this process and the device can use, zeroed, and registers it.
 * `device`: a UUID of mlacat_device_info; NULL: the first available one. On the host device it is a sealed memfd,
 * mapped here. NOT_FOUND (no such device), RESOURCE_EXHAUSTED (memory, descriptors, the daemon's limits), UNAVAILABLE
 * (also: no device is available), UNIMPLEMENTED (a GPU: use mlacat_buffer_register_ptr).
 */
MLACAT_API enum mlacat_status mlacat_buffer_alloc(struct mlacat_client *client, const char *device, size_t bytes,
                                                  struct mlacat_buffer **buffer);

/*
 * Registers the part [0, bytes) of a memfd of the caller with the host device. It must be sealed with F_SEAL_SHRINK.
 * The descriptor stays the caller's (the library keeps a duplicate); it is not mapped here. INVALID_ARGUMENT: no open
 * descriptor, or no memfd of ordinary pages that can be written. FAILED_PRECONDITION: not sealed, or sealed against
 * writing. The rest as mlacat_buffer_alloc.
 */
MLACAT_API enum mlacat_status mlacat_buffer_register_fd(struct mlacat_client *client, const char *device, int fd,
                                                        size_t bytes, struct mlacat_buffer **buffer);

/*
 * Registers [pointer, pointer + bytes) of this process's GPU memory with the device that it is on. The memory stays the
 * caller's; the caller orders its own work on it before a call and after. It should not be freed before the release,
 * and must not be while calls use it. The library asks the driver at each submit, and from a thread of its own (started
 * by the first of these buffers) twenty times a second, whether it has been: the daemon then lets it go, and the
 * buffer gives FAILED_PRECONDITION with scope BUFFER at each use, whatever is at its address by then; release it. (A
 * mlacat_submit on a ring, without a callback, asks when the call is on its way. What it finds freed the daemon has
 * open until then, and so nobody else has it; the call is over when the submit returns its error, and has perhaps
 * written its output.)
 * Shared can be memory of cudaMalloc, and of cuMemCreate made for export as a descriptor (PyTorch's expandable segments
 * with TORCH_CUDA_EXPANDABLE_SEGMENTS_IPC=1), in at most 64 chunks. INVALID_ARGUMENT: no memory of a GPU, or not that
 * many bytes of it. OUT_OF_RANGE: more chunks; register parts and cut the calls by rows. FAILED_PRECONDITION: memory
 * that its allocator made unshareable (managed memory, pools of cudaMallocAsync, cuMemCreate without a handle type);
 * the message says what to do. NOT_FOUND: the daemon does not serve that GPU. Register once, not for each call: beyond
 * 256 at once and the daemon's import_rate (1000 a second) this waits, also for memory that is registered already.
 */
MLACAT_API enum mlacat_status mlacat_buffer_register_ptr(struct mlacat_client *client, const void *pointer,
                                                         size_t bytes, struct mlacat_buffer **buffer);

/* The memory in this process, until the release; NULL for mlacat_buffer_register_fd and mlacat_buffer_register_ptr. */
MLACAT_API void *mlacat_buffer_data(const struct mlacat_buffer *buffer);
/* As registered. NULL: 0. */
MLACAT_API size_t mlacat_buffer_bytes(const struct mlacat_buffer *buffer);
/* The UUID of the device that it is registered with, until the release. NULL: NULL. */
MLACAT_API const char *mlacat_buffer_device(const struct mlacat_buffer *buffer);

/*
 * Where the GPU memory of this process that [pointer, pointer + bytes) lies in begins, and how many bytes it has: one
 * allocation of cudaMalloc, or the chunks of cuMemCreate that the range touches. So that a program which knows tensors
 * only can register the memory that holds them, once. INVALID_ARGUMENT, FAILED_PRECONDITION: as
 * mlacat_buffer_register_ptr; whether the memory can be shared is not asked.
 */
MLACAT_API enum mlacat_status mlacat_memory_range(const void *pointer, size_t bytes, void **base, size_t *all);

/*
 * Gives the buffer back and frees the handle. Calls in flight that use it finish; the daemon lets the memory go after
 * the last. The mapping of mlacat_buffer_alloc is unmapped here at once. NULL is fine.
 */
MLACAT_API void mlacat_buffer_release(struct mlacat_buffer *buffer);

/*
 * Looks at once, and not only when the library's thread does next, which registered GPU memory of the client was freed,
 * and returns when the daemon has closed that and all that this client gave up before: it is the GPU's again, unless
 * another client has registered the same allocation. At most after timeout_us (-1: for ever; 0: only starts it). For
 * a program that frees much and wants to allocate it again in other sizes. No handle is freed: release the buffers as
 * ever. DEADLINE_EXCEEDED: not yet; it will be. OK also when the connection has ended: the daemon then closes it all.
 */
MLACAT_API enum mlacat_status mlacat_reclaim(struct mlacat_client *client, int64_t timeout_us);

/* ------------------------------------------------------------------------------------------------ events */

/*
 * Makes an event of this process's GPU work one that calls may wait for (mlacat_call.wait), so that the caller need not
 * wait for that work itself. `cu_event`: a CUevent or cudaEvent_t made with CU_EVENT_INTERPROCESS |
 * CU_EVENT_DISABLE_TIMING, of the device whose context is current in this thread. It stays the caller's, who may record
 * it as often as he likes, before and after this, and must not destroy it before the release and the end of the calls
 * that wait for it. This process and the daemon must see one /dev/shm.
 * INVALID_ARGUMENT: an event made without these flags, or that the daemon cannot open. FAILED_PRECONDITION: no context
 * is current. NOT_FOUND: the daemon does not serve that GPU. RESOURCE_EXHAUSTED: the daemon's limits. UNIMPLEMENTED:
 * the daemon is too old.
 */
MLACAT_API enum mlacat_status mlacat_event_register(struct mlacat_client *client, void *cu_event,
                                                    struct mlacat_event **event);
/* Gives the event back and frees the handle. Calls in flight go on waiting for it. NULL is fine. */
MLACAT_API void mlacat_event_release(struct mlacat_event *event);

/* ------------------------------------------------------------------------------------------------ streams and calls */

/* How the calls of a stream reach the daemon; the same for its life. */
enum mlacat_transport {
    /* a ring where the daemon gives one, else messages; messages when $MLACAT_TRANSPORT is "message" */
    MLACAT_TRANSPORT_AUTO = 0,
    MLACAT_TRANSPORT_MESSAGE = 1,
    MLACAT_TRANSPORT_RING = 2
};

struct mlacat_stream_options {
    size_t size; /* sizeof(struct mlacat_stream_options) */
    enum mlacat_transport transport;
};

/* An ordered lane on one device: its calls run one after the other; streams run side by side. `device` as in
 * mlacat_buffer_alloc. NOT_FOUND: no such device. RESOURCE_EXHAUSTED: max_streams of the client are open. */
MLACAT_API enum mlacat_status mlacat_stream_open(struct mlacat_client *client, const char *device,
                                                 struct mlacat_stream **stream);
/*
 * The same with options (NULL: all defaults). With MLACAT_TRANSPORT_RING: UNIMPLEMENTED (the daemon has no rings),
 * RESOURCE_EXHAUSTED (all rings of the connection are taken), FAILED_PRECONDITION (MLACAT_DISPATCH_CALLER). A stream
 * that has a ring and does not get one again after a restart is one that could not be restored.
 */
MLACAT_API enum mlacat_status mlacat_stream_open_with(struct mlacat_client *client, const char *device,
                                                      const struct mlacat_stream_options *options,
                                                      struct mlacat_stream **stream);
/* MLACAT_TRANSPORT_MESSAGE or _RING: what it got. NULL: MLACAT_TRANSPORT_AUTO. */
MLACAT_API enum mlacat_transport mlacat_stream_transport(const struct mlacat_stream *stream);
/* Waits for the calls in flight and their callbacks, closes, and frees the handle. Results that nobody waited for are
 * lost. NULL is fine. Not from a callback. */
MLACAT_API void mlacat_stream_close(struct mlacat_stream *stream);

/* One operand: element [i,j,t] is at buffer + offset_bytes + (i*strides[0] + j*strides[1] + t*strides[2]) * element
 * size. All of it must lie within the buffer. Any alignment will do. */
struct mlacat_tensor {
    struct mlacat_buffer *buffer;
    uint64_t offset_bytes; /* of element [0,0,0] */
    uint64_t shape[3];     /* elements */
    int64_t strides[3];    /* elements; strides[2] is 1; the others may be 0 (inputs) or negative */
};

/* A row-major tensor [d0, d1, d2] (elements) without gaps. Checks nothing: the call does. */
MLACAT_API struct mlacat_tensor mlacat_tensor_contiguous(struct mlacat_buffer *buffer, uint64_t offset_bytes,
                                                         uint64_t d0, uint64_t d1, uint64_t d2);

struct mlacat_result {
    size_t size;
    /* 0: the wait timed out or was refused, or mlacat_run's submit was; status, scope and message are then about that,
     * not about a call */
    uint32_t ended;
    /* MLACAT_OK, or why the call failed: it then wrote nothing, unless `scope` is wider than CALL */
    enum mlacat_status status;
    enum mlacat_scope scope; /* what is lost */
    char message[MLACAT_MESSAGE_BYTES];
    uint64_t queue_ns;  /* from the daemon's receipt to the launch, with the wait for an event */
    uint64_t device_ns; /* from the launch to the end */
};

/* Runs once when the call ends; `result` is gone when it returns. May submit (but then waits itself while the daemon is
 * away); must not wait, close a stream or disconnect. */
typedef void (*mlacat_done_cb)(void *user, uint64_t call_id, const struct mlacat_result *result);

struct mlacat_call {
    size_t size; /* sizeof(struct mlacat_call) */
    enum mlacat_op op;
    enum mlacat_dtype dtype;         /* of all operands */
    struct mlacat_tensor operand[3]; /* output, first input, second input: shapes at enum mlacat_op */
    uint64_t deadline_us; /* not launched so long after the daemon has it: ends with DEADLINE_EXCEEDED; 0: none */
    mlacat_done_cb done;  /* NULL: the result is kept for mlacat_wait */
    void *user;           /* for `done` */
    /*
     * NULL: the operands are ready. Else the call, and with it those behind it on its stream, is launched when the most
     * recent record of the event has completed: record it before the submit, and not again before the call has ended.
     * One that was never recorded counts as completed. A call whose event never comes can be cancelled, ends at its
     * deadline, or with the connection; it keeps mlacat_stream_close waiting. Only on a stream of messages
     * (MLACAT_TRANSPORT_MESSAGE): with a ring the submit fails with FAILED_PRECONDITION.
     */
    struct mlacat_event *wait;
};

/*
 * Sends a call; it runs after all earlier calls of the stream. *call_id names it (may be NULL with a callback).
 * The buffers must stay registered until it ends (a release before is safe: the daemon keeps the memory until then).
 * RESOURCE_EXHAUSTED: as many calls are in flight as the stream may have (or ended and not waited for); wait for one.
 * UNAVAILABLE: no daemon for reconnect_timeout_ms. FAILED_PRECONDITION: a forked child, a stream, buffer or event
 * that could not be restored after a restart, or GPU memory that was freed since it was registered. INVALID_ARGUMENT: a
 * wrong size, an operand without buffer, a buffer or an event of another client. On a stream that a stream-ordered call
 * has failed, that call's error. Everything else that is wrong with a call is told in its result: the daemon checks it,
 * once. It ends with INVALID_ARGUMENT (shapes or strides that do not fit the op, an operand that reaches past its
 * buffer or is on another device, an output that overlaps itself or an input), UNIMPLEMENTED (no such op),
 * RESOURCE_EXHAUSTED (max_calls of the daemon are in flight on the client's streams without a ring), DEADLINE_EXCEEDED,
 * CANCELLED, UNAVAILABLE, or with what happened to the device. Blocks while the socket or the ring is full; takes in
 * completions meanwhile, but runs no callback.
 */
MLACAT_API enum mlacat_status mlacat_submit(struct mlacat_stream *stream, const struct mlacat_call *call,
                                            uint64_t *call_id);

/*
 * The same for `nr` calls in as few packets as they fit into; each of `calls` has the size of the first.
 * *submitted (may be NULL): how many were taken, in order, whatever is returned; an error is about the next one. Ids of
 * these are in call_ids; NULL if all have callbacks: the result of one without could not be taken.
 */
MLACAT_API enum mlacat_status mlacat_submit_batch(struct mlacat_stream *stream, const struct mlacat_call *calls,
                                                  size_t nr, uint64_t *call_ids, size_t *submitted);

/*
 * Waits until the call ends, at most timeout_us (-1: for ever, 0: only looks), forgets it, and returns its status.
 * When the wait itself times out: MLACAT_DEADLINE_EXCEEDED with result->ended 0; the call is still in flight.
 * `result` may be NULL, and a wait on a ring is then a little shorter; with a wrong size the wait is refused and the
 * call kept. NOT_FOUND: no such call, already waited for, one with a callback, or a stream-ordered one.
 * FAILED_PRECONDITION: another thread waits for it.
 */
MLACAT_API enum mlacat_status mlacat_wait(struct mlacat_stream *stream, uint64_t call_id, int64_t timeout_us,
                                          struct mlacat_result *result);

/* Submit and wait for ever. `call->done` must be NULL. When `result` has a wrong size nothing is submitted. */
MLACAT_API enum mlacat_status mlacat_run(struct mlacat_stream *stream, const struct mlacat_call *call,
                                         struct mlacat_result *result);

/* Drops a call that is not launched yet: it ends with CANCELLED (wait for it all the same). Waits for the daemon's
 * answer. FAILED_PRECONDITION: too late, it will finish. NOT_FOUND: it has ended. UNAVAILABLE: the connection has. */
MLACAT_API enum mlacat_status mlacat_cancel(struct mlacat_stream *stream, uint64_t call_id);

/*
 * Stream-ordered calls: the call waits for what `cu_stream`, a CUstream (or cudaStream_t) of this process, has been
 * given to do before, and what it is given afterwards waits for the call. No thread of the CPU waits. Needs a stream
 * with a ring on a CUDA device.
 *
 * What is no handle (NULL and 1: the legacy default stream; 2: that of the thread) is the one of the current context if
 * that is on the mlacat stream's device, else of that device's primary context. No context need be current.
 *
 * The mlacat stream is bound to the CUDA stream of its first such call. The buffers must stay registered, and their
 * memory must not be freed, until the call has ended (a release before is safe, as with every call). The result need
 * not and cannot be waited for: synchronise with the CUDA stream. *call_id (may be NULL) is for mlacat_cancel. Blocks,
 * like a kernel launch, while as many calls are in flight as the stream may have.
 *
 * The first such call of a CUDA context takes 2 MiB of its GPU's memory for as long as the context lives, and that of
 * each client registers it: one buffer more. (The same again after 16384 streams or connections that had such calls.)
 * The GPU tells the daemon's kernels there that the inputs are ready. Where there is no memory, or the daemon takes no
 * buffer more, calls are as right and begin a little later.
 *
 * When a call does not end well the mlacat stream is failed: each later submit, and mlacat_stream_status, returns the
 * code and the message of the first such call, nothing is ever repeated, and the content of outputs is undefined. The
 * CUDA stream goes on all the same:
 *   - the call fails or is cancelled: in its turn, behind the calls before it, with the call's code;
 *   - the daemon exits: when it has, with UNAVAILABLE;
 *   - the daemon ends the connection, or mlacat_disconnect does, and the daemon lives on: when what it has launched has
 *     ended, but after 2 s in any case (50 ms where the kernel has no pidfd), with UNAVAILABLE or ABORTED;
 *   - the close of a stream that has failed lets it go on, too.
 *
 * Refused before anything is given to the CUDA stream: UNIMPLEMENTED (the host device), FAILED_PRECONDITION (a stream
 * without a ring; the CUDA stream is being captured into a graph; another CUDA stream than the bound one),
 * INVALID_ARGUMENT (this process does not use CUDA; `call` has a callback, or is wrong in a way that needs no daemon to
 * see), UNAVAILABLE (a stream that was closed had the ring, and its CUDA stream has not come to its last calls for
 * 2 s), INTERNAL with scope CALL (the CUDA driver failed), the rest as mlacat_submit. INTERNAL with scope STREAM: the
 * driver failed midway, the call may still run, and the stream is failed.
 */
MLACAT_API enum mlacat_status mlacat_submit_on_stream(struct mlacat_stream *stream, const struct mlacat_call *call,
                                                      void *cu_stream, uint64_t *call_id);

/*
 * Whether `cu_stream` is being captured into a graph, where no call can be ordered on it: *capturing is 1 or 0. For
 * programs that register memory and open streams when a first call needs them, to ask before. `pointer` is GPU memory
 * of the call, whose device says what a stream without a handle (NULL) is. INVALID_ARGUMENT: it is none, or this
 * process does not use CUDA; FAILED_PRECONDITION: the CUDA driver is too old; INTERNAL: it failed.
 */
MLACAT_API enum mlacat_status mlacat_is_capturing(const void *pointer, void *cu_stream, int *capturing);

/* MLACAT_OK, or why the stream is of no use any more: a stream-ordered call failed, or it could not be opened again
 * after a restart. Waits for no call; up to 20 ms for the news of one that has failed already. */
MLACAT_API enum mlacat_status mlacat_stream_status(struct mlacat_stream *stream);

/* A descriptor that is readable when mlacat_dispatch has something to do, the same for the life of the client; the
 * library's: do not read or close it. With MLACAT_DISPATCH_THREAD, NULL, and in a forked child: -1. */
MLACAT_API int mlacat_client_fd(struct mlacat_client *client);

/* Takes what has arrived, runs callbacks, at most timeout_us (-1: until something arrived, 0: only looks). MLACAT_OK
 * also when nothing did. UNAVAILABLE: there is no connection, so nothing can arrive; the next request makes one.
 * FAILED_PRECONDITION: MLACAT_DISPATCH_THREAD. */
MLACAT_API enum mlacat_status mlacat_dispatch(struct mlacat_client *client, int64_t timeout_us);

/* ------------------------------------------------------------------------------------------------ operation */

struct mlacat_op_stats {
    enum mlacat_op op;
    char device[64];
    uint64_t calls; /* that ended with OK */
    uint64_t bytes; /* read and written by them */
    /* as of mlacat_result, of the calls since the daemon's start */
    uint64_t queue_ns_p50;
    uint64_t queue_ns_p99;
    uint64_t device_ns_p50;
    uint64_t device_ns_p99;
};

struct mlacat_device_stats {
    char device[64];
    /* What imports and releases of memory cost the device's control thread, without the wait for their turn. Only those
     * that succeeded count. */
    uint64_t imports_first; /* the device opened memory that it did not have */
    uint64_t imports_known; /* of an allocation that was open already */
    uint64_t releases;
    uint64_t import_first_ns_p50;
    uint64_t import_first_ns_p99;
    uint64_t import_known_ns_p50;
    uint64_t import_known_ns_p99;
    uint64_t release_ns_p50;
    uint64_t release_ns_p99;
    /* A GPU's memory stays open in the daemon for a moment after its last buffer is gone. */
    uint64_t memory_leaving;  /* buffers that this client gave up and that are not released yet */
    uint64_t memory_released; /* allocations that lost their last buffer, of all clients, so far */
    uint64_t memory_closed;   /* all of the first so many are closed, or in use again */
    /* Calls of mlacat_submit_on_stream through rings. Under MPS a call can be armed: the GPU gets it shortly before the
     * CUDA stream is expected to come to it, from the times of the calls before, and starts it by itself. */
    uint64_t gated_calls;  /* that ended with OK */
    uint64_t armed_calls;  /* of them, started so; the others the daemon launched when the stream had come to them */
    uint64_t armed_lapses; /* times that the GPU gave an armed call back: the stream came late, or a launch failed */
};

struct mlacat_client_stats {
    char name[64];
    uint32_t pid; /* in the daemon's pid namespace */
    uint32_t uid;
    uint32_t streams;
    uint32_t buffers;
    uint64_t mapped_bytes;
    uint64_t calls; /* submitted so far */
    uint32_t calls_in_flight;
};

struct mlacat_stats {
    uint64_t uptime_us;
    uint32_t clients;
    uint32_t streams;
    uint32_t buffers;
    uint64_t mapped_bytes;
    uint32_t calls_in_flight;
    uint64_t clients_total;                /* accepted since the daemon's start */
    uint64_t clients_refused;              /* by their user or by max_clients */
    uint64_t sessions_broken;              /* ended by the daemon because the client broke the protocol */
    uint64_t outcomes[MLACAT_STATUS_END_]; /* calls by status */
    uint32_t ops_nr;
    const struct mlacat_op_stats *ops;
    uint32_t client_stats_nr;
    const struct mlacat_client_stats *client_stats;
    uint32_t devices_nr; /* 0 also from a daemon that is older than this member */
    const struct mlacat_device_stats *devices;
};

/* Statistics of the daemon. They and their arrays are the caller's until mlacat_stats_free (NULL is fine). */
MLACAT_API enum mlacat_status mlacat_stats(struct mlacat_client *client, struct mlacat_stats **stats);
MLACAT_API void mlacat_stats_free(struct mlacat_stats *stats);

struct mlacat_health {
    size_t size;
    uint32_t live;                     /* 1: it answers */
    uint32_t ready;                    /* 1: it takes calls, and every device with work in flight makes progress */
    char reason[MLACAT_MESSAGE_BYTES]; /* why it is not ready */
};

/* MLACAT_OK also when it is not ready: see `ready`. */
MLACAT_API enum mlacat_status mlacat_health(struct mlacat_client *client, struct mlacat_health *health);

/* Root and the daemon's user only: PERMISSION_DENIED for others. The daemon finishes what is in flight and exits; this
 * returns when it has begun to. */
MLACAT_API enum mlacat_status mlacat_drain(struct mlacat_client *client);
/* What the daemon logs from now on: "error", "warning", "info" or "debug"; INVALID_ARGUMENT for another. Root and the
 * daemon's user only. */
MLACAT_API enum mlacat_status mlacat_set_log_level(struct mlacat_client *client, const char *level);

#ifdef __cplusplus
}
#endif

#endif
