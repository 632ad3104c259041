/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls in the order of a CUDA stream of the caller. Under the ring's lock the call's entry is published, and that
 * stream is told to write the entry's sequence number into a word of its GPU's memory (ready_word.h) and into `ready`
 * of page C, and to wait until `done` reaches that number.
 *
 * Once page C is known to CUDA a thread watches the connection: the program's own threads may never come back to the
 * library while their GPU waits. When the daemon has exited (its kernels may still write before that) the thread lets
 * the CUDA streams go on, by plain stores into `done`.
 *
 * Owns:     the registration of page C, and the thread.
 * Thread:   each function says.
 * Lifetime: a watch lives from the first stream-ordered call of a connection until the first of a later one, or until
 *           mlacat_disconnect. What CUDA knows
 *           stays mapped and registered for the life of the process: cuMemHostUnregister would wait for all that runs
 *           on the GPU, and hold up every launch of the process meanwhile.
 * Errors:   in `err`.
 */
#ifndef MLACAT_CLIENT_STREAM_ORDER_H
#define MLACAT_CLIENT_STREAM_ORDER_H

#include "cuda_driver.h"
#include "ring.h"

struct order_watch {
    SLIST_ENTRY(order_watch) link; /* client->watches */
    struct mlacat_client *client;
    struct ring_pages *pages;
    uint64_t epoch;
    uint64_t *awaited; /* by ring: the last number that a CUDA stream was told to write and to wait for; atomic */
    int socket;        /* duplicates, so that they stay open: of the connection's, */
    int pidfd;         /* and of the daemon's pidfd; -1: none */
    bool over;         /* the thread has nothing more to do, and no ring has the pages */
    pthread_t thread;
};

/* Makes page C of the ring's connection known to CUDA, in the context of `cu_stream`, and starts the watch. Without
 * locks. OK: it is so, or the connection has ended meanwhile. */
enum mlacat_status order_watch_start(struct mlacat_stream *stream, const struct cuda_driver *cuda, void *cu_stream,
                                     struct error *err);

/* Ends the threads; the connection has ended for good. With the client's lock, which it lets go of. */
void stream_order_stop(struct mlacat_client *client);
/* In a forked child: gives back the descriptors; without locks. Held on to, the connection would outlive the parent. */
void stream_order_abandon(struct mlacat_client *client);

#endif
