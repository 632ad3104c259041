/* SPDX-License-Identifier: Apache-2.0 */
#include "memory_watch.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "cuda_driver.h"
#include "reconnect.h"
#include "request.h"
#include "thread.h"
#include "timing.h"

#define PERIOD_NS (50 * TIMING_MS)
#define RECLAIM_STEP_NS (2 * TIMING_MS)

/* ---------------------------------------------------------------------------------------------------- one buffer */

enum cuda_memory_state memory_watch_ask(struct cuda_asking *asking, const struct mlacat_buffer *buffer, int *result)
{
    const struct cuda_export *memory = buffer->device_memory;
    const struct cuda_driver *cuda;
    if (memory == NULL || cuda_driver(&cuda) != MLACAT_OK) {
        return CUDA_MEMORY_SAME; /* without a driver there would be no such buffer */
    }
    if (asking->cuda == NULL) {
        cuda_asking_begin(asking, cuda);
    }
    return cuda_asking_memory(asking, memory->pieces, memory->pieces_nr, result);
}

void memory_watch_break(struct mlacat_buffer *buffer)
{
    buffer->freed = true;
    pthread_cond_signal(&buffer->client->watch_due);
}

enum mlacat_status memory_watch_refuse(const struct mlacat_buffer *buffer, int operand, const char *name,
                                       struct error *err)
{
    if (!buffer->freed) {
        return MLACAT_OK;
    }
    error_set(err, MLACAT_FAILED_PRECONDITION,
              "operand %d (%s): the memory at 0x%llx was freed since it was registered: release this buffer and "
              "register the new memory",
              operand, name, (unsigned long long)buffer->device_memory->pieces[0].address);
    err->scope = MLACAT_SCOPE_BUFFER;
    return err->code;
}

/* ---------------------------------------------------------------------------------------------------- all buffers */

/* After the program called exit() the driver shuts down; nobody asks it then. The driver was loaded before, so its own
 * handler runs after this one. */
static _Atomic bool exiting;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;

static void note_exit(void)
{
    exiting = true;
}

static void watch_exit(void)
{
    atexit(note_exit);
}

/* What is asked between two moments with the lock. */
#define SLICE_PIECES (2 * WIRE_PACKET_FDS)
struct slice {
    struct cuda_piece pieces[SLICE_PIECES];
    uint64_t serials[SLICE_PIECES]; /* of their buffers */
    uint32_t nr;
    uint64_t last; /* serial of the last buffer taken */
};

static bool is_watched(const struct mlacat_buffer *buffer)
{
    return buffer->device_memory != NULL && !buffer->freed;
}

static bool has_watched(const struct mlacat_client *client)
{
    const struct mlacat_buffer *buffer;
    TAILQ_FOREACH(buffer, &client->buffers, link)
    {
        if (is_watched(buffer)) {
            return true;
        }
    }
    return false;
}

/* Takes the next buffers. False: there are no more. */
static bool fill_slice(const struct mlacat_client *client, struct slice *slice)
{
    const struct mlacat_buffer *buffer;
    slice->nr = 0;
    TAILQ_FOREACH(buffer, &client->buffers, link)
    {
        if (buffer->serial <= slice->last || !is_watched(buffer)) {
            continue;
        }
        const struct cuda_export *memory = buffer->device_memory;
        if (memory->pieces_nr > SLICE_PIECES - slice->nr) {
            break;
        }
        for (uint32_t i = 0; i < memory->pieces_nr; i++) {
            slice->serials[slice->nr] = buffer->serial;
            slice->pieces[slice->nr++] = memory->pieces[i];
        }
        slice->last = buffer->serial;
    }
    return slice->nr > 0;
}

