/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream's ring: its calls go through shared memory (mlacat_abi.h, mlacat_ring.h) instead of packets. A submit makes
 * no system call while the worker is awake, takes no lock but the ring's and allocates nothing.
 *
 *     DOWN --ring_attach--> UP --ring_end--> DOWN        (pages NULL: DOWN)
 *
 * While a ring is down nothing reads what its stream or buffers are called at the daemon, so that a reconnect can
 * change it; a submit then takes the way through reconnect_ready, which brings the ring up again.
 *
 * Owns:     its reference to the pages, the doorbell, and what the client knows of the indices.
 * Thread:   any. The ring's lock guards the ring and of its stream the slots, counters, `closing` and `failure`; it is
 *           taken after the client's lock, never before it, and not held while something blocks or a callback runs.
 * Lifetime: ring_new -> ring_free, the stream's; without threads that use it.
 * Errors:   in `err`.
 */
#ifndef MLACAT_CLIENT_RING_H
#define MLACAT_CLIENT_RING_H

#include "client.h"
#include "mlacat_ring.h"
#include "mlacat_yield.h"
#include "ready_word.h"
#include "ring_pages.h"

/* How often a thread that waits looks whether the connection still is there. */
#define RING_CHECK_NS (20 * INT64_C(1000000))
/* A submit after so long without one looks too, unless the worker has looked into the ring no longer ago than this. */
#define RING_PAUSE_NS INT64_C(500000)

/* The request to cancel a call that is under way: one at a time. */
struct ring_cancelling {
    bool busy;
    bool ended;
    uint64_t id; /* below 2^32, which no call's is (slot.h) */
    struct error outcome;
};

struct ring {
    pthread_mutex_t lock;
    struct ring_pages *pages; /* NULL: down */
    uint32_t index;           /* in the pages */
    int doorbell;             /* -1: none */
    struct mlacat_ring_client *client;
    const struct mlacat_ring_daemon *daemon;
    struct mlacat_ring_submission *submissions;
    const struct mlacat_ring_completion *completions;
    const char *messages;
    uint32_t mask;             /* entries - 1 */
    uint32_t tail;             /* entries written */
    uint32_t published;        /* of them, told to the daemon */
    uint32_t head;             /* completions read */
    uint32_t failed_seen;      /* a value that `failed` in D had at some time before now */
    uint32_t failed_taken;     /* completions read that are not OK: `failed` in D counts the same */
    uint64_t sequence;         /* of the last entry written */
    uint32_t parked;           /* threads that sleep on complete_tail of these pages */
    int64_t checked_ns;        /* when the daemon was last known to be there */
    struct mlacat_yield yield; /* learnt by who waits (ring_wait.c) */
    int64_t entered_ns;        /* when it was last relied on for that a call ends */
    bool alive;                /* something has come from it since checked_ns */
    bool draining;             /* the daemon refused a call because it is about to go */
    struct ring_cancelling cancel;
    pthread_cond_t changed; /* a cancel is over, callbacks have run, or there is one more to wait for */

    /* callbacks */
    struct slot_queue due;
    uint32_t flying_callbacks;
    bool thread_started;
    bool thread_stop;
    pthread_t thread;

    /* stream-ordered calls (stream_order.h) */
    bool bound;
    uint64_t cuda_stream_id;
    uint64_t words_address; /* of `client` for the CUDA stream; 0: not known yet */
    struct ready_word ready_word;
    bool ready_asked;         /* for that, on these pages, */
    uint64_t ready_stream_id; /* and for this CUDA stream */
    uint64_t ready_begin;     /* no entry before it goes into that word */
    bool ready_written;       /* one has been */
};

/* A ring that is down, for a stream of calls that wait. NULL: no memory. */
struct ring *ring_new(void);
void ring_free(struct ring *ring);

/* The stream was opened at the daemon with ring `index`, whose numbers go on from `sequence`, and whose doorbell it
 * takes. The ring stays down. */
void ring_offer(struct mlacat_stream *stream, uint32_t index, uint64_t sequence, int doorbell);
/* Up, as offered, in `pages`; what the offer is worth without them: nothing. */
void ring_attach(struct mlacat_stream *stream, struct ring_pages *pages);
void ring_withdraw(struct mlacat_stream *stream);
/* The connection is gone: what has ended ends so, all else in flight with UNAVAILABLE. With the client's lock. */
void ring_end(struct mlacat_stream *stream, const char *reason);

