/* SPDX-License-Identifier: Apache-2.0 */
#include "trial.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gpu_memory.h"
#include "proc.h"
#include "require.h"

/* Tens of milliseconds of short rows: on a CPU, on a GPU, and where the CPU plays the GPU. */
#define SLOW_ROWS_HOST ((uint64_t)6 << 20)
#define SLOW_ROWS_GPU ((uint64_t)256 << 20)
#define SLOW_ROWS_FAKE ((uint64_t)512 << 10)
#define SLOW_LOOKS 32 /* in turn at once, after a millisecond, after two, ... */

const struct trial_shape small_shape = {
    .op = OP_CONCAT_MLA_K, .dtype = DTYPE_BF16, .d0 = 3, .d1 = 4, .w1 = 8, .w2 = 4, .seed = 1};

int memfd_make(size_t bytes, unsigned seals)
{
    int fd = memfd_create(MEMFD_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    REQUIRE(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0, "a memfd of %zu bytes", bytes);
    REQUIRE(seals == 0 || fcntl(fd, F_ADD_SEALS, seals) == 0);
    if (gpu_memory_used()) {
        gpu_memory_make(fd, bytes);
    }
    return fd;
}

bool memfds_mapped(pid_t server, uint32_t nr)
{
    return gpu_memory_used() || proc_maps(server, MEMFD_NAME) == nr;
}

bool descriptors_open(pid_t server, uint32_t nr)
{
    return gpu_memory_used() || proc_fds(server) == nr;
}

static uint32_t element_bytes(uint32_t dtype)
{
    static const uint8_t bytes[] = {
#define MLACAT_DTYPE(number, enum_name, name, size) [number] = size,
#include "mlacat_dtypes.def"
    };
    return bytes[dtype];
}

/* Elements from the first to one past the last. */
static uint64_t extent(const struct operand *x)
{
    if (x->shape[0] == 0 || x->shape[1] == 0 || x->shape[2] == 0) {
        return 0;
    }
    return (x->shape[0] - 1) * (uint64_t)x->strides[0] + (x->shape[1] - 1) * (uint64_t)x->strides[1] + x->shape[2];
}

static void set_shape(struct operand *x, uint64_t d0, uint64_t d1, uint64_t width, int64_t stride0, int64_t stride1)
{
    *x = (struct operand){.shape = {d0, d1, width}, .strides = {stride0, stride1, 1}};
}

static void lay_out(struct trial *trial, const struct trial_shape *shape)
{
    int64_t d0 = (int64_t)shape->d0;
    int64_t d1 = (int64_t)shape->d1;
    int64_t w1 = (int64_t)shape->w1;
    int64_t w2 = (int64_t)shape->w2;
    int64_t gap = shape->strided ? 3 : 0;
    int64_t rows = shape->op == OP_CONCAT_MLA_K ? 1 : d1; /* of the second input */
    set_shape(&trial->operand[0], shape->d0, shape->d1, shape->w1 + shape->w2, d1 * (w1 + w2 + gap), w1 + w2 + gap);
    set_shape(&trial->operand[1], shape->d0, shape->d1, shape->w1, d1 * w1, w1);
    set_shape(&trial->operand[2], shape->d0, (uint64_t)rows, shape->w2, rows * w2, w2);
    if (shape->strided && shape->op == OP_CONCAT_MLA_K) {
        trial->operand[1].strides[0] = d1 * 2 * w1; /* one half of a wider row */
        trial->operand[1].strides[1] = 2 * w1;
        trial->operand[2].strides[0] = w2 + 7; /* the tail of a wider row */
    } else if (shape->strided) {
        trial->operand[1].strides[0] = w1; /* head-major */
        trial->operand[1].strides[1] = d0 * w1;
    }
    uint64_t offset_bytes = shape->strided ? element_bytes(shape->dtype) : 0;
    for (int i = 0; i < 3; i++) {
        trial->operand[i].offset_bytes = offset_bytes;
        offset_bytes += extent(&trial->operand[i]) * element_bytes(shape->dtype);
        offset_bytes += shape->strided ? element_bytes(shape->dtype) : 0;
    }
    trial->bytes = (size_t)offset_bytes + 8; /* a call without elements has memory too */
}

static uint64_t position(const struct trial *trial, int i, uint64_t row, uint64_t column)
{
    const struct operand *x = &trial->operand[i];
    uint64_t elements = row * (uint64_t)x->strides[0] + (x->shape[1] == 1 ? 0 : column) * (uint64_t)x->strides[1];
    return x->offset_bytes + elements * element_bytes(trial->dtype);
}

/* The definition of the ops, row by row. */
static void expect(struct trial *trial)
{
    size_t w1 = trial->operand[1].shape[2] * element_bytes(trial->dtype);
    size_t w2 = trial->operand[2].shape[2] * element_bytes(trial->dtype);
    for (uint64_t i = 0; i < trial->operand[0].shape[0]; i++) {
        for (uint64_t j = 0; j < trial->operand[0].shape[1]; j++) {
            uint8_t *out = trial->expected + position(trial, 0, i, j);
            memcpy(out, trial->memory + position(trial, 1, i, j), w1);
            memcpy(out + w1, trial->memory + position(trial, 2, i, j), w2);
        }
    }
}

void trial_refill(struct trial *trial, uint32_t seed)
{
    uint32_t random = seed * 2654435761u + 1;
    for (size_t i = 0; i < trial->bytes; i++) {
        random = random * 1664525 + 1013904223;
        trial->memory[i] = (uint8_t)(random >> 24);
    }
    memcpy(trial->expected, trial->memory, trial->bytes);
    expect(trial);
    gpu_memory_upload(trial->fd);
}

static void map(struct trial *trial)
{
    trial->fd = memfd_make(trial->bytes, F_SEAL_SHRINK);
    trial->memory = mmap(NULL, trial->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, trial->fd, 0);
    REQUIRE(trial->memory != MAP_FAILED);
}

void trial_make(struct trial *trial, const struct trial_shape *shape)
{
    *trial = (struct trial){.op = shape->op, .dtype = shape->dtype};
    lay_out(trial, shape);
    map(trial);
    trial->expected = malloc(trial->bytes);
    REQUIRE(trial->expected != NULL);
    trial_refill(trial, shape->seed);
}

void trial_free(struct trial *trial)
{
    munmap(trial->memory, trial->bytes);
    gpu_memory_free(trial->fd);
    close(trial->fd);
    free(trial->expected);
}

struct call trial_call(const struct trial *trial, struct ref buffer, uint64_t id)
{
    struct call call = {.id = id, .op = trial->op, .dtype = trial->dtype};
    for (int i = 0; i < 3; i++) {
        call.operand[i] = trial->operand[i];
        call.operand[i].buffer = buffer;
    }
    return call;
}

bool trial_right(const struct trial *trial)
{
    gpu_memory_download(trial->fd);
    return memcmp(trial->memory, trial->expected, trial->bytes) == 0;
}

/* The inputs never change, so the call has not run if its output is not as expected anywhere. */
bool trial_untouched(const struct trial *trial)
{
    size_t row_bytes = trial->operand[0].shape[2] * element_bytes(trial->dtype);
    gpu_memory_download(trial->fd);
    for (uint64_t i = 0; i < trial->operand[0].shape[0]; i++) {
        for (uint64_t j = 0; j < trial->operand[0].shape[1]; j++) {
            uint64_t at = position(trial, 0, i, j);
            if (memcmp(trial->memory + at, trial->expected + at, row_bytes) == 0) {
                return false;
            }
        }
    }
    return true;
}

static uint64_t slow_rows(void)
{
    if (!gpu_memory_used()) {
        return SLOW_ROWS_HOST;
    }
    return gpu_memory_is_fake() ? SLOW_ROWS_FAKE : SLOW_ROWS_GPU;
}

/* Both inputs are one row that is read again and again: only the output needs memory. */
void slow_make(struct trial *trial)
{
    uint64_t rows = slow_rows();
    *trial = (struct trial){.op = OP_CONCAT_MLA_ABSORB_Q, .dtype = DTYPE_FP8_E4M3, .bytes = 3 * rows + 64};
    set_shape(&trial->operand[0], rows, 1, 2, 3, 3); /* with gaps: row by row */
    set_shape(&trial->operand[1], rows, 1, 1, 0, 0);
    set_shape(&trial->operand[2], rows, 1, 1, 0, 0);
    trial->operand[1].offset_bytes = 3 * rows;
    trial->operand[2].offset_bytes = 3 * rows + 32;
    map(trial);
}

void slow_begin(struct raw *raw, struct ref stream, const struct trial *slow, struct ref buffer, uint64_t id)
{
    struct call call = trial_call(slow, buffer, id);
    uint64_t end_ms = now_ms() + WAIT_MS;
    for (unsigned tries = 0;; tries = (tries + 1) % SLOW_LOOKS) {
        raw_submit(raw, stream, &call, 1);
        for (unsigned i = 0; i < tries; i++) {
            nap(); /* a worker that other work keeps off the CPU would find the call and its end at once, each time */
        }
        struct outcome outcome = raw_cancel(raw, stream, id);
        if (outcome.code == STATUS_FAILED_PRECONDITION) {
            return; /* too late to cancel: it runs */
        }
        REQUIRE(now_ms() < end_ms, "no slow call is seen to run: %s", outcome.message);
        /* Not begun yet, or over before anybody looked: once more. */
        struct outcome ended = raw_wait_aside(raw, id);
        REQUIRE(ended.code == (outcome.code == STATUS_OK ? STATUS_CANCELLED : STATUS_OK), "%s", ended.message);
    }
}

void slow_hold(struct raw *raw, struct ref stream, const struct trial *slow, struct ref buffer)
{
    static struct call calls[SLOW_HOLD_CALLS];
    for (uint64_t i = 1; i < SLOW_HOLD_CALLS; i++) {
        calls[i] = trial_call(slow, buffer, SLOW_HOLD_ID + i);
    }
    slow_begin(raw, stream, slow, buffer, SLOW_HOLD_ID);
    raw_submit(raw, stream, &calls[1], SLOW_HOLD_CALLS - 1);
}

void slow_release(struct raw *raw, struct ref stream)
{
    for (uint64_t i = SLOW_HOLD_CALLS; i-- > 0;) { /* from the last: meanwhile the first ones run */
        (void)raw_cancel(raw, stream, SLOW_HOLD_ID + i);
    }
    for (uint64_t i = 0; i < SLOW_HOLD_CALLS; i++) {
        struct outcome outcome = raw_wait_aside(raw, SLOW_HOLD_ID + i);
        REQUIRE(outcome.code == STATUS_OK || outcome.code == STATUS_CANCELLED, "%s", outcome.message);
    }
}

struct call row_call(uint64_t id, struct ref buffer, uint64_t out, uint64_t first, uint64_t w1, uint64_t second,
                     uint64_t w2)
{
    struct call call = {.id = id, .op = OP_CONCAT_MLA_ABSORB_Q, .dtype = DTYPE_FP8_E4M3};
    const uint64_t offset[] = {out, first, second};
    const uint64_t width[] = {w1 + w2, w1, w2};
    for (int i = 0; i < 3; i++) {
        set_shape(&call.operand[i], 1, 1, width[i], (int64_t)width[i], (int64_t)width[i]);
        call.operand[i].offset_bytes = offset[i];
        call.operand[i].buffer = buffer;
    }
    return call;
}
