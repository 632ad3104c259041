/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reconnect.h"
#include "stream_order.h"
#include "thread.h"
#include "timing.h"
#include "transport.h"

/* A daemon that lives on after our connection has ended finishes within this time what it had launched for us. Where
 * there is no pidfd, nobody can tell. */
#define EXIT_NS (2000 * TIMING_MS)
#define EXIT_UNKNOWN_NS (50 * TIMING_MS)
#define STEP_MS 10

/* ---------------------------------------------------------------------------------------------------- the thread */

static bool is_released(const struct order_watch *watch, bool release)
{
    bool all = true;
    for (uint32_t i = 0; i < watch->pages->rings; i++) {
        uint64_t *done = &ring_pages_client(watch->pages, i)->done;
        uint64_t awaited = __atomic_load_n(&watch->awaited[i], __ATOMIC_ACQUIRE);
        if ((int64_t)(__atomic_load_n(done, __ATOMIC_ACQUIRE) - awaited) >= 0) {
            continue;
        }
        if (release) {
            __atomic_store_n(done, awaited, __ATOMIC_RELEASE);
        } else {
            all = false;
        }
    }
    return all;
}

/* Waits for the end of the connection, from either side. */
static void await_hangup(const struct order_watch *watch)
{
    struct pollfd item = {.fd = watch->socket, .events = POLLRDHUP};
    while (poll(&item, 1, -1) < 0 && errno == EINTR) {
    }
}

/* Waits until the daemon has exited, or has nothing of ours any more. */
static void await_exit(const struct order_watch *watch)
{
    struct pollfd item = {.fd = watch->pidfd, .events = POLLIN};
    int64_t until = timing_now() + (watch->pidfd >= 0 ? EXIT_NS : EXIT_UNKNOWN_NS);
    while (!is_released(watch, false) && timing_now() < until) {
        if (poll(&item, 1, STEP_MS) > 0) {
            return;
        }
    }
}

/* Without locks: a submit may hold its ring's while the driver, whose queue is full, waits for just this. */
static void let_go(const struct order_watch *watch)
{
    await_exit(watch);
    is_released(watch, true);
}

