/* SPDX-License-Identifier: Apache-2.0 */
#include "events.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cuda_api.h"
#include "library.h"
#include "require.h"
#include "share.h"
#include "share_register.h"

#define MUST(call) REQUIRE((call) == CUDA_RESULT_OK)
#define INTERPROCESS (2u | 4u) /* with CU_EVENT_DISABLE_TIMING */
#define SHARE_BYTES ((size_t)2 << 20)
#define ROW_BYTES 384 /* of the output: 128 + 64 elements */
#define POISON 0xa5
#define EVENTS_LIMIT 64 /* max_events as it is by default */

/* What only the owner of an event calls. */
static struct {
    int (*create)(struct cuda_event **event, unsigned flags);
    int (*record)(struct cuda_event *event, struct cuda_stream *stream);
    int (*get_handle)(struct cuda_ipc_handle *handle, struct cuda_event *event);
    int (*wait_value)(struct cuda_stream *stream, cuda_address address, uint64_t value, unsigned flags);
} owner;
static const struct cuda_api *cuda;

/* An event that comes when the test says so: its stream waits for a word to reach `turn`. */
static struct {
    struct cuda_stream *stream;
    struct cuda_event *event;
    struct cuda_ipc_handle handle;
    struct share word;
    uint64_t turn;
} gate;

/* The memory of the calls, and where they run. */
static struct {
    struct raw *raw;
    const char *uuid;
    struct share share;
    struct ref buffer;
    struct ref gated; /* streams */
    struct ref other;
    uint64_t last_id;
} work;

static void find(const char *name, int abi, void *slot)
{
    REQUIRE(share_find(name, abi, slot), "the driver has no %s", name);
}

static void open_driver(void)
{
    struct error err;
    cuda = cuda_api_get(&err);
    REQUIRE(cuda != NULL, "%s", err.message);
    find("cuEventCreate", 2000, &owner.create);
    find("cuEventRecord", 2000, &owner.record);
    find("cuIpcGetEventHandle", 4010, &owner.get_handle);
    find("cuStreamWaitValue64", 11070, &owner.wait_value);
}

static void make_gate(void)
{
    const uint64_t zero = 0;
    MUST(cuda->cuStreamCreate(&gate.stream, CUDA_STREAM_NON_BLOCKING));
    MUST(owner.create(&gate.event, INTERPROCESS));
    MUST(owner.get_handle(&gate.handle, gate.event));
    share_alloc(&gate.word, 4096);
    share_write(&gate.word, 0, &zero, sizeof(zero));
    gate.turn = 0;
}

/* A record that does not complete before open_gate. */
static void hold_gate(void)
{
    MUST(owner.wait_value(gate.stream, gate.word.address, ++gate.turn, 0));
    MUST(owner.record(gate.event, gate.stream));
}

static void open_gate(void)
{
    share_write(&gate.word, 0, &gate.turn, sizeof(gate.turn));
}

static void free_gate(void)
{
    MUST(cuda->cuStreamSynchronize(gate.stream));
    MUST(cuda->cuEventDestroy(gate.event));
    MUST(cuda->cuStreamDestroy(gate.stream));
    share_free(&gate.word);
}

static void open_work(struct raw *raw, const char *uuid)
{
    work.raw = raw;
    work.uuid = uuid;
    share_alloc(&work.share, SHARE_BYTES);
    work.buffer = share_must_register(raw, uuid, &work.share, 0, SHARE_BYTES);
    work.gated = share_must_open_stream(raw, uuid);
    work.other = share_must_open_stream(raw, uuid);
}

static void close_work(void)
{
    raw_close_stream(work.raw, work.gated);
    raw_close_stream(work.raw, work.other);
    raw_unregister(work.raw, work.buffer);
    share_free(&work.share);
}

/* One row; its output is the row's own. */
static struct call one_call(uint64_t row)
{
    static const uint64_t width[3] = {192, 128, 64};
    struct call call = {.id = ++work.last_id, .op = OP_CONCAT_MLA_K, .dtype = DTYPE_BF16};
    for (int k = 0; k < 3; k++) {
        call.operand[k] = (struct operand){.buffer = work.buffer,
                                           .offset_bytes = k == 0 ? row * ROW_BYTES : SHARE_BYTES - 1024 * (size_t)k,
                                           .shape = {1, 1, width[k]},
                                           .strides = {(int64_t)width[k], (int64_t)width[k], 1}};
    }
    return call;
}

