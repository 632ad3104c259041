/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The smallest call of a decoding model (N=1, H=16, 128+64 bf16: 16 rows of 384 bytes), 4096 of them on buffers of
 * their own, and 32 of them alone. Wall time from the first call to the moment when the CPU knows that the last one has
 * ended, all that a call costs the CPU included; the ways take turns. FENCE: each launch is followed by a word that the
 * GPU writes for the CPU, and the end is seen there; SIGNAL: its kernel writes that word, as the service has it do for
 * a small call by itself (bench_cuda_end.h); SYNC: a wait for the stream.
 */
#include "bench_cuda_many.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "gpu.h"
#include "module.h"

#define CALLS 4096
#define HEADS 16
#define A_BYTES 256
#define B_BYTES 128
#define OUT_BYTES ((size_t)HEADS * (A_BYTES + B_BYTES))
#define IN_BYTES ((size_t)HEADS * A_BYTES + B_BYTES)
#define POISON 0xa5

enum end { SYNC, FENCE, SIGNAL };

struct way {
    const char *name;
    unsigned calls;  /* in all */
    unsigned launch; /* of them in a launch */
    enum end end;    /* of each launch */
};

static const struct way ways[] = {
    {"4096 calls, a launch each", CALLS, 1, SYNC},
    {"4096 calls, a launch each, fence", CALLS, 1, FENCE},
    {"4096 calls, a launch each, own fence", CALLS, 1, SIGNAL},
    {"4096 calls, 8 a launch, fence", CALLS, 8, FENCE},
    {"4096 calls, 32 a launch", CALLS, 32, SYNC},
    {"4096 calls, 32 a launch, fence", CALLS, 32, FENCE},
    {"1 call, its own launch, fence", 1, 1, FENCE},
    {"1 call, its kernel writes the fence", 1, 1, SIGNAL},
    {"1 call, launched as one of many, fence", 1, 32, FENCE},
    {"32 calls, a launch each, fence", 32, 1, FENCE},
    {"32 calls, a launch each, own fence", 32, 1, SIGNAL},
    {"32 calls, one launch, fence", 32, 32, FENCE},
};
#define WAYS_NR (sizeof(ways) / sizeof(ways[0]))

static struct {
    unsigned char *memory;
    struct concat_mla_args call[CALLS];
    _Atomic uint64_t *word;
    uint64_t written;
    uint64_t bytes_per_ms;
} bench;

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int nr)
{
    qsort(values, (size_t)nr, sizeof(double), compare);
    return values[nr / 2];
}

double bench_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static void make_calls(void)
{
    bench.memory = gpu_alloc(CALLS * (OUT_BYTES + IN_BYTES));
    module_fill_random(bench.memory, CALLS * (OUT_BYTES + IN_BYTES), 1);
    for (size_t i = 0; i < CALLS; i++) {
        unsigned char *in = bench.memory + CALLS * OUT_BYTES + i * IN_BYTES;
        bench.call[i] = (struct concat_mla_args){
            .out = bench.memory + i * OUT_BYTES,
            .a = in,
            .b = in + HEADS * A_BYTES,
            .dim0 = 1,
            .dim1 = HEADS,
            .out_stride0 = OUT_BYTES,
            .out_stride1 = A_BYTES + B_BYTES,
            .a_stride0 = HEADS * A_BYTES,
            .a_stride1 = A_BYTES,
            .b_stride0 = B_BYTES,
            .a_bytes = A_BYTES,
            .b_bytes = B_BYTES,
        };
    }
}

/* The call's kernel writes the fence. */
static void launch_signal(const struct concat_mla_args *call)
{
    struct concat_mla_plan plan;
    struct concat_mla_launch one;
    struct concat_mla_signal signal = {
        .end = {.address = {(uintptr_t)bench.word}, .value = {++bench.written}},
    };
    concat_mla_plan_init(&plan, call, bench.bytes_per_ms);
    concat_mla_plan_next(&plan, &one);
    module_signal(&one, &signal);
}

static void launch(const struct way *way, unsigned first)
{
    static struct concat_mla_many many;
    if (way->end == SIGNAL) {
        launch_signal(&bench.call[first]);
    } else if (way->launch == 1) {
        module_call(&bench.call[first], bench.bytes_per_ms, NULL);
    } else {
        concat_mla_many_init(&many, bench.bytes_per_ms);
        for (unsigned i = first; i < first + way->launch && i < way->calls; i++) {
            concat_mla_many_add(&many, &bench.call[i]);
        }
        module_many(&many);
    }
    if (way->end == FENCE) {
        gpu_write_word(bench.word, ++bench.written);
    }
}

static double run_us(const struct way *way)
{
    double begin = bench_now_us();
    for (unsigned first = 0; first < way->calls; first += way->launch) {
        launch(way, first);
    }
    if (way->end != SYNC) {
        while (atomic_load_explicit(bench.word, memory_order_acquire) != bench.written) {
        }
    } else {
        gpu_sync();
    }
    return bench_now_us() - begin;
}

/* Poisons the outputs, runs once, and looks at them. */
static bool is_right(const struct way *way)
{
    uint64_t wrong = 0;
    gpu_fill(bench.memory, POISON, CALLS * OUT_BYTES);
    run_us(way);
    for (unsigned i = 0; i<way->calls; i += way->calls> 512 ? 61 : 1) {
        wrong += module_count_wrong(&bench.call[i]);
    }
    return wrong == 0;
}

bool bench_cuda_many(uint64_t bytes_per_ms, int runs)
{
    static double us[WAYS_NR][BENCH_PAIRS_MAX];
    bool all_good = true;
    bench.bytes_per_ms = bytes_per_ms;
    bench.word = gpu_word_new();
    make_calls();
    gpu_sync();
    for (int run = -1; run < runs; run++) { /* the first warms up */
        for (size_t w = 0; w < WAYS_NR; w++) {
            double taken = run_us(&ways[w]);
            if (run >= 0) {
                us[w][run] = taken;
            }
        }
    }
    printf("\n%-40s %10s %10s  %s\n", "small calls, wall time", "us", "us a call", "output");
    for (size_t w = 0; w < WAYS_NR; w++) {
        double median = bench_median(us[w], runs);
        bool good = is_right(&ways[w]);
        all_good = good && all_good;
        printf("%-40s %10.2f %10.3f  %s\n", ways[w].name, median, median / ways[w].calls, good ? "right" : "WRONG");
    }
    gpu_free(bench.memory);
    gpu_word_free(bench.word);
    return all_good;
}
