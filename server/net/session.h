/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One client: its connection, buffers, events, streams and calls.
 *
 *   GREETING -> OPEN   (Hello was accepted)
 *   GREETING -> CLOSED (refused, timed out, gone)
 *   OPEN -> CLOSED     (gone, or broke the protocol)
 *
 * A CLOSED session takes no more requests: waiting calls are withdrawn, launched ones finish, streams close, buffers
 * and events go, and then it frees itself.
 *
 * Owns:     all of that.
 * Thread:   the loop thread.
 * Lifetime: session_new -> frees itself after session_end.
 * Errors:   sent to the client: as a reply where there is a request, else as the Answer that ends the connection.
 */
#ifndef MLACAT_NET_SESSION_H
#define MLACAT_NET_SESSION_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "call.h"
#include "conn.h"
#include "handles.h"
#include "listener.h"
#include "service.h"
#include "wire.h"

struct buffer;
struct ring_stream;
struct rings;
struct stream;

enum session_state { SESSION_GREETING, SESSION_OPEN, SESSION_CLOSED };

/* Imports under way at a time: with as many, no more packets are read, and inline memory is refused. */
#define SESSION_IMPORTS_MAX 64
/* Buffers, events, or streams, beyond the limit that may be on their way out. */
#define SESSION_LEAVING_MAX 64

struct session {
    struct conn conn;
    uv_timer_t timer;  /* GREETING: time is up; OPEN: the next deadline of a call */
    uint64_t timer_ns; /* when it fires; 0: not armed */
    struct service *service;
    struct list_node link;
    enum session_state state;
    uint32_t uv_handles; /* open: conn and timer */
    struct peer peer;
    char name[WIRE_NAME_BYTES];

    struct handles buffers;                         /* struct buffer by id */
    struct handles events;                          /* struct event by id */
    struct handles streams;                         /* struct stream by id */
    struct list_node stream_list;                   /* struct stream.link: all that are not gone */
    uint32_t streams_nr;                            /* all that are not gone */
    uint32_t buffers_nr;                            /* all that are not gone, inline memory too */
    uint32_t leaving_nr[SERVICE_ENGINES_MAX];       /* of those registered: given up by the client */
    uint32_t events_nr;                             /* all that are not gone */
    struct control_lane lanes[SERVICE_ENGINES_MAX]; /* of service->engines */
    uint32_t imports_nr;                            /* of memory and of events, under way */
    uint64_t mapped_bytes;                          /* buffers and rings */
    uint64_t calls_total;
    uint32_t calls_nr;         /* accepted and not answered */
    struct rings *rings;       /* NULL: the client has not asked for them */
    uint64_t ring_calls_total; /* of streams that are gone */

    struct list_node done;        /* struct call.link: calls to be answered, in order of their end */
    struct list_node unsent_link; /* on service->unsent while `done` is not empty and the socket may take more */
};

/* Takes `fd` in every outcome. */
void session_new(struct service *service, int fd, const struct peer *peer);

/* Ends the session. `why` NULL or OK: the client is gone, or the service stops; else it is told and logged. */
void session_end(struct session *session, const struct error *why);

/* --- for the files of the session --- */

/* A buffer, an event or a stream is gone: perhaps it was the last that kept a CLOSED session. */
void session_part_gone(struct session *session);

/* Sends the reply to a request; `err` NULL: success. */
void session_answer(struct session *session, uint64_t request_id, const struct error *err);

/* Makes session_check_deadlines run at deadline_ns, or earlier. */
void session_arm_timer(struct session *session, uint64_t deadline_ns);

/* RESOURCE_EXHAUSTED: no room for one more of `what` ("buffers"). `all_nr`: with those that are still being released,
 * which hold memory until the control thread comes to them. */
enum mlacat_status session_check_room(const struct handles *handles, uint32_t all_nr, uint32_t limit, const char *what,
                                      struct error *err);

/* The client's lane at the engine's control thread. */
struct control_lane *session_lane(struct session *session, const struct engine *engine);

/* One import more or less is under way. */
void session_count_import(struct session *session, int change);

/* session_memory.c */
void session_register_buffer(struct session *session, struct wire_message *message, struct conn_packet *packet);
void session_unregister_buffer(struct session *session, struct wire_message *message, struct conn_packet *packet);
/* NULL: no registered buffer has that name. A client learns the name only when the import is done; one that guesses it
 * finds nothing. */
struct buffer *session_find_buffer(struct session *session, struct wire_ref ref);
/* What the client may still map. */
uint64_t session_room_bytes(const struct session *session);
/* Imports the memory of one operand of a call: pins it. */
enum mlacat_status session_import_inline(struct session *session, struct call *call, int operand,
                                         struct memory_request *memory, struct conn_packet *packet, struct error *err);
/* Unpins buffers and event; inline memory goes. */
void session_unpin(struct call *call);
/* Unregisters every buffer. */
void session_drop_buffers(struct session *session);

/* session_events.c */
void session_register_event(struct session *session, struct wire_message *message, struct conn_packet *packet);
void session_unregister_event(struct session *session, struct wire_message *message, struct conn_packet *packet);
/* Pins the event that the call is to wait for. */
enum mlacat_status session_bind_event(struct session *session, struct call *call, struct wire_ref ref,
                                      struct error *err);
/* Unregisters every event. */
void session_drop_events(struct session *session);

/* session_streams.c */
void session_open_stream(struct session *session, struct wire_message *message, struct conn_packet *packet);
void session_close_stream(struct session *session, struct wire_message *message, struct conn_packet *packet);
/* NULL: no open stream has that name. */
struct stream *session_find_stream(struct session *session, struct wire_ref ref, struct error *err);
/* The same for packets that are about its calls: NULL for a stream with a ring too. */
struct stream *session_find_packet_stream(struct session *session, struct wire_ref ref, struct error *err);
/* Withdraws every call and closes every stream. */
void session_close_streams(struct session *session);

/* session_rings.c */
void session_open_rings(struct session *session, struct wire_message *message, struct conn_packet *packet);
/* Lets them go; a session without rings has none. */
void session_drop_rings(struct session *session);
/* A ring for a new stream. FAILED_PRECONDITION: no OpenRings yet. RESOURCE_EXHAUSTED. */
enum mlacat_status session_new_ring(struct session *session, struct engine *engine, struct ring_stream **ring,
                                    struct error *err);
/* The stream's on_broken. */
void session_ring_broken(struct stream *stream, const struct error *why);
/* Calls that came through rings; they are in neither calls_total nor calls_nr. */
void session_count_ring_calls(const struct session *session, uint64_t *total, uint32_t *in_flight);

/* session_calls.c */
void session_submit(struct session *session, struct wire_message *message, struct conn_packet *packet);
void session_cancel(struct session *session, struct wire_message *message, struct conn_packet *packet);
/* The stream's on_call_done. */
void session_call_done(struct stream *stream, struct call *call);
/* An import that the call waited for has ended. */
void session_call_imported(struct call *call);
/* Withdraws the calls whose deadline has passed and arms the timer for the next one. */
void session_check_deadlines(struct session *session);

#endif
