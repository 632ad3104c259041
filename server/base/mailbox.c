/* SPDX-License-Identifier: Apache-2.0 */
#include "mailbox.h"

/* Sequentially consistent, so that a receiver that is about to sleep and its sender cannot miss each other
 * (engine/doorbell.h). The receiver only ever empties the chain: a sender's swap cannot mistake a new one for an
 * old. */
void mailbox_post(struct mailbox *mailbox, struct mail *mail)
{
    struct mail *newest = atomic_load_explicit(&mailbox->posted, memory_order_relaxed);
    do {
        mail->next = newest;
    } while (!atomic_compare_exchange_weak(&mailbox->posted, &newest, mail));
}

static struct mail *reversed(struct mail *newest)
{
    struct mail *oldest = NULL;
    while (newest) {
        struct mail *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    return oldest;
}

struct mail *mailbox_take(struct mailbox *mailbox)
{
    /* A plain look first: to swap fetches the line from the sender even when there is nothing. */
    if (!mailbox->taken && atomic_load(&mailbox->posted)) {
        mailbox->taken = reversed(atomic_exchange(&mailbox->posted, NULL));
    }
    struct mail *mail = mailbox->taken;
    if (mail) {
        mailbox->taken = mail->next;
    }
    return mail;
}

bool mailbox_empty(const struct mailbox *mailbox)
{
    return !mailbox->taken && !atomic_load(&mailbox->posted);
}
