/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting on a ring: looks at the client's own mapping, first often, then yielding, and sleeps when nothing comes for
 * `spin_us`. The daemon's end is seen by looking at the connection from time to time.
 */
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"
#include "slot.h"
#include "timing.h"
#include "transport.h"

#define LOOKS_PER_CLOCK 8
#define TAKEN_STEP_NS (TIMING_MS / 10)

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static bool has_news(const struct mlacat_ring_daemon *daemon, uint32_t seen, uint64_t sequence)
{
    return (sequence != UINT64_MAX && mlacat_ring_fence(daemon) >= sequence) || mlacat_ring_completed(daemon) != seen;
}

/* Lets others run, and returns when. */
static int64_t yield(struct mlacat_yield *learnt)
{
    int64_t begin = timing_now();
    sched_yield();
    int64_t now = timing_now();
    mlacat_yield_pace(learnt, (uint64_t)(now - begin));
    mlacat_yield_note(learnt, (uint64_t)now, (uint64_t)(now - begin));
    return now;
}

/* True: there is news. False: it is `until`. */
static bool spin(const struct mlacat_ring_daemon *daemon, uint32_t seen, uint64_t sequence, int64_t until,
                 struct mlacat_yield *learnt)
{
    int64_t now = timing_now();
    int64_t alone = now + MLACAT_YIELD_ALONE_NS;
    learnt->waits++;
    if (mlacat_yield_crowded(learnt, (uint64_t)now)) { /* it looks for a moment only */
        until = least(until, alone);
    }
    while (now < until) {
        for (int i = 0; i < LOOKS_PER_CLOCK; i++) {
            if (has_news(daemon, seen, sequence)) {
                return true;
            }
            mlacat_yield_relax();
        }
        now = timing_now();
        if (now >= alone && now < until) {
            now = yield(learnt);
            alone = now + (int64_t)learnt->pace_ns;
            until = mlacat_yield_crowded(learnt, (uint64_t)now) ? now : until;
        }
    }
    return has_news(daemon, seen, sequence);
}

/* Sleeps on complete_tail until it is not `head` any more. With the lock, which it lets go of. */
static void park(struct ring *ring, const struct ring_pages *pages, int64_t until)
{
    struct mlacat_ring_client *client = ring->client;
    const uint32_t *word = &ring->daemon->complete_tail;
    uint32_t seen = ring->head;
    if (ring->parked++ == 0) {
        mlacat_ring_wait(client, 1);
    }
    pthread_mutex_unlock(&ring->lock);
    int64_t left = until - timing_now();
    struct timespec time = timing_spec(left > 0 ? left : 0);
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &time, NULL, 0);
    pthread_mutex_lock(&ring->lock);
    /* On other pages others have counted anew. */
    if (ring->pages == pages && --ring->parked == 0) {
        mlacat_ring_wait(client, 0);
    }
}

/* With the client's lock, and no ring's. */
static void look_at_connection(struct mlacat_client *client)
{
    struct pollfd item = {.fd = client->fd, .events = POLLRDHUP};
    if (client->fd >= 0 && poll(&item, 1, 0) > 0) {
        transport_await_end(client);
    }
}

void ring_check(struct mlacat_stream *stream, int64_t now)
{
    struct mlacat_client *client = stream->client;
    stream->ring->checked_ns = now;
    stream->ring->alive = false;
    pthread_mutex_unlock(&stream->ring->lock);
    pthread_mutex_lock(&client->lock);
    look_at_connection(client);
    pthread_mutex_unlock(&client->lock);
    pthread_mutex_lock(&stream->ring->lock);
}

bool ring_pause(struct mlacat_stream *stream, struct ring_look *look, int64_t deadline)
{
    struct ring *ring = stream->ring;
    int64_t now = timing_now();
    if (now - ring->checked_ns >= RING_CHECK_NS) {
        ring_check(stream, now);
        return true;
    }
    if (deadline <= now) {
        return false;
    }
    if (ring->pages == NULL) {
        return true;
    }
    if (look->begin_ns == 0) {
        look->begin_ns = now;
    }
    struct ring_pages *pages = ring_pages_get(ring->pages);
    const struct mlacat_ring_daemon *daemon = ring->daemon;
    uint32_t seen = ring->head;
    int64_t until = least(deadline, now + RING_CHECK_NS);
    struct mlacat_yield learnt = ring->yield;
    pthread_mutex_unlock(&ring->lock);
    bool news = spin(daemon, seen, look->sequence, least(until, look->begin_ns + stream->client->spin_ns), &learnt);
    pthread_mutex_lock(&ring->lock);
    ring->yield = learnt;
    if (news) {
        look->begin_ns = 0;
        ring->checked_ns = now; /* it was not there yet at that time */
    } else if (ring->pages == pages && ring->head == seen) {
        park(ring, pages, until);
    }
    ring_pages_put(pages);
    return true;
}

