/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names for a client's objects: an id that is used again and a generation that makes each name unique.
 *
 * Owns:     the table; not the objects.
 * Thread:   one thread for a table.
 * Lifetime: init -> fini; a zeroed table is an empty one with room for nothing.
 * Errors:   RESOURCE_EXHAUSTED at the limit or without memory.
 */
#ifndef MLACAT_ENGINE_HANDLES_H
#define MLACAT_ENGINE_HANDLES_H

#include <stdint.h>

#include "status.h"
#include "wire.h"

struct handle_slot {
    void *object;        /* NULL: free */
    uint32_t generation; /* of the object, or of the next one */
    uint32_t next_free;
};

struct handles {
    struct handle_slot *slots;
    uint32_t slots_nr;
    uint32_t used_nr;
    uint32_t first_free;
};

void handles_init(struct handles *handles);
void handles_fini(struct handles *handles);

/* RESOURCE_EXHAUSTED: `limit` objects are there; `what` names them ("buffers"). */
enum mlacat_status handles_check(const struct handles *handles, uint32_t limit, const char *what, struct error *err);
/* `what` names the objects in the error ("buffers"), `limit` is how many there may be. */
enum mlacat_status handles_add(struct handles *handles, void *object, uint32_t limit, const char *what,
                               struct wire_ref *ref, struct error *err);
/* NULL: no object has that name (any more). */
void *handles_find(const struct handles *handles, struct wire_ref ref);
void handles_remove(struct handles *handles, struct wire_ref ref);

#endif
