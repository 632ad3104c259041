/* SPDX-License-Identifier: Apache-2.0 */
/* A client as it should be: small calls on all of its streams in turn, each waited for. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "clock.h"
#include "isolation.h"
#include "raw.h"
#include "require.h"
#include "share_register.h"

#define SHAPES 4
#define REGION_BYTES ((size_t)64 << 10) /* of a stream's output of one shape */
#define INPUT_BYTES ((size_t)64 << 10)
#define ARENA_BYTES (256 << 10)

static const struct {
    uint64_t d0, d1, w1, w2;
} shapes[SHAPES] = {{1, 1, 128, 64}, {1, 16, 128, 64}, {2, 8, 64, 32}, {4, 16, 192, 64}};

static struct {
    struct isolation *shared;
    int index;
    struct raw raw;
    struct share memory;
    struct ref buffer;
    struct ref stream[ISOLATION_STREAMS_MAX];
    uint64_t sent_ns[ISOLATION_STREAMS_MAX];
    uint64_t calls_nr[ISOLATION_STREAMS_MAX];
    unsigned char input[INPUT_BYTES];
} good;

static size_t output_at(int stream, uint64_t shape)
{
    return INPUT_BYTES + ((size_t)stream * SHAPES + shape) * REGION_BYTES;
}

static struct operand operand_at(size_t at, uint64_t d0, uint64_t d1, uint64_t width)
{
    return (struct operand){.buffer = good.buffer,
                            .offset_bytes = at,
                            .shape = {d0, d1, width},
                            .strides = {(int64_t)(d1 * width), (int64_t)width, 1}};
}

static void send_call(int stream)
{
    uint64_t shape = good.calls_nr[stream]++ % SHAPES;
    struct call call = {.id = (uint64_t)stream, .op = OP_CONCAT_MLA_K, .dtype = DTYPE_BF16};
    uint64_t d0 = shapes[shape].d0;
    uint64_t d1 = shapes[shape].d1;
    call.operand[0] = operand_at(output_at(stream, shape), d0, d1, shapes[shape].w1 + shapes[shape].w2);
    call.operand[1] = operand_at(0, d0, d1, shapes[shape].w1);
    call.operand[2] = operand_at(INPUT_BYTES / 2, d0, 1, shapes[shape].w2);
    good.sent_ns[stream] = clock_now_ns();
    raw_submit(&good.raw, good.stream[stream], &call, 1);
}

/* ------------------------------------------------------------------------------------------------- without the heap */

static _Alignas(16) uint8_t arena[ARENA_BYTES];
static size_t arena_used;

static void *take_from_arena(void *unused, size_t size)
{
    void *at = arena + arena_used;
    (void)unused;
    arena_used += (size + 15) / 16 * 16;
    return arena_used <= sizeof(arena) ? at : NULL;
}

static void give_nothing_back(void *unused, void *memory)
{
    (void)unused;
    (void)memory;
}

/* Sleeps in the kernel until a packet comes. Valid until the next one. */
static const Mlacat__V1__Completions *receive(void)
{
    static ProtobufCAllocator allocator = {.alloc = take_from_arena, .free = give_nothing_back};
    static uint8_t packet[RAW_PACKET_BYTES];
    ssize_t size = recv(good.raw.fd, packet, sizeof(packet), 0);
    REQUIRE(size > 0, "the daemon has gone, or says nothing");
    arena_used = 0;
    const Mlacat__V1__Envelope *envelope = mlacat__v1__envelope__unpack(&allocator, (size_t)size, packet);
    REQUIRE(envelope && envelope->body_case == MLACAT__V1__ENVELOPE__BODY_COMPLETIONS);
    return envelope->completions;
}

/* -------------------------------------------------------------------------------------------------------- measuring */

static void note(struct isolation_row *row, int phase, const struct isolation_call *call)
{
    uint64_t ns = call->end_ns - call->begin_ns;
    isolation_note(&row->client[phase], ns);
    isolation_note(&row->daemon[phase], call->queue_ns + call->device_ns);
    isolation_keep_call(&row->longest[phase], call);
    row->over[phase] += ns > ISOLATION_LONGEST_NS;
}

/* Takes one packet; returns how many calls ended. */
static int take_completions(struct isolation_row *row, int phase)
{
    const Mlacat__V1__Completions *done = receive();
    uint64_t now_ns = clock_now_ns();
    for (size_t i = 0; i < done->n_completions; i++) {
        const Mlacat__V1__Completion *one = done->completions[i];
        REQUIRE(!one->status, "%s", one->status->message);
        const struct isolation_call call = {.begin_ns = good.sent_ns[one->call_id],
                                            .end_ns = now_ns,
                                            .queue_ns = one->queue_ns,
                                            .device_ns = one->device_ns,
                                            .process = good.index,
                                            .stream = (int)one->call_id};
        note(row, phase, &call);
    }
    return (int)done->n_completions;
}

