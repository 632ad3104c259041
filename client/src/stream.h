/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     a stream's handle and its call slots.
 * Thread:   with the client's lock held.
 * Lifetime: mlacat_stream_open -> mlacat_stream_close or mlacat_disconnect.
 * Errors:   none.
 */
#ifndef MLACAT_CLIENT_STREAM_H
#define MLACAT_CLIENT_STREAM_H

#include "client.h"

/* A call id is generation, stream index and slot index, from the top: STREAM_INDEX_BITS and STREAM_SLOT_BITS wide. */
#define STREAM_SLOT_BITS 20
#define STREAM_INDEX_BITS 12

/* Takes the stream out of its client's table and frees it. Says nothing to the daemon. */
void stream_free(struct mlacat_stream *stream);

#endif
