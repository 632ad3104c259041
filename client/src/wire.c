/* SPDX-License-Identifier: Apache-2.0 */
#include "wire.h"

#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* How a field's value is stored (the low three bits of its tag). */
enum field_type { VARINT = 0, FIXED64 = 1, LENGTH = 2, FIXED32 = 5 };

#define TAG(field, type) ((uint32_t)(field) << 3 | (uint32_t)(type))

/* Field numbers of mlacat.proto. */
enum {
    ENVELOPE_REQUEST_ID = 1,
    ENVELOPE_SUBMIT = 7,
    ENVELOPE_COMPLETIONS = 36,
    REF_ID = 1,
    REF_GENERATION = 2,
    SUBMIT_STREAM = 1,
    SUBMIT_CALLS = 2,
    CALL_ID = 1,
    CALL_OP = 2,
    CALL_DTYPE = 3,
    CALL_OPERANDS = 4,
    CALL_DEADLINE_US = 5,
    CALL_WAIT_EVENT = 6,
    OPERAND_BUFFER = 1,
    OPERAND_OFFSET = 2,
    OPERAND_SHAPE = 3,
    OPERAND_STRIDES = 4,
    COMPLETIONS_COMPLETION = 1,
    COMPLETION_CALL_ID = 2,
    COMPLETION_STATUS = 3,
    COMPLETION_QUEUE_NS = 4,
    COMPLETION_DEVICE_NS = 5,
    STATUS_CODE = 1,
    STATUS_SCOPE = 2,
    STATUS_MESSAGE = 3
};

/* ---------------------------------------------------------------------------------------------------- writing */

static uint8_t *put_varint(uint8_t *end, uint64_t value)
{
    if (value < 0x80) {
        *--end = (uint8_t)value;
        return end;
    }
    unsigned bits = 64 - (unsigned)__builtin_clzll(value);
    uint8_t *start = end - (bits + 6) / 7;
    for (uint8_t *at = start; at < end; at++) {
        *at = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    end[-1] &= 0x7f;
    return start;
}

/* proto3: a number that is 0 is left out. */
static uint8_t *put_number(uint8_t *end, unsigned field, uint64_t value)
{
    return value == 0 ? end : put_varint(put_varint(end, value), TAG(field, VARINT));
}

/* Length and tag of the content [start, end). */
static uint8_t *put_length(uint8_t *start, const uint8_t *end, unsigned field)
{
    return put_varint(put_varint(start, (uint64_t)(end - start)), TAG(field, LENGTH));
}

static uint8_t *put_ref(uint8_t *end, unsigned field, struct wire_ref ref)
{
    uint8_t *at = put_number(end, REF_GENERATION, ref.generation);
    at = put_number(at, REF_ID, ref.id);
    return put_length(at, end, field);
}

static uint64_t zigzag(int64_t value)
{
    return (uint64_t)value << 1 ^ (value < 0 ? UINT64_MAX : 0);
}

static uint8_t *put_operand(uint8_t *end, const struct mlacat_tensor *tensor, struct wire_ref buffer)
{
    uint8_t *at = end;
    for (int i = 2; i >= 0; i--) {
        at = put_varint(at, zigzag(tensor->strides[i]));
    }
    at = put_length(at, end, OPERAND_STRIDES);
    const uint8_t *shape_end = at;
    for (int i = 2; i >= 0; i--) {
        at = put_varint(at, tensor->shape[i]);
    }
    at = put_length(at, shape_end, OPERAND_SHAPE);
    at = put_number(at, OPERAND_OFFSET, tensor->offset_bytes);
    at = put_ref(at, OPERAND_BUFFER, buffer);
    return put_length(at, end, CALL_OPERANDS);
}

uint8_t *wire_put_call(uint8_t *end, const struct mlacat_call *call, const struct wire_ref buffers[3],
                       const struct wire_ref *event, uint64_t call_id)
{
    uint8_t *at = event == NULL ? end : put_ref(end, CALL_WAIT_EVENT, *event);
    at = put_number(at, CALL_DEADLINE_US, call->deadline_us);
    for (int i = 2; i >= 0; i--) {
        at = put_operand(at, &call->operand[i], buffers[i]);
    }
    at = put_number(at, CALL_DTYPE, (uint32_t)call->dtype);
    at = put_number(at, CALL_OP, (uint32_t)call->op);
    at = put_number(at, CALL_ID, call_id);
    return put_length(at, end, SUBMIT_CALLS);
}

uint8_t *wire_put_submit_head(uint8_t *calls, const uint8_t *packet_end, struct wire_ref stream)
{
    return put_length(put_ref(calls, SUBMIT_STREAM, stream), packet_end, ENVELOPE_SUBMIT);
}

/* ---------------------------------------------------------------------------------------------------- reading */

struct field {
    uint64_t number;
    enum field_type type;
    uint64_t value;        /* of a VARINT */
    struct wire_cursor in; /* content of a LENGTH */
};

static bool get_varint(struct wire_cursor *cursor, uint64_t *value)
{
    uint64_t result = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (cursor->at == cursor->end) {
            return false;
        }
        uint8_t byte = *cursor->at++;
        if (shift == 63 && byte > 1) {
            return false;
        }
        result |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *value = result;
            return true;
        }
    }
    return false;
}

