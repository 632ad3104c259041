/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA driver of a client, as the library's table of functions: CUDA streams that do nothing but write and wait for
 * values, when a test lets them (the test program wraps cuda_driver).
 *
 * Owns:     its state, in static memory.
 * Thread:   any.
 * Lifetime: client_driver_reset before each test.
 * Errors:   what nobody may do aborts the test program with a message.
 */
#ifndef TEST_CLIENT_DRIVER_H
#define TEST_CLIENT_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

enum client_driver_call {
    CLIENT_DRIVER_NONE,
    CLIENT_DRIVER_CAPTURING,
    CLIENT_DRIVER_REGISTER,
    CLIENT_DRIVER_ADDRESS,
    CLIENT_DRIVER_BATCH,
    CLIENT_DRIVER_ALLOC
};

struct client_driver_op {
    bool waits;
    bool in_gpu; /* on a word in GPU memory, */
    uint64_t at; /* which is there, from the start of its allocation */
    uint64_t value;
};

struct client_driver_seen {
    unsigned registers; /* not unregistered: there is no such call */
    unsigned batches;
    int pushed;         /* contexts on the stack of the thread */
    int retains;        /* of the primary context of the daemon's device */
    int capture_mode;   /* of the thread: 0 global, as a program has it */
    unsigned in_strict; /* calls that would have broken a capture of the thread */
    unsigned allocations;
    unsigned last_nr; /* of the last batch, as far as they are shown */
    struct client_driver_op last[3];
};

void client_driver_reset(void);
/* CUDA stream `index`, of two; NULL is the first one on device 0 and the second on device 1. */
void *client_driver_stream(unsigned index);
/* From now on: the call fails; the stream is being captured; there is no driver. */
void client_driver_fail(enum client_driver_call call);
void client_driver_capture(unsigned index, bool capturing);
/* As a driver whose queue is full: a batch waits while its stream has so many operations. */
void client_driver_full(unsigned operations);
void client_driver_remove(void);
/* The CUDA streams are on the daemon's first device, "GPU-1", where there is memory, which holds no zeros. */
void client_driver_gpu(void);
/* The calling thread has a context of this device, 0 or 1, where the daemon's is 0; -1: it has none. */
void client_driver_current(int device);
/* The second CUDA stream has a context of its own. */
void client_driver_apart(void);
/* What was allocated goes, as with its context. */
void client_driver_end_memory(void);
/* What was allocated last. */
const void *client_driver_memory(void);
struct client_driver_seen client_driver_seen(void);
/* Does what a stream can do now; returns how many of its operations are left. */
unsigned client_driver_run(unsigned index);

#endif
