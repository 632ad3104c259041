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

#include "event.h"
#include "handshake.h"
#include "memory_watch.h"
#include "request.h"
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
        if (client->streams[i] != NULL) {
            slot_end_all(client->streams[i], client->last_words.message);
        }
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

static bool has_been_freed(const struct mlacat_buffer *buffer)
{
    struct cuda_asking asking = {.cuda = NULL};
    bool freed = buffer->freed || memory_watch_ask(&asking, buffer, NULL) == CUDA_MEMORY_FREED;
    cuda_asking_end(&asking);
    return freed;
}

static bool restore_buffer(int fd, struct mlacat_buffer *buffer, uint64_t id, int64_t deadline, struct error *err)
{
    struct message_register request;
    message *reply;
    struct error refused;
    buffer->ref = (struct wire_ref){0};
    if (has_been_freed(buffer)) {
        memory_watch_break(buffer);
        return true;
    }
    message_register(&request, buffer);
    request.envelope.request_id = id;
    enum handshake_answer answer = handshake_exchange(
        fd, &request.envelope, &buffer->fds, MLACAT__V1__ENVELOPE__BODY_BUFFER_REGISTERED, deadline, &reply, err);
    if (answer == HANDSHAKE_DONE) {
        buffer->ref = message_buffer_ref(reply->buffer_registered->buffer);
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

static bool restore_event(int fd, struct mlacat_event *event, const struct server *server, uint64_t id,
                          int64_t deadline, struct error *err)
{
    struct message_register_event request;
    message *reply;
    struct error refused;
    event->ref = (struct wire_ref){0};
    enum handshake_answer answer = HANDSHAKE_REFUSED;
    if (event_check_server(server, err) == MLACAT_OK) {
        message_register_event(&request, event);
        request.envelope.request_id = id;
        answer = handshake_exchange(fd, &request.envelope, NULL, MLACAT__V1__ENVELOPE__BODY_EVENT_REGISTERED, deadline,
                                    &reply, err);
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

static bool restore_stream(int fd, struct mlacat_stream *stream, uint64_t id, int64_t deadline, struct error *err)
{
    struct message_open request;
    message *reply;
    message_open(&request, stream);
    request.envelope.request_id = id;
    enum handshake_answer answer = handshake_exchange(fd, &request.envelope, NULL,
                                                      MLACAT__V1__ENVELOPE__BODY_STREAM_OPENED, deadline, &reply, err);
    if (answer == HANDSHAKE_DONE) {
        stream->ref = message_stream_ref(reply->stream_opened->stream);
        stream->limit = reply->stream_opened->calls < stream->slots_nr ? reply->stream_opened->calls : stream->slots_nr;
        message_free(reply);
    }
    return note_answer(answer, err, &stream->broken);
}

static bool restore(struct mlacat_client *client, int fd, const struct server *server, int64_t deadline,
                    struct error *err)
{
    uint64_t id = HANDSHAKE_HELLO_ID;
    struct mlacat_buffer *buffer;
    TAILQ_FOREACH(buffer, &client->buffers, link)
    {
        if (!restore_buffer(fd, buffer, ++id, deadline, err)) {
            return false;
        }
    }
    struct mlacat_event *event;
    TAILQ_FOREACH(event, &client->events, link)
    {
        if (!restore_event(fd, event, server, ++id, deadline, err)) {
            return false;
        }
    }
    for (uint32_t i = 0; i < client->streams_nr; i++) {
        struct mlacat_stream *stream = client->streams[i];
        if (stream != NULL && !stream->closing && !restore_stream(fd, stream, ++id, deadline, err)) {
            return false;
        }
    }
    return true;
}

/* ---------------------------------------------------------------------------------------------------- connecting */

/* Whether a daemon that is starting, ending or full may give another answer soon. */
static bool may_change(enum mlacat_status status)
{
    return status == MLACAT_UNAVAILABLE || status == MLACAT_RESOURCE_EXHAUSTED;
}

/* Tries until `deadline`. Without the lock; `connecting` keeps others from the lists. */
static int make_connection(struct mlacat_client *client, int64_t deadline, struct server *server, struct error *err)
{
    int64_t backoff = BACKOFF_FIRST_NS;
    struct error before = {0};
    for (;;) {
        int fd = -1;
        if (handshake_connect(client->socket, client->name, deadline, &fd, server, err) == MLACAT_OK) {
            if (restore(client, fd, server, deadline, err)) {
                return fd;
            }
            close(fd);
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
    struct error why;
    client->connecting = true;
    pthread_mutex_unlock(&client->lock);
    int fd = make_connection(client, deadline, &server, &why);
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
    client->fd = fd;
    client->server = server;
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