static void poison_row(uint64_t row)
{
    unsigned char bytes[ROW_BYTES];
    memset(bytes, POISON, sizeof(bytes));
    share_write(&work.share, row * ROW_BYTES, bytes, sizeof(bytes));
}

/* Whether a call wrote the row; the inputs are 0x11 and 0x22. */
static bool is_written(uint64_t row)
{
    unsigned char got[ROW_BYTES];
    unsigned char want[ROW_BYTES];
    memset(want, 0x11, 256);
    memset(want + 256, 0x22, 128);
    share_read(&work.share, row * ROW_BYTES, got, sizeof(got));
    if (memcmp(got, want, sizeof(want)) == 0) {
        return true;
    }
    memset(want, POISON, sizeof(want));
    REQUIRE(memcmp(got, want, sizeof(want)) == 0, "row %lu is half written", (unsigned long)row);
    return false;
}

static void write_inputs(void)
{
    unsigned char bytes[256];
    memset(bytes, 0x11, sizeof(bytes));
    share_write(&work.share, SHARE_BYTES - 1024, bytes, 256);
    memset(bytes, 0x22, sizeof(bytes));
    share_write(&work.share, SHARE_BYTES - 2048, bytes, 128);
}

/* Sends one call, which waits for the event (generation 0: for none); its id. */
static uint64_t submit(struct ref stream, uint64_t row, struct ref event, uint64_t deadline_us)
{
    struct call call = one_call(row);
    call.wait_event = event;
    call.deadline_us = deadline_us;
    poison_row(row);
    raw_submit(work.raw, stream, &call, 1);
    return call.id;
}

static void expect(uint64_t id, uint32_t code)
{
    struct outcome outcome = raw_wait(work.raw, id);
    REQUIRE(outcome.code == code, "call %lu: %u, not %u: %s", (unsigned long)id, outcome.code, code, outcome.message);
}

/* Calls on a stream that waits for nothing; the worker has had many rounds when they are done. */
static void run_others(void)
{
    for (uint64_t row = 10; row < 60; row++) {
        expect(submit(work.other, row, (struct ref){0}, 0), STATUS_OK);
        REQUIRE(is_written(row));
    }
}

static struct ref must_register(void)
{
    struct ref event = {0};
    struct outcome outcome = share_register_event(work.raw, work.uuid, gate.handle.bytes, &event);
    REQUIRE(outcome.code == STATUS_OK && event.generation != 0, "%s", outcome.message);
    return event;
}

/* ------------------------------------------------------------------------------------------------------ the parts */

static void refuse_registrations(void)
{
    struct cuda_ipc_handle nobodys;
    struct ref events[EVENTS_LIMIT];
    struct ref none;
    memset(&nobodys, 0x5a, sizeof(nobodys));
    struct outcome outcome = share_register_event(work.raw, work.uuid, nobodys.bytes, &none);
    printf("  refused: %s\n", outcome.message);
    REQUIRE(outcome.code != STATUS_OK && outcome.scope == SCOPE_CALL);
    for (int i = 0; i < EVENTS_LIMIT; i++) {
        events[i] = must_register();
    }
    outcome = share_register_event(work.raw, work.uuid, gate.handle.bytes, &none);
    printf("  refused: %s\n", outcome.message);
    REQUIRE(outcome.code == STATUS_RESOURCE_EXHAUSTED && strstr(outcome.message, "max_events"));
    for (int i = 0; i < EVENTS_LIMIT; i++) {
        REQUIRE(raw_unregister_event(work.raw, events[i]).code == STATUS_OK);
    }
    REQUIRE(raw_unregister_event(work.raw, events[0]).code == STATUS_NOT_FOUND);
    expect(submit(work.gated, 1, events[0], 0), STATUS_NOT_FOUND);
}

