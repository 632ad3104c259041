/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every question here has one form. Row starts of two operands differ by a sum of x_k * stride_k, each x_k in a range
 * of integers; two rows share a byte when the difference lies in a window around 0. With each stride made positive and
 * each range made to start at 0 the question is:
 *
 *     are there x_k in [0, max_k] with  low <= x_1 * stride_1 + ... + x_n * stride_n <= high ?        n <= 4
 *
 * It is first made smaller without changing the answer (simplify), then searched from the largest stride down, where
 * the rest can only reach a bounded way; the last two terms are decided at once by counting lattice points (floor_sum).
 * Only strides that real tensors do not have make the search long; it then stops at OVERLAP_WORK.
 *
 * Positions are below 2^63 and there are at most four terms, so nothing overflows 128 bits.
 */
#include "op_overlap.h"

#include <stdbool.h>

typedef __int128 wide;
typedef unsigned __int128 uwide;

#define TERMS_MAX 4

struct term {
    uint64_t stride; /* > 0 */
    uint64_t max;    /* > 0 */
};

struct question {
    wide low;
    wide high;
    struct term term[TERMS_MAX]; /* strides differ and go down */
    int terms_nr;
    uint64_t work;
};

static uint64_t magnitude(int64_t v)
{
    return v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
}

static wide floor_div(wide a, wide b)
{
    wide q = a / b;
    return q * b > a ? q - 1 : q;
}

/* Adds the term x * stride, x in [0, max]. */
static void add_term(struct question *q, bool negative, uint64_t stride, uint64_t max)
{
    if (stride == 0 || max == 0) {
        return;
    }
    if (negative) { /* x counts down from max instead */
        q->low += (wide)stride * max;
        q->high += (wide)stride * max;
    }
    int at = 0;
    while (at < q->terms_nr && q->term[at].stride > stride) {
        at++;
    }
    if (at < q->terms_nr && q->term[at].stride == stride) {
        q->term[at].max += max;
        return;
    }
    for (int k = q->terms_nr; k > at; k--) {
        q->term[k] = q->term[k - 1];
    }
    q->term[at] = (struct term){stride, max};
    q->terms_nr++;
}

/* The largest sum of the terms from `k` on. */
static wide reach(const struct question *q, int k)
{
    wide sum = 0;
    for (; k < q->terms_nr; k++) {
        sum += (wide)q->term[k].stride * q->term[k].max;
    }
    return sum;
}

/* Makes one term of two whose sums have no gap: multiples of the smaller stride that end where the larger one goes on.
 */
static bool merge_terms(struct question *q)
{
    for (int k = q->terms_nr - 1; k > 0; k--) {
        struct term *large = &q->term[k - 1];
        struct term *small = &q->term[k];
        uint64_t ratio = large->stride / small->stride;
        if (large->stride % small->stride == 0 && small->max >= ratio - 1) {
            large->max = large->max * ratio + small->max;
            large->stride = small->stride;
            for (int i = k; i < q->terms_nr - 1; i++) {
                q->term[i] = q->term[i + 1];
            }
            q->terms_nr--;
            return true;
        }
    }
    return false;
}

static void simplify(struct question *q)
{
    do {
        /* A stride that is no longer than the window leaves no gap between the windows of neighbours: one wide window.
         */
        while (q->terms_nr > 0 && q->term[q->terms_nr - 1].stride <= (uwide)(q->high - q->low) + 1) {
            q->terms_nr--;
            q->low -= (wide)q->term[q->terms_nr].stride * q->term[q->terms_nr].max;
        }
    } while (merge_terms(q));
}

/* False if the window holds no multiple of what divides all strides. */
static bool divisible(const struct question *q)
{
    uint64_t divisor = 0;
    for (int k = 0; k < q->terms_nr; k++) {
        for (uint64_t rest = q->term[k].stride; rest != 0;) {
            uint64_t next = divisor % rest;
            divisor = rest;
            rest = next;
        }
    }
    return divisor == 0 || floor_div(q->high, divisor) * (wide)divisor >= q->low;
}

/* The sum of floor((a * i + b) / m) over i in [0, n), modulo 2^128; the Euclidean algorithm on (a, m). */
static uwide floor_sum(uwide n, uwide m, uwide a, uwide b, uint64_t *work)
{
    uwide sum = 0;
    for (;;) {
        *work += 1;
        sum += n * (n - 1) / 2 * (a / m) + n * (b / m);
        a %= m;
        b %= m;
        uwide last = a * n + b;
        if (last < m) {
            return sum;
        }
        n = last / m;
        b = last % m;
        uwide old_m = m;
        m = a;
        a = old_m;
    }
}

