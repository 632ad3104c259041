/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>

#include "buffers.h"
#include "clock.h"
#include "completion.h"
#include "session.h"
#include "stream.h"

#define NS_PER_US UINT64_C(1000)

static void count_outcome(struct session *session, const struct call *call)
{
    struct service *service = session->service;
    service->outcomes[call->error.code]++;
    if (call->error.code != MLACAT_OK) {
        return;
    }
    struct op_counters *counters = &service->ops[call->stream->engine - service->engines][call->plan.op];
    counters->calls++;
    counters->bytes += call->plan.bytes;
    histogram_add(&counters->queue, call->launched_ns - call->received_ns);
    histogram_add(&counters->device, call->ended_ns - call->launched_ns);
}

void session_call_done(struct stream *stream, struct call *call)
{
    struct session *session = stream->owner;
    struct service *service = session->service;
    count_outcome(session, call);
    session_unpin(call);
    if (session->state == SESSION_CLOSED) {
        session->calls_nr--;
        stream_put_call(stream, call);
        return;
    }
    completion_add(session, call);
    if (call->error.code == MLACAT_OK || call->error.scope < MLACAT_SCOPE_SESSION) {
        return;
    }
    /* The call's slot is free when its completion is sent. */
    struct error err = call->error;
    if (err.scope == MLACAT_SCOPE_SESSION) {
        completion_flush(service);
        session_end(session, &err);
    } else {
        service->on_device_lost(service->owner, &err);
    }
}

/* Proves the call and hands it to its worker. */
static enum mlacat_status launch(struct stream *stream, struct call *call, struct error *err)
{
    struct op_memory memory[OP_OPERANDS];
    for (int i = 0; i < OP_OPERANDS; i++) {
        memory[i] = call->buffer[i]->info.memory;
    }
    if (op_validate(&call->request, memory, &call->plan, err) != MLACAT_OK) {
        return err->code;
    }
    stream_submit(stream, call);
    return MLACAT_OK;
}

/* Calls run in order: one that waits for an import holds those behind it. */
static void submit_held(struct stream *stream)
{
    while (!list_empty(&stream->held)) {
        struct call *call = LIST_ENTRY(stream->held.next, struct call, hold_link);
        struct error err = call->error;
        if (call->imports_pending > 0) {
            return;
        }
        list_remove(&call->hold_link);
        if (err.code != MLACAT_OK || launch(stream, call, &err) != MLACAT_OK) {
            stream_fail_call(stream, call, &err);
        }
    }
}

void session_call_imported(struct call *call)
{
    call->imports_pending--;
    submit_held(call->stream);
}

void session_check_deadlines(struct session *session)
{
    uint64_t now_ns = clock_now_ns();
    uint64_t next_ns = 0;
    for (struct list_node *s = session->stream_list.next; s != &session->stream_list; s = s->next) {
        struct stream *stream = LIST_ENTRY(s, struct stream, link);
        struct list_node *node = stream->live.next;
        while (node != &stream->live) {
            struct call *call = LIST_ENTRY(node, struct call, link);
            node = node->next;
            if (call->deadline_ns == 0 || atomic_load_explicit(&call->claim, memory_order_relaxed) != CALL_WAITING) {
                continue;
            }
            if (call->deadline_ns <= now_ns) {
                stream_withdraw(stream, call, CALL_WITHDRAWN_DEADLINE);
            } else if (next_ns == 0 || call->deadline_ns < next_ns) {
                next_ns = call->deadline_ns;
            }
        }
        submit_held(stream);
    }
    if (next_ns != 0) {
        session_arm_timer(session, next_ns);
    }
}

/* Finds and pins the registered buffer of one operand. */
static enum mlacat_status bind_buffer(struct session *session, struct call *call, int operand, struct wire_ref ref,
                                      struct error *err)
{
    struct buffer *buffer = session_find_buffer(session, ref);
    const struct op_info *op = op_find(call->request.op);
    const char *name = op ? op->operand[operand] : "operand";
    if (!buffer) {
        return buffer_refuse_unknown(name, ref, err);
    }
    if (buffer_check_engine(buffer, call->stream->engine, name, err) != MLACAT_OK) {
        return err->code;
    }
    buffer_pin(buffer);
    call->buffer[operand] = buffer;
    return MLACAT_OK;
}