static bool take_bytes(struct wire_cursor *cursor, uint64_t size, struct wire_cursor *taken)
{
    if (size > (uint64_t)(cursor->end - cursor->at)) {
        return false;
    }
    taken->at = cursor->at;
    cursor->at += size;
    taken->end = cursor->at;
    return true;
}

/* 1: *field is the next one. 0: the end. -1: broken. */
static int next_field(struct wire_cursor *cursor, struct field *field)
{
    uint64_t tag;
    if (cursor->at == cursor->end) {
        return 0;
    }
    if (!get_varint(cursor, &tag)) {
        return -1;
    }
    field->number = tag >> 3;
    field->type = (enum field_type)(tag & 7);
    bool good = false;
    switch (field->type) {
    case VARINT:
        good = get_varint(cursor, &field->value);
        break;
    case LENGTH:
        good = get_varint(cursor, &field->value) && take_bytes(cursor, field->value, &field->in);
        break;
    case FIXED64:
        good = take_bytes(cursor, 8, &field->in);
        break;
    case FIXED32:
        good = take_bytes(cursor, 4, &field->in);
        break;
    default: /* groups, which proto3 does not have */
        break;
    }
    return good && field->number != 0 ? 1 : -1;
}

enum wire_packet wire_open(struct wire_cursor *cursor, const uint8_t *packet, size_t size)
{
    struct wire_cursor envelope = {packet, packet + size};
    struct field field;
    bool completions = false;
    int more;
    while ((more = next_field(&envelope, &field)) > 0) {
        if (field.number == ENVELOPE_COMPLETIONS && field.type == LENGTH && !completions) {
            *cursor = field.in;
            completions = true;
        } else if (field.number != ENVELOPE_REQUEST_ID) {
            return WIRE_OTHER;
        }
    }
    if (more < 0) {
        return WIRE_BROKEN;
    }
    return completions ? WIRE_COMPLETIONS : WIRE_OTHER;
}

static bool read_status(struct wire_cursor *cursor, struct wire_completion *completion)
{
    struct field field;
    int more;
    while ((more = next_field(cursor, &field)) > 0) {
        if (field.number == STATUS_CODE && field.type == VARINT) {
            completion->code = (uint32_t)field.value;
        } else if (field.number == STATUS_SCOPE && field.type == VARINT) {
            completion->scope = (uint32_t)field.value;
        } else if (field.number == STATUS_MESSAGE && field.type == LENGTH) {
            completion->message = (const char *)field.in.at;
            completion->message_bytes = (size_t)(field.in.end - field.in.at);
        }
    }
    return more == 0;
}

static bool read_completion(struct wire_cursor *cursor, struct wire_completion *completion)
{
    struct field field;
    int more;
    *completion = (struct wire_completion){0};
    while ((more = next_field(cursor, &field)) > 0) {
        if (field.number == COMPLETION_STATUS && field.type == LENGTH) {
            if (!read_status(&field.in, completion)) {
                return false;
            }
        } else if (field.type == VARINT) {
            if (field.number == COMPLETION_CALL_ID) {
                completion->call_id = field.value;
            } else if (field.number == COMPLETION_QUEUE_NS) {
                completion->queue_ns = field.value;
            } else if (field.number == COMPLETION_DEVICE_NS) {
                completion->device_ns = field.value;
            }
        }
    }
    return more == 0;
}

int wire_next_completion(struct wire_cursor *cursor, struct wire_completion *completion)
{
    struct field field;
    int more;
    while ((more = next_field(cursor, &field)) > 0) {
        if (field.number == COMPLETIONS_COMPLETION && field.type == LENGTH) {
            return read_completion(&field.in, completion) ? 1 : -1;
        }
    }
    return more;
}

/* ---------------------------------------------------------------------------------------------------- descriptors */

void wire_take_fds(struct msghdr *header, struct wire_fds *fds)
{
    for (struct cmsghdr *item = CMSG_FIRSTHDR(header); item != NULL; item = CMSG_NXTHDR(header, item)) {
        if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        size_t nr = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < nr; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(item) + i * sizeof(int), sizeof(int));
            if (fds->nr < WIRE_PACKET_FDS) {
                fds->fd[fds->nr++] = fd;
            } else {
                close(fd);
            }
        }
    }
}

void wire_close_fds(struct wire_fds *fds)
{
    for (uint32_t i = 0; i < fds->nr; i++) {
        close(fds->fd[i]);
    }
    fds->nr = 0;
}
