/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a thread that waits for mail sleeps and is woken.
 *
 * Owns:     an eventfd and an epoll.
 * Thread:   doorbell_ring: any thread; the rest: the one thread that sleeps.
 * Lifetime: init -> fini, with nobody left to ring.
 * Errors:   doorbell_init: RESOURCE_EXHAUSTED, no descriptors.
 *
 * No wake-up is lost: the sender posts and then looks at the doorbell, the receiver marks the doorbell and then looks
 * at the mailbox; all four accesses are sequentially consistent, so at least one of them sees the other.
 */
#ifndef MLACAT_ENGINE_DOORBELL_H
#define MLACAT_ENGINE_DOORBELL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "status.h"

/* A thread that sleeps in epoll on an eventfd. */
struct doorbell {
    _Alignas(128) _Atomic uint32_t asleep;
    int event_fd;
    int epoll_fd;
};

enum mlacat_status doorbell_init(struct doorbell *doorbell, struct error *err);
/* Accepts a zeroed one that was never initialised only if its fds are -1. */
void doorbell_fini(struct doorbell *doorbell);

/* Wakes the receiver if it sleeps or is about to; no system call otherwise. */
void doorbell_ring(struct doorbell *doorbell);

/* Wakes the receiver, too, when somebody writes to this eventfd, which is neither read nor written here; no more after
 * doorbell_forget. Any thread. RESOURCE_EXHAUSTED: the system's limit of watches. */
enum mlacat_status doorbell_watch(struct doorbell *doorbell, int fd, struct error *err);
void doorbell_forget(struct doorbell *doorbell, int fd);

/* Receiver: 1. doorbell_arm, 2. look at every mailbox once more, 3. doorbell_sleep, or doorbell_disarm if something was
 * there. doorbell_nap is a sleep of at most `ns`. */
void doorbell_arm(struct doorbell *doorbell);
void doorbell_disarm(struct doorbell *doorbell);
void doorbell_sleep(struct doorbell *doorbell);
void doorbell_nap(struct doorbell *doorbell, uint64_t ns);

#endif
