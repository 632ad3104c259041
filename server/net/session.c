/* SPDX-License-Identifier: Apache-2.0 */
#include "session.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "closer.h"
#include "completion.h"
#include "log.h"
#include "op.h"
#include "stream.h"

#define NS_PER_MS UINT64_C(1000000)

void session_part_gone(struct session *session)
{
    if (session->state != SESSION_CLOSED || session->uv_handles > 0 || session->buffers_nr > 0 ||
        session->events_nr > 0 || !list_empty(&session->stream_list)) {
        return;
    }
    session_drop_rings(session);
    assert(session->calls_nr == 0 && session->mapped_bytes == 0);
    handles_fini(&session->buffers);
    handles_fini(&session->events);
    handles_fini(&session->streams);
    list_remove(&session->link);
    session->service->sessions_nr--;
    free(session);
}

static void set_state(struct session *session, enum session_state state)
{
    assert(session->state < state);
    session->state = state;
}

void session_answer(struct session *session, uint64_t request_id, const struct error *err)
{
    if (session->state == SESSION_CLOSED) {
        return;
    }
    size_t size = wire_encode_answer(session->service->packet, request_id, err);
    conn_send(&session->conn, session->service->packet, size, NULL, 0);
}

enum mlacat_status session_check_room(const struct handles *handles, uint32_t all_nr, uint32_t limit, const char *what,
                                      struct error *err)
{
    if (all_nr >= limit + SESSION_LEAVING_MAX) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                         "this client has %u %s with those that are still being released, the limit is %u: wait a "
                         "moment, or raise max_%s",
                         all_nr, what, limit, what);
    }
    return handles_check(handles, limit, what, err);
}

struct control_lane *session_lane(struct session *session, const struct engine *engine)
{
    return &session->lanes[engine - session->service->engines];
}

void session_count_import(struct session *session, int change)
{
    session->imports_nr += (uint32_t)change;
    if (session->state != SESSION_CLOSED) {
        conn_pause(&session->conn, session->imports_nr >= SESSION_IMPORTS_MAX);
    }
}

/* --------------------------------------------------------------------------------------------- messages */

static void on_hello(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    struct service *service = session->service;
    struct wire_device devices[WIRE_DEVICES_MAX];
    struct error err;
    (void)packet;
    if (message->hello.protocol_version != WIRE_PROTOCOL_VERSION) {
        error_set_scoped(&err, MLACAT_FAILED_PRECONDITION, MLACAT_SCOPE_SESSION,
                         "the client speaks protocol version %u, this service (mlacatd " MLACAT_VERSION
                         ") speaks %u: install matching versions",
                         message->hello.protocol_version, WIRE_PROTOCOL_VERSION);
    } else if (message->hello.required_features & ~WIRE_FEATURES) {
        error_set_scoped(&err, MLACAT_FAILED_PRECONDITION, MLACAT_SCOPE_SESSION,
                         "the client requires features 0x%" PRIx64 ", this service (mlacatd " MLACAT_VERSION
                         ") has 0x%" PRIx64 ": update the service",
                         message->hello.required_features, WIRE_FEATURES);
    } else {
        err.code = MLACAT_OK;
    }
    if (err.code != MLACAT_OK) {
        session_answer(session, message->request_id, &err);
        session_end(session, &err);
        return;
    }
    for (uint32_t i = 0; i < service->engines_nr; i++) {
        const struct engine *engine = &service->engines[i];
        devices[i] = (struct wire_device){.uuid = engine->info.uuid,
                                          .kind = engine->info.kind,
                                          .name = engine->info.name,
                                          .available = engine->available,
                                          .reason = engine->available ? "" : engine->absent_reason.message,
                                          .workers = engine->workers_nr};
    }
    struct wire_welcome welcome = {.request_id = message->request_id,
                                   .server_version = MLACAT_VERSION,
                                   .server_pid = (uint32_t)getpid(),
                                   .devices_nr = service->engines_nr,
                                   .devices = devices,
                                   .limits = service->limits.client,
                                   .has_pidfd = service->pidfd >= 0};
    memcpy(welcome.boot_id, service->boot_id, sizeof(welcome.boot_id));
    memcpy(session->name, message->hello.client_name, sizeof(session->name));
    uv_timer_stop(&session->timer);
    session->timer_ns = 0;
    set_state(session, SESSION_OPEN);
    size_t size = wire_encode_welcome(service->packet, &welcome);
    conn_send(&session->conn, service->packet, size, &service->pidfd, service->pidfd >= 0 ? 1 : 0);
    char name[4 * WIRE_NAME_BYTES];
    log_info("client_connected", "pid=%d uid=%u name=%s", (int)session->peer.pid, session->peer.uid,
             log_quote(session->name, name, sizeof(name)));
}

static void on_stats(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    (void)packet;
    size_t size = service_pack_stats(session->service, session, message->request_id);
    conn_send(&session->conn, session->service->packet, size, NULL, 0);
}

