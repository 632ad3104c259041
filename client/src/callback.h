/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Callbacks of ended calls. Whoever reads puts ended calls that have one on client->due; they run on the library's
 * thread, or inside the functions that enum mlacat_dispatch names.
 *
 * Owns:     the thread, event_fd's state, and `due` from where its calls are taken.
 * Thread:   every function with the lock held; callback_run_due lets go of it around each callback.
 * Lifetime: the thread lives from the first call with a callback until callback_stop.
 * Errors:   callback_prepare: RESOURCE_EXHAUSTED, in `err`.
 */
#ifndef MLACAT_CLIENT_CALLBACK_H
#define MLACAT_CLIENT_CALLBACK_H

#include "client.h"

/* Starts the thread, if callbacks run on one and it does not run yet. */
enum mlacat_status callback_prepare(struct mlacat_client *client, struct error *err);
/* Tells those who run callbacks that some are due, or wakes the thread to look for itself. */
void callback_announce(struct mlacat_client *client);
void callback_run_due(struct mlacat_client *client);
/* Runs one callback, never two of a client at a time. With no lock held. */
void callback_run(struct mlacat_client *client, mlacat_done_cb done, void *user, uint64_t call_id,
                  const struct mlacat_result *result);
/* Ends the thread (after it ran what is due), or runs what is due here. After the connection has ended for good. */
void callback_stop(struct mlacat_client *client);

#endif
