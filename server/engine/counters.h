/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is counted of calls.
 *
 * Owns:     the counts; plain values, zeroed is none.
 * Thread:   counters_add and _lapsed: the one thread that they belong to; the others: any, which sees each count as it
 *           was at some moment of late.
 * Lifetime: -
 * Errors:   none.
 */
#ifndef MLACAT_ENGINE_COUNTERS_H
#define MLACAT_ENGINE_COUNTERS_H

#include <stdint.h>

#include "call.h"
#include "histogram.h"
#include "op.h"
#include "status.h"

#define COUNTERS_STATUSES (MLACAT_UNAUTHENTICATED + 1)

/* Of one op on one device. */
struct op_counters {
    uint64_t calls;
    uint64_t bytes;
    struct histogram queue;
    struct histogram device;
};

/* Of calls that wait for a `ready` word. */
struct gate_counters {
    uint64_t calls;  /* that ended with OK */
    uint64_t armed;  /* of them, at most as many: the device started them by itself */
    uint64_t lapses; /* times that the device gave one back: its word had not come, or a launch of it failed */
};

/* Of the calls that come to one worker through rings. */
struct counters {
    uint64_t outcomes[COUNTERS_STATUSES];
    struct gate_counters gates;
    struct op_counters ops[OP_NUMBER_MAX + 1];
};

/* One call that has ended. */
void counters_add(struct counters *counters, const struct call *call);
/* One that was armed has lapsed. */
void counters_lapsed(struct counters *counters);

void counters_merge_op(struct op_counters *into, const struct counters *from, uint32_t op);
void counters_merge_gates(struct gate_counters *into, const struct counters *from);
uint64_t counters_outcome(const struct counters *counters, uint32_t status);

#endif
