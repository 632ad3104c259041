/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Public structs begin with their size, so that program and library may be of different age. What the older side does
 * not know counts as zero.
 *
 * Owns:     nothing.
 * Thread:   any.
 * Lifetime: -
 * Errors:   INVALID_ARGUMENT, in `err` or raised: NULL, a size that no version ever had, or members set that this
 *           library does not know.
 */
#ifndef MLACAT_CLIENT_SIZED_H
#define MLACAT_CLIENT_SIZED_H

#include <stddef.h>

#include "error.h"

/* The size of each struct in the first version, which had members up to `last`. A later member does not change it. */
#define SIZED_FIRST(type, last) (offsetof(struct type, last) + sizeof(((struct type *)0)->last))
#define SIZED_CONNECT_OPTIONS SIZED_FIRST(mlacat_connect_options, dispatch)
#define SIZED_STREAM_OPTIONS SIZED_FIRST(mlacat_stream_options, transport)
#define SIZED_SERVER_INFO SIZED_FIRST(mlacat_server_info, reconnects)
#define SIZED_DEVICE_INFO SIZED_FIRST(mlacat_device_info, workers)
#define SIZED_RESULT SIZED_FIRST(mlacat_result, device_ns)
#define SIZED_CALL SIZED_FIRST(mlacat_call, user)
#define SIZED_HEALTH SIZED_FIRST(mlacat_health, reason)

/* Copies the caller's struct `from` into `to` of `size` bytes. `name` is for the message, in `err`. */
enum mlacat_status sized_read(void *to, size_t size, const void *from, size_t first_size, const char *name,
                              struct error *err);
/* Checks the caller's struct before it is filled; raises. */
enum mlacat_status sized_check(const void *to, size_t first_size, const char *name);
/* Copies as much of `from` as the caller's struct has room for; its `size` stays. */
void sized_write(void *to, const void *from, size_t size);

#endif
