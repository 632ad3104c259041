/* SPDX-License-Identifier: Apache-2.0 */
#include "handles.h"

#include <assert.h>
#include <stdlib.h>

#define HANDLES_NONE UINT32_MAX
#define HANDLES_FIRST 16

void handles_init(struct handles *handles)
{
    *handles = (struct handles){.first_free = HANDLES_NONE};
}

void handles_fini(struct handles *handles)
{
    assert(handles->used_nr == 0);
    free(handles->slots);
    *handles = (struct handles){.first_free = HANDLES_NONE};
}

static enum mlacat_status handles_grow(struct handles *handles, struct error *err)
{
    uint32_t slots_nr = handles->slots_nr ? handles->slots_nr * 2 : HANDLES_FIRST;
    struct handle_slot *slots = realloc(handles->slots, slots_nr * sizeof(*slots));
    if (!slots) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for a table of %u entries",
                         slots_nr);
    }
    for (uint32_t i = handles->slots_nr; i < slots_nr; i++) {
        slots[i] = (struct handle_slot){.generation = 1, .next_free = i + 1 < slots_nr ? i + 1 : HANDLES_NONE};
    }
    handles->slots = slots;
    handles->first_free = handles->slots_nr;
    handles->slots_nr = slots_nr;
    return MLACAT_OK;
}

enum mlacat_status handles_check(const struct handles *handles, uint32_t limit, const char *what, struct error *err)
{
    if (handles->used_nr >= limit) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                         "this client has %u %s, the limit is %u: release some, or raise max_%s", handles->used_nr,
                         what, limit, what);
    }
    return MLACAT_OK;
}

enum mlacat_status handles_add(struct handles *handles, void *object, uint32_t limit, const char *what,
                               struct wire_ref *ref, struct error *err)
{
    if (handles_check(handles, limit, what, err) != MLACAT_OK) {
        return err->code;
    }
    if (handles->first_free == HANDLES_NONE && handles_grow(handles, err) != MLACAT_OK) {
        return err->code;
    }
    uint32_t id = handles->first_free;
    struct handle_slot *slot = &handles->slots[id];
    handles->first_free = slot->next_free;
    handles->used_nr++;
    slot->object = object;
    *ref = (struct wire_ref){.id = id, .generation = slot->generation};
    return MLACAT_OK;
}

void *handles_find(const struct handles *handles, struct wire_ref ref)
{
    if (ref.id >= handles->slots_nr || handles->slots[ref.id].generation != ref.generation) {
        return NULL;
    }
    return handles->slots[ref.id].object;
}

void handles_remove(struct handles *handles, struct wire_ref ref)
{
    struct handle_slot *slot = &handles->slots[ref.id];
    assert(ref.id < handles->slots_nr && slot->generation == ref.generation && slot->object);
    slot->object = NULL;
    handles->used_nr--;
    /* A slot whose generations are used up is not used again: a name never comes twice. */
    if (slot->generation != UINT32_MAX) {
        slot->generation++;
        slot->next_free = handles->first_free;
        handles->first_free = ref.id;
    }
}
