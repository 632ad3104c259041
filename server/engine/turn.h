/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One stream's turn in a worker's round: what is ready in its queue goes to the device, as many calls at a time as it
 * takes, and what has ended goes back to where it came from, the loop or a ring.
 *
 * Owns:     nothing.
 * Thread:   the stream's worker.
 * Lifetime: -
 * Errors:   a call's is its own; a device that is lost fails all calls of the stream, now and later.
 */
#ifndef MLACAT_ENGINE_TURN_H
#define MLACAT_ENGINE_TURN_H

#include <stdbool.h>

struct stream;
struct worker;

/* Of a stream on worker->active, which it leaves when nothing is left. `withdrawn`: there may be calls in its queue
 * that the loop has withdrawn. Returns true if the device has calls of it; else it may be gone when this returns. */
bool turn_take(struct worker *worker, struct stream *stream, bool withdrawn);

#endif
