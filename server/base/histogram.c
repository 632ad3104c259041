/* SPDX-License-Identifier: Apache-2.0 */
#include "histogram.h"

#define SUB_BUCKETS (1u << HISTOGRAM_SUB_BITS)

/*
 * Values below 16 have a bucket each. A larger value with its highest bit at `top` falls into one of 16 equal parts of
 * [2^top, 2^(top + 1)): the four bits after the highest one say which.
 */
static uint32_t bucket_of(uint64_t value)
{
    if (value < SUB_BUCKETS) {
        return (uint32_t)value;
    }
    uint32_t top = 63u - (uint32_t)__builtin_clzll(value);
    if (top >= HISTOGRAM_MAX_BITS) {
        return HISTOGRAM_BUCKETS - 1;
    }
    uint32_t shift = top - HISTOGRAM_SUB_BITS;
    return ((shift + 1) << HISTOGRAM_SUB_BITS) + (uint32_t)((value >> shift) & (SUB_BUCKETS - 1));
}

/* The largest value that falls into the bucket. */
static uint64_t upper_edge(uint32_t bucket)
{
    if (bucket < SUB_BUCKETS) {
        return bucket;
    }
    uint32_t shift = (bucket >> HISTOGRAM_SUB_BITS) - 1;
    uint64_t part = SUB_BUCKETS + (bucket & (SUB_BUCKETS - 1));
    return ((part + 1) << shift) - 1;
}

void histogram_add(struct histogram *h, uint64_t value_ns)
{
    h->counts[bucket_of(value_ns)]++;
    h->total++;
}

static void increment(uint64_t *count)
{
    __atomic_store_n(count, *count + 1, __ATOMIC_RELAXED);
}

void histogram_add_shared(struct histogram *h, uint64_t value_ns)
{
    increment(&h->counts[bucket_of(value_ns)]);
    increment(&h->total);
}

/* The total is that of the buckets, which may have grown meanwhile. */
void histogram_merge_shared(struct histogram *into, const struct histogram *from)
{
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        uint64_t count = __atomic_load_n(&from->counts[i], __ATOMIC_RELAXED);
        into->counts[i] += count;
        into->total += count;
    }
}

uint64_t histogram_quantile(const struct histogram *h, double q)
{
    if (h->total == 0) {
        return 0;
    }
    /* The rank is rounded up: the 0.5-quantile of three values is the second, the 0.99-quantile of ten the last. */
    double exact = q * (double)h->total;
    uint64_t rank = (uint64_t)exact;
    if ((double)rank < exact || rank == 0) {
        rank++;
    }
    uint64_t seen = 0;
    uint32_t bucket = 0;
    for (; bucket < HISTOGRAM_BUCKETS - 1; bucket++) {
        seen += h->counts[bucket];
        if (seen >= rank) {
            break;
        }
    }
    return upper_edge(bucket);
}
