/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The service on a real GPU: this process owns device memory, the daemon runs the ops on it. Every result is compared
 * byte for byte with a loop on the CPU, and the bytes around each output must be as before.
 *
 *     gpu_service [case ...]   MLACATD names the daemon
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "events.h"
#include "gpu_memory.h"
#include "library.h"
#include "raw.h"
#include "require.h"
#include "server.h"
#include "share_register.h"

#define SKIPPED 77
#define GUARD 256
#define ELEMENT 2     /* bf16 */
#define SOON_MS 300   /* until memory is given back */
#define SOON_TRIES 20 /* where a CPU that has other work plays the GPU */

static struct server server;
static char uuid[SHARE_UUID_BYTES];

struct shape {
    uint32_t op;
    uint64_t d0;
    uint64_t d1;
    uint64_t w1;
    uint64_t w2;
};

/* Where an operand lies: bytes from the start of its memory. */
struct place {
    const struct share *share;
    struct ref buffer;
    size_t registered_at;
    size_t at;
};

static uint64_t second_rows(const struct shape *shape)
{
    return shape->op == OP_CONCAT_MLA_K ? 1 : shape->d1;
}

static size_t bytes_of(uint64_t d0, uint64_t d1, uint64_t w)
{
    return (size_t)(d0 * d1 * w * ELEMENT);
}

static void fill(unsigned char *bytes, size_t size, uint64_t seed)
{
    uint64_t x = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (size_t i = 0; i < size; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes[i] = (unsigned char)(x >> 24);
    }
}

static struct operand operand_of(const struct place *place, uint64_t d0, uint64_t d1, uint64_t w)
{
    return (struct operand){.buffer = place->buffer,
                            .offset_bytes = place->at - place->registered_at,
                            .shape = {d0, d1, w},
                            .strides = {(int64_t)(d1 * w), (int64_t)w, 1}};
}

static struct call call_of(const struct shape *shape, const struct place place[3], uint64_t id)
{
    struct call call = {.id = id, .op = shape->op, .dtype = DTYPE_BF16};
    call.operand[0] = operand_of(&place[0], shape->d0, shape->d1, shape->w1 + shape->w2);
    call.operand[1] = operand_of(&place[1], shape->d0, shape->d1, shape->w1);
    call.operand[2] = operand_of(&place[2], shape->d0, second_rows(shape), shape->w2);
    return call;
}

static void expect(const struct shape *shape, const unsigned char *first, const unsigned char *second,
                   unsigned char *out)
{
    size_t first_row = (size_t)shape->w1 * ELEMENT;
    size_t second_row = (size_t)shape->w2 * ELEMENT;
    for (uint64_t i = 0; i < shape->d0; i++) {
        for (uint64_t j = 0; j < shape->d1; j++) {
            uint64_t row = i * shape->d1 + j;
            uint64_t other = second_rows(shape) == 1 ? i : row;
            memcpy(out, first + row * first_row, first_row);
            memcpy(out + first_row, second + other * second_row, second_row);
            out += first_row + second_row;
        }
    }
}

