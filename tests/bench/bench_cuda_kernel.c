/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GPU kernels against the driver's device-to-device copy of the same bytes, in one process: 64 calls in one stream
 * against 64 copies, in turns, median of the pairs. A byte counts once when it is read and once when it is written (a
 * broadcast row is read once); a copy of half as many bytes moves the same number. Buffers take turns so that no call
 * finds its operands in the cache; data are random; every output is checked before its row is printed. Then many small
 * calls, in launches of one and of many (bench_cuda_many.h), and how a launch tells its end (bench_cuda_end.h).
 *
 *     bench_cuda_kernel [root of the source tree] [pairs]        default . and 9
 *
 * Exit status 77 = no GPU here, 1 = an output was wrong.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench_cuda_end.h"
#include "bench_cuda_many.h"
#include "gpu.h"
#include "module.h"

#define CALLS 64
#define SETS_MAX 64
#define ROTATE_BYTES ((uint64_t)1 << 30) /* over all sets at least; many times the largest cache */
#define ALIGN_BYTES 256

struct bench_case {
    const char *name;
    uint64_t dim[2];
    uint64_t width[2];
    bool broadcast;
    uint64_t out_at; /* address of the output beyond a multiple of 256 */
};

static const struct bench_case cases[] = {
    {"K bf16 H=128 128+64 N=128", {128, 128}, {256, 128}, true, 0},
    {"K bf16 H=128 128+64 N=512", {512, 128}, {256, 128}, true, 0},
    {"K bf16 H=128 128+64 N=2048", {2048, 128}, {256, 128}, true, 0},
    {"K bf16 H=128 128+64 N=8192", {8192, 128}, {256, 128}, true, 0},
    {"K bf16 H=128 128+64 N=32768", {32768, 128}, {256, 128}, true, 0},
    {"K bf16 H=16 128+64 N=65536", {65536, 16}, {256, 128}, true, 0},
    {"K bf16 H=12 128+64 N=87381", {87381, 12}, {256, 128}, true, 0},
    {"K bf16 H=8 128+64 N=131072", {131072, 8}, {256, 128}, true, 0},
    {"K fp8 H=128 128+64 N=8192", {8192, 128}, {128, 64}, true, 0},
    {"K fp8 H=128 128+64 N=32768", {32768, 128}, {128, 64}, true, 0},
    {"K bf16 H=128 192+64 N=8192", {8192, 128}, {384, 128}, true, 0},
    {"K bf16 H=128 64+64 N=8192", {8192, 128}, {128, 128}, true, 0},
    {"K fp8 H=128 64+32 N=8192", {8192, 128}, {64, 32}, true, 0},
    {"Q bf16 512+64 rows=4096", {32, 128}, {1024, 128}, false, 0},
    {"Q bf16 512+64 rows=262144", {2048, 128}, {1024, 128}, false, 0},
    {"Q fp8 512+64 rows=262144", {2048, 128}, {512, 64}, false, 0},
    {"K bf16 H=128 N=8192, output + 8 bytes", {8192, 128}, {256, 128}, true, 8},
    {"K bf16 H=128 N=8192, output + 4 bytes", {8192, 128}, {256, 128}, true, 4},
    {"K bf16 H=128 N=8192, output + 2 bytes", {8192, 128}, {256, 128}, true, 2},
    {"K fp8 H=128 N=8192, output + 1 byte", {8192, 128}, {128, 64}, true, 1},
    {"K fp8 H=128 127+63 N=8192", {8192, 128}, {127, 63}, true, 0},
};

/* One set of operands, and what the copy copies; all in one allocation. */
struct set {
    unsigned char *memory;
    struct concat_mla_args args;
    unsigned char *copy_to;
    unsigned char *copy_from;
};

static uint64_t second_rows(const struct bench_case *c)
{
    return c->broadcast ? c->dim[0] : c->dim[0] * c->dim[1];
}

/* Read and written by a call. */
static uint64_t moved_bytes(const struct bench_case *c)
{
    return c->dim[0] * c->dim[1] * (2 * c->width[0] + c->width[1]) + second_rows(c) * c->width[1];
}

