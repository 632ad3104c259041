/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     the description of memory that a client shares, as it goes from the wire to a device's import.
 * Thread:   any; plain values.
 * Lifetime: fds are owned by whoever holds the request; a device's mem_import takes them in every outcome.
 * Errors:   -
 */
#ifndef MLACAT_MODEL_MEMORY_H
#define MLACAT_MODEL_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#include "op.h"

enum memory_kind { MEMORY_HOST, MEMORY_CUDA_IPC, MEMORY_CUDA_VMM };

#define MEMORY_CHUNKS_MAX 64
#define MEMORY_HANDLE_BYTES 64

/*
 * Sizes, offsets and handles are the client's: untrusted. The request is about 1 KB because of its arrays, so only what
 * its kind uses is filled: of `handle` all or nothing, of `fds` and `chunk_bytes` the first chunks_nr entries.
 */
struct memory_request {
    enum memory_kind kind;
    uint32_t chunks_nr;        /* of `fds`: host 1, CUDA VMM 1..64, CUDA IPC 0 */
    uint64_t size_bytes;       /* of the buffer */
    uint64_t offset_bytes;     /* CUDA: of the buffer in the allocation; host: 0 */
    uint64_t allocation_bytes; /* CUDA IPC, else 0 */
    uint64_t buffer_id;        /* CUDA IPC, else 0 */
    uint32_t user;             /* set by the session: who passed the descriptors */
    uint64_t limit_bytes;      /* set by the session: what the client may still map; a larger import is refused */
    uint8_t handle[MEMORY_HANDLE_BYTES]; /* CUDA IPC */
    /* From wire.h: indices into the packet's descriptors; the session puts the descriptors in their place. */
    int fds[MEMORY_CHUNKS_MAX];
    uint64_t chunk_bytes[MEMORY_CHUNKS_MAX]; /* CUDA VMM */
};

/* What a device says of imported memory: trusted. */
struct memory_info {
    struct op_memory memory;
    uint64_t charged_bytes; /* counts against the client's limit: the whole file of a memfd */
    bool known;             /* the device had the allocation open already: the import cost next to nothing */
};

#endif
