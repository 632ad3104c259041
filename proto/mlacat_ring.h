/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every access to a word of the shared-memory rings (mlacat_abi.h) that one side writes while the other reads, with its
 * memory order and its partner. A second client needs this file and mlacat_abi.h.
 *
 * Owns:     nothing; the words are in pages C and D.
 * Thread:   client functions: one thread of the client at a time for each ring. Daemon functions: the worker that the
 *           stream belongs to.
 * Lifetime: as the mappings.
 * Errors:   none. The daemon takes nothing that it reads from C for granted.
 *
 * A ring's numbers go on, never back, from one stream on it to the next: what a GPU was told to wait for stays true
 * after the stream's end. Before StreamOpened the daemon sets submit_tail, complete_head, submit_head and complete_tail
 * to the low 32 bits of StreamOpened.sequence, and `fence` to all of it; `failed`, `ready` and `done` it leaves as they
 * are. A client
 *   - starts there: its first entry has the index submit_tail and the next sequence number; what `failed` stands at are
 *     failures of others;
 *   - lets the values of `ready` only go up, as the sequence numbers of the calls that wait for them do;
 *   - writes no `ready` for the new stream while the GPU of the one before has one to write, which would take the word
 *     back: it waits until the word has reached the last value that it gave that GPU.
 *
 * How a call goes over:
 *   client  has at most `calls` (StreamOpened) calls, and one request to cancel, that are not both completed and read;
 *           writes entry submit_tail, and more behind it; mlacat_ring_submit; if mlacat_ring_daemon_sleeps: writes 8
 *           bytes (the number 1) to the doorbell. A write that was not needed does no harm: a client that has no full
 *           fence writes each time.
 *   daemon  mlacat_ring_submitted; copies entries (mlacat_ring_copy); mlacat_ring_take_up_to.
 * How its end comes back:
 *   device  writes the sequence number into `fence` (and `done`, if asked);
 *   daemon  writes the completion entry; mlacat_ring_complete; if mlacat_ring_client_waits: futex-wakes complete_tail.
 *   client  sees the fence, or mlacat_ring_completed; reads entries; mlacat_ring_completions_read.
 *           The fence alone: a call has ended OK when the fence has reached its number and `failed`, read after that,
 *           is what it was when the call was submitted. If `failed` has moved, the completions tell which call it was.
 *           A call that fails may leave the fence where it is, so who waits for the fence watches complete_tail, too.
 * An index that no honest client writes (submit_tail more than a ring's entries ahead of submit_head, or behind it;
 * complete_head past complete_tail) ends the connection, when the daemon sees it.
 *
 * How a client sleeps: mlacat_ring_wait(client, 1); if complete_tail is still the index up to which it has read:
 * FUTEX_WAIT for that value on complete_tail, without FUTEX_PRIVATE_FLAG; mlacat_ring_wait(client, 0); looks again,
 * for it may be woken with no news. Nobody is woken when the connection ends: a client sleeps with a timeout and then
 * looks whether its socket has ended, or Welcome's pidfd. One that submits after a pause may look there too, or,
 * without a system call, when the worker looked into the ring last (mlacat_ring_looked).
 *
 * No wake-up is lost, in either direction: the one who has news stores it and then looks whether the other sleeps; the
 * one who goes to sleep says so and then looks for news. A full fence stands between the store and the look on both
 * sides, so at least one of the two sees the other.
 */
#ifndef MLACAT_RING_H
#define MLACAT_RING_H

#include "mlacat_abi.h"

#if defined(__SANITIZE_THREAD__)
#define MLACAT_RING_NO_FENCES 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MLACAT_RING_NO_FENCES 1
#endif
#endif

