/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The calls of a stream that are in flight, in order of submission, on a few lanes; how the end of each becomes known,
 * to us and in the words (device.h). Private to the device layer and its tests.
 *
 * Calls are numbered from 0; the numbers wrap. head <= ended <= tail:
 *   [head, ended)  have ended, and the words say so
 *   [ended, tail)  are on the GPU, or wait for one of these
 *
 * Owns:     its lanes, and a pin on the memory of each call.
 * Thread:   open, close: the device's control thread. The rest: the stream's worker.
 * Lifetime: open -> (add, drop, write_*, look, tell, reap)* -> close. close accepts what a failed open left.
 * Errors:   cuda_flights_open: as cuda_lane_open. cuda_flights_add: FAILED_PRECONDITION for memory that has gone.
 *           cuda_flights_write_* give the driver's result as it is: anything but OK, and a kernel may run, and nobody
 *           will ever know when it has ended.
 */
#ifndef MLACAT_DEVICE_CUDA_FLIGHTS_H
#define MLACAT_DEVICE_CUDA_FLIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include "cuda_footprint.h"
#include "cuda_lane.h"
#include "device.h"

/* CUDA streams of a stream. Two keep the GPU busy between launches of some length, three between short ones too. */
#define CUDA_LANES 3
/* Calls that a stream holds; a power of two. */
#define CUDA_FLIGHTS_NR 128

struct cuda_flight {
    void *cookie;
    struct device_memory *memory[OP_OPERANDS]; /* NULL: the call has none */
    uint64_t until[CUDA_LANES];                /* it has ended when the fence of each lane is as far */
    bool direct;                               /* not so, but when the fence of the words has `sequence`: */
    unsigned lane;                             /* it is on this lane */
    bool unfinished;                           /* launches of it are to follow */
    bool tell_done;
    uint64_t sequence;
    uint64_t bytes;
    struct error error; /* a later launch of the call failed */
};

struct cuda_flights {
    struct cuda_lane lane[CUDA_LANES];
    uint64_t *fence;   /* of the words; NULL: no words */
    uint64_t *done;    /* of the words */
    uint64_t fence_at; /* both as the GPU knows them */
    uint64_t done_at;
    uint64_t fence_seen;
    uint32_t head;
    uint32_t ended;
    uint32_t tail;
    uint64_t bytes; /* of all from head on */
    struct cuda_flight flight[CUDA_FLIGHTS_NR];
    struct cuda_footprint footprint[CUDA_FLIGHTS_NR];
};

enum mlacat_status cuda_flights_open(struct cuda_flights *flights, struct device *device,
                                     const struct device_words *words, struct error *err);
/* Calls that are still there never end: the device is lost. */
void cuda_flights_close(struct cuda_flights *flights);

static inline struct cuda_flight *cuda_flight_at(struct cuda_flights *flights, uint32_t number)
{
    return &flights->flight[number % CUDA_FLIGHTS_NR];
}

static inline struct cuda_flight *cuda_flights_newest(struct cuda_flights *flights)
{
    return cuda_flight_at(flights, flights->tail - 1);
}

/* There is room for it. */
enum mlacat_status cuda_flights_add(struct cuda_flights *flights, const struct device_call *call,
                                    const struct cuda_footprint *footprint, struct error *err);
/* Takes the newest one back: nothing of it was launched. */
void cuda_flights_drop(struct cuda_flights *flights);

/* The lanes that still have something of the call, as far as we know: bit by bit. */
uint32_t cuda_flight_lanes(const struct cuda_flights *flights, const struct cuda_flight *flight);
/* The lanes with calls before `first` that conflict with the footprint; when there are two it looks for no more. */
uint32_t cuda_flights_lanes_before(const struct cuda_flights *flights, uint32_t first,
                                   const struct cuda_footprint *footprint);
/* Does one from `first` on conflict with it? */
bool cuda_flights_conflict_since(const struct cuda_flights *flights, uint32_t first,
                                 const struct cuda_footprint *footprint);

/* After a launch on the lane for the calls from `first` on: the GPU tells us. */
int cuda_flights_write_step(struct cuda_flights *flights, uint32_t first, unsigned lane);
/* After the only launch: the GPU tells us, in the words if it may. */
int cuda_flights_write_end(struct cuda_flights *flights, uint32_t first, unsigned lane);

/* What the GPU has written. Returns a number that differs when something has moved. */
uint64_t cuda_flights_look(struct cuda_flights *flights);
/* Moves `ended`, and the words of what the GPU has not told itself. */
void cuda_flights_tell(struct cuda_flights *flights);
int cuda_flights_reap(struct cuda_flights *flights, struct device_completion *done, int max);

#endif
