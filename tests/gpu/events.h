/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls that wait for a CUDA event of the client: over the bare protocol and through libmlacat.
 *
 * Owns:     its memory, events and streams, and a child that is to die.
 * Thread:   the main thread.
 * Lifetime: events_prepare before this process starts CUDA -> events_run.
 * Errors:   a failed check (require.h).
 */
#ifndef MLACAT_TESTS_EVENTS_H
#define MLACAT_TESTS_EVENTS_H

#include "raw.h"

/* Forks the client that dies. */
void events_prepare(const char *socket);
/* `raw` is the only client of the daemon at `socket`. */
void events_run(struct raw *raw, const char *socket, const char *uuid);

#endif
