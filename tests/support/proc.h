/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What /proc tells of a process: descriptors, mappings, memory, processor time, threads.
 *
 * Owns:     nothing.
 * Thread:   any.
 * Lifetime: -
 * Errors:   a failed check (require.h) when the process is gone.
 */
#ifndef MLACAT_TESTS_PROC_H
#define MLACAT_TESTS_PROC_H

#include <stdint.h>
#include <sys/types.h>

/* Open descriptors. */
uint32_t proc_fds(pid_t pid);
/* Mappings whose line contains `text`; "" for all. */
uint32_t proc_maps(pid_t pid, const char *text);
/* A line of /proc/PID/status in KiB: "RssAnon". */
uint64_t proc_status_kib(pid_t pid, const char *field);
/* Time on a processor, of all threads. */
uint64_t proc_cpu_ns(pid_t pid);
/* Time that the threads whose name begins with `thread` wanted a processor and had none. */
uint64_t proc_waited_ns(pid_t pid, const char *thread);
/* What the threads did in that time: times a thread was switched away from. */
uint64_t proc_switches(pid_t pid);
/* Threads that run, or want to. */
uint32_t proc_running(pid_t pid);

#endif
