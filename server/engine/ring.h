/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's side of the shared-memory rings (proto/mlacat_abi.h, proto/mlacat_ring.h).
 *
 * Owns:     ring_pages: the two memfds and their mappings. ring: the daemon's private indices of one ring; what the
 *           daemon knows of a ring stands there and never in the client's page.
 * Thread:   ring_pages_*: the loop thread. ring_*: the worker of the ring's stream, once the stream is open.
 * Lifetime: ring_pages_new -> ring_init for each stream -> ring_pages_free, with no stream left that has a ring.
 * Errors:   with ring_pages_new. ring_take: says why the client broke the protocol.
 */
#ifndef MLACAT_ENGINE_RING_H
#define MLACAT_ENGINE_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mlacat_abi.h"
#include "status.h"

/* The rings of one session. */
struct ring_pages {
    int client_fd; /* C; -1 when it was sent */
    int daemon_fd; /* D; likewise */
    unsigned char *client;
    unsigned char *daemon;
    size_t client_bytes;
    size_t daemon_bytes;
    size_t client_words_bytes; /* the start of C and D that has the words which a device writes: whole pages */
    size_t daemon_words_bytes;
    uint64_t submissions_offset;
    uint64_t completions_offset;
    uint64_t messages_offset;
    uint32_t rings;
    uint32_t calls;   /* in flight on each, at most */
    uint32_t entries; /* of each: a power of two, with room for one entry more: a request to cancel */
};

/* C is sealed against any change of its size, D against writing by others too. */
/* RESOURCE_EXHAUSTED; UNIMPLEMENTED: the kernel is older than 5.1. */
enum mlacat_status ring_pages_new(uint32_t rings, uint32_t calls, struct ring_pages **pages, struct error *err);
/* They were sent. */
void ring_pages_close_fds(struct ring_pages *pages);
void ring_pages_free(struct ring_pages *pages);

struct ring {
    struct mlacat_ring_client *client; /* the client writes: see mlacat_ring.h */
    struct mlacat_ring_daemon *daemon;
    const struct mlacat_ring_submission *submissions;
    struct mlacat_ring_completion *completions;
    char (*messages)[MLACAT_ABI_MESSAGE_BYTES];
    uint32_t entries;
    uint32_t most;          /* entries that may be taken and not completed and read */
    uint32_t submit_head;   /* taken */
    uint32_t submit_seen;   /* that the client had written at the last look */
    uint32_t read_seen;     /* completions that it had read at the last look */
    uint32_t complete_tail; /* written */
    uint32_t published;     /* of them, told to the client */
    uint32_t in_flight;     /* taken and not completed */
    uint64_t sequence;      /* of the last entry taken */
};

/* Ring `index` of the pages, whose last entry so far had the number `sequence`; 0: it is new. Its numbers go on from
 * there, as mlacat_ring.h says. */
void ring_init(struct ring *ring, const struct ring_pages *pages, uint32_t index, uint64_t sequence);

enum ring_answer {
    RING_TAKEN, /* *entry is the next one, a copy */
    RING_EMPTY,
    RING_FULL,  /* the client has not read its completions: nothing is taken until it has */
    RING_BROKEN /* an index that no honest client writes */
};

/* Takes the next entry. The place is the client's again after ring_release_taken. */
enum ring_answer ring_take(struct ring *ring, struct mlacat_ring_submission *entry, struct error *err);
/* The entry that ring_take has just given is the next one again, whatever stands there then. */
void ring_put_back(struct ring *ring);
/* Tells the client which places are free; after a round of ring_take. */
void ring_release_taken(struct ring *ring);
/* True if ring_take would find something, or something wrong. Cheap: for the worker's look at all its rings. */
bool ring_has_more(const struct ring *ring);

/* An entry more that does not end OK. As soon as that is known: before a later one is launched, or the fence could pass
 * it unnoticed. */
void ring_count_failed(struct ring *ring);
/* Writes the completion of an entry that was taken. There is always room (RING_FULL). */
void ring_complete(struct ring *ring, uint64_t call_id, const struct error *outcome, uint64_t queue_ns,
                   uint64_t device_ns);
/* Shows the client all completions written so far and wakes it if it sleeps; after a round of ring_complete. */
void ring_publish(struct ring *ring);

#endif
