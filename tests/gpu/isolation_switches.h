/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who ran on one CPU: the kernel's records of the context switches there (perf_event_open(2), whose
 * PERF_RECORD_SWITCH_CPU_WIDE names who leaves the CPU). Needs root, CAP_PERFMON, or kernel.perf_event_paranoid <= 0.
 *
 * Owns:     an event and the pages that the kernel writes to.
 * Thread:   one at a time.
 * Lifetime: isolation_switches_open -> isolation_switches_close.
 * Errors:   isolation_switches_open: NULL, with errno. Of records that were lost nothing is known.
 */
#ifndef MLACAT_TESTS_ISOLATION_SWITCHES_H
#define MLACAT_TESTS_ISOLATION_SWITCHES_H

#include <stdint.h>

#include "isolation_kernel.h"

struct isolation_switches;

struct isolation_switches *isolation_switches_open(int cpu);
void isolation_switches_close(struct isolation_switches *switches);

/* Takes over what the kernel has written; at least every 50 ms, or its pages run full. */
void isolation_switches_take(struct isolation_switches *switches);

/* Who ran from `from_ns` to `to_ns` (CLOCK_MONOTONIC), of which the last switch is a thing of the past. Others are
 * programs that are not in `users`; not the kernel's own threads, which may be at work for one of ours, nor the
 * processes of MPS, nor one that has ended since, of which nobody knows. */
struct isolation_holders isolation_switches_between(struct isolation_switches *switches,
                                                    const struct isolation_users *users, uint64_t from_ns,
                                                    uint64_t to_ns);

#endif
