/* SPDX-License-Identifier: Apache-2.0 */
#include "isolation_verdict.h"

static uint64_t min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t length(const struct isolation_call *call)
{
    return call->end_ns - call->begin_ns;
}

void isolation_keep_call(struct isolation_longest *kept, const struct isolation_call *call)
{
    if (kept->nr == ISOLATION_KEPT && length(call) <= length(&kept->call[ISOLATION_KEPT - 1])) {
        return;
    }
    int at = kept->nr < ISOLATION_KEPT ? kept->nr++ : ISOLATION_KEPT - 1;
    for (; at > 0 && length(&kept->call[at - 1]) < length(call); at--) {
        kept->call[at] = kept->call[at - 1];
    }
    kept->call[at] = *call;
}

void isolation_keep_late(struct isolation_lates *lates, const struct isolation_late *late)
{
    if (lates->nr == ISOLATION_LATES_MAX) {
        lates->lost++;
        return;
    }
    lates->late[lates->nr++] = *late;
}

uint64_t isolation_ours_ns(const struct isolation_late *late, int cpus)
{
    uint64_t late_ns = late->ran_ns - late->due_ns;
    if (late->throttled) {
        return late_ns;
    }
    uint64_t ours_ns = min(late->waited_ns, late_ns - min(late->holders.others_ns, late_ns));
    if (late->use_known) {
        ours_ns = min(ours_ns, (late->use.daemon_ns + late->use.test_ns) / (uint64_t)cpus);
    }
    return ours_ns;
}

/* One thread was late several times in a long span, at different times: that adds up. */
static struct isolation_held held_up_by(const struct isolation_lates *lates, uint64_t begin_ns, uint64_t end_ns)
{
    struct isolation_held held = {.cpus = lates->cpus};
    uint64_t longest_ns = 0;
    for (int i = 0; i < lates->nr; i++) {
        const struct isolation_late *late = &lates->late[i];
        if (late->due_ns >= end_ns || late->ran_ns <= begin_ns) {
            continue;
        }
        uint64_t from_ns = late->due_ns > begin_ns ? late->due_ns : begin_ns;
        uint64_t in_span_ns = min(late->ran_ns, end_ns) - from_ns;
        uint64_t ours_ns = isolation_ours_ns(late, lates->cpus);
        held.late_ns += in_span_ns;
        held.machine_ns += in_span_ns > ours_ns ? in_span_ns - ours_ns : 0;
        if (in_span_ns > longest_ns) {
            longest_ns = in_span_ns;
            held.worst = late;
        }
    }
    return held;
}

struct isolation_held isolation_held_up(const struct isolation_lates *const *lates, int lates_nr, uint64_t begin_ns,
                                        uint64_t end_ns)
{
    struct isolation_held most = {0};
    for (int i = 0; i < lates_nr; i++) {
        struct isolation_held one = held_up_by(lates[i], begin_ns, end_ns);
        uint64_t late_ns = one.late_ns > most.late_ns ? one.late_ns : most.late_ns;
        if (one.machine_ns > most.machine_ns || (one.machine_ns == most.machine_ns && one.late_ns > most.late_ns)) {
            most = one;
        }
        most.late_ns = late_ns;
    }
    return most;
}

bool isolation_excused(const struct isolation_call *call, const struct isolation_lates *const *lates, int lates_nr)
{
    struct isolation_held held = isolation_held_up(lates, lates_nr, call->begin_ns, call->end_ns);
    return length(call) - held.machine_ns <= ISOLATION_LONGEST_NS;
}

struct isolation_verdict isolation_judge(const struct isolation_longest *longest, uint64_t calls, uint64_t over,
                                         const struct isolation_lates *const *lates, int lates_nr)
{
    struct isolation_verdict verdict = {.over = over, .allowed = min(calls / ISOLATION_CALLS_PER_LONG, ISOLATION_KEPT)};
    verdict.allowed = verdict.allowed > 0 ? verdict.allowed : 1;
    for (int i = 0; i < longest->nr && length(&longest->call[i]) > ISOLATION_LONGEST_NS; i++) {
        verdict.excused += isolation_excused(&longest->call[i], lates, lates_nr);
    }
    verdict.ok = verdict.over <= verdict.allowed && verdict.excused == verdict.over;
    return verdict;
}

bool isolation_is_noisy(uint64_t stolen_ns, uint64_t ns, int cpus)
{
    return stolen_ns >= ns * (uint64_t)cpus / ISOLATION_QUIET_SHARE;
}
