/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words in GPU memory that a CUDA stream of the caller writes and a kernel of the daemon looks at (mlacat_abi.h,
 * MLACAT_RING_SUBMIT_READY_BUFFER). A GPU sees a word in its own memory 2 us sooner than one in host memory
 * (docs/performance.md).
 *
 * They stand in blocks of 2 MiB, one for each CUDA context, which every client registers as a buffer when it needs one
 * of them. A word is used by one ring on one connection and never again: a CUDA stream may write it long after those
 * have ended. 16384 uses make a block full.
 *
 * Owns:     the blocks; the buffers are their clients'.
 * Thread:   any, without locks.
 * Lifetime: blocks live as long as the process, or their CUDA context.
 * Errors:   none: without a word calls are as right, and a little later.
 */
#ifndef MLACAT_CLIENT_READY_WORD_H
#define MLACAT_CLIENT_READY_WORD_H

#include "client.h"
#include "cuda_driver.h"

struct ready_word {
    struct mlacat_buffer *buffer; /* NULL: there is no word */
    uint64_t offset_bytes;
    unsigned long long address; /* for the CUDA stream */
};

/* A word in the context of `cu_stream`, which holds anything until that has written it. None: the memory is used up,
 * the daemon takes no buffer more, or the CUDA stream is on another device than the stream. It may wait for the daemon,
 * and never for the GPU: the CUDA stream may wait for what its program does next. */
struct ready_word ready_word_take(struct mlacat_stream *stream, const struct cuda_driver *cuda, void *cu_stream);
/* Whether the daemon knows the word still. With the lock of a ring that is up. */
bool ready_word_usable(const struct ready_word *word);

#endif
