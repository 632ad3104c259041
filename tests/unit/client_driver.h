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
    CLIENT_DRIVER_WRITE,
    CLIENT_DRIVER_WAIT
};

struct client_driver_seen {
    unsigned registers; /* not unregistered: there is no such call */
    unsigned writes;
    unsigned waits;
    int pushed;         /* contexts on the stack of the thread */
    int capture_mode;   /* of the thread: 0 global, as a program has it */
    unsigned in_strict; /* calls that would have broken a capture of the thread */
};

void client_driver_reset(void);
/* CUDA stream `index`, of two. */
void *client_driver_stream(unsigned index);
/* From now on: the call fails; the stream is being captured; there is no driver. */
void client_driver_fail(enum client_driver_call call);
void client_driver_capture(unsigned index, bool capturing);
/* As a driver whose queue is full: a write waits while its stream has so many operations. */
void client_driver_full(unsigned operations);
void client_driver_remove(void);
struct client_driver_seen client_driver_seen(void);
/* Does what a stream can do now; returns how many of its operations are left. */
unsigned client_driver_run(unsigned index);

#endif
