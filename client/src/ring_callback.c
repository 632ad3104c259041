/* SPDX-License-Identifier: Apache-2.0 */
/* Callbacks of a stream with a ring: a thread that waits on this ring alone, so that no other wakes it. */
#include <pthread.h>
#include <string.h>

#include "callback.h"
#include "ring.h"
#include "slot.h"
#include "thread.h"
#include "timing.h"

static void run_due(struct mlacat_stream *stream)
{
    struct ring *ring = stream->ring;
    struct slot *slot;
    while ((slot = STAILQ_FIRST(&ring->due)) != NULL) {
        STAILQ_REMOVE_HEAD(&ring->due, link);
        mlacat_done_cb done = slot->done;
        void *user = slot->user;
        uint64_t id = slot_call_id(slot);
        struct mlacat_result result = {.size = sizeof(result)};
        slot_take_result(slot, &result);
        pthread_mutex_unlock(&ring->lock);
        callback_run(stream->client, done, user, id, &result);
        pthread_mutex_lock(&ring->lock);
        stream->due--;
    }
}

static void *run_thread(void *user)
{
    struct mlacat_stream *stream = user;
    struct ring *ring = stream->ring;
    struct ring_look look = {.sequence = UINT64_MAX};
    pthread_mutex_lock(&ring->lock);
    for (;;) {
        ring_collect(stream);
        if (!STAILQ_EMPTY(&ring->due)) {
            run_due(stream);
        } else if (ring->flying_callbacks > 0) {
            ring_pause(stream, &look, TIMING_NEVER);
        } else if (ring->thread_stop) {
            break;
        } else {
            pthread_cond_wait(&ring->changed, &ring->lock);
            look.begin_ns = 0;
        }
    }
    pthread_mutex_unlock(&ring->lock);
    return NULL;
}

enum mlacat_status ring_callback_prepare(struct mlacat_stream *stream, struct error *err)
{
    struct ring *ring = stream->ring;
    if (!ring->thread_started) {
        int error = thread_start(&ring->thread, run_thread, stream);
        if (error != 0) {
            return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                             "cannot start the thread for callbacks of a stream: %s; end other threads",
                             strerror(error));
        }
        ring->thread_started = true;
    }
    return MLACAT_OK;
}

void ring_callback_stop(struct mlacat_stream *stream)
{
    struct ring *ring = stream->ring;
    pthread_mutex_lock(&ring->lock);
    bool started = ring->thread_started;
    ring->thread_stop = true;
    pthread_cond_broadcast(&ring->changed);
    pthread_mutex_unlock(&ring->lock);
    if (started) {
        pthread_join(ring->thread, NULL);
        ring->thread_started = false;
    }
}
