/* SPDX-License-Identifier: Apache-2.0 */
/* Makes the daemon one whose rings have had nearly 2^32 entries, so that all their numbers soon pass 32 bits. */
#include "rings.h"

enum mlacat_status __real_rings_new(uint32_t rings_nr, uint32_t calls, struct rings **rings, struct error *err);
enum mlacat_status __wrap_rings_new(uint32_t rings_nr, uint32_t calls, struct rings **rings, struct error *err);

enum mlacat_status __wrap_rings_new(uint32_t rings_nr, uint32_t calls, struct rings **rings, struct error *err)
{
    enum mlacat_status status = __real_rings_new(rings_nr, calls, rings, err);
    for (uint32_t i = 0; status == MLACAT_OK && i < rings_nr; i++) {
        (*rings)->sequence[i] = UINT32_MAX - 20;
    }
    return status;
}
