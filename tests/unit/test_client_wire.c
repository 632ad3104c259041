/* SPDX-License-Identifier: Apache-2.0 */
/* The hand-written Submit and Completions against the generated code. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <mlacat.pb-c.h>

#include "wire.h"

static uint8_t packet[WIRE_PACKET_BYTES];

static struct mlacat_call make_call(uint64_t offset, uint64_t extent, int64_t stride)
{
    struct mlacat_call call = {.op = MLACAT_OP_CONCAT_MLA_ABSORB_Q, .dtype = MLACAT_DTYPE_FP8_E5M2};
    for (int i = 0; i < 3; i++) {
        call.operand[i].offset_bytes = offset;
        for (int k = 0; k < 3; k++) {
            call.operand[i].shape[k] = extent + (unsigned)k;
            call.operand[i].strides[k] = k == 2 ? 1 : stride;
        }
    }
    return call;
}

/* Only whether there is one matters: encode() says which. */
static char some_bytes;
static struct mlacat_event *const some_event = (void *)&some_bytes;

static Mlacat__V1__Envelope *encode(const struct mlacat_call *calls, size_t nr, uint64_t first_id,
                                    struct wire_ref stream)
{
    const struct wire_ref buffers[3] = {{0, 1}, {300, 2}, {UINT32_MAX, UINT32_MAX}};
    const struct wire_ref event = {UINT32_MAX, UINT32_MAX - 1};
    uint8_t *end = packet + sizeof(packet);
    uint8_t *at = end;
    for (size_t i = nr; i-- > 0;) {
        uint8_t *before = at;
        at = wire_put_call(at, &calls[i], buffers, calls[i].wait != NULL ? &event : NULL, first_id + i);
        assert_true((size_t)(before - at) <= WIRE_CALL_BYTES_MAX);
    }
    at = wire_put_submit_head(at, end, stream);
    Mlacat__V1__Envelope *envelope = mlacat__v1__envelope__unpack(NULL, (size_t)(end - at), at);
    assert_non_null(envelope);
    assert_int_equal(envelope->body_case, MLACAT__V1__ENVELOPE__BODY_SUBMIT);
    assert_int_equal(envelope->request_id, 0);
    /* The same bytes that the generated code makes. */
    uint8_t *again = malloc(WIRE_PACKET_BYTES);
    assert_int_equal(mlacat__v1__envelope__pack(envelope, again), end - at);
    assert_memory_equal(again, at, (size_t)(end - at));
    free(again);
    return envelope;
}

static void check_submit(struct mlacat_call call, uint64_t id)
{
    Mlacat__V1__Envelope *envelope = encode(&call, 1, id, (struct wire_ref){7, 8});
    const Mlacat__V1__Submit *submit = envelope->submit;
    assert_int_equal(submit->stream->id, 7);
    assert_int_equal(submit->stream->generation, 8);
    assert_int_equal(submit->n_calls, 1);
    const Mlacat__V1__Call *got = submit->calls[0];
    assert_true(got->call_id == id);
    assert_int_equal(got->op, call.op);
    assert_int_equal(got->dtype, call.dtype);
    assert_true(got->deadline_us == call.deadline_us);
    assert_int_equal(got->wait_event != NULL, call.wait != NULL);
    if (got->wait_event != NULL) {
        assert_int_equal(got->wait_event->id, UINT32_MAX);
        assert_int_equal(got->wait_event->generation, UINT32_MAX - 1);
    }
    assert_int_equal(got->n_operands, 3);
    for (int i = 0; i < 3; i++) {
        const Mlacat__V1__Operand *operand = got->operands[i];
        assert_int_equal(operand->where_case, MLACAT__V1__OPERAND__WHERE_BUFFER);
        assert_true(operand->buffer->id == (i == 0 ? 0 : i == 1 ? 300 : UINT32_MAX));
        assert_true(operand->buffer->generation == (i == 0 ? 1 : i == 1 ? 2 : UINT32_MAX));
        assert_true(operand->offset_bytes == call.operand[i].offset_bytes);
        assert_int_equal(operand->n_shape, 3);
        assert_int_equal(operand->n_strides, 3);
        for (int k = 0; k < 3; k++) {
            assert_true(operand->shape[k] == call.operand[i].shape[k]);
            assert_true(operand->strides[k] == call.operand[i].strides[k]);
        }
    }
    mlacat__v1__envelope__free_unpacked(envelope, NULL);
}

