/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_segments.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "cuda_device.h"
#include "log.h"
#include "min_max.h"

#define PIN_LOOK_NS 20000
/* Who has not looked for calls for as long knows nothing of them. */
#define BLIND_NS (20 * CUDA_LOOK_NS)

static void sleep_ns(uint64_t ns)
{
    struct timespec time = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    nanosleep(&time, NULL);
}

/* FNV-1a */
static struct list_node *bucket_of(const struct cuda_segments *segments, const struct cuda_ipc_handle *handle)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < sizeof(handle->bytes); i++) {
        hash = (hash ^ handle->bytes[i]) * UINT64_C(0x100000001b3);
    }
    return &segments->buckets[hash % CUDA_SEGMENT_BUCKETS];
}

static struct cuda_segment *find(const struct cuda_segments *segments, const struct cuda_ipc_handle *handle)
{
    struct list_node *bucket = bucket_of(segments, handle);
    for (struct list_node *node = bucket->next; node != bucket; node = node->next) {
        struct cuda_segment *segment = LIST_ENTRY(node, struct cuda_segment, bucket);
        if (memcmp(&segment->handle, handle, sizeof(*handle)) == 0) {
            return segment;
        }
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------------------- closing */

static void wait_list(struct cuda_segments *segments, struct list_node *list, struct cuda_segment *segment)
{
    segments->unused_nr += list_empty(&segment->waiting);
    list_remove(&segment->waiting);
    list_append(list, &segment->waiting);
}

static void wait_no_more(struct cuda_segments *segments, struct cuda_segment *segment)
{
    segments->unused_nr -= !list_empty(&segment->waiting);
    list_remove(&segment->waiting);
}

/* Its memory was freed by its owner: no new call may use it, and it shall be closed soon. */
static void retire(struct cuda_segments *segments, struct cuda_segment *segment)
{
    if (segment->state != CUDA_SEGMENT_LIVE) {
        return;
    }
    segment->state = CUDA_SEGMENT_RETIRED;
    atomic_store(&segment->stale, true); /* then look at the pins: see cuda_segment_pin */
    list_remove(&segment->bucket);
    wait_list(segments, &segments->retired, segment);
}

static bool may_close(struct cuda_segment *segment)
{
    return atomic_load(&segment->pins) == 0;
}

static void close_mapping(struct cuda_segments *segments, cuda_address base)
{
    struct device *device = segments->device;
    int result = device->cuda->cuIpcCloseMemHandle(base);
    segments->closed_ns = clock_now_ns();
    device->closed_pages = false;
    if (result != CUDA_RESULT_OK) {
        struct error err;
        cuda_device_fail(device, &err, result, "cuIpcCloseMemHandle", "a client's memory");
    }
}

/* After this one was closed, or when it is used again. */
static void count_closed(struct cuda_segments *segments, const struct cuda_segment *closing)
{
    if (closing->release != atomic_load_explicit(&segments->closed, memory_order_relaxed) + 1) {
        return; /* an older one is still open */
    }
    uint64_t closed = atomic_load_explicit(&segments->released, memory_order_relaxed);
    for (struct list_node *node = segments->open.next; node != &segments->open; node = node->next) {
        const struct cuda_segment *segment = LIST_ENTRY(node, struct cuda_segment, open);
        if (segment->users == 0 && segment->release - 1 < closed) {
            closed = segment->release - 1;
        }
    }
    atomic_store_explicit(&segments->closed, closed, memory_order_relaxed);
}

static void close_segment(struct cuda_segments *segments, struct cuda_segment *segment)
{
    atomic_store(&segment->stale, true);
    segment->state = CUDA_SEGMENT_CLOSED;
    list_remove(&segment->bucket);
    list_remove(&segment->open);
    wait_no_more(segments, segment);
    close_mapping(segments, segment->base);
    count_closed(segments, segment);
    if (segment->users == 0) {
        free(segment);
    }
}

static bool has_calls(const struct cuda_segments *segments)
{
    for (struct list_node *node = segments->open.next; node != &segments->open; node = node->next) {
        if (atomic_load(&LIST_ENTRY(node, struct cuda_segment, open)->pins) > 0) {
            return true;
        }
    }
    return false;
}

static void look_for_calls(struct cuda_segments *segments)
{
    uint64_t now_ns = clock_now_ns();
    bool stirred = atomic_exchange_explicit(&segments->device->stirred, false, memory_order_relaxed);
    if (stirred || now_ns - segments->looked_ns >= BLIND_NS || has_calls(segments)) {
        segments->quiet_since_ns = now_ns;
    }
    segments->looked_ns = now_ns;
}

static bool is_quiet(const struct cuda_segments *segments, uint64_t now_ns)
{
    return now_ns - segments->looked_ns < BLIND_NS && now_ns - segments->quiet_since_ns >= CUDA_QUIET_NS;
}

uint64_t cuda_segments_pace_left_ns(const struct cuda_segments *segments)
{
    uint64_t now_ns = clock_now_ns();
    uint64_t since_ns = now_ns - segments->closed_ns;
    uint64_t pace_ns = is_quiet(segments, now_ns) ? CUDA_QUIET_PACE_NS : CUDA_CLOSE_PACE_NS;
    return segments->closed_ns == 0 || since_ns >= pace_ns ? 0 : pace_ns - since_ns;
}

/* Sleeps until an import may close something. What waits to be closed goes first: imports that come without a pause
 * would else leave it no time. */
static void wait_for_turn(struct cuda_segments *segments)
{
    sleep_ns(cuda_segments_pace_left_ns(segments));
    cuda_device_close_due(segments->device);
    sleep_ns(cuda_segments_pace_left_ns(segments));
}

/* Closes it as soon as its calls and the pace allow. false: its calls take too long. */
static bool close_soon(struct cuda_segments *segments, struct cuda_segment *segment)
{
    uint64_t start_ns = clock_now_ns();
    while (!may_close(segment)) {
        if (clock_now_ns() - start_ns > CUDA_RETIRE_WAIT_NS) {
            return false;
        }
        sleep_ns(PIN_LOOK_NS);
    }
    wait_no_more(segments, segment); /* or it might be closed while it waits for its turn */
    wait_for_turn(segments);
    close_segment(segments, segment);
    return true;
}

/* The next segment to close; NULL: none yet, and *in_ns when to look again. */
static struct cuda_segment *find_due(struct cuda_segments *segments, uint64_t *in_ns)
{
    *in_ns = UINT64_MAX;
    for (struct list_node *node = segments->retired.next; node != &segments->retired; node = node->next) {
        struct cuda_segment *segment = LIST_ENTRY(node, struct cuda_segment, waiting);
        if (may_close(segment)) {
            return segment;
        }
        *in_ns = CUDA_CLOSE_PACE_NS;
    }
    if (list_empty(&segments->idle)) {
        return NULL;
    }
    struct cuda_segment *oldest = LIST_ENTRY(segments->idle.next, struct cuda_segment, waiting);
    uint64_t age_ns = clock_now_ns() - oldest->idle_since_ns;
    if (age_ns >= CUDA_IDLE_NS) {
        return oldest;
    }
    *in_ns = min_u64(*in_ns, CUDA_IDLE_NS - age_ns);
    return NULL;
}

uint64_t cuda_segments_tend(struct cuda_segments *segments)
{
    uint64_t in_ns;
    if (segments->unused_nr == 0) {
        return UINT64_MAX;
    }
    look_for_calls(segments);
    struct cuda_segment *segment = find_due(segments, &in_ns);
    if (segment) {
        in_ns = cuda_segments_pace_left_ns(segments);
        if (in_ns == 0) {
            close_segment(segments, segment);
            in_ns = segments->unused_nr > 0 ? CUDA_LOOK_NS : UINT64_MAX;
        }
    }
    return in_ns == UINT64_MAX ? in_ns : min_u64(in_ns, CUDA_LOOK_NS);
}

/* ------------------------------------------------------------------------------------------------------- opening */

static enum mlacat_status open_handle(struct cuda_segments *segments, const struct cuda_ipc_handle *handle,
                                      cuda_address *address, struct error *err)
{
    struct device *device = segments->device;
    uint64_t start_ns = clock_now_ns();
    int result = device->cuda->cuIpcOpenMemHandle(address, *handle, CUDA_IPC_LAZY_PEER_ACCESS);
    while (result == CUDA_RESULT_ALREADY_MAPPED && !list_empty(&segments->idle) &&
           clock_now_ns() - start_ns < CUDA_RETIRE_WAIT_NS) {
        /* In the way of memory that its owner freed and nobody told us of. */
        close_soon(segments, LIST_ENTRY(segments->idle.next, struct cuda_segment, waiting));
        result = device->cuda->cuIpcOpenMemHandle(address, *handle, CUDA_IPC_LAZY_PEER_ACCESS);
    }
    if (result != CUDA_RESULT_OK) {
        return cuda_device_fail(device, err, result, "cuIpcOpenMemHandle", "the IPC handle cannot be opened");
    }
    return MLACAT_OK;
}

/* What the driver says of the opened memory: where it begins, how long it is, which device it is on. */
static enum mlacat_status check_opened(struct cuda_segments *segments, cuda_address address,
                                       struct cuda_segment *segment, struct error *err)
{
    struct device *device = segments->device;
    size_t size_bytes = 0;
    int result = device->cuda->cuMemGetAddressRange(&segment->base, &size_bytes, address);
    if (result != CUDA_RESULT_OK) {
        return cuda_device_fail(device, err, result, "cuMemGetAddressRange", "the size of the opened memory");
    }
    segment->size_bytes = size_bytes;
    int ordinal = -1;
    result = device->cuda->cuPointerGetAttribute(&ordinal, CUDA_POINTER_DEVICE_ORDINAL, address);
    if (result != CUDA_RESULT_OK) {
        return cuda_device_fail(device, err, result, "cuPointerGetAttribute", "the device of the opened memory");
    }
    if (ordinal != device->ordinal || segment->base != address) {
        char other[DEVICE_UUID_BYTES];
        cuda_device_name(device, ordinal, other);
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "the buffer is memory of %s, not of %s: register it with the device that it is on", other,
                         device->uuid);
    }
    return MLACAT_OK;
}

static bool overlap(const struct cuda_segment *a, const struct cuda_segment *b)
{
    return a->base < b->base + b->size_bytes && b->base < a->base + a->size_bytes;
}

/* The driver gave addresses that belong to a segment already: that one's memory is gone. */
static struct cuda_segment *find_overlap(const struct cuda_segments *segments, const struct cuda_segment *segment)
{
    for (struct list_node *node = segments->open.next; node != &segments->open; node = node->next) {
        struct cuda_segment *other = LIST_ENTRY(node, struct cuda_segment, open);
        if (overlap(segment, other)) {
            return other;
        }
    }
    return NULL;
}

static enum mlacat_status retire_now(struct cuda_segments *segments, struct cuda_segment *old, struct error *err)
{
    retire(segments, old);
    if (!close_soon(segments, old)) {
        return error_set(err, MLACAT_FAILED_PRECONDITION,
                         "the buffer replaces memory that was freed (BUFFER_ID %" PRIu64
                         ") and that calls still use: wait for them and register it again",
                         old->buffer_id);
    }
    return MLACAT_OK;
}

/* Opens the handle into `segment`, after what is in its way has been closed. */
static enum mlacat_status open_fresh(struct cuda_segments *segments, struct cuda_segment *segment, struct error *err)
{
    for (;;) {
        cuda_address address = 0;
        if (open_handle(segments, &segment->handle, &address, err) != MLACAT_OK) {
            return err->code;
        }
        enum mlacat_status status = check_opened(segments, address, segment, err);
        if (status == MLACAT_OK && !find_overlap(segments, segment)) {
            return MLACAT_OK;
        }
        wait_for_turn(segments);
        close_mapping(segments, address);
        if (status != MLACAT_OK) {
            return status;
        }
        struct cuda_segment *old = find_overlap(segments, segment); /* NULL: its turn has come meanwhile */
        if (old && retire_now(segments, old, err) != MLACAT_OK) {
            return err->code;
        }
    }
}

static enum mlacat_status make(struct cuda_segments *segments, const struct cuda_ipc_handle *handle, uint64_t buffer_id,
                               struct cuda_segment **segment, struct error *err)
{
    if (segments->unused_nr >= CUDA_UNUSED_MAX) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                         "%" PRIu32
                         " released allocations wait to be closed, which takes up to 10 ms each: register and "
                         "release less often, larger allocations",
                         segments->unused_nr);
    }
    struct cuda_segment *made = calloc(1, sizeof(*made));
    if (!made) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for another buffer");
    }
    made->handle = *handle;
    made->buffer_id = buffer_id;
    list_init(&made->bucket);
    list_init(&made->waiting);
    list_init(&made->open);
    if (open_fresh(segments, made, err) != MLACAT_OK) {
        free(made);
        return err->code;
    }
    made->serial = ++segments->serials;
    list_append(bucket_of(segments, handle), &made->bucket);
    list_append(&segments->open, &made->open);
    *segment = made;
    return MLACAT_OK;
}

