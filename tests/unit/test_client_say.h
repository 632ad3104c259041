/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the fake daemon says: one packet of the protocol each, sent blocking. That nobody listens any more is no error.
 *
 * Owns:     nothing; descriptors stay the caller's.
 * Thread:   any.
 * Lifetime: -
 * Errors:   abort the test program with a message.
 */
#ifndef TEST_CLIENT_SAY_H
#define TEST_CLIENT_SAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mlacat/mlacat.h"

#define SAY_BUFFER_GENERATION 5
#define SAY_STREAM_GENERATION 9
#define SAY_EVENT_GENERATION 13

struct say_status {
    enum mlacat_status code;
    enum mlacat_scope scope;
    const char *text;
};

void say_give_up(const char *what) __attribute__((noreturn));
void say_bytes(int fd, const void *bytes, size_t size, int passed);
void say_answer(int fd, uint64_t request_id, const struct say_status *said);
/* `cuda`: its first device, of kind cuda, is there. */
void say_welcome(int fd, uint64_t request_id, int pidfd, uint64_t features, bool cuda);
void say_registered(int fd, uint64_t request_id, uint32_t buffer);
void say_event(int fd, uint64_t request_id, uint32_t event);
struct say_ring {
    uint32_t index;
    uint64_t sequence;
    int doorbell;
};
/* `ring` NULL: the stream has none. */
void say_opened(int fd, uint64_t request_id, uint32_t stream, uint32_t calls, const struct say_ring *ring);
struct say_rings {
    uint32_t rings;
    uint32_t entries;
    uint64_t client_bytes;
    uint64_t daemon_bytes;
    uint64_t submissions_offset;
    uint64_t completions_offset;
    uint64_t messages_offset;
    int fds[2];
};
void say_rings(int fd, uint64_t request_id, const struct say_rings *rings);
struct say_memory {
    uint32_t leaving;
    uint64_t released;
    uint64_t closed;
};
void say_stats(int fd, uint64_t request_id, const struct say_memory *memory);
void say_completions(int fd, const uint64_t *call_ids, unsigned nr, const struct say_status *said);

#endif
