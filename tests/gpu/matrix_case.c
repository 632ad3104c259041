/* SPDX-License-Identifier: Apache-2.0 */
#include "matrix_case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu.h"

#define GUARD_BYTES 1024
#define ARENA_ALIGN 256
#define NR(array) (sizeof(array) / sizeof((array)[0]))

static const char *const layout_names[LAYOUT_NR] = {"contiguous", "per row",  "half",       "head-major",
                                                    "negative",   "repeated", "interleaved"};

static uint64_t random_state = 1;

uint64_t matrix_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void set_strides(struct operand *operand, long long stride0, long long stride1)
{
    operand->stride[0] = stride0;
    operand->stride[1] = stride1;
}

/* `step` keeps the gaps that a layout makes multiples of what the widths and addresses are multiples of. */
static void lay_out(struct matrix_case *c, long long step)
{
    struct operand *out = &c->operand[OUT];
    struct operand *a = &c->operand[A];
    struct operand *b = &c->operand[B];
    long long n = (long long)c->dim[0];
    long long h = (long long)c->dim[1];
    long long wa = (long long)a->width;
    long long wb = (long long)b->width;
    out->width = a->width + b->width;
    set_strides(out, h * (wa + wb), wa + wb);
    set_strides(a, h * wa, wa);
    set_strides(b, wb, 0);
    if (c->layout == PER_ROW) {
        set_strides(b, h * wb, wb);
    } else if (c->layout == HALF) {
        set_strides(a, h * (2 * wa + step), 2 * wa + step);
        set_strides(out, h * (wa + wb + step) + 2 * step, wa + wb + step);
    } else if (c->layout == HEAD_MAJOR) {
        set_strides(a, wa, n * wa);
        set_strides(b, wb, n * wb);
    } else if (c->layout == NEGATIVE) {
        set_strides(out, -h * (wa + wb), -(wa + wb));
        set_strides(a, h * wa, -wa);
        set_strides(b, -wb, 0);
    } else if (c->layout == REPEATED) {
        set_strides(a, 0, wa);
        set_strides(b, wb, 0);
    } else if (c->layout == INTERLEAVED) {
        set_strides(out, h * (2 * wa + wb), 2 * wa + wb);
        set_strides(a, out->stride[0], out->stride[1]);
    }
}