static void test_wire_submit_says_what_generated_code_reads(void **state)
{
    (void)state;
    struct mlacat_call call = make_call(0, 0, 0);
    check_submit(call, 1);
    check_submit(make_call(127, 126, -1), 128);
    check_submit(make_call(128, 127, 64), UINT64_C(1) << 63);
    call = make_call(UINT64_MAX, UINT64_MAX - 2, INT64_MIN);
    call.deadline_us = UINT64_MAX;
    check_submit(call, UINT64_MAX);
    call.wait = some_event;
    check_submit(call, UINT64_MAX);
    check_submit(make_call(UINT64_C(1) << 35, UINT64_C(1) << 49, INT64_MAX), 5);
}

static void test_wire_submit_of_the_longest_calls_fits_into_a_packet(void **state)
{
    (void)state;
    struct mlacat_call calls[WIRE_PACKET_CALLS];
    for (size_t i = 0; i < WIRE_PACKET_CALLS; i++) {
        calls[i] = make_call(UINT64_MAX, UINT64_MAX - 2, INT64_MIN);
        calls[i].deadline_us = UINT64_MAX;
        calls[i].wait = some_event;
        calls[i].op = (enum mlacat_op)UINT32_MAX;
        calls[i].dtype = (enum mlacat_dtype)UINT32_MAX;
    }
    Mlacat__V1__Envelope *envelope =
        encode(calls, WIRE_PACKET_CALLS, UINT64_MAX - WIRE_PACKET_CALLS, (struct wire_ref){UINT32_MAX, UINT32_MAX});
    assert_int_equal(envelope->submit->n_calls, WIRE_PACKET_CALLS);
    for (size_t i = 0; i < WIRE_PACKET_CALLS; i++) {
        assert_true(envelope->submit->calls[i]->call_id == UINT64_MAX - WIRE_PACKET_CALLS + i);
    }
    mlacat__v1__envelope__free_unpacked(envelope, NULL);
}

static size_t pack_completions(void)
{
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__Completions body = MLACAT__V1__COMPLETIONS__INIT;
    Mlacat__V1__Completion good = MLACAT__V1__COMPLETION__INIT;
    Mlacat__V1__Completion bad = MLACAT__V1__COMPLETION__INIT;
    Mlacat__V1__StreamRef stream = MLACAT__V1__STREAM_REF__INIT;
    Mlacat__V1__Status status = MLACAT__V1__STATUS__INIT;
    Mlacat__V1__Completion *list[] = {&good, &bad};
    good.stream = bad.stream = &stream;
    stream.id = 200;
    stream.generation = 300;
    good.call_id = 1;
    good.queue_ns = 1000;
    bad.call_id = UINT64_MAX;
    bad.device_ns = UINT64_MAX;
    bad.status = &status;
    status.code = MLACAT_OUT_OF_RANGE;
    status.scope = MLACAT_SCOPE_BUFFER;
    status.message = (char *)(uintptr_t) "too far";
    body.completions = list;
    body.n_completions = 2;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_COMPLETIONS;
    envelope.completions = &body;
    return mlacat__v1__envelope__pack(&envelope, packet);
}

static void test_wire_completions_read_as_packed(void **state)
{
    (void)state;
    struct wire_cursor cursor;
    struct wire_completion got;
    assert_int_equal(wire_open(&cursor, packet, pack_completions()), WIRE_COMPLETIONS);
    assert_int_equal(wire_next_completion(&cursor, &got), 1);
    assert_true(got.call_id == 1 && got.code == 0 && got.queue_ns == 1000 && got.device_ns == 0);
    assert_int_equal(got.message_bytes, 0);
    assert_int_equal(wire_next_completion(&cursor, &got), 1);
    assert_true(got.call_id == UINT64_MAX && got.queue_ns == 0 && got.device_ns == UINT64_MAX);
    assert_int_equal(got.code, MLACAT_OUT_OF_RANGE);
    assert_int_equal(got.scope, MLACAT_SCOPE_BUFFER);
    assert_int_equal(got.message_bytes, 7);
    assert_memory_equal(got.message, "too far", 7);
    assert_int_equal(wire_next_completion(&cursor, &got), 0);
}

