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
 * Lifetime: open -> (add, drop, end, expect, look, tell, reap)* -> close. close accepts what a failed open left.
 * Errors:   cuda_flights_open: as cuda_lane_open. cuda_flights_add: FAILED_PRECONDITION for memory that has gone.
 */
#ifndef MLACAT_DEVICE_CUDA_FLIGHTS_H
#define MLACAT_DEVICE_CUDA_FLIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include "cuda_footprint.h"
#include "cuda_lane.h"
#include "device.h"

/* Lanes of a stream. Two keep the GPU busy between launches of some length, three between short ones too. */
#define CUDA_LANES 3
/* The one with all calls whose end the GPU tells in the words. */
#define CUDA_DIRECT_LANE 0
/* Calls that a stream holds; a power of two. */
#define CUDA_FLIGHTS_NR 128

struct cuda_flight {
    void *cookie;
    struct device_memory *memory[OP_OPERANDS]; /* NULL: the call has none */
    struct device_memory *ready_memory;        /* where the word is that it waits for; NULL: in none */
    uint64_t until[CUDA_LANES];                /* it has ended when the fence of each lane is as far */
    bool direct;                               /* not so, but when the fence of the words has `sequence` */
    bool armed;                                /* direct; or its lane's fence is as far: then it has lapsed */
    bool lapsed;
    bool unfinished; /* launches of it are to follow */
    bool tell_done;
    uint64_t sequence;
    uint64_t bytes;
    struct error error; /* a later launch of the call failed */
};

struct cuda_flights {
    struct cuda_lane lane[CUDA_LANES];
    uint64_t *fence;   /* of the words; NULL: no words */
    uint64_t *done;    /* of the words */
    uint64_t fence_at; /* this and the next three: as the GPU knows them */
    uint64_t done_at;
    uint64_t ready_at;
    uint64_t wake_at;
    uint64_t fence_seen;
    /* A kernel has written `done`, and nothing says that it has landed; else it has when the fence of the direct lane
     * is as far as done_until. */
    bool done_loose;
    uint64_t done_until;
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

/* The lanes with calls before `first` that conflict with the footprint, as far as we know: bit by bit. When there are
 * two it looks for no more. */
uint32_t cuda_flights_lanes_before(const struct cuda_flights *flights, uint32_t first,
                                   const struct cuda_footprint *footprint);
/* Does one from `first` on conflict with it? */
bool cuda_flights_conflict_since(const struct cuda_flights *flights, uint32_t first,
                                 const struct cuda_footprint *footprint);

/* How the end of a launch on a lane, for the calls from `first` on, becomes known. */
struct cuda_end {
    uint32_t first;
    unsigned lane;
    bool direct; /* by the fence of the words; else by the lane's own */
    bool armed;
    struct concat_mla_end words;
    /* What the driver has to write behind a launch that writes `done` itself: a word of the GPU's own that nobody
     * reads. For a CUDA stream that waits for `done` learns late of what a kernel writes, and at once of what a stream
     * does, whatever that is; of a word in host memory a few microseconds later. */
    struct concat_mla_end behind;
};

/* Before a launch of the calls from `first` on: if the direct lane has nothing under way, it turns to the side that is
 * best for them. Apart from clients' streams for what one of those waits for (cuda_channel.h); else beside them, where
 * a launch begins 0.2 us sooner. */
void cuda_flights_choose_side(struct cuda_flights *flights, uint32_t first);

/* Before the launch: what the GPU is to write, behind all that the lane has and this launch; the words, if it may. */
struct cuda_end cuda_flights_end(const struct cuda_flights *flights, uint32_t first, unsigned lane, bool armed);
/* Only a part of an armed launch is there, and the rest will not be: it is to lapse, when that part has ended. The
 * driver has to write what tells so. */
void cuda_flights_make_lapse(struct cuda_flights *flights, struct cuda_end *end);
/* After the launch: the GPU will write that. `told`: the kernel itself. */
void cuda_flights_expect(struct cuda_flights *flights, const struct cuda_end *end, bool told);

/* What the GPU has written. Returns a number that differs when something has moved. */
uint64_t cuda_flights_look(struct cuda_flights *flights);
/* If a call waits for a kernel's `done` to land, because its own is ours to write, and nothing will say so: has the
 * driver write the lane's fence behind that kernel. Gives its result. */
int cuda_flights_prove(struct cuda_flights *flights);
/* Moves `ended`, and the words of what the GPU has not told itself. */
void cuda_flights_tell(struct cuda_flights *flights);
/* The lanes that have to go on before the oldest call in flight is over, as far as we know: bit by bit. */
uint32_t cuda_flights_awaited(const struct cuda_flights *flights);
int cuda_flights_reap(struct cuda_flights *flights, struct device_completion *done, int max);

#endif
