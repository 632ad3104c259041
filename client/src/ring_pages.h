/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mappings of the two pages that hold the rings of one connection (mlacat_abi.h).
 *
 * Owns:     the mappings.
 * Thread:   any; the counter is atomic.
 * Lifetime: counted. The client has one reference while the connection lasts, each ring on it one, and each thread that
 *           looks at a word without the ring's lock: so they outlive the connection until the last has looked away.
 * Errors:   ring_pages_map: RESOURCE_EXHAUSTED; INTERNAL, when the daemon's numbers make no sense; in `err`.
 */
#ifndef MLACAT_CLIENT_RING_PAGES_H
#define MLACAT_CLIENT_RING_PAGES_H

#include "message.h"
#include "mlacat_abi.h"

struct ring_pages {
    uint32_t references;
    unsigned char *client; /* C, for reading and writing */
    unsigned char *daemon; /* D, for reading */
    size_t client_bytes;
    size_t daemon_bytes;
    uint32_t rings;
    uint32_t entries; /* a power of two */
    uint32_t client_stride;
    uint32_t daemon_stride;
    uint64_t submissions_offset;
    uint64_t completions_offset;
    uint64_t messages_offset;
    size_t kept_bytes;           /* the start of C that stays mapped for ever, because CUDA knows it; 0: nothing does */
    struct order_watch *watched; /* stream_order.h; NULL: no stream-ordered call yet */
};

/* Maps what came with RingsOpened; the descriptors stay the caller's. A forked child does not get the mappings. */
enum mlacat_status ring_pages_map(const Mlacat__V1__RingsOpened *told, const struct wire_fds *fds,
                                  struct ring_pages **pages, struct error *err);
struct ring_pages *ring_pages_get(struct ring_pages *pages);
/* NULL is fine. */
void ring_pages_put(struct ring_pages *pages);

/* What belongs to ring `index`, which is less than `rings`. */
struct mlacat_ring_client *ring_pages_client(const struct ring_pages *pages, uint32_t index);
const struct mlacat_ring_daemon *ring_pages_daemon(const struct ring_pages *pages, uint32_t index);
struct mlacat_ring_submission *ring_pages_submissions(const struct ring_pages *pages, uint32_t index);
const struct mlacat_ring_completion *ring_pages_completions(const struct ring_pages *pages, uint32_t index);
/* A text of MLACAT_ABI_MESSAGE_BYTES for each completion. */
const char *ring_pages_messages(const struct ring_pages *pages, uint32_t index);

#endif
