/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs the host kernel on memory that may vanish: a page that cannot be given (memory error, file cut, no space) raises
 * SIGBUS, which here ends the copy and not the process. Private to the device layer and its tests.
 *
 * Owns:     the process's SIGBUS handler, from the first host_guard_install on. A SIGBUS that comes from anywhere but a
 *           guarded copy of the same thread gets the default action: the process dies as if there were no handler.
 * Thread:   any; the guard is per thread.
 * Lifetime: -
 * Errors:   host_guard_install: INTERNAL, when the kernel refuses the handler.
 */
#ifndef MLACAT_DEVICE_HOST_GUARD_H
#define MLACAT_DEVICE_HOST_GUARD_H

#include <stdbool.h>
#include <stdint.h>

#include "concat_mla_args.h"
#include "status.h"

enum mlacat_status host_guard_install(struct error *err);

/* concat_mla_host; false: a page was missing, the output's content is undefined, *fault is the address in question. */
bool host_guard_copy(const struct concat_mla_args *args, uint64_t begin, uint64_t end, bool streaming,
                     uintptr_t *fault);

#endif
