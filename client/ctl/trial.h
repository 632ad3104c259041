/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     three areas and a stream on one device of the service, in which `run` makes, times and verifies calls.
 * Thread:   one.
 * Lifetime: trial_open .. trial_close; areas grow and are used again for the next call.
 * Errors:   told in struct trial_result; of trial_open and trial_reserve by area_message.
 */
#ifndef MLACAT_CTL_TRIAL_H
#define MLACAT_CTL_TRIAL_H

#include "area.h"
#include "common.h"

struct trial {
    struct mlacat_client *client;
    const char *uuid; /* of the device; NULL: the first available one */
    struct area_device device;
    struct mlacat_stream *stream;
    struct area area[SHAPE_OPERANDS];
    uint64_t seed;
    enum mlacat_dtype dtype; /* of what the inputs hold now; 0: nothing yet */
    uint64_t repeat;         /* timed calls; 0: 3 to 100, as many as fit into budget_ns */
    uint64_t budget_ns;
    bool verify;
};

enum trial_outcome {
    TRIAL_FAILED,     /* the call, or what it needs, gave an error */
    TRIAL_WRONG,      /* a byte differs */
    TRIAL_UNVERIFIED, /* done, not looked at */
    TRIAL_VERIFIED,
};

struct trial_result {
    enum trial_outcome outcome;
    char text[320]; /* "verified", or the first difference, or the error */
    uint64_t bytes;
    double bytes_per_s; /* at the median */
    double p50_ns, p99_ns;
    size_t samples;
};

/* Client, UUID and what stands behind the areas are the caller's to set before. */
enum mlacat_status trial_open(struct trial *trial);
void trial_close(struct trial *trial);

/* Grows the areas to what `layout` needs. */
enum mlacat_status trial_reserve(struct trial *trial, const struct shape_layout *layout);

/*
 * Random inputs, poisoned output, one call, and then the timed ones. With `verify` every byte is checked after the
 * first call and again after the last: output, guards, gaps, and that the inputs are as they were.
 */
void trial_run(struct trial *trial, const struct shape *shape, struct trial_result *result);

json_t *trial_json(const struct shape *shape, const struct trial_result *result);

/* "contiguous" or "strided" */
const char *trial_layout_name(const struct shape *shape);

#endif
