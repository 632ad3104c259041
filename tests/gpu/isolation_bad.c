/* SPDX-License-Identifier: Apache-2.0 */
/* Two clients as they should not be; none of them breaks the protocol. */
#include <stdio.h>
#include <string.h>

#include "isolation.h"
#include "raw.h"
#include "require.h"
#include "share_register.h"

#define GATED_PER_STREAM 16
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
    child_park();
}

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
    for (uint64_t turn = 0; atomic_load(&shared->phase) != ISOLATION_END; turn++) {
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
    raw_close(&client.raw);
}
