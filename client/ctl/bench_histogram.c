/* SPDX-License-Identifier: Apache-2.0 */
/* What --histogram writes: how many of a row's calls took how long, in buckets of equal ratio, as they are plotted. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

#define BUCKETS_PER_OCTAVE 16
#define FIRST_BUCKET_US 0.01

static double bucket_of(double us)
{
    return us <= FIRST_BUCKET_US ? 0 : ceil(log2(us / FIRST_BUCKET_US) * BUCKETS_PER_OCTAVE);
}

/* [longest time, samples]; empty buckets are left out. */
static json_t *buckets_json(const struct samples *sorted)
{
    json_t *buckets = json_array();

    for (size_t i = 0; i < sorted->nr;) {
        double bucket = bucket_of(sorted->value[i]);
        size_t begin = i;

        while (i < sorted->nr && bucket_of(sorted->value[i]) <= bucket)
            i++;
        json_array_append_new(
            buckets, json_pack("[f, I]", FIRST_BUCKET_US * exp2(bucket / BUCKETS_PER_OCTAVE), (json_int_t)(i - begin)));
    }
    return buckets;
}

void bench_histogram_add(json_t *histograms, const struct bench_row *row, const struct samples *value,
                         const struct samples *reference)
{
    if (strcmp(row->unit, "us") != 0 && strcmp(row->unit, "us/call") != 0)
        return;
    json_array_append_new(histograms,
                          json_pack("{s:s, s:s, s:s, s:I, s:o, s:I, s:o}", "name", row->name, "unit", row->unit,
                                    "reference", row->reference, "samples", (json_int_t)value->nr, "buckets",
                                    buckets_json(value), "reference_samples", (json_int_t)reference->nr,
                                    "reference_buckets", buckets_json(reference)));
}

bool bench_histogram_write(const json_t *histograms, const char *path)
{
    if (json_dump_file(histograms, path, JSON_COMPACT) == 0)
        return true;
    fprintf(stderr, "mlacatctl: --histogram: cannot write %s: %s\n", path, strerror(errno));
    return false;
}
