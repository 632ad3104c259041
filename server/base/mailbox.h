/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mailbox from one thread to one other. What is posted carries its own link, so a mailbox needs no memory and is
 * never full: it holds at most as many letters as there are objects to post.
 *
 * Owns:     nothing.
 * Thread:   mailbox_post: the one sender. mailbox_take, mailbox_empty: the one receiver.
 * Lifetime: a zeroed one is empty.
 * Errors:   none.
 */
#ifndef MLACAT_BASE_MAILBOX_H
#define MLACAT_BASE_MAILBOX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define MAILBOX_LINE 128 /* what two cores fight over: a cache line and its neighbour */

/* In the object that is posted; in one mailbox at a time. LIST_ENTRY (list.h) finds the object. */
struct mail {
    struct mail *next;
};

struct mailbox {
    _Alignas(MAILBOX_LINE) _Atomic(struct mail *) posted; /* the newest first; the receiver takes all at once */
    _Alignas(MAILBOX_LINE) struct mail *taken;            /* receiver: the oldest first */
};

void mailbox_post(struct mailbox *mailbox, struct mail *mail);
/* In the order of posting; NULL: empty. */
struct mail *mailbox_take(struct mailbox *mailbox);
bool mailbox_empty(const struct mailbox *mailbox);

#endif