/* Keeps of the slice what was freed. Without the lock. */
static void keep_freed(struct slice *slice)
{
    const struct cuda_driver *cuda;
    struct cuda_asking asking;
    uint32_t freed_nr = 0;
    if (cuda_driver(&cuda) == MLACAT_OK && !exiting) {
        cuda_asking_begin(&asking, cuda);
        for (uint32_t i = 0; i < slice->nr; i++) {
            if (cuda_asking_memory(&asking, &slice->pieces[i], 1, NULL) == CUDA_MEMORY_FREED) {
                slice->serials[freed_nr++] = slice->serials[i];
            }
        }
        cuda_asking_end(&asking);
    }
    slice->nr = freed_nr;
}

static void break_freed(struct mlacat_client *client, const struct slice *slice)
{
    for (uint32_t i = 0; i < slice->nr; i++) {
        struct mlacat_buffer *buffer;
        TAILQ_FOREACH(buffer, &client->buffers, link)
        {
            if (buffer->serial == slice->serials[i]) {
                memory_watch_break(buffer);
            }
        }
    }
}

/* While a connection is being made the buffers are for the thread that makes it, which asks about them too. */
static void look_at_all(struct mlacat_client *client)
{
    struct slice slice = {.last = 0};
    reconnect_settle(client);
    while (!client->stopping && fill_slice(client, &slice)) {
        pthread_mutex_unlock(&client->lock);
        keep_freed(&slice);
        pthread_mutex_lock(&client->lock);
        reconnect_settle(client);
        break_freed(client, &slice);
    }
}

/* NULL: there is none, or nobody to tell: the next connection does not get it. */
static struct mlacat_buffer *find_to_unregister(struct mlacat_client *client)
{
    struct mlacat_buffer *buffer;
    if (client->fd < 0) {
        return NULL;
    }
    TAILQ_FOREACH(buffer, &client->buffers, link)
    {
        if (buffer->freed && buffer->at_daemon) {
            return buffer;
        }
    }
    return NULL;
}

static void unregister_freed(struct mlacat_client *client)
{
    struct mlacat_buffer *buffer;
    while (!client->stopping && (buffer = find_to_unregister(client)) != NULL) {
        buffer_unregister(buffer);
    }
}

static bool is_round_wanted(const struct mlacat_client *client)
{
    return client->watch_begun < client->watch_wanted;
}

static void wait_for_work(struct mlacat_client *client)
{
    if (has_watched(client)) {
        timing_cond_wait(&client->watch_due, &client->lock, timing_now() + PERIOD_NS);
    } else {
        client->watch_idle = true;
        pthread_cond_wait(&client->watch_due, &client->lock);
        client->watch_idle = false;
    }
}

static void *run(void *user)
{
    struct mlacat_client *client = user;
    pthread_mutex_lock(&client->lock);
    while (!client->stopping) {
        uint64_t round = ++client->watch_begun;
        look_at_all(client);
        unregister_freed(client);
        client->watch_ended = round;
        pthread_cond_broadcast(&client->changed); /* mlacat_reclaim */
        /* The lock was free meanwhile: what came then has signalled in vain. */
        if (!client->stopping && !client->connecting && find_to_unregister(client) == NULL &&
            !is_round_wanted(client)) {
            wait_for_work(client);
        }
    }
    pthread_mutex_unlock(&client->lock);
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------- the thread */

enum mlacat_status memory_watch_start(struct mlacat_client *client, struct error *err)
{
    if (client->watch_started) {
        return MLACAT_OK;
    }
    pthread_once(&exit_once, watch_exit);
    int error = thread_start(&client->watch, run, client);
    if (error != 0) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                         "cannot start the thread that watches registered GPU memory: %s; end threads or raise the "
                         "limit of processes (ulimit -u)",
                         strerror(error));
    }
    client->watch_started = true;
    return MLACAT_OK;
}

void memory_watch_added(struct mlacat_client *client)
{
    if (client->watch_idle) {
        pthread_cond_signal(&client->watch_due);
    }
}

void memory_watch_stop(struct mlacat_client *client)
{
    if (client->watch_started) {
        pthread_cond_signal(&client->watch_due);
        pthread_mutex_unlock(&client->lock);
        pthread_join(client->watch, NULL);
        pthread_mutex_lock(&client->lock);
    }
}

/* ---------------------------------------------------------------------------------------------------- at once */

