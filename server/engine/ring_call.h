/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From an entry of a ring, already copied, to a proven call that has its buffers.
 *
 * Owns:     nothing; a bound call carries its pins.
 * Thread:   the stream's worker.
 * Lifetime: ring_call_bind -> ring_call_unbind.
 * Errors:   ring_call_check: INVALID_ARGUMENT with scope SESSION, what no honest client writes. ring_call_bind: what
 *           the message path says to such a call.
 */
#ifndef MLACAT_ENGINE_RING_CALL_H
#define MLACAT_ENGINE_RING_CALL_H

#include <stdbool.h>
#include <stdint.h>

#include "call.h"
#include "mlacat_abi.h"
#include "status.h"

struct worker;

enum mlacat_status ring_call_check(const struct mlacat_ring_submission *entry, struct error *err);

/* Fills what an entry says of a call; `now_ns`: when it was taken. */
void ring_call_read(const struct mlacat_ring_submission *entry, uint64_t now_ns, struct call *call);

/* Pins the buffers and proves the call. To be unbound after an error too. */
enum mlacat_status ring_call_bind(struct worker *worker, const struct mlacat_ring_submission *entry, struct call *call,
                                  struct error *err);
void ring_call_unbind(struct worker *worker, struct call *call);

#endif
