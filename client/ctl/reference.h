/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     what a call must have done, from the definition of the op alone; shares no code with the kernels.
 * Thread:   any; works on the caller's memory.
 * Lifetime: -
 * Errors:   a difference is described, not judged.
 */
#ifndef MLACAT_CTL_REFERENCE_H
#define MLACAT_CTL_REFERENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shape.h"

/* What guards and gaps of the output hold. */
#define REFERENCE_POISON 0xa5u

enum difference_kind {
    DIFFERENCE_ELEMENT, /* of the output */
    DIFFERENCE_OUTSIDE, /* a guard or gap of the output was written */
    DIFFERENCE_INPUT,   /* an input is not what it was */
};

struct difference {
    enum difference_kind kind;
    const char *where; /* name of the operand */
    uint64_t index[3]; /* DIFFERENCE_ELEMENT: of the element */
    uint64_t offset;   /* of the first byte, from the start of the buffer */
    uint64_t bytes;    /* of `expected` and `found` */
    uint8_t expected[4];
    uint8_t found[4];
};

/*
 * Fills the output's buffer so that nothing left unwritten can pass: each element is the complement of what the call
 * must write there, guards and gaps are REFERENCE_POISON. data[] are the starts of the three buffers.
 */
void reference_poison(const struct shape *shape, const struct shape_layout *layout, uint8_t *const data[3]);

/* Whether the output's buffer holds what it must: elements, gaps and guards, every byte. */
bool reference_check(const struct shape *shape, const struct shape_layout *layout, uint8_t *const data[3],
                     struct difference *difference);

/* "k[3,0,191]: expected 7fc1, found a5a5 (byte 4711)", in the order of the bytes in memory. */
void reference_text(const struct difference *difference, char *text, size_t bytes);

#endif
