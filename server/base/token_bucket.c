/* SPDX-License-Identifier: Apache-2.0 */
#include "token_bucket.h"

#define NS_PER_S UINT64_C(1000000000)

static uint64_t token_ns(struct token_rate rate)
{
    return NS_PER_S / rate.per_s;
}

/* The time until it is full; after a change of the rate no more than it takes to fill it. */
static uint64_t missing_ns(const struct token_bucket *bucket, struct token_rate rate, uint64_t now_ns)
{
    uint64_t missing = bucket->full_ns > now_ns ? bucket->full_ns - now_ns : 0;
    uint64_t all = rate.burst * token_ns(rate);
    return missing < all ? missing : all;
}

uint64_t token_bucket_wait_ns(const struct token_bucket *bucket, struct token_rate rate, uint64_t now_ns)
{
    if (rate.per_s == 0) {
        return 0;
    }
    uint64_t missing = missing_ns(bucket, rate, now_ns);
    uint64_t with_one = (rate.burst - 1) * token_ns(rate);
    return missing > with_one ? missing - with_one : 0;
}

void token_bucket_take(struct token_bucket *bucket, struct token_rate rate, uint64_t now_ns)
{
    if (rate.per_s != 0) {
        bucket->full_ns = now_ns + missing_ns(bucket, rate, now_ns) + token_ns(rate);
    }
}
