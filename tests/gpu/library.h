/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client library on GPU memory of this process. Apart from service.c, whose protocol headers and mlacat.h give the
 * same names to the same numbers.
 *
 * Owns:     nothing after it returns.
 * Thread:   any.
 * Lifetime: -
 * Errors:   a failed check (require.h).
 */
#ifndef MLACAT_TESTS_LIBRARY_H
#define MLACAT_TESTS_LIBRARY_H

#include <stddef.h>
#include <stdint.h>

/* Runs concat_mla_k (bf16, [n, h, p] and [n, 1, r]) on memory that starts at `out`, `nope` and `rope`. */
void library_run_k(const char *socket, uint64_t out, uint64_t nope, uint64_t rope, uint64_t n, uint64_t h, uint64_t p,
                   uint64_t r);
/* Registers memory, calls `change`, which frees it, and runs a call, which must be refused. */
void library_stale(const char *socket, uint64_t address, size_t size, void (*change)(void));
/* Registers the CUevent `event`, which has not come, and submits a call that waits for it, on memory at `address`; it
 * runs after `let_come` only. */
void library_waits(const char *socket, void *event, uint64_t address, void (*let_come)(void));
/* A CUevent that cannot be shared. */
void library_refuses_event(const char *socket, void *event);
/* Registers memory, calls `change`, which frees it, and waits until the daemon has no buffer any more. Returns the
 * milliseconds from the end of `change`. */
uint64_t library_watched(const char *socket, uint64_t address, size_t size, void (*change)(void));
/* Pointers that must be refused; `size`: of the allocation that begins at `address`. */
void library_refuses(const char *socket, uint64_t address, size_t size);

#endif