static void on_health(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    struct service *service = session->service;
    const char *reason = service->draining ? "draining: calls in flight finish, new ones are refused"
                         : service->stuck  ? "a device makes no progress with calls or registrations"
                                           : "";
    (void)packet;
    size_t size = wire_encode_health(service->packet, message->request_id, true, !*reason, reason);
    conn_send(&session->conn, service->packet, size, NULL, 0);
}

static bool refuse_if_no_operator(struct session *session, struct wire_message *message)
{
    struct error err;
    if (peer_is_operator(&session->peer)) {
        return false;
    }
    error_set_scoped(&err, MLACAT_PERMISSION_DENIED, MLACAT_SCOPE_CALL,
                     "%s is for root and the service's own user; this client is uid %u", wire_kind_name(message->kind),
                     session->peer.uid);
    session_answer(session, message->request_id, &err);
    return true;
}

static void on_drain(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    (void)packet;
    if (!refuse_if_no_operator(session, message)) {
        session_answer(session, message->request_id, NULL);
        session->service->on_drain(session->service->owner);
    }
}

static void on_set_log_level(struct session *session, struct wire_message *message, struct conn_packet *packet)
{
    enum log_level level;
    (void)packet;
    if (refuse_if_no_operator(session, message)) {
        return;
    }
    if (!log_level_parse(message->set_log_level.level, &level)) {
        struct error err;
        error_set(&err, MLACAT_INVALID_ARGUMENT, "log level \"%s\" is not one of error, warning, info, debug",
                  message->set_log_level.level);
        session_answer(session, message->request_id, &err);
        return;
    }
    log_set_level(level);
    session_answer(session, message->request_id, NULL);
}

static const struct {
    void (*handle)(struct session *session, struct wire_message *message, struct conn_packet *packet);
    enum session_state state; /* that it belongs to */
} messages[WIRE_KINDS] = {
    [WIRE_HELLO] = {on_hello, SESSION_GREETING},
    [WIRE_REGISTER_BUFFER] = {session_register_buffer, SESSION_OPEN},
    [WIRE_UNREGISTER_BUFFER] = {session_unregister_buffer, SESSION_OPEN},
    [WIRE_REGISTER_EVENT] = {session_register_event, SESSION_OPEN},
    [WIRE_UNREGISTER_EVENT] = {session_unregister_event, SESSION_OPEN},
    [WIRE_OPEN_STREAM] = {session_open_stream, SESSION_OPEN},
    [WIRE_CLOSE_STREAM] = {session_close_stream, SESSION_OPEN},
    [WIRE_SUBMIT] = {session_submit, SESSION_OPEN},
    [WIRE_CANCEL] = {session_cancel, SESSION_OPEN},
    [WIRE_STATS] = {on_stats, SESSION_OPEN},
    [WIRE_HEALTH] = {on_health, SESSION_OPEN},
    [WIRE_DRAIN] = {on_drain, SESSION_OPEN},
    [WIRE_SET_LOG_LEVEL] = {on_set_log_level, SESSION_OPEN},
    [WIRE_OPEN_RINGS] = {session_open_rings, SESSION_OPEN},
};

/* --------------------------------------------------------------------------------------------- connection */

static void end_out_of_place(struct session *session, enum wire_kind kind)
{
    struct error err;
    if (session->state == SESSION_GREETING) {
        error_set(&err, MLACAT_UNAUTHENTICATED, "%s came before Hello: say Hello first", wire_kind_name(kind));
    } else {
        error_set_scoped(&err, MLACAT_FAILED_PRECONDITION, MLACAT_SCOPE_SESSION,
                         "%s came a second time on one connection", wire_kind_name(kind));
    }
    session_end(session, &err);
}

/* A close can block for as long as who made the descriptor likes: more and more of them would leave none for others. */
static bool has_too_many_to_close(const struct session *session, const struct conn_packet *packet, struct error *err)
{
    uint32_t waiting_nr = closer_waiting(session->peer.uid);
    uint32_t quick_nr = 0;
    if (waiting_nr <= CLOSER_USER_FDS) {
        return false;
    }
    while (quick_nr < packet->fds_nr && closer_is_quick(packet->fds[quick_nr])) {
        quick_nr++;
    }
    if (quick_nr == packet->fds_nr) {
        return false;
    }
    error_set_scoped(err, MLACAT_RESOURCE_EXHAUSTED, MLACAT_SCOPE_SESSION,
                     "%u descriptors that clients of user %u passed wait to be closed, the limit is %u: pass no "
                     "descriptors whose close blocks",
                     waiting_nr, session->peer.uid, CLOSER_USER_FDS);
    return true;
}

static void on_packet(void *owner, struct conn_packet *packet)
{
    struct session *session = owner;
    struct wire_message message;
    struct error err = {0};
    service_awake(session->service);
    session->service->had_packets = true;
    if (packet->fds_nr > 0 && has_too_many_to_close(session, packet, &err)) {
        session_end(session, &err);
        return;
    }
    enum mlacat_status status =
        wire_decode(session->service->decoder, packet->bytes, packet->size, packet->fds_nr, &message, &err);
    if (status != MLACAT_OK && err.scope != MLACAT_SCOPE_CALL) {
        session_end(session, &err);
    } else if (messages[message.kind].state != session->state) {
        end_out_of_place(session, message.kind);
    } else if (status != MLACAT_OK) {
        session_answer(session, message.request_id, &err);
    } else {
        messages[message.kind].handle(session, &message, packet);
    }
}

