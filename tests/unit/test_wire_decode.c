/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "wire.h"
#include "wire_packets.h"

static uint8_t packet[2 * WIRE_PACKET_BYTES];
static struct wire_decoder *decoder;
static struct wire_message message;
static struct error err;

static int make_decoder(void **state)
{
    (void)state;
    decoder = wire_decoder_new();
    memset(&message, 0xa5, sizeof(message)); /* what a test reads must have been written */
    memset(&err, 0, sizeof(err));
    return decoder == NULL ? -1 : 0;
}

static int free_decoder(void **state)
{
    (void)state;
    wire_decoder_free(decoder);
    return 0;
}

static size_t pack(const Mlacat__V1__Envelope *envelope)
{
    assert_true(mlacat__v1__envelope__get_packed_size(envelope) <= sizeof(packet));
    return mlacat__v1__envelope__pack(envelope, packet);
}

static enum mlacat_status decode(const Mlacat__V1__Envelope *envelope, uint32_t fds_nr)
{
    return wire_decode(decoder, packet, pack(envelope), fds_nr, &message, &err);
}

static void assert_broken(enum mlacat_status code, const char *part)
{
    assert_int_equal(code, MLACAT_INVALID_ARGUMENT);
    assert_int_equal(err.code, MLACAT_INVALID_ARGUMENT);
    assert_int_equal(err.scope, MLACAT_SCOPE_SESSION);
    assert_non_null(strstr(err.message, part));
}

static void assert_refused(enum mlacat_status code, const char *part)
{
    assert_int_equal(code, MLACAT_INVALID_ARGUMENT);
    assert_int_equal(err.code, MLACAT_INVALID_ARGUMENT);
    assert_int_equal(err.scope, MLACAT_SCOPE_CALL);
    assert_non_null(strstr(err.message, part));
}

static void test_wire_decode_reads_hello(void **state)
{
    (void)state;
    char name[100];
    Mlacat__V1__Hello hello = MLACAT__V1__HELLO__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    envelope.request_id = 1;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_HELLO;
    envelope.hello = &hello;
    hello.protocol_version = 7;
    hello.required_features = UINT64_MAX;
    hello.client_name = (char *)"a\nb\xc3\xa9 \x7f~";
    assert_int_equal(decode(&envelope, 0), MLACAT_OK);
    assert_int_equal(message.kind, WIRE_HELLO);
    assert_int_equal(message.request_id, 1);
    assert_int_equal(message.hello.protocol_version, 7);
    assert_true(message.hello.required_features == UINT64_MAX);
    assert_string_equal(message.hello.client_name, "a?b?? ?~");
    assert_string_equal(message.hello.client_version, "");

    memset(name, 'n', sizeof(name));
    name[WIRE_NAME_BYTES - 1] = '\0'; /* just fits */
    hello.client_name = name;
    assert_int_equal(decode(&envelope, 0), MLACAT_OK);
    assert_string_equal(message.hello.client_name, name);
    name[WIRE_NAME_BYTES - 1] = 'n'; /* one too long */
    name[WIRE_NAME_BYTES] = '\0';
    assert_int_equal(decode(&envelope, 0), MLACAT_OK);
    name[WIRE_NAME_BYTES - 1] = '\0';
    name[WIRE_NAME_BYTES - 2] = '?';
    assert_string_equal(message.hello.client_name, name);
}

