/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What happens when the daemon goes away and comes back. The end of a connection ends all that is in flight. The next
 * request makes a new one: Hello, all buffers and events registered again (what names them is kept), all streams opened
 * again.
 * The new socket is seen by other threads only when that is done.
 *
 *     UP --reconnect_end--> DOWN --reconnect_ready--> connecting --> UP, or DOWN again when the time is over
 */
#include "reconnect.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "callback.h"
#include "event.h"
#include "handshake.h"
#include "memory_watch.h"
#include "request.h"
#include "ring.h"
#include "slot.h"
#include "timing.h"
#include "transport.h"

#define BACKOFF_FIRST_NS TIMING_MS
#define BACKOFF_LAST_NS (50 * TIMING_MS)

void reconnect_end(struct mlacat_client *client, const char *reason)
{
    if (client->last_words.code == MLACAT_OK) {
        error_set(&client->last_words, MLACAT_UNAVAILABLE, "%s", reason);
    }
    if (client->poll_fd >= 0) {
        /* A forked child may hold the socket open too, so closing alone might leave it in the set. */
        epoll_ctl(client->poll_fd, EPOLL_CTL_DEL, client->fd, NULL);
    }
    int fd = client->fd;
    client->fd = -1;
    transport_close(client, fd);
    client->epoch++;
    client->draining = false;
    request_end_all(client);
    for (uint32_t i = 0; i < client->streams_nr; i++) {
        if (client->streams[i] == NULL) {
            continue;
        }
        if (client->streams[i]->ring != NULL) {
            ring_end(client->streams[i], client->last_words.message);
        } else {
            slot_end_all(client->streams[i], client->last_words.message);
        }
    }
    ring_pages_put(client->pages);
    client->pages = NULL;
    if (!STAILQ_EMPTY(&client->due)) {
        callback_announce(client);
    }
    transport_wake_all(client);
}

void reconnect_settle(struct mlacat_client *client)
{
    while (client->connecting) {
        pthread_cond_wait(&client->changed, &client->lock);
    }
}

/* ---------------------------------------------------------------------------------------------------- restoring */

/* What became of one thing. False: the connection is of no use. That the daemon is not ready for it now, draining or
 * waiting for the device, counts as that: a later connection may do. Any other refusal is kept in `broken`. */
static bool note_answer(enum handshake_answer answer, const struct error *err, struct error *broken)
{
    if (answer == HANDSHAKE_LOST || (answer == HANDSHAKE_REFUSED && err->code == MLACAT_UNAVAILABLE)) {
        return false;
    }
    *broken = answer == HANDSHAKE_REFUSED ? *err : (struct error){0};
    return true;
}

/* A new connection that gets what the last one had. */
struct restoration {
    struct mlacat_client *client;
    const struct server *server;
    int fd;
    uint64_t last_id;
    struct ring_pages *pages; /* NULL: none is wanted, or the daemon gives none */
    struct error no_rings;    /* why */
};

/* The daemon has come back; it may take its time over thousands of buffers, but not over one. */
static enum handshake_answer exchange(struct restoration *to, message *request, const struct wire_fds *fds, int body,
                                      message **reply, struct wire_fds *passed, struct error *err)
{
    int64_t deadline = timing_now() + to->client->reconnect_timeout_ns;
    request->request_id = ++to->last_id;
    return handshake_exchange(to->fd, request, fds, body, deadline, reply, passed, err);
}

static bool is_ring_of_use(const struct mlacat_stream *stream)
{
    return stream != NULL && stream->ring != NULL && !stream->closing;
}

static bool has_been_freed(const struct mlacat_buffer *buffer)
{
    struct cuda_asking asking = {.cuda = NULL};
    bool freed = buffer->freed || memory_watch_ask(&asking, buffer, NULL) == CUDA_MEMORY_FREED;
    cuda_asking_end(&asking);
    return freed;
}

static bool restore_buffer(struct restoration *to, struct mlacat_buffer *buffer, struct error *err)
{
    struct message_register request;
    message *reply;
    struct error refused;
    buffer->at_daemon = false;
    buffer->ref = (struct wire_ref){0}; /* the old one may be another buffer's at this daemon */
    if (has_been_freed(buffer)) {
        memory_watch_break(buffer);
        return true;
    }
    message_register(&request, buffer);
    enum handshake_answer answer =
        exchange(to, &request.envelope, &buffer->fds, MLACAT__V1__ENVELOPE__BODY_BUFFER_REGISTERED, &reply, NULL, err);
    if (answer == HANDSHAKE_DONE) {
        buffer->ref = message_buffer_ref(reply->buffer_registered->buffer);
        buffer->at_daemon = true;
        message_free(reply);
    }
    if (!note_answer(answer, err, &refused)) {
        return false;
    }
    buffer->broken = (struct error){0};
    if (refused.code != MLACAT_OK) {
        error_set(&buffer->broken, MLACAT_FAILED_PRECONDITION,
                  "the buffer could not be registered again after a restart (%.100s); release it", refused.message);
    }
    return true;
}

