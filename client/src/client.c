/* SPDX-License-Identifier: Apache-2.0 */
#include "client.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "buffer.h"
#include "callback.h"
#include "event.h"
#include "handshake.h"
#include "memory_watch.h"
#include "reconnect.h"
#include "ring.h"
#include "sized.h"
#include "stream.h"
#include "stream_order.h"
#include "timing.h"
#include "transport.h"

#define TIMEOUT_DEFAULT_MS 2000
#define SPIN_DEFAULT_US 50
#define SOCKET_SYSTEM "/run/mlacat/mlacatd.sock"

/* ---------------------------------------------------------------------------------------------------- fork */

/* Counts the forks between the first process and this one: a client that was made at another count is another
 * process's. */
static unsigned process_generation;
static pthread_once_t process_once = PTHREAD_ONCE_INIT;

static void count_fork(void)
{
    process_generation++;
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, count_fork);
}

bool client_is_forked(const struct mlacat_client *client)
{
    return client->process != process_generation;
}

enum mlacat_status client_check(const struct mlacat_client *client)
{
    if (client == NULL) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "the handle is NULL");
    }
    if (client_is_forked(client)) {
        return error_fail(MLACAT_FAILED_PRECONDITION,
                          "this process was forked from the one that connected; connect again in the child");
    }
    return MLACAT_OK;
}

/* ---------------------------------------------------------------------------------------------------- connect */

static enum mlacat_status fail_path(const struct mlacat_client *client, const char *path, size_t length)
{
    return error_fail(MLACAT_INVALID_ARGUMENT,
                      "the path of a socket has at most %zu bytes, %.120s... would make %zu; name a shorter one "
                      "(MLACAT_SOCKET)",
                      sizeof(client->socket) - 1, path, length);
}

static enum mlacat_status choose_socket(struct mlacat_client *client, const char *wanted)
{
    char runtime[sizeof(client->socket)];
    const char *path = wanted;
    if (path == NULL || path[0] == '\0') {
        path = getenv("MLACAT_SOCKET");
    }
    if (path == NULL || path[0] == '\0') {
        const char *folder = getenv("XDG_RUNTIME_DIR");
        path = SOCKET_SYSTEM;
        if (folder != NULL && folder[0] == '/') {
            int length = snprintf(runtime, sizeof(runtime), "%s/mlacat/mlacatd.sock", folder);
            if (length < 0 || (size_t)length >= sizeof(runtime)) {
                return fail_path(client, folder, strlen(folder) + strlen("/mlacat/mlacatd.sock"));
            }
            if (access(runtime, F_OK) == 0) {
                path = runtime;
            }
        }
    }
    size_t length = strlen(path);
    if (length >= sizeof(client->socket)) {
        return fail_path(client, path, length);
    }
    memcpy(client->socket, path, length + 1);
    return MLACAT_OK;
}

static enum mlacat_status open_poll(struct mlacat_client *client)
{
    if (client->dispatch != MLACAT_DISPATCH_CALLER) {
        return MLACAT_OK;
    }
    client->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    client->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN};
    if (client->poll_fd < 0 || client->event_fd < 0 ||
        epoll_ctl(client->poll_fd, EPOLL_CTL_ADD, client->event_fd, &event) < 0 ||
        epoll_ctl(client->poll_fd, EPOLL_CTL_ADD, client->fd, &event) < 0) {
        return error_fail(MLACAT_RESOURCE_EXHAUSTED, "cannot make the descriptor of mlacat_client_fd: %s",
                          strerror(errno));
    }
    return MLACAT_OK;
}

