/* SPDX-License-Identifier: Apache-2.0 */
#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "closer.h"
#include "log.h"

#define LOCK_SUFFIX ".lock"
#define LOCK_PATH_BYTES (sizeof(((struct listener *)0)->path) + sizeof(LOCK_SUFFIX))

static void on_poll(uv_poll_t *poll, int status, int events);

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

/* ---- binding ---- */

static enum mlacat_status fail_path(struct error *err, const char *doing, const char *path, int error)
{
    if (error == EACCES || error == EPERM || error == EROFS) {
        return error_set(err, MLACAT_PERMISSION_DENIED,
                         "%s %s: %s; run as a user who may, or choose another socket path", doing, path,
                         strerror(error));
    }
    if (error == ENOENT || error == ENOTDIR) {
        return error_set(err, MLACAT_INVALID_ARGUMENT, "%s %s: %s; make the folder that it belongs in", doing, path,
                         strerror(error));
    }
    return error_set(err, MLACAT_INTERNAL, "%s %s: %s; choose another socket path", doing, path, strerror(error));
}

static enum mlacat_status make_folder(const char *path, struct error *err)
{
    char folder[sizeof(((struct listener *)0)->path)];
    const char *slash = strrchr(path, '/');
    if (slash == NULL || slash == path) {
        return MLACAT_OK;
    }
    snprintf(folder, sizeof(folder), "%.*s", (int)(slash - path), path);
    if (mkdir(folder, 0755) != 0 && errno != EEXIST) {
        return fail_path(err, "making folder", folder, errno);
    }
    return MLACAT_OK;
}

static void make_lock_path(const struct listener *listener, char lock_path[LOCK_PATH_BYTES])
{
    snprintf(lock_path, LOCK_PATH_BYTES, "%s" LOCK_SUFFIX, listener->path);
}

/* True if the locked file still is the one at the path: a leaving daemon unlinks it while it holds the lock. */
static bool is_file_at(int fd, const char *path)
{
    struct stat opened;
    struct stat named;
    return fstat(fd, &opened) == 0 && stat(path, &named) == 0 && opened.st_dev == named.st_dev &&
           opened.st_ino == named.st_ino;
}

/* The lock, not the socket, says whether a daemon is alive: the kernel drops it with the process. */
static enum mlacat_status take_lock(struct listener *listener, struct error *err)
{
    char lock_path[LOCK_PATH_BYTES];
    make_lock_path(listener, lock_path);
    for (;;) {
        listener->lock_fd = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (listener->lock_fd < 0) {
            return fail_path(err, "opening lock file", lock_path, errno);
        }
        if (flock(listener->lock_fd, LOCK_EX | LOCK_NB) != 0) {
            int error = errno;
            close_fd(&listener->lock_fd);
            return error == EWOULDBLOCK
                       ? error_set(err, MLACAT_ALREADY_EXISTS,
                                   "another daemon serves %s (it holds %s): stop it or choose another socket path",
                                   listener->path, lock_path)
                       : fail_path(err, "locking", lock_path, error);
        }
        if (is_file_at(listener->lock_fd, lock_path)) {
            return MLACAT_OK;
        }
        close_fd(&listener->lock_fd);
    }
}

/* 0: somebody listens there; else why not. */
static int probe(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return errno;
    }
    int error = connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 ? 0 : errno;
    close(fd);
    return error == EAGAIN || error == EPROTOTYPE ? 0 : error; /* its queue is full; it is of another type */
}

/* Removes what a daemon that died has left. A server without our lock (socket activation, a stranger) keeps its path.
 */
static enum mlacat_status remove_stale(const struct sockaddr_un *address, struct error *err)
{
    const char *path = address->sun_path;
    struct stat there;
    if (lstat(path, &there) != 0) {
        return errno == ENOENT ? MLACAT_OK : fail_path(err, "looking at", path, errno);
    }
    if (!S_ISSOCK(there.st_mode)) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "%s is there and is no socket: remove it or choose another socket path", path);
    }
    int error = probe(address);
    if (error == 0) {
        return error_set(err, MLACAT_ALREADY_EXISTS, "another process serves %s: stop it or choose another socket path",
                         path);
    }
    if (error != ECONNREFUSED) {
        return fail_path(err, "connecting to the socket that is at", path, error);
    }
    return unlink(path) == 0 ? MLACAT_OK : fail_path(err, "removing the dead socket", path, errno);
}

