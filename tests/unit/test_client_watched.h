/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the suites about memory that is freed begin with: a scene (test_client_scene.h) whose first device is a GPU,
 * over a driver of the test.
 *
 * Owns:     the driver, in static memory.
 * Thread:   that of the test; the driver also answers the library's.
 * Lifetime: watched_setup, or watched_setup_ring -> watched_teardown, of cmocka.
 * Errors:   a failed check.
 */
#ifndef TEST_CLIENT_WATCHED_H
#define TEST_CLIENT_WATCHED_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "test_client_scene.h"

#define DEVICE "GPU-abababab-abab-abab-abab-abababababab"
#define PIECES 400
#define PIECE_BYTES ((size_t)2 << 20)
#define BASE UINT64_C(0x7f0000000000)
#define AT(piece) ((void *)(uintptr_t)(BASE + (piece)*PIECE_BYTES))

/* Chunks of GPU memory side by side, each an allocation of its own. */
struct watched_gpu {
    _Atomic uint64_t id[PIECES];     /* BUFFER_ID; 0: nothing is there */
    _Atomic int result;              /* of every question; not 0: it fails */
    _Atomic unsigned asked;          /* about BUFFER_ID */
    _Atomic unsigned unrelaxed;      /* asked in a thread whose capture mode was not relaxed */
    _Atomic bool legacy;             /* cudaMalloc, not cuMemCreate */
    _Atomic bool exhausted;          /* no thread can be made */
    _Atomic int64_t longest_wait_ns; /* of the other threads than the test's, with a limit */
    pthread_mutex_t gate;            /* who holds it stops questions of other threads than the test's */
    pthread_t test;
};
extern struct watched_gpu gpu;

int watched_setup(void **state);
/* The stream has a ring. */
int watched_setup_ring(void **state);
int watched_teardown(void **state);

struct mlacat_buffer *register_at(struct scene *f, void *at, size_t bytes);
/* The memory is freed, and other memory is there at once. */
void reuse(unsigned piece);
void expect_usable(struct scene *f, struct mlacat_buffer *buffer);
void expect_broken(struct scene *f, struct mlacat_buffer *buffer);
/* Until the library's thread has nothing to watch. */
void await_idle(struct scene *f);

#endif
