/* SPDX-License-Identifier: Apache-2.0 */
#include "turn.h"

#include "buffers.h"
#include "clock.h"
#include "events.h"
#include "ring_stream.h"
#include "stream.h"
#include "worker.h"

#define POLL_BATCH 32

/* A call is late by no more than an eighth of what it waited for its event anyway. */
#define ASK_ALWAYS_NS 20000
#define ASK_SHARE 8

/* ---------------------------------------------------------------------------------------------------- ends */

/* A call on no list that has ended. */
static void give_back(struct worker *worker, struct call *call)
{
    worker->moved = true;
    if (call->stream->ring) {
        ring_stream_end_call(worker, call);
    } else {
        list_append(&worker->ended, &call->queue_link);
    }
}

/* After a stream's turn, when the worker will not touch it again for the calls that ended: with the last of them the
 * loop may close and free the stream. */
static void post_ended(struct worker *worker)
{
    struct list_node *node;
    while ((node = list_take(&worker->ended))) {
        mailbox_post(&worker->outbox, &LIST_ENTRY(node, struct call, queue_link)->mail);
        worker->posted = true;
    }
}

static void give_back_withdrawn(struct worker *worker, struct call *call)
{
    call_withdrawn_error((enum call_claim)atomic_load_explicit(&call->claim, memory_order_relaxed), &call->error);
    list_remove(&call->queue_link);
    give_back(worker, call);
}

/* The device is gone under this stream: what it had, and all that comes, fails with what it said. */
static void fail_all(struct worker *worker, struct stream *stream)
{
    struct list_node *node;
    while ((node = list_take(&stream->launched)) || (node = list_take(&stream->queue))) {
        struct call *call = LIST_ENTRY(node, struct call, queue_link);
        call->error = stream->lost_error;
        give_back(worker, call);
    }
}

static void lose_stream(struct worker *worker, struct stream *stream, const struct error *why)
{
    stream->lost = true;
    stream->armed = false;
    stream->lost_error = *why;
    stream->lost_error.scope = MLACAT_SCOPE_DEVICE;
    fail_all(worker, stream);
}

static void drop_withdrawn(struct worker *worker, struct stream *stream)
{
    struct list_node *node = stream->queue.next;
    while (node != &stream->queue) {
        struct call *call = LIST_ENTRY(node, struct call, queue_link);
        node = node->next;
        if (atomic_load_explicit(&call->claim, memory_order_relaxed) > CALL_TAKEN) {
            give_back_withdrawn(worker, call);
        }
    }
}

/* ---------------------------------------------------------------------------------------------------- launching */

/* LATER: it has to wait, and what is behind it. NEVER: it has ended and was given back. */
enum launch_answer { LAUNCH_NOW, LAUNCH_LATER, LAUNCH_NEVER };

/* A call that was withdrawn waits for nothing any more. */
static bool is_gated(const struct call *call)
{
    return call->event && atomic_load_explicit(&call->claim, memory_order_relaxed) == CALL_WAITING;
}

/* DEVICE_OK: the call waits for nothing any more, or was withdrawn. The event is a client's and may never come, so it
 * is asked for here and nothing of it is put on the device. But to ask takes the driver's lock, which every launch
 * needs: the longer a call has waited, the rarer. */
static enum device_answer ask_event(struct worker *worker, struct call *call, uint64_t now_ns, struct error *err)
{
    if (!is_gated(call)) {
        return DEVICE_OK;
    }
    if (call->gated_ns == 0) {
        call->gated_ns = now_ns;
    }
    if (now_ns < call->ask_ns) {
        return DEVICE_AGAIN;
    }
    enum device_answer answer = worker->ops->event_query(call->event->device_event, err);
    uint64_t waited_ns = now_ns - call->gated_ns;
    if (answer == DEVICE_AGAIN && waited_ns >= ASK_ALWAYS_NS) {
        uint64_t pause_ns = waited_ns / ASK_SHARE;
        call->ask_ns = now_ns + (pause_ns < WORKER_ASK_MOST_NS ? pause_ns : WORKER_ASK_MOST_NS);
    }
    return answer;
}

/* Its `ready` word has come. */
static void note_ready(const struct call *call, uint64_t now_ns)
{
    if (call->gated) {
        arming_ready(&call->stream->ring->arming, call->gated_ns != 0 ? now_ns - call->gated_ns : 0);
    }
}

/* Whether a call that is next in the queue is to be launched. One that came in a packet may be withdrawn by the loop
 * until it is taken here. */
