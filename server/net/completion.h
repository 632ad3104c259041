/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completions to clients: many in one packet, and none lost to a slow reader: a call that has ended stays in its
 * stream's pool until the socket takes its completion, so a client that does not read runs out of calls, not the
 * service out of memory.
 *
 * Owns:     nothing.
 * Thread:   the loop thread.
 * Lifetime: -
 * Errors:   none.
 */
#ifndef MLACAT_NET_COMPLETION_H
#define MLACAT_NET_COMPLETION_H

#include "wire.h"

struct call;
struct service;
struct session;

/* The call is DONE and unpinned: it will be answered at the next completion_flush. */
void completion_add(struct session *session, struct call *call);

/* Answers a call that was refused at once and is in no pool, with the others of its packet: completion_send_refused
 * follows in the same turn. Such completions wait in the connection's queue, so they take as few packets as they can.
 */
void completion_refuse(struct session *session, struct wire_ref stream, uint64_t call_id, const struct error *err);
void completion_send_refused(struct session *session);

/* Sends what the sessions' sockets take. */
void completion_flush(struct service *service);

/* The session's socket takes packets again. */
void completion_resume(struct session *session);

/* Gives back every unanswered call: nobody is left to read them. */
void completion_discard(struct session *session);

#endif
