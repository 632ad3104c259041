/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     nothing; how many CPUs this process may use.
 * Thread:   any.
 * Lifetime: read anew at each call.
 * Errors:   none; what cannot be read sets no limit.
 */
#ifndef MLACAT_BASE_CPUS_H
#define MLACAT_BASE_CPUS_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Splits the CPUs that this thread may run on into the first and the rest, where there are from 2 to `most` of them;
 * false: fewer, more, or unknown.
 */
bool cpus_split(uint32_t most, cpu_set_t *first, cpu_set_t *rest);

/* CPUs by affinity mask and by cgroup v2 quota, whichever is less; at least 1. */
uint32_t cpus_usable(void);

/*
 * Whole CPUs that the cgroup v2 quotas leave: the smallest cpu.max of the own cgroup and of those above it, rounded
 * down, at least 1; UINT32_MAX without a quota. `membership` is /proc/self/cgroup, `mount` where the cgroup v2 tree
 * stands (/sys/fs/cgroup).
 */
uint32_t cpus_by_quota(const char *membership, const char *mount);

#endif
