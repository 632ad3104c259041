/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes the decoder: the first byte of an input is the number of descriptors that came with the packet, the rest is
 * the packet. Besides what the sanitizers find, everything that wire.h promises of any packet is checked. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

static void check_text(const char *text, size_t bytes)
{
    size_t length = strnlen(text, bytes);
    require(length < bytes, "a text ends in NUL");
    for (size_t i = 0; i < length; i++) {
        require(text[i] >= 0x20 && text[i] < 0x7f, "a text is printable");
    }
}

static void check_error(enum mlacat_status code, const struct error *err)
{
    require(code == MLACAT_INVALID_ARGUMENT && err->code == code, "an error is INVALID_ARGUMENT");
    require(err->scope == MLACAT_SCOPE_SESSION || err->scope == MLACAT_SCOPE_CALL, "an error costs call or session");
    check_text(err->message, sizeof(err->message));
}

/* Marks the descriptors that the memory names; each may be named once. */
static void check_memory(const struct memory_request *memory, uint32_t fds_nr, uint64_t *named)
{
    require(memory->chunks_nr <= MEMORY_CHUNKS_MAX, "chunks fit");
    for (uint32_t i = 0; i < memory->chunks_nr; i++) {
        require(memory->fds[i] >= 0 && (uint32_t)memory->fds[i] < fds_nr, "a descriptor index is one of the packet's");
        require((*named >> memory->fds[i] & 1) == 0, "a descriptor is named once");
        *named |= (uint64_t)1 << memory->fds[i];
    }
}

static void check_submit(const struct wire_decoder *decoder, const struct wire_message *message, uint32_t fds_nr)
{
    static struct wire_call call;
    uint64_t named = 0;
    for (uint32_t i = 0; i < message->submit.calls_nr; i++) {
        struct error err;
        enum mlacat_status code = wire_submit_call(decoder, i, &call, &err);
        if (code != MLACAT_OK) {
            check_error(code, &err);
            require(err.scope == MLACAT_SCOPE_CALL, "a call's error costs the call");
            continue;
        }
        for (int k = 0; k < OP_OPERANDS; k++) {
            if (call.operand[k].is_inline) {
                check_memory(&call.operand[k].memory, fds_nr, &named);
            }
        }
    }
}

static void check_message(const struct wire_decoder *decoder, const struct wire_message *message, uint32_t fds_nr)
{
    uint64_t named = 0;
    require(message->request_id != 0 || message->kind == WIRE_SUBMIT, "a request has an id");
    switch (message->kind) {
    case WIRE_HELLO:
        check_text(message->hello.client_name, sizeof(message->hello.client_name));
        check_text(message->hello.client_version, sizeof(message->hello.client_version));
        break;
    case WIRE_REGISTER_BUFFER:
        check_text(message->register_buffer.device_uuid, sizeof(message->register_buffer.device_uuid));
        check_memory(&message->register_buffer.memory, fds_nr, &named);
        require(named == (fds_nr == 0 ? 0 : UINT64_MAX >> (64 - fds_nr)), "all descriptors are named");
        break;
    case WIRE_REGISTER_EVENT:
        check_text(message->register_event.device_uuid, sizeof(message->register_event.device_uuid));
        require(fds_nr == 0, "an event comes without descriptors");
        break;
    case WIRE_OPEN_STREAM:
        check_text(message->open_stream.device_uuid, sizeof(message->open_stream.device_uuid));
        break;
    case WIRE_SUBMIT:
        check_submit(decoder, message, fds_nr);
        break;
    case WIRE_SET_LOG_LEVEL:
        check_text(message->set_log_level.level, sizeof(message->set_log_level.level));
        break;
    default:
        require(fds_nr == 0, "all other requests come without descriptors");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct wire_decoder *decoder;
    struct wire_message message;
    struct error err;
    if (decoder == NULL && (decoder = wire_decoder_new()) == NULL) {
        abort();
    }
    if (size == 0) {
        return 0;
    }
    uint32_t fds_nr = data[0] % (WIRE_PACKET_FDS + 1);
    enum mlacat_status code = wire_decode(decoder, data + 1, size - 1, fds_nr, &message, &err);
    if (code != MLACAT_OK) {
        check_error(code, &err);
    } else {
        check_message(decoder, &message, fds_nr);
    }
    return 0;
}
