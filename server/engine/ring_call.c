/* SPDX-License-Identifier: Apache-2.0 */
#include "ring_call.h"

#include <inttypes.h>

#include "buffers.h"
#include "checked.h"
#include "ring_stream.h"
#include "stream.h"
#include "worker.h"

#define NS_PER_US UINT64_C(1000)
#define KNOWN_FLAGS \
    (MLACAT_RING_SUBMIT_READY | MLACAT_RING_SUBMIT_DONE | MLACAT_RING_SUBMIT_CANCEL | MLACAT_RING_SUBMIT_READY_BUFFER)

#define broken(err, ...) error_set_scoped(err, MLACAT_INVALID_ARGUMENT, MLACAT_SCOPE_SESSION, __VA_ARGS__)

enum mlacat_status ring_call_check(const struct mlacat_ring_submission *entry, struct error *err)
{
    if (entry->flags & ~KNOWN_FLAGS) {
        return broken(err, "entry of call %" PRIu64 " has flags 0x%" PRIx32 ", this service knows 0x%" PRIx32,
                      entry->call_id, entry->flags, (uint32_t)KNOWN_FLAGS);
    }
    if ((entry->flags & MLACAT_RING_SUBMIT_CANCEL) && entry->flags != MLACAT_RING_SUBMIT_CANCEL) {
        return broken(err, "entry %" PRIu64 " asks to cancel, and has flags 0x%" PRIx32 ": set no other with it",
                      entry->call_id, entry->flags);
    }
    if ((entry->flags & MLACAT_RING_SUBMIT_READY_BUFFER) && !(entry->flags & MLACAT_RING_SUBMIT_READY)) {
        return broken(err,
                      "entry of call %" PRIu64 " has flags 0x%" PRIx32 ": a buffer with a ready word needs 0x%x too",
                      entry->call_id, entry->flags, MLACAT_RING_SUBMIT_READY);
    }
    for (unsigned i = 0; i < sizeof(entry->reserved) / sizeof(entry->reserved[0]); i++) {
        if (entry->reserved[i] != 0) {
            return broken(err, "entry of call %" PRIu64 " has 0x%" PRIx64 " in reserved[%u]: it must be 0",
                          entry->call_id, entry->reserved[i], i);
        }
    }
    return MLACAT_OK;
}

void ring_call_read(const struct mlacat_ring_submission *entry, uint64_t now_ns, struct call *call)
{
    call->call_id = entry->call_id;
    call->received_ns = now_ns;
    call->gated_ns = 0;
    call->ask_ns = 0;
    call->armed_ns = 0;
    call->unarmed = false;
    call->armed_ran = false;
    call->launched_ns = 0;
    call->ended_ns = 0;
    call->deadline_ns = 0;
    /* One so far away that it does not fit never comes. */
    if (entry->deadline_us != 0 && entry->deadline_us < (UINT64_MAX - now_ns) / NS_PER_US) {
        call->deadline_ns = now_ns + entry->deadline_us * NS_PER_US;
    }
    call->gated = entry->flags & MLACAT_RING_SUBMIT_READY;
    call->ready = entry->ready;
    call->ready_buffer = NULL;
    call->tell_done = entry->flags & MLACAT_RING_SUBMIT_DONE;
    call->signal_only = false;
    call->error.code = MLACAT_OK;
    for (int i = 0; i < OP_OPERANDS; i++) {
        call->buffer[i] = NULL;
    }
}

/* The shapes that the op's table gives to the four extents. */
static void read_request(const struct mlacat_ring_submission *entry, const struct op_info *op,
                         struct op_request *request)
{
    uint64_t width;
    if (!checked_add_u64(entry->width_first, entry->width_second, &width)) {
        width = UINT64_MAX; /* matches no pair of widths whose sum does not fit: refused as any other mismatch */
    }
    uint64_t second_rows = op && op->second_broadcast ? 1 : entry->dim1;
    const uint64_t shapes[OP_OPERANDS][OP_DIMS] = {
        {entry->dim0, entry->dim1, width},
        {entry->dim0, entry->dim1, entry->width_first},
        {entry->dim0, second_rows, entry->width_second},
    };
    request->op = entry->op;
    request->dtype = entry->dtype;
    for (int i = 0; i < OP_OPERANDS; i++) {
        struct op_view *view = &request->view[i];
        view->offset_bytes = entry->offset_bytes[i];
        for (int d = 0; d < OP_DIMS; d++) {
            view->shape[d] = shapes[i][d];
        }
        view->stride[0] = entry->stride[i][0];
        view->stride[1] = entry->stride[i][1];
        view->stride[2] = 1;
    }
}

static enum mlacat_status pin(struct worker *worker, const struct stream *stream, const char *name,
                              struct mlacat_ring_buffer buffer, struct buffer **pinned, struct error *err)
{
    struct wire_ref ref = {buffer.id, buffer.generation};
    struct buffer_slot *slot = buffer_table_pin(&stream->ring->rings->table, ref, &worker->posted);
    if (!slot) {
        return buffer_refuse_unknown(name, ref, err);
    }
    *pinned = slot->buffer;
    return buffer_check_engine(slot->buffer, stream->engine, name, err);
}

static enum mlacat_status pin_ready(struct worker *worker, const struct mlacat_ring_submission *entry,
                                    struct call *call, struct error *err)
{
    if (pin(worker, call->stream, "ready", entry->ready_buffer, &call->ready_buffer, err) != MLACAT_OK) {
        return err->code;
    }
    const struct op_memory *memory = &call->ready_buffer->info.memory;
    const uint64_t size = sizeof(uint64_t);
    call->ready_offset = entry->ready_offset_bytes;
    if (memory->size_bytes < size || call->ready_offset > memory->size_bytes - size) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "ready is at byte %" PRIu64 " of its buffer of %" PRIu64 " bytes: 8 bytes must be inside",
                         call->ready_offset, memory->size_bytes);
    }
    if ((memory->allocation_offset_bytes + call->ready_offset) % size != 0) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "ready is at byte %" PRIu64 " of its buffer, which is at byte %" PRIu64
                         " of its allocation: the sum must be a multiple of 8",
                         call->ready_offset, memory->allocation_offset_bytes);
    }
    return MLACAT_OK;
}

enum mlacat_status ring_call_bind(struct worker *worker, const struct mlacat_ring_submission *entry, struct call *call,
                                  struct error *err)
{
    const struct op_info *op = op_find(entry->op);
    struct op_request request;
    struct op_memory memory[OP_OPERANDS];
    for (int i = 0; i < OP_OPERANDS; i++) {
        const char *name = op ? op->operand[i] : "operand";
        if (pin(worker, call->stream, name, entry->buffer[i], &call->buffer[i], err) != MLACAT_OK) {
            return err->code;
        }
        memory[i] = call->buffer[i]->info.memory;
    }
    if ((entry->flags & MLACAT_RING_SUBMIT_READY_BUFFER) && pin_ready(worker, entry, call, err) != MLACAT_OK) {
        return err->code;
    }
    read_request(entry, op, &request);
    return op_validate(&request, memory, &call->plan, err);
}

static void unpin(struct worker *worker, struct buffer **pinned)
{
    if (*pinned) {
        worker->posted |= buffer_slot_unpin((*pinned)->slot);
        *pinned = NULL;
    }
}

void ring_call_unbind(struct worker *worker, struct call *call)
{
    for (int i = 0; i < OP_OPERANDS; i++) {
        unpin(worker, &call->buffer[i]);
    }
    unpin(worker, &call->ready_buffer);
}
