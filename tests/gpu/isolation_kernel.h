/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel says of a phase: who waited for a CPU, what a quota held back, what a hypervisor took.
 *
 * Owns:     nothing.
 * Thread:   any; isolation_use_add: the parent alone.
 * Lifetime: plain values; a difference of two is what happened in between.
 * Errors:   what can not be read is known as such, and printed as "not readable".
 */
#ifndef MLACAT_TESTS_ISOLATION_KERNEL_H
#define MLACAT_TESTS_ISOLATION_KERNEL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "isolation_verdict.h"

#define ISOLATION_USERS_MAX 64
#define ISOLATION_THREADS_MAX 256

/* The processes that are ours; the first one is the daemon. */
struct isolation_users {
    _Atomic int nr;
    pid_t pid[ISOLATION_USERS_MAX];
    clockid_t clock[ISOLATION_USERS_MAX];
};

struct isolation_thread {
    int tid;
    char name[32];
    uint64_t ran_ns;
    uint64_t waited_ns; /* on a run queue */
};

struct isolation_quota {
    bool known;
    uint64_t times;
    uint64_t ns;
};

struct isolation_kernel {
    uint64_t at_ns;
    bool use_known;
    struct isolation_use use;
    int threads; /* of the daemon; 0: not readable */
    struct isolation_thread thread[ISOLATION_THREADS_MAX];
    uint64_t involuntary; /* times one of them was taken off a CPU */
    struct isolation_quota quota;
    bool stolen_known;
    uint64_t stolen_ns;
};

void isolation_use_add(struct isolation_users *users, pid_t pid);
bool isolation_is_user(const struct isolation_users *users, pid_t pid);
/* CPU time so far; false: not readable, or one of the processes has ended. */
bool isolation_use_read(const struct isolation_users *users, struct isolation_use *use);

/* How often the own cgroup had used up its quota, and how long it then stood still; v2 or v1. */
struct isolation_quota isolation_quota_read(void);

/* On a run queue so far, by the text of a schedstat file ("<ran ns> <waited ns> <times>"); UINT64_MAX: unknown. */
uint64_t isolation_waited_ns(int schedstat_fd);

void isolation_kernel_read(struct isolation_kernel *now, const struct isolation_users *users, pid_t daemon);
void isolation_kernel_print(const char *phase, const struct isolation_kernel *before,
                            const struct isolation_kernel *after, int cpus);

#endif