static void test_wire_decode_reads_small_requests(void **state)
{
    (void)state;
    Mlacat__V1__BufferRef buffer = MLACAT__V1__BUFFER_REF__INIT;
    Mlacat__V1__StreamRef stream = MLACAT__V1__STREAM_REF__INIT;
    Mlacat__V1__UnregisterBuffer unregister = MLACAT__V1__UNREGISTER_BUFFER__INIT;
    Mlacat__V1__OpenStream open = MLACAT__V1__OPEN_STREAM__INIT;
    Mlacat__V1__CloseStream close = MLACAT__V1__CLOSE_STREAM__INIT;
    Mlacat__V1__Cancel cancel = MLACAT__V1__CANCEL__INIT;
    Mlacat__V1__SetLogLevel level = MLACAT__V1__SET_LOG_LEVEL__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    envelope.request_id = UINT64_MAX;
    buffer.id = stream.id = 5;
    buffer.generation = stream.generation = UINT32_MAX;

    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_UNREGISTER_BUFFER;
    envelope.unregister_buffer = &unregister;
    assert_int_equal(decode(&envelope, 0), MLACAT_OK);
    assert_int_equal(message.unregister_buffer.generation, 0); /* absent: names nothing */
    unregister.buffer = &buffer;
    assert_int_equal(decode(&envelope, 0), MLACAT_OK);
    assert_int_equal(message.kind, WIRE_UNREGISTER_BUFFER);
    assert_true(message.request_id == UINT64_MAX);
    assert_int_equal(message.unregister_buffer.id, 5);
    assert_int_equal(message.unregister_buffer.generation, UINT32_MAX);

    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_OPEN_STREAM;
    envelope.open_stream = &open;
    open.device_uuid = (char *)"GPU-1";
    assert_int_equal(decode(&envelope, 0), MLACAT_OK);
    assert_int_equal(message.kind, WIRE_OPEN_STREAM);
    assert_string_equal(message.open_stream.device_uuid, "GPU-1");
    assert_false(message.open_stream.ring);
    open.ring = true;
    assert_int_equal(decode(&envelope, 0), MLACAT_OK);
    assert_true(message.open_stream.ring);

    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_CLOSE_STREAM;
    envelope.close_stream = &close;
    close.stream = &stream;
    assert_int_equal(decode(&envelope, 0), MLACAT_OK);
    assert_int_equal(message.kind, WIRE_CLOSE_STREAM);
    assert_int_equal(message.close_stream.id, 5);

    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_CANCEL;
    envelope.cancel = &cancel;
    cancel.stream = &stream;
    cancel.call_id = 6;
    assert_int_equal(decode(&envelope, 0), MLACAT_OK);
    assert_int_equal(message.kind, WIRE_CANCEL);
    assert_int_equal(message.cancel.stream.generation, UINT32_MAX);
    assert_int_equal(message.cancel.call_id, 6);

    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_SET_LOG_LEVEL;
    envelope.set_log_level = &level;
    level.level = (char *)"debug";
    assert_int_equal(decode(&envelope, 0), MLACAT_OK);
    assert_int_equal(message.kind, WIRE_SET_LOG_LEVEL);
    assert_string_equal(message.set_log_level.level, "debug");
}

static void test_wire_decode_reads_events(void **state)
{
    (void)state;
    static const size_t handle_sizes[] = {0, 63, 65};
    struct event_registration r;
    packet_event_registration(&r);
    assert_int_equal(decode(&r.envelope, 0), MLACAT_OK);
    assert_int_equal(message.kind, WIRE_REGISTER_EVENT);
    assert_string_equal(message.register_event.device_uuid, "GPU-1");
    assert_memory_equal(message.register_event.handle, r.handle, MEMORY_HANDLE_BYTES);
    assert_broken(decode(&r.envelope, 1), "does not name descriptor 0");
    for (size_t i = 0; i < sizeof(handle_sizes) / sizeof(handle_sizes[0]); i++) {
        r.body.handle.len = handle_sizes[i];
        assert_refused(decode(&r.envelope, 0), "64 bytes of cuIpcGetEventHandle");
        assert_int_equal(message.request_id, 78);
    }
    static const uint8_t unregister[] = {0x08, 5, 14 << 3 | 2, 6, 1 << 3 | 2, 4, 0x08, 6, 0x10, 7};
    assert_int_equal(wire_decode(decoder, unregister, sizeof(unregister), 0, &message, &err), MLACAT_OK);
    assert_int_equal(message.kind, WIRE_UNREGISTER_EVENT);
    assert_int_equal(message.unregister_event.id, 6);
    assert_int_equal(message.unregister_event.generation, 7);
}

