/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A context of a device, current in a thread that may have none, or one of another device: which CUDA stream NULL (and
 * the other numbers that are no handles) means depends on that.
 *
 * Owns:     nothing; makes no context.
 * Thread:   any; a begin and its end are the same thread's.
 * Lifetime: a value.
 * Errors:   none: where no context is to be had, the driver's calls that follow say so.
 */
#ifndef MLACAT_CLIENT_CUDA_CURRENT_H
#define MLACAT_CLIENT_CUDA_CURRENT_H

#include <stdbool.h>

#include "cuda_driver.h"

#define CUDA_CURRENT_NO_DEVICE (-1)

/* The CUDA device of this process that the daemon names so; CUDA_CURRENT_NO_DEVICE: there is none. */
int cuda_current_find(const struct cuda_driver *cuda, const char *uuid);

/* Whether a context of the device is current. */
bool cuda_current_is(const struct cuda_driver *cuda, int device);

/* The device's primary context if that is in use, held until cuDevicePrimaryCtxRelease; else NULL: none is made.
 * Returns the driver's result. */
int cuda_current_hold_primary(const struct cuda_driver *cuda, int device, void **context);

struct cuda_current {
    const struct cuda_driver *cuda;
    int device;
    bool pushed;
};

/* Leaves a context of the device that is current as it is; else it is the primary one until the end, if that is in use.
 * CUDA_CURRENT_NO_DEVICE: does nothing. */
void cuda_current_begin(struct cuda_current *current, const struct cuda_driver *cuda, int device);
void cuda_current_end(const struct cuda_current *current);

#endif
