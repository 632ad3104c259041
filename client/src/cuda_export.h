/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How GPU memory of this process, known by a pointer only, is described so that the daemon can open it, and whether it
 * still is the memory that was described.
 *
 * Owns:     nothing; the descriptors are the caller's.
 * Thread:   any, also while one of its streams is being captured. Creates no CUDA context.
 * Lifetime: a value.
 * Errors:   raised by cuda_export: as mlacat_buffer_register_ptr says.
 */
#ifndef MLACAT_CLIENT_CUDA_EXPORT_H
#define MLACAT_CLIENT_CUDA_EXPORT_H

#include "client.h"

/* Memory of one allocation, by the driver's name of it at the time of the export: it never gives one again. */
struct cuda_piece {
    uint64_t address; /* of the first byte that is registered */
    uint64_t buffer_id;
};

/* Without descriptors: an IPC handle. With: chunks, one descriptor each. */
struct cuda_export {
    uint8_t handle[64];
    uint64_t allocation_bytes; /* handle */
    uint64_t offset_bytes;     /* in the allocation, or from the start of the first chunk */
    uint64_t chunk_bytes[WIRE_PACKET_FDS];
    uint32_t pieces_nr; /* 1, or one of each chunk */
    struct cuda_piece pieces[WIRE_PACKET_FDS];
};

/* Also after an error the caller closes the descriptors in `fds`. */
enum mlacat_status cuda_export(const void *pointer, size_t bytes, struct cuda_export *memory, struct wire_fds *fds,
                               char uuid[CLIENT_UUID_BYTES]);

/* Questions of one thread to the driver, which must be loaded (cuda_driver); one begin is good for many. */
struct cuda_asking {
    const struct cuda_driver *cuda;
    int capture_mode;
    bool exchanged;
};
/* Until the end, what the thread asks does not disturb a capture of one of its streams. */
void cuda_asking_begin(struct cuda_asking *asking, const struct cuda_driver *cuda);
/* A zeroed one, which was not begun, is fine. */
void cuda_asking_end(struct cuda_asking *asking);

enum cuda_memory_state {
    CUDA_MEMORY_SAME,
    CUDA_MEMORY_FREED,  /* other memory may be at its address now */
    CUDA_MEMORY_UNKNOWN /* the driver cannot tell: it is shutting down, say */
};

/* What has become of the pieces: the first one that is not the same decides. *result (may be NULL): the driver's. */
enum cuda_memory_state cuda_asking_memory(const struct cuda_asking *asking, const struct cuda_piece *pieces,
                                          uint32_t pieces_nr, int *result);

#endif
