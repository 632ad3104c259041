/* SPDX-License-Identifier: Apache-2.0 */
#include "segments.h"

#include <stdlib.h>
#include <string.h>

#include "raise.h"

/* ---------------------------------------------------------------------------------------------------- the table */

/* Index of the first segment that begins after `address`. */
static unsigned upper_bound(const struct segments *segments, uintptr_t address)
{
    unsigned low = 0;
    unsigned high = segments->nr;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (segments->at[middle]->begin <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

struct segment *segments_find(struct segments *segments, const struct extent *extent)
{
    for (unsigned i = upper_bound(segments, extent->begin); i-- > 0;) {
        struct segment *segment = segments->at[i];
        if (extent->end <= segment->end) {
            segment->used = ++segments->clock;
            return segment;
        }
        if (extent->begin - segment->begin >= segments->longest) {
            return NULL;
        }
    }
    return NULL;
}

/* Some segment that shares bytes with it. */
static struct segment *find_overlap(const struct segments *segments, const struct extent *extent)
{
    for (unsigned i = upper_bound(segments, extent->end - 1); i-- > 0;) {
        struct segment *segment = segments->at[i];
        if (extent->begin < segment->end) {
            return segment;
        }
        if (extent->begin - segment->begin >= segments->longest) {
            return NULL;
        }
    }
    return NULL;
}

static void release(struct segment *segment)
{
    struct mlacat_buffer *buffer = segment->buffer;
    free(segment);
    PyThreadState *thread = PyEval_SaveThread();
    mlacat_buffer_release(buffer);
    PyEval_RestoreThread(thread);
}

static void take_off(struct segments *segments, struct segment *segment)
{
    unsigned i = 0;
    while (segments->at[i] != segment) {
        i++;
    }
    memmove(&segments->at[i], &segments->at[i + 1], (--segments->nr - i) * sizeof(struct segment *));
    segment->gone = true;
}

void segments_remove(struct segments *segments, struct segment *segment)
{
    if (!segment->gone) {
        take_off(segments, segment);
    }
    if (segment->pins == 0) {
        release(segment);
    }
}

void segment_unpin(struct segment *segment)
{
    if (--segment->pins == 0 && segment->gone) {
        release(segment);
    }
}

/* The one that was not used for the longest time; NULL: all are in use. */
static struct segment *find_idlest(const struct segments *segments)
{
    struct segment *idlest = NULL;
    for (unsigned i = 0; i < segments->nr; i++) {
        struct segment *segment = segments->at[i];
        if (!segment->kept && segment->pins == 0 && (idlest == NULL || segment->used < idlest->used)) {
            idlest = segment;
        }
    }
    return idlest;
}

static bool make_room(struct segments *segments)
{
    if (segments->nr < segments->room) {
        return true;
    }
    unsigned room = segments->room == 0 ? 32 : 2 * segments->room;
    struct segment **at = realloc(segments->at, room * sizeof(struct segment *));
    if (at != NULL) {
        segments->at = at;
        segments->room = room;
    }
    return at != NULL;
}

struct segment *segments_add(struct segments *segments, struct extent extent, struct mlacat_buffer *buffer, bool kept)
{
    struct segment *segment = calloc(1, sizeof(*segment));
    if (segment == NULL || !make_room(segments)) {
        free(segment);
        mlacat_buffer_release(buffer);
        PyErr_NoMemory();
        return NULL;
    }
    *segment = (struct segment){.begin = extent.begin, .end = extent.end, .buffer = buffer, .kept = kept};
    segment->used = ++segments->clock;
    unsigned i = upper_bound(segments, extent.begin);
    memmove(&segments->at[i + 1], &segments->at[i], (segments->nr++ - i) * sizeof(struct segment *));
    segments->at[i] = segment;
    if (extent.end - extent.begin > segments->longest) {
        segments->longest = extent.end - extent.begin;
    }
    return segment;
}

/* ---------------------------------------------------------------------------------------------------- GPU memory */

static enum mlacat_status register_extent(struct mlacat_client *client, const struct extent *extent,
                                          struct mlacat_buffer **buffer, struct failure *failure)
{
    enum mlacat_status status;
    PyThreadState *thread = PyEval_SaveThread();
    status = mlacat_buffer_register_ptr(client, (const void *)extent->begin, extent->end - extent->begin, buffer);
    if (status != MLACAT_OK) {
        raise_take(failure, status);
    }
    PyEval_RestoreThread(thread);
    return status;
}

/* Those of which nothing sticks out; the others may be of use as they are. */
static void drop_within(struct segments *segments, const struct extent *extent)
{
    for (unsigned i = upper_bound(segments, extent->end); i-- > 0;) {
        if (i < segments->nr && segments->at[i]->begin >= extent->begin && segments->at[i]->end <= extent->end &&
            !segments->at[i]->kept) {
            segments_remove(segments, segments->at[i]);
        }
    }
}

/* Longer memory has as many chunks: the driver need not be asked for each of them again. Where its chunks are larger,
 * it is cut in vain, which does no harm. */
static bool was_refused(const struct segments *segments, const struct extent *extent)
{
    return segments->refused != 0 && extent->end - extent->begin >= segments->refused;
}

/* Memory that touches a segment may be chunks of the same growing one (PyTorch's expandable segments): then the two are
 * made one, so that tensors may straddle them. Where they are not, the driver says so, and nothing changes. */
static struct segment *try_union(struct segments *segments, struct mlacat_client *client, const struct extent *range)
{
    struct extent all = *range;
    struct mlacat_buffer *buffer;
    struct failure ignored;
    struct segment *neighbour = find_overlap(segments, &(struct extent){range->begin - 1, range->end + 1});
    if (neighbour == NULL || neighbour->kept) {
        return NULL;
    }
    all.begin = neighbour->begin < all.begin ? neighbour->begin : all.begin;
    all.end = neighbour->end > all.end ? neighbour->end : all.end;
    if (was_refused(segments, &all)) {
        return NULL;
    }
    if (register_extent(client, &all, &buffer, &ignored) != MLACAT_OK) {
        return NULL;
    }
    drop_within(segments, &all);
    return segments_add(segments, all, buffer, false);
}

static enum mlacat_status find_range(const struct extent *extent, struct extent *range, struct failure *failure)
{
    enum mlacat_status status;
    void *base = NULL;
    size_t bytes = 0;
    PyThreadState *thread = PyEval_SaveThread();
    status = mlacat_memory_range((const void *)extent->begin, extent->end - extent->begin, &base, &bytes);
    if (status != MLACAT_OK) {
        raise_take(failure, status);
    }
    PyEval_RestoreThread(thread);
    *range = (struct extent){(uintptr_t)base, (uintptr_t)base + bytes};
    return status;
}

/* NULL: as segments_register. Without a pin. */
static struct segment *register_range(struct segments *segments, struct mlacat_client *client,
                                      const struct extent *range, struct failure *failure)
{
    struct mlacat_buffer *buffer = NULL;
    while (register_extent(client, range, &buffer, failure) != MLACAT_OK) {
        struct segment *idlest = failure->status == MLACAT_RESOURCE_EXHAUSTED ? find_idlest(segments) : NULL;
        if (idlest == NULL) {
            return NULL;
        }
        segments_remove(segments, idlest);
    }
    return segments_add(segments, *range, buffer, false);
}

struct segment *segments_register(struct segments *segments, struct mlacat_client *client, const struct extent *extent,
                                  bool *too_large)
{
    struct extent range;
    struct failure failure = {.status = MLACAT_OK};
    struct segment *idlest;
    if (too_large != NULL && was_refused(segments, extent)) {
        *too_large = true;
        return NULL;
    }
    if (find_range(extent, &range, &failure) != MLACAT_OK) {
        raise_failure(&failure);
        return NULL;
    }
    struct segment *segment = try_union(segments, client, &range);
    if (segment == NULL && !PyErr_Occurred()) {
        segment = register_range(segments, client, &range, &failure);
    }
    if (segment == NULL) {
        if (failure.status == MLACAT_OUT_OF_RANGE && too_large != NULL) {
            segments->refused = extent->end - extent->begin;
            *too_large = true;
        } else if (!PyErr_Occurred()) {
            raise_failure(&failure);
        }
        return NULL;
    }
    segment_pin(segment);
    while (segments->nr > SEGMENTS_MOST && (idlest = find_idlest(segments)) != NULL) {
        segments_remove(segments, idlest);
    }
    return segment;
}

/* ---------------------------------------------------------------------------------------------------- dropping */

void segments_forget(struct segments *segments, const struct extent *extent)
{
    struct segment *segment;
    while ((segment = find_overlap(segments, extent)) != NULL && !segment->kept) {
        segments_remove(segments, segment);
    }
}

unsigned segments_drop(struct segments *segments)
{
    for (unsigned i = segments->nr; i-- > 0;) {
        if (i < segments->nr && !segments->at[i]->kept) {
            segments_remove(segments, segments->at[i]);
        }
    }
    if (segments->nr == 0) {
        free(segments->at);
        segments->at = NULL;
        segments->room = 0;
    }
    return segments->nr;
}

void segments_abandon(struct segments *segments)
{
    while (segments->nr > 0) {
        struct segment *segment = segments->at[--segments->nr];
        segment->gone = true;
        if (!segment->kept && segment->pins == 0) {
            free(segment);
        }
    }
}
