/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The allocations of other processes that are open in this one (legacy IPC): one open for an allocation, however many
 * clients registered a part of it, counted.
 *
 *   LIVE -> RETIRED    (its handle bytes or its address range came with another BUFFER_ID: the memory was freed)
 *   LIVE -> CLOSED     (nobody registered it for a while)
 *   RETIRED -> CLOSED  (no call in flight uses it)
 *   CLOSED -> freed    (nobody registered it)
 *
 * While the driver closes a mapping it stops every launch of the process as long as a kernel runs; so closing is paced,
 * faster while no call has been in flight for a while: a hundred segments that a runner has freed at once, between its
 * steps, are then the GPU's again before it asks for others. A LIVE segment that nobody uses is kept for a moment,
 * because registering it again is then free. Not for long: its memory does not go back to its owner before.
 *
 * Owns:     the open mappings.
 * Thread:   the device's control thread; cuda_segment_pin and cuda_segment_unpin: the worker threads.
 * Lifetime: init -> (get/put, tend)* -> fini, with every segment put.
 * Errors:   with cuda_segments_get.
 */
#ifndef MLACAT_DEVICE_CUDA_SEGMENTS_H
#define MLACAT_DEVICE_CUDA_SEGMENTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cuda_api.h"
#include "list.h"
#include "status.h"

#define CUDA_CLOSE_PACE_NS UINT64_C(10000000)
/* While it is quiet: whoever looked each CUDA_LOOK_NS has seen no call in flight, and none launched, for
 * CUDA_QUIET_NS. */
#define CUDA_QUIET_PACE_NS UINT64_C(500000)
#define CUDA_QUIET_NS UINT64_C(30000000)
#define CUDA_LOOK_NS UINT64_C(500000)
#define CUDA_IDLE_NS UINT64_C(50000000)
/* As many segments may wait to be closed; then registering anything new is refused. */
#define CUDA_UNUSED_MAX 1024
/* How long a new import waits for the calls on memory that was freed, before it is refused. */
#define CUDA_RETIRE_WAIT_NS UINT64_C(1000000000)

struct device;

enum cuda_segment_state { CUDA_SEGMENT_LIVE, CUDA_SEGMENT_RETIRED, CUDA_SEGMENT_CLOSED };

struct cuda_segment {
    struct list_node bucket;  /* LIVE: of the table */
    struct list_node waiting; /* LIVE without users: the idle list; RETIRED: the list of those to close */
    struct list_node open;    /* not CLOSED */
    enum cuda_segment_state state;
    struct cuda_ipc_handle handle;
    uint64_t buffer_id;
    uint64_t serial; /* never used again in this process: names the memory */
    cuda_address base;
    uint64_t size_bytes;
    uint32_t users;   /* registrations */
    uint64_t release; /* without users: which one of `released` it was */
    uint64_t idle_since_ns;
    _Atomic uint32_t pins; /* calls in flight */
    _Atomic bool stale;    /* no new call may use it */
};

#define CUDA_SEGMENT_BUCKETS 1024

struct cuda_segments {
    struct device *device;
    struct list_node *buckets;
    struct list_node open; /* all that are not CLOSED */
    struct list_node idle; /* LIVE without users, the longest first */
    struct list_node retired;
    uint32_t unused_nr;        /* on `idle` and `retired` */
    _Atomic uint64_t released; /* any thread may read both: see device.h, mem_closed */
    _Atomic uint64_t closed;
    uint64_t serials;
    uint64_t closed_ns; /* the last close; 0: none yet */
    uint64_t looked_ns; /* for calls in flight */
    uint64_t quiet_since_ns;
};

enum mlacat_status cuda_segments_init(struct cuda_segments *segments, struct device *device, struct error *err);
/* Closes all that is open, without pace: there are no calls to protect any more. Accepts a zeroed one. */
void cuda_segments_fini(struct cuda_segments *segments);

/*
 * The allocation behind `handle`, for one registration more. *known: it was open already. May wait for calls on memory
 * that has gone.
 * INVALID_ARGUMENT: not a handle of this device's memory. FAILED_PRECONDITION: the old memory at its place is still in
 * use. RESOURCE_EXHAUSTED: too many wait to be closed.
 */
enum mlacat_status cuda_segments_get(struct cuda_segments *segments, const struct cuda_ipc_handle *handle,
                                     uint64_t buffer_id, struct cuda_segment **segment, bool *known, struct error *err);
/* One registration less. */
void cuda_segments_put(struct cuda_segments *segments, struct cuda_segment *segment);

/* Closes at most one segment that is due. Returns in how many nanoseconds it wants to be called again; UINT64_MAX: when
 * something was put. */
uint64_t cuda_segments_tend(struct cuda_segments *segments);

/* Until something may be closed again, memory or pages; 0: now. */
uint64_t cuda_segments_pace_left_ns(const struct cuda_segments *segments);

/* A call is going to use it; false: it must not, its memory is gone. */
static inline bool cuda_segment_pin(struct cuda_segment *segment)
{
    /* First the pin, then the look; cuda_segments.c: retire does it the other way round: one of them sees the other. */
    atomic_fetch_add(&segment->pins, 1);
    if (atomic_load(&segment->stale)) {
        atomic_fetch_sub(&segment->pins, 1);
        return false;
    }
    return true;
}

static inline void cuda_segment_unpin(struct cuda_segment *segment)
{
    atomic_fetch_sub_explicit(&segment->pins, 1, memory_order_release);
}

#endif