static void test_wire_decode_knows_requests_without_fields(void **state)
{
    (void)state;
    static const struct {
        uint8_t field;
        enum wire_kind kind;
    } cases[] = {{9, WIRE_STATS}, {10, WIRE_HEALTH}, {11, WIRE_DRAIN}, {15, WIRE_OPEN_RINGS}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint8_t bytes[] = {0x08, 0x05, (uint8_t)(cases[i].field << 3 | 2), 0};
        assert_int_equal(wire_decode(decoder, bytes, sizeof(bytes), 0, &message, &err), MLACAT_OK);
        assert_int_equal(message.kind, cases[i].kind);
        assert_int_equal(message.request_id, 5);
    }
}

static void test_wire_decode_reads_memory_of_each_kind(void **state)
{
    (void)state;
    struct registration r;
    packet_registration(&r, MLACAT__V1__MEMORY__KIND_HOST);
    assert_int_equal(decode(&r.envelope, 1), MLACAT_OK);
    assert_int_equal(message.kind, WIRE_REGISTER_BUFFER);
    const struct memory_request *memory = &message.register_buffer.memory;
    assert_string_equal(message.register_buffer.device_uuid, "host");
    assert_int_equal(memory->kind, MEMORY_HOST);
    assert_int_equal(memory->size_bytes, 4096);
    assert_int_equal(memory->chunks_nr, 1);
    assert_int_equal(memory->fds[0], 0);
    assert_int_equal(memory->offset_bytes, 0);

    packet_registration(&r, MLACAT__V1__MEMORY__KIND_CUDA_IPC);
    assert_int_equal(decode(&r.envelope, 0), MLACAT_OK);
    assert_int_equal(memory->kind, MEMORY_CUDA_IPC);
    assert_int_equal(memory->chunks_nr, 0);
    assert_int_equal(memory->allocation_bytes, 1 << 20);
    assert_int_equal(memory->offset_bytes, 512);
    assert_int_equal(memory->size_bytes, 1024);
    assert_int_equal(memory->buffer_id, 99);
    assert_memory_equal(memory->handle, r.handle, MEMORY_HANDLE_BYTES);

    packet_registration(&r, MLACAT__V1__MEMORY__KIND_CUDA_VMM);
    r.vmm.n_chunks = MEMORY_CHUNKS_MAX;
    r.chunks[0].fd = 1; /* any order */
    r.chunks[1].fd = 0;
    assert_int_equal(decode(&r.envelope, 64), MLACAT_OK);
    assert_int_equal(memory->kind, MEMORY_CUDA_VMM);
    assert_int_equal(memory->chunks_nr, 64);
    assert_int_equal(memory->offset_bytes, 7);
    assert_int_equal(memory->size_bytes, 8);
    assert_int_equal(memory->fds[0], 1);
    assert_int_equal(memory->fds[63], 63);
    assert_int_equal(memory->chunk_bytes[63], 1063);
}

static void test_wire_decode_refuses_memory_for_the_request_only(void **state)
{
    (void)state;
    struct registration r;
    packet_registration(&r, MLACAT__V1__MEMORY__KIND__NOT_SET);
    assert_refused(decode(&r.envelope, 0), "no known kind");
    r.body.memory = NULL;
    assert_refused(decode(&r.envelope, 0), "no known kind");
    assert_int_equal(message.kind, WIRE_REGISTER_BUFFER);
    assert_int_equal(message.request_id, 77);

    static const size_t handle_sizes[] = {0, 1, 63, 65};
    for (size_t i = 0; i < sizeof(handle_sizes) / sizeof(handle_sizes[0]); i++) {
        packet_registration(&r, MLACAT__V1__MEMORY__KIND_CUDA_IPC);
        r.ipc.handle.len = handle_sizes[i];
        assert_refused(decode(&r.envelope, 0), "64 bytes");
    }
    packet_registration(&r, MLACAT__V1__MEMORY__KIND_CUDA_VMM);
    r.vmm.n_chunks = 0;
    assert_refused(decode(&r.envelope, 0), "0 chunks");
    r.vmm.n_chunks = 65; /* cannot name 65 of 64 descriptors rightly: the number of chunks is what is told */
    assert_refused(decode(&r.envelope, 64), "65 chunks");
    assert_int_equal(message.request_id, 77);
}