/* Runs one call with operands at `place` and looks at all of the output and a guard on both sides. */
static void run_and_check(struct raw *raw, struct ref stream, const struct shape *shape, const struct place place[3])
{
    static uint64_t id;
    size_t first_size = bytes_of(shape->d0, shape->d1, shape->w1);
    size_t second_size = bytes_of(shape->d0, second_rows(shape), shape->w2);
    size_t out_size = bytes_of(shape->d0, shape->d1, shape->w1 + shape->w2);
    unsigned char *first = malloc(first_size + 1);
    unsigned char *second = malloc(second_size + 1);
    unsigned char *want = malloc(out_size + 2 * GUARD);
    unsigned char *got = malloc(out_size + 2 * GUARD);
    REQUIRE(first && second && want && got);
    id++;
    fill(first, first_size, id);
    fill(second, second_size, id + 1000);
    memset(want, 0xa5, out_size + 2 * GUARD);
    share_write(place[1].share, place[1].at, first, first_size);
    share_write(place[2].share, place[2].at, second, second_size);
    share_write(place[0].share, place[0].at - GUARD, want, out_size + 2 * GUARD);
    struct call call = call_of(shape, place, id);
    raw_submit(raw, stream, &call, 1);
    struct outcome outcome = raw_wait(raw, id);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    expect(shape, first, second, want + GUARD);
    share_read(place[0].share, place[0].at - GUARD, got, out_size + 2 * GUARD);
    for (size_t i = 0; i < out_size + 2 * GUARD; i++) {
        REQUIRE(got[i] == want[i], "op %u [%lu,%lu] %lu+%lu: byte %ld is %02x, not %02x", shape->op,
                (unsigned long)shape->d0, (unsigned long)shape->d1, (unsigned long)shape->w1, (unsigned long)shape->w2,
                (long)i - GUARD, got[i], want[i]);
    }
    free(first);
    free(second);
    free(want);
    free(got);
}

static const struct shape shapes[] = {
    {OP_CONCAT_MLA_K, 1, 1, 1, 1},
    {OP_CONCAT_MLA_K, 128, 128, 128, 64},
    {OP_CONCAT_MLA_K, 77, 12, 192, 64},
    {OP_CONCAT_MLA_K, 1000, 16, 64, 32},
    {OP_CONCAT_MLA_K, 33, 7, 65, 31},
    {OP_CONCAT_MLA_K, 5, 3, 128, 0},
    {OP_CONCAT_MLA_K, 4096, 1, 3, 1},
    {OP_CONCAT_MLA_ABSORB_Q, 64, 128, 512, 64},
    {OP_CONCAT_MLA_ABSORB_Q, 1, 1, 256, 32},
    {OP_CONCAT_MLA_ABSORB_Q, 19, 11, 27, 13},
    {OP_CONCAT_MLA_ABSORB_Q, 300, 16, 256, 64},
};
#define SHAPES_NR (sizeof(shapes) / sizeof(shapes[0]))

/* All operands in one memory, each registered as a buffer of its own, on odd offsets too. */
static void run_shapes(struct raw *raw, const struct share *share, size_t shift)
{
    struct ref stream = share_must_open_stream(raw, uuid);
    for (size_t s = 0; s < SHAPES_NR; s++) {
        const struct shape *shape = &shapes[s];
        size_t size[3] = {bytes_of(shape->d0, shape->d1, shape->w1 + shape->w2) + 2 * GUARD,
                          bytes_of(shape->d0, shape->d1, shape->w1),
                          bytes_of(shape->d0, second_rows(shape), shape->w2)};
        struct place place[3] = {0};
        size_t at = 0;
        for (int k = 0; k < 3; k++) {
            size_t bytes = (size[k] + shift + 255) / 256 * 256 + 256;
            place[k] = (struct place){.share = share, .registered_at = at, .at = at + shift + (k == 0 ? GUARD : 0)};
            if (at + bytes > share->size) {
                break;
            }
            place[k].buffer = share_must_register(raw, uuid, share, at, bytes);
            at += bytes;
        }
        if (place[2].buffer.generation != 0) { /* else they are too large for this memory */
            run_and_check(raw, stream, shape, place);
        }
        for (int k = 0; k < 3; k++) {
            if (place[k].buffer.generation != 0) {
                raw_unregister(raw, place[k].buffer);
            }
        }
    }
    raw_close_stream(raw, stream);
}

static void case_ops(struct raw *raw)
{
    struct share share;
    share_alloc(&share, (size_t)64 << 20);
    run_shapes(raw, &share, 0);
    run_shapes(raw, &share, 2);
    run_shapes(raw, &share, 18);
    share_free(&share);
}