/* Forgotten first: a child that is forked in between must not close what has the number by then. */
static void close_both(struct order_watch *watch)
{
    int fds[2] = {watch->socket, watch->pidfd};
    watch->socket = watch->pidfd = -1;
    for (int i = 0; i < 2; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
}

static void *run(void *user)
{
    struct order_watch *watch = user;
    struct mlacat_client *client = watch->client;
    await_hangup(watch);
    let_go(watch);
    pthread_mutex_lock(&client->lock);
    if (client->epoch == watch->epoch && client->fd >= 0) {
        transport_await_end(client);
    }
    pthread_mutex_unlock(&client->lock);
    let_go(watch); /* of what was submitted before the rings went down */
    pthread_mutex_lock(&client->lock);
    close_both(watch);
    watch->over = true;
    pthread_mutex_unlock(&client->lock);
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------- starting */

static void watch_free(struct order_watch *watch)
{
    close_both(watch);
    ring_pages_put(watch->pages);
    free(watch->awaited);
    free(watch);
}

/* Those of earlier connections that have done their work. With the client's lock. */
static void free_over(struct mlacat_client *client)
{
    struct order_watch *watch = SLIST_FIRST(&client->watches);
    while (watch != NULL) {
        struct order_watch *next = SLIST_NEXT(watch, link);
        if (watch->over) {
            SLIST_REMOVE(&client->watches, watch, order_watch, link);
            pthread_join(watch->thread, NULL); /* it takes the lock no more */
            watch_free(watch);
        }
        watch = next;
    }
}

/* For the connection as it is; NULL: no memory or descriptors. With the client's lock. */
static struct order_watch *watch_new(struct mlacat_client *client)
{
    struct order_watch *watch = calloc(1, sizeof(*watch));
    if (watch == NULL) {
        return NULL;
    }
    watch->client = client;
    watch->pages = ring_pages_get(client->pages);
    watch->epoch = client->epoch;
    watch->awaited = calloc(client->pages->rings, sizeof(*watch->awaited));
    watch->socket = fcntl(client->fd, F_DUPFD_CLOEXEC, 0);
    watch->pidfd = client->server.pidfd < 0 ? -1 : fcntl(client->server.pidfd, F_DUPFD_CLOEXEC, 0);
    if (watch->awaited == NULL || watch->socket < 0 || (watch->pidfd < 0 && client->server.pidfd >= 0)) {
        watch_free(watch);
        return NULL;
    }
    return watch;
}

/* The words of page C, and no more: only they are worth staying mapped. */
static size_t words_bytes(const struct ring_pages *pages)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t words = (size_t)pages->rings * pages->client_stride;
    size_t whole = (words + page - 1) / page * page;
    return whole < pages->client_bytes ? whole : pages->client_bytes;
}

static enum mlacat_status register_words(struct ring_pages *pages, const struct cuda_driver *cuda, void *cu_stream,
                                         struct error *err)
{
    void *context = NULL;
    size_t bytes = words_bytes(pages);
    int result = cuda->cuStreamGetCtx(cu_stream, &context);
    if (result == 0) {
        result = cuda->cuCtxPushCurrent(context);
    }
    if (result == 0) {
        result =
            cuda->cuMemHostRegister(pages->client, bytes, CUDA_HOST_REGISTER_PORTABLE | CUDA_HOST_REGISTER_DEVICEMAP);
        cuda->cuCtxPopCurrent(&context);
    }
    if (result != 0) {
        return error_set(err, MLACAT_INTERNAL,
                         "the CUDA driver failed to register the page of the rings: %d; nothing was submitted", result);
    }
    pages->kept_bytes = bytes;
    return MLACAT_OK;
}

/* With `opening_pages` set, which keeps other threads from the same; it lets go of the client's lock. */
static enum mlacat_status start(struct mlacat_client *client, const struct cuda_driver *cuda, void *cu_stream,
                                struct error *err)
{
    struct order_watch *watch = watch_new(client);
    if (watch == NULL) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                         "no memory or descriptors for the watch over stream-ordered calls: %s", strerror(errno));
    }
    struct ring_pages *pages = watch->pages;
    err->code = MLACAT_OK;
    pthread_mutex_unlock(&client->lock);
    if (pages->kept_bytes == 0) {
        register_words(pages, cuda, cu_stream, err);
    }
    pthread_mutex_lock(&client->lock);
    int error = err->code == MLACAT_OK ? thread_start(&watch->thread, run, watch) : 0;
    if (error != 0) {
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "cannot start the thread that watches the daemon: %s",
                  strerror(error));
    }
    if (err->code != MLACAT_OK) {
        watch_free(watch);
        return err->code;
    }
    SLIST_INSERT_HEAD(&client->watches, watch, link);
    __atomic_store_n(&pages->watched, watch, __ATOMIC_RELEASE);
    return MLACAT_OK;
}

enum mlacat_status order_watch_start(struct mlacat_stream *stream, const struct cuda_driver *cuda, void *cu_stream,
                                     struct error *err)
{
    struct mlacat_client *client = stream->client;
    enum mlacat_status status = MLACAT_OK;
    pthread_mutex_lock(&client->lock);
    while (client->opening_pages) {
        pthread_cond_wait(&client->changed, &client->lock);
    }
    /* Where the connection has just ended the caller finds that out for itself. */
    if (client->pages != NULL && client->pages->watched == NULL && !client->stopping) {
        client->opening_pages = true;
        free_over(client);
        status = start(client, cuda, cu_stream, err);
        client->opening_pages = false;
        pthread_cond_broadcast(&client->changed);
    }
    pthread_mutex_unlock(&client->lock);
    return status;
}

void stream_order_stop(struct mlacat_client *client)
{
    struct order_watch *watch;
    while ((watch = SLIST_FIRST(&client->watches)) != NULL) {
        SLIST_REMOVE_HEAD(&client->watches, link);
        pthread_mutex_unlock(&client->lock);
        pthread_join(watch->thread, NULL);
        pthread_mutex_lock(&client->lock);
        watch_free(watch);
    }
}

void stream_order_abandon(struct mlacat_client *client)
{
    struct order_watch *watch;
    SLIST_FOREACH(watch, &client->watches, link)
    {
        close_both(watch);
    }
}
