/* SPDX-License-Identifier: Apache-2.0 */
#include "raw_ring.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "mlacat_ring.h"
#include "require.h"

static struct outcome read_answer(Mlacat__V1__Envelope *reply)
{
    struct outcome outcome = {0};
    REQUIRE(reply->body_case == MLACAT__V1__ENVELOPE__BODY_ANSWER && reply->answer->status != NULL);
    outcome.code = reply->answer->status->code;
    outcome.scope = reply->answer->status->scope;
    snprintf(outcome.message, sizeof(outcome.message), "%s", reply->answer->status->message);
    raw_free(reply);
    return outcome;
}

struct outcome raw_rings_open(struct raw *raw, struct raw_rings *rings)
{
    Mlacat__V1__OpenRings message = MLACAT__V1__OPEN_RINGS__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_OPEN_RINGS;
    envelope.open_rings = &message;
    Mlacat__V1__Envelope *reply = raw_request(raw, &envelope, NULL, 0);
    if (reply->body_case != MLACAT__V1__ENVELOPE__BODY_RINGS_OPENED) {
        return read_answer(reply);
    }
    *rings = (struct raw_rings){.raw = raw, .opened = *reply->rings_opened};
    rings->client_fd = raw_take_fd(raw, 0);
    rings->daemon_fd = raw_take_fd(raw, 1);
    raw_free(reply);
    rings->client = mmap(NULL, rings->opened.client_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, rings->client_fd, 0);
    rings->daemon = mmap(NULL, rings->opened.daemon_bytes, PROT_READ, MAP_SHARED, rings->daemon_fd, 0);
    REQUIRE(rings->client != MAP_FAILED && rings->daemon != MAP_FAILED);
    return (struct outcome){0};
}

void raw_rings_close(struct raw_rings *rings)
{
    munmap(rings->client, rings->opened.client_bytes);
    munmap((void *)(uintptr_t)rings->daemon, rings->opened.daemon_bytes);
    close(rings->client_fd);
    close(rings->daemon_fd);
}

static void find_parts(const struct raw_rings *rings, struct raw_ring *ring)
{
    const Mlacat__V1__RingsOpened *opened = &rings->opened;
    size_t first = (size_t)ring->index * opened->entries;
    unsigned char *client = rings->client;
    const unsigned char *daemon = rings->daemon;
    ring->entries = opened->entries;
    ring->client = (struct mlacat_ring_client *)(void *)(client + (size_t)ring->index * opened->client_stride);
    ring->daemon =
        (const struct mlacat_ring_daemon *)(const void *)(daemon + (size_t)ring->index * opened->daemon_stride);
    ring->submissions = (struct mlacat_ring_submission *)(void *)(client + opened->submissions_offset) + first;
    ring->completions =
        (const struct mlacat_ring_completion *)(const void *)(daemon + opened->completions_offset) + first;
    ring->messages = (const char(*)[MLACAT_ABI_MESSAGE_BYTES])(daemon + opened->messages_offset) + first;
}

struct outcome raw_ring_open_on(struct raw_rings *rings, const char *device, struct raw_ring *ring)
{
    Mlacat__V1__OpenStream message = MLACAT__V1__OPEN_STREAM__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    message.device_uuid = (char *)(uintptr_t)device;
    message.ring = 1;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_OPEN_STREAM;
    envelope.open_stream = &message;
    Mlacat__V1__Envelope *reply = raw_request(rings->raw, &envelope, NULL, 0);
    if (reply->body_case != MLACAT__V1__ENVELOPE__BODY_STREAM_OPENED) {
        return read_answer(reply);
    }
    const Mlacat__V1__StreamOpened *opened = reply->stream_opened;
    REQUIRE(opened->has_ring);
    *ring = (struct raw_ring){.stream = {opened->stream->id, opened->stream->generation},
                              .index = opened->ring,
                              .calls = opened->calls,
                              .doorbell = raw_take_fd(rings->raw, 0),
                              .tail = (uint32_t)opened->sequence,
                              .head = (uint32_t)opened->sequence,
                              .sequence = opened->sequence};
    raw_free(reply);
    find_parts(rings, ring);
    return (struct outcome){0};
}

struct outcome raw_ring_open(struct raw_rings *rings, struct raw_ring *ring)
{
    return raw_ring_open_on(rings, raw_device(), ring);
}

void raw_ring_close(struct raw_ring *ring)
{
    close(ring->doorbell);
}

