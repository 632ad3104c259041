/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pipelined calls through the service beside the driver's copy of the same bytes in this process. A byte counts once
 * when it is read and once when it is written (a broadcast row is read once); a copy of n bytes reads n and writes n,
 * so it copies half of what a call moves. Buffers take turns, so that no call finds its operands in the cache. Every
 * output is checked. Each side first does one call or copy that does not count: without MPS the GPU then changes over
 * from one process to the other, which is neither's speed.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench.h"
#include "names.h"
#include "random.h"
#include "reference.h"

#define CALLS 64
#define PAIRS 9
#define PAIRS_QUICK 3
#define SETS_MAX 64
#define SETS_MIN 2
/* Over all sets: many times the largest cache. */
#define ROTATE_BYTES ((uint64_t)1 << 30)
#define ROTATE_BYTES_QUICK ((uint64_t)1 << 20)
#define QUICK_DIVISOR 256
#define ALIGN_BYTES 256u

#define K(n, h, type)                                                                                                \
    {                                                                                                                \
        .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_##type, .dim0 = n, .dim1 = h, .first = 128, .second = 64 \
    }
#define Q(n, h)                                                                                              \
    {                                                                                                        \
        .op = MLACAT_OP_CONCAT_MLA_ABSORB_Q, .dtype = MLACAT_DTYPE_BF16, .dim0 = n, .dim1 = h, .first = 512, \
        .second = 64                                                                                         \
    }

/* h8, h12 and h16 move as many bytes as 8192 tokens of 128 heads. */
static const struct rate_case {
    const char *name;
    struct shape shape;
} cases[] = {
    {"cuda.k.2048", K(2048, 128, BF16)},
    {"cuda.k.8192", K(8192, 128, BF16)},
    {"cuda.k.32768", K(32768, 128, BF16)},
    {"cuda.k.h8", K(131072, 8, BF16)},
    {"cuda.k.h12", K(87381, 12, BF16)},
    {"cuda.k.h16", K(65536, 16, BF16)},
    {"cuda.k.fp8.8192", K(8192, 128, FP8_E4M3)},
    {"cuda.k.fp8.32768", K(32768, 128, FP8_E4M3)},
    {"cuda.q.262144", Q(2048, 128)},
};

/* The operands of one call, and what the copy copies. */
struct set {
    gpu_address operands;
    gpu_address copy_to;
    gpu_address copy_from;
    struct mlacat_buffer *buffer;
    struct mlacat_call call;
};

struct rate {
    struct bench *bench;
    struct mlacat_stream *stream; /* with a ring, if the service has them */
    struct gpu *gpu;
    struct shape shape;
    struct shape_layout layout;
    size_t at[SHAPE_OPERANDS]; /* of each operand's buffer in a set's allocation */
    size_t operand_bytes;      /* of the whole */
    size_t copy_bytes;
    uint64_t bytes; /* that a call moves */
    unsigned sets_nr;
    struct set sets[SETS_MAX];
    uint8_t *host; /* a set's operands, one set after the other */
};

