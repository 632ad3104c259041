/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host kernel against memcpy from one buffer of 256 MiB to another: same thread, runs in turns, median of the
 * pairs. A byte counts once when it is read and once when it is written; the gaps between strided rows count for
 * nothing, although processors fetch a part of them.
 *
 *     bench_host_kernel [pairs]        default 9
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "clock.h"
#include "concat_mla_host.h"

#define BUFFER_BYTES ((size_t)256 << 20)
#define PAIRS_MAX 101

struct bench_case {
    const char *name;
    unsigned long long heads; /* dim1 */
    unsigned long long a_bytes;
    unsigned long long b_bytes;
    unsigned long long a_gap; /* bytes between the rows of a */
    int broadcast;            /* b has one row for all heads */
    size_t out_at;            /* address of the output beyond a page's start */
    size_t in_at;
};

static const struct bench_case cases[] = {
    {"K 128+64 H=128 bf16", 128, 256, 128, 0, 1, 0, 0},
    {"K 128+64 H=128 bf16, k_nope strided", 128, 256, 128, 256, 1, 0, 0},
    {"K 128+64 H=16 bf16, k_nope strided", 16, 256, 128, 256, 1, 0, 0},
    {"K 128+64 H=128 fp8", 128, 128, 64, 0, 1, 0, 0},
    {"Q 512+64 H=128 bf16", 128, 1024, 128, 0, 0, 0, 0},
    {"K 128+64 H=128 bf16, out 2-byte aligned", 128, 256, 128, 0, 1, 2, 0},
    {"K 128+64 H=128 fp8, out odd", 128, 128, 64, 0, 1, 1, 0},
    {"K 128+64 H=128 bf16, strided, out odd", 128, 256, 128, 256, 1, 1, 0},
    {"K 128+64 H=128 bf16, strided, all odd", 128, 256, 128, 256, 1, 1, 3},
    {"K 127+63 H=128 fp8, all odd", 128, 127, 63, 0, 1, 1, 3},
    {"K 127+63 H=128 fp8, all odd, strided", 128, 127, 63, 130, 1, 1, 3},
    {"Q 511+63 H=128 fp8, all odd", 128, 511, 63, 0, 0, 1, 3},
};

static unsigned char *buffer_new(void)
{
    void *bytes = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED) {
        perror("mmap of 256 MiB");
        exit(1);
    }
    memset(bytes, 1, BUFFER_BYTES);
    return bytes;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int nr)
{
    qsort(values, (size_t)nr, sizeof(double), compare);
    return values[nr / 2];
}

/* Fills the arguments so that the largest operand nearly fills a buffer; returns the bytes that are moved. */
static unsigned long long case_args(const struct bench_case *c, unsigned char *const buffer[3],
                                    struct concat_mla_args *args)
{
    unsigned long long out_row = c->a_bytes + c->b_bytes;
    unsigned long long a_row = c->a_bytes + c->a_gap;
    unsigned long long n = (BUFFER_BYTES - 64) / ((out_row > a_row ? out_row : a_row) * c->heads);
    *args = (struct concat_mla_args){
        .out = buffer[0] + c->out_at,
        .a = buffer[1] + c->in_at,
        .b = buffer[2] + c->in_at,
        .dim0 = n,
        .dim1 = c->heads,
        .out_stride0 = (long long)(out_row * c->heads),
        .out_stride1 = (long long)out_row,
        .a_stride0 = (long long)(a_row * c->heads),
        .a_stride1 = (long long)a_row,
        .b_stride0 = (long long)(c->broadcast ? c->b_bytes : c->b_bytes * c->heads),
        .b_stride1 = (long long)(c->broadcast ? 0 : c->b_bytes),
        .a_bytes = c->a_bytes,
        .b_bytes = c->b_bytes,
    };
    return n * c->heads * (out_row + c->a_bytes + (c->broadcast ? 0 : c->b_bytes)) +
           (c->broadcast ? n * c->b_bytes : 0);
}

int main(int argc, char **argv)
{
    int pairs = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 9;
    if (pairs < 1 || pairs > PAIRS_MAX) {
        fprintf(stderr, "pairs is %d: give 1 to %d\n", pairs, PAIRS_MAX);
        return 1;
    }
    unsigned char *buffer[3] = {buffer_new(), buffer_new(), buffer_new()};
    printf("%-42s %12s %12s %7s\n", "case (256 MiB, one thread)", "GB/s", "memcpy GB/s", "ratio");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct concat_mla_args args;
        unsigned long long bytes = case_args(&cases[i], buffer, &args);
        double ours[PAIRS_MAX];
        double theirs[PAIRS_MAX];
        double ratio[PAIRS_MAX];
        for (int p = 0; p < pairs; p++) {
            uint64_t t0 = clock_now_ns();
            concat_mla_host(&args, 0, args.dim0 * args.dim1, 1);
            uint64_t t1 = clock_now_ns();
            memcpy(buffer[0], buffer[1], BUFFER_BYTES);
            uint64_t t2 = clock_now_ns();
            ours[p] = (double)bytes / (double)(t1 - t0);
            theirs[p] = 2.0 * (double)BUFFER_BYTES / (double)(t2 - t1);
            ratio[p] = ours[p] / theirs[p];
        }
        printf("%-42s %12.2f %12.2f %7.2f\n", cases[i].name, median(ours, pairs), median(theirs, pairs),
               median(ratio, pairs));
    }
    return 0;
}
