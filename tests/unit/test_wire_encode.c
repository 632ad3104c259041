/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "mlacat.pb-c.h"
#include "wire.h"

static uint8_t packet[WIRE_PACKET_BYTES];

/* The packet as a client reads it; to be freed. */
static Mlacat__V1__Envelope *read_back(size_t size, Mlacat__V1__Envelope__BodyCase body, uint64_t request_id)
{
    assert_in_range(size, 1, WIRE_PACKET_BYTES);
    Mlacat__V1__Envelope *envelope = mlacat__v1__envelope__unpack(NULL, size, packet);
    assert_non_null(envelope);
    assert_int_equal(envelope->body_case, body);
    assert_true(envelope->request_id == request_id);
    return envelope;
}

static void free_back(Mlacat__V1__Envelope *envelope)
{
    mlacat__v1__envelope__free_unpacked(envelope, NULL);
}

static void fill_error(struct error *error)
{
    error->code = MLACAT_UNAUTHENTICATED;
    error->scope = MLACAT_SCOPE_DEVICE;
    memset(error->message, 'm', sizeof(error->message));
    error->message[sizeof(error->message) - 1] = '\0';
}

static void test_wire_encode_completions_fits_a_full_packet(void **state)
{
    (void)state;
    static struct wire_completion completions[WIRE_COMPLETIONS_MAX];
    struct error error;
    fill_error(&error);
    for (uint32_t i = 0; i < WIRE_COMPLETIONS_MAX; i++) {
        completions[i] = (struct wire_completion){.stream = {UINT32_MAX, UINT32_MAX},
                                                  .call_id = UINT64_MAX - i,
                                                  .error = &error,
                                                  .queue_ns = UINT64_MAX,
                                                  .device_ns = UINT64_MAX};
    }
    size_t size = wire_encode_completions(packet, completions, WIRE_COMPLETIONS_MAX);
    Mlacat__V1__Envelope *envelope = read_back(size, MLACAT__V1__ENVELOPE__BODY_COMPLETIONS, 0);
    assert_int_equal(envelope->completions->n_completions, WIRE_COMPLETIONS_MAX);
    const Mlacat__V1__Completion *last = envelope->completions->completions[WIRE_COMPLETIONS_MAX - 1];
    assert_true(last->call_id == UINT64_MAX - 127);
    assert_int_equal(last->status->code, MLACAT_UNAUTHENTICATED);
    assert_int_equal(last->status->scope, MLACAT_SCOPE_DEVICE);
    assert_string_equal(last->status->message, error.message);
    assert_int_equal(strlen(last->status->message), 239);
    free_back(envelope);
}

static void test_wire_encode_completions_leaves_ok_out(void **state)
{
    (void)state;
    struct error ok = {.code = MLACAT_OK};
    struct wire_completion completions[2] = {{.stream = {1, 2}, .call_id = 3, .queue_ns = 4, .device_ns = 5},
                                             {.stream = {6, 7}, .call_id = 8, .error = &ok}};
    size_t size = wire_encode_completions(packet, completions, 2);
    Mlacat__V1__Envelope *envelope = read_back(size, MLACAT__V1__ENVELOPE__BODY_COMPLETIONS, 0);
    const Mlacat__V1__Completion *first = envelope->completions->completions[0];
    assert_int_equal(first->stream->id, 1);
    assert_int_equal(first->stream->generation, 2);
    assert_int_equal(first->call_id, 3);
    assert_int_equal(first->queue_ns, 4);
    assert_int_equal(first->device_ns, 5);
    assert_null(first->status);
    assert_null(envelope->completions->completions[1]->status);
    free_back(envelope);
}