enum mlacat_status cuda_segments_get(struct cuda_segments *segments, const struct cuda_ipc_handle *handle,
                                     uint64_t buffer_id, struct cuda_segment **segment, bool *known, struct error *err)
{
    struct cuda_segment *found = find(segments, handle);
    if (found && found->buffer_id != buffer_id) {
        if (retire_now(segments, found, err) != MLACAT_OK) {
            return err->code;
        }
        found = NULL;
    }
    *known = found != NULL;
    if (!found && make(segments, handle, buffer_id, &found, err) != MLACAT_OK) {
        return err->code;
    }
    wait_no_more(segments, found);
    if (found->users++ == 0 && *known) {
        count_closed(segments, found);
    }
    *segment = found;
    return MLACAT_OK;
}

void cuda_segments_put(struct cuda_segments *segments, struct cuda_segment *segment)
{
    segment->users--;
    if (segment->users > 0) {
        return;
    }
    if (segment->state == CUDA_SEGMENT_CLOSED) {
        free(segment);
        return;
    }
    segment->release = atomic_load_explicit(&segments->released, memory_order_relaxed) + 1;
    atomic_store_explicit(&segments->released, segment->release, memory_order_relaxed);
    if (segment->state == CUDA_SEGMENT_LIVE) {
        segment->idle_since_ns = clock_now_ns();
        wait_list(segments, &segments->idle, segment);
    }
}

enum mlacat_status cuda_segments_init(struct cuda_segments *segments, struct device *device, struct error *err)
{
    *segments = (struct cuda_segments){.device = device};
    segments->buckets = malloc(CUDA_SEGMENT_BUCKETS * sizeof(*segments->buckets));
    if (!segments->buckets) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "no memory for the table of open allocations");
    }
    for (int i = 0; i < CUDA_SEGMENT_BUCKETS; i++) {
        list_init(&segments->buckets[i]);
    }
    list_init(&segments->open);
    list_init(&segments->idle);
    list_init(&segments->retired);
    return MLACAT_OK;
}

void cuda_segments_fini(struct cuda_segments *segments)
{
    if (!segments->buckets) {
        return;
    }
    while (!list_empty(&segments->open)) {
        close_segment(segments, LIST_ENTRY(segments->open.next, struct cuda_segment, open));
    }
    free(segments->buckets);
    segments->buckets = NULL;
}
