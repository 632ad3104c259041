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

/* Of the user; else the one of who owes least. */
static uint32_t place_of(const struct token_debts *debts, uint32_t user)
{
    uint32_t least = 0;
    for (uint32_t i = 0; i < TOKEN_DEBTS; i++) {
        const struct token_debt *debt = &debts->of[i];
        if (debt->user == user && debt->bucket.full_ns != 0) {
            return i;
        }
        if (debt->bucket.full_ns < debts->of[least].bucket.full_ns) {
            least = i;
        }
    }
    return least;
}

struct token_bucket token_debts_get(const struct token_debts *debts, uint32_t user)
{
    const struct token_debt *debt = &debts->of[place_of(debts, user)];
    return debt->user == user ? debt->bucket : (struct token_bucket){0};
}

void token_debts_add(struct token_debts *debts, uint32_t user, const struct token_bucket *bucket)
{
    struct token_debt *debt = &debts->of[place_of(debts, user)];
    if (bucket->full_ns > debt->bucket.full_ns) {
        *debt = (struct token_debt){.user = user, .bucket = *bucket};
    }
}