/* Takes the lock of a ring that is up, connecting again if need be. Not OK: without the lock. */
enum mlacat_status ring_enter(struct mlacat_stream *stream, struct error *err);
/* Publishes what was put and gives the lock back. */
void ring_leave(struct mlacat_stream *stream);

/* Writes a call into the next entry; *id is its id. What no entry can carry ends at once with the reason as its result.
 * RESOURCE_EXHAUSTED, as mlacat_submit; UNAVAILABLE. With the lock, which it lets go of when it must wait for room. */
enum mlacat_status ring_put(struct mlacat_stream *stream, const struct mlacat_call *call, uint64_t *id,
                            struct error *err);
/* Whether there are a slot and an entry for one call more, now. With the lock. */
bool ring_has_room(struct mlacat_stream *stream);
/* Writes the entry of a slot that was taken, when there is room; does not publish it. */
void ring_write(struct slot *slot, const struct mlacat_ring_submission *entry);
/* Shows the daemon what was written, and wakes it if it sleeps. */
void ring_publish(struct ring *ring);
/* Writes and publishes the request to cancel the call `target`, when none is under way. An entry is kept free for it.
 */
enum mlacat_status ring_put_cancel(struct ring *ring, uint64_t target, struct error *err);

/* A call as an entry. INVALID_ARGUMENT, UNIMPLEMENTED: no entry can carry it; the texts are those of the daemon. */
enum mlacat_status ring_encode(const struct mlacat_call *call, struct mlacat_ring_submission *entry, struct error *err);

/* Takes in all completions that are there. With the lock. */
void ring_collect(struct mlacat_stream *stream);
/* The output of a call in flight is written and the call has not failed. With the lock. */
bool ring_has_passed(struct ring *ring, const struct slot *slot);

/* ---- ring_wait.c; all with the lock, which they let go of while they wait ---- */

/* Looks for the daemon, and takes in the end of the connection if that is there. */
void ring_check(struct mlacat_stream *stream, int64_t now);

/* What one thread looks for; zeroed but for `sequence` at its start. */
struct ring_look {
    uint64_t sequence; /* also return when the fence has reached it; UINT64_MAX: only completions count */
    int64_t begin_ns;  /* since when nothing came */
};
/* Returns when there may be news, after RING_CHECK_NS at most. False: the deadline has passed, and it did not wait. */
bool ring_pause(struct mlacat_stream *stream, struct ring_look *look, int64_t deadline);
/* False: the time is over. `entry`: the times of the result are wanted, so the fence does not do. */
bool ring_await(struct mlacat_stream *stream, struct slot *slot, int64_t timeout_us, bool entry);
/* As mlacat_cancel, for a slot in flight. */
enum mlacat_status ring_cancel(struct mlacat_stream *stream, uint64_t id, struct error *err);
/* Waits until the daemon has taken all that was submitted to the client's rings by now: what is said to it by packet
 * would else come first. With the client's lock and no ring's; it lets go of it while it waits. */
void ring_await_taken(struct mlacat_client *client);
/* Waits until no call of the stream is in flight. */
void ring_drain(struct mlacat_stream *stream);

/* ---- ring_callback.c ---- */

/* Starts the stream's thread for callbacks if it does not run. With the lock. */
enum mlacat_status ring_callback_prepare(struct mlacat_stream *stream, struct error *err);
/* Ends it after the last callback. No call of the stream is in flight. Without the lock. */
void ring_callback_stop(struct mlacat_stream *stream);

/* ---- ring_open.c; with the client's lock ---- */

/* Whether a stream that is opened like this tries to get a ring. Raises why it must, but cannot. */
enum mlacat_status ring_wanted(const struct mlacat_client *client, enum mlacat_transport transport, bool *wanted);
/* OpenRings, if need be, and OpenStream on one connection. OK: *reply is the caller's, the ring is attached. */
enum mlacat_status ring_open_stream(struct mlacat_stream *stream, message **reply, struct error *err);
/* What a StreamOpened says of the ring: OK, the ring is offered; INTERNAL, there is none. What it leaves of the
 * descriptors is the caller's. */
enum mlacat_status ring_take_offer(struct mlacat_stream *stream, const Mlacat__V1__StreamOpened *opened,
                                   const struct ring_pages *pages, struct wire_fds *passed, struct error *err);
/* Calls that the stream may have in flight. */
uint32_t ring_limit(const struct ring_pages *pages, uint32_t calls);

#endif
