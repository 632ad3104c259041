/* SPDX-License-Identifier: Apache-2.0 */
#include "kernel_large.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "gpu.h"
#include "module.h"

#define GUARD_BYTES ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)

struct large_case {
    const char *name;
    uint64_t dim[2];
    uint64_t width[2]; /* of a and b */
    bool broadcast;    /* b over dim1 */
    bool upside_down;  /* the output's i runs backwards */
    uint64_t misalign; /* of the output */
    uint64_t out_gap0; /* bytes between the rows of one i and the next */
    uint64_t a_gap0;
};

static const struct large_case cases[] = {
    {"K bf16 H=128 128+64, 2.5e9 elements", {102400, 128}, {256, 128}, true, false, 0, 0, 0},
    {"K fp8 H=128 128+64, 4.4e9 elements", {179000, 128}, {128, 64}, true, false, 0, 0, 0},
    {"Q bf16 4e6 rows 512+64", {31250, 128}, {1024, 128}, false, false, 0, 0, 0},
    {"odd heads, 208+48", {140000, 127}, {208, 48}, true, false, 0, 0, 0},
    {"output + 8 bytes", {102400, 128}, {256, 128}, true, false, 8, 0, 0},
    {"output + 4 bytes", {102400, 128}, {256, 128}, true, false, 4, 0, 0},
    {"output + 2 bytes", {102400, 128}, {256, 128}, true, false, 2, 0, 0},
    {"output + 1 byte", {102400, 128}, {256, 128}, true, false, 1, 0, 0},
    {"stride of i past 2^32", {3, 128}, {256, 128}, true, false, 0, 5 * GIB, 4 * GIB + 16},
    {"the same, output upside down", {3, 128}, {256, 128}, true, true, 0, 5 * GIB, 4 * GIB + 16},
    {"dim1 past 2^32, rows of 1 + 0 bytes", {1, 4 * GIB + 5}, {1, 0}, false, false, 0, 0, 0},
    {"dim1 past 2^30, rows of 2 + 1 bytes", {2, GIB + 3}, {2, 1}, false, false, 0, 0, 0},
    {"dim0 past 2^31, rows of 2 + 0 bytes", {2 * GIB + 7, 1}, {2, 0}, false, false, 0, 0, 0},
    {"one row of 5 GiB + 3 GiB", {1, 1}, {5 * GIB, 3 * GIB}, false, false, 0, 0, 0},
    {"three rows of 2 GiB + 65 bytes", {1, 3}, {2 * GIB, 65}, false, false, 1, 0, 0},
};

/* Operand x in memory: guard, rows of [dim0][dim1][width] with a gap after each i, guard; all random. */
struct large_operand {
    unsigned char *memory;
    uint64_t size;
    uint64_t begin; /* of the rows */
    uint64_t seed;
};

static void fill(struct large_operand *operand, uint64_t begin, uint64_t bytes, uint64_t seed)
{
    operand->begin = begin;
    operand->size = begin + bytes + GUARD_BYTES;
    operand->memory = gpu_alloc(operand->size);
    operand->seed = seed;
    module_fill_random(operand->memory, operand->size, seed);
}

/* Bytes of the output's memory beside its rows that changed. */
static uint64_t count_beside(const struct large_operand *out, uint64_t dim0, uint64_t rows_bytes, uint64_t gap)
{
    uint64_t at = out->begin + rows_bytes;
    uint64_t nr = module_count_changed(out->memory, 0, out->begin, out->seed);
    for (uint64_t i = 1; i < dim0 && gap; i++) {
        nr += module_count_changed(out->memory, at, at + gap, out->seed);
        at += gap + rows_bytes;
    }
    if (!gap) {
        at = out->begin + dim0 * rows_bytes;
    }
    return nr + module_count_changed(out->memory, at, out->size, out->seed);
}

static bool run_case(const struct large_case *c, uint64_t bytes_per_ms)
{
    uint64_t out_width = c->width[0] + c->width[1];
    uint64_t out_step = c->dim[1] * out_width + c->out_gap0;
    uint64_t a_step = c->dim[1] * c->width[0] + c->a_gap0;
    uint64_t b_step = (c->broadcast ? 1 : c->dim[1]) * c->width[1];
    uint64_t out_bytes = c->dim[0] * out_step - c->out_gap0;
    uint64_t a_bytes = c->dim[0] * a_step - c->a_gap0;
    uint64_t b_bytes = c->dim[0] * b_step;
    unsigned launches[KERNEL_NR] = {0};
    unsigned all = 0;
    struct large_operand out;
    struct large_operand a;
    struct large_operand b;
    printf("%-38s %7.2f GB ", c->name, (double)out_bytes / 1e9);
    if (out_bytes + a_bytes + b_bytes + 8 * GUARD_BYTES > gpu_free_bytes()) {
        printf("left out: more than the free GPU memory\n");
        return true;
    }
    fill(&out, GUARD_BYTES + c->misalign, out_bytes, 1);
    fill(&a, GUARD_BYTES, a_bytes, 2);
    fill(&b, GUARD_BYTES, b_bytes, 3);
    struct concat_mla_args args = {
        .out = out.memory + out.begin + (c->upside_down ? (c->dim[0] - 1) * out_step : 0),
        .a = a.memory + a.begin,
        .b = b.memory + b.begin,
        .dim0 = c->dim[0],
        .dim1 = c->dim[1],
        .out_stride0 = c->upside_down ? -(long long)out_step : (long long)out_step,
        .out_stride1 = (long long)out_width,
        .a_stride0 = (long long)a_step,
        .a_stride1 = (long long)c->width[0],
        .b_stride0 = (long long)b_step,
        .b_stride1 = (long long)(c->broadcast ? 0 : c->width[1]),
        .a_bytes = c->width[0],
        .b_bytes = c->width[1],
    };
    struct gpu_event *begin = gpu_event_new();
    struct gpu_event *end = gpu_event_new();
    gpu_event_record(begin);
    module_call(&args, bytes_per_ms, launches);
    gpu_event_record(end);
    double ms = gpu_event_us(begin, end) / 1000;
    uint64_t wrong = module_count_wrong(&args) + count_beside(&out, c->dim[0], out_step - c->out_gap0, c->out_gap0);
    wrong += module_count_changed(a.memory, 0, a.size, a.seed) + module_count_changed(b.memory, 0, b.size, b.seed);
    for (int kernel = 0; kernel < KERNEL_NR; kernel++) {
        all += launches[kernel];
    }
    printf("%5u launches of %5.2f ms  %s\n", all, ms / all, wrong ? "WRONG" : "ok");
    gpu_event_free(begin);
    gpu_event_free(end);
    gpu_free(out.memory);
    gpu_free(a.memory);
    gpu_free(b.memory);
    return wrong == 0;
}

bool kernel_large_run(uint64_t bytes_per_ms)
{
    bool good = true;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        good = run_case(&cases[i], bytes_per_ms) && good;
    }
    printf("\n");
    return good;
}
