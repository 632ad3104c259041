/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A rate with room for a burst: a bucket of tokens that fills by itself; who does the thing takes one. And what
 * those who have gone owe, so that coming back gives nobody a bucket that is full.
 *
 * Owns:     plain values; a zeroed bucket is full, zeroed debts are none.
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

/* Users whose debts are remembered at a time. A debt goes by itself: within burst / per_s its bucket is full. */
#define TOKEN_DEBTS 64

struct token_debts {
    struct token_debt {
        uint32_t user;
        struct token_bucket bucket;
    } of[TOKEN_DEBTS];
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

/* The bucket that a user starts with. */
struct token_bucket token_debts_get(const struct token_debts *debts, uint32_t user);
/* Remembers the bucket, if it is emptier than what is known of the user; where there is no room, only one that is
 * emptier than another user's, who is then forgotten. */
void token_debts_add(struct token_debts *debts, uint32_t user, const struct token_bucket *bucket);

#endif