static void test_wire_decode_wants_each_descriptor_named_once(void **state)
{
    (void)state;
    struct registration r;
    packet_registration(&r, MLACAT__V1__MEMORY__KIND_HOST);
    assert_broken(decode(&r.envelope, 0), "names descriptor 0");
    assert_broken(decode(&r.envelope, 2), "does not name descriptor 1");
    assert_int_equal(message.request_id, 77);
    r.host.fd = UINT32_MAX;
    assert_broken(decode(&r.envelope, 1), "names descriptor 4294967295");
    packet_registration(&r, MLACAT__V1__MEMORY__KIND_CUDA_VMM);
    r.vmm.n_chunks = 3;
    r.chunks[2].fd = 1;
    assert_broken(decode(&r.envelope, 3), "descriptor 1 twice");
    r.chunks[2].fd = 64;
    assert_broken(decode(&r.envelope, 64), "names descriptor 64");
    packet_registration(&r, MLACAT__V1__MEMORY__KIND_CUDA_IPC);
    assert_broken(decode(&r.envelope, 1), "does not name descriptor 0");
    assert_broken(decode(&r.envelope, 64), "does not name descriptor 0");
    assert_broken(decode(&r.envelope, 65), "65 descriptors");
    /* a request that can name none */
    uint8_t health[] = {0x08, 0x05, 10 << 3 | 2, 0};
    assert_broken(wire_decode(decoder, health, sizeof(health), 1, &message, &err), "does not name");
}

static void test_wire_decode_checks_descriptors_of_inline_memory(void **state)
{
    (void)state;
    static struct submission s;
    struct registration first;
    struct registration second;
    packet_submission(&s);
    packet_registration(&first, MLACAT__V1__MEMORY__KIND_HOST);
    packet_registration(&second, MLACAT__V1__MEMORY__KIND_CUDA_VMM);
    packet_set_inline(&s, 0, &first);
    packet_set_inline(&s, 2, &second);
    second.vmm.n_chunks = 3;
    first.host.fd = 3;
    assert_int_equal(decode(&s.envelope, 4), MLACAT_OK);
    assert_broken(decode(&s.envelope, 5), "does not name descriptor 4");
    first.host.fd = 2;
    assert_broken(decode(&s.envelope, 4), "descriptor 2 twice");
    first.host.fd = 3;
    s.body.n_calls = 2; /* both calls name the same */
    assert_broken(decode(&s.envelope, 4), "descriptor 3 twice");
    /* a call that will be refused for its chunks does not hide a descriptor named twice elsewhere */
    s.body.n_calls = 1;
    second.vmm.n_chunks = 65;
    assert_int_equal(decode(&s.envelope, 4), MLACAT_OK);
    struct wire_call call;
    assert_refused(wire_submit_call(decoder, 0, &call, &err), "65 chunks");
    first.host.fd = 4;
    assert_broken(decode(&s.envelope, 4), "names descriptor 4");
}

static void test_wire_decode_refuses_bodies_of_the_daemon(void **state)
{
    (void)state;
    static const char *const names[] = {"welcome", "answer", "buffer_registered", "stream_opened", "completions",
                                        "stats",   "health", "event_registered"};
    for (uint8_t i = 0; i < 8; i++) {
        uint8_t bytes[] = {0x08, 0x05, (uint8_t)((32 + i) << 3 | 2), 2, 0};
        bytes[2] = (uint8_t)(bytes[2] | 0x80);
        char quoted[40];
        snprintf(quoted, sizeof(quoted), "`%s`", names[i]);
        assert_broken(wire_decode(decoder, bytes, sizeof(bytes), 0, &message, &err), quoted);
        assert_int_equal(message.request_id, 5);
        assert_int_equal(message.kind, WIRE_KINDS);
    }
}

static void test_wire_decode_refuses_packets_without_body(void **state)
{
    (void)state;
    uint8_t only_id[] = {0x08, 0x05};
    uint8_t unknown[] = {0x08, 0x05, 0x80 | (16 << 3 & 0x7f) | 2, 1, 1, 0};
    assert_broken(wire_decode(decoder, only_id, sizeof(only_id), 0, &message, &err), "no body");
    assert_int_equal(message.request_id, 5);
    assert_broken(wire_decode(decoder, only_id, 0, 0, &message, &err), "no body");
    assert_int_equal(message.request_id, 0);
    assert_broken(wire_decode(decoder, unknown, sizeof(unknown), 0, &message, &err), "no body");
}