static uint64_t round_up(uint64_t bytes)
{
    return (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

static void make_set(const struct bench_case *c, struct set *set, uint64_t seed)
{
    uint64_t rows = c->dim[0] * c->dim[1];
    uint64_t out_width = c->width[0] + c->width[1];
    uint64_t out_bytes = round_up(c->out_at + rows * out_width);
    uint64_t a_bytes = round_up(rows * c->width[0]);
    uint64_t b_bytes = round_up(second_rows(c) * c->width[1]);
    uint64_t copy_bytes = round_up(moved_bytes(c) / 2);
    uint64_t size = out_bytes + a_bytes + b_bytes + 2 * copy_bytes;
    set->memory = gpu_alloc(size);
    module_fill_random(set->memory, size, seed);
    set->args = (struct concat_mla_args){
        .out = set->memory + c->out_at,
        .a = set->memory + out_bytes,
        .b = set->memory + out_bytes + a_bytes,
        .dim0 = c->dim[0],
        .dim1 = c->dim[1],
        .out_stride0 = (long long)(c->dim[1] * out_width),
        .out_stride1 = (long long)out_width,
        .a_stride0 = (long long)(c->dim[1] * c->width[0]),
        .a_stride1 = (long long)c->width[0],
        .b_stride0 = (long long)(c->broadcast ? c->width[1] : c->dim[1] * c->width[1]),
        .b_stride1 = (long long)(c->broadcast ? 0 : c->width[1]),
        .a_bytes = c->width[0],
        .b_bytes = c->width[1],
    };
    set->copy_to = set->memory + out_bytes + a_bytes + b_bytes;
    set->copy_from = set->copy_to + copy_bytes;
}

/* The best that the memory may do; only a limit of launches, so a guess in the right order will do. */
static uint64_t bytes_per_ms;

/* Runs a case's pairs; true if its outputs are right. */
static bool run_case(const struct bench_case *c, int pairs)
{
    static struct set sets[SETS_MAX];
    double call_us[BENCH_PAIRS_MAX];
    double copy_us[BENCH_PAIRS_MAX];
    double ratio[BENCH_PAIRS_MAX];
    uint64_t bytes = moved_bytes(c);
    uint64_t wrong = 0;
    int sets_nr = (int)(ROTATE_BYTES / bytes) + 2;
    sets_nr = sets_nr > SETS_MAX ? SETS_MAX : sets_nr;
    for (int s = 0; s < sets_nr; s++) {
        make_set(c, &sets[s], (uint64_t)s + 1);
    }
    struct gpu_event *event[3] = {gpu_event_new(), gpu_event_new(), gpu_event_new()};
    for (int pair = -1; pair < pairs; pair++) { /* the first warms up */
        gpu_event_record(event[0]);
        for (int call = 0; call < CALLS; call++) {
            module_call(&sets[call % sets_nr].args, bytes_per_ms, NULL);
        }
        gpu_event_record(event[1]);
        for (int call = 0; call < CALLS; call++) {
            const struct set *set = &sets[call % sets_nr];
            gpu_copy(set->copy_to, set->copy_from, bytes / 2);
        }
        gpu_event_record(event[2]);
        if (pair >= 0) {
            call_us[pair] = gpu_event_us(event[0], event[1]) / CALLS;
            copy_us[pair] = gpu_event_us(event[1], event[2]) / CALLS;
            ratio[pair] = copy_us[pair] / call_us[pair];
        }
        gpu_sync();
    }
    for (int s = 0; s < sets_nr; s++) {
        wrong += module_count_wrong(&sets[s].args);
        gpu_free(sets[s].memory);
    }
    for (int e = 0; e < 3; e++) {
        gpu_event_free(event[e]);
    }
    double us = bench_median(call_us, pairs);
    double theirs_us = bench_median(copy_us, pairs);
    printf("%-40s %9.2f %7.3f %9.2f %7.3f %7.3f  %s\n", c->name, us, (double)bytes / us / 1e6, theirs_us,
           (double)bytes / theirs_us / 1e6, bench_median(ratio, pairs), wrong ? "WRONG" : "right");
    return wrong == 0;
}

int main(int argc, char **argv)
{
    struct gpu_info info;
    char reason[512];
    bool good = true;
    long pairs = argc > 2 ? strtol(argv[2], NULL, 10) : 9;
    if (pairs < 1 || pairs > BENCH_PAIRS_MAX) {
        fprintf(stderr, "pairs is %s: give 1 to %d\n", argv[2], BENCH_PAIRS_MAX);
        return 1;
    }
    if (!gpu_open(&info, reason, sizeof(reason))) {
        printf("SKIPPED: %s\n", reason);
        return GPU_SKIPPED;
    }
    bytes_per_ms = info.memory_bytes_per_ms;
    module_open(argc > 1 ? argv[1] : ".");
    printf("%s, driver for CUDA %d.%d, NVRTC %d.%d, %d multiprocessors, %zu MiB cache; %d calls, median of %ld pairs\n",
           info.name, info.driver_version / 1000, info.driver_version % 1000 / 10, info.nvrtc_version / 1000,
           info.nvrtc_version % 1000 / 10, info.multiprocessors, info.cache_bytes >> 20, CALLS, pairs);
    printf("%-40s %9s %7s %9s %7s %7s  %s\n", "call", "us", "TB/s", "copy us", "TB/s", "ratio", "output");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        good = run_case(&cases[i], (int)pairs) && good;
    }
    good = bench_cuda_many(bytes_per_ms, (int)pairs) && good;
    good = bench_cuda_end(bytes_per_ms, (int)pairs) && good;
    module_close();
    gpu_close();
    return good ? 0 : 1;
}
