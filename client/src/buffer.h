/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     a buffer's handle, its descriptor and its mapping.
 * Thread:   any; nobody else uses the buffer any more.
 * Lifetime: mlacat_buffer_alloc or mlacat_buffer_register_fd -> mlacat_buffer_release or mlacat_disconnect.
 * Errors:   none.
 */
#ifndef MLACAT_CLIENT_BUFFER_H
#define MLACAT_CLIENT_BUFFER_H

#include "client.h"

/*
 * Lets the daemon forget the buffer, if it knows it. With the lock and no connection in the making; it lets go of the
 * lock, but does not look at the buffer after that.
 */
void buffer_unregister(struct mlacat_buffer *buffer);
/* Unmaps the buffer, which is on no list, and frees the handle. Says nothing to the daemon. */
void buffer_discard(struct mlacat_buffer *buffer);

#endif
