/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where workers find the registered buffers of a session by name, while the loop adds and takes away: without a lock on
 * either side, and never a buffer that goes away under a call.
 *
 *   worker  counts its pin in the slot, then looks whether the slot still has that name;
 *   loop    takes the name away, then looks whether anybody has a pin.
 * All four are sequentially consistent, so at least one of the two sees the other: either the worker finds no such
 * name, or the loop waits until the pin is gone.
 *
 * Owns:     the slots; not the buffers.
 * Thread:   with each function.
 * Lifetime: init -> fini, with no stream left that takes calls from a ring. A zeroed one is none.
 * Errors:   buffer_table_init: RESOURCE_EXHAUSTED.
 */
#ifndef MLACAT_ENGINE_BUFFER_TABLE_H
#define MLACAT_ENGINE_BUFFER_TABLE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "status.h"
#include "wire.h"

/* As many as a client may have at most; pages without a buffer are never touched. */
#define BUFFER_TABLE_SLOTS 65536

struct buffer;

/* On a line of its own: workers of several streams count pins in neighbours. */
struct buffer_slot {
    _Alignas(64) _Atomic uint32_t generation; /* of the name; 0: none */
    _Atomic uint32_t pins;                    /* calls of workers */
    struct buffer *buffer;                    /* constant while there is a name or a pin */
};

struct buffer_table {
    struct buffer_slot *slots; /* by id */
};

enum mlacat_status buffer_table_init(struct buffer_table *table, struct error *err);
void buffer_table_fini(struct buffer_table *table);

/* Loop: the free place for a buffer of that id; NULL: the table has none. */
struct buffer_slot *buffer_table_slot(struct buffer_table *table, uint32_t id);
/* Loop: gives the buffer its name. From here on workers may have it. */
void buffer_slot_publish(struct buffer_slot *slot, uint32_t generation, struct buffer *buffer);
/* Loop: takes the name away: no new pin. The slot is free when buffer_slot_unused. Once. */
void buffer_slot_withdraw(struct buffer_slot *slot);
/* Loop, after buffer_slot_withdraw: no call has the buffer. Else a worker rings when the last one lets go. */
bool buffer_slot_unused(struct buffer_slot *slot);

/* Worker: pins the buffer of that name; NULL: there is none (any more). *rings: the loop waits for this look's pin. */
struct buffer_slot *buffer_table_pin(const struct buffer_table *table, struct wire_ref ref, bool *rings);
/* Worker: true: it was the last pin of a name that is gone, the loop waits to be rung. */
bool buffer_slot_unpin(struct buffer_slot *slot);

#endif