static void poison(void)
{
    static unsigned char bytes[REGION_BYTES];
    memset(bytes, 0xa5, sizeof(bytes));
    for (int i = 0; i < good.shared->streams * SHAPES; i++) {
        share_write(&good.memory, INPUT_BYTES + (size_t)i * REGION_BYTES, bytes, sizeof(bytes));
        good.calls_nr[i / SHAPES] = 0;
    }
}

/* Every output that calls of this phase wrote, and the poison behind it. */
static void check_outputs(void)
{
    static unsigned char got[REGION_BYTES];
    for (int i = 0; i < good.shared->streams * SHAPES; i++) {
        uint64_t s = (uint64_t)i % SHAPES;
        size_t w1 = (size_t)shapes[s].w1 * 2;
        size_t w2 = (size_t)shapes[s].w2 * 2;
        uint64_t rows = good.calls_nr[i / SHAPES] > s ? shapes[s].d0 * shapes[s].d1 : 0;
        share_read(&good.memory, output_at(i / SHAPES, s), got, sizeof(got));
        for (uint64_t row = 0; row < rows; row++) {
            const unsigned char *out = got + row * (w1 + w2);
            const unsigned char *rope = good.input + INPUT_BYTES / 2 + row / shapes[s].d1 * w2;
            REQUIRE(memcmp(out, good.input + row * w1, w1) == 0 && memcmp(out + w1, rope, w2) == 0,
                    "stream %d, shape %lu: row %lu is wrong", i / SHAPES, (unsigned long)s, (unsigned long)row);
        }
        for (size_t at = (size_t)rows * (w1 + w2); at < sizeof(got); at++) {
            REQUIRE(got[at] == 0xa5, "stream %d, shape %lu: byte %zu behind the output", i / SHAPES, (unsigned long)s,
                    at);
        }
    }
}

static void run_phase(struct isolation_row *row, int phase)
{
    int in_flight = 0;
    int next = 0;
    while (atomic_load_explicit(&good.shared->phase, memory_order_relaxed) == phase) {
        for (; in_flight < good.shared->depth; in_flight++) {
            send_call(next);
            next = (next + 1) % good.shared->streams;
        }
        in_flight -= take_completions(row, phase);
    }
    while (in_flight > 0) {
        in_flight -= take_completions(row, phase);
    }
}

static void open_all(void)
{
    const struct timeval limit = {.tv_sec = WAIT_MS / 1000};
    char uuid[SHARE_UUID_BYTES];
    char reason[256];
    size_t bytes = output_at(good.shared->streams, 0);
    REQUIRE(share_open(uuid, reason, sizeof(reason)), "%s", reason);
    raw_open(&good.raw, good.shared->socket);
    REQUIRE(setsockopt(good.raw.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) == 0);
    share_alloc(&good.memory, bytes);
    for (size_t i = 0; i < sizeof(good.input); i++) {
        good.input[i] = (unsigned char)(i * 2654435761u >> 13);
    }
    share_write(&good.memory, 0, good.input, sizeof(good.input));
    good.buffer = share_must_register(&good.raw, uuid, &good.memory, 0, bytes);
    for (int i = 0; i < good.shared->streams; i++) {
        good.stream[i] = share_must_open_stream(&good.raw, uuid);
    }
}

/* All have come so far. */
static void meet(struct isolation *shared, struct isolation_row *row)
{
    int step = atomic_fetch_add(&row->step, 1) + 1;
    for (int i = 0; i < shared->processes; i++) {
        WAIT_UNTIL(atomic_load(&shared->row[i].step) >= step);
    }
}

void isolation_good(void *arg)
{
    const struct isolation_process *process = arg;
    struct isolation_row *row = &process->shared->row[process->index];
    good.shared = process->shared;
    good.index = process->index;
    open_all();
    poison();
    child_ready();
    for (int phase = ISOLATION_WARM_UP; phase < ISOLATION_END; phase++) {
        meet(good.shared, row); /* nobody copies to and from the GPU while another one measures */
        WAIT_UNTIL(atomic_load(&good.shared->phase) >= phase);
        run_phase(row, phase);
        meet(good.shared, row);
        check_outputs();
        poison();
    }
    raw_close(&good.raw);
}