static void test_wire_encode_stats_fits_at_maximum(void **state)
{
    (void)state;
    static struct wire_stats stats;
    static char name[200];
    memset(name, 'n', sizeof(name) - 1);
    memset(&stats, 0xff, sizeof(stats)); /* every number at its maximum */
    stats.ops_nr = WIRE_OP_STATS_MAX;
    stats.outcomes_nr = WIRE_STATUS_COUNTS_MAX;
    stats.client_stats_nr = WIRE_CLIENT_STATS_MAX;
    for (uint32_t i = 0; i < WIRE_OP_STATS_MAX; i++) {
        stats.ops[i].device_uuid = name;
    }
    for (uint32_t i = 0; i < WIRE_CLIENT_STATS_MAX; i++) {
        stats.client_stats[i].name = name;
    }
    stats.devices_nr = WIRE_DEVICES_MAX;
    for (uint32_t i = 0; i < WIRE_DEVICES_MAX; i++) {
        stats.devices[i].device_uuid = name;
    }
    stats.devices[15].imports_known = 45;
    stats.devices[15].memory_leaving = 46;
    stats.devices[15].memory_released = 47;
    stats.devices[15].memory_closed = 48;
    stats.devices[15].gated_calls = 49;
    stats.devices[15].armed_calls = 50;
    stats.devices[15].armed_lapses = 51;
    stats.client_stats[255].pid = 4711;
    stats.ops[31].calls = 42;
    stats.outcomes[31].count = 43;
    stats.sessions_broken = 44;
    size_t size = wire_encode_stats(packet, UINT64_MAX, &stats);
    Mlacat__V1__Envelope *envelope = read_back(size, MLACAT__V1__ENVELOPE__BODY_STATS, UINT64_MAX);
    assert_int_equal(envelope->stats->n_client_stats, WIRE_CLIENT_STATS_MAX);
    assert_int_equal(envelope->stats->client_stats[255]->pid, 4711);
    assert_int_equal(strlen(envelope->stats->client_stats[255]->name), WIRE_NAME_BYTES - 1);
    assert_int_equal(envelope->stats->ops[31]->calls, 42);
    assert_int_equal(strlen(envelope->stats->ops[31]->device_uuid), WIRE_UUID_BYTES - 1);
    assert_int_equal(envelope->stats->outcomes[31]->count, 43);
    assert_int_equal(envelope->stats->sessions_broken, 44);
    assert_int_equal(envelope->stats->n_devices, WIRE_DEVICES_MAX);
    assert_int_equal(envelope->stats->devices[15]->imports_known, 45);
    assert_int_equal(envelope->stats->devices[15]->memory_leaving, 46);
    assert_int_equal(envelope->stats->devices[15]->memory_released, 47);
    assert_int_equal(envelope->stats->devices[15]->memory_closed, 48);
    assert_int_equal(envelope->stats->devices[15]->gated_calls, 49);
    assert_int_equal(envelope->stats->devices[15]->armed_calls, 50);
    assert_int_equal(envelope->stats->devices[15]->armed_lapses, 51);
    assert_int_equal(strlen(envelope->stats->devices[15]->device_uuid), WIRE_UUID_BYTES - 1);
    assert_true(envelope->stats->devices[0]->release_ns_p99 == UINT64_MAX);
    assert_true(envelope->stats->clients_total == UINT64_MAX);
    free_back(envelope);
}

static void test_wire_encode_welcome_fits_and_lists_the_ops(void **state)
{
    (void)state;
    static char text[1000];
    struct wire_device devices[WIRE_DEVICES_MAX];
    struct wire_welcome welcome = {.request_id = 9, .server_version = text, .server_pid = UINT32_MAX};
    memset(text, 't', sizeof(text) - 1);
    memset(&welcome.limits, 0xff, sizeof(welcome.limits));
    memset(welcome.boot_id, 0xab, sizeof(welcome.boot_id));
    for (uint32_t i = 0; i < WIRE_DEVICES_MAX; i++) {
        devices[i] = (struct wire_device){text, text, text, true, text, UINT32_MAX};
    }
    devices[1] = (struct wire_device){.uuid = "host", .kind = "host", .workers = 3};
    welcome.devices_nr = WIRE_DEVICES_MAX;
    welcome.devices = devices;
    welcome.has_pidfd = true;
    size_t size = wire_encode_welcome(packet, &welcome);
    Mlacat__V1__Envelope *envelope = read_back(size, MLACAT__V1__ENVELOPE__BODY_WELCOME, 9);
    const Mlacat__V1__Welcome *got = envelope->welcome;
    assert_int_equal(got->protocol_version, WIRE_PROTOCOL_VERSION);
    assert_int_equal(got->features, WIRE_FEATURES);
    assert_int_equal(got->boot_id.len, WIRE_BOOT_ID_BYTES);
    assert_memory_equal(got->boot_id.data, welcome.boot_id, WIRE_BOOT_ID_BYTES);
    assert_int_equal(got->n_devices, WIRE_DEVICES_MAX);
    assert_int_equal(strlen(got->devices[0]->reason), WIRE_TEXT_BYTES - 1);
    assert_string_equal(got->devices[1]->uuid, "host");
    assert_string_equal(got->devices[1]->reason, "");
    assert_int_equal(got->devices[1]->workers, 3);
    assert_false(got->devices[1]->available);
    assert_int_equal(got->limits->packet_bytes, WIRE_PACKET_BYTES);
    assert_int_equal(got->limits->packet_fds, WIRE_PACKET_FDS);
    assert_int_equal(got->limits->calls, UINT32_MAX);
    assert_true(got->has_pidfd);
    assert_int_equal(got->n_ops, OP_NUMBER_MAX);
    assert_int_equal(got->ops[0]->op, OP_CONCAT_MLA_K);
    assert_string_equal(got->ops[1]->name, "concat_mla_absorb_q");
    assert_null(op_at(OP_NUMBER_MAX));
    free_back(envelope);
}