static void test_wire_decode_wants_a_request_id(void **state)
{
    (void)state;
    struct registration r;
    static struct submission s;
    packet_registration(&r, MLACAT__V1__MEMORY__KIND_CUDA_IPC);
    r.envelope.request_id = 0;
    assert_broken(decode(&r.envelope, 0), "RegisterBuffer with request_id 0");
    packet_submission(&s);
    assert_int_equal(decode(&s.envelope, 0), MLACAT_OK);
}

static void test_wire_decode_refuses_what_does_not_parse(void **state)
{
    (void)state;
    uint8_t cut[] = {0x08, 0x96, 0x01, 7 << 3 | 2, 9, 0};
    uint8_t endless[] = {0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    assert_broken(wire_decode(decoder, cut, sizeof(cut), 0, &message, &err), "no Envelope");
    assert_int_equal(message.request_id, 150);
    assert_int_equal(message.kind, WIRE_KINDS);
    assert_broken(wire_decode(decoder, endless, sizeof(endless), 0, &message, &err), "no Envelope");
    assert_int_equal(message.request_id, 0);
    assert_broken(wire_decode(decoder, packet, WIRE_PACKET_BYTES + 1, 0, &message, &err), "65537 bytes");
    memset(packet, 0xff, WIRE_PACKET_BYTES);
    assert_broken(wire_decode(decoder, packet, WIRE_PACKET_BYTES, 0, &message, &err), "no Envelope");
}

/* A length prefix of 3 bytes, so that all sizes up to a packet fit. */
static size_t put_length(uint8_t *at, size_t length)
{
    at[0] = (uint8_t)(0x80 | (length & 0x7f));
    at[1] = (uint8_t)(0x80 | (length >> 7 & 0x7f));
    at[2] = (uint8_t)(length >> 14);
    return 3;
}

static void test_wire_decode_bounds_memory_of_one_packet(void **state)
{
    (void)state;
    /* Submit with as many empty calls as fit: 2 bytes each on the wire, a struct and a pointer each once decoded */
    packet[0] = 7 << 3 | 2;
    size_t body_bytes = WIRE_PACKET_BYTES - 4;
    put_length(packet + 1, body_bytes);
    for (size_t i = 0; i < body_bytes; i += 2) {
        packet[4 + i] = 2 << 3 | 2;
        packet[5 + i] = 0;
    }
    assert_broken(wire_decode(decoder, packet, WIRE_PACKET_BYTES, 0, &message, &err), "too complex");
    /* the decoder is as good as new */
    static struct submission s;
    packet_submission(&s);
    assert_int_equal(decode(&s.envelope, 0), MLACAT_OK);
}

static void test_wire_decode_takes_the_largest_proper_submit(void **state)
{
    (void)state;
    static struct submission s;
    struct wire_call call;
    packet_submission(&s);
    /* the shortest encoding that a proper call can have: everything that may be zero is zero */
    s.call.call_id = 0;
    s.call.deadline_us = 0;
    for (uint32_t i = 0; i < 3; i++) {
        s.operands[i].offset_bytes = 0;
        s.buffers[i].id = 0;
        s.buffers[i].generation = 1;
        for (uint32_t k = 0; k < 3; k++) {
            s.shape[i][k] = 0;
            s.strides[i][k] = 1;
        }
    }
    uint32_t calls = 1;
    while (s.body.n_calls = calls + 1, mlacat__v1__envelope__get_packed_size(&s.envelope) <= WIRE_PACKET_BYTES) {
        calls++;
    }
    s.body.n_calls = calls;
    assert_in_range(calls, 1000, PACKET_CALLS_MAX - 1);
    assert_int_equal(decode(&s.envelope, 0), MLACAT_OK);
    assert_int_equal(message.submit.calls_nr, calls);
    assert_int_equal(wire_submit_call(decoder, calls - 1, &call, &err), MLACAT_OK);
}

static void test_wire_submit_call_reads_every_field(void **state)
{
    (void)state;
    static struct submission s;
    struct registration r;
    struct wire_call call;
    packet_submission(&s);
    packet_registration(&r, MLACAT__V1__MEMORY__KIND_HOST);
    packet_set_inline(&s, 1, &r);
    assert_int_equal(decode(&s.envelope, 1), MLACAT_OK);
    assert_int_equal(message.kind, WIRE_SUBMIT);
    assert_int_equal(message.submit.stream.id, 3);
    assert_int_equal(message.submit.stream.generation, 4);
    assert_int_equal(message.submit.calls_nr, 1);
    memset(&call, 0xa5, sizeof(call));
    assert_int_equal(wire_submit_call(decoder, 0, &call, &err), MLACAT_OK);
    assert_int_equal(call.call_id, 1234567890123);
    assert_int_equal(call.deadline_us, 5000);
    assert_int_equal(call.request.op, OP_CONCAT_MLA_K);
    assert_int_equal(call.request.dtype, 1);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(call.request.view[i].offset_bytes, 100 + i);
        for (uint32_t k = 0; k < 3; k++) {
            assert_true(call.request.view[i].shape[k] == UINT64_MAX - 10 * i - k);
            assert_true(call.request.view[i].stride[k] == INT64_MIN + (int64_t)(10 * i + k));
        }
    }
    assert_false(call.operand[0].is_inline);
    assert_int_equal(call.operand[0].buffer.id, 10);
    assert_int_equal(call.operand[2].buffer.generation, 22);
    assert_true(call.operand[1].is_inline);
    assert_int_equal(call.operand[1].memory.kind, MEMORY_HOST);
    assert_int_equal(call.operand[1].memory.size_bytes, 4096);
    assert_int_equal(call.operand[1].memory.fds[0], 0);
    assert_false(call.waits);
    s.call.wait_event = &s.event;
    assert_int_equal(decode(&s.envelope, 1), MLACAT_OK);
    assert_int_equal(wire_submit_call(decoder, 0, &call, &err), MLACAT_OK);
    assert_true(call.waits);
    assert_int_equal(call.wait_event.id, 50);
    assert_int_equal(call.wait_event.generation, 51);
}

