/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory for a call, filled from a seed, and the proof that the call wrote what it must and nothing else: every byte of
 * the memory is compared, gaps included. On the device under test, whichever that is (gpu_memory.h).
 *
 * Owns:     the memfd and its mapping, and the GPU's memory if there is some.
 * Thread:   one thread for a trial.
 * Lifetime: trial_make or slow_make -> trial_free.
 * Errors:   a failed check (require.h).
 */
#ifndef MLACAT_TESTS_TRIAL_H
#define MLACAT_TESTS_TRIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "raw.h"

struct trial_shape {
    uint32_t op;
    uint32_t dtype;
    uint64_t d0;
    uint64_t d1;
    uint64_t w1; /* widths of the first and the second input */
    uint64_t w2;
    bool strided; /* as callers have it: inputs that are parts of wider rows or head-major, an output with gaps */
    uint32_t seed;
};

struct trial {
    int fd;
    size_t bytes;
    uint8_t *memory;   /* on a GPU: the CPU's copy, which trial_refill sends and trial_right fetches */
    uint8_t *expected; /* what the memory must be after the call */
    uint32_t op;
    uint32_t dtype;
    struct operand operand[3]; /* all in the one memfd; the buffer is filled in by trial_call */
};

/* A memfd that a host device takes: of `bytes`, sealed against shrinking. "mlacat-test" is its name in /proc. When the
 * device under test is a GPU there is memory of the GPU with it; its CPU's copy is what can be mapped here. */
#define MEMFD_NAME "mlacat-test"
int memfd_make(size_t bytes, unsigned seals);
/* True if the daemon has so many of them mapped. What a GPU has mapped is in no file of /proc: always true. */
bool memfds_mapped(pid_t server, uint32_t nr);
/* True if the daemon has so many descriptors open. A driver opens and closes some as it likes: on a GPU always true. */
bool descriptors_open(pid_t server, uint32_t nr);

void trial_make(struct trial *trial, const struct trial_shape *shape);
void trial_free(struct trial *trial);
/* The call `id` on the trial's memory, which is registered as `buffer`. */
struct call trial_call(const struct trial *trial, struct ref buffer, uint64_t id);
/* Fills inputs and output anew. */
void trial_refill(struct trial *trial, uint32_t seed);
/* True if the call has been done, and nothing but the call. */
bool trial_right(const struct trial *trial);
/* True if nothing has been written since the fill. */
bool trial_untouched(const struct trial *trial);

/* A small trial of the first op. */
extern const struct trial_shape small_shape;

/* A call that keeps a worker busy for tens of milliseconds: many short rows. It is not compared. */
void slow_make(struct trial *trial);
/* Submits the slow call as `id` on an idle stream; when this returns the call runs, or has run by now. */
void slow_begin(struct raw *raw, struct ref stream, const struct trial *slow, struct ref buffer, uint64_t id);
/* Keeps an idle stream busy until slow_release, also if this process stands still for a second meanwhile: the slow call
 * again and again, as SLOW_HOLD_ID and the ids behind it. The first one runs. */
#define SLOW_HOLD_ID 1000000
#define SLOW_HOLD_CALLS 100
void slow_hold(struct raw *raw, struct ref stream, const struct trial *slow, struct ref buffer);
/* Withdraws those that still wait and takes the completions of all; those of other calls are kept. */
void slow_release(struct raw *raw, struct ref stream);

/* A call on one row of bytes: [out, out + w1 + w2) = [first, first + w1) then [second, second + w2). */
struct call row_call(uint64_t id, struct ref buffer, uint64_t out, uint64_t first, uint64_t w1, uint64_t second,
                     uint64_t w2);

#endif