/* Memory comes last: a call that names no good buffer or event starts no import. */
static enum mlacat_status bind_operands(struct session *session, struct call *call, struct wire_call *wire,
                                        struct conn_packet *packet, struct error *err)
{
    for (int i = 0; i < OP_OPERANDS; i++) {
        if (!wire->operand[i].is_inline && bind_buffer(session, call, i, wire->operand[i].buffer, err) != MLACAT_OK) {
            return err->code;
        }
    }
    if (wire->waits && session_bind_event(session, call, wire->wait_event, err) != MLACAT_OK) {
        return err->code;
    }
    for (int i = 0; i < OP_OPERANDS; i++) {
        if (wire->operand[i].is_inline &&
            session_import_inline(session, call, i, &wire->operand[i].memory, packet, err) != MLACAT_OK) {
            return err->code;
        }
    }
    return MLACAT_OK;
}

static enum mlacat_status accept_call(struct session *session, struct stream *stream, struct wire_call *wire,
                                      struct conn_packet *packet, uint64_t now_ns, struct error *err)
{
    const struct wire_limits *limits = &session->service->limits.client;
    if (session->service->draining) {
        return error_set(err, MLACAT_UNAVAILABLE, "the service is draining: submit again when it is back");
    }
    if (session->calls_nr >= limits->calls) {
        return error_set(
            err, MLACAT_RESOURCE_EXHAUSTED,
            "this client has %u calls in flight, the limit is %u: wait for some to end, or raise max_calls",
            session->calls_nr, limits->calls);
    }
    struct call *call = stream_get_call(stream);
    if (!call) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                         "stream %u.%u has %u calls in flight, which is its limit: wait for some to end, or raise "
                         "max_stream_calls",
                         stream->ref.id, stream->ref.generation, stream->calls_nr);
    }
    call->call_id = wire->call_id;
    call->received_ns = now_ns;
    call->request = wire->request;
    /* One so far away that it does not fit never comes. */
    if (wire->deadline_us != 0 && wire->deadline_us < (UINT64_MAX - now_ns) / NS_PER_US) {
        call->deadline_ns = now_ns + wire->deadline_us * NS_PER_US;
    }
    if (bind_operands(session, call, wire, packet, err) != MLACAT_OK) {
        goto refuse;
    }
    if (call->imports_pending > 0 || !list_empty(&stream->held)) {
        list_append(&stream->held, &call->hold_link);
    } else if (launch(stream, call, err) != MLACAT_OK) {
        goto refuse;
    }
    session->calls_nr++;
    session->calls_total++;
    if (call->deadline_ns != 0) {
        session_arm_timer(session, call->deadline_ns);
    }
    return MLACAT_OK;
refuse:
    session_unpin(call);
    stream_put_call(stream, call);
    return err->code;
}

void session_submit(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    struct wire_ref ref = message->submit.stream;
    struct error stream_err;
    struct stream *stream = session_find_packet_stream(session, ref, &stream_err);
    uint64_t now_ns = clock_now_ns();
    for (uint32_t i = 0; i < message->submit.calls_nr; i++) {
        struct wire_call wire;
        struct error err;
        enum mlacat_status status = wire_submit_call(session->service->decoder, i, &wire, &err);
        if (status == MLACAT_OK && !stream) {
            err = stream_err;
            status = err.code;
        }
        if (status == MLACAT_OK) {
            status = accept_call(session, stream, &wire, packet, now_ns, &err);
        }
        if (status != MLACAT_OK) {
            completion_refuse(session, ref, wire.call_id, &err);
        }
    }
    completion_send_refused(session);
}

void session_cancel(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    struct error err;
    struct stream *stream = session_find_packet_stream(session, message->cancel.stream, &err);
    (void)packet;
    if (!stream) {
        goto fail;
    }
    for (struct list_node *node = stream->live.next; node != &stream->live; node = node->next) {
        struct call *call = LIST_ENTRY(node, struct call, link);
        if (call->call_id != message->cancel.call_id) {
            continue;
        }
        if (stream_withdraw(stream, call, CALL_WITHDRAWN_CANCEL)) {
            session_answer(session, message->request_id, NULL);
            submit_held(stream);
            return;
        }
        error_set(&err, MLACAT_FAILED_PRECONDITION, "call %" PRIu64 " is launched or withdrawn already: it will end",
                  call->call_id);
        goto fail;
    }
    error_set(&err, MLACAT_NOT_FOUND, "no call %" PRIu64 " is in flight on stream %u.%u: it has ended, or never was",
              message->cancel.call_id, message->cancel.stream.id, message->cancel.stream.generation);
fail:
    session_answer(session, message->request_id, &err);
}
