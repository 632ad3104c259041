/* SPDX-License-Identifier: Apache-2.0 */
#include "callback.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "slot.h"
#include "thread.h"
#include "timing.h"
#include "transport.h"

void callback_announce(struct mlacat_client *client)
{
    if (client->dispatch == MLACAT_DISPATCH_THREAD) {
        if (client->thread_idle) {
            pthread_cond_signal(&client->thread_waiter.cond);
        } else {
            transport_wake(&client->thread_waiter);
        }
        return;
    }
    if (!client->event_set && !STAILQ_EMPTY(&client->due)) {
        const uint64_t one = 1;
        client->event_set = write(client->event_fd, &one, sizeof(one)) == (ssize_t)sizeof(one);
    }
}

void callback_run(struct mlacat_client *client, mlacat_done_cb done, void *user, uint64_t call_id,
                  const struct mlacat_result *result)
{
    pthread_mutex_lock(&client->callback_lock);
    done(user, call_id, result);
    pthread_mutex_unlock(&client->callback_lock);
}

void callback_run_due(struct mlacat_client *client)
{
    struct slot *slot;
    while ((slot = STAILQ_FIRST(&client->due)) != NULL) {
        STAILQ_REMOVE_HEAD(&client->due, link);
        struct mlacat_stream *stream = slot->stream;
        mlacat_done_cb done = slot->done;
        void *user = slot->user;
        uint64_t id = slot_call_id(slot);
        struct mlacat_result result = {.size = sizeof(result)};
        slot_take_result(slot, &result);
        pthread_mutex_unlock(&client->lock);
        if (client->dispatch == MLACAT_DISPATCH_THREAD) {
            callback_run(client, done, user, id, &result);
        } else {
            done(user, id, &result);
        }
        pthread_mutex_lock(&client->lock);
        stream->due--;
        if (stream->closing && stream->due == 0) {
            pthread_cond_broadcast(&client->changed);
        }
    }
    if (client->event_set) {
        uint64_t count;
        client->event_set = read(client->event_fd, &count, sizeof(count)) != (ssize_t)sizeof(count);
    }
}

/* ---------------------------------------------------------------------------------------------------- thread */

static void *run_thread(void *user)
{
    struct mlacat_client *client = user;
    struct waiter *self = &client->thread_waiter;
    pthread_mutex_lock(&client->lock);
    for (;;) {
        if (!STAILQ_EMPTY(&client->due)) {
            transport_leave(client);
            callback_run_due(client);
        } else if (client->flying_callbacks > 0) {
            transport_step(client, self, TIMING_NEVER);
        } else if (client->stopping && client->fd < 0) {
            break;
        } else {
            transport_leave(client);
            timing_cond_init(&self->cond);
            client->thread_idle = true;
            pthread_cond_wait(&self->cond, &client->lock);
            client->thread_idle = false;
            pthread_cond_destroy(&self->cond);
        }
    }
    pthread_mutex_unlock(&client->lock);
    return NULL;
}

enum mlacat_status callback_prepare(struct mlacat_client *client, struct error *err)
{
    if (client->thread_started || client->dispatch != MLACAT_DISPATCH_THREAD) {
        return MLACAT_OK;
    }
    client->thread_waiter = (struct waiter){.runs_callbacks = true};
    int error = thread_start(&client->thread, run_thread, client);
    if (error != 0) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                         "cannot start the thread for callbacks: %s; or connect with MLACAT_DISPATCH_CALLER",
                         strerror(error));
    }
    client->thread_started = true;
    return MLACAT_OK;
}

void callback_stop(struct mlacat_client *client)
{
    if (client->thread_started) {
        callback_announce(client);
        pthread_mutex_unlock(&client->lock);
        pthread_join(client->thread, NULL);
        pthread_mutex_lock(&client->lock);
    }
    callback_run_due(client);
}

/* ---------------------------------------------------------------------------------------------------- by the caller */

int mlacat_client_fd(struct mlacat_client *client)
{
    return client_check(client) == MLACAT_OK ? client->poll_fd : -1;
}

enum mlacat_status mlacat_dispatch(struct mlacat_client *client, int64_t timeout_us)
{
    enum mlacat_status status = client_check(client);
    if (status != MLACAT_OK) {
        return status;
    }
    if (client->dispatch != MLACAT_DISPATCH_CALLER) {
        return error_fail(
            MLACAT_FAILED_PRECONDITION,
            "callbacks of this client run on a thread of the library; connect with MLACAT_DISPATCH_CALLER");
    }
    int64_t deadline = timing_deadline(timeout_us);
    struct waiter waiter = {.each_round = true, .runs_callbacks = true};
    struct error err = {0};
    pthread_mutex_lock(&client->lock);
    if (STAILQ_EMPTY(&client->due)) {
        if (client->fd < 0) {
            error_set(&err, MLACAT_UNAVAILABLE,
                      "there is no connection to %s; the next request makes one. It ended: %s", client->socket,
                      client->last_words.message);
        }
        transport_step(client, &waiter, deadline);
        transport_leave(client);
    }
    callback_run_due(client);
    pthread_mutex_unlock(&client->lock);
    /* Last: the callbacks may have raised errors of their own. */
    return err.code == MLACAT_OK ? MLACAT_OK : error_raise(&err);
}
