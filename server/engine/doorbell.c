/* SPDX-License-Identifier: Apache-2.0 */
#include "doorbell.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Longer than a hand-over between two threads that both run. */
#define SPIN_ALONE_NS 2000

/* Tells the processor that this is a spin loop. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

void spin_pause(uint64_t waited_ns)
{
    if (waited_ns < SPIN_ALONE_NS) {
        cpu_relax();
    } else {
        sched_yield();
    }
}

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

void doorbell_sleep(struct doorbell *doorbell)
{
    struct epoll_event event;
    uint64_t count;
    /* A signal may end the wait early: the caller looks at its mailboxes and comes back. */
    epoll_wait(doorbell->epoll_fd, &event, 1, -1);
    ssize_t got = read(doorbell->event_fd, &count, sizeof(count));
    (void)got;
    doorbell_disarm(doorbell);
}
