/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     counts of durations in log-linear buckets: 16 to each power of two, so a quantile is within 1/16 of the
 *           truth.
 * Thread:   one thread for a histogram; one that writes and others that read, with the functions for that.
 * Lifetime: a plain value of fixed size; zeroed is empty.
 * Errors:   none; values past the last bucket count there.
 */
#ifndef MLACAT_BASE_HISTOGRAM_H
#define MLACAT_BASE_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_SUB_BITS 4
#define HISTOGRAM_MAX_BITS 40 /* 2^40 ns = 18 minutes */
#define HISTOGRAM_BUCKETS ((HISTOGRAM_MAX_BITS - HISTOGRAM_SUB_BITS + 1) << HISTOGRAM_SUB_BITS)

struct histogram {
    uint64_t total;
    uint64_t counts[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *h, uint64_t value_ns);

/* The same for a histogram that another thread reads meanwhile, and how that one reads: adds what `from` has. */
void histogram_add_shared(struct histogram *h, uint64_t value_ns);
void histogram_merge_shared(struct histogram *into, const struct histogram *from);

/* The largest value of the bucket that holds the q-th quantile (0 < q <= 1); 0 when empty. */
uint64_t histogram_quantile(const struct histogram *h, double q);

#endif
