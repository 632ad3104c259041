/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream with a ring in an engine of one worker, over the device of paper_device.h. The test plays the client and the
 * loop.
 *
 * Owns:     the objects below.
 * Thread:   the test's, which is the loop thread; `naps` and `long_naps` any.
 * Lifetime: scene_open -> scene_close, around each test.
 * Errors:   fail the test. One that waits in vain is ended by the alarm that its main() sets.
 */
#ifndef MLACAT_TESTS_RING_SCENE_H
#define MLACAT_TESTS_RING_SCENE_H

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "buffers.h"
#include "engine.h"
#include "mlacat_ring.h"
#include "rings.h"
#include "stream.h"

#define ENTRIES 64

/* --- the loop --- */

extern struct engine engine;
extern struct control_lane lane;
extern struct rings *rings;
extern struct stream *stream; /* NULL: the test has closed it */
extern struct buffer *buffer; /* of all operands; NULL: the test has dropped it */
extern int gone;
extern int imported;
extern int unpublished;
extern int broken_nr;
extern struct error broken;

/* Of the worker (needs WRAP doorbell_nap). */
extern _Atomic uint32_t naps;
extern _Atomic bool long_naps; /* a nap ends only by a ring */

/* What the engine starts with besides: one worker, which soon sleeps. Kept from test to test. */
extern struct engine_options scene_options;

/* `ops`: paper_ops, or a copy with less. */
void scene_open(const struct device_ops *ops);
void scene_close(void);

/* A buffer that calls can name. */
struct buffer *publish(void);

#define TURN_UNTIL(condition) \
    while (!(condition)) {    \
        engine_take(&engine); \
        sched_yield();        \
    }

/* Until the stream, which the test has closed, has gone. */
void await_gone(void);

/* --- the client --- */

extern struct mlacat_ring_client *client;
extern const struct mlacat_ring_daemon *daemon_page;
extern uint32_t tail;
extern uint32_t head;

/* A call of a few bytes, at the end of the ring; not shown to the daemon yet. */
struct mlacat_ring_submission *write_entry(uint64_t id, uint32_t flags);
void submit(void);
/* If the worker sleeps; a part of submit. */
void ring_doorbell(void);
/* Calls that wait for 1 in the `ready` word, if `flags` say so. */
void send_calls(uint64_t first_id, uint32_t nr, uint32_t flags);

/* The next completion, which is of call `id`; then its status. */
struct mlacat_ring_completion wait_for_completion(uint64_t id);
uint16_t wait_for(uint64_t id);

#endif
