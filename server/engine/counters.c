/* SPDX-License-Identifier: Apache-2.0 */
#include "counters.h"

static void add(uint64_t *count, uint64_t more)
{
    __atomic_store_n(count, *count + more, __ATOMIC_RELAXED);
}

void counters_add(struct counters *counters, const struct call *call)
{
    add(&counters->outcomes[call->error.code], 1);
    if (call->error.code != MLACAT_OK) {
        return;
    }
    if (call->gated) {
        add(&counters->gates.calls, 1);
    }
    if (call->armed_ran) { /* Pairs with counters_merge_gates: who sees it sees the count above too. */
        __atomic_store_n(&counters->gates.armed, counters->gates.armed + 1, __ATOMIC_RELEASE);
    }
    struct op_counters *op = &counters->ops[call->plan.op];
    add(&op->calls, 1);
    add(&op->bytes, call->plan.bytes);
    histogram_add_shared(&op->queue, call->launched_ns - call->received_ns);
    histogram_add_shared(&op->device, call->ended_ns - call->launched_ns);
}

void counters_lapsed(struct counters *counters)
{
    add(&counters->gates.lapses, 1);
}

void counters_merge_op(struct op_counters *into, const struct counters *from, uint32_t op)
{
    into->calls += __atomic_load_n(&from->ops[op].calls, __ATOMIC_RELAXED);
    into->bytes += __atomic_load_n(&from->ops[op].bytes, __ATOMIC_RELAXED);
    histogram_merge_shared(&into->queue, &from->ops[op].queue);
    histogram_merge_shared(&into->device, &from->ops[op].device);
}

void counters_merge_gates(struct gate_counters *into, const struct counters *from)
{
    into->armed += __atomic_load_n(&from->gates.armed, __ATOMIC_ACQUIRE);
    into->calls += __atomic_load_n(&from->gates.calls, __ATOMIC_RELAXED);
    into->lapses += __atomic_load_n(&from->gates.lapses, __ATOMIC_RELAXED);
}

uint64_t counters_outcome(const struct counters *counters, uint32_t status)
{
    return __atomic_load_n(&counters->outcomes[status], __ATOMIC_RELAXED);
}
