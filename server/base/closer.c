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

struct waiting {
    uint32_t next; /* place behind it in its queue, or in the free list; 0: the last */
    int fd;        /* ~fd: hang up first */
};

struct queue {
    uint32_t user;
    uint32_t nr;    /* not closed yet: those that wait and the one that the thread is at */
    uint32_t first; /* places; 0: none */
    uint32_t last;
    bool started;
    pthread_cond_t posted;
};

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t idle;
    struct queue queues[CLOSER_USERS];
    struct waiting places[CLOSER_FDS + 1]; /* but the first, for 0 is none */
    uint32_t used;                         /* places that were in use at least once */
    uint32_t free;
} closer = {.mutex = PTHREAD_MUTEX_INITIALIZER, .idle = PTHREAD_COND_INITIALIZER};

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

/* With the mutex held. */
static int take(struct queue *queue)
{
    uint32_t place = queue->first;
    queue->first = closer.places[place].next;
    closer.places[place].next = closer.free;
    closer.free = place;
    return closer.places[place].fd;
}

static void *closer_main(void *arg)
{
    struct queue *queue = arg;
    pthread_mutex_lock(&closer.mutex);
    for (;;) {
        while (queue->first == 0) {
            pthread_cond_broadcast(&closer.idle);
            pthread_cond_wait(&queue->posted, &closer.mutex);
        }
        int fd = take(queue);
        pthread_mutex_unlock(&closer.mutex);
        close_one(fd);
        pthread_mutex_lock(&closer.mutex);
        queue->nr--;
    }
    return NULL;
}

/* With the mutex held. */
static bool start(struct queue *queue)
{
    pthread_t thread;
    sigset_t all;
    sigset_t before;
    if (queue->started) {
        return true;
    }
    pthread_cond_init(&queue->posted, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    queue->started = pthread_create(&thread, NULL, closer_main, queue) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (queue->started) {
        pthread_setname_np(thread, "mlacat-closer");
        pthread_detach(thread);
    }
    return queue->started;
}

/* With the mutex held. The user's, else one that nobody uses; the first ones have threads. */
static struct queue *find_queue(uint32_t user)
{
    struct queue *unused = NULL;
    for (uint32_t i = 0; i < CLOSER_USERS; i++) {
        struct queue *queue = &closer.queues[i];
        if (queue->nr > 0 && queue->user == user) {
            return queue;
        }
        if (queue->nr == 0 && !unused) {
            unused = queue;
        }
    }
    return unused ? unused : &closer.queues[user % CLOSER_USERS];
}

/* With the mutex held. 0: all are in use. */
static uint32_t get_place(void)
{
    uint32_t place = closer.free;
    if (place != 0) {
        closer.free = closer.places[place].next;
    } else if (closer.used < CLOSER_FDS) {
        place = ++closer.used;
    }
    return place;
}

static void append(struct queue *queue, uint32_t place, int fd)
{
    closer.places[place] = (struct waiting){.fd = fd};
    if (queue->first == 0) {
        queue->first = place;
    } else {
        closer.places[queue->last].next = place;
    }
    queue->last = place;
    queue->nr++;
    pthread_cond_signal(&queue->posted);
}

static void post(int fd, uint32_t user)
{
    pthread_mutex_lock(&closer.mutex);
    struct queue *queue = find_queue(user);
    uint32_t place = start(queue) ? get_place() : 0;
    if (place != 0) {
        queue->user = queue->nr == 0 ? user : queue->user;
        append(queue, place, fd);
    }
    pthread_mutex_unlock(&closer.mutex);
    if (place == 0) {
        close_one(fd);
    }
}

uint32_t closer_waiting(uint32_t user)
{
    pthread_mutex_lock(&closer.mutex);
    const struct queue *queue = find_queue(user);
    uint32_t nr = queue->nr > 0 && queue->user == user ? queue->nr : 0;
    pthread_mutex_unlock(&closer.mutex);
    return nr;
}

/* The last close of a file in memory gives its pages back, gigabytes of them in a second or so. */
bool closer_is_quick(int fd)
{
    struct stat file;
    return fcntl(fd, F_GET_SEALS) >= 0 && fstat(fd, &file) == 0 && file.st_blocks <= SMALL_BLOCKS;
}

void closer_close(int fd, uint32_t user)
{
    if (closer_is_quick(fd)) {
        close(fd);
    } else {
        post(fd, user);
    }
}

void closer_hang_up(int fd, uint32_t user)
{
    shutdown(fd, SHUT_RDWR); /* now: the peer need not wait for the thread */
    post(~fd, user);
}

/* With the mutex held. */
static bool all_closed(void)
{
    uint32_t nr = 0;
    for (uint32_t i = 0; i < CLOSER_USERS; i++) {
        nr += closer.queues[i].nr;
    }
    return nr == 0;
}

bool closer_flush(uint32_t timeout_ms)
{
    struct timespec until;
    int waited = 0;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&closer.mutex);
    while (waited == 0 && !all_closed()) {
        waited = pthread_cond_clockwait(&closer.idle, &closer.mutex, CLOCK_MONOTONIC, &until);
    }
    bool done = all_closed();
    pthread_mutex_unlock(&closer.mutex);
    return done;
}
