/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stream of ring_scene.h over a device that takes armed calls, with a clock that stands still, and the steps that
 * tests of such calls are made of.
 *
 * Owns:     the clock (needs WRAP clock_now_ns).
 * Thread:   the test's; `frozen_ns` any.
 * Lifetime: one of the setups -> arm_teardown, around each test.
 * Errors:   fail the test.
 */
#ifndef MLACAT_TESTS_ARM_SCENE_H
#define MLACAT_TESTS_ARM_SCENE_H

#include <stdatomic.h>
#include <stdint.h>

#include "ring_scene.h"

#define US UINT64_C(1000)
#define MS (1000 * US)
#define FIRST_NS (50 * US) /* that the device waits for the first call */

extern _Atomic uint64_t frozen_ns; /* 0: what the clock says */

/* For cmocka. With a clock that runs; and over a device that has no `arm`. */
int arm_setup(void **state);
int arm_setup_running(void **state);
int arm_setup_without(void **state);
int arm_teardown(void **state);

/* Of the worker: it has them as long as it has calls. */
uint64_t rounds(void);
/* Whatever the worker does on what it can see now, it has done. It has calls. */
void settle(void);
/* Time passes, and the worker, which has calls, has seen it: what comes afterwards is later. */
void pass(uint64_t ns);

void send_gated(uint64_t id, uint64_t ready, uint32_t more_flags);
void send_cancel(uint64_t id, uint64_t of_id);
/* The client's GPU comes to the call. */
void say_ready(uint64_t value);

/* Call 1 waits for 1, and the device has it. */
void arm_one(void);
/* The same, with `nr` calls behind it that the worker has. */
void arm_one_before(uint32_t nr);
/* The armed call lapses at the end of its time, and the worker knows. */
void lapse(void);

/* Calls that have ended so. */
uint64_t outcomes(enum mlacat_status status);
/* The worker has counted so many that ended, were armed and ran, and lapsed. */
void assert_gates(uint64_t calls, uint64_t armed, uint64_t lapses);

#endif