static bool restore_event(struct restoration *to, struct mlacat_event *event, struct error *err)
{
    struct message_register_event request;
    message *reply;
    struct error refused;
    event->ref = (struct wire_ref){0};
    enum handshake_answer answer = HANDSHAKE_REFUSED;
    if (event_check_server(to->server, err) == MLACAT_OK) {
        message_register_event(&request, event);
        answer = exchange(to, &request.envelope, NULL, MLACAT__V1__ENVELOPE__BODY_EVENT_REGISTERED, &reply, NULL, err);
    }
    if (answer == HANDSHAKE_DONE) {
        event->ref = message_event_ref(reply->event_registered->event);
        message_free(reply);
    }
    if (!note_answer(answer, err, &refused)) {
        return false;
    }
    event->broken = (struct error){0};
    if (refused.code != MLACAT_OK) {
        error_set(&event->broken, MLACAT_FAILED_PRECONDITION,
                  "the event could not be registered again after a restart (%.100s); release it", refused.message);
    }
    return true;
}

static bool restore_stream(struct restoration *to, struct mlacat_stream *stream, struct error *err)
{
    struct message_open request;
    struct wire_fds passed = {0};
    message *reply;
    if (stream->ring != NULL && to->pages == NULL) {
        stream->broken = to->no_rings;
        return true;
    }
    message_open(&request, stream);
    enum handshake_answer answer =
        exchange(to, &request.envelope, NULL, MLACAT__V1__ENVELOPE__BODY_STREAM_OPENED, &reply, &passed, err);
    if (answer == HANDSHAKE_DONE) {
        uint32_t limit = reply->stream_opened->calls;
        stream->ref = message_stream_ref(reply->stream_opened->stream);
        if (stream->ring != NULL) {
            limit = ring_limit(to->pages, limit);
            if (ring_take_offer(stream, reply->stream_opened, to->pages, &passed, err) != MLACAT_OK) {
                answer = HANDSHAKE_REFUSED;
            }
        }
        stream->limit = limit < stream->slots_nr ? limit : stream->slots_nr;
        message_free(reply);
    }
    wire_close_fds(&passed);
    return note_answer(answer, err, &stream->broken);
}

/* The pages for the streams that have rings, if there are any; `no_rings`: why those get none. */
static bool restore_pages(struct restoration *to, struct error *err)
{
    struct wire_fds passed = {0};
    message request = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__OpenRings body = MLACAT__V1__OPEN_RINGS__INIT;
    message *reply;
    bool wanted = false;
    for (uint32_t i = 0; i < to->client->streams_nr; i++) {
        wanted = wanted || is_ring_of_use(to->client->streams[i]);
    }
    if (!wanted) {
        return true;
    }
    if ((to->server->features & MLACAT__V1__FEATURE__FEATURE_RING) == 0) {
        error_set(&to->no_rings, MLACAT_UNIMPLEMENTED, "the daemon (version %.40s) has no rings",
                  to->server->info.version);
        return true;
    }
    request.body_case = MLACAT__V1__ENVELOPE__BODY_OPEN_RINGS;
    request.open_rings = &body;
    enum handshake_answer answer =
        exchange(to, &request, NULL, MLACAT__V1__ENVELOPE__BODY_RINGS_OPENED, &reply, &passed, err);
    if (answer == HANDSHAKE_DONE) {
        if (ring_pages_map(reply->rings_opened, &passed, &to->pages, err) != MLACAT_OK) {
            answer = HANDSHAKE_REFUSED;
        }
        message_free(reply);
    }
    wire_close_fds(&passed);
    return note_answer(answer, err, &to->no_rings);
}

static bool restore(struct restoration *to, struct error *err)
{
    struct mlacat_client *client = to->client;
    struct mlacat_buffer *buffer;
    TAILQ_FOREACH(buffer, &client->buffers, link)
    {
        if (!restore_buffer(to, buffer, err)) {
            return false;
        }
    }
    struct mlacat_event *event;
    TAILQ_FOREACH(event, &client->events, link)
    {
        if (!restore_event(to, event, err)) {
            return false;
        }
    }
    if (!restore_pages(to, err)) {
        return false;
    }
    for (uint32_t i = 0; i < client->streams_nr; i++) {
        struct mlacat_stream *stream = client->streams[i];
        if (stream != NULL && !stream->closing && !restore_stream(to, stream, err)) {
            return false;
        }
    }
    return true;
}

/* The rings go up together with the connection, or not at all. */
static void end_restoration(struct restoration *to, bool good)
{
    struct mlacat_client *client = to->client;
    for (uint32_t i = 0; i < client->streams_nr; i++) {
        struct mlacat_stream *stream = client->streams[i];
        if (!is_ring_of_use(stream)) {
            continue;
        }
        if (good && stream->broken.code == MLACAT_OK) {
            ring_attach(stream, to->pages);
        } else {
            ring_withdraw(stream);
        }
    }
    if (good) {
        client->pages = to->pages;
    } else {
        ring_pages_put(to->pages);
        to->pages = NULL;
    }
}