static void case_chunks(struct raw *raw)
{
    struct share share;
    share_alloc_chunks(&share);
    run_shapes(raw, &share, 0);
    run_shapes(raw, &share, 6);
    /* across the seams: one buffer over all chunks */
    struct shape shape = {OP_CONCAT_MLA_K, (share.size - 4 * GUARD) / 8, 1, 1, 1};
    struct share inputs;
    share_alloc(&inputs, share.size);
    struct place place[3] = {
        {.share = &share, .buffer = share_must_register(raw, uuid, &share, 0, share.size), .at = GUARD},
        {.share = &inputs, .buffer = share_must_register(raw, uuid, &inputs, 0, inputs.size), .at = 0},
        {.share = &inputs, .buffer = share_must_register(raw, uuid, &inputs, 0, inputs.size), .at = inputs.size / 2},
    };
    struct ref stream = share_must_open_stream(raw, uuid);
    run_and_check(raw, stream, &shape, place);
    raw_close_stream(raw, stream);
    for (int k = 0; k < 3; k++) {
        raw_unregister(raw, place[k].buffer);
    }
    share_free(&inputs);
    share_free(&share);
}

static void refuse(struct raw *raw, const struct share *share, size_t offset, size_t size, size_t claimed,
                   uint32_t code)
{
    struct ref buffer;
    struct outcome outcome = share_register(raw, uuid, share, offset, size, claimed, &buffer);
    printf("  refused: %s\n", outcome.message);
    REQUIRE(outcome.code == code, "code %u: %s", outcome.code, outcome.message);
}

static void case_lies(struct raw *raw)
{
    struct share share;
    struct share broken;
    share_alloc(&share, (size_t)4 << 20);
    refuse(raw, &share, 0, share.size + 1, share.size, STATUS_INVALID_ARGUMENT);
    refuse(raw, &share, 0, share.size * 4, share.size * 4, STATUS_INVALID_ARGUMENT);
    refuse(raw, &share, SIZE_MAX - 1, 4, share.size, STATUS_INVALID_ARGUMENT);
    refuse(raw, &share, 0, 0, share.size, STATUS_INVALID_ARGUMENT);
    broken = share;
    memset(broken.handle, 0x5a, sizeof(broken.handle));
    refuse(raw, &broken, 0, 4096, share.size, STATUS_INVALID_ARGUMENT);
    share_free(&share);
    struct share chunks;
    share_alloc_chunks(&chunks);
    refuse(raw, &chunks, 0, 4096, chunks.size * 2, STATUS_INVALID_ARGUMENT);
    refuse(raw, &chunks, 0, 4096, chunks.size - SHARE_CHUNKS, STATUS_INVALID_ARGUMENT);
    share_free(&chunks);
    case_ops(raw); /* nobody was hurt */
}

/* The allocator gives the same address, and the driver the same handle bytes, for other memory. */
static void case_new_memory(struct raw *raw)
{
    struct share old;
    struct share new;
    size_t size = (size_t)32 << 20;
    struct ref stream = share_must_open_stream(raw, uuid);
    struct shape shape = {OP_CONCAT_MLA_ABSORB_Q, 16, 16, 64, 32};
    share_alloc(&old, size);
    struct ref stale = share_must_register(raw, uuid, &old, 0, size);
    share_free(&old);
    share_alloc(&new, size);
    printf("  same address: %s, same handle bytes: %s, BUFFER_ID %lu and %lu\n",
           old.address == new.address ? "yes" : "no",
           memcmp(old.handle, new.handle, sizeof(old.handle)) == 0 ? "yes" : "no", (unsigned long)old.buffer_id,
           (unsigned long)new.buffer_id);
    struct ref fresh = share_must_register(raw, uuid, &new, 0, size);
    struct place place[3] = {{&new, fresh, 0, GUARD}, {&new, fresh, 0, size / 4}, {&new, fresh, 0, size / 2}};
    run_and_check(raw, stream, &shape, place);
    if (memcmp(old.handle, new.handle, sizeof(old.handle)) == 0) {
        place[1].buffer = stale;
        struct call call = call_of(&shape, place, 999999);
        raw_submit(raw, stream, &call, 1);
        struct outcome outcome = raw_wait(raw, 999999);
        printf("  on the old registration: %s\n", outcome.message);
        REQUIRE(outcome.code == STATUS_FAILED_PRECONDITION && outcome.scope == SCOPE_BUFFER);
    }
    raw_unregister(raw, stale);
    raw_unregister(raw, fresh);
    raw_close_stream(raw, stream);
    share_free(&new);
}

