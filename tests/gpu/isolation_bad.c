/* SPDX-License-Identifier: Apache-2.0 */
/* Three clients as they should not be; none of them breaks the protocol. */
#include <stdio.h>
#include <string.h>

#include "isolation.h"
#include "mlacat_ring.h"
#include "raw_ring.h"
#include "require.h"
#include "share_register.h"

#define GATED_PER_STREAM 16
#define RINGS_MAX 64
#define CANCEL_ID UINT64_MAX
#define MEMORIES 8
#define MEMORY_BYTES ((size_t)2 << 20)
#define FRESH_EVERY 16 /* turns after which an allocation is a new one, which the daemon must open and, later, close */

struct client {
    char uuid[SHARE_UUID_BYTES];
    struct raw raw;
};

static void open_client(struct client *client, const struct isolation *shared)
{
    char reason[256];
    REQUIRE(share_open(client->uuid, reason, sizeof(reason)), "%s", reason);
    raw_open(&client->raw, shared->socket);
}

static bool is_time(const struct isolation *shared)
{
    return atomic_load(&shared->phase) <= ISOLATION_TOGETHER;
}

/* The process itself stays: its CPU time counts to the end. */
static void go(struct client *client, struct isolation *shared)
{
    raw_close(&client->raw);
    atomic_fetch_add(&shared->gone, 1);
    child_park();
}

/* A call on the first bytes of a memory: 16 rows of 64 + 32 elements. */
static struct call small_call(uint64_t id, struct ref buffer)
{
    struct call call = {.id = id, .op = OP_CONCAT_MLA_ABSORB_Q, .dtype = DTYPE_BF16};
    const uint64_t width[3] = {96, 64, 32};
    for (int k = 0; k < 3; k++) {
        call.operand[k] = (struct operand){.buffer = buffer,
                                           .offset_bytes = (uint64_t)k << 16,
                                           .shape = {16, 1, width[k]},
                                           .strides = {(int64_t)width[k], (int64_t)width[k], 1}};
    }
    return call;
}

/* --------------------------------------------------------------------------------------- an event that never comes */

void isolation_silent(void *arg)
{
    const struct isolation_process *process = arg;
    struct isolation *shared = process->shared;
    struct client client;
    struct share memory;
    struct ref event;
    unsigned char handle[SHARE_HANDLE_BYTES];
    open_client(&client, shared);
    share_alloc(&memory, MEMORY_BYTES);
    struct ref buffer = share_must_register(&client.raw, client.uuid, &memory, 0, memory.size);
    share_never(handle);
    struct outcome outcome = share_register_event(&client.raw, client.uuid, handle, &event);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    for (int i = 0; i < shared->streams; i++) {
        struct ref stream = share_must_open_stream(&client.raw, client.uuid);
        for (uint64_t id = 0; id < GATED_PER_STREAM; id++) {
            struct call call = small_call(id, buffer);
            call.wait_event = event;
            raw_submit(&client.raw, stream, &call, 1);
            atomic_fetch_add(&shared->gated, 1);
        }
    }
    WAIT_UNTIL(raw_stats(&client.raw).calls_in_flight >= (uint32_t)shared->streams * GATED_PER_STREAM);
    child_ready();
    while (is_time(shared)) {
        nap();
    }
    go(&client, shared);
}

/* ------------------------------------------------------------------------------------- rings that are never ready */

struct never_ready {
    struct raw_ring ring;
    uint64_t oldest; /* call in flight */
    uint64_t next;
};

static void submit_gated(struct never_ready *one, struct isolation *shared, struct ref buffer)
{
    struct call call = small_call(one->next++, buffer);
    struct mlacat_ring_submission entry = raw_ring_entry(&call);
    entry.flags = MLACAT_RING_SUBMIT_READY;
    entry.ready = 1;
    raw_ring_send(&one->ring, &entry);
    atomic_fetch_add(&shared->gated_in_rings, 1);
}

