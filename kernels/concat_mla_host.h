/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The concat-MLA kernel for CPUs.
 *
 * Owns:     nothing.
 * Thread:   any; works on the caller's thread alone and keeps no state.
 * Lifetime: -
 * Errors:   none; the arguments were proven good (server/model/op.h). Reading or writing unmapped memory raises SIGBUS
 *           or SIGSEGV in the caller.
 */
#ifndef CONCAT_MLA_HOST_H
#define CONCAT_MLA_HOST_H

#include "concat_mla_args.h"

/*
 * Copies the rows [begin, end) of the dim0 * dim1 rows of `args`, row r being (i, j) = (r / dim1, r % dim1).
 * `streaming` != 0 writes past the caches: for calls whose bytes would not stay in them anyway.
 */
void concat_mla_host(const struct concat_mla_args *args, unsigned long long begin, unsigned long long end,
                     int streaming);

/* Calls that move at least this many bytes gain by `streaming`: three quarters of a core's last-level cache. */
unsigned long long concat_mla_host_streaming_bytes(void);

#endif