/* The thread sanitizer does not know fences; an exchange of any word is as good on the machines that it runs on. */
static inline void mlacat_ring_full_fence(void)
{
#ifdef MLACAT_RING_NO_FENCES
    static uint32_t word;
    __atomic_exchange_n(&word, 0, __ATOMIC_SEQ_CST);
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/* ------------------------------------------------------------------------------------------------------- client */

/* Entries before `tail` are written. Pairs with mlacat_ring_submitted. */
static inline void mlacat_ring_submit(struct mlacat_ring_client *client, uint32_t tail)
{
    __atomic_store_n(&client->submit_tail, tail, __ATOMIC_RELEASE);
}

/* After mlacat_ring_submit: must the worker be woken? Pairs with mlacat_ring_sleep. */
static inline int mlacat_ring_daemon_sleeps(const struct mlacat_ring_daemon *daemon)
{
    mlacat_ring_full_fence();
    return __atomic_load_n(&daemon->sleeping, __ATOMIC_RELAXED) != 0;
}

/* The same before it, as a hint only. Any answer does no harm. */
static inline int mlacat_ring_daemon_slept(const struct mlacat_ring_daemon *daemon)
{
    return __atomic_load_n(&daemon->sleeping, __ATOMIC_RELAXED) != 0;
}

/* The time of a look of the worker's: the daemon was there then. Pairs with mlacat_ring_look, to which it owes no
 * order: it says nothing of other words. */
static inline uint64_t mlacat_ring_looked(const struct mlacat_ring_daemon *daemon)
{
    return __atomic_load_n(&daemon->looked_ns, __ATOMIC_RELAXED);
}

/* Entries that the daemon has taken: their places may be written again. Pairs with mlacat_ring_take_up_to. */
static inline uint32_t mlacat_ring_taken(const struct mlacat_ring_daemon *daemon)
{
    return __atomic_load_n(&daemon->submit_head, __ATOMIC_ACQUIRE);
}

/* The sequence number that the device has reached. Pairs with the device's write, which comes after the output's; and
 * `failed` read after it counts every failed call up to it. */
static inline uint64_t mlacat_ring_fence(const struct mlacat_ring_daemon *daemon)
{
    return __atomic_load_n(&daemon->fence, __ATOMIC_ACQUIRE);
}

/* Pairs with mlacat_ring_count_failed. */
static inline uint32_t mlacat_ring_failed(const struct mlacat_ring_daemon *daemon)
{
    return __atomic_load_n(&daemon->failed, __ATOMIC_ACQUIRE);
}

/* Completions before the result are written. Pairs with mlacat_ring_complete. */
static inline uint32_t mlacat_ring_completed(const struct mlacat_ring_daemon *daemon)
{
    return __atomic_load_n(&daemon->complete_tail, __ATOMIC_ACQUIRE);
}

/* Completions before `head` are read: their places may be written again. Pairs with mlacat_ring_completions_read_up_to.
 */
static inline void mlacat_ring_completions_read(struct mlacat_ring_client *client, uint32_t head)
{
    __atomic_store_n(&client->complete_head, head, __ATOMIC_RELEASE);
}

/* Before a sleep on the futex complete_tail, with 1; then look once more; after it with 0. Pairs with
 * mlacat_ring_client_waits. */
static inline void mlacat_ring_wait(struct mlacat_ring_client *client, uint32_t waiting)
{
    __atomic_store_n(&client->waiting, waiting, __ATOMIC_RELAXED);
    mlacat_ring_full_fence();
}

/* ------------------------------------------------------------------------------------------------------- daemon */

/* What the client says it has written: any number at all. Pairs with mlacat_ring_submit. */
static inline uint32_t mlacat_ring_submitted(const struct mlacat_ring_client *client)
{
    return __atomic_load_n(&client->submit_tail, __ATOMIC_ACQUIRE);
}

/* Copies an entry, each word of it read once. A client that writes at this moment gets what it deserves: the copy is
 * all that counts. */
static inline void mlacat_ring_copy(struct mlacat_ring_submission *copy, const struct mlacat_ring_submission *entry)
{
    uint64_t words[sizeof(*copy) / sizeof(uint64_t)];
    const uint64_t *from = (const uint64_t *)(const void *)entry;
    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        words[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    }
    __builtin_memcpy(copy, words, sizeof(words));
}

/* Entries before `head` are copied. Pairs with mlacat_ring_taken. */
static inline void mlacat_ring_take_up_to(struct mlacat_ring_daemon *daemon, uint32_t head)
{
    __atomic_store_n(&daemon->submit_head, head, __ATOMIC_RELEASE);
}

/* Completions before `tail` are written. Pairs with mlacat_ring_completed. */
static inline void mlacat_ring_complete(struct mlacat_ring_daemon *daemon, uint32_t tail)
{
    __atomic_store_n(&daemon->complete_tail, tail, __ATOMIC_RELEASE);
}

/* After mlacat_ring_complete: may the client sleep? Any answer does no harm. Pairs with mlacat_ring_wait. */
static inline int mlacat_ring_client_waits(const struct mlacat_ring_client *client)
{
    mlacat_ring_full_fence();
    return __atomic_load_n(&client->waiting, __ATOMIC_RELAXED) != 0;
}

/* What the client says it has read: any number at all. Pairs with mlacat_ring_completions_read. */
static inline uint32_t mlacat_ring_completions_read_up_to(const struct mlacat_ring_client *client)
{
    return __atomic_load_n(&client->complete_head, __ATOMIC_ACQUIRE);
}

/* What the client's work has reached: any number at all. Pairs with the client's store, or its GPU's write. */
static inline uint64_t mlacat_ring_ready(const struct mlacat_ring_client *client)
{
    return __atomic_load_n(&client->ready, __ATOMIC_ACQUIRE);
}

/* One call more that did not end OK. Before the fence passes it. Pairs with mlacat_ring_failed. */
static inline void mlacat_ring_count_failed(struct mlacat_ring_daemon *daemon)
{
    __atomic_store_n(&daemon->failed, daemon->failed + 1, __ATOMIC_RELEASE);
}

/* Pairs with mlacat_ring_looked. */
static inline void mlacat_ring_look(struct mlacat_ring_daemon *daemon, uint64_t now_ns)
{
    __atomic_store_n(&daemon->looked_ns, now_ns, __ATOMIC_RELAXED);
}

/* Before the worker sleeps, with 1; then it looks once more; after it with 0. Pairs with mlacat_ring_daemon_sleeps. */
static inline void mlacat_ring_sleep(struct mlacat_ring_daemon *daemon, uint32_t sleeping)
{
    __atomic_store_n(&daemon->sleeping, sleeping, __ATOMIC_RELAXED);
    mlacat_ring_full_fence();
}

#endif
