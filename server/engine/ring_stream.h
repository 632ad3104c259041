/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of a stream whose calls come through a ring. The worker has its pool of calls: it takes them from the ring,
 * proves them, and answers them in the ring; in between they take the same way through turn.c as all others.
 *
 *   not attached -> attached (loop: the device stream is open)
 *   attached -> not attached (worker: told to finish or to drop, and nothing is left; reported)
 *
 * A client that breaks the rules of the ring is not read any more, and reported; the loop ends its session.
 *
 * Owns:     the number of the ring, the doorbell, the worker's part of the ring.
 * Thread:   loop: new, free, attach, order. The rest: the worker.
 * Lifetime: ring_stream_new -> ring_stream_free, not attached.
 * Errors:   ring_stream_new: RESOURCE_EXHAUSTED.
 */
#ifndef MLACAT_ENGINE_RING_STREAM_H
#define MLACAT_ENGINE_RING_STREAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "arming.h"
#include "call.h"
#include "device.h"
#include "list.h"
#include "mailbox.h"
#include "ring.h"
#include "rings.h"

#define RING_TELL_NS 100000 /* so close together clients are told that it looks */

struct stream;
struct worker;

/* FINISH: what is in the ring and in flight ends first. DROP: what is launched; GPUs that wait for more are told. */
enum ring_order { RING_GO_ON, RING_FINISH, RING_DROP };

/* From the worker. */
struct ring_report {
    struct mail mail;
    struct ring_stream *ring;
    bool detached; /* the last word; else `broken_why` */
};

struct ring_stream {
    struct rings *rings;
    struct rings_share *share;
    uint32_t index;
    int doorbell_fd; /* the client has it too */
    bool attached;   /* loop: from its own word to the worker's */
    struct mail attach_mail;
    _Atomic uint32_t order; /* enum ring_order; loop to worker */

    /* Worker to loop. */
    struct ring_report broken;
    struct ring_report detached;
    struct error broken_why;
    _Atomic uint64_t calls_total;
    _Atomic uint32_t calls_nr; /* in flight */

    struct stream *stream;          /* that it is of; constant once attached */
    _Alignas(128) struct ring ring; /* worker, and all that follows */
    struct list_node link;          /* on the worker's list */
    bool unreadable;                /* the client broke the ring, or is gone */
    bool reported;                  /* `broken` was */
    struct arming arming;
    uint64_t deadline_ns; /* the earliest of the queued calls, or one before it; 0: none has any */
};

enum mlacat_status ring_stream_new(struct rings *rings, struct engine *engine, struct ring_stream **ring,
                                   struct error *err);
void ring_stream_free(struct ring_stream *ring);

/* Where the device tells how far it is; with the pages registered. */
struct device_words ring_stream_words(const struct ring_stream *ring);

/* --- worker: all its rings, once a round --- */

/* The stream's first letter to its worker. */
void ring_streams_attach(struct worker *worker, struct mail *attach_mail);
/* Takes calls; streams that have any go on worker->active. */
void ring_streams_look(struct worker *worker);
/* True if ring_streams_look would find something. An order for a stream with work does not count: the rounds go on, and
 * the next one finds it. */
bool ring_streams_have_news(const struct worker *worker);
/* Tells the clients that it has looked; awake the worker does this every RING_TELL_NS. */
void ring_streams_tell_look(struct worker *worker, uint64_t now_ns);
/* Before and after a sleep of the worker. */
void ring_streams_sleep(const struct worker *worker, bool asleep);

/* --- worker: one stream, one call --- */

/* The call has nothing more to wait for, or has failed and only tells so. */
bool ring_stream_ready(const struct call *call);
/* The call is in the queue: it ends at its deadline. */
void ring_stream_note_deadline(const struct call *call);
/* The call is not launched and never will be, for the reason in call->error. True: somebody's GPU waits for its end,
 * and it goes on as a signal in its place, or where the caller puts it; else it ends. */
bool ring_stream_signals(struct call *call);
/* Answers a call that has ended and is on no list. */
void ring_stream_end_call(struct worker *worker, struct call *call);
/* Shows the client what was answered. */
void ring_stream_publish(struct stream *stream);

#endif
