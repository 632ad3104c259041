/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What it costs to tell the end of a launch. One K call of bf16 (128+64) whose 16-byte vectors take so many stretches
 * of CONCAT_MLA_MANY_THREADS threads; the ways take turns, on the same operands.
 *     chain    64 such launches in one stream, wall time of one, from before the first to when the CPU sees the end
 *     latency  one launch, wall time from before it to when the CPU sees its end
 * "no end": only a wait for the stream, as far as a chain can go at best. "behind": the driver writes the word behind
 * the launch. "signal": the kernel writes it, in one block. "gated": a tail writes it, and a gate that is open goes
 * before.
 */
#include "bench_cuda_end.h"

#include <stdatomic.h>
#include <stdio.h>

#include "bench_cuda_many.h"
#include "gpu.h"
#include "module.h"

#define CHAIN 64
#define A_BYTES 256
#define B_BYTES 128
#define ROW_BYTES ((uint64_t)A_BYTES + B_BYTES)
#define STRETCH_BYTES ((uint64_t)CONCAT_MLA_MANY_THREADS * 2 * 16) /* of the output */
#define POISON 0xa5

#define STRETCHES_MAX (CONCAT_MLA_SIGNAL_THREADS / CONCAT_MLA_MANY_THREADS)

enum way { NO_END, BEHIND, SIGNAL, GATED, WAYS_NR };

static struct {
    struct concat_mla_args call;
    _Atomic uint64_t *word;
    uint64_t written;
    uint64_t bytes_per_ms;
} bench;

static void make_call(unsigned char *memory, uint64_t stretches)
{
    uint64_t rows = stretches * STRETCH_BYTES / ROW_BYTES;
    bench.call = (struct concat_mla_args){
        .out = memory,
        .a = memory + rows * ROW_BYTES,
        .b = memory + rows * (ROW_BYTES + A_BYTES),
        .dim0 = 1,
        .dim1 = rows,
        .out_stride1 = (long long)ROW_BYTES,
        .a_stride1 = A_BYTES,
        .a_bytes = A_BYTES,
        .b_bytes = B_BYTES,
    };
}

static bool has_way(enum way way, uint64_t stretches)
{
    return way == GATED ? module_has_gate() : way != SIGNAL || stretches <= STRETCHES_MAX;
}

static void launch_signal(bool gated)
{
    struct concat_mla_plan plan;
    struct concat_mla_launch launch;
    struct concat_mla_signal signal = {
        .end = {.address = {(uintptr_t)bench.word}, .value = {++bench.written}},
    };
    concat_mla_plan_init(&plan, &bench.call, bench.bytes_per_ms);
    concat_mla_plan_next(&plan, &launch);
    if (gated) {
        module_gated(&launch, &signal, bench.written);
    } else {
        module_signal(&launch, &signal);
    }
}

static void launch_call(enum way way)
{
    if (way == SIGNAL || way == GATED) {
        launch_signal(way == GATED);
        return;
    }
    module_call(&bench.call, bench.bytes_per_ms, NULL);
    if (way == BEHIND) {
        gpu_write_word(bench.word, ++bench.written);
    }
}

static double run_us(enum way way, int launches)
{
    double begin = bench_now_us();
    for (int i = 0; i < launches; i++) {
        launch_call(way);
    }
    if (way == NO_END) {
        gpu_sync();
    } else {
        while (atomic_load_explicit(bench.word, memory_order_acquire) != bench.written) {
        }
    }
    return bench_now_us() - begin;
}

static bool is_right(enum way way)
{
    gpu_fill(bench.call.out, POISON, bench.call.dim1 * ROW_BYTES);
    run_us(way, 1);
    return module_count_wrong(&bench.call) == 0;
}

static bool run_size(uint64_t stretches, int launches, int runs)
{
    static double us[WAYS_NR][BENCH_PAIRS_MAX];
    bool good = true;
    uint64_t bytes = stretches * STRETCH_BYTES * 2 + B_BYTES;
    unsigned char *memory = gpu_alloc(bytes);
    module_fill_random(memory, bytes, stretches);
    make_call(memory, stretches);
    gpu_sync();
    for (int run = -1; run < runs; run++) { /* the first warms up */
        for (int w = NO_END; w < WAYS_NR; w++) {
            double taken = has_way((enum way)w, stretches) ? run_us((enum way)w, launches) : 0;
            if (run >= 0) {
                us[w][run] = taken / launches;
            }
        }
    }
    printf("%8lu %10.1f", (unsigned long)stretches, (double)(bench.call.dim1 * ROW_BYTES) / 1024);
    for (int w = NO_END; w < WAYS_NR; w++) {
        if (has_way((enum way)w, stretches)) {
            good = is_right((enum way)w) && good;
            printf(" %9.2f", bench_median(us[w], runs));
        } else {
            printf(" %9s", "-");
        }
    }
    printf("  %s\n", good ? "right" : "WRONG");
    gpu_free(memory);
    return good;
}

static bool run_table(const char *what, int launches, int runs)
{
    static const uint64_t large[] = {64, 1024, 16384};
    bool good = true;
    printf("\n%-19s %9s %9s %9s %9s\n%8s %10s\n", what, "no end", "behind", "signal", "gated", "x128", "KiB");
    for (uint64_t stretches = 1; stretches <= STRETCHES_MAX; stretches++) {
        good = run_size(stretches, launches, runs) && good;
    }
    for (size_t i = 0; i < sizeof(large) / sizeof(large[0]); i++) {
        good = run_size(large[i], launches, runs) && good;
    }
    return good;
}

bool bench_cuda_end(uint64_t bytes_per_ms, int runs)
{
    bench.bytes_per_ms = bytes_per_ms;
    bench.written = 0;
    bench.word = gpu_word_new();
    bool good = run_table("chain, us a launch", CHAIN, runs);
    good = run_table("latency, us", 1, BENCH_PAIRS_MAX) && good;
    gpu_sync();
    gpu_word_free(bench.word);
    return good;
}
