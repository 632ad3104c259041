/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How GPU memory of this process, known by a pointer only, is described so that the daemon can open it.
 *
 * Owns:     nothing; the descriptors are the caller's.
 * Thread:   any, also while one of its streams is being captured. Creates no CUDA context.
 * Lifetime: a value.
 * Errors:   raised by cuda_export: as mlacat_buffer_register_ptr says.
 */
#ifndef MLACAT_CLIENT_CUDA_EXPORT_H
#define MLACAT_CLIENT_CUDA_EXPORT_H

#include "client.h"

/* Without descriptors: an IPC handle. With: chunks, one descriptor each. */
struct cuda_export {
    uint64_t address; /* of the first byte that is registered */
    uint8_t handle[64];
    uint64_t allocation_bytes; /* handle */
    uint64_t offset_bytes;     /* in the allocation, or from the start of the first chunk */
    uint64_t buffer_id;        /* the driver's name of the memory at `address` at that time: it never gives one again */
    uint64_t chunk_bytes[WIRE_PACKET_FDS];
};

/* Also after an error the caller closes the descriptors in `fds`. */
enum mlacat_status cuda_export(const void *pointer, size_t bytes, struct cuda_export *memory, struct wire_fds *fds,
                               char uuid[CLIENT_UUID_BYTES]);

/* False: what was exported has been freed since; other memory may be at its address now. */
bool cuda_export_is_current(const struct cuda_export *memory);

#endif