/* Nobody can connect before listen(), so the mode is in force for the first client. */
static enum mlacat_status bind_and_listen(struct listener *listener, const struct sockaddr_un *address, mode_t mode,
                                          struct error *err)
{
    listener->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener->fd < 0) {
        return fail_path(err, "making a socket for", listener->path, errno);
    }
    if (bind(listener->fd, (const struct sockaddr *)address, sizeof(*address)) != 0) {
        return fail_path(err, "binding", listener->path, errno);
    }
    listener->bound = true;
    if (chmod(listener->path, mode) != 0) {
        return fail_path(err, "setting the mode of", listener->path, errno);
    }
    if (listen(listener->fd, SOMAXCONN) != 0) {
        return fail_path(err, "listening on", listener->path, errno);
    }
    return MLACAT_OK;
}

static enum mlacat_status open_path(struct listener *listener, const char *path, mode_t mode, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof(address.sun_path)) {
        return error_set(err, MLACAT_INVALID_ARGUMENT, "socket path \"%s\" of %zu bytes: 1 to %zu bytes are possible",
                         path, length, sizeof(address.sun_path) - 1);
    }
    memcpy(address.sun_path, path, length + 1);
    memcpy(listener->path, path, length + 1);
    enum mlacat_status code = make_folder(path, err);
    if (code == MLACAT_OK) {
        code = take_lock(listener, err);
    }
    if (code == MLACAT_OK) {
        code = remove_stale(&address, err);
    }
    if (code == MLACAT_OK) {
        code = bind_and_listen(listener, &address, mode, err);
    }
    return code;
}

static bool has_option(int fd, int option, int wanted)
{
    int value = -1;
    socklen_t length = sizeof(value);
    return getsockopt(fd, SOL_SOCKET, option, &value, &length) == 0 && value == wanted;
}

/* A socket that systemd has bound: its path, mode and life are the unit's. */
static enum mlacat_status take_passed(struct listener *listener, int fd, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = sizeof(address);
    listener->fd = fd;
    if (!has_option(fd, SO_DOMAIN, AF_UNIX) || !has_option(fd, SO_TYPE, SOCK_SEQPACKET) ||
        !has_option(fd, SO_ACCEPTCONN, 1)) {
        return error_set(
            err, MLACAT_INVALID_ARGUMENT,
            "passed descriptor %d is no listening SOCK_SEQPACKET Unix socket: use ListenSequentialPacket= in "
            "the socket unit",
            fd);
    }
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) { /* libuv will make it non-blocking */
        return error_set(err, MLACAT_INTERNAL, "passed descriptor %d takes no flags: %s", fd, strerror(errno));
    }
    if (getsockname(fd, (struct sockaddr *)&address, &length) == 0) {
        memcpy(listener->path, address.sun_path,
               sizeof(listener->path) - 1); /* for messages; ends in the NUL set before */
    }
    return MLACAT_OK;
}

/* ---- accepting ---- */

static void open_spare(struct listener *listener)
{
    if (listener->spare_fd < 0) {
        listener->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
}

static void on_retry(uv_timer_t *timer)
{
    struct listener *listener = timer->data;
    open_spare(listener);
    uv_poll_start(&listener->poll, UV_READABLE, on_poll);
}

/* The client that cannot be accepted would make the socket readable for ever. */
static void pause_accepting(struct listener *listener)
{
    uv_poll_stop(&listener->poll);
    uv_timer_start(&listener->retry_timer, on_retry, LISTENER_RETRY_MS, 0);
}

/* No descriptor is left: gives up the spare one to tell the client so by closing its connection, for a client that is
 * left in the queue would wait for ever. False if that did not work. */
static bool refuse_one(struct listener *listener)
{
    if (listener->spare_fd < 0) {
        return false;
    }
    close_fd(&listener->spare_fd);
    int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
        close(fd);
        log_warning("client_refused", "reason=\"no descriptor is left\" action=\"raise the limit of open files\"");
    }
    open_spare(listener);
    return fd >= 0 && listener->spare_fd >= 0;
}

