/* SPDX-License-Identifier: Apache-2.0 */
#include "reference.h"

#include <stdio.h>
#include <string.h>

#include "names.h"

/* Where element [i, j, 0] of an operand is. */
static uint8_t *row_at(const struct shape_layout *layout, uint8_t *const data[3], int which, uint64_t i, uint64_t j)
{
    const struct shape_operand *operand = &layout->operand[which];
    int64_t elements = (int64_t)i * operand->strides[0] + (int64_t)j * operand->strides[1];

    return data[which] + operand->offset_bytes + elements * (int64_t)layout->element_bytes;
}

/* The row of the second input that goes into output row [i, j]. */
static uint64_t second_row(const struct shape *shape, uint64_t j)
{
    return names_op(shape->op)->broadcast ? 0 : j;
}

/* By words where there are whole ones: this runs over gigabytes. */
static void complement(uint8_t *to, const uint8_t *from, size_t bytes)
{
    size_t at = 0;

    for (; at + 8 <= bytes; at += 8) {
        uint64_t word;

        memcpy(&word, from + at, 8);
        word = ~word;
        memcpy(to + at, &word, 8);
    }
    for (; at < bytes; at++)
        to[at] = (uint8_t)~from[at];
}

void reference_poison(const struct shape *shape, const struct shape_layout *layout, uint8_t *const data[3])
{
    size_t first = shape->first * layout->element_bytes;
    size_t second = shape->second * layout->element_bytes;
    size_t gap = shape->gap * layout->element_bytes;
    uint64_t bytes = layout->operand[SHAPE_OUT].buffer_bytes;

    memset(data[SHAPE_OUT], REFERENCE_POISON, SHAPE_GUARD_BYTES);
    memset(data[SHAPE_OUT] + bytes - SHAPE_GUARD_BYTES, REFERENCE_POISON, SHAPE_GUARD_BYTES);
    for (uint64_t i = 0; i < shape->dim0; i++) {
        for (uint64_t j = 0; j < shape->dim1; j++) {
            uint8_t *out = row_at(layout, data, SHAPE_OUT, i, j);

            complement(out, row_at(layout, data, SHAPE_FIRST, i, j), first);
            complement(out + first, row_at(layout, data, SHAPE_SECOND, i, second_row(shape, j)), second);
            memset(out + first + second, REFERENCE_POISON, gap);
        }
    }
}

/* Whether the bytes [offset, offset + bytes) of the output's buffer were left alone. */
static bool poisoned(const uint8_t *out, uint64_t offset, uint64_t bytes, struct difference *difference)
{
    const uint8_t *at = out + offset;

    for (uint64_t i = 0; i < bytes; i++) {
        if (at[i] == REFERENCE_POISON)
            continue;
        *difference = (struct difference){.kind = DIFFERENCE_OUTSIDE,
                                          .offset = offset + i,
                                          .bytes = 1,
                                          .expected = {REFERENCE_POISON},
                                          .found = {at[i]}};
        return false;
    }
    return true;
}

/* One part of output row [i, j]: elements [begin, begin + width) must be those of `from`. */
static bool part_equal(const struct shape_layout *layout, uint8_t *const data[3], uint64_t i, uint64_t j,
                       uint64_t begin, const uint8_t *from, uint64_t width, struct difference *difference)
{
    uint64_t element = layout->element_bytes;
    const uint8_t *out = row_at(layout, data, SHAPE_OUT, i, j) + begin * element;

    if (memcmp(out, from, width * element) == 0)
        return true;
    for (uint64_t t = 0; t < width; t++) {
        if (memcmp(out + t * element, from + t * element, element) == 0)
            continue;
        *difference = (struct difference){.kind = DIFFERENCE_ELEMENT,
                                          .index = {i, j, begin + t},
                                          .offset = (uint64_t)(out + t * element - data[SHAPE_OUT]),
                                          .bytes = element};
        memcpy(difference->expected, from + t * element, element);
        memcpy(difference->found, out + t * element, element);
        return false;
    }
    return true;
}

/* out[i, j, :] = first[i, j, :] then second[i, J, :], and nothing else was written. */
static bool row_right(const struct shape *shape, const struct shape_layout *layout, uint8_t *const data[3], uint64_t i,
                      uint64_t j, struct difference *difference)
{
    const uint8_t *first = row_at(layout, data, SHAPE_FIRST, i, j);
    const uint8_t *second = row_at(layout, data, SHAPE_SECOND, i, second_row(shape, j));
    uint64_t width = shape->first + shape->second;
    uint64_t end = (uint64_t)(row_at(layout, data, SHAPE_OUT, i, j) - data[SHAPE_OUT]) + width * layout->element_bytes;

    return part_equal(layout, data, i, j, 0, first, shape->first, difference) &&
           part_equal(layout, data, i, j, shape->first, second, shape->second, difference) &&
           poisoned(data[SHAPE_OUT], end, shape->gap * layout->element_bytes, difference);
}

bool reference_check(const struct shape *shape, const struct shape_layout *layout, uint8_t *const data[3],
                     struct difference *difference)
{
    const char *name = names_op(shape->op)->operand[SHAPE_OUT];
    uint64_t bytes = layout->operand[SHAPE_OUT].buffer_bytes;
    bool right = poisoned(data[SHAPE_OUT], 0, SHAPE_GUARD_BYTES, difference);

    for (uint64_t i = 0; right && i < shape->dim0; i++)
        for (uint64_t j = 0; right && j < shape->dim1; j++)
            right = row_right(shape, layout, data, i, j, difference);
    right = right && poisoned(data[SHAPE_OUT], bytes - SHAPE_GUARD_BYTES, SHAPE_GUARD_BYTES, difference);
    if (!right)
        difference->where = name;
    return right;
}

void reference_text(const struct difference *difference, char *text, size_t bytes)
{
    char expected[9] = "";
    char found[9] = "";
    char place[96] = "";

    for (uint64_t i = 0; i < difference->bytes && i < 4; i++) {
        snprintf(expected + 2 * i, 3, "%02x", difference->expected[i]);
        snprintf(found + 2 * i, 3, "%02x", difference->found[i]);
    }
    if (difference->kind == DIFFERENCE_OUTSIDE)
        snprintf(place, sizeof(place), " was written outside of its elements");
    else if (difference->kind == DIFFERENCE_INPUT)
        snprintf(place, sizeof(place), ", an input, was changed");
    else
        snprintf(place, sizeof(place), "[%llu,%llu,%llu]", (unsigned long long)difference->index[0],
                 (unsigned long long)difference->index[1], (unsigned long long)difference->index[2]);
    snprintf(text, bytes, "%s%s: expected %s, found %s (byte %llu)", difference->where, place, expected, found,
             (unsigned long long)difference->offset);
}