/* Returns how many milliseconds after its release memory is free again. */
static uint64_t give_back(struct raw *raw)
{
    struct share share;
    size_t size = (size_t)1 << 30;
    size_t before = share_free_bytes();
    share_alloc(&share, size);
    struct ref buffer = share_must_register(raw, uuid, &share, 0, size);
    share_free(&share);
    raw_unregister(raw, buffer);
    uint64_t start_ms = now_ms();
    WAIT_UNTIL(share_free_bytes() + (size >> 2) >= before);
    uint64_t took_ms = now_ms() - start_ms;
    printf("  1 GiB was free again %lu ms after the release\n", (unsigned long)took_ms);
    return took_ms;
}

static int soon_tries(void)
{
    return gpu_memory_is_fake() ? SOON_TRIES : 1;
}

static void case_give_back(struct raw *raw)
{
    int tries = soon_tries();
    while (give_back(raw) > SOON_MS) {
        REQUIRE(--tries > 0, "more than %d ms", SOON_MS);
    }
}

/* The same through libmlacat, which knows nothing but pointers. */
static void run_library(const struct share *share)
{
    struct shape shape = {OP_CONCAT_MLA_K, 128, 16, 128, 64};
    size_t sizes[3] = {bytes_of(shape.d0, shape.d1, shape.w1 + shape.w2), bytes_of(shape.d0, shape.d1, shape.w1),
                       bytes_of(shape.d0, 1, shape.w2)};
    size_t at[3] = {2048, 2048 + sizes[0], 2048 + sizes[0] + sizes[1]};
    unsigned char *inputs = malloc(sizes[1] + sizes[2]);
    unsigned char *want = malloc(sizes[0]);
    unsigned char *got = malloc(sizes[0]);
    REQUIRE(inputs && want && got && at[2] + sizes[2] <= share->size);
    fill(inputs, sizes[1] + sizes[2], 77);
    share_write(share, at[1], inputs, sizes[1] + sizes[2]);
    library_run_k(server.socket, share->address + at[0], share->address + at[1], share->address + at[2], shape.d0,
                  shape.d1, shape.w1, shape.w2);
    expect(&shape, inputs, inputs + sizes[1], want);
    share_read(share, at[0], got, sizes[0]);
    REQUIRE(memcmp(got, want, sizes[0]) == 0);
    free(inputs);
    free(want);
    free(got);
}

static struct share changing;

static void free_and_alloc(void)
{
    size_t size = changing.size;
    share_free(&changing);
    share_alloc(&changing, size);
}

static void free_only(void)
{
    share_free(&changing);
}

static void free_and_alloc_chunks(void)
{
    share_free(&changing);
    share_alloc_chunks(&changing);
}

static void make_memory(void)
{
    share_alloc(&changing, (size_t)2 << 20);
}

static void make_chunks(void)
{
    share_alloc_chunks(&changing);
}

static void watch(void (*make)(void), void (*change)(void))
{
    uint64_t took_ms = UINT64_MAX;
    for (int tries = soon_tries(); took_ms > SOON_MS; tries--) {
        REQUIRE(tries > 0, "more than %d ms", SOON_MS);
        make();
        took_ms = library_watched(server.socket, changing.address, changing.size, change);
        printf("  freed memory was unregistered after %lu ms\n", (unsigned long)took_ms);
        if (change != free_only) {
            share_free(&changing);
        }
    }
}