static void greet(struct listener *listener, int fd)
{
    struct peer peer;
    struct error err;
    if (peer_read(fd, &peer, &err) != MLACAT_OK) {
        log_warning("client_refused", "reason=%s", log_text(err.message));
        closer_hang_up(fd, PEER_OVERFLOW_ID);
        return;
    }
    listener->on_client(listener->owner, fd, &peer);
}

/* False: stop for this turn. */
static bool accept_one(struct listener *listener)
{
    int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
        greet(listener, fd);
        return listener->fd >= 0; /* the handler may have closed us */
    }
    int error = errno;
    if (error == EINTR || error == ECONNABORTED) {
        return true;
    }
    if (error == EAGAIN || error == EWOULDBLOCK) {
        return false;
    }
    if ((error == EMFILE || error == ENFILE) && refuse_one(listener)) {
        return true;
    }
    log_error("accept_failed", "path=\"%s\" errno=%d reason=\"%s\" retry_ms=%d", listener->path, error, strerror(error),
              LISTENER_RETRY_MS);
    pause_accepting(listener);
    return false;
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct listener *listener = poll->data;
    (void)events;
    if (status < 0) {
        log_error("listener_poll_failed", "path=\"%s\" reason=\"%s\"", listener->path, uv_strerror(status));
        pause_accepting(listener);
        return;
    }
    for (int i = 0; i < LISTENER_BATCH && accept_one(listener); i++) {
    }
}

/* ---- open and close ---- */

/* The lock goes last: a daemon that comes now finds the path free. */
static void close_files(struct listener *listener)
{
    if (listener->bound) {
        unlink(listener->path);
        listener->bound = false;
    }
    close_fd(&listener->fd);
    close_fd(&listener->spare_fd);
    if (listener->lock_fd >= 0) {
        char lock_path[LOCK_PATH_BYTES];
        make_lock_path(listener, lock_path);
        unlink(lock_path);
        close_fd(&listener->lock_fd);
    }
}

static enum mlacat_status start_polling(struct listener *listener, uv_loop_t *loop, struct error *err)
{
    int result = uv_poll_init(loop, &listener->poll, listener->fd);
    if (result != 0) {
        return error_set(err, MLACAT_INTERNAL, "socket %s cannot be polled: %s", listener->path, uv_strerror(result));
    }
    uv_timer_init(loop, &listener->retry_timer);
    listener->poll.data = listener;
    listener->retry_timer.data = listener;
    listener->uv_handles = 2;
    uv_poll_start(&listener->poll, UV_READABLE, on_poll);
    return MLACAT_OK;
}

enum mlacat_status listener_open(struct listener *listener, uv_loop_t *loop, const char *path, mode_t mode,
                                 int passed_fd, struct error *err)
{
    listener->fd = -1;
    listener->lock_fd = -1;
    listener->spare_fd = -1;
    listener->bound = false;
    listener->uv_handles = 0;
    memset(listener->path, 0, sizeof(listener->path));
    enum mlacat_status code =
        passed_fd >= 0 ? take_passed(listener, passed_fd, err) : open_path(listener, path, mode, err);
    if (code == MLACAT_OK) {
        open_spare(listener);
        code = start_polling(listener, loop, err);
    }
    if (code != MLACAT_OK) {
        close_files(listener);
    }
    return code;
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct listener *listener = handle->data;
    if (--listener->uv_handles == 0) {
        listener->on_closed(listener->owner);
    }
}

void listener_close(struct listener *listener)
{
    if (listener->fd < 0) {
        return;
    }
    uv_close((uv_handle_t *)&listener->poll, on_handle_closed);
    uv_close((uv_handle_t *)&listener->retry_timer, on_handle_closed);
    close_files(listener);
}