static void on_end(void *owner, const struct error *why)
{
    session_end(owner, why);
}

static void on_writable(void *owner)
{
    completion_resume(owner);
}

static void on_conn_closed(void *owner)
{
    struct session *session = owner;
    session->uv_handles--;
    session_part_gone(session);
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct session *session = handle->data;
    session->uv_handles--;
    session_part_gone(session);
}

static void on_timer(uv_timer_t *timer)
{
    struct session *session = timer->data;
    session->timer_ns = 0;
    if (session->state == SESSION_OPEN) {
        session_check_deadlines(session);
    } else if (session->state == SESSION_GREETING) {
        struct error err;
        error_set(&err, MLACAT_UNAUTHENTICATED, "no Hello within %u ms of the connection",
                  session->service->limits.hello_timeout_ms);
        session_end(session, &err);
    }
}

void session_arm_timer(struct session *session, uint64_t deadline_ns)
{
    if (session->timer_ns != 0 && session->timer_ns <= deadline_ns) {
        return;
    }
    uint64_t now_ns = clock_now_ns();
    uint64_t wait_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    session->timer_ns = deadline_ns;
    uv_update_time(session->service->loop);
    uv_timer_start(&session->timer, on_timer, (wait_ns + NS_PER_MS - 1) / NS_PER_MS, 0);
}

static const struct conn_handlers conn_handlers = {
    .on_packet = on_packet,
    .on_end = on_end,
    .on_writable = on_writable,
    .on_closed = on_conn_closed,
};

void session_new(struct service *service, int fd, const struct peer *peer)
{
    struct error err;
    struct session *session = calloc(1, sizeof(*session));
    if (!session) {
        log_error("client_refused", "pid=%d reason=\"no memory for a session\"", (int)peer->pid);
        closer_hang_up(fd, peer->uid);
        return;
    }
    session->service = service;
    session->peer = *peer;
    handles_init(&session->buffers);
    handles_init(&session->events);
    handles_init(&session->streams);
    list_init(&session->stream_list);
    for (uint32_t i = 0; i < SERVICE_ENGINES_MAX; i++) {
        control_lane_init(&session->lanes[i]);
    }
    for (uint32_t i = 0; i < service->engines_nr; i++) {
        control_lane_open(&service->engines[i].control, &session->lanes[i], peer->uid);
    }
    list_init(&session->done);
    list_init(&session->unsent_link);
    list_append(&service->sessions, &session->link);
    service->sessions_nr++;
    uv_timer_init(service->loop, &session->timer);
    session->timer.data = session;
    session->uv_handles = 1;
    if (conn_open(&session->conn, service->loop, service->reader, fd, peer->uid, &conn_handlers, session, &err) !=
        MLACAT_OK) {
        log_error("client_refused", "pid=%d reason=%s", (int)peer->pid, log_text(err.message));
        set_state(session, SESSION_CLOSED);
        uv_close((uv_handle_t *)&session->timer, on_timer_closed);
        return;
    }
    session->uv_handles = 2;
    uv_timer_start(&session->timer, on_timer, service->limits.hello_timeout_ms, 0);
}

static void log_end(const struct session *session, const struct error *why)
{
    char name[4 * WIRE_NAME_BYTES];
    log_quote(session->name, name, sizeof(name));
    if (why && why->code != MLACAT_OK) {
        log_warning("client_dropped", "pid=%d uid=%u name=%s status=%s reason=%s", (int)session->peer.pid,
                    session->peer.uid, name, status_name(why->code), log_text(why->message));
    } else {
        uint64_t ring_calls_total;
        uint32_t ring_calls_nr;
        session_count_ring_calls(session, &ring_calls_total, &ring_calls_nr);
        log_info("client_gone", "pid=%d uid=%u name=%s calls=%" PRIu64, (int)session->peer.pid, session->peer.uid, name,
                 session->calls_total + ring_calls_total);
    }
}

void session_end(struct session *session, const struct error *why)
{
    if (session->state == SESSION_CLOSED) {
        return;
    }
    log_end(session, why);
    if (why && why->code != MLACAT_OK) {
        session->service->sessions_broken++;
        session_answer(session, 0, why);
    }
    set_state(session, SESSION_CLOSED);
    uv_close((uv_handle_t *)&session->timer, on_timer_closed);
    conn_close(&session->conn);
    completion_discard(session);
    for (uint32_t i = 0; i < session->service->engines_nr; i++) {
        control_hurry(&session->service->engines[i].control, &session->lanes[i]);
    }
    session_close_streams(session);
    session_drop_buffers(session);
    session_drop_events(session);
}
