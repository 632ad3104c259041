/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the GPU of cuda_driver.h was told to do and has not done yet.
 *
 * Owns:     the streams, and what is on them, in static memory.
 * Thread:   one.
 * Lifetime: driver_reset begins anew; cuda_driver.h has what does the work.
 * Errors:   what the service must never have the GPU do fails the test.
 */
#ifndef MLACAT_TESTS_CUDA_DRIVER_WORK_H
#define MLACAT_TESTS_CUDA_DRIVER_WORK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "concat_mla_args.h"

struct cuda_stream {
    bool used;
    bool lapsed; /* its last launch with a gate has */
};

struct driver_thing {
    struct cuda_stream *stream; /* NULL: it is done */
    _Atomic uint64_t *word;     /* NULL: a kernel */
    uint64_t value;
    struct concat_mla_gate gate; /* of a kernel */
    bool gated;                  /* a word of the kernel before it, which it writes unless it has lapsed */
    /* Of the three of cuda_gated.h: the gate stamps it, the others are done if it is stamped. */
    struct concat_mla_ticket ticket;
    bool copies;
};

void driver_work_reset(void);
struct cuda_stream *driver_stream_at(uint32_t index);
void driver_enqueue(struct driver_thing thing);

#endif