/* Asks for a round that begins after now, and waits for its end: false when the time is over first. */
static bool await_round(struct mlacat_client *client, int64_t deadline)
{
    uint64_t wanted = client->watch_begun + 1;
    client->watch_wanted = wanted;
    pthread_cond_signal(&client->watch_due);
    while (client->watch_ended < wanted) {
        if (timing_cond_wait(&client->changed, &client->lock, deadline) == ETIMEDOUT) {
            return client->watch_ended >= wanted;
        }
    }
    return true;
}

/* How far the daemon is. */
struct reclaim {
    bool marked;
    uint64_t until[CLIENT_DEVICES_MAX]; /* once marked: what memory_closed of each device has to reach */
};

/* Whether all is closed that this client has given up. Older daemons do not tell: it is so in a moment. */
static bool is_closed(struct reclaim *reclaim, const Mlacat__V1__Stats *stats)
{
    bool closed = true;
    bool leaving = false;
    for (size_t i = 0; i < stats->n_devices && i < CLIENT_DEVICES_MAX; i++) {
        const Mlacat__V1__DeviceStats *device = stats->devices[i];
        leaving |= device->memory_leaving > 0;
        if (!reclaim->marked) {
            reclaim->until[i] = device->memory_released;
        }
        closed &= device->memory_closed >= reclaim->until[i];
    }
    reclaim->marked |= !leaving;
    return reclaim->marked && closed;
}

/* Asks the daemon until it has. */
static enum mlacat_status await_closed(struct mlacat_client *client, int64_t deadline, struct error *err)
{
    struct reclaim reclaim = {.marked = false};
    uint64_t epoch = client->epoch; /* a daemon that has gone has let go of everything */
    while (client->epoch == epoch) {
        message *reply;
        message request = MLACAT__V1__ENVELOPE__INIT;
        Mlacat__V1__StatsRequest body = MLACAT__V1__STATS_REQUEST__INIT;
        request.body_case = MLACAT__V1__ENVELOPE__BODY_STATS_REQUEST;
        request.stats_request = &body;
        if (request_make_until(client, &request, REQUEST_THIS_CONNECTION, MLACAT__V1__ENVELOPE__BODY_STATS, deadline,
                               &reply, err) != MLACAT_OK) {
            return err->code;
        }
        bool closed = is_closed(&reclaim, reply->stats);
        message_free(reply);
        if (closed) {
            return MLACAT_OK;
        }
        if (timing_now() >= deadline) {
            return error_set(err, MLACAT_DEADLINE_EXCEEDED, "calls use it, or other memory is closed first");
        }
        int64_t step = timing_now() + RECLAIM_STEP_NS;
        timing_cond_wait(&client->changed, &client->lock, step < deadline ? step : deadline);
    }
    return MLACAT_OK;
}

enum mlacat_status mlacat_reclaim(struct mlacat_client *client, int64_t timeout_us)
{
    enum mlacat_status status = client_check(client);
    int64_t deadline = timing_deadline(timeout_us);
    struct error err = {.code = MLACAT_OK};
    if (status != MLACAT_OK) {
        return status;
    }
    pthread_mutex_lock(&client->lock);
    if (client->watch_started && !await_round(client, deadline)) {
        error_set(&err, MLACAT_DEADLINE_EXCEEDED, "it has not answered in time; is it stopped or stuck?");
    } else if (client->watch_started) {
        await_closed(client, deadline, &err);
    }
    pthread_mutex_unlock(&client->lock);
    if (err.code == MLACAT_OK || err.code == MLACAT_UNAVAILABLE) {
        return MLACAT_OK; /* without a connection the daemon lets go of everything */
    }
    if (err.code != MLACAT_DEADLINE_EXCEEDED) {
        return error_raise(&err);
    }
    return error_fail(MLACAT_DEADLINE_EXCEEDED,
                      "%s has not closed all GPU memory that was freed within %lld us (%.120s); it still is asked to: "
                      "wait longer",
                      client->socket, (long long)timeout_us, err.message);
}
