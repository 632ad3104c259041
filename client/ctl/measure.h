/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     the clock, samples with their quantiles, and what /proc tells about a process.
 * Thread:   one for a set of samples.
 * Lifetime: samples_init .. samples_fini.
 * Errors:   false where memory is short or /proc cannot be read.
 */
#ifndef MLACAT_CTL_MEASURE_H
#define MLACAT_CTL_MEASURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

uint64_t measure_now_ns(void);

struct samples {
    double *value;
    size_t nr;
    size_t capacity;
};

/* `capacity` is fixed, so that adding never allocates. */
bool samples_init(struct samples *samples, size_t capacity);
void samples_fini(struct samples *samples);
/* One more than the capacity is dropped. */
void samples_add(struct samples *samples, double value);
bool samples_full(const struct samples *samples);
/* The least sample that a share of `q` (0 < q <= 1) is not above; 0 without samples. Sorts in place. */
double samples_quantile(struct samples *samples, double q);

struct process_counters {
    uint64_t rss_anon_bytes;
    uint64_t fds;
    uint64_t mappings;
};

/* False: no such process, or it is another user's. */
bool measure_process(pid_t pid, struct process_counters *counters);

/* Context switches so far of all threads of a process, voluntary or not. False likewise. */
bool measure_switches(pid_t pid, uint64_t *switches);
/* The same of this process, threads that have ended included. */
uint64_t measure_own_switches(void);

/* Calls of write() and its kind by this process so far; 0 where /proc does not count them. */
uint64_t measure_own_writes(void);

/* "1.5 MB", "12.3 us": three or four digits and a unit. */
void measure_bytes_text(double bytes, char *text, size_t size);
/* The same for each second; "-" for 0. */
void measure_rate_text(double bytes_per_s, char *text, size_t size);
/* "-" for 0. */
void measure_time_text(double ns, char *text, size_t size);

#endif
