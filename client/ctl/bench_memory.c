/* SPDX-License-Identifier: Apache-2.0 */
/* What goes through shared memory: a large call beside the kernel in this process, and the cost of sharing itself. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"

#define REGISTER_BYTES 65536u
#define REGISTER_BURST 16

struct large {
    struct bench *bench;
    struct mlacat_buffer *buffer[SHAPE_OPERANDS];
    struct mlacat_call call;
    struct concat_mla_args args;
    uint64_t bytes;
    bool streaming;
};

static void add_rate(struct samples *samples, uint64_t bytes, uint64_t begin)
{
    samples_add(samples, (double)bytes / ((double)(measure_now_ns() - begin) / 1e9));
}

static bool service_side(void *context, struct samples *samples)
{
    const struct large *large = context;
    uint64_t begin = measure_now_ns();
    enum mlacat_status status = mlacat_run(large->bench->stream, &large->call, NULL);

    if (status != MLACAT_OK) {
        ctl_fail("large call", status);
        return false;
    }
    add_rate(samples, large->bytes, begin);
    return true;
}

static bool process_side(void *context, struct samples *samples)
{
    const struct large *large = context;
    uint64_t begin = measure_now_ns();

    bench_kernel(&large->args, large->streaming);
    add_rate(samples, large->bytes, begin);
    return true;
}

static bool open_large(struct large *large, struct bench *bench, const struct shape *shape)
{
    uint8_t *data[SHAPE_OPERANDS];
    struct shape_layout layout;

    if (!shape_layout(shape, &layout))
        return false;
    for (int i = 0; i < SHAPE_OPERANDS; i++) {
        enum mlacat_status status = mlacat_buffer_alloc(bench->client, bench->options->device,
                                                        layout.operand[i].buffer_bytes, &large->buffer[i]);

        if (status != MLACAT_OK) {
            ctl_fail("cannot make a buffer", status);
            return false;
        }
        data[i] = mlacat_buffer_data(large->buffer[i]);
        memset(data[i], i + 1, layout.operand[i].buffer_bytes);
        large->call.operand[i] = ctl_tensor(&layout.operand[i], large->buffer[i]);
    }
    large->bytes = shape_bytes(shape);
    large->streaming = bench_streaming(large->bytes);
    large->args = bench_kernel_args(shape, &layout, data);
    return true;
}

bool bench_call_large(struct bench *bench, struct bench_row *row)
{
    struct shape shape = {.op = MLACAT_OP_CONCAT_MLA_K,
                          .dtype = MLACAT_DTYPE_BF16,
                          .dim0 = bench->options->quick ? 64 : 2048,
                          .dim1 = 128,
                          .first = 128,
                          .second = 64};
    struct large large = {.bench = bench, .call = {.size = sizeof(large.call), .op = shape.op, .dtype = shape.dtype}};
    bool good = bench_need_service(bench) && open_large(&large, bench, &shape) &&
                bench_pairs(bench, row, service_side, process_side, &large);

    for (int i = 0; i < SHAPE_OPERANDS; i++)
        mlacat_buffer_release(large.buffer[i]);
    return good;
}

static bool register_side(void *context, struct samples *samples)
{
    const struct bench *bench = context;

    for (int i = 0; i < REGISTER_BURST; i++) {
        struct mlacat_buffer *buffer = NULL;
        uint64_t begin = measure_now_ns();
        enum mlacat_status status = mlacat_buffer_alloc(bench->client, bench->options->device, REGISTER_BYTES, &buffer);

        if (status != MLACAT_OK) {
            ctl_fail("cannot register a buffer", status);
            return false;
        }
        mlacat_buffer_release(buffer);
        samples_add(samples, (double)(measure_now_ns() - begin) / 1e3);
    }
    return true;
}

/* What the client does for a buffer without any service. */
static bool map_once(void)
{
    int fd = memfd_create("mlacat-bench", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    void *memory = MAP_FAILED;

    if (fd < 0)
        return false;
    if (ftruncate(fd, REGISTER_BYTES) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0)
        memory = mmap(NULL, REGISTER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory != MAP_FAILED)
        munmap(memory, REGISTER_BYTES);
    close(fd);
    return memory != MAP_FAILED;
}

static bool map_side(void *context, struct samples *samples)
{
    (void)context;
    for (int i = 0; i < REGISTER_BURST; i++) {
        uint64_t begin = measure_now_ns();

        if (!map_once()) {
            fprintf(stderr, "mlacatctl: cannot make a memfd: %s\n", strerror(errno));
            return false;
        }
        samples_add(samples, (double)(measure_now_ns() - begin) / 1e3);
    }
    return true;
}

bool bench_memory_register(struct bench *bench, struct bench_row *row)
{
    return bench_need_service(bench) && bench_pairs(bench, row, register_side, map_side, bench);
}
