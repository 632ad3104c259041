/* SPDX-License-Identifier: Apache-2.0 */
#include "queue.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
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

uint32_t mailbox_room(uint32_t items)
{
    uint32_t room = 1;
    while (room < items && room < UINT32_C(1) << 31) {
        room <<= 1;
    }
    return room;
}

enum mlacat_status mailbox_init(struct mailbox *mailbox, uint32_t slots_nr, struct error *err)
{
    *mailbox = (struct mailbox){.mask = slots_nr - 1};
    mailbox->slots = calloc(slots_nr, sizeof(*mailbox->slots));
    if (!mailbox->slots) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "no memory for a queue of %u entries", slots_nr);
    }
    return MLACAT_OK;
}

void mailbox_fini(struct mailbox *mailbox)
{
    free(mailbox->slots);
    *mailbox = (struct mailbox){0};
}

bool mailbox_post(struct mailbox *mailbox, void *item)
{
    uint32_t tail = atomic_load_explicit(&mailbox->tail, memory_order_relaxed);
    if (tail - mailbox->head_seen > mailbox->mask) {
        /* Pairs with the release of `head` in mailbox_take: the slot's old content was read. */
        mailbox->head_seen = atomic_load_explicit(&mailbox->head, memory_order_acquire);
        if (tail - mailbox->head_seen > mailbox->mask) {
            return false;
        }
    }
    mailbox->slots[tail & mailbox->mask] = item;
    /* Publishes the slot (acquired in mailbox_take) and is ordered before the look at `asleep` in doorbell_ring. */
    atomic_store(&mailbox->tail, tail + 1);
    return true;
}

void *mailbox_take(struct mailbox *mailbox)
{
    uint32_t head = atomic_load_explicit(&mailbox->head, memory_order_relaxed);
    if (head == mailbox->tail_seen) {
        /* Pairs with mailbox_post; sequentially consistent after doorbell_arm. */
        mailbox->tail_seen = atomic_load(&mailbox->tail);
        if (head == mailbox->tail_seen) {
            return NULL;
        }
    }
    void *item = mailbox->slots[head & mailbox->mask];
    atomic_store_explicit(&mailbox->head, head + 1, memory_order_release);
    return item;
}

bool mailbox_empty(struct mailbox *mailbox)
{
    return atomic_load_explicit(&mailbox->head, memory_order_relaxed) == atomic_load(&mailbox->tail);
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
