/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GPU memory and events of a test (share.h), registered over the bare protocol.
 *
 * Owns:     nothing.
 * Thread:   that of the client.
 * Lifetime: -
 * Errors:   what the daemon says comes back; the others require success (require.h).
 */
#ifndef MLACAT_TESTS_SHARE_REGISTER_H
#define MLACAT_TESTS_SHARE_REGISTER_H

#include "raw.h"
#include "share.h"

/* The part [offset, offset + size) as a buffer of device `uuid`; `claimed` is what the allocation is said to have. */
struct outcome share_register(struct raw *raw, const char *uuid, const struct share *share, size_t offset, size_t size,
                              size_t claimed, struct ref *buffer);
struct ref share_must_register(struct raw *raw, const char *uuid, const struct share *share, size_t offset,
                               size_t size);
struct outcome share_register_event(struct raw *raw, const char *uuid, const unsigned char handle[SHARE_HANDLE_BYTES],
                                    struct ref *event);
struct ref share_must_open_stream(struct raw *raw, const char *uuid);

#endif
