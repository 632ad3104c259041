/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver's results as statuses of the service: the one place where they are mapped and logged.
 *
 * Owns:     the table cuda_error.def.
 * Thread:   any.
 * Lifetime: static.
 * Errors:   -
 */
#ifndef MLACAT_DEVICE_CUDA_ERROR_H
#define MLACAT_DEVICE_CUDA_ERROR_H

#include <stdbool.h>

#include "status.h"

/*
 * Logs the raw result of the driver's `call` and fills `err`: "<format>: cuX: OUT_OF_MEMORY (2): what to do". A result
 * that ends the context gets scope DEVICE. Returns the code.
 */
__attribute__((format(printf, 4, 5))) enum mlacat_status cuda_error_set(struct error *err, int result, const char *call,
                                                                        const char *format, ...);

/* The context is unusable from then on. */
bool cuda_error_is_lost(int result);

#endif