/* True if it ended. One that the daemon has given to the GPU to wait there may be told later, or in the next turn. */
static bool take_back_oldest(struct never_ready *one)
{
    const struct mlacat_ring_submission entry = {
        .call_id = CANCEL_ID, .flags = MLACAT_RING_SUBMIT_CANCEL, .ready = one->oldest};
    struct completion done;
    bool ended = false;
    raw_ring_send(&one->ring, &entry);
    do {
        done = raw_ring_next(&one->ring);
        REQUIRE(done.call_id == CANCEL_ID || (done.call_id == one->oldest && done.outcome.code == STATUS_CANCELLED),
                "call %lu: %u %s", (unsigned long)done.call_id, done.outcome.code, done.outcome.message);
        ended = ended || done.call_id == one->oldest;
    } while (done.call_id != CANCEL_ID);
    one->oldest += ended;
    return ended;
}

static void open_never_ready(struct client *client, struct raw_rings *rings, struct isolation *shared,
                             struct ref buffer, struct never_ready *one)
{
    struct outcome outcome = raw_ring_open_on(rings, client->uuid, &one->ring);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    for (int i = 0; i < GATED_PER_STREAM; i++) {
        submit_gated(one, shared, buffer);
    }
}

void isolation_never_ready(void *arg)
{
    static struct never_ready all[RINGS_MAX];
    const struct isolation_process *process = arg;
    struct isolation *shared = process->shared;
    struct client client;
    struct raw_rings rings;
    struct share memory;
    open_client(&client, shared);
    share_alloc(&memory, MEMORY_BYTES);
    struct ref buffer = share_must_register(&client.raw, client.uuid, &memory, 0, memory.size);
    struct outcome outcome = raw_rings_open(&client.raw, &rings);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    uint32_t nr = rings.opened.rings < RINGS_MAX ? rings.opened.rings : RINGS_MAX;
    for (uint32_t i = 0; i < nr; i++) {
        open_never_ready(&client, &rings, shared, buffer, &all[i]);
    }
    child_ready();
    for (uint32_t turn = 0; is_time(shared); turn++) {
        if (take_back_oldest(&all[turn % nr])) {
            submit_gated(&all[turn % nr], shared, buffer);
        }
    }
    go(&client, shared);
}

/* -------------------------------------------------------------------------------------------- memory, all the time */

/* A refusal for want of room may come: of one that frees and registers faster than the daemon closes what was freed. */
static bool took(struct isolation *shared, const struct outcome *outcome)
{
    REQUIRE(outcome->code == STATUS_OK || outcome->code == STATUS_RESOURCE_EXHAUSTED, "%s", outcome->message);
    atomic_fetch_add(outcome->code == STATUS_OK ? &shared->registrations : &shared->refusals, 1);
    if (outcome->code != STATUS_OK) {
        snprintf(shared->refusal, sizeof(shared->refusal), "%.*s", (int)sizeof(shared->refusal) - 1, outcome->message);
    }
    return outcome->code == STATUS_OK;
}

static void make_fresh(struct share *memory)
{
    share_free(memory);
    share_alloc(memory, MEMORY_BYTES);
}

static void run_inline(struct client *client, struct isolation *shared, struct ref stream, const struct share *memory,
                       uint64_t id)
{
    struct call call = small_call(id, (struct ref){0});
    for (int k = 0; k < 3; k++) {
        call.operand[k].is_inline = call.operand[k].is_cuda = true;
        call.operand[k].share = memory;
        call.operand[k].size_bytes = memory->size;
    }
    raw_submit(&client->raw, stream, &call, 1);
    struct outcome outcome = raw_wait(&client->raw, id);
    took(shared, &outcome);
}

void isolation_registering(void *arg)
{
    const struct isolation_process *process = arg;
    struct isolation *shared = process->shared;
    struct client client;
    struct share memory[MEMORIES];
    struct ref buffer;
    open_client(&client, shared);
    struct ref stream = share_must_open_stream(&client.raw, client.uuid);
    for (int i = 0; i < MEMORIES; i++) {
        share_alloc(&memory[i], MEMORY_BYTES);
    }
    child_ready();
    for (uint64_t turn = 0; is_time(shared); turn++) {
        struct share *one = &memory[turn % MEMORIES];
        struct outcome outcome = share_register(&client.raw, client.uuid, one, 0, one->size, one->size, &buffer);
        if (took(shared, &outcome)) {
            REQUIRE(raw_unregister(&client.raw, buffer).code == STATUS_OK);
        }
        run_inline(&client, shared, stream, &memory[(turn + 1) % MEMORIES], turn);
        if (turn % FRESH_EVERY == 0) {
            make_fresh(one);
        }
    }
    go(&client, shared);
}
