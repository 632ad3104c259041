/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events that calls may wait for.
 *
 * Owns:     an event's handle, not the CUDA event behind it.
 * Thread:   event_discard: nobody else uses the event any more.
 * Lifetime: mlacat_event_register -> mlacat_event_release or mlacat_disconnect.
 * Errors:   in `err`.
 */
#ifndef MLACAT_CLIENT_EVENT_H
#define MLACAT_CLIENT_EVENT_H

#include "client.h"

/* RegisterEvent needs a daemon that knows it (client.h: features of the server). */
enum mlacat_status event_check_server(const struct server *server, struct error *err);
/* Frees the handle of an event that is on no list. Says nothing to the daemon. */
void event_discard(struct mlacat_event *event);

#endif