/* ---------------------------------------------------------------------------------------------------- connecting */

/* Whether a daemon that is starting, ending or full may give another answer soon. */
static bool may_change(enum mlacat_status status)
{
    return status == MLACAT_UNAVAILABLE || status == MLACAT_RESOURCE_EXHAUSTED;
}

static void close_both(int fd, int pidfd)
{
    close(fd);
    if (pidfd >= 0) {
        close(pidfd);
    }
}

/* Tries until `deadline`. Without the lock; `connecting` keeps others from the lists. *to: the connection's. */
static int make_connection(struct mlacat_client *client, int64_t deadline, struct server *server,
                           struct restoration *to, struct error *err)
{
    int64_t backoff = BACKOFF_FIRST_NS;
    struct error before = {0};
    for (;;) {
        int fd = -1;
        if (handshake_connect(client->socket, client->name, deadline, &fd, server, err) == MLACAT_OK) {
            *to = (struct restoration){client, server, fd, HANDSHAKE_HELLO_ID, NULL, {0}};
            if (restore(to, err)) {
                return fd;
            }
            end_restoration(to, false);
            close_both(fd, server->pidfd);
        }
        if (err->code == MLACAT_DEADLINE_EXCEEDED && before.code != MLACAT_OK) {
            *err = before; /* the last attempt had too little time; the one before tells more */
        }
        before = *err;
        int64_t left = deadline - timing_now();
        if (!may_change(err->code) || left <= 0) {
            return -1;
        }
        struct timespec pause = timing_spec(backoff < left ? backoff : left);
        nanosleep(&pause, NULL);
        backoff = backoff * 2 < BACKOFF_LAST_NS ? backoff * 2 : BACKOFF_LAST_NS;
    }
}

/* What to do comes first, the least telling last: a long path may cut the text. */
static enum mlacat_status fail_unavailable(const struct mlacat_client *client, const char *why, struct error *err)
{
    bool named = strstr(why, client->socket) != NULL;
    return error_set(err, MLACAT_UNAVAILABLE, "%s%s%s; tried for %lld ms%s%s", named ? "" : client->socket,
                     named ? "" : ": ", why, (long long)(client->reconnect_timeout_ns / TIMING_MS),
                     client->last_words.code != MLACAT_OK ? "; the last connection ended: " : "",
                     client->last_words.message);
}

static enum mlacat_status reconnect(struct mlacat_client *client, int64_t deadline, struct error *err)
{
    struct server server;
    struct restoration restoration;
    struct error why;
    client->connecting = true;
    pthread_mutex_unlock(&client->lock);
    int fd = make_connection(client, deadline, &server, &restoration, &why);
    pthread_mutex_lock(&client->lock);
    client->connecting = false;
    pthread_cond_broadcast(&client->changed);
    if (fd < 0) {
        if (may_change(why.code) || why.code == MLACAT_DEADLINE_EXCEEDED) {
            return fail_unavailable(client, why.message, err);
        }
        *err = why;
        return err->code;
    }
    if (client->server.pidfd >= 0) {
        close(client->server.pidfd);
    }
    client->fd = fd;
    client->server = server;
    end_restoration(&restoration, true);
    client->reconnects++;
    client->last_words = (struct error){0};
    if (client->poll_fd >= 0) {
        struct epoll_event event = {.events = EPOLLIN};
        epoll_ctl(client->poll_fd, EPOLL_CTL_ADD, fd, &event);
    }
    return MLACAT_OK;
}

static enum mlacat_status wait_ready(struct mlacat_client *client, bool new_work, struct error *err)
{
    int64_t deadline = timing_now() + client->reconnect_timeout_ns;
    struct waiter waiter = {0};
    for (;;) {
        if (client->stopping) {
            return error_set(err, MLACAT_FAILED_PRECONDITION, "the client is being disconnected; connect a new one");
        }
        if (client->fd >= 0) {
            if (!client->draining || !new_work) {
                return MLACAT_OK;
            }
            /* Should it not go in time then its own refusal tells more than ours would. */
            if (!transport_step(client, &waiter, deadline) && client->fd >= 0) {
                client->draining = false;
            }
            transport_leave(client);
        } else if (!client->connecting) {
            enum mlacat_status status = reconnect(client, deadline, err);
            if (status != MLACAT_OK) {
                return status;
            }
        } else if (timing_cond_wait(&client->changed, &client->lock, deadline) == ETIMEDOUT) {
            return fail_unavailable(client, "another thread still tries to connect; try again", err);
        }
    }
}

enum mlacat_status reconnect_ready(struct mlacat_client *client, bool new_work, struct error *err)
{
    if (client->fd >= 0 && !(client->draining && new_work) && !client->stopping) {
        return MLACAT_OK;
    }
    return wait_ready(client, new_work, err);
}