bool ring_await(struct mlacat_stream *stream, struct slot *slot, int64_t timeout_us, bool entry)
{
    struct ring *ring = stream->ring;
    int64_t deadline = timing_deadline(timeout_us);
    struct waiter waiter = {0};
    struct ring_look look = {.sequence = entry ? UINT64_MAX : slot->sequence};
    slot->waiter = &waiter;
    while (slot->state == SLOT_FLYING) {
        /* The fence first: the worker may be writing the completion just now. */
        if (look.sequence != UINT64_MAX && mlacat_ring_fence(ring->daemon) >= look.sequence) {
            if (ring_has_passed(ring, slot)) {
                slot_end_ok(slot);
                break;
            }
            look.sequence = UINT64_MAX; /* some call failed: the completions tell which */
        }
        ring_collect(stream);
        if (slot->state == SLOT_FLYING && !ring_pause(stream, &look, deadline)) {
            break;
        }
    }
    slot->waiter = NULL;
    return slot->state == SLOT_ENDED;
}

/* Whether the daemon has taken the entries up to `tail` of these pages. A ring that counts below it is another one. */
static bool has_taken(struct ring *ring, const struct ring_pages *pages, uint32_t tail)
{
    pthread_mutex_lock(&ring->lock);
    bool taken = ring->pages != pages || (int32_t)(ring->published - tail) < 0 ||
                 (int32_t)(mlacat_ring_taken(ring->daemon) - tail) >= 0;
    pthread_mutex_unlock(&ring->lock);
    return taken;
}

static void await_taken(struct mlacat_client *client, uint32_t index)
{
    const struct mlacat_stream *stream = client->streams[index];
    pthread_mutex_lock(&stream->ring->lock);
    struct ring_pages *pages = stream->ring->pages == NULL ? NULL : ring_pages_get(stream->ring->pages);
    uint32_t tail = stream->ring->published;
    pthread_mutex_unlock(&stream->ring->lock);
    int64_t alone = timing_now() + client->spin_ns;
    int64_t checked = timing_now();
    while (pages != NULL && client->streams[index] == stream && !has_taken(stream->ring, pages, tail)) {
        const struct timespec step = timing_spec(TAKEN_STEP_NS);
        int64_t now = timing_now();
        if (now - checked >= RING_CHECK_NS) {
            look_at_connection(client);
            checked = now;
        }
        pthread_mutex_unlock(&client->lock);
        if (now < alone) {
            sched_yield();
        } else {
            nanosleep(&step, NULL);
        }
        pthread_mutex_lock(&client->lock);
    }
    ring_pages_put(pages);
}

void ring_await_taken(struct mlacat_client *client)
{
    for (uint32_t i = 0; i < client->streams_nr; i++) {
        if (client->streams[i] != NULL && client->streams[i]->ring != NULL) {
            await_taken(client, i);
        }
    }
}

void ring_drain(struct mlacat_stream *stream)
{
    struct ring_look look = {.sequence = UINT64_MAX};
    pthread_mutex_lock(&stream->ring->lock);
    for (ring_collect(stream); stream->flying > 0; ring_collect(stream)) {
        ring_pause(stream, &look, TIMING_NEVER);
    }
    pthread_mutex_unlock(&stream->ring->lock);
}

enum mlacat_status ring_cancel(struct mlacat_stream *stream, uint64_t id, struct error *err)
{
    struct ring *ring = stream->ring;
    struct ring_look look = {.sequence = UINT64_MAX};
    while (ring->cancel.busy) {
        pthread_cond_wait(&ring->changed, &ring->lock);
    }
    ring_collect(stream);
    const struct slot *slot = slot_find(stream, id);
    if (slot == NULL || slot->state != SLOT_FLYING) {
        return error_set(err, MLACAT_NOT_FOUND, "call %#llx of this stream is not in flight", (unsigned long long)id);
    }
    if (ring_put_cancel(ring, id, err) != MLACAT_OK) {
        return err->code;
    }
    while (!ring->cancel.ended) {
        ring_pause(stream, &look, TIMING_NEVER);
        ring_collect(stream);
    }
    *err = ring->cancel.outcome;
    ring->cancel.busy = false;
    pthread_cond_broadcast(&ring->changed);
    return err->code;
}