static void test_wire_encode_small_replies(void **state)
{
    (void)state;
    struct error error;
    fill_error(&error);
    Mlacat__V1__Envelope *envelope =
        read_back(wire_encode_answer(packet, 1, NULL), MLACAT__V1__ENVELOPE__BODY_ANSWER, 1);
    assert_null(envelope->answer->status);
    free_back(envelope);
    envelope = read_back(wire_encode_answer(packet, 0, &error), MLACAT__V1__ENVELOPE__BODY_ANSWER, 0);
    assert_int_equal(envelope->answer->status->code, MLACAT_UNAUTHENTICATED);
    assert_string_equal(envelope->answer->status->message, error.message);
    free_back(envelope);
    size_t size = wire_encode_buffer_registered(packet, 2, (struct wire_ref){3, 4}, 5);
    envelope = read_back(size, MLACAT__V1__ENVELOPE__BODY_BUFFER_REGISTERED, 2);
    assert_int_equal(envelope->buffer_registered->buffer->id, 3);
    assert_int_equal(envelope->buffer_registered->buffer->generation, 4);
    assert_int_equal(envelope->buffer_registered->size_bytes, 5);
    free_back(envelope);
    size = wire_encode_event_registered(packet, 10, (struct wire_ref){11, 12});
    envelope = read_back(size, MLACAT__V1__ENVELOPE__BODY_EVENT_REGISTERED, 10);
    assert_int_equal(envelope->event_registered->event->id, 11);
    assert_int_equal(envelope->event_registered->event->generation, 12);
    free_back(envelope);
    size = wire_encode_stream_opened(packet, 6, (struct wire_ref){7, 8}, 9, NULL);
    envelope = read_back(size, MLACAT__V1__ENVELOPE__BODY_STREAM_OPENED, 6);
    assert_int_equal(envelope->stream_opened->stream->id, 7);
    assert_int_equal(envelope->stream_opened->stream->generation, 8);
    assert_int_equal(envelope->stream_opened->calls, 9);
    assert_false(envelope->stream_opened->has_ring);
    free_back(envelope);
}

static void test_wire_encode_rings(void **state)
{
    (void)state;
    const struct wire_ring ring = {.index = 0, .sequence = UINT64_MAX - 1};
    size_t size = wire_encode_stream_opened(packet, 6, (struct wire_ref){7, 8}, 9, &ring);
    Mlacat__V1__Envelope *envelope = read_back(size, MLACAT__V1__ENVELOPE__BODY_STREAM_OPENED, 6);
    assert_true(envelope->stream_opened->has_ring);
    assert_int_equal(envelope->stream_opened->ring, 0);
    assert_true(envelope->stream_opened->sequence == UINT64_MAX - 1);
    free_back(envelope);
    size = wire_encode_rings_opened(packet, 3, &(struct wire_rings){1, 2, 3, 4, 5, 6, 7, 8, 9});
    envelope = read_back(size, MLACAT__V1__ENVELOPE__BODY_RINGS_OPENED, 3);
    const Mlacat__V1__RingsOpened *opened = envelope->rings_opened;
    const uint64_t fields[] = {
        opened->rings,          opened->entries,       opened->client_bytes,       opened->daemon_bytes,
        opened->client_stride,  opened->daemon_stride, opened->submissions_offset, opened->completions_offset,
        opened->messages_offset};
    for (uint64_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        assert_int_equal(fields[i], i + 1);
    }
    free_back(envelope);
}

static void test_wire_encode_health_cuts_between_characters(void **state)
{
    (void)state;
    char reason[WIRE_TEXT_BYTES + 8];
    memset(reason, 'r', sizeof(reason));
    memcpy(reason + WIRE_TEXT_BYTES - 2, "\xc3\xa9", 3); /* its second byte would be the 240th */
    Mlacat__V1__Envelope *envelope =
        read_back(wire_encode_health(packet, 1, true, false, reason), MLACAT__V1__ENVELOPE__BODY_HEALTH, 1);
    assert_true(envelope->health->live);
    assert_false(envelope->health->ready);
    assert_int_equal(strlen(envelope->health->reason), WIRE_TEXT_BYTES - 2);
    free_back(envelope);
    envelope = read_back(wire_encode_health(packet, 1, true, true, NULL), MLACAT__V1__ENVELOPE__BODY_HEALTH, 1);
    assert_string_equal(envelope->health->reason, "");
    free_back(envelope);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wire_encode_completions_fits_a_full_packet),
        cmocka_unit_test(test_wire_encode_completions_leaves_ok_out),
        cmocka_unit_test(test_wire_encode_stats_fits_at_maximum),
        cmocka_unit_test(test_wire_encode_welcome_fits_and_lists_the_ops),
        cmocka_unit_test(test_wire_encode_small_replies),
        cmocka_unit_test(test_wire_encode_rings),
        cmocka_unit_test(test_wire_encode_health_cuts_between_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
