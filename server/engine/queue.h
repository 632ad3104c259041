/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bounded mailbox of pointers from one thread to one other, and the doorbell that wakes a sleeping receiver.
 *
 * Owns:     its slots; not what the pointers point to.
 * Thread:   mailbox_post: the one sender. mailbox_take, mailbox_empty: the one receiver. doorbell_ring: any thread.
 * Lifetime: init -> fini, with both threads stopped at each end.
 * Errors:   mailbox_post returns false when full: the sender must have an answer for that.
 *
 * No wake-up is lost: the sender posts and then looks at the doorbell, the receiver marks the doorbell and then looks
 * at the mailbox; all four accesses are sequentially consistent, so at least one of them sees the other.
 */
#ifndef MLACAT_ENGINE_QUEUE_H
#define MLACAT_ENGINE_QUEUE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "status.h"

#define QUEUE_LINE 128 /* what two cores fight over: a cache line and its neighbour */

struct mailbox {
    _Alignas(QUEUE_LINE) _Atomic uint32_t tail; /* sender */
    uint32_t head_seen;                         /* sender: last known head */
    _Alignas(QUEUE_LINE) _Atomic uint32_t head; /* receiver */
    uint32_t tail_seen;                         /* receiver: last known tail */
    _Alignas(QUEUE_LINE) void **slots;
    uint32_t mask;
};

/* The power of two that is at least `items` (at most 2^31). */
uint32_t mailbox_room(uint32_t items);
/* `slots_nr` is a power of two. RESOURCE_EXHAUSTED: no memory. */
enum mlacat_status mailbox_init(struct mailbox *mailbox, uint32_t slots_nr, struct error *err);
/* Accepts a zeroed one. */
void mailbox_fini(struct mailbox *mailbox);

bool mailbox_post(struct mailbox *mailbox, void *item);
/* NULL: empty. */
void *mailbox_take(struct mailbox *mailbox);
bool mailbox_empty(struct mailbox *mailbox);

/* A thread that sleeps in epoll on an eventfd. */
struct doorbell {
    _Alignas(QUEUE_LINE) _Atomic uint32_t asleep;
    int event_fd;
    int epoll_fd;
};

enum mlacat_status doorbell_init(struct doorbell *doorbell, struct error *err);
/* Accepts a zeroed one that was never initialised only if its fds are -1. */
void doorbell_fini(struct doorbell *doorbell);

/* Wakes the receiver if it sleeps or is about to; no system call otherwise. */
void doorbell_ring(struct doorbell *doorbell);

/* Receiver: 1. doorbell_arm, 2. look at every mailbox once more, 3. doorbell_sleep, or doorbell_disarm if something was
 * there. */
void doorbell_arm(struct doorbell *doorbell);
void doorbell_disarm(struct doorbell *doorbell);
void doorbell_sleep(struct doorbell *doorbell);

/* One turn of a loop that looks for work again and again, `waited_ns` after it began. What comes at once is found
 * without a system call; later on, whoever else could run here goes first: it may be the very thread that is waited
 * for. */
void spin_pause(uint64_t waited_ns);

#endif
