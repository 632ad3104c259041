/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the CUDA device share. Private to the device layer and its tests.
 *
 * Owns:     the device: its primary context, kernels, fence words and the memory that is open on it.
 * Thread:   all fields are constant while streams exist, but `segments`, `pages`, `fences`, `channels` and what is said
 *           to be the control thread's (that thread), and the atomic ones (any).
 * Lifetime: device_cuda.c: open -> close.
 * Errors:   -
 */
#ifndef MLACAT_DEVICE_CUDA_DEVICE_H
#define MLACAT_DEVICE_CUDA_DEVICE_H

#include <stdatomic.h>
#include <stdint.h>

#include "cuda_api.h"
#include "cuda_channel.h"
#include "cuda_error.h"
#include "cuda_fence.h"
#include "cuda_kernels.h"
#include "cuda_pages.h"
#include "cuda_segments.h"
#include "device.h"

struct device {
    const struct cuda_api *cuda;
    int ordinal;
    struct cuda_context *context;
    uint64_t context_ns; /* that the driver took to make it */
    char uuid[DEVICE_UUID_BYTES];
    uint64_t launch_bytes; /* read and written in at most 1 ms with accesses of 16 bytes */
    bool vmm;              /* takes chunks by descriptor */
    cuda_address wake;     /* a word of the GPU's own that is written to be written (cuda_flights.h) */
    bool mps;              /* kernels of other processes run beside ours */
    struct cuda_kernels kernels;
    struct cuda_channels channels;
    struct cuda_fences fences;
    struct cuda_segments segments;
    struct cuda_pages pages;
    uint64_t checked_ns;  /* control thread: whether the context is usable */
    bool closed_pages;    /* control thread: the last that was closed were pages, not memory */
    _Atomic bool stirred; /* something was launched since the control thread looked last */
    _Atomic bool lost;    /* a result said that the context is unusable */
};

/* What another GPU of this process is called, for messages. */
void cuda_device_name(const struct device *device, int ordinal, char uuid[DEVICE_UUID_BYTES]);

/* Makes the device's context the calling thread's: what each call of the driver needs. Cheap when it is already. */
void cuda_device_enter(const struct device *device);

/* Control thread: closes at most one thing that is due, memory and pages in turns. Returns in how many nanoseconds it
 * wants to be called again; UINT64_MAX: when something was put or released. */
uint64_t cuda_device_close_due(struct device *device);

/* The driver's `call` failed: fills `err` as cuda_error_set does, and marks the device when it is lost. */
__attribute__((format(printf, 5, 6))) enum mlacat_status
cuda_device_fail(struct device *device, struct error *err, int result, const char *call, const char *format, ...);

#endif
