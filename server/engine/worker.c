/* SPDX-License-Identifier: Apache-2.0 */
#include "worker.h"

#include <assert.h>
#include <string.h>
#include <sys/prctl.h>

#include "clock.h"
#include "ring_stream.h"
#include "stream.h"
#include "thread.h"
#include "turn.h"

#define NAP_SLACK_NS 1000 /* the kernel's default would double a nap */
/* Events that are no further apart than this may be waited for without a pause. */
#define BRISK_NS 500000
/* How fast a wait is forgotten: a call is a few events, of which only one is long in coming. */
#define FORGET_PARTS 8

static void on_call(struct worker *worker, struct call *call)
{
    struct stream *stream = call->stream;
    worker->moved = true;
    list_append(&stream->queue, &call->queue_link);
    if (list_empty(&stream->active_link)) {
        list_append(&worker->active, &stream->active_link);
    }
}

/* One round over the streams with work. `withdrawn`: the count before the inbox was emptied, so that every call that it
 * counts is in its stream's queue by now. Returns true if the device has calls. */
static bool drive(struct worker *worker, uint32_t withdrawn)
{
    bool launched = false;
    worker->look_ns = UINT64_MAX;
    worker->eager = false;
    struct list_node *node = worker->active.next;
    while (node != &worker->active) {
        struct stream *stream = LIST_ENTRY(node, struct stream, active_link);
        node = node->next;
        launched |= turn_take(worker, stream, withdrawn != worker->withdrawn_seen);
    }
    worker->withdrawn_seen = withdrawn;
    return launched;
}

/* How long it looks on without a pause after the last event: to wake would take as long as a small call, or longer.
 * When events come briskly, it is twice as long as the last ones took. */
static uint64_t looks_on_ns(const struct worker *worker)
{
    uint64_t brisk_ns = 2 * worker->brisk_ns;
    return worker->spin_ns == 0 || brisk_ns < worker->spin_ns ? worker->spin_ns : brisk_ns;
}

static bool looks_on(const struct worker *worker, uint64_t waited_ns, uint64_t now_ns)
{
    if (worker->poll == WORKER_POLL_SPIN) {
        return worker_streams(worker) > 0;
    }
    if (spin_crowded(&worker->spinner, now_ns)) {
        return waited_ns < MLACAT_YIELD_ALONE_NS;
    }
    return waited_ns < looks_on_ns(worker) || (worker->eager && worker->poll != WORKER_POLL_SLEEP);
}

/* All that a round looks at but what is under way. Sequentially consistent, because it is asked before a sleep
 * (doorbell.h). */
static bool has_news(const struct worker *worker)
{
    return !mailbox_empty(&worker->inbox) || !mailbox_empty(&worker->joining) || ring_streams_have_news(worker) ||
           atomic_load(&worker->withdrawn) != worker->withdrawn_seen ||
           atomic_load(&worker->draining) != worker->drain_seen || atomic_load(&worker->stopping);
}

/* Until somebody has news; with `nap_ns` not 0 no longer than that. Clients whose rings are looked at must ring for a
 * nap too: a call would else wait for its end. */
static void rest(struct worker *worker, uint64_t nap_ns)
{
    doorbell_arm(&worker->doorbell);
    ring_streams_sleep(worker, true);
    if (has_news(worker)) {
        doorbell_disarm(&worker->doorbell);
    } else if (nap_ns != 0) {
        doorbell_nap(&worker->doorbell, nap_ns);
    } else {
        doorbell_sleep(&worker->doorbell);
    }
    ring_streams_sleep(worker, false);
}

/* Until there is something to do. */
static void wait_for_work(struct worker *worker)
{
    uint64_t start_ns = worker->moved_ns;
    worker->eager = false; /* what was expected has come */
    while (!has_news(worker)) {
        uint64_t now_ns = clock_now_ns();
        ring_streams_tell_look(worker, now_ns);
        if (looks_on(worker, now_ns - start_ns, now_ns)) {
            spin_pause(&worker->spinner, now_ns - start_ns);
            continue;
        }
        rest(worker, 0);
        start_ns = clock_now_ns();
    }
}

static void note_events(struct worker *worker)
{
    uint64_t now_ns = clock_now_ns();
    uint64_t gap_ns = now_ns - worker->moved_ns;
    ring_streams_tell_look(worker, now_ns);
    worker->moved = false;
    worker->moved_ns = now_ns;
    spin_count(&worker->spinner);
    worker->brisk_ns -= worker->brisk_ns / FORGET_PARTS;
    if (gap_ns <= BRISK_NS && gap_ns > worker->brisk_ns) {
        worker->brisk_ns = gap_ns;
    }
}

/* Between two rounds over calls that are under way, the last one without an event. */
static void pause_round(struct worker *worker)
{
    uint64_t now_ns = clock_now_ns();
    uint64_t waited_ns = now_ns - worker->moved_ns;
    ring_streams_tell_look(worker, now_ns);
    if (looks_on(worker, waited_ns, now_ns)) {
        spin_pause(&worker->spinner, waited_ns);
    } else {
        /* Nothing but gated calls: until the first of them is asked for. */
        bool is_later = worker->look_ns > now_ns;
        rest(worker, is_later ? worker->look_ns - now_ns : WORKER_NAP_NS);
    }
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
        while ((mail = mailbox_take(&worker->joining))) {
            ring_streams_attach(worker, mail);
        }
        worker->drain_seen = atomic_load_explicit(&worker->draining, memory_order_acquire);
        ring_streams_look(worker);
        worker_tell_rings(worker); /* the watchdog must know of calls whose launch does not return */
        bool launched = drive(worker, withdrawn);
        worker_tell_rings(worker);
        atomic_fetch_add_explicit(&worker->heartbeat, 1, memory_order_relaxed);
        if (worker->posted) {
            worker->posted = false;
            loop_bell_ring(worker->bell);
        }
        bool moved = worker->moved;
        if (moved) {
            note_events(worker);
        }
        if (list_empty(&worker->active)) {
            wait_for_work(worker);
        } else if (!moved && (!launched || !worker->ops->works_in_poll)) {
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
    list_init(&worker->rings);
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
    worker->calls_seen &= worker->calls_nr++ > 0;
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
    bool has_calls = worker->calls_nr > 0 || worker_ring_calls(worker) > 0;
    /* One that slept until now has made no round since then either: its calls have just come. */
    bool stuck = has_calls && worker->calls_seen && heartbeat == worker->heartbeat_seen;
    worker->calls_seen = has_calls;
    worker->heartbeat_seen = heartbeat;
    return stuck;
}
