/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Call slots: where a call lives from its submit until its result is taken. They are made with the stream, so that a
 * call allocates nothing.
 *
 *     FREE --slot_take--> FLYING --slot_complete--> ENDED --slot_take_result--> FREE
 *              FLYING --slot_end_all--> ENDED      FLYING --slot_give_back--> FREE (it was not sent)
 *
 * Owns:     the state of slots and the counts of calls.
 * Thread:   every function with the stream's lock held: the client's, or its ring's.
 * Lifetime: as the stream.
 * Errors:   none.
 */
#ifndef MLACAT_CLIENT_SLOT_H
#define MLACAT_CLIENT_SLOT_H

#include "client.h"

/* What the daemon and the caller know the call as. */
uint64_t slot_call_id(const struct slot *slot);
/* The slot of a call of the stream in flight or ended; NULL: the id names none, or an earlier use. */
struct slot *slot_find(struct mlacat_stream *stream, uint64_t id);

/* There must be one: stream->taken < stream->limit. */
struct slot *slot_take(struct mlacat_stream *stream, const struct mlacat_call *call);
void slot_give_back(struct slot *slot);

/* Takes in what the daemon said in a packet about a call. An id that names no call in flight is ignored. */
void slot_complete(struct mlacat_client *client, const struct wire_completion *completion);
/* The same with a call at hand that is in flight; true: the daemon refused it because it is about to go. */
bool slot_end(struct slot *slot, const struct wire_completion *completion);
/* It ended OK, that is all. */
void slot_end_ok(struct slot *slot);
/* The connection is gone: all calls in flight of the stream end with UNAVAILABLE. */
void slot_end_all(struct mlacat_stream *stream, const char *reason);
/* Moves an ended call's result out and makes its slot free. */
void slot_take_result(struct slot *slot, struct mlacat_result *result);

#endif
