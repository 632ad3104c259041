/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When a call that waits for its `ready` word is given to the device before its turn (device.h, `arm`), and when the
 * worker should look at the word without a pause. To see the word, launch and have the GPU begin takes longer than the
 * smallest call itself; but to have the GPU wait for long would take room from the client's own kernels. So a stream's
 * next call is expected to wait for as long as its last one did, or one before that: a runner's layers take much the
 * same time, and have a call or two.
 *
 * Owns:     nothing.
 * Thread:   the stream's worker.
 * Lifetime: zeroed is ready to use.
 * Errors:   -
 */
#ifndef MLACAT_ENGINE_ARMING_H
#define MLACAT_ENGINE_ARMING_H

#include <stdbool.h>
#include <stdint.h>

/* A GPU waits for a client's word no longer than this. */
#define ARMING_MOST_NS 200000

struct arming {
    /* How long the last call waited as the first of its stream, and the last one before it that waited for another
     * time; 0: not at all, or there was none. */
    uint64_t gap_ns[2];
    uint32_t same_nr; /* waits in a row that were much like the one before */
    uint32_t lapses;  /* calls in a row that were armed in vain */
    uint32_t skip;    /* calls that will not be armed for that */
};

/* All in clock_now_ns's time. */
struct arming_plan {
    uint64_t look_ns; /* from then on without a pause, */
    uint64_t arm_ns;  /* from then on the call may be armed, */
    uint64_t late_ns; /* and not from then on; */
    uint64_t rest_ns; /* and from then on with pauses again */
};

/* For a call that is the first of its stream and waits since `since_ns`: around the shorter of the two times until that
 * is over, then around the longer one; around both at once when they are so near each other that the call would lapse
 * for one while it is due for the other. That is for ARMING_MOST_NS at most: two that are 120 us apart or more may
 * leave too little for the shorter one. A shorter time that has not come for some calls is not armed for on its own,
 * but looked for. Armed once for each, a call takes twice ARMING_MOST_NS of a GPU at most. */
struct arming_plan arming_plan(const struct arming *arming, uint64_t since_ns, uint64_t now_ns);

/* Is it to be armed now? Not again for an expectation that it was armed for at `armed_ns`; 0: it was for none. */
bool arming_is_due(const struct arming_plan *plan, uint64_t armed_ns, uint64_t now_ns);

/* The next pause between two looks at the word, which is not longer than a fraction of the wait; 0: none. */
uint64_t arming_pause_ns(const struct arming_plan *plan, uint64_t since_ns, uint64_t now_ns);

/* A call's word has come. Once for each call: what is expected stays as it is while one waits. */
void arming_ready(struct arming *arming, uint64_t waited_ns);

/* Once for each call that waits: may it be armed? false: too many before it were, in vain; this one makes up for it. */
bool arming_admit(struct arming *arming);
/* It was armed in vain; or it was not. */
void arming_lapsed(struct arming *arming);
void arming_ran(struct arming *arming);

#endif