/*
 * The last two terms, 0 < low. For each x the y of a solution lie in an interval; an interval that holds an integer
 * outside [0, max] but not one inside cannot be, because x is limited to where the interval reaches into [0, max], and
 * where it straddles an end that end is a solution. So the intervals' integers can be counted without regard to [0,
 * max].
 */
static enum overlap_answer search_two(struct question *q, int k, wide low, wide high)
{
    wide stride = q->term[k].stride;
    wide small = q->term[k + 1].stride;
    wide first = -floor_div(small * q->term[k + 1].max - low, stride);
    wide last = high / stride;
    if (first < 0) {
        first = 0;
    }
    if (last > (wide)q->term[k].max) {
        last = q->term[k].max;
    }
    if (first > last) {
        return OVERLAP_NONE;
    }
    uwide n = (uwide)(last - first) + 1;
    /* For x = last - i: integers y with y * small <= high - x * stride, less those with y * small < low - x * stride.
     */
    wide below = low - 1 - last * stride;
    wide shift = floor_div(below, small);
    uwide upper = floor_sum(n, (uwide)small, (uwide)stride, (uwide)(high - last * stride), &q->work);
    uwide lower = floor_sum(n, (uwide)small, (uwide)stride, (uwide)(below - shift * small), &q->work);
    return upper == lower + n * (uwide)shift ? OVERLAP_NONE : OVERLAP_FOUND;
}

static enum overlap_answer search(struct question *q, int k, wide low, wide high)
{
    q->work++;
    wide all = reach(q, k);
    if (high < 0 || low > all) {
        return OVERLAP_NONE;
    }
    if (low <= 0 || high >= all) {
        return OVERLAP_FOUND;
    }
    wide stride = q->term[k].stride;
    if (k + 1 == q->terms_nr) {
        return high / stride * stride >= low ? OVERLAP_FOUND : OVERLAP_NONE;
    }
    if (k + 2 == q->terms_nr) {
        return search_two(q, k, low, high);
    }
    wide last = high / stride;
    wide x = -floor_div(reach(q, k + 1) - low, stride);
    if (x < 0) {
        x = 0;
    }
    if (last > (wide)q->term[k].max) {
        last = q->term[k].max;
    }
    for (; x <= last; x++) {
        enum overlap_answer answer = search(q, k + 1, low - x * stride, high - x * stride);
        if (answer != OVERLAP_NONE) {
            return answer;
        }
        if (q->work > OVERLAP_WORK) {
            return OVERLAP_UNPROVEN;
        }
    }
    return OVERLAP_NONE;
}

static enum overlap_answer solve(struct question *q)
{
    if (q->high < 0 || q->low > reach(q, 0)) { /* the bounding boxes do not meet: nearly every call ends here */
        return OVERLAP_NONE;
    }
    simplify(q);
    if (!divisible(q)) {
        return OVERLAP_NONE;
    }
    return search(q, 0, q->low, q->high);
}

enum overlap_answer overlap_between(const struct overlap_rows *a, const struct overlap_rows *b)
{
    /* Bytes are shared when start(b) - start(a) lies in (-width(b), width(a)). */
    wide distance = (wide)b->start - a->start;
    struct question q = {.low = 1 - (wide)b->width - distance, .high = (wide)a->width - 1 - distance};
    for (int k = 0; k < 2; k++) {
        add_term(&q, a->stride[k] > 0, magnitude(a->stride[k]), a->count[k] - 1);
        add_term(&q, b->stride[k] < 0, magnitude(b->stride[k]), b->count[k] - 1);
    }
    return solve(&q);
}

enum overlap_answer overlap_within(const struct overlap_rows *rows)
{
    uint64_t stride[2] = {magnitude(rows->stride[0]), magnitude(rows->stride[1])};
    for (int k = 0; k < 2; k++) {
        if (rows->count[k] > 1 && stride[k] < rows->width) {
            return OVERLAP_FOUND; /* neighbours in one dimension */
        }
    }
    if (rows->count[0] == 1 || rows->count[1] == 1) {
        return OVERLAP_NONE;
    }
    /* Two rows x and y steps apart; by symmetry x >= 1, and y is negative or not. */
    int large = stride[0] >= stride[1] ? 0 : 1;
    int small = 1 - large;
    uint64_t small_max = rows->count[small] - 1;
    wide from = (wide)stride[large] - (wide)stride[small] * small_max;
    struct question q = {.low = 1 - (wide)rows->width - from, .high = (wide)rows->width - 1 - from};
    add_term(&q, false, stride[large], rows->count[large] - 2);
    add_term(&q, false, stride[small], 2 * small_max);
    return solve(&q);
}