static enum launch_answer ask(struct worker *worker, struct call *call, uint64_t now_ns)
{
    if (call->stream->ring) {
        if (!ring_stream_ready(call)) {
            return LAUNCH_LATER;
        }
        note_ready(call, now_ns);
        return LAUNCH_NOW;
    }
    if (atomic_load_explicit(&call->claim, memory_order_relaxed) == CALL_WAITING && call->deadline_ns != 0 &&
        now_ns >= call->deadline_ns) {
        call_withdraw(call, CALL_WITHDRAWN_DEADLINE);
    }
    struct error err;
    enum device_answer answer = ask_event(worker, call, now_ns, &err);
    if (answer == DEVICE_AGAIN) {
        return LAUNCH_LATER;
    }
    if (!call_take(call)) {
        give_back_withdrawn(worker, call);
        return LAUNCH_NEVER;
    }
    if (answer == DEVICE_ERROR) {
        call->error = err;
        list_remove(&call->queue_link);
        give_back(worker, call);
        return LAUNCH_NEVER;
    }
    return LAUNCH_NOW;
}

static void describe(struct call *call, struct device_call *device_call)
{
    device_call->cookie = call;
    device_call->sequence = call->sequence;
    device_call->tell_done = call->tell_done;
    device_call->signal_only = call->signal_only;
    if (!call->signal_only) {
        device_call->plan = call->plan;
        for (int i = 0; i < OP_OPERANDS; i++) {
            device_call->memory[i] = call->buffer[i]->memory;
        }
    }
}

/* Fills worker->batch with calls from the front of the queue, where they stay, and returns their number. */
static uint32_t gather(struct worker *worker, struct stream *stream)
{
    uint64_t now_ns = clock_now_ns();
    uint32_t nr = 0;
    struct list_node *node = stream->queue.next;
    while (node != &stream->queue && nr < DEVICE_BATCH) {
        struct call *call = LIST_ENTRY(node, struct call, queue_link);
        node = node->next;
        enum launch_answer answer = ask(worker, call, now_ns);
        if (answer == LAUNCH_LATER) {
            break;
        }
        if (answer == LAUNCH_NOW) {
            call->launched_ns = now_ns;
            describe(call, &worker->batch[nr++]);
        }
    }
    return nr;
}

/* Not launched: it can still be cancelled and its deadline counts. */
static void take_back(struct call *call)
{
    call->launched_ns = 0;
    atomic_store_explicit(&call->claim, CALL_WAITING, memory_order_relaxed);
}

static void refuse(struct worker *worker, struct call *call, const struct error *why)
{
    call->error = *why;
    if (call->stream->ring && ring_stream_signals(call)) {
        return; /* in its place */
    }
    list_remove(&call->queue_link);
    give_back(worker, call);
}

/* Launches what is ready at the front of the queue. false: nothing is, or the device is full. */
static bool launch_batch(struct worker *worker, struct stream *stream)
{
    struct error err;
    uint32_t nr = gather(worker, stream);
    uint32_t taken_nr = nr;
    if (nr == 0) {
        return false;
    }
    enum device_answer answer = worker->ops->submit(stream->device_stream, worker->batch, &taken_nr, &err);
    if (answer != DEVICE_OK) {
        taken_nr = 0;
    }
    for (uint32_t i = 0; i < nr; i++) {
        struct call *call = worker->batch[i].cookie;
        if (i < taken_nr) {
            list_remove(&call->queue_link);
            list_append(&stream->launched, &call->queue_link);
            worker->moved = true;
        } else if (i == 0 && answer == DEVICE_ERROR) {
            refuse(worker, call, &err);
        } else {
            take_back(call);
        }
    }
    stream->full = answer == DEVICE_AGAIN;
    return !stream->full;
}

static void arm(struct worker *worker, struct stream *stream, struct call *call, uint64_t wait_ns)
{
    struct device_call *device_call = &worker->batch[0];
    struct error err;
    describe(call, device_call);
    device_call->ready_memory = call->ready_buffer ? call->ready_buffer->memory : NULL;
    device_call->ready_offset = call->ready_offset;
    if (worker->ops->arm(stream->device_stream, device_call, call->ready, wait_ns, &err) != DEVICE_OK) {
        call->unarmed = true;
        return;
    }
    list_remove(&call->queue_link);
    list_append(&stream->launched, &call->queue_link);
    stream->armed = true;
    worker->moved = true;
}

/* The first call waits for its `ready` word, and all before it have ended. */
static void wait_for_word(struct worker *worker, struct stream *stream, struct call *call)
{
    struct arming *arming = &stream->ring->arming;
    uint64_t now_ns = clock_now_ns();
    if (call->gated_ns == 0) {
        call->gated_ns = now_ns;
        call->unarmed = !worker->ops->arm || !arming_admit(arming);
    }
    struct arming_plan plan = arming_plan(arming, call->gated_ns, now_ns);
    uint64_t pause_ns = arming_pause_ns(&plan, call->gated_ns, now_ns);
    call->ask_ns = now_ns + pause_ns;
    worker->eager |= pause_ns == 0;
    if (!call->unarmed && arming_is_due(&plan, call->armed_ns, now_ns)) {
        call->armed_ns = now_ns;
        arm(worker, stream, call, plan.late_ns - now_ns);
    }
}

