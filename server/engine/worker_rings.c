/* SPDX-License-Identifier: Apache-2.0 */
/* What a worker and the loop say to each other of streams with rings. */
#include "ring_stream.h"
#include "worker.h"

void worker_attach(struct worker *worker, struct mail *attach_mail)
{
    mailbox_post(&worker->joining, attach_mail);
    doorbell_ring(&worker->doorbell);
}

struct ring_report *worker_take_report(struct worker *worker)
{
    struct mail *mail = mailbox_take(&worker->reports);
    return mail ? LIST_ENTRY(mail, struct ring_report, mail) : NULL;
}

void worker_drain(struct worker *worker)
{
    atomic_store(&worker->draining, 1);
    doorbell_ring(&worker->doorbell);
}

uint32_t worker_ring_calls(const struct worker *worker)
{
    uint32_t calls_nr = atomic_load_explicit(&worker->ring_calls, memory_order_relaxed);
    bool unsure = atomic_load_explicit(&worker->draining, memory_order_relaxed) &&
                  !atomic_load_explicit(&worker->drained, memory_order_acquire);
    return calls_nr == 0 && unsure ? 1 : calls_nr;
}

/* Sequentially consistent with the loop's `asleep`, like a mailbox (doorbell.h). */
bool worker_take_drain_news(struct worker *worker)
{
    return atomic_load(&worker->drain_news) && atomic_exchange(&worker->drain_news, 0);
}

void worker_tell_rings(struct worker *worker)
{
    uint32_t told = atomic_load_explicit(&worker->ring_calls, memory_order_relaxed);
    bool drained = atomic_load_explicit(&worker->drained, memory_order_relaxed);
    atomic_store_explicit(&worker->ring_calls, worker->ring_calls_now, memory_order_relaxed);
    /* Also refused calls are in flight while they wait to tell `done`: the loop waits for the last of them, too. */
    if (worker->drain_seen && worker->ring_calls_now == 0 && (told != 0 || !drained)) {
        atomic_store_explicit(&worker->drained, 1, memory_order_release);
        atomic_store(&worker->drain_news, 1); /* pairs with worker_take_drain_news */
        worker->posted = true;
    }
}