/* Sizes the arena so that the bytes from the lowest to the highest row fit between the guards. */
static void place(struct operand *operand, const uint64_t dim[2], bool tight)
{
    uint64_t guard = tight ? 0 : GUARD_BYTES;
    uint64_t below = 0;
    uint64_t above = operand->width;
    for (int k = 0; k < 2; k++) {
        long long reach = (long long)(dim[k] - 1) * operand->stride[k];
        below += reach < 0 ? (uint64_t)-reach : 0;
        above += reach > 0 ? (uint64_t)reach : 0;
    }
    /* Tight: what `below` lacks to a multiple of the alignment stands before it, and there nothing may be touched. */
    operand->at = (guard + below + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN + operand->misalign;
    operand->size = operand->at + above + guard;
    operand->size += operand->size == 0;
}

static void fill(struct operand *operand)
{
    operand->host = malloc(operand->size);
    operand->device = gpu_alloc(operand->size);
    if (!operand->host) {
        fprintf(stderr, "no memory for %llu bytes\n", (unsigned long long)operand->size);
        exit(1);
    }
    for (uint64_t t = 0; t < operand->size; t += sizeof(uint64_t)) {
        uint64_t value = matrix_random();
        memcpy(operand->host + t, &value, operand->size - t < sizeof(value) ? operand->size - t : sizeof(value));
    }
    gpu_upload(operand->device, operand->host, operand->size);
}

void matrix_case_open(struct matrix_case *c)
{
    struct operand *out = &c->operand[OUT];
    struct operand *a = &c->operand[A];
    place(&c->operand[B], c->dim, c->tight);
    fill(&c->operand[B]);
    if (c->layout != INTERLEAVED) {
        place(a, c->dim, c->tight);
        fill(a);
        place(out, c->dim, c->tight);
        fill(out);
        return;
    }
    /* One arena: a begins where the output's row ends. */
    uint64_t out_width = out->width;
    out->width += a->width;
    place(out, c->dim, c->tight);
    out->width = out_width;
    fill(out);
    a->at = out->at + out_width;
    a->size = 0;
    a->host = out->host;
    a->device = out->device;
}

void matrix_case_close(struct matrix_case *c)
{
    for (int k = 0; k < OPERANDS; k++) {
        if (c->operand[k].size) {
            free(c->operand[k].host);
            gpu_free(c->operand[k].device);
        }
    }
}

/* What the call is to do, done to the host's images. */
static void expect(const struct matrix_case *c)
{
    const struct operand *out = &c->operand[OUT];
    for (uint64_t row = 0; row < c->dim[0] * c->dim[1]; row++) {
        long long i = (long long)(row / c->dim[1]);
        long long j = (long long)(row % c->dim[1]);
        unsigned char *to = out->host + out->at + i * out->stride[0] + j * out->stride[1];
        for (int k = A; k <= B; k++) {
            const struct operand *in = &c->operand[k];
            if (!c->without[k]) {
                memcpy(to, in->host + in->at + i * in->stride[0] + j * in->stride[1], in->width);
            }
            to += in->width;
        }
    }
}

static uint64_t count_differences(const struct operand *operand)
{
    uint64_t nr = 0;
    unsigned char *device = malloc(operand->size + 1);
    if (!device) {
        fprintf(stderr, "no memory for %llu bytes\n", (unsigned long long)operand->size);
        exit(1);
    }
    gpu_download(device, operand->device, operand->size);
    if (memcmp(device, operand->host, operand->size) != 0) {
        for (uint64_t t = 0; t < operand->size; t++) {
            nr += device[t] != operand->host[t];
        }
    }
    free(device);
    return nr;
}

struct concat_mla_args matrix_case_args(const struct matrix_case *c)
{
    const struct operand *o = c->operand;
    return (struct concat_mla_args){
        .out = o[OUT].device + o[OUT].at,
        .a = c->without[A] ? NULL : o[A].device + o[A].at,
        .b = c->without[B] ? NULL : o[B].device + o[B].at,
        .dim0 = c->dim[0],
        .dim1 = c->dim[1],
        .out_stride0 = o[OUT].stride[0],
        .out_stride1 = o[OUT].stride[1],
        .a_stride0 = o[A].stride[0],
        .a_stride1 = o[A].stride[1],
        .b_stride0 = o[B].stride[0],
        .b_stride1 = o[B].stride[1],
        .a_bytes = o[A].width,
        .b_bytes = o[B].width,
    };
}

bool matrix_case_check(struct matrix_case *c)
{
    const struct operand *o = c->operand;
    struct concat_mla_args args = matrix_case_args(c);
    uint64_t wrong = 0;
    expect(c);
    gpu_sync();
    for (int k = 0; k < OPERANDS; k++) {
        wrong += o[k].size ? count_differences(&o[k]) : 0;
    }
    if (wrong) {
        printf("WRONG: %llu bytes: %llu x %llu rows of %llu + %llu bytes, %s, addresses + %llu %llu %llu%s%s\n",
               (unsigned long long)wrong, args.dim0, args.dim1, args.a_bytes, args.b_bytes, layout_names[c->layout],
               (unsigned long long)o[OUT].misalign, (unsigned long long)o[A].misalign,
               (unsigned long long)o[B].misalign, c->without[A] ? ", without a" : "",
               c->without[B] ? ", without b" : "");
    }
    return wrong == 0;
}

/* 1-, 2- and 4-byte elements; first those of models, then odd ones, empty parts and single elements. */
const uint64_t matrix_widths[][2] = {
    {256, 128}, {384, 128}, {128, 128}, {128, 64}, {192, 64},  {64, 64},    {64, 32},   {1024, 128},
    {512, 128}, {512, 64},  {256, 64},  {256, 32}, {512, 256}, {127, 63},   {254, 126}, {508, 252},
    {96, 40},   {100, 28},  {1032, 72}, {575, 1},  {1, 575},   {4096, 512}, {1, 1},     {2, 2},
    {4, 4},     {0, 64},    {48, 0},    {16, 16},  {24, 8},    {5000, 3},
};
static const uint64_t misalignments[][OPERANDS] = {{0, 0, 0}, {16, 32, 48}, {8, 0, 0}, {4, 4, 4}, {0, 2, 0},
                                                   {2, 0, 2}, {1, 0, 0},    {0, 3, 0}, {0, 0, 1}, {5, 7, 11}};
static const uint64_t heads[] = {1, 128, 3, 16, 5, 8, 127, 12, 2, 31};
static const uint64_t tokens[] = {33, 1, 7, 130, 2, 64, 3};

const size_t matrix_widths_nr = NR(matrix_widths);
const size_t matrix_misalignments_nr = NR(misalignments);

void matrix_case_make(struct matrix_case *c, size_t widths, enum layout layout, size_t misalignment, unsigned turn,
                      uint64_t rows_bytes_max)
{
    static const uint64_t steps[] = {16, 8, 4, 2, 1};
    const uint64_t *width = matrix_widths[widths];
    memset(c, 0, sizeof(*c));
    c->layout = layout;
    c->dim[0] = tokens[turn % NR(tokens)];
    c->dim[1] = heads[turn % NR(heads)];
    while (c->dim[0] > 1 && c->dim[0] * c->dim[1] * (width[0] + width[1]) > rows_bytes_max) {
        c->dim[0] /= 2;
    }
    c->without[A] = turn % 11 == 3;
    c->without[B] = turn % 11 == 7;
    c->bytes_per_ms = turn % 2 ? 1 : (uint64_t)1 << 32; /* 1: as many launches as the plan makes at most */
    c->operand[A].width = width[0];
    c->operand[B].width = width[1];
    for (int k = 0; k < OPERANDS; k++) {
        c->operand[k].misalign = misalignments[misalignment][k];
    }
    lay_out(c, (long long)steps[turn % NR(steps)]);
}