/* The device waits for the word itself; when it has come is for us to see. */
static void watch_armed(struct worker *worker, struct stream *stream)
{
    struct call *call = LIST_ENTRY(stream->launched.next, struct call, queue_link);
    uint64_t now_ns = clock_now_ns();
    worker->eager |= now_ns - call->ask_ns < ARMING_MOST_NS; /* longer than that a GPU is busy with something else */
    if (call->launched_ns == 0 && ring_stream_ready(call)) {
        call->launched_ns = now_ns;
        worker->moved = true;
    }
}

/* Launches from the queue until it is empty, its first call has to wait, or the device is full. */
static void launch(struct worker *worker, struct stream *stream)
{
    if (stream->armed) {
        watch_armed(worker, stream);
        return;
    }
    while (!list_empty(&stream->queue) && !(stream->full && !list_empty(&stream->launched)) &&
           launch_batch(worker, stream)) {
    }
    if (stream->ring && list_empty(&stream->launched) && !list_empty(&stream->queue) && !stream->full) {
        wait_for_word(worker, stream, LIST_ENTRY(stream->queue.next, struct call, queue_link));
    }
}

/* ---------------------------------------------------------------------------------------------------- the turn */

/* The word did not come in time: the call is the first in the queue again. */
static void take_lapsed(struct worker *worker, struct call *call)
{
    struct stream *stream = call->stream;
    worker->moved = true;
    arming_lapsed(&stream->ring->arming);
    counters_lapsed(&worker->counters);
    call->launched_ns = 0;
    list_remove(&call->queue_link);
    list_prepend(&stream->queue, &call->queue_link);
    ring_stream_note_deadline(call);
}

/* Only now is it known when its word came: what we saw of that before, the client may have taken back. */
static void note_armed_ran(struct call *call, uint64_t now_ns)
{
    if (call->launched_ns == 0) {
        call->launched_ns = now_ns; /* both its word and its end are new to us */
    }
    note_ready(call, call->launched_ns);
    arming_ran(&call->stream->ring->arming);
    call->armed_ran = true;
}

static void end_launched(struct worker *worker, const struct device_completion *done, uint64_t now_ns)
{
    struct call *call = done->cookie;
    if (done->error.code != MLACAT_OK) {
        call->error = done->error;
    }
    if (call->stream->armed) {
        note_armed_ran(call, now_ns);
    }
    call->ended_ns = now_ns;
    list_remove(&call->queue_link);
    give_back(worker, call);
}

/* Takes back what has ended. false: the armed call has lapsed. */
static bool reap(struct worker *worker, struct stream *stream)
{
    struct device_completion done[POLL_BATCH];
    struct error err = {0};
    int done_nr = worker->ops->poll(stream->device_stream, done, POLL_BATCH, &err);
    if (done_nr < 0) {
        lose_stream(worker, stream, &err);
        return true;
    }
    if (done_nr == 0) {
        return true;
    }
    uint64_t now_ns = clock_now_ns();
    bool lapsed = done[0].lapsed; /* an armed call is the only one */
    stream->full = false;
    if (lapsed) {
        take_lapsed(worker, done[0].cookie);
    } else {
        for (int i = 0; i < done_nr; i++) {
            end_launched(worker, &done[i], now_ns);
        }
    }
    stream->armed = false;
    return !lapsed;
}

/* When the stream wants its next turn; 0: soon. */
static uint64_t next_look_ns(const struct stream *stream)
{
    if (!list_empty(&stream->launched) || list_empty(&stream->queue)) {
        return 0;
    }
    const struct call *first = LIST_ENTRY(stream->queue.next, struct call, queue_link);
    return is_gated(first) || (stream->ring && !ring_stream_ready(first)) ? first->ask_ns : 0;
}

bool turn_take(struct worker *worker, struct stream *stream, bool withdrawn)
{
    if (stream->lost) {
        fail_all(worker, stream);
    }
    if (withdrawn) {
        drop_withdrawn(worker, stream);
    }
    /* First, for what has ended may be what the next call waits for. A call that has lapsed is looked at in the next
     * round: before it goes on, what could not touch it while it was armed has its turn, which is its deadline, a
     * request to cancel it, or the end of its stream. */
    if (list_empty(&stream->launched) || reap(worker, stream)) {
        launch(worker, stream);
    }
    if (worker->ops->works_in_poll && !list_empty(&stream->launched)) {
        reap(worker, stream);
    }
    bool launched = !list_empty(&stream->launched);
    if (!launched && list_empty(&stream->queue)) {
        list_remove(&stream->active_link);
    } else if (next_look_ns(stream) < worker->look_ns) {
        worker->look_ns = next_look_ns(stream);
    }
    if (stream->ring) {
        ring_stream_publish(stream);
    }
    post_ended(worker);
    return launched;
}
