/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that drives its streams: takes calls, launches, polls, gives back. While calls come and end it
 * allocates nothing, locks nothing and makes no system call. Streams with work take turns, one after the other.
 *
 * A device wakes nobody when it has finished. So a worker whose calls are under way looks again and again: without a
 * pause at first, and when nothing has happened for a while with naps between the looks; mail ends a nap. It sleeps
 * only without calls. Nor does an event of a client's: a call that waits for one is asked for ever more rarely.
 *
 * Streams with a ring are attached to it (ring_stream.h): it looks at their rings in each round, and once more before
 * it sleeps.
 *
 * Owns:     its thread, its mailboxes, its doorbell, and the worker's part of its streams.
 * Thread:   the loop thread, but what is said to be the worker's.
 * Lifetime: worker_start -> worker_stop, with no call at the worker and no stream attached.
 * Errors:   worker_start: RESOURCE_EXHAUSTED.
 */
#ifndef MLACAT_ENGINE_WORKER_H
#define MLACAT_ENGINE_WORKER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "call.h"
#include "counters.h"
#include "device.h"
#include "doorbell.h"
#include "loop_bell.h"
#include "spinner.h"

/* How long a nap is while the device has calls. */
#define WORKER_NAP_NS 50000
/* How far apart the questions for an event are at most; so long is a nap of a worker with nothing but calls that wait
 * for events. */
#define WORKER_ASK_MOST_NS 1000000

/* spin: awake while a stream is open; balanced: awake for spin_ns after the last event, if that pays (spinner.h);
 * sleep: sleeps, or naps, at once. */
enum worker_poll { WORKER_POLL_SPIN, WORKER_POLL_BALANCED, WORKER_POLL_SLEEP };

struct ring_report;

struct worker {
    pthread_t thread;
    const struct device_ops *ops;
    struct loop_bell *bell;
    enum worker_poll poll;
    uint64_t spin_ns;
    struct mailbox inbox;   /* loop -> worker: struct call */
    struct mailbox outbox;  /* worker -> loop: struct call */
    struct mailbox joining; /* loop -> worker: struct ring_stream.attach_mail */
    struct mailbox reports; /* worker -> loop: struct ring_report */
    struct doorbell doorbell;
    _Atomic uint32_t withdrawn; /* counts the loop's withdrawals: a change makes the worker look */
    _Atomic uint32_t stopping;
    _Atomic uint32_t streams_nr; /* open streams; written by the loop */
    _Atomic uint64_t heartbeat;  /* counts the worker's rounds */
    _Atomic uint32_t draining;   /* what comes through a ring from now on is refused */
    _Atomic uint32_t drained;    /* worker to loop: since `draining` was seen nothing is in flight from a ring */
    _Atomic uint32_t drain_news; /* worker to loop: that, or again */
    _Atomic uint32_t ring_calls; /* worker to loop: in flight from rings, as last told */
    uint32_t calls_nr;           /* loop: calls at the worker */
    uint64_t heartbeat_seen;     /* loop: at the last worker_stuck */
    bool calls_seen;             /* loop: it had calls then, and never none since */

    _Alignas(MAILBOX_LINE) struct list_node active; /* worker: streams with work */
    uint32_t withdrawn_seen;                        /* worker */
    struct list_node ended;                         /* worker: calls to post at the end of their stream's turn */
    bool posted;                                    /* worker: in this round; the loop must know */
    bool moved;                                     /* worker: in this round a call came, was launched, or came back */
    struct spinner spinner;                         /* worker */
    uint64_t moved_ns;                              /* worker: when that was last so */
    uint64_t told_look_ns;                          /* worker: when clients were told that it looks */
    uint64_t brisk_ns;                              /* worker: the longest of its last waits for that, but long ones */
    bool drain_seen;                                /* worker */
    uint32_t ring_calls_now;                        /* worker */
    struct list_node rings;                         /* worker: struct ring_stream.link, attached */
    struct device_call batch[DEVICE_BATCH];         /* worker: on their way to the device */
    struct counters counters;                       /* worker, read by the loop: calls of rings */
    uint64_t look_ns;                               /* worker: when a stream wants its next turn; 0: soon */
    bool eager;                                     /* worker: one is expected to want it at any moment */
};

/* RESOURCE_EXHAUSTED: no thread, no descriptors. */
enum mlacat_status worker_start(struct worker *worker, const struct device_ops *ops, struct loop_bell *bell,
                                enum worker_poll poll, uint64_t spin_ns, struct error *err);
void worker_stop(struct worker *worker);

void worker_post(struct worker *worker, struct call *call);
/* The next call that has ended, or was withdrawn; NULL: none. */
struct call *worker_take(struct worker *worker);
/* A stream with a ring is the worker's until it has reported `detached`. */
void worker_attach(struct worker *worker, struct mail *attach_mail);
/* The next report of a stream with a ring; NULL: none. */
struct ring_report *worker_take_report(struct worker *worker);
/* Refuse what comes through rings. */
void worker_drain(struct worker *worker);
/* Calls in flight from rings. While the worker has not seen the order to drain, one that it may just be taking counts
 * too. */
uint32_t worker_ring_calls(const struct worker *worker);
/* True once after each time that the last of them has ended in a drain: what the loop looks at before it sleeps. */
bool worker_take_drain_news(struct worker *worker);
/* Worker, twice a round, before it launches and at the end: what worker_ring_calls and worker_take_drain_news say. */
void worker_tell_rings(struct worker *worker);

/* Makes the worker give back the calls that were withdrawn. */
void worker_withdrawn(struct worker *worker);
/* A stream more or less. */
void worker_count_stream(struct worker *worker, int change);
uint32_t worker_streams(const struct worker *worker);

/* True if it had calls at the last question and has not made a round since: for the watchdog, asked seconds apart. */
bool worker_stuck(struct worker *worker);

#endif
