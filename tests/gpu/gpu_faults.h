/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The children of gpu_faults: each is a process with a GPU of its own, to be started, counted and killed by the test.
 *
 * Owns:     nothing; struct faults is a shared mapping of the parent.
 * Thread:   the main thread of a child.
 * Lifetime: those that run go on until `stop` or a kill; all say when they are ready.
 * Errors:   a failed check (require.h) ends the child with status 1.
 */
#ifndef MLACAT_TESTS_GPU_FAULTS_H
#define MLACAT_TESTS_GPU_FAULTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "share.h"

#define FAULTS_DEVICES_MAX 8
#define FAULTS_GIVEN_BYTES ((size_t)1 << 30)

struct faults {
    int devices;
    char uuid[FAULTS_DEVICES_MAX][SHARE_UUID_BYTES];
    char reason[256]; /* why there is no device, or no service */
    char socket[128];
    _Atomic bool stop;
    _Atomic uint64_t raw_calls;     /* right ones */
    _Atomic uint64_t library_calls; /* likewise */
    _Atomic uint64_t unavailable;
    _Atomic uint64_t copies;
    _Atomic uint64_t pieces;           /* of memory that the hog has */
    _Atomic uint64_t taken_free_bytes; /* of the device, before the memory was freed; 0: not yet */
    _Atomic uint64_t freed_ns;         /* when it was; 0: not yet */
    _Atomic uint64_t seen_ms;          /* how much later another process saw it */
};

/* Fills in the devices. */
void faults_look(void *arg);
/* Small calls, each checked: over the bare protocol, and through libmlacat, which may lose its daemon. */
void faults_run_calls(void *arg);
void faults_run_library(void *arg);
/* Large calls: ready when the first has ended; 199 are left. */
void faults_queue_calls(void *arg);
/* Short work of its own on the GPU, and kernels of tens of milliseconds. */
void faults_run_copies(void *arg);
void faults_run_long_kernels(void *arg);
/* Ready when nothing is left; takes what others give back. */
void faults_take_all_memory(void *arg);
/* Registers what it can still get; a refusal must be one of resources. */
void faults_register_small(void *arg);
/* Waits for freed_ns, and then until the memory is there again. */
void faults_watch_memory(void *arg);
/* Frees memory that it has released, or that it has registered with libmlacat and not released; stays. */
void faults_free_released(void *arg);
void faults_free_registered(void *arg);
void faults_free_and_stay(struct faults *faults, struct share *large);
/* A call on each of two GPUs, and what must be refused; then with CUDA_VISIBLE_DEVICES=1. */
void faults_use_both(void *arg);
void faults_use_second_as_first(void *arg);

/* In the parent: one call by a new process has been done; false: `reason` says why not. */
bool faults_is_served(struct faults *faults);

#endif