/* Memory that is freed and not used in a call again, which only the library's watch finds. Its thread has no CUDA
 * context. */
static void case_watch(struct raw *raw)
{
    (void)raw;
    watch(make_memory, free_and_alloc);
    watch(make_memory, free_only);
    watch(make_chunks, free_and_alloc_chunks);
    watch(make_chunks, free_only);
}

static void case_library(struct raw *raw)
{
    struct share share;
    (void)raw;
    share_alloc(&changing, (size_t)2 << 20);
    library_stale(server.socket, changing.address, changing.size, free_and_alloc);
    share_free(&changing);
    share_alloc(&share, (size_t)6 << 20);
    run_library(&share);
    library_refuses(server.socket, share.address, share.size);
    share_free(&share);
    share_alloc_chunks(&share);
    run_library(&share);
    library_refuses(server.socket, share.address, share.size);
    share_free(&share);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double now_us(void)
{
    return (double)clock_now_ns() / 1e3;
}

static void case_speed(struct raw *raw)
{
    struct share in;
    struct share out;
    struct shape shape = {OP_CONCAT_MLA_K, 32768, 128, 128, 64};
    size_t out_size = bytes_of(shape.d0, shape.d1, shape.w1 + shape.w2);
    size_t in_size = bytes_of(shape.d0, shape.d1, shape.w1) + bytes_of(shape.d0, 1, shape.w2);
    struct ref stream = share_must_open_stream(raw, uuid);
    share_alloc(&in, in_size);
    share_alloc(&out, out_size);
    struct ref from = share_must_register(raw, uuid, &in, 0, in_size);
    struct ref to = share_must_register(raw, uuid, &out, 0, out_size);
    struct place place[3] = {
        {&out, to, 0, 0}, {&in, from, 0, 0}, {&in, from, 0, bytes_of(shape.d0, shape.d1, shape.w1)}};
    double times[9];
    struct call calls[64];
    for (int turn = 0; turn < 9; turn++) {
        for (int i = 0; i < 64; i++) {
            calls[i] = call_of(&shape, place, (uint64_t)i + 1);
        }
        double start = now_us();
        raw_submit(raw, stream, calls, 64);
        for (int i = 0; i < 64; i++) {
            struct outcome outcome = raw_wait(raw, (uint64_t)i + 1);
            REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
        }
        times[turn] = (now_us() - start) / 64;
    }
    qsort(times, 9, sizeof(times[0]), compare_doubles);
    printf("  concat_mla_k N=32768 H=128 128+64 bf16: %.1f us a call, %.2f TB/s\n", times[4],
           (double)(in_size + out_size) / times[4] / 1e6);
    share_copy_us(&out, &out, 4096, 1);
    double copy = share_copy_us(&out, &in, in_size, 64) / 64;
    printf("  copy of %zu MiB in process: %.1f us, %.2f TB/s\n", in_size >> 20, copy,
           2.0 * (double)in_size / copy / 1e6);

    static double each[4000];
    shape = (struct shape){OP_CONCAT_MLA_K, 1, 1, 128, 64};
    for (int i = 0; i < 4000; i++) {
        calls[0] = call_of(&shape, place, 1);
        double start = now_us();
        raw_submit(raw, stream, calls, 1);
        REQUIRE(raw_wait(raw, 1).code == STATUS_OK);
        each[i] = now_us() - start;
    }
    qsort(each, 4000, sizeof(each[0]), compare_doubles);
    printf("  smallest call, one in flight, message path: p50 %.1f us, p99 %.1f us\n", each[2000], each[3960]);
    double start = now_us();
    for (int i = 0; i < 200; i++) {
        raw_unregister(raw, share_must_register(raw, uuid, &in, 0, 4096));
    }
    printf("  register + release of a known allocation, two round trips: %.1f us\n", (now_us() - start) / 200);
    raw_unregister(raw, from);
    raw_unregister(raw, to);
    raw_close_stream(raw, stream);
    share_free(&in);
    share_free(&out);
}

/* A client that dies with calls queued. It is forked before this process starts CUDA, and told by `go` when. */
static int go[2];
static struct child dying;

static void dying_client(void *arg)
{
    (void)arg;
    char reason[256];
    char byte;
    REQUIRE(read(go[0], &byte, 1) == 1);
    struct raw raw;
    struct share share;
    REQUIRE(share_open(uuid, reason, sizeof(reason)), "%s", reason);
    raw_open(&raw, server.socket);
    share_alloc(&share, (size_t)3 << 30);
    struct ref buffer = share_must_register(&raw, uuid, &share, 0, share.size);
    struct ref stream = share_must_open_stream(&raw, uuid);
    /* A CPU that plays the GPU needs seconds for what a GPU does in a millisecond. */
    struct shape shape = {OP_CONCAT_MLA_K, gpu_memory_is_fake() ? 1024 : 16384, 128, 128, 64};
    struct place place[3] = {
        {&share, buffer, 0, 0}, {&share, buffer, 0, (size_t)1 << 30}, {&share, buffer, 0, (size_t)2 << 30}};
    struct call calls[200];
    for (int i = 0; i < 200; i++) {
        calls[i] = call_of(&shape, place, (uint64_t)i + 1);
    }
    raw_submit(&raw, stream, calls, 200);
    raw_next(&raw);
    child_ready();
    child_park();
}

static void case_death(struct raw *raw)
{
    size_t before = share_free_bytes();
    REQUIRE(write(go[1], "g", 1) == 1);
    child_wait_ready(&dying);
    child_kill(&dying);
    uint64_t start_ms = now_ms();
    WAIT_UNTIL(share_free_bytes() + ((size_t)1 << 30) >= before);
    printf("  3 GiB of a killed client were free again after %lu ms\n", (unsigned long)(now_ms() - start_ms));
    case_ops(raw);
    WAIT_UNTIL(raw_stats(raw).clients == 1 && raw_stats(raw).calls_in_flight == 0);
}

static void case_events(struct raw *raw)
{
    events_run(raw, server.socket, uuid);
}

static const struct {
    const char *name;
    void (*run)(struct raw *raw);
} cases[] = {
    {"ops", case_ops},
    {"chunks", case_chunks},
    {"lies", case_lies},
    {"new_memory", case_new_memory},
    {"give_back", case_give_back},
    {"library", case_library},
    {"watch", case_watch},
    {"speed", case_speed},
    {"death", case_death},
    {"events", case_events},
};

static bool is_wanted(int argc, char *argv[], const char *name)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0) {
            return true;
        }
    }
    return argc == 1;
}

static void start_daemon(void)
{
    uint64_t start_ms = now_ms();
    server_start(&server, "device = auto\nlog_level = debug\n");
    printf("started in %lu ms\n", (unsigned long)(now_ms() - start_ms));
}

int main(int argc, char *argv[])
{
    char reason[256];
    struct raw raw;
    setvbuf(stdout, NULL, _IOLBF, 0);
    start_daemon();
    REQUIRE(pipe(go) == 0);
    child_start(&dying, dying_client, NULL);
    events_prepare(server.socket);
    if (!share_open(uuid, reason, sizeof(reason))) {
        printf("SKIPPED: %s\n", reason);
        server_stop(&server);
        return SKIPPED;
    }
    raw_open(&raw, server.socket);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (is_wanted(argc, argv, cases[i].name)) {
            printf("%s\n", cases[i].name);
            cases[i].run(&raw);
        }
    }
    raw_close(&raw);
    server_show_log(&server);
    server_stop(&server);
    printf("gpu_service: all passed\n");
    return 0;
}
