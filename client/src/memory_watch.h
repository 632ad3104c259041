/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The watch over GPU memory that is registered. Its allocator may free it while it is: the daemon would then keep it
 * occupied, and a call would use other memory than the one that is at the address by then. So each submit asks the
 * driver whether the memory of its operands is the registered one, and a thread asks it for all buffers twenty times a
 * second, and when mlacat_reclaim wants to know. A buffer whose memory was freed is refused for good, and the thread
 * unregisters it at once.
 *
 *     registered --freed, seen by a submit, the thread or a reconnect--> freed --thread--> unregistered
 *
 * Owns:     the thread, and a buffer's `freed`.
 * Thread:   as each function says. The driver, which may take its time, is never asked with the lock held.
 * Lifetime: the thread lives from the first buffer of GPU memory until memory_watch_stop. While no buffer has any it
 *           sleeps.
 * Errors:   memory_watch_start: RESOURCE_EXHAUSTED, in `err`.
 */
#ifndef MLACAT_CLIENT_MEMORY_WATCH_H
#define MLACAT_CLIENT_MEMORY_WATCH_H

#include "client.h"
#include "cuda_export.h"

/* Starts the thread if it does not run yet. With the lock. */
enum mlacat_status memory_watch_start(struct mlacat_client *client, struct error *err);
/* After a buffer was put on the list. With the lock. */
void memory_watch_added(struct mlacat_client *client);
/* Ends the thread, after the connection has ended for good. With the lock, which it lets go of. */
void memory_watch_stop(struct mlacat_client *client);

/* What has become of the buffer's memory; SAME if it is no GPU memory. *result (may be NULL): the driver's. `asking` is
 * zeroed before the first of some questions, and the caller ends it. Without the lock. */
enum cuda_memory_state memory_watch_ask(struct cuda_asking *asking, const struct mlacat_buffer *buffer, int *result);
/* The buffer's memory was freed: breaks it, and lets the thread unregister it. With the lock, or while `connecting`. */
void memory_watch_break(struct mlacat_buffer *buffer);
/* FAILED_PRECONDITION, scope BUFFER: its memory was freed. Any lock, or none. */
enum mlacat_status memory_watch_refuse(const struct mlacat_buffer *buffer, int operand, const char *name,
                                       struct error *err);

#endif
