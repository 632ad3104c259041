/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a connection and the making of the next one.
 *
 * Owns:     client->fd, `epoch`, `connecting`, and what the daemon calls our buffers and streams.
 * Thread:   every function with the lock held; reconnect_ready and reconnect_settle may let go of it meanwhile.
 * Lifetime: -
 * Errors:   reconnect_ready: UNAVAILABLE, or why the daemon refuses us for good; in `err`.
 */
#ifndef MLACAT_CLIENT_RECONNECT_H
#define MLACAT_CLIENT_RECONNECT_H

#include "client.h"

/* Returns with a connection, or tells why there is none within reconnect_timeout_ms. `new_work`: also waits for a
 * draining daemon to go. */
enum mlacat_status reconnect_ready(struct mlacat_client *client, bool new_work, struct error *err);
/* Ends the connection and all that is in flight. Only the reader may, or anybody while nobody reads. */
void reconnect_end(struct mlacat_client *client, const char *reason);
/* Waits until nobody connects, so that the lists of buffers and streams may change. */
void reconnect_settle(struct mlacat_client *client);

#endif