static void close_if_open(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

static void free_client(struct mlacat_client *client)
{
    close_if_open(client->fd);
    close_if_open(client->server.pidfd);
    close_if_open(client->poll_fd);
    close_if_open(client->event_fd);
    pthread_cond_destroy(&client->changed);
    pthread_cond_destroy(&client->watch_due);
    pthread_mutex_destroy(&client->callback_lock);
    pthread_mutex_destroy(&client->lock);
    free(client->streams);
    free(client->incoming);
    free(client->outgoing);
    free(client);
}

static struct mlacat_client *new_client(void)
{
    struct mlacat_client *client = calloc(1, sizeof(*client));
    if (client == NULL) {
        return NULL;
    }
    client->fd = client->server.pidfd = client->poll_fd = client->event_fd = -1;
    client->process = process_generation;
    pthread_mutex_init(&client->lock, NULL);
    pthread_mutex_init(&client->callback_lock, NULL);
    timing_cond_init(&client->changed);
    timing_cond_init(&client->watch_due);
    TAILQ_INIT(&client->waiters);
    TAILQ_INIT(&client->watchers);
    TAILQ_INIT(&client->requests);
    TAILQ_INIT(&client->buffers);
    TAILQ_INIT(&client->events);
    STAILQ_INIT(&client->due);
    SLIST_INIT(&client->watches);
    client->incoming = malloc((size_t)CLIENT_BATCH_PACKETS * WIRE_PACKET_BYTES);
    client->outgoing = malloc(WIRE_PACKET_BYTES);
    if (client->incoming == NULL || client->outgoing == NULL) {
        free_client(client);
        return NULL;
    }
    return client;
}

static enum mlacat_status open_client(struct mlacat_client *client, const struct mlacat_connect_options *options)
{
    enum mlacat_status status = choose_socket(client, options->socket);
    if (status != MLACAT_OK) {
        return status;
    }
    if (options->dispatch != MLACAT_DISPATCH_THREAD && options->dispatch != MLACAT_DISPATCH_CALLER) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "dispatch is %d; MLACAT_DISPATCH_THREAD is 0, _CALLER is 1",
                          (int)options->dispatch);
    }
    client->dispatch = options->dispatch;
    client->spin_ns = (int64_t)(options->spin_us != 0 ? options->spin_us : SPIN_DEFAULT_US) * 1000;
    error_copy_text(client->name, sizeof(client->name),
                    options->name != NULL ? options->name : program_invocation_short_name);
    uint32_t reconnect_ms = options->reconnect_timeout_ms;
    uint32_t connect_ms = options->connect_timeout_ms;
    client->reconnect_timeout_ns = (reconnect_ms != 0 ? reconnect_ms : TIMEOUT_DEFAULT_MS) * TIMING_MS;
    int64_t deadline = timing_now() + (connect_ms != 0 ? connect_ms : TIMEOUT_DEFAULT_MS) * TIMING_MS;
    struct error err;
    if (handshake_connect(client->socket, client->name, deadline, &client->fd, &client->server, &err) != MLACAT_OK) {
        return error_raise(&err);
    }
    return open_poll(client);
}

enum mlacat_status mlacat_connect(const struct mlacat_connect_options *options, struct mlacat_client **client)
{
    struct mlacat_connect_options known = {0};
    if (client == NULL) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "client is NULL; give the address of a pointer");
    }
    *client = NULL;
    if (options != NULL) {
        struct error err;
        if (sized_read(&known, sizeof(known), options, SIZED_CONNECT_OPTIONS, "mlacat_connect_options", &err) !=
            MLACAT_OK) {
            return error_raise(&err);
        }
    }
    pthread_once(&process_once, watch_forks);
    struct mlacat_client *made = new_client();
    if (made == NULL) {
        return error_fail(MLACAT_RESOURCE_EXHAUSTED, "no memory for a client");
    }
    enum mlacat_status status = open_client(made, &known);
    if (status != MLACAT_OK) {
        free_client(made);
        return status;
    }
    *client = made;
    return MLACAT_OK;
}

/* Ends what runs for rings, after the connection. With the lock, which it lets go of. */
static void stop_rings(struct mlacat_client *client)
{
    for (uint32_t i = 0; i < client->streams_nr; i++) {
        struct mlacat_stream *stream = client->streams[i];
        if (stream != NULL && stream->ring != NULL) {
            pthread_mutex_unlock(&client->lock);
            ring_callback_stop(stream);
            pthread_mutex_lock(&client->lock);
        }
    }
    stream_order_stop(client);
}

