/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one object that flows: a client's call from its receipt to its completion.
 *
 *   FREE -> BOUND      (loop: taken from the stream's pool; its buffers are pinned)
 *   BOUND -> SUBMITTED (loop: validated and handed to the worker)
 *   SUBMITTED -> DONE  (loop: the worker gave it back)
 *   BOUND -> DONE      (loop: failed or dropped before it reached the worker)
 *   DONE -> FREE       (loop: the completion was sent, or nobody is left to read it)
 *   BOUND -> FREE      (loop: refused at once; the refusal was the answer)
 *
 * A call that came through a ring has no state: all of it is the worker's.
 *
 * Owns:     nothing; it lives in its stream's pool and carries the pins of its buffers and its event.
 * Thread:   the loop thread, but while SUBMITTED the worker's fields belong to the worker; `claim` is shared.
 * Lifetime: as long as its stream.
 * Errors:   -
 */
#ifndef MLACAT_MODEL_CALL_H
#define MLACAT_MODEL_CALL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "list.h"
#include "mailbox.h"
#include "op.h"
#include "status.h"

struct buffer;
struct event;
struct stream;

enum call_state { CALL_FREE, CALL_BOUND, CALL_SUBMITTED, CALL_DONE };

/* Who decides what becomes of a call that waits: the worker takes it, or the loop withdraws it. The first one wins
 * (compare and swap from WAITING). A withdrawn call goes back the same way as one that was run. */
enum call_claim { CALL_WAITING, CALL_TAKEN, CALL_WITHDRAWN_CANCEL, CALL_WITHDRAWN_DEADLINE, CALL_WITHDRAWN_GONE };

struct call {
    struct list_node link;      /* loop: the stream's free list, then its live list, then the session's done list */
    struct list_node hold_link; /* loop: the stream's list of calls that wait for imports of inline memory */
    struct stream *stream;
    enum call_state state;
    uint32_t imports_pending; /* loop: operands whose inline memory is not imported yet */
    uint64_t call_id;
    uint64_t received_ns;
    uint64_t deadline_ns;               /* 0: none */
    struct buffer *buffer[OP_OPERANDS]; /* pinned from BOUND to DONE */
    struct event *event;                /* what it waits for, likewise pinned; NULL: nothing */
    struct op_request request;          /* kept for calls that are validated only after an import */
    struct op_plan plan;

    _Atomic uint32_t claim; /* enum call_claim */

    struct mail mail;            /* on its way between the two */
    struct list_node queue_link; /* worker: the stream's queue */
    uint64_t gated_ns;           /* worker: since when it is first in its stream and waits for its event or its `ready`
                                    word; 0: not yet */
    uint64_t ask_ns;             /* worker: not before then is that looked at again */
    uint64_t launched_ns;        /* worker; 0: never */
    uint64_t ended_ns;           /* worker */
    struct error error;          /* worker while SUBMITTED, else loop */

    /* Of a ring. */
    uint64_t sequence;           /* of its entry */
    uint64_t ready;              /* if `gated`: what the stream's `ready` word must reach before the launch */
    struct buffer *ready_buffer; /* a device finds it here too, likewise pinned; NULL: nowhere else */
    uint64_t ready_offset;
    bool gated;
    uint64_t armed_ns; /* when it was armed last, in vain; 0: not yet */
    bool unarmed;      /* the word is for the worker to wait for, not for the device */
    bool armed_ran;    /* the device started it by itself */
    bool tell_done;    /* the client's GPU waits for its end */
    bool signal_only;  /* it has failed unlaunched, with `error`, and stays in its place to tell so */
};

/* The one setter: asserts that the arrow exists. */
void call_set_state(struct call *call, enum call_state state);

/* Worker: true if the call is the worker's to launch; false: it was withdrawn and must go back unlaunched. */
bool call_take(struct call *call);

/* Loop: true if the call was still waiting and will not be launched; false: too late. */
bool call_withdraw(struct call *call, enum call_claim why);

/* Fills `error` with what a withdrawn call ends with. */
void call_withdrawn_error(enum call_claim why, struct error *error);

#endif