void raw_ring_must_open(struct raw *raw, struct raw_rings *rings, struct raw_ring *ring)
{
    struct outcome outcome = raw_rings_open(raw, rings);
    REQUIRE(outcome.code == STATUS_OK, "OpenRings: %u: %s", outcome.code, outcome.message);
    outcome = raw_ring_open(rings, ring);
    REQUIRE(outcome.code == STATUS_OK, "OpenStream: %u: %s", outcome.code, outcome.message);
}

struct mlacat_ring_submission raw_ring_entry(const struct call *call)
{
    struct mlacat_ring_submission entry = {
        .call_id = call->id,
        .op = (uint16_t)call->op,
        .dtype = (uint16_t)call->dtype,
        .deadline_us = call->deadline_us,
        .dim0 = call->operand[0].shape[0],
        .dim1 = call->operand[0].shape[1],
        .width_first = call->operand[1].shape[2],
        .width_second = call->operand[2].shape[2],
    };
    for (int i = 0; i < 3; i++) {
        const struct operand *operand = &call->operand[i];
        entry.buffer[i] = (struct mlacat_ring_buffer){operand->buffer.id, operand->buffer.generation};
        entry.offset_bytes[i] = operand->offset_bytes;
        entry.stride[i][0] = operand->strides[0];
        entry.stride[i][1] = operand->strides[1];
    }
    return entry;
}

void raw_ring_write(struct raw_ring *ring, const struct mlacat_ring_submission *entry)
{
    ring->submissions[ring->tail++ & (ring->entries - 1)] = *entry;
    ring->sequence++;
}

void raw_ring_submit(struct raw_ring *ring)
{
    mlacat_ring_submit(ring->client, ring->tail);
    if (mlacat_ring_daemon_sleeps(ring->daemon)) {
        uint64_t one = 1;
        ring->doorbells_rung++;
        REQUIRE(write(ring->doorbell, &one, sizeof(one)) == (ssize_t)sizeof(one));
    }
}

void raw_ring_send(struct raw_ring *ring, const struct mlacat_ring_submission *entry)
{
    raw_ring_write(ring, entry);
    raw_ring_submit(ring);
}

void raw_ring_call(struct raw_ring *ring, const struct call *calls, uint32_t calls_nr)
{
    for (uint32_t i = 0; i < calls_nr; i++) {
        struct mlacat_ring_submission entry = raw_ring_entry(&calls[i]);
        raw_ring_write(ring, &entry);
    }
    raw_ring_submit(ring);
}

bool raw_ring_has(const struct raw_ring *ring)
{
    return mlacat_ring_completed(ring->daemon) != ring->head;
}

/* Who is not woken for so long, though there is something, was forgotten. */
static void sleep_until_news(struct raw_ring *ring)
{
    const struct timespec limit = {.tv_sec = WAIT_MS / 2000};
    mlacat_ring_wait(ring->client, 1);
    if (!raw_ring_has(ring)) {
        long woken = syscall(SYS_futex, &ring->daemon->complete_tail, FUTEX_WAIT, ring->head, &limit, NULL, 0);
        REQUIRE(woken == 0 || errno != ETIMEDOUT || !raw_ring_has(ring), "a wake-up was lost");
    }
    mlacat_ring_wait(ring->client, 0);
}

struct completion raw_ring_next(struct raw_ring *ring)
{
    struct completion completion = {.stream = ring->stream};
    uint64_t end_ms = now_ms() + WAIT_MS;
    while (!raw_ring_has(ring)) {
        REQUIRE(now_ms() < end_ms, "no completion for %d ms after %u of %u entries", WAIT_MS, ring->head, ring->tail);
        sleep_until_news(ring);
    }
    uint32_t place = ring->head & (ring->entries - 1);
    const struct mlacat_ring_completion *entry = &ring->completions[place];
    completion.call_id = entry->call_id;
    completion.outcome.code = entry->status;
    completion.outcome.scope = entry->scope;
    completion.queue_ns = entry->queue_ns;
    completion.device_ns = entry->device_ns;
    if (entry->status != STATUS_OK) {
        snprintf(completion.outcome.message, sizeof(completion.outcome.message), "%.255s", ring->messages[place]);
    }
    mlacat_ring_completions_read(ring->client, ++ring->head);
    return completion;
}

struct outcome raw_ring_wait(struct raw_ring *ring, uint64_t call_id)
{
    struct completion completion = raw_ring_next(ring);
    REQUIRE(completion.call_id == call_id, "call %lu, not %lu: %s", (unsigned long)completion.call_id,
            (unsigned long)call_id, completion.outcome.message);
    return completion.outcome;
}

uint64_t raw_ring_fence(const struct raw_ring *ring)
{
    return mlacat_ring_fence(ring->daemon);
}
