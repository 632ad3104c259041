/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes what the daemon reads from a client's ring: an input is a list of steps, some of the client, which writes what
 * it likes into its page, some of the daemon's worker. Besides what the sanitizers find, what ring.h and ring_call.h
 * promise is checked, and that a proven call stays in its buffers. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "buffers.h"
#include "engine.h"
#include "mlacat_ring.h"
#include "ring_call.h"
#include "ring_stream.h"
#include "stream.h"
#include "worker.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RINGS 3
#define INDEX 1 /* of the ring under test; its neighbours must stay as they are */
#define CALLS 7
#define BUFFERS 3 /* the last two are the same memory */
#define BUFFER_BYTES 4096
#define WORDS (sizeof(struct mlacat_ring_submission) / sizeof(uint64_t))

static struct engine engine;
static struct worker worker;
static struct rings rings;
static struct ring_stream ring_stream = {.rings = &rings};
static struct stream stream = {.engine = &engine, .ring = &ring_stream};
static struct buffer buffers[BUFFERS];
static struct call calls[CALLS + 1]; /* taken and not completed, in any order */
static uint32_t calls_nr;

struct input {
    const uint8_t *data;
    size_t size;
};

static void require(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

/* The next bytes; zeros where there are no more. */
static void get(struct input *input, void *bytes, size_t size)
{
    size_t have = size < input->size ? size : input->size;
    memset(bytes, 0, size);
    memcpy(bytes, input->data, have);
    input->data += have;
    input->size -= have;
}

static uint8_t get_byte(struct input *input)
{
    uint8_t byte;
    get(input, &byte, sizeof(byte));
    return byte;
}

static uint32_t get_u32(struct input *input)
{
    uint32_t value;
    get(input, &value, sizeof(value));
    return value;
}

/* ------------------------------------------------------------------------------------------ the scene */

static void make_scene(void)
{
    struct error err;
    require(ring_pages_new(RINGS, CALLS, &rings.pages, &err) == MLACAT_OK, "there is memory for pages");
    require(buffer_table_init(&rings.table, &err) == MLACAT_OK, "there is memory for a table");
    for (uint32_t i = 0; i < BUFFERS; i++) {
        struct op_memory memory = {.allocation = {1, i > 1 ? 1 : i}, .size_bytes = BUFFER_BYTES};
        buffers[i] = (struct buffer){.engine = &engine, .state = BUFFER_LIVE, .ref = {i, 1}, .info.memory = memory};
        buffers[i].slot = buffer_table_slot(&rings.table, i);
        buffer_slot_publish(buffers[i].slot, 1, &buffers[i]);
    }
}

static struct mlacat_ring_submission *entry_at(uint32_t index)
{
    struct mlacat_ring_submission *entries = (void *)(rings.pages->client + rings.pages->submissions_offset);
    return &entries[INDEX * rings.pages->entries + index % rings.pages->entries];
}

static void check_text(const struct error *err)
{
    size_t length = strnlen(err->message, sizeof(err->message));
    require(length > 0 && length < sizeof(err->message), "an error has a text, which ends in NUL");
}

/* Everything in D that is not of this ring is still 0. */
static void check_neighbours(void)
{
    const struct mlacat_ring_daemon *words = (const void *)rings.pages->daemon;
    const struct mlacat_ring_completion *entries =
        (const void *)(rings.pages->daemon + rings.pages->completions_offset);
    for (uint32_t i = 0; i < RINGS; i += 2) {
        require(words[i].submit_head == 0 && words[i].complete_tail == 0 && words[i].failed == 0,
                "a neighbour's words stay");
        for (uint32_t k = 0; k < rings.pages->entries; k++) {
            const struct mlacat_ring_completion *entry = &entries[i * rings.pages->entries + k];
            require(entry->call_id == 0 && entry->status == 0, "a neighbour's completions stay");
        }
    }
}

/* ------------------------------------------------------------------------------------------ the daemon */

/* The bytes of one operand, from the first to the last, without a number that could overflow. */
static void check_operand(const struct op_plan *plan, int operand)
{
    __int128 first = plan->offset_bytes[operand];
    __int128 last = first + plan->width_bytes[operand];
    const uint64_t extent[2] = {plan->dim0, plan->dim1};
    for (int i = 0; i < 2; i++) {
        __int128 span = (__int128)(extent[i] - 1) * plan->stride_bytes[operand][i];
        *(span < 0 ? &first : &last) += span;
    }
    require(first >= 0 && last <= BUFFER_BYTES, "a proven call stays in its buffers");
}

static void check_plan(const struct op_plan *plan)
{
    for (int i = 0; plan->dim0 != 0 && plan->dim1 != 0 && i < OP_OPERANDS; i++) {
        if (plan->copy[i] && plan->width_bytes[i] != 0) {
            check_operand(plan, i);
        }
    }
}

static void end_call(uint32_t place, const struct error *outcome)
{
    ring_call_unbind(&worker, &calls[place]);
    if (outcome->code != MLACAT_OK) {
        ring_count_failed(&ring_stream.ring);
    }
    ring_complete(&ring_stream.ring, calls[place].call_id, outcome, 0, 0);
    calls[place] = calls[--calls_nr];
}

static void accept_entry(const struct mlacat_ring_submission *entry)
{
    struct error err = {0};
    struct call *call = &calls[calls_nr++];
    call->stream = &stream;
    ring_call_read(entry, 1000, call);
    require(call->call_id == entry->call_id, "a call has the id of its entry");
    require(call->deadline_ns == 0 || call->deadline_ns >= 1000, "a deadline is not in the past");
    if (entry->flags & MLACAT_RING_SUBMIT_CANCEL) {
        end_call(calls_nr - 1, &err);
    } else if (ring_call_bind(&worker, entry, call, &err) == MLACAT_OK) {
        check_plan(&call->plan);
    } else {
        require(err.code != MLACAT_OK && err.scope == MLACAT_SCOPE_CALL, "a refused call costs the call");
        check_text(&err);
        end_call(calls_nr - 1, &err);
    }
}

/* What holds after each entry taken, whatever the client has written. */
static void check_indices(void)
{
    const struct ring *ring = &ring_stream.ring;
    uint32_t unread = ring->complete_tail - ring->read_seen;
    require(ring->submit_seen - ring->submit_head < ring->entries, "no entry is taken that nobody wrote");
    require(ring->published - ring->read_seen <= ring->entries, "nobody has read what was not published");
    require(ring->in_flight + unread <= ring->most, "no completion is written over one that was not read");
    require(ring->in_flight == calls_nr + 1, "each entry is in flight until it is completed");
}

/* One round of the worker; false: the client has broken the rules. */
static bool take_round(void)
{
    struct mlacat_ring_submission entry;
    struct error err = {0};
    enum ring_answer answer;
    bool more = ring_has_more(&ring_stream.ring);
    while ((answer = ring_take(&ring_stream.ring, &entry, &err)) == RING_TAKEN) {
        require(more, "ring_has_more has announced it");
        check_indices();
        require(calls_nr < CALLS + 1, "no more are taken than there are calls");
        if (ring_call_check(&entry, &err) != MLACAT_OK) {
            answer = RING_BROKEN;
            break;
        }
        accept_entry(&entry);
    }
    /* Before this round's completions are published: ring_take knew of the earlier ones only. */
    const struct ring *ring = &ring_stream.ring;
    require(answer != RING_FULL || ring->published - ring->client->complete_head <= ring->entries,
            "who says that it has read more than there is, is told so");
    ring_release_taken(&ring_stream.ring);
    ring_publish(&ring_stream.ring);
    if (answer == RING_BROKEN) {
        require(err.code == MLACAT_INVALID_ARGUMENT && err.scope == MLACAT_SCOPE_SESSION, "it costs the session");
        check_text(&err);
    }
    return answer != RING_BROKEN;
}

/* ------------------------------------------------------------------------------------------ the client */

/* What an honest client would write, but for one word. */
static void write_call(struct input *input)
{
    struct mlacat_ring_client *client = ring_stream.ring.client;
    struct mlacat_ring_submission *entry = entry_at(client->submit_tail);
    *entry = (struct mlacat_ring_submission){
        .op = OP_CONCAT_MLA_ABSORB_Q, .dtype = 1, .dim0 = 2, .dim1 = 2, .width_first = 4, .width_second = 4};
    for (uint32_t i = 0; i < OP_OPERANDS; i++) {
        entry->buffer[i] = (struct mlacat_ring_buffer){i, 1};
        entry->offset_bytes[i] = UINT64_C(1024) * i;
        entry->stride[i][0] = 16;
        entry->stride[i][1] = 8;
    }
    get(input, (uint64_t *)(void *)entry + get_byte(input) % WORDS, get_byte(input) % (sizeof(uint64_t) + 1));
    client->submit_tail++;
}

static void write_word(struct input *input)
{
    uint64_t *words = (uint64_t *)(void *)entry_at(get_byte(input));
    get(input, &words[get_byte(input) % WORDS], sizeof(uint64_t));
}

/* ------------------------------------------------------------------------------------------ steps */

static bool step(struct input *input)
{
    static const struct error ok = {0};
    struct mlacat_ring_client *client = ring_stream.ring.client;
    switch (get_byte(input) % 8) {
    case 0:
        write_call(input);
        return true;
    case 1:
        write_word(input);
        return true;
    case 2:
        client->submit_tail += get_byte(input);
        return true;
    case 3:
        client->submit_tail = get_u32(input);
        return true;
    case 4:
        client->complete_head = get_u32(input);
        return true;
    case 5:
        client->complete_head = ring_stream.ring.daemon->complete_tail;
        return true;
    case 6:
        return take_round();
    default:
        if (calls_nr > 0) {
            end_call(get_byte(input) % calls_nr, &ok);
            ring_publish(&ring_stream.ring);
        }
        return true;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    if (rings.pages == NULL) {
        make_scene();
    }
    memset(rings.pages->client, 0, rings.pages->client_bytes);
    memset(rings.pages->daemon, 0, rings.pages->daemon_bytes);
    ring_init(&ring_stream.ring, rings.pages, INDEX, get_u32(&input)); /* where it wraps, too */
    while (input.size > 0 && step(&input)) {
    }
    check_neighbours();
    while (calls_nr > 0) {
        ring_call_unbind(&worker, &calls[--calls_nr]);
    }
    for (int i = 0; i < BUFFERS; i++) {
        require(buffers[i].slot->pins == 0, "each pin is given back");
    }
    return 0;
}
