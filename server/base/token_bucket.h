/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A rate with room for a burst: a bucket of tokens that fills by itself; who does the thing takes one.
 *
 * Owns:     a plain value; zeroed is full.
 * Thread:   one at a time.
 * Lifetime: -
 * Errors:   none.
 */
#ifndef MLACAT_BASE_TOKEN_BUCKET_H
#define MLACAT_BASE_TOKEN_BUCKET_H

#include <stdint.h>

struct token_bucket {
    uint64_t full_ns; /* when it is full again */
};

/* May change at any time. */
struct token_rate {
    uint32_t per_s; /* 0: no limit */
    uint32_t burst; /* what a bucket holds, at least 1 */
};

/* In how many nanoseconds there is a token; 0: there is one. */
uint64_t token_bucket_wait_ns(const struct token_bucket *bucket, struct token_rate rate, uint64_t now_ns);
/* Takes one, also where there is none yet: the next then comes later. */
void token_bucket_take(struct token_bucket *bucket, struct token_rate rate, uint64_t now_ns);

#endif