static size_t round_up(size_t bytes)
{
    return (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

static bool gpu_failed(const struct rate *rate)
{
    fprintf(stderr, "mlacatctl: %s\n", rate->gpu->error);
    return false;
}

static bool lay_out(struct rate *rate)
{
    if (!shape_layout(&rate->shape, &rate->layout))
        return false;
    rate->bytes = shape_bytes(&rate->shape);
    rate->copy_bytes = rate->bytes / 2;
    rate->operand_bytes = 0;
    for (int i = 0; i < SHAPE_OPERANDS; i++) {
        rate->at[i] = rate->operand_bytes;
        rate->operand_bytes += round_up(rate->layout.operand[i].buffer_bytes);
    }
    return true;
}

/* As many sets as make the cache useless, and fewer tokens where the memory is too small for two. */
static bool size_sets(struct rate *rate, struct bench_row *row)
{
    bool quick = rate->bench->options->quick;
    uint64_t asked = rate->shape.dim0;
    size_t free_bytes = 0;
    size_t cache_bytes = 0;
    size_t fit = 0;
    uint64_t wanted;

    if (!gpu_free_bytes(rate->gpu, &free_bytes) || !gpu_cache_bytes(rate->gpu, &cache_bytes))
        return gpu_failed(rate);
    for (; rate->shape.dim0 > 0; rate->shape.dim0 /= 2) {
        if (!lay_out(rate))
            return false;
        fit = free_bytes / 8 * 7 / (rate->operand_bytes + 2 * rate->copy_bytes + 3 * GPU_GRAIN_BYTES);
        if (fit >= SETS_MIN)
            break;
    }
    if (fit < SETS_MIN) {
        fprintf(stderr, "mlacatctl: %s: the GPU has %zu MiB free; that is too little for any call\n", row->name,
                free_bytes >> 20);
        return false;
    }
    wanted = (quick ? ROTATE_BYTES_QUICK : ROTATE_BYTES) / rate->bytes + SETS_MIN;
    if (wanted > SETS_MAX)
        wanted = SETS_MAX;
    rate->sets_nr = (unsigned)(wanted < fit ? wanted : fit);
    if (rate->shape.dim0 != asked || rate->sets_nr * rate->bytes < 2 * cache_bytes)
        snprintf(row->remark, sizeof(row->remark), "%" PRIu64 " tokens, %u sets of buffers: %s", rate->shape.dim0,
                 rate->sets_nr, quick ? "--quick" : "so much memory is free");
    return true;
}

static uint64_t seed_of(const struct rate *rate, unsigned set, int operand)
{
    return rate->bench->options->seed + set * (uint64_t)SHAPE_OPERANDS + (uint64_t)operand;
}

/* The inputs of a set as they were made; the output's part of `host` is left as it is. */
static void make_inputs(const struct rate *rate, unsigned set)
{
    for (int i = SHAPE_FIRST; i < SHAPE_OPERANDS; i++)
        random_fill(seed_of(rate, set, i), rate->shape.dtype, rate->host + rate->at[i],
                    rate->layout.operand[i].buffer_bytes);
}

/* The copy's source is as random as the inputs: it is the first one, again and again. */
static bool fill_copy_source(const struct rate *rate, const struct set *set)
{
    size_t input = rate->layout.operand[SHAPE_FIRST].buffer_bytes;

    for (size_t done = 0; done < rate->copy_bytes; done += input) {
        size_t part = rate->copy_bytes - done < input ? rate->copy_bytes - done : input;

        if (!gpu_copy(rate->gpu, set->copy_from + done, set->operands + rate->at[SHAPE_FIRST], part))
            return false;
    }
    return gpu_wait(rate->gpu);
}

static bool fill_set(const struct rate *rate, unsigned index)
{
    const struct set *set = &rate->sets[index];

    make_inputs(rate, index);
    for (int i = SHAPE_FIRST; i < SHAPE_OPERANDS; i++)
        if (!gpu_upload(rate->gpu, set->operands + rate->at[i], rate->host + rate->at[i],
                        rate->layout.operand[i].buffer_bytes))
            return gpu_failed(rate);
    return (gpu_fill(rate->gpu, set->operands + rate->at[SHAPE_OUT], REFERENCE_POISON,
                     rate->layout.operand[SHAPE_OUT].buffer_bytes) &&
            fill_copy_source(rate, set)) ||
           gpu_failed(rate);
}

static bool make_set(struct rate *rate, unsigned index)
{
    struct set *set = &rate->sets[index];
    enum mlacat_status status;

    if (!gpu_alloc(rate->gpu, rate->operand_bytes, &set->operands) ||
        !gpu_alloc(rate->gpu, rate->copy_bytes, &set->copy_to) ||
        !gpu_alloc(rate->gpu, rate->copy_bytes, &set->copy_from))
        return gpu_failed(rate);
    status = mlacat_buffer_register_ptr(rate->bench->client, (const void *)(uintptr_t)set->operands,
                                        rate->operand_bytes, &set->buffer);
    if (status != MLACAT_OK) {
        ctl_fail("cannot register GPU memory", status);
        return false;
    }
    set->call = (struct mlacat_call){.size = sizeof(set->call), .op = rate->shape.op, .dtype = rate->shape.dtype};
    for (int i = 0; i < SHAPE_OPERANDS; i++) {
        set->call.operand[i] = ctl_tensor(&rate->layout.operand[i], set->buffer);
        set->call.operand[i].offset_bytes += rate->at[i];
    }
    return fill_set(rate, index);
}

static void free_sets(struct rate *rate)
{
    for (unsigned i = 0; i < rate->sets_nr; i++) {
        mlacat_buffer_release(rate->sets[i].buffer);
        gpu_free(rate->gpu, rate->sets[i].operands);
        gpu_free(rate->gpu, rate->sets[i].copy_to);
        gpu_free(rate->gpu, rate->sets[i].copy_from);
    }
    if (rate->host)
        munmap(rate->host, rate->operand_bytes);
}

static void add_rate(const struct rate *rate, struct samples *samples, uint64_t begin)
{
    samples_add(samples, (double)rate->bytes * CALLS / ((double)(measure_now_ns() - begin) / 1e9));
}

static bool service_side(void *context, struct samples *samples)
{
    struct rate *rate = context;
    struct mlacat_stream *stream = rate->stream;
    enum mlacat_status status = mlacat_run(stream, &rate->sets[rate->sets_nr - 1].call, NULL);
    uint64_t begin = measure_now_ns();
    uint64_t ids[CALLS];

    for (unsigned i = 0; status == MLACAT_OK && i < CALLS; i++)
        status = mlacat_submit(stream, &rate->sets[i % rate->sets_nr].call, &ids[i]);
    for (unsigned i = 0; status == MLACAT_OK && i < CALLS; i++)
        status = mlacat_wait(stream, ids[i], -1, NULL);
    if (status != MLACAT_OK) {
        ctl_fail("64 calls in flight", status);
        return false;
    }
    add_rate(rate, samples, begin);
    return true;
}

static bool copy_set(const struct rate *rate, unsigned index)
{
    const struct set *set = &rate->sets[index % rate->sets_nr];

    return gpu_copy(rate->gpu, set->copy_to, set->copy_from, rate->copy_bytes);
}

static bool copy_side(void *context, struct samples *samples)
{
    struct rate *rate = context;
    uint64_t begin;

    if (!copy_set(rate, rate->sets_nr - 1) || !gpu_wait(rate->gpu))
        return gpu_failed(rate);
    begin = measure_now_ns();
    for (unsigned i = 0; i < CALLS; i++)
        if (!copy_set(rate, i))
            return gpu_failed(rate);
    if (!gpu_wait(rate->gpu))
        return gpu_failed(rate);
    add_rate(rate, samples, begin);
    return true;
}

static bool check_sets(const struct rate *rate, const char *name)
{
    uint8_t *const data[] = {rate->host + rate->at[SHAPE_OUT], rate->host + rate->at[SHAPE_FIRST],
                             rate->host + rate->at[SHAPE_SECOND]};
    struct difference difference;
    char text[256];

    for (unsigned i = 0; i < rate->sets_nr && i < CALLS; i++) {
        make_inputs(rate, i);
        if (!gpu_download(rate->gpu, data[SHAPE_OUT], rate->sets[i].operands + rate->at[SHAPE_OUT],
                          rate->layout.operand[SHAPE_OUT].buffer_bytes))
            return gpu_failed(rate);
        if (reference_check(&rate->shape, &rate->layout, data, &difference))
            continue;
        reference_text(&difference, text, sizeof(text));
        fprintf(stderr, "mlacatctl: %s: the result is wrong: %s\n", name, text);
        return false;
    }
    return true;
}

static bool open_stream(struct rate *rate)
{
    struct area_device *device = &rate->bench->device;
    enum mlacat_status status = area_stream_open(device, MLACAT_TRANSPORT_AUTO, &rate->stream);

    if (status != MLACAT_OK)
        ctl_fail_for("cannot open a stream", status, area_message(device));
    return status == MLACAT_OK;
}

static bool make_sets(struct rate *rate, struct bench_row *row)
{
    void *host;

    if (!size_sets(rate, row))
        return false;
    host = mmap(NULL, rate->operand_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (host == MAP_FAILED) {
        fprintf(stderr, "mlacatctl: %s: cannot map %zu bytes; give --quick for small buffers\n", row->name,
                rate->operand_bytes);
        return false;
    }
    rate->host = host;
    for (unsigned i = 0; i < rate->sets_nr; i++)
        if (!make_set(rate, i))
            return false;
    return true;
}

static const struct shape *find_shape(const char *name)
{
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (strcmp(cases[i].name, name) == 0)
            return &cases[i].shape;
    return NULL;
}

bool bench_cuda_rate(struct bench *bench, struct bench_row *row)
{
    const struct shape *shape = find_shape(row->name);
    struct rate *rate = shape ? calloc(1, sizeof(*rate)) : NULL;
    bool good;

    if (!rate) {
        fprintf(stderr, "mlacatctl: %s: no shape of that name, or no memory\n", row->name);
        return false;
    }
    rate->bench = bench;
    rate->gpu = &bench->device.gpu;
    rate->shape = *shape;
    row->pairs = PAIRS;
    if (bench->options->quick) {
        rate->shape.dim0 /= QUICK_DIVISOR;
        row->pairs = PAIRS_QUICK;
    }
    good = open_stream(rate) && make_sets(rate, row) && bench_pairs(bench, row, service_side, copy_side, rate) &&
           check_sets(rate, row->name);
    mlacat_stream_close(rate->stream);
    free_sets(rate);
    free(rate);
    return good;
}
