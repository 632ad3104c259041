/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client's ordered lane on one device: its pool of calls on the loop's side, its queue on the worker's. With a ring
 * the pool is the worker's too (ring_stream.h).
 *
 *   OPENING -> OPEN -> CLOSING -> freed      (loop)
 *   OPENING -> freed                         (loop: the device refused; `error` says why)
 *
 * Owns:     its calls and its device stream.
 * Thread:   the loop thread; the part marked `worker` belongs to the worker thread that the stream was given to for
 *           life.
 * Lifetime: stream_open -> stream_close -> on_gone (the last word). stream_close waits for the last call by itself.
 * Errors:   stream_open: RESOURCE_EXHAUSTED without memory; the device's own error comes with on_opened.
 */
#ifndef MLACAT_ENGINE_STREAM_H
#define MLACAT_ENGINE_STREAM_H

#include <stdbool.h>
#include <stdint.h>

#include "call.h"
#include "control.h"
#include "device.h"
#include "wire.h"

struct engine;
struct ring_report;
struct ring_stream;
struct stream;
struct worker;

struct stream_handlers {
    /* OPEN, or refused (stream->error): then on_gone follows. Not called after stream_close. */
    void (*on_opened)(struct stream *stream);
    /* The call is DONE, its buffers still pinned; the handler unpins them and gives the call back with stream_put_call,
     * now or later. */
    void (*on_call_done)(struct stream *stream, struct call *call);
    /* Of a stream with a ring: its client broke the ring (scope SESSION), or the device is lost (DEVICE). Once. */
    void (*on_broken)(struct stream *stream, const struct error *why);
    void (*on_gone)(struct stream *stream);
};

enum stream_state { STREAM_OPENING, STREAM_OPEN, STREAM_CLOSING };

struct stream {
    struct control_job job;
    struct control_lane *lane;
    struct engine *engine;
    struct worker *worker;
    const struct stream_handlers *handlers;
    void *owner;
    uint64_t request_id; /* of OpenStream, then of CloseStream */
    struct wire_ref ref;
    struct list_node link; /* the owner's */
    enum stream_state state;
    bool at_control; /* the control thread has the stream: it opens or closes it */
    struct error error;
    struct ring_stream *ring;  /* NULL: its calls come by packets */
    uint64_t ring_calls_total; /* when it is gone */
    struct call *calls;
    uint32_t calls_nr;
    uint32_t calls_touched; /* were in use at least once */
    uint32_t calls_used;    /* not FREE */
    struct list_node free;  /* calls: FREE */
    struct list_node live;  /* calls: BOUND or SUBMITTED, in order of receipt */
    struct list_node held;  /* calls that wait for an import, or behind one that does */

    _Alignas(128) struct list_node active_link; /* worker: on its list of streams with work */
    struct list_node queue;                     /* worker: calls not launched yet */
    struct list_node launched;                  /* worker: calls that the device has */
    struct device_stream *device_stream;
    bool armed;              /* worker: the device waits for the word of its only launched call */
    bool full;               /* worker: the device takes no more until something completes */
    bool lost;               /* worker: the device failed under it */
    struct error lost_error; /* worker: how */
};

/* Opens in the client's `lane`, and will close there. `ring`, or NULL, is the stream's if it returns OK. */
enum mlacat_status stream_open(struct engine *engine, struct control_lane *lane, uint32_t calls_nr,
                               struct ring_stream *ring, const struct stream_handlers *handlers, void *owner,
                               struct stream **stream, struct error *err);

/* A fresh call, BOUND, on the live list; NULL: all are in use. */
struct call *stream_get_call(struct stream *stream);
/* Gives back a call that is DONE, or BOUND and refused. */
void stream_put_call(struct stream *stream, struct call *call);

/* Hands a validated call (`plan`, `buffer` set) to the worker. */
void stream_submit(struct stream *stream, struct call *call);

/* Ends a call that the worker never had: BOUND -> DONE, on_call_done. */
void stream_fail_call(struct stream *stream, struct call *call, const struct error *err);

/* Withdraws a call. false: the worker has launched it, or it has ended. */
bool stream_withdraw(struct stream *stream, struct call *call, enum call_claim why);

/* A call of the pool in no state; NULL: all are in use. For ring_stream.c, which returns it to `free`. */
struct call *stream_fresh_call(struct stream *stream);

/* For engine.c: word from the worker of a ring. */
void stream_take_report(struct stream *stream, const struct ring_report *report);

/* For engine.c: the worker gave the call back. */
void stream_end_call(struct stream *stream, struct call *call);

/* No more calls: the stream goes after its last one. Once. */
void stream_close(struct stream *stream);
/* Nobody waits for the calls of its ring: those that are not launched are dropped. Before or after stream_close. */
void stream_drop_ring(struct stream *stream);

#endif
