/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A CUDA driver in this process, as a table of functions: enough for the device's own parts, which take the table. It
 * watches the rules that the service lives by, and fails when told to. Time stands still unless somebody sleeps (the
 * test program wraps clock_now_ns and nanosleep).
 *
 * Owns:     its state, in static memory.
 * Thread:   one.
 * Lifetime: driver_reset before each test.
 * Errors:   what the service must never do fails the test.
 */
#ifndef MLACAT_TESTS_CUDA_DRIVER_H
#define MLACAT_TESTS_CUDA_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "cuda_device.h"

enum driver_call {
#define CUDA_CALL(need, name, abi, parameters) DRIVER_##name,
#include "cuda_api.def"
    DRIVER_CALLS_NR
};

#define DRIVER_ALLOCATIONS 4096
#define DRIVER_GRAIN ((size_t)2 << 20)
#define DRIVER_WAKE UINT64_C(0x200000000000)                /* where nobody reads */
#define DRIVER_MANY ((struct cuda_function *)(uintptr_t)77) /* the kernel for many calls */
#define DRIVER_SIGNALS 78                                   /* the first of the kernels that tell their end */
#define DRIVER_GATEDS 90                                    /* the first of those behind the gate */
#define DRIVER_GATE ((struct cuda_function *)(uintptr_t)100)
#define DRIVER_TAIL ((struct cuda_function *)(uintptr_t)101)

/* An allocation of another process. Its handle's first bytes are its index. */
struct driver_allocation {
    uint64_t base; /* in this process, once it is open */
    uint64_t size;
    int ordinal;
    uint32_t opened;
};

struct driver {
    struct cuda_api api;
    uint64_t now_ns;
    uint32_t calls[DRIVER_CALLS_NR];
    uint32_t total;     /* calls that can fail */
    uint32_t fail_at;   /* this one does; 0: none */
    uint32_t fail_more; /* and so many behind it */
    int fail_result;
    struct driver_allocation allocations[DRIVER_ALLOCATIONS];
    uint64_t last_close_ns;
    uint64_t shortest_close_ns; /* between two closes */
    uint32_t maps;              /* mapped now */
    uint32_t imports;           /* imported chunks not released */
    uint32_t reservations;
    int location; /* device of imported chunks */
    uint64_t block_id;
    uint32_t pages; /* registered now */
    uint32_t streams;
    uint32_t launches;
    uint32_t many_launches;   /* of them, for more than one call */
    uint32_t signal_launches; /* of them, that tell their end */
    bool fence_first;         /* these write the second of their words first: they promise no order */
    uint32_t gated_copies;    /* behind a gate, that the GPU has done */
    uint32_t allocated;       /* pieces of the GPU's own memory */
    uint32_t lapses;          /* launches whose word had not come when the GPU did them */
    uint32_t wakes;           /* writes to DRIVER_WAKE, which are not among the things to do */
    uint32_t launch_grid;     /* sum */
    int query_result;
};

extern struct driver driver;

void driver_reset(void);
/* A device over the driver with fences and segments but no kernels; driver_device_fini: nothing may be left open. */
void driver_device_init(struct device *device);
void driver_device_fini(struct device *device);

/* The handle of allocation `index`, which has `size` bytes. */
struct cuda_ipc_handle driver_allocate(uint32_t index, uint64_t size);

/* The GPU does the next `nr` things that it was told to, in that order; returns how many there were. */
uint32_t driver_work(uint32_t nr);
/* The same of one CUDA stream, whatever the others have; they are numbered from 0 as they were made. */
uint32_t driver_work_on(uint32_t index, uint32_t nr);
/* What the stream has left. */
uint32_t driver_things_on(uint32_t index);

#endif