/* Reads a packet that lies at the very end of a heap block, where the address sanitizer sees each step too far. */
static int count_completions(const uint8_t *bytes, size_t size)
{
    uint8_t *copy = malloc(size + 1);
    struct wire_cursor cursor;
    struct wire_completion got;
    int nr = -1;
    memcpy(copy + 1, bytes, size);
    if (wire_open(&cursor, copy + 1, size) == WIRE_COMPLETIONS) {
        int more;
        for (nr = 0; (more = wire_next_completion(&cursor, &got)) > 0; nr++) {
            for (size_t i = 0; i < got.message_bytes; i++) {
                assert_true(got.message + i < (const char *)copy + 1 + size);
            }
        }
        nr = more < 0 ? -1 : nr;
    }
    free(copy);
    return nr;
}

static void test_wire_completions_cut_anywhere_are_refused(void **state)
{
    (void)state;
    size_t size = pack_completions();
    assert_int_equal(count_completions(packet, size), 2);
    for (size_t cut = 0; cut < size; cut++) {
        assert_int_equal(count_completions(packet, cut), -1);
    }
}

static void test_wire_completions_skip_fields_of_a_later_version(void **state)
{
    (void)state;
    /* Completions { Completion { 2: call 5; 9: varint; 10: fixed64; 11: bytes; 12: fixed32 } ; 7: bytes } */
    static const uint8_t later[] = {0xa2, 0x02, 28, 0x0a, 23, 0x10, 5,   0x48, 0xff, 0x01, 0x51, 1, 2,    3, 4,  5,
                                    6,    7,    8,  0x5a, 2,  'x',  'y', 0x65, 1,    2,    3,    4, 0x3a, 1, 'z'};
    struct wire_cursor cursor;
    struct wire_completion got;
    assert_int_equal(wire_open(&cursor, later, sizeof(later)), WIRE_COMPLETIONS);
    assert_int_equal(wire_next_completion(&cursor, &got), 1);
    assert_int_equal(got.call_id, 5);
    assert_int_equal(wire_next_completion(&cursor, &got), 0);
}

static void test_wire_open_tells_what_is_no_completion(void **state)
{
    (void)state;
    static const uint8_t answer[] = {0x08, 3, 0x8a, 0x02, 0};
    static const uint8_t long_varint[] = {0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02};
    static const uint8_t group[] = {0x0b, 0x0c};
    static const uint8_t field_zero[] = {0x00, 0x01};
    struct wire_cursor cursor;
    assert_int_equal(wire_open(&cursor, answer, sizeof(answer)), WIRE_OTHER);
    assert_int_equal(wire_open(&cursor, long_varint, sizeof(long_varint)), WIRE_BROKEN);
    assert_int_equal(wire_open(&cursor, group, sizeof(group)), WIRE_BROKEN);
    assert_int_equal(wire_open(&cursor, field_zero, sizeof(field_zero)), WIRE_BROKEN);
}

static void test_wire_completions_survive_changed_bytes(void **state)
{
    (void)state;
    uint32_t random = 12345;
    for (int round = 0; round < 20000; round++) {
        size_t size = pack_completions();
        for (int i = 0; i < 3; i++) {
            random = random * 1664525 + 1013904223;
            packet[(random >> 8) % size] = (uint8_t)(random >> 24);
        }
        count_completions(packet, size);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wire_submit_says_what_generated_code_reads),
        cmocka_unit_test(test_wire_submit_of_the_longest_calls_fits_into_a_packet),
        cmocka_unit_test(test_wire_completions_read_as_packed),
        cmocka_unit_test(test_wire_completions_cut_anywhere_are_refused),
        cmocka_unit_test(test_wire_completions_skip_fields_of_a_later_version),
        cmocka_unit_test(test_wire_open_tells_what_is_no_completion),
        cmocka_unit_test(test_wire_completions_survive_changed_bytes),
    };
    return cmocka_run_group_tests_name("client_wire", tests, NULL, NULL);
}
