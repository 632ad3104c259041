/* SPDX-License-Identifier: Apache-2.0 */
#include "worker.h"

#include <assert.h>
#include <string.h>
#include <sys/prctl.h>

#include "buffers.h"
#include "clock.h"
#include "events.h"
#include "stream.h"
#include "thread.h"

#define POLL_BATCH 32
#define NAP_SLACK_NS 1000 /* the kernel's default would double a nap */

/* A call is late by no more than an eighth of what it waited for its event anyway. */
#define ASK_ALWAYS_NS 20000
#define ASK_SHARE 8

static void give_back(struct worker *worker, struct call *call)
{
    list_append(&worker->ended, &call->queue_link);
    worker->moved = true;
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

static void on_call(struct worker *worker, struct call *call)
{
    struct stream *stream = call->stream;
    worker->moved = true;
    list_append(&stream->queue, &call->queue_link);
    if (list_empty(&stream->active_link)) {
        list_append(&worker->active, &stream->active_link);
    }
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
    stream->lost_error = *why;
    stream->lost_error.scope = MLACAT_SCOPE_DEVICE;
    fail_all(worker, stream);
}

/* The event is a client's and may never come, so it is asked for here and nothing of it is put on the device. But to
 * ask takes the driver's lock, which every launch needs: the longer a call has waited, the rarer. */
static enum device_answer ask_event(struct worker *worker, struct call *call)
{
    uint64_t now_ns = clock_now_ns();
    if (call->gated_ns == 0) {
        call->gated_ns = now_ns;
    }
    if (now_ns < call->ask_ns) {
        return DEVICE_AGAIN;
    }
    enum device_answer answer = worker->ops->event_query(call->event->device_event, &call->error);
    uint64_t waited_ns = now_ns - call->gated_ns;
    if (answer == DEVICE_AGAIN && waited_ns >= ASK_ALWAYS_NS) {
        uint64_t pause_ns = waited_ns / ASK_SHARE;
        call->ask_ns = now_ns + (pause_ns < WORKER_ASK_MOST_NS ? pause_ns : WORKER_ASK_MOST_NS);
    }
    return answer;
}

/* A call that was withdrawn waits for nothing any more. */
static bool is_gated(const struct call *call)
{
    return call->event && atomic_load_explicit(&call->claim, memory_order_relaxed) == CALL_WAITING;
}

static enum device_answer submit(struct worker *worker, struct stream *stream, struct call *call)
{
    struct device_call device_call = {.plan = call->plan, .cookie = call};
    for (int i = 0; i < OP_OPERANDS; i++) {
        device_call.memory[i] = call->buffer[i]->memory;
    }
    uint32_t nr = 1;
    call->launched_ns = clock_now_ns();
    enum device_answer answer = worker->ops->submit(stream->device_stream, &device_call, &nr, &call->error);
    if (answer == DEVICE_AGAIN) {
        /* Not launched: it can still be cancelled and its deadline counts. */
        call->launched_ns = 0;
        atomic_store_explicit(&call->claim, CALL_WAITING, memory_order_relaxed);
        stream->full = true;
    }
    return answer;
}

/* Launches from the queue until it is empty, the device is full, or the first call waits for its event: then returns
 * when that one is asked for again, else 0. */
static uint64_t launch(struct worker *worker, struct stream *stream)
{
    while (!list_empty(&stream->queue) && !(stream->full && !list_empty(&stream->launched))) {
        struct call *call = LIST_ENTRY(stream->queue.next, struct call, queue_link);
        if (atomic_load_explicit(&call->claim, memory_order_relaxed) == CALL_WAITING && call->deadline_ns != 0 &&
            clock_now_ns() >= call->deadline_ns) {
            call_withdraw(call, CALL_WITHDRAWN_DEADLINE);
        }
        enum device_answer answer = is_gated(call) ? ask_event(worker, call) : DEVICE_OK;
        if (answer == DEVICE_AGAIN) {
            return call->ask_ns;
        }
        if (!call_take(call)) {
            give_back_withdrawn(worker, call);
            continue;
        }
        if (answer == DEVICE_OK) {
            answer = submit(worker, stream, call);
        }
        if (answer == DEVICE_AGAIN) {
            return 0;
        }
        list_remove(&call->queue_link);
        if (answer == DEVICE_OK) {
            list_append(&stream->launched, &call->queue_link);
            worker->moved = true;
        } else {
            give_back(worker, call);
        }
    }
    return 0;
}

static void reap(struct worker *worker, struct stream *stream)
{
    struct device_completion done[POLL_BATCH];
    struct error err = {0};
    int done_nr = worker->ops->poll(stream->device_stream, done, POLL_BATCH, &err);
    if (done_nr < 0) {
        lose_stream(worker, stream, &err);
        return;
    }
    if (done_nr == 0) {
        return;
    }
    uint64_t now_ns = clock_now_ns();
    stream->full = false;
    for (int i = 0; i < done_nr; i++) {
        struct call *call = done[i].cookie;
        call->error.code = done[i].error.code;
        if (call->error.code != MLACAT_OK) {
            call->error = done[i].error;
        }
        call->ended_ns = now_ns;
        list_remove(&call->queue_link);
        give_back(worker, call);
    }
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

/* One round over the streams with work. `withdrawn`: the count before the inbox was emptied, so that every call that it
 * counts is in its stream's queue by now. Returns true if the device has calls. */
static bool drive(struct worker *worker, uint32_t withdrawn)
{
    bool launched = false;
    worker->look_ns = UINT64_MAX;
    struct list_node *node = worker->active.next;
    while (node != &worker->active) {
        struct stream *stream = LIST_ENTRY(node, struct stream, active_link);
        node = node->next;
        if (stream->lost) {
            fail_all(worker, stream);
        }
        if (withdrawn != worker->withdrawn_seen) {
            drop_withdrawn(worker, stream);
        }
        uint64_t look_ns = launch(worker, stream);
        if (!list_empty(&stream->launched)) {
            reap(worker, stream);
            look_ns = 0;
        }
        launched |= !list_empty(&stream->launched);
        if (list_empty(&stream->launched) && list_empty(&stream->queue)) {
            list_remove(&stream->active_link);
        } else if (look_ns < worker->look_ns) {
            worker->look_ns = look_ns;
        }
        post_ended(worker);
    }
    worker->withdrawn_seen = withdrawn;
    return launched;
}

static bool looks_on(const struct worker *worker, uint64_t waited_ns)
{
    if (worker->poll == WORKER_POLL_SPIN) {
        return worker_streams(worker) > 0;
    }
    return waited_ns < worker->spin_ns;
}

/* Until there is mail, or the worker is to stop. */
static void wait_for_work(struct worker *worker)
{
    uint64_t start_ns = clock_now_ns();
    while (mailbox_empty(&worker->inbox) && !atomic_load_explicit(&worker->stopping, memory_order_relaxed)) {
        uint64_t waited_ns = clock_now_ns() - start_ns;
        if (looks_on(worker, waited_ns)) {
            spin_pause(waited_ns);
            continue;
        }
        doorbell_arm(&worker->doorbell);
        if (!mailbox_empty(&worker->inbox) || atomic_load(&worker->stopping)) {
            doorbell_disarm(&worker->doorbell);
            return;
        }
        doorbell_sleep(&worker->doorbell);
        start_ns = clock_now_ns();
    }
}

/* Between two rounds over calls that are under way. */
static void pause_round(struct worker *worker)
{
    uint64_t now_ns = clock_now_ns();
    if (worker->moved) {
        worker->moved = false;
        worker->moved_ns = now_ns;
        return;
    }
    uint64_t waited_ns = now_ns - worker->moved_ns;
    if (looks_on(worker, waited_ns)) {
        spin_pause(waited_ns);
        return;
    }
    doorbell_arm(&worker->doorbell);
    if (!mailbox_empty(&worker->inbox) || atomic_load(&worker->withdrawn) != worker->withdrawn_seen) {
        doorbell_disarm(&worker->doorbell);
        return;
    }
    /* Nothing but gated calls: until the first of them is asked for. */
    bool is_later = worker->look_ns > now_ns + WORKER_NAP_NS;
    doorbell_nap(&worker->doorbell, is_later ? worker->look_ns - now_ns : WORKER_NAP_NS);
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    prctl(PR_SET_TIMERSLACK, NAP_SLACK_NS);
    while (!atomic_load_explicit(&worker->stopping, memory_order_relaxed)) {
        uint32_t withdrawn = atomic_load_explicit(&worker->withdrawn, memory_order_acquire);
        struct mail *mail;
        while ((mail = mailbox_take(&worker->inbox))) {
            on_call(worker, LIST_ENTRY(mail, struct call, mail));
        }
        bool launched = drive(worker, withdrawn);
        atomic_fetch_add_explicit(&worker->heartbeat, 1, memory_order_relaxed);
        if (worker->posted) {
            worker->posted = false;
            loop_bell_ring(worker->bell);
        }
        if (list_empty(&worker->active)) {
            wait_for_work(worker);
        } else if (!launched || !worker->ops->works_in_poll) {
            pause_round(worker);
        }
    }
    return NULL;
}

enum mlacat_status worker_start(struct worker *worker, const struct device_ops *ops, struct loop_bell *bell,
                                enum worker_poll poll, uint64_t spin_ns, struct error *err)
{
    memset(worker, 0, sizeof(*worker));
    worker->ops = ops;
    worker->bell = bell;
    worker->poll = poll;
    worker->spin_ns = poll == WORKER_POLL_SLEEP ? 0 : spin_ns;
    list_init(&worker->active);
    list_init(&worker->ended);
    if (doorbell_init(&worker->doorbell, err) != MLACAT_OK) {
        return err->code;
    }
    if (thread_start(&worker->thread, "mlacat-worker", worker_main, worker, err) != MLACAT_OK) {
        doorbell_fini(&worker->doorbell);
        return err->code;
    }
    return MLACAT_OK;
}

void worker_stop(struct worker *worker)
{
    assert(worker->calls_nr == 0);
    atomic_store(&worker->stopping, 1);
    doorbell_ring(&worker->doorbell);
    pthread_join(worker->thread, NULL);
    doorbell_fini(&worker->doorbell);
}

void worker_post(struct worker *worker, struct call *call)
{
    mailbox_post(&worker->inbox, &call->mail);
    worker->calls_nr++;
    doorbell_ring(&worker->doorbell);
}

struct call *worker_take(struct worker *worker)
{
    struct mail *mail = worker->calls_nr > 0 ? mailbox_take(&worker->outbox) : NULL;
    if (!mail) {
        return NULL;
    }
    worker->calls_nr--;
    return LIST_ENTRY(mail, struct call, mail);
}

void worker_withdrawn(struct worker *worker)
{
    /* Pairs with worker_main: a worker that sees the count also sees the withdrawn claims. It does not sleep, for it
     * has the calls, but it may nap. */
    atomic_fetch_add(&worker->withdrawn, 1);
    doorbell_ring(&worker->doorbell);
}

void worker_count_stream(struct worker *worker, int change)
{
    atomic_fetch_add_explicit(&worker->streams_nr, (uint32_t)change, memory_order_relaxed);
    /* With poll = spin a sleeping worker wakes for its first stream. */
    doorbell_ring(&worker->doorbell);
}

uint32_t worker_streams(const struct worker *worker)
{
    return atomic_load_explicit(&worker->streams_nr, memory_order_relaxed);
}

bool worker_stuck(struct worker *worker)
{
    uint64_t heartbeat = atomic_load_explicit(&worker->heartbeat, memory_order_relaxed);
    bool stuck = worker->calls_nr > 0 && heartbeat == worker->heartbeat_seen;
    worker->heartbeat_seen = heartbeat;
    return stuck;
}
