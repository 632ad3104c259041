/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registered memory of a client by address: an argument's bytes -> the buffer that they are in. Segments of GPU
 * memory are registered when an argument first lies in them, and given back when they have not been used for long, or
 * when the library says that their memory is gone. Memory of the package itself stays until its arrays are gone.
 *
 * Owns:     the segments and, but for pinned ones, their buffers.
 * Thread:   with the GIL, which is let go of while the library registers and releases; a segment in use is pinned then.
 * Lifetime: zeroed -> segments_drop or segments_abandon.
 * Errors:   as each function says.
 */
#ifndef MLACAT_PYTHON_SEGMENTS_H
#define MLACAT_PYTHON_SEGMENTS_H

#include "shape.h"

#define SEGMENTS_MOST 256

struct segment {
    uintptr_t begin;
    uintptr_t end;
    struct mlacat_buffer *buffer;
    uint64_t used; /* when it was last found */
    unsigned pins;
    bool kept; /* memory of the package: never dropped by itself */
    bool gone; /* not in the table; freed with the last pin */
};

struct segments {
    struct segment **at; /* by `begin`; they may overlap */
    unsigned nr;
    unsigned room;
    uintptr_t longest; /* bytes of the longest one there ever was */
    uint64_t clock;
    uintptr_t refused; /* bytes of the shortest memory that had too many chunks for one registration; 0: none yet */
};

/* The segment that has all of it, or NULL. */
struct segment *segments_find(struct segments *segments, const struct extent *extent);

static inline void segment_pin(struct segment *segment)
{
    segment->pins++;
}
/* May release the buffer, without the GIL. */
void segment_unpin(struct segment *segment);

/* Takes the buffer. NULL with a Python exception: no memory; the buffer is released then. */
struct segment *segments_add(struct segments *segments, struct extent extent, struct mlacat_buffer *buffer, bool kept);
void segments_remove(struct segments *segments, struct segment *segment);

/*
 * The segment of GPU memory around it: registers what is not yet, and tells it with one pin. NULL: exception, or, where
 * the caller can do with less memory at a time and therefore gives `too_large`, *too_large: it has too many chunks.
 */
struct segment *segments_register(struct segments *segments, struct mlacat_client *client, const struct extent *extent,
                                  bool *too_large);
/* Drops the segments that share bytes with it. */
void segments_forget(struct segments *segments, const struct extent *extent);

/* Drops all that are not kept; returns how many are left. */
unsigned segments_drop(struct segments *segments);
/* After a fork: takes all off the table; buffers of another process are not released. */
void segments_abandon(struct segments *segments);

#endif
