/* SPDX-License-Identifier: Apache-2.0 */
#include "arming.h"

#include "min_max.h"

/* A GPU is not asked to wait for less. */
#define ARM_LEAST_NS 5000
/* How far apart two waits may be: a part of them, and what a GPU's clocks and queues do anyway. */
#define SPREAD_PARTS 64
#define SPREAD_LEAST_NS 50000
/* So much sooner a call is armed: what its launches take, of which a large one has three, and until a GPU that is full
 * has a place for the first. */
#define LEAD_NS 40000
/* When one time has come so often in a row, nothing is armed for a shorter one: a GPU that is full keeps an armed
 * kernel waiting for its place, and it would be in the way of the next one. */
#define STEADY_NR 3
/* A thread that naps wakes so much later than it wanted to. */
#define WAKE_NS 60000
/* A wait that is not over when it was expected to be is looked at for this part of it more. */
#define LOOK_ON_PARTS 8
#define LOOK_ON_LEAST_NS 50000
#define LOOK_ON_MOST_NS 2000000

#define PAUSE_LEAST_NS 50000
#define PAUSE_MOST_NS 1000000
#define PAUSE_PARTS 16

#define LAPSES_FREE 2
#define SKIP_MOST_LOG2 6

static uint64_t before(uint64_t at_ns, uint64_t by_ns, uint64_t least_ns)
{
    return at_ns - least_ns > by_ns ? at_ns - by_ns : least_ns;
}

static uint64_t spread_of(uint64_t gap_ns)
{
    return min_u64(SPREAD_LEAST_NS + gap_ns / SPREAD_PARTS, (ARMING_MOST_NS - LEAD_NS) / 2);
}

static struct arming_plan plan_around(uint64_t gap_ns, uint64_t since_ns)
{
    uint64_t at_ns = since_ns + gap_ns;
    uint64_t spread_ns = spread_of(gap_ns);
    struct arming_plan plan;
    plan.arm_ns = before(at_ns, spread_ns + LEAD_NS, since_ns);
    plan.late_ns = at_ns + spread_ns;
    plan.look_ns = before(plan.arm_ns, WAKE_NS, since_ns);
    plan.rest_ns = at_ns + min_u64(max_u64(LOOK_ON_LEAST_NS, gap_ns / LOOK_ON_PARTS), LOOK_ON_MOST_NS);
    return plan;
}

/* A call that lapses for the first when it is due for the second is late by far more than one that is not armed: what
 * it leaves on the GPU has to go first. */
static struct arming_plan plan_for_both(const struct arming_plan *first, const struct arming_plan *second)
{
    struct arming_plan plan = *second;
    plan.look_ns = first->look_ns;
    plan.arm_ns = before(plan.late_ns, ARMING_MOST_NS, first->arm_ns);
    return plan;
}

struct arming_plan arming_plan(const struct arming *arming, uint64_t since_ns, uint64_t now_ns)
{
    struct arming_plan first = plan_around(min_u64(arming->gap_ns[0], arming->gap_ns[1]), since_ns);
    struct arming_plan second = plan_around(max_u64(arming->gap_ns[0], arming->gap_ns[1]), since_ns);
    bool longer_is_steady = arming->same_nr >= STEADY_NR && arming->gap_ns[0] > arming->gap_ns[1];
    if (longer_is_steady) {
        first.arm_ns = min_u64(first.late_ns, second.arm_ns);
    }
    if (first.late_ns > second.arm_ns) {
        return plan_for_both(&first, &second);
    }
    return now_ns < first.late_ns ? first : second;
}

bool arming_is_due(const struct arming_plan *plan, uint64_t armed_ns, uint64_t now_ns)
{
    return plan->arm_ns > armed_ns && now_ns >= plan->arm_ns && now_ns + ARM_LEAST_NS <= plan->late_ns;
}

uint64_t arming_pause_ns(const struct arming_plan *plan, uint64_t since_ns, uint64_t now_ns)
{
    if (now_ns >= plan->look_ns && now_ns < plan->rest_ns) {
        return 0;
    }
    uint64_t pause_ns = (now_ns - since_ns) / PAUSE_PARTS;
    pause_ns = min_u64(max_u64(pause_ns, PAUSE_LEAST_NS), PAUSE_MOST_NS);
    return now_ns < plan->look_ns ? min_u64(pause_ns, plan->look_ns - now_ns) : pause_ns;
}

void arming_ready(struct arming *arming, uint64_t waited_ns)
{
    uint64_t last_ns = arming->gap_ns[0];
    uint64_t other_ns = max_u64(last_ns, waited_ns) - min_u64(last_ns, waited_ns);
    if (other_ns > spread_of(last_ns)) {
        arming->gap_ns[1] = last_ns;
        arming->same_nr = 0;
    } else if (arming->same_nr < STEADY_NR) {
        arming->same_nr++;
    }
    arming->gap_ns[0] = waited_ns;
}

bool arming_admit(struct arming *arming)
{
    if (arming->skip > 0) {
        arming->skip--;
        return false;
    }
    return true;
}

void arming_lapsed(struct arming *arming)
{
    arming->lapses++;
    if (arming->lapses > LAPSES_FREE) {
        uint32_t log2 = arming->lapses - LAPSES_FREE;
        arming->skip = 1u << (log2 < SKIP_MOST_LOG2 ? log2 : SKIP_MOST_LOG2);
    }
}

void arming_ran(struct arming *arming)
{
    arming->lapses = 0;
}
