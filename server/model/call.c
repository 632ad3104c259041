/* SPDX-License-Identifier: Apache-2.0 */
#include "call.h"

#include <assert.h>

void call_set_state(struct call *call, enum call_state state)
{
    static const unsigned arrows[] = {
        [CALL_FREE] = 1u << CALL_BOUND,
        [CALL_BOUND] = 1u << CALL_SUBMITTED | 1u << CALL_DONE | 1u << CALL_FREE,
        [CALL_SUBMITTED] = 1u << CALL_DONE,
        [CALL_DONE] = 1u << CALL_FREE,
    };
    assert(arrows[call->state] & 1u << state);
    call->state = state;
}

/* Relaxed is enough on both sides of `claim`: the mailboxes order everything else that the two threads share. */
static bool claim_from_waiting(struct call *call, enum call_claim claim)
{
    uint32_t expected = CALL_WAITING;
    return atomic_compare_exchange_strong_explicit(&call->claim, &expected, claim, memory_order_relaxed,
                                                   memory_order_relaxed);
}

bool call_take(struct call *call)
{
    return claim_from_waiting(call, CALL_TAKEN);
}

bool call_withdraw(struct call *call, enum call_claim why)
{
    return claim_from_waiting(call, why);
}

void call_withdrawn_error(enum call_claim why, struct error *error)
{
    switch (why) {
    case CALL_WITHDRAWN_CANCEL:
        error_set(error, MLACAT_CANCELLED, "cancelled by the client before the launch; nothing was written");
        break;
    case CALL_WITHDRAWN_DEADLINE:
        error_set(
            error, MLACAT_DEADLINE_EXCEEDED,
            "the deadline passed before the launch; nothing was written: set a later deadline_us, or send less work "
            "ahead of it on the same stream");
        break;
    default:
        error_set(error, MLACAT_ABORTED, "the connection ended before the launch; nothing was written");
        break;
    }
}
