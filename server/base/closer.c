/* SPDX-License-Identifier: Apache-2.0 */
#include "closer.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SMALL_BLOCKS (((blkcnt_t)4 << 20) / 512)

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t posted;
    pthread_cond_t idle;
    bool started;
    bool busy;           /* the thread is at one */
    uint32_t first;      /* the oldest of those that wait */
    uint32_t nr;         /* that wait */
    int fds[CLOSER_FDS]; /* ~fd: hang up first */
} closer = {.mutex = PTHREAD_MUTEX_INITIALIZER, .posted = PTHREAD_COND_INITIALIZER, .idle = PTHREAD_COND_INITIALIZER};

/* After the shutdown nothing can be added, so this ends. An empty packet reads as 0 like the end does: two in a row are
 * taken for the end. */
static void hang_up(int fd)
{
    uint8_t byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    for (int empty = 0; empty < 2;) {
        ssize_t got = recvmsg(fd, &header, MSG_DONTWAIT);
        if (got < 0 && errno != EINTR) {
            break;
        }
        empty = got == 0 ? empty + 1 : 0;
    }
    close(fd);
}

static void close_one(int fd)
{
    if (fd < 0) {
        hang_up(~fd);
    } else {
        close(fd);
    }
}

static void *closer_main(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&closer.mutex);
    for (;;) {
        while (closer.nr == 0) {
            closer.busy = false;
            pthread_cond_broadcast(&closer.idle);
            pthread_cond_wait(&closer.posted, &closer.mutex);
        }
        int fd = closer.fds[closer.first];
        closer.first = (closer.first + 1) % CLOSER_FDS;
        closer.nr--;
        closer.busy = true;
        pthread_mutex_unlock(&closer.mutex);
        close_one(fd);
        pthread_mutex_lock(&closer.mutex);
    }
    return NULL;
}

/* With the mutex held. */
static bool start(void)
{
    pthread_t thread;
    sigset_t all;
    sigset_t before;
    if (closer.started) {
        return true;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    closer.started = pthread_create(&thread, NULL, closer_main, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (closer.started) {
        pthread_setname_np(thread, "mlacat-closer");
        pthread_detach(thread);
    }
    return closer.started;
}

static void post(int fd)
{
    pthread_mutex_lock(&closer.mutex);
    bool posted = closer.nr < CLOSER_FDS && start();
    if (posted) {
        closer.fds[(closer.first + closer.nr) % CLOSER_FDS] = fd;
        closer.nr++;
        pthread_cond_signal(&closer.posted);
    }
    pthread_mutex_unlock(&closer.mutex);
    if (!posted) {
        close_one(fd);
    }
}

/* The last close of a file in memory gives its pages back, gigabytes of them in a second or so. */
static bool closes_at_once(int fd)
{
    struct stat file;
    return fcntl(fd, F_GET_SEALS) >= 0 && fstat(fd, &file) == 0 && file.st_blocks <= SMALL_BLOCKS;
}

void closer_close(int fd)
{
    if (closes_at_once(fd)) {
        close(fd);
    } else {
        post(fd);
    }
}

void closer_hang_up(int fd)
{
    shutdown(fd, SHUT_RDWR); /* now: the peer need not wait for the thread */
    post(~fd);
}

bool closer_flush(uint32_t timeout_ms)
{
    struct timespec until;
    int waited = 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&closer.mutex);
    while (waited == 0 && (closer.nr > 0 || closer.busy)) {
        waited = pthread_cond_timedwait(&closer.idle, &closer.mutex, &until);
    }
    bool done = closer.nr == 0 && !closer.busy;
    pthread_mutex_unlock(&closer.mutex);
    return done;
}
