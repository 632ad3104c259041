/* SPDX-License-Identifier: Apache-2.0 */
#include "doorbell.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000

enum mlacat_status doorbell_init(struct doorbell *doorbell, struct error *err)
{
    struct epoll_event event = {.events = EPOLLIN};
    atomic_init(&doorbell->asleep, 0);
    doorbell->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    doorbell->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (doorbell->event_fd < 0 || doorbell->epoll_fd < 0 ||
        epoll_ctl(doorbell->epoll_fd, EPOLL_CTL_ADD, doorbell->event_fd, &event) < 0) {
        int saved = errno;
        doorbell_fini(doorbell);
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "cannot make the eventfd of a thread: %s; raise LimitNOFILE",
                         strerror(saved));
    }
    return MLACAT_OK;
}

void doorbell_fini(struct doorbell *doorbell)
{
    if (doorbell->event_fd >= 0) {
        close(doorbell->event_fd);
    }
    if (doorbell->epoll_fd >= 0) {
        close(doorbell->epoll_fd);
    }
    doorbell->event_fd = -1;
    doorbell->epoll_fd = -1;
}

/* By edge: its counter, which is a client's, stays as it is. */
enum mlacat_status doorbell_watch(struct doorbell *doorbell, int fd, struct error *err)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    if (epoll_ctl(doorbell->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                         "cannot watch the doorbell of another stream: %s; close streams, or raise "
                         "fs.epoll.max_user_watches",
                         strerror(errno));
    }
    return MLACAT_OK;
}

/* To close it is not enough: others have the same eventfd. */
void doorbell_forget(struct doorbell *doorbell, int fd)
{
    struct epoll_event event = {0};
    epoll_ctl(doorbell->epoll_fd, EPOLL_CTL_DEL, fd, &event);
}

void doorbell_ring(struct doorbell *doorbell)
{
    if (atomic_load(&doorbell->asleep) && atomic_exchange(&doorbell->asleep, 0)) {
        uint64_t one = 1;
        /* Fails only when the counter is full, and then the receiver is awake already. */
        ssize_t written = write(doorbell->event_fd, &one, sizeof(one));
        (void)written;
    }
}

void doorbell_arm(struct doorbell *doorbell)
{
    atomic_store(&doorbell->asleep, 1);
}

void doorbell_disarm(struct doorbell *doorbell)
{
    atomic_store(&doorbell->asleep, 0);
}

/* Forgets the rings so far; a signal may have ended the wait before the first: the caller looks at its mailboxes and
 * comes back. */
static void wake_up(struct doorbell *doorbell, int timeout_ms)
{
    struct epoll_event event;
    uint64_t count;
    epoll_wait(doorbell->epoll_fd, &event, 1, timeout_ms);
    ssize_t got = read(doorbell->event_fd, &count, sizeof(count));
    (void)got;
    doorbell_disarm(doorbell);
}

void doorbell_sleep(struct doorbell *doorbell)
{
    wake_up(doorbell, -1);
}

/* epoll_wait counts in milliseconds; an epoll can be polled itself. */
void doorbell_nap(struct doorbell *doorbell, uint64_t ns)
{
    struct pollfd polled = {.fd = doorbell->epoll_fd, .events = POLLIN};
    struct timespec time = {.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
    if (ppoll(&polled, 1, &time, NULL) > 0) {
        wake_up(doorbell, 0);
    } else {
        doorbell_disarm(doorbell);
    }
}
