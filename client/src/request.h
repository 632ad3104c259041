/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests that get a reply: everything but calls. Any number of threads may have one under way.
 *
 * Owns:     the list of requests that wait.
 * Thread:   every function with the lock held; request_make lets go of it while it waits.
 * Lifetime: a request lives on the stack of request_make.
 * Errors:   request_make: what the daemon answered; UNAVAILABLE: no connection, or it ended before the reply. In `err`,
 *           so that functions without a status leave the thread's last error alone.
 */
#ifndef MLACAT_CLIENT_REQUEST_H
#define MLACAT_CLIENT_REQUEST_H

#include "message.h"

enum request_when {
    REQUEST_NEW_WORK,       /* connects again if need be, also when the daemon is draining */
    REQUEST_ANY,            /* connects again if need be */
    REQUEST_THIS_CONNECTION /* names something of this connection: worth nothing on the next one */
};

/*
 * Sends the message with its descriptors (NULL: none) and waits for its reply, which must have the body `body`. *reply
 * (may be NULL) is the caller's then: message_free. When it returns MLACAT_OK the connection still is the one that
 * answered.
 */
enum mlacat_status request_make(struct mlacat_client *client, message *request, const struct wire_fds *fds,
                                enum request_when when, int body, message **reply, struct error *err);

/* The same, until a time (timing.h): then DEADLINE_EXCEEDED. */
enum mlacat_status request_make_until(struct mlacat_client *client, message *request, enum request_when when, int body,
                                      int64_t until, message **reply, struct error *err);

/* The same for a request whose reply brings descriptors: also after an error *passed is the caller's. */
enum mlacat_status request_make_passing(struct mlacat_client *client, message *request, enum request_when when,
                                        int body, message **reply, struct wire_fds *passed, struct error *err);

/* Gives a reply and its descriptors to the request that waits for it, or drops it. Takes both. */
void request_deliver(struct mlacat_client *client, message *reply, struct wire_fds *passed);
/* The connection is gone: all requests end without a reply. */
void request_end_all(struct mlacat_client *client);

#endif