static void assert_call_refused(struct submission *s, uint32_t fds_nr, const char *part)
{
    struct wire_call call = {.call_id = 0};
    assert_int_equal(decode(&s->envelope, fds_nr), MLACAT_OK);
    assert_refused(wire_submit_call(decoder, 0, &call, &err), part);
    assert_int_equal(call.call_id, 1234567890123);
    assert_non_null(strstr(err.message, "call 1234567890123"));
}

static void test_wire_submit_call_refuses_the_call_only(void **state)
{
    (void)state;
    static struct submission s;
    struct registration r;
    static const size_t wrong_operands[] = {0, 2, 4};
    static const size_t wrong_dims[] = {0, 2, 4};
    for (size_t i = 0; i < 3; i++) {
        packet_submission(&s);
        s.call.n_operands = wrong_operands[i];
        assert_call_refused(&s, 0, "operands: send 3");
        packet_submission(&s);
        s.operands[2].n_shape = wrong_dims[i];
        assert_call_refused(&s, 0, "operand 2 (k_rope)");
        packet_submission(&s);
        s.operands[0].n_strides = wrong_dims[i];
        assert_call_refused(&s, 0, "operand 0 (k)");
    }
    packet_submission(&s);
    s.operands[1].where_case = MLACAT__V1__OPERAND__WHERE__NOT_SET;
    assert_call_refused(&s, 0, "operand 1 (k_nope)");
    s.call.op = 999;
    assert_call_refused(&s, 0, "operand 1 (of no known op)");

    packet_submission(&s);
    packet_registration(&r, MLACAT__V1__MEMORY__KIND__NOT_SET);
    packet_set_inline(&s, 1, &r);
    assert_call_refused(&s, 0, "no known kind");
    s.inlines[1].memory = NULL;
    assert_call_refused(&s, 0, "no known kind");
    packet_registration(&r, MLACAT__V1__MEMORY__KIND_CUDA_IPC);
    packet_set_inline(&s, 1, &r);
    r.ipc.handle.len = 63;
    assert_call_refused(&s, 0, "handle of 63 bytes");
}