void mlacat_disconnect(struct mlacat_client *client)
{
    if (client == NULL) {
        return;
    }
    if (client_is_forked(client)) {
        /* Another thread may have held the lock when the process forked: give back the descriptors, leave the rest. */
        close_if_open(client->fd);
        close_if_open(client->poll_fd);
        close_if_open(client->event_fd);
        close_if_open(client->server.pidfd);
        client->fd = client->poll_fd = client->event_fd = client->server.pidfd = -1;
        stream_order_abandon(client);
        return;
    }
    pthread_mutex_lock(&client->lock);
    client->stopping = true;
    reconnect_settle(client);
    if (client->fd >= 0) {
        error_set(&client->last_words, MLACAT_UNAVAILABLE, "the client was disconnected");
        transport_await_end(client);
    }
    memory_watch_stop(client);
    callback_stop(client);
    stop_rings(client);
    while (!TAILQ_EMPTY(&client->buffers)) {
        struct mlacat_buffer *buffer = TAILQ_FIRST(&client->buffers);
        TAILQ_REMOVE(&client->buffers, buffer, link);
        buffer_discard(buffer);
    }
    while (!TAILQ_EMPTY(&client->events)) {
        struct mlacat_event *event = TAILQ_FIRST(&client->events);
        TAILQ_REMOVE(&client->events, event, link);
        event_discard(event);
    }
    for (uint32_t i = 0; i < client->streams_nr; i++) {
        if (client->streams[i] != NULL) {
            stream_free(client->streams[i]);
        }
    }
    pthread_mutex_unlock(&client->lock);
    free_client(client);
}

/* ---------------------------------------------------------------------------------------------------- information */

enum mlacat_status mlacat_server_info(struct mlacat_client *client, struct mlacat_server_info *info)
{
    enum mlacat_status status = client_check(client);
    if (status == MLACAT_OK) {
        status = sized_check(info, SIZED_SERVER_INFO, "mlacat_server_info");
    }
    if (status != MLACAT_OK) {
        return status;
    }
    pthread_mutex_lock(&client->lock);
    struct mlacat_server_info now = client->server.info;
    now.reconnects = client->reconnects;
    pthread_mutex_unlock(&client->lock);
    sized_write(info, &now, sizeof(now));
    return MLACAT_OK;
}

enum mlacat_status mlacat_device_info(struct mlacat_client *client, uint32_t index, struct mlacat_device_info *info)
{
    enum mlacat_status status = client_check(client);
    if (status == MLACAT_OK) {
        status = sized_check(info, SIZED_DEVICE_INFO, "mlacat_device_info");
    }
    if (status != MLACAT_OK) {
        return status;
    }
    pthread_mutex_lock(&client->lock);
    uint32_t nr = client->server.info.devices;
    if (index < nr) {
        sized_write(info, &client->server.devices[index], sizeof(client->server.devices[index]));
    }
    pthread_mutex_unlock(&client->lock);
    if (index >= nr) {
        return error_fail(MLACAT_OUT_OF_RANGE, "device %u was asked for; the daemon has %u", index, nr);
    }
    return MLACAT_OK;
}

enum mlacat_status client_pick_device(const struct mlacat_client *client, const char *wanted,
                                      const struct mlacat_device_info **device)
{
    for (uint32_t i = 0; i < client->server.info.devices; i++) {
        *device = &client->server.devices[i];
        if (wanted == NULL ? (*device)->available != 0 : strcmp((*device)->uuid, wanted) == 0) {
            return MLACAT_OK;
        }
    }
    if (wanted != NULL) {
        return error_fail(MLACAT_NOT_FOUND, "the daemon has no device \"%.63s\"; mlacat_device_info lists its %u",
                          wanted, client->server.info.devices);
    }
    return error_fail(MLACAT_UNAVAILABLE, "none of the daemon's %u devices is available: %s",
                      client->server.info.devices, client->server.devices[0].reason);
}
