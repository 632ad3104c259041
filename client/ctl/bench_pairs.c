/* SPDX-License-Identifier: Apache-2.0 */
/* How a row of `bench` is measured: value and reference in turns, and the figures of both. */
#include <stdio.h>

#include "bench.h"

#define SAMPLES_MAX 1000000u
#define PAIRS_MIN 5
#define PAIRS_MAX 64
#define PAIRS_MIN_QUICK 3

/* What both sides of a row gave. */
struct figures {
    struct samples value;
    struct samples reference[BENCH_REFERENCES_MAX];
    struct samples spent_ns[BENCH_REFERENCES_MAX]; /* by each round of a reference: tells the fastest */
};

static bool init_figures(struct figures *figures, int references_nr)
{
    bool good = samples_init(&figures->value, SAMPLES_MAX);

    for (int i = 0; i < references_nr; i++)
        good = good && samples_init(&figures->reference[i], SAMPLES_MAX) &&
               samples_init(&figures->spent_ns[i], SAMPLES_MAX);
    return good;
}

static void fini_figures(struct figures *figures)
{
    samples_fini(&figures->value);
    for (int i = 0; i < BENCH_REFERENCES_MAX; i++) {
        samples_fini(&figures->reference[i]);
        samples_fini(&figures->spent_ns[i]);
    }
}

/* The median over the pairs: what slows both sides for a while then counts for none. Before the samples are sorted. */
static double pair_ratio(const struct samples *value, const struct samples *reference)
{
    double ratio[PAIRS_MAX];
    struct samples ratios = {.value = ratio, .capacity = PAIRS_MAX};

    for (size_t i = 0; i < value->nr && i < reference->nr; i++)
        samples_add(&ratios, value->value[i] / reference->value[i]);
    return samples_quantile(&ratios, 0.5);
}

/* Sorts the samples. */
static void fill_row(const struct bench *bench, struct bench_row *row, struct figures *figures,
                     const struct bench_reference *references, int references_nr)
{
    bool more = row->more_is_better;
    int best = 0;

    for (int i = 1; i < references_nr; i++)
        if (samples_quantile(&figures->spent_ns[i], 0.5) < samples_quantile(&figures->spent_ns[best], 0.5))
            best = i;
    if (references[best].way) {
        snprintf(row->chosen, sizeof(row->chosen), "%s, %s", row->reference, references[best].way);
        row->reference = row->chosen;
    }
    if (row->pairs > 0)
        row->ratio = pair_ratio(&figures->value, &figures->reference[best]);
    row->samples = figures->value.nr;
    row->value = samples_quantile(&figures->value, 0.5);
    row->reference_value = samples_quantile(&figures->reference[best], 0.5);
    row->p50 = row->value;
    row->p90 = samples_quantile(&figures->value, more ? 0.10 : 0.90);
    row->p99 = samples_quantile(&figures->value, more ? 0.01 : 0.99);
    row->p999 = samples_quantile(&figures->value, more ? 0.001 : 0.999);
    row->reference_p90 = samples_quantile(&figures->reference[best], more ? 0.10 : 0.90);
    row->reference_p99 = samples_quantile(&figures->reference[best], more ? 0.01 : 0.99);
    row->reference_p999 = samples_quantile(&figures->reference[best], more ? 0.001 : 0.999);
    if (bench->histograms)
        bench_histogram_add(bench->histograms, row, &figures->value, &figures->reference[best]);
}

static bool run_reference(const struct bench_reference *reference, struct samples *samples, struct samples *spent_ns)
{
    uint64_t begin = measure_now_ns();
    bool good = reference->measure(reference->context, samples);

    samples_add(spent_ns, (double)(measure_now_ns() - begin));
    return good;
}

static bool any_full(const struct figures *figures, int references_nr)
{
    bool full = samples_full(&figures->value);

    for (int i = 0; i < references_nr; i++)
        full = full || samples_full(&figures->reference[i]);
    return full;
}

/* Which goes first changes with each round, so that none always finds the caches of the same other. */
static bool alternate(const struct bench *bench, unsigned pairs, bench_side value, void *context,
                      const struct bench_reference *references, int references_nr, struct figures *figures)
{
    uint64_t until = measure_now_ns() + (pairs > 0 ? 0 : bench->budget_ns);
    unsigned rounds_min = pairs > 0 ? pairs : bench->options->quick ? PAIRS_MIN_QUICK : PAIRS_MIN;

    for (unsigned round = 0; round < rounds_min || measure_now_ns() < until; round++) {
        bool backwards = round % 2 == 1;

        if (any_full(figures, references_nr))
            break;
        if (!backwards && !value(context, &figures->value))
            return false;
        for (int i = 0; i < references_nr; i++) {
            int at = backwards ? references_nr - 1 - i : i;

            if (!run_reference(&references[at], &figures->reference[at], &figures->spent_ns[at]))
                return false;
        }
        if (backwards && !value(context, &figures->value))
            return false;
    }
    return true;
}

bool bench_rivals(const struct bench *bench, struct bench_row *row, bench_side value, void *context,
                  const struct bench_reference *references, int references_nr)
{
    struct figures figures = {0};
    struct samples warm = {0};
    bool good = init_figures(&figures, references_nr);

    if (!good)
        fprintf(stderr, "mlacatctl: %s: out of memory for the samples\n", row->name);
    /* Once each for nothing: pages, caches and branch predictors. The set without capacity drops what it is given. */
    good = good && value(context, &warm);
    for (int i = 0; good && i < references_nr; i++)
        good = references[i].measure(references[i].context, &warm);
    good = good && alternate(bench, row->pairs, value, context, references, references_nr, &figures);
    if (good)
        fill_row(bench, row, &figures, references, references_nr);
    fini_figures(&figures);
    return good;
}

bool bench_pairs(const struct bench *bench, struct bench_row *row, bench_side value, bench_side reference,
                 void *context)
{
    return bench_rivals(bench, row, value, context, &(struct bench_reference){.measure = reference, .context = context},
                        1);
}

void bench_remark_p99(struct bench_row *row)
{
    if (row->reference_p99 > 0)
        snprintf(row->remark, sizeof(row->remark), "p99 of the reference %.2f %s, ratio of both %.3f",
                 row->reference_p99, row->unit, row->p99 / row->reference_p99);
}

void bench_remark_difference(struct bench_row *row)
{
    if (row->samples > 0)
        snprintf(row->remark, sizeof(row->remark), "%+.2f %s, at p99 %+.2f", row->value - row->reference_value,
                 row->unit, row->p99 - row->reference_p99);
}
