/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of a long call the machine made: pure functions over what was measured. The rule stands in isolation.c.
 *
 * Owns:     nothing.
 * Thread:   a list is written by one thread, and read by others when that one has ended.
 * Lifetime: plain values of fixed size; zeroed is empty.
 * Errors:   none; what does not fit is counted.
 */
#ifndef MLACAT_TESTS_ISOLATION_VERDICT_H
#define MLACAT_TESTS_ISOLATION_VERDICT_H

#include <stdbool.h>
#include <stdint.h>

#define ISOLATION_LONGEST_NS 3000000u   /* what a call may take */
#define ISOLATION_CALLS_PER_LONG 100000 /* of so many calls one may take longer, if the machine made that */
#define ISOLATION_KEPT 512              /* the longest calls of a process; not more in all may take longer */
#define ISOLATION_LATE_NS 1000000u      /* a sleeping thread that is so late writes down why */
#define ISOLATION_LATES_MAX 4096        /* of one meter */
#define ISOLATION_NAME_BYTES 24
#define ISOLATION_QUIET_SHARE 500 /* a hypervisor takes less than one part in so many of a quiet machine's CPUs */

struct isolation_call {
    uint64_t begin_ns; /* before the send */
    uint64_t end_ns;   /* after the receipt */
    uint64_t queue_ns; /* as the completion tells */
    uint64_t device_ns;
    int process;
    int stream;
};

/* The longest one first. */
struct isolation_longest {
    int nr;
    struct isolation_call call[ISOLATION_KEPT];
};

/* CPU time of the processes that are ours. */
struct isolation_use {
    uint64_t daemon_ns;
    uint64_t test_ns; /* the clients, good and bad, and the meters */
};

/* Who ran on a CPU in a span of time. Zeroed: nobody knows. */
struct isolation_holders {
    uint64_t others_ns;  /* programs that are not ours, in all */
    uint64_t longest_ns; /* the one that ran longest without a pause */
    bool longest_is_other;
    char longest[ISOLATION_NAME_BYTES];
};

/* Once that a thread which slept ran late. */
struct isolation_late {
    uint64_t due_ns;
    uint64_t ran_ns;
    uint64_t waited_ns;               /* on a run queue, at most */
    struct isolation_holders holders; /* from due_ns to ran_ns; of a thread that is bound to its CPU */
    uint64_t since_ns;                /* before it slept: from here to ran_ns ... */
    struct isolation_use use;         /* ... CPU time was used */
    bool use_known;
    bool throttled; /* the own cgroup's quota was used up in that time */
};

struct isolation_lates {
    int cpus; /* on which the thread may run */
    int nr;
    uint64_t lost; /* for want of room */
    struct isolation_late late[ISOLATION_LATES_MAX];
};

/* What the sleeping threads tell about a span of time. */
struct isolation_held {
    uint64_t late_ns;                   /* the greatest lateness in the span */
    uint64_t machine_ns;                /* what of a lateness our processes can not have made, at the most */
    const struct isolation_late *worst; /* where that was seen; NULL: nowhere */
    int cpus;                           /* of the thread that saw it */
};

struct isolation_verdict {
    uint64_t over;    /* calls that took longer than ISOLATION_LONGEST_NS */
    uint64_t excused; /* of which the machine made what is too much */
    uint64_t allowed;
    bool ok;
};

void isolation_keep_call(struct isolation_longest *kept, const struct isolation_call *call);
void isolation_keep_late(struct isolation_lates *lates, const struct isolation_late *late);

/* What of a thread's lateness our processes may have made. */
uint64_t isolation_ours_ns(const struct isolation_late *late, int cpus);
struct isolation_held isolation_held_up(const struct isolation_lates *const *lates, int lates_nr, uint64_t begin_ns,
                                        uint64_t end_ns);

/* Whether it would have taken no longer than it may without what the machine made of it. */
bool isolation_excused(const struct isolation_call *call, const struct isolation_lates *const *lates, int lates_nr);

/* Of `calls` calls `over` were too long; `longest` has at least ISOLATION_KEPT of them, if there are as many. */
struct isolation_verdict isolation_judge(const struct isolation_longest *longest, uint64_t calls, uint64_t over,
                                         const struct isolation_lates *const *lates, int lates_nr);

/* A machine whose hypervisor took `stolen_ns` from `cpus` CPUs in `ns`: nothing can be judged by its times. */
bool isolation_is_noisy(uint64_t stolen_ns, uint64_t ns, int cpus);

#endif
