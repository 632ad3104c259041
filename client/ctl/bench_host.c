/* SPDX-License-Identifier: Apache-2.0 */
/* The CPU kernel on one thread beside memcpy: both move the same bytes (read and written together) in the same memory.
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "bench.h"
#include "concat_mla_host.h"
#include "names.h"

#define BUFFER_BYTES (256u << 20)
#define BUFFER_BYTES_QUICK (8u << 20)
#define HEADS 128u
/* Room for the guards and the odd starts. */
#define MARGIN_BYTES 4096u

struct host {
    struct concat_mla_args args;
    uint64_t bytes; /* read and written */
    bool streaming;
    void *to;
    const void *from;
};

struct concat_mla_args bench_kernel_args(const struct shape *shape, const struct shape_layout *layout,
                                         uint8_t *const data[3])
{
    const struct shape_operand *out = &layout->operand[SHAPE_OUT];
    const struct shape_operand *a = &layout->operand[SHAPE_FIRST];
    const struct shape_operand *b = &layout->operand[SHAPE_SECOND];
    int64_t element = (int64_t)layout->element_bytes;

    return (struct concat_mla_args){
        .out = data[SHAPE_OUT] + out->offset_bytes,
        .a = data[SHAPE_FIRST] + a->offset_bytes,
        .b = data[SHAPE_SECOND] + b->offset_bytes,
        .dim0 = shape->dim0,
        .dim1 = shape->dim1,
        .out_stride0 = out->strides[0] * element,
        .out_stride1 = out->strides[1] * element,
        .a_stride0 = a->strides[0] * element,
        .a_stride1 = a->strides[1] * element,
        .b_stride0 = b->strides[0] * element,
        .b_stride1 = names_op(shape->op)->broadcast ? 0 : b->strides[1] * element,
        .a_bytes = shape->first * layout->element_bytes,
        .b_bytes = shape->second * layout->element_bytes,
    };
}

bool bench_streaming(uint64_t bytes)
{
    return bytes >= concat_mla_host_streaming_bytes();
}

void bench_kernel(const struct concat_mla_args *args, bool streaming)
{
    concat_mla_host(args, 0, args->dim0 * args->dim1, streaming);
}

static void add_rate(struct samples *samples, uint64_t bytes, uint64_t begin_ns)
{
    uint64_t ns = measure_now_ns() - begin_ns;

    samples_add(samples, (double)bytes / ((double)(ns > 0 ? ns : 1) / 1e9));
}

static bool kernel_side(void *context, struct samples *samples)
{
    const struct host *host = context;
    uint64_t begin = measure_now_ns();

    bench_kernel(&host->args, host->streaming);
    add_rate(samples, host->bytes, begin);
    return true;
}

static bool memcpy_side(void *context, struct samples *samples)
{
    const struct host *host = context;
    uint64_t begin = measure_now_ns();

    memcpy(host->to, host->from, host->bytes / 2);
    /* The compiler must not see that nobody reads the copy. */
    __asm__ volatile("" : : "r"(host->to) : "memory");
    add_rate(samples, host->bytes, begin);
    return true;
}

static bool map_arenas(uint8_t *arena[3], size_t bytes, const char *name)
{
    for (int i = 0; i < SHAPE_OPERANDS; i++) {
        void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (memory == MAP_FAILED) {
            fprintf(stderr, "mlacatctl: %s: cannot map %zu bytes; give --quick for small buffers\n", name, bytes);
            return false;
        }
        arena[i] = memory;
        memset(memory, i + 1, bytes);
    }
    return true;
}

/* `shape` has all but dim0: as many rows as fill the output buffer. `skew` shifts operand i by 2 * i + 1 bytes. */
static bool run(struct bench *bench, struct bench_row *row, struct shape shape, bool skew)
{
    uint64_t buffer = bench->options->quick ? BUFFER_BYTES_QUICK : BUFFER_BYTES;
    size_t bytes = buffer + MARGIN_BYTES;
    uint8_t *arena[SHAPE_OPERANDS] = {NULL};
    uint8_t *data[SHAPE_OPERANDS];
    struct shape_layout layout;
    struct host host;
    bool good;

    shape.dim0 = buffer / ((shape.first + shape.second) * shape.dim1 * names_dtype_bytes(shape.dtype));
    good = shape_layout(&shape, &layout) && map_arenas(arena, bytes, row->name);
    for (size_t i = 0; good && i < SHAPE_OPERANDS; i++)
        data[i] = arena[i] + (skew ? 2 * i + 1 : 0);
    if (good) {
        host = (struct host){.args = bench_kernel_args(&shape, &layout, data),
                             .bytes = shape_bytes(&shape),
                             .streaming = bench_streaming(shape_bytes(&shape)),
                             .to = arena[SHAPE_OUT],
                             .from = arena[SHAPE_FIRST]};
        good = bench_pairs(bench, row, kernel_side, memcpy_side, &host);
    }
    for (int i = 0; i < SHAPE_OPERANDS; i++)
        if (arena[i])
            munmap(arena[i], bytes);
    return good;
}

bool bench_host_k(struct bench *bench, struct bench_row *row)
{
    struct shape shape = {
        .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16, .dim1 = HEADS, .first = 128, .second = 64};

    return run(bench, row, shape, false);
}

bool bench_host_q(struct bench *bench, struct bench_row *row)
{
    struct shape shape = {
        .op = MLACAT_OP_CONCAT_MLA_ABSORB_Q, .dtype = MLACAT_DTYPE_BF16, .dim1 = HEADS, .first = 512, .second = 64};

    return run(bench, row, shape, false);
}

bool bench_host_unaligned(struct bench *bench, struct bench_row *row)
{
    struct shape shape = {
        .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_FP8_E4M3, .dim1 = HEADS, .first = 128, .second = 64};

    return run(bench, row, shape, true);
}
