/* SPDX-License-Identifier: Apache-2.0 */
#include "buffer_table.h"

#include <assert.h>
#include <stddef.h>
#include <sys/mman.h>

#define TABLE_BYTES (BUFFER_TABLE_SLOTS * sizeof(struct buffer_slot))

enum mlacat_status buffer_table_init(struct buffer_table *table, struct error *err)
{
    /* Not malloc, which may clear what it has used before: all of it would then be in memory. */
    void *slots = mmap(NULL, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slots == MAP_FAILED) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for rings: go on without a ring");
    }
    table->slots = slots;
    return MLACAT_OK;
}

void buffer_table_fini(struct buffer_table *table)
{
    if (table->slots) {
        munmap(table->slots, TABLE_BYTES);
        table->slots = NULL;
    }
}

struct buffer_slot *buffer_table_slot(struct buffer_table *table, uint32_t id)
{
    return id < BUFFER_TABLE_SLOTS ? &table->slots[id] : NULL;
}

void buffer_slot_publish(struct buffer_slot *slot, uint32_t generation, struct buffer *buffer)
{
    assert(atomic_load_explicit(&slot->generation, memory_order_relaxed) == 0);
    slot->buffer = buffer;
    atomic_store(&slot->generation, generation);
}

void buffer_slot_withdraw(struct buffer_slot *slot)
{
    atomic_store(&slot->generation, 0);
}

bool buffer_slot_unused(struct buffer_slot *slot)
{
    return atomic_load(&slot->pins) == 0;
}

struct buffer_slot *buffer_table_pin(const struct buffer_table *table, struct wire_ref ref, bool *rings)
{
    if (ref.id >= BUFFER_TABLE_SLOTS || ref.generation == 0) {
        return NULL;
    }
    struct buffer_slot *slot = &table->slots[ref.id];
    /* A name that is not there costs no memory, and no pin that the loop would have to wait for. */
    if (atomic_load_explicit(&slot->generation, memory_order_relaxed) != ref.generation) {
        return NULL;
    }
    atomic_fetch_add(&slot->pins, 1);
    if (atomic_load(&slot->generation) == ref.generation) {
        return slot;
    }
    *rings |= buffer_slot_unpin(slot);
    return NULL;
}

bool buffer_slot_unpin(struct buffer_slot *slot)
{
    return atomic_fetch_sub(&slot->pins, 1) == 1 && atomic_load(&slot->generation) == 0;
}