/* The first record of the event, and one after it; twice the same call, once more and it must wait again. */
static void wait_in_order(struct ref event)
{
    for (int turn = 0; turn < 3; turn++) {
        hold_gate();
        uint64_t first = submit(work.gated, 1, event, 0);
        uint64_t second = submit(work.gated, 2, (struct ref){0}, 0);
        run_others();
        REQUIRE(!is_written(1) && !is_written(2));
        open_gate();
        expect(first, STATUS_OK);
        expect(second, STATUS_OK);
        REQUIRE(is_written(1) && is_written(2));
        expect(submit(work.gated, 3, event, 0), STATUS_OK); /* it has come, and stays so */
    }
}

static void leave_early(struct ref event)
{
    hold_gate();
    uint64_t id = submit(work.gated, 1, event, 0);
    REQUIRE(raw_cancel(work.raw, work.gated, id).code == STATUS_OK);
    expect(id, STATUS_CANCELLED);
    expect(submit(work.gated, 1, event, 20000), STATUS_DEADLINE_EXCEEDED);
    REQUIRE(!is_written(1));
    expect(submit(work.gated, 2, (struct ref){0}, 0), STATUS_OK);
    open_gate();
}

static void unregister_early(void)
{
    hold_gate();
    struct ref event = must_register();
    uint64_t id = submit(work.gated, 1, event, 0);
    REQUIRE(raw_unregister_event(work.raw, event).code == STATUS_OK);
    expect(submit(work.other, 2, event, 0), STATUS_NOT_FOUND);
    run_others();
    REQUIRE(!is_written(1));
    open_gate();
    expect(id, STATUS_OK);
    REQUIRE(is_written(1));
}

/* ----------------------------------------------------------------------------------------- the client that dies */

static int go[2];
static struct child dying;
static const char *daemon_socket;

static void dying_client(void *arg)
{
    char reason[256];
    char uuid[SHARE_UUID_BYTES];
    char byte;
    struct raw raw;
    (void)arg;
    REQUIRE(read(go[0], &byte, 1) == 1);
    REQUIRE(share_open(uuid, reason, sizeof(reason)), "%s", reason);
    open_driver();
    raw_open(&raw, daemon_socket);
    open_work(&raw, uuid);
    make_gate();
    hold_gate();
    struct ref event = must_register();
    for (uint64_t row = 0; row < 5; row++) {
        submit(work.gated, row, event, 0);
    }
    child_ready();
    child_park();
}

void events_prepare(const char *socket)
{
    daemon_socket = socket;
    REQUIRE(pipe(go) == 0);
    child_start(&dying, dying_client, NULL);
}

/* The daemon has nothing but the two streams and the buffer of `work`. */
static bool is_alone(void)
{
    struct counts counts = raw_stats(work.raw);
    return counts.clients == 1 && counts.calls_in_flight == 0 && counts.streams == 2 && counts.buffers == 1;
}

/* Its event never comes; its calls, its streams and its memory go all the same. */
static void lose_client(void)
{
    WAIT_UNTIL(is_alone());
    REQUIRE(write(go[1], "g", 1) == 1);
    child_wait_ready(&dying);
    WAIT_UNTIL(raw_stats(work.raw).calls_in_flight == 5); /* they may be on their way */
    run_others();
    child_kill(&dying);
    WAIT_UNTIL(is_alone());
    run_others();
}

/* ---------------------------------------------------------------------------------------------------- libmlacat */

static void use_library(const char *socket)
{
    struct cuda_event *own;
    MUST(owner.create(&own, 0));
    library_refuses_event(socket, own);
    MUST(cuda->cuEventDestroy(own));
    hold_gate();
    library_waits(socket, gate.event, work.share.address, open_gate);
}

void events_run(struct raw *raw, const char *socket, const char *uuid)
{
    open_driver();
    open_work(raw, uuid);
    write_inputs();
    make_gate();
    struct ref event = must_register();
    expect(submit(work.gated, 1, event, 0), STATUS_OK); /* never recorded */
    wait_in_order(event);
    leave_early(event);
    REQUIRE(raw_unregister_event(raw, event).code == STATUS_OK);
    unregister_early();
    refuse_registrations();
    use_library(socket);
    lose_client();
    free_gate();
    close_work();
}