/* What holds for every packet, however broken. */
static void check_any_packet(const uint8_t *bytes, size_t size, uint32_t fds_nr)
{
    struct wire_call call;
    enum mlacat_status code = wire_decode(decoder, bytes, size, fds_nr, &message, &err);
    if (code != MLACAT_OK) {
        assert_int_equal(code, MLACAT_INVALID_ARGUMENT);
        assert_true(err.scope == MLACAT_SCOPE_SESSION || err.scope == MLACAT_SCOPE_CALL);
        return;
    }
    for (uint32_t i = 0; message.kind == WIRE_SUBMIT && i < message.submit.calls_nr; i++) {
        code = wire_submit_call(decoder, i, &call, &err);
        for (uint32_t k = 0; code == MLACAT_OK && k < OP_OPERANDS; k++) {
            const struct memory_request *memory = &call.operand[k].memory;
            for (uint32_t f = 0; call.operand[k].is_inline && f < memory->chunks_nr; f++) {
                assert_in_range(memory->fds[f], 0, fds_nr - 1);
            }
        }
    }
}

static void test_wire_decode_survives_cut_and_changed_packets(void **state)
{
    (void)state;
    static struct submission s;
    struct registration r;
    packet_submission(&s);
    packet_registration(&r, MLACAT__V1__MEMORY__KIND_CUDA_VMM);
    r.vmm.n_chunks = 3;
    packet_set_inline(&s, 1, &r);
    size_t size = pack(&s.envelope);
    for (size_t cut = 0; cut < size; cut++) {
        check_any_packet(packet, cut, 3);
    }
    for (size_t at = 0; at < size; at++) {
        uint8_t kept = packet[at];
        for (unsigned value = 0; value < 256; value++) {
            packet[at] = (uint8_t)value;
            check_any_packet(packet, size, 3);
        }
        packet[at] = kept;
    }
    assert_int_equal(wire_decode(decoder, packet, size, 3, &message, &err), MLACAT_OK);
}

static void test_wire_kind_name_names_all(void **state)
{
    (void)state;
    for (int kind = 0; kind < WIRE_KINDS; kind++) {
        assert_string_not_equal(wire_kind_name((enum wire_kind)kind), "unknown");
    }
    assert_string_equal(wire_kind_name(WIRE_SUBMIT), "Submit");
    assert_string_equal(wire_kind_name(WIRE_KINDS), "unknown");
}

#define DECODER_TEST(name) cmocka_unit_test_setup_teardown(name, make_decoder, free_decoder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        DECODER_TEST(test_wire_decode_reads_hello),
        DECODER_TEST(test_wire_decode_reads_small_requests),
        DECODER_TEST(test_wire_decode_reads_events),
        DECODER_TEST(test_wire_decode_knows_requests_without_fields),
        DECODER_TEST(test_wire_decode_reads_memory_of_each_kind),
        DECODER_TEST(test_wire_decode_refuses_memory_for_the_request_only),
        DECODER_TEST(test_wire_decode_wants_each_descriptor_named_once),
        DECODER_TEST(test_wire_decode_checks_descriptors_of_inline_memory),
        DECODER_TEST(test_wire_decode_refuses_bodies_of_the_daemon),
        DECODER_TEST(test_wire_decode_refuses_packets_without_body),
        DECODER_TEST(test_wire_decode_wants_a_request_id),
        DECODER_TEST(test_wire_decode_refuses_what_does_not_parse),
        DECODER_TEST(test_wire_decode_bounds_memory_of_one_packet),
        DECODER_TEST(test_wire_decode_takes_the_largest_proper_submit),
        DECODER_TEST(test_wire_submit_call_reads_every_field),
        DECODER_TEST(test_wire_submit_call_refuses_the_call_only),
        DECODER_TEST(test_wire_decode_survives_cut_and_changed_packets),
        cmocka_unit_test(test_wire_kind_name_names_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
