/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_flights.h"

#include <stddef.h>
#include <string.h>

#include "cuda_device.h"
#include "cuda_memory.h"

/* ------------------------------------------------------------------------------------------------------ open, close */

enum mlacat_status cuda_flights_open(struct cuda_flights *flights, struct device *device,
                                     const struct device_words *words, struct error *err)
{
    for (unsigned i = 0; i < CUDA_LANES; i++) {
        if (cuda_lane_open(&flights->lane[i], device, err) != MLACAT_OK) {
            return err->code;
        }
    }
    if (words) {
        flights->fence = words->fence;
        flights->done = words->done;
        flights->fence_at = cuda_pages_address(words->fence_pages, words->fence);
        flights->done_at = cuda_pages_address(words->done_pages, words->done);
    }
    return MLACAT_OK;
}

static void unpin(struct cuda_flight *flight)
{
    for (int k = 0; k < OP_OPERANDS; k++) {
        if (flight->memory[k]) {
            cuda_memory_unpin(flight->memory[k]);
        }
    }
}

void cuda_flights_close(struct cuda_flights *flights)
{
    for (unsigned i = 0; i < CUDA_LANES; i++) {
        cuda_lane_close(&flights->lane[i]);
    }
    while (flights->head != flights->tail) {
        unpin(cuda_flight_at(flights, flights->head++));
    }
}

/* ---------------------------------------------------------------------------------------------------------- adding */

static enum mlacat_status pin(const struct device_call *call, struct cuda_flight *flight, struct error *err)
{
    for (int k = 0; k < OP_OPERANDS; k++) {
        if (!cuda_memory_pin(call->memory[k])) {
            return error_set_scoped(err, MLACAT_FAILED_PRECONDITION, MLACAT_SCOPE_BUFFER,
                                    "the memory of a buffer was freed since it was registered, and its place has other "
                                    "memory now: register the buffer again");
        }
        flight->memory[k] = call->memory[k];
    }
    return MLACAT_OK;
}

enum mlacat_status cuda_flights_add(struct cuda_flights *flights, const struct device_call *call,
                                    const struct cuda_footprint *footprint, struct error *err)
{
    struct cuda_flight *flight = cuda_flight_at(flights, flights->tail);
    memset(flight, 0, offsetof(struct cuda_flight, error));
    flight->error.code = MLACAT_OK;
    if (!call->signal_only && pin(call, flight, err) != MLACAT_OK) {
        unpin(flight);
        return err->code;
    }
    flight->cookie = call->cookie;
    flight->sequence = call->sequence;
    flight->tell_done = call->tell_done;
    flight->bytes = call->signal_only ? 0 : call->plan.bytes;
    flights->footprint[flights->tail % CUDA_FLIGHTS_NR] = *footprint;
    flights->bytes += flight->bytes;
    flights->tail++;
    return MLACAT_OK;
}

void cuda_flights_drop(struct cuda_flights *flights)
{
    struct cuda_flight *flight = cuda_flights_newest(flights);
    unpin(flight);
    flights->bytes -= flight->bytes;
    flights->tail--;
}

/* ------------------------------------------------------------------------------------------------------- the order */

uint32_t cuda_flight_lanes(const struct cuda_flights *flights, const struct cuda_flight *flight)
{
    uint32_t lanes = 0;
    if (flight->direct) {
        return flights->fence_seen < flight->sequence ? 1u << flight->lane : 0;
    }
    for (unsigned i = 0; i < CUDA_LANES; i++) {
        lanes |= (uint32_t)(flights->lane[i].seen < flight->until[i]) << i;
    }
    return lanes;
}

uint32_t cuda_flights_lanes_before(const struct cuda_flights *flights, uint32_t first,
                                   const struct cuda_footprint *footprint)
{
    uint32_t lanes = 0;
    for (uint32_t i = flights->ended; i != first && (lanes & (lanes - 1)) == 0; i++) {
        if (cuda_footprints_conflict(&flights->footprint[i % CUDA_FLIGHTS_NR], footprint)) {
            lanes |= cuda_flight_lanes(flights, &flights->flight[i % CUDA_FLIGHTS_NR]);
        }
    }
    return lanes;
}

bool cuda_flights_conflict_since(const struct cuda_flights *flights, uint32_t first,
                                 const struct cuda_footprint *footprint)
{
    for (uint32_t i = first; i != flights->tail; i++) {
        if (cuda_footprints_conflict(&flights->footprint[i % CUDA_FLIGHTS_NR], footprint)) {
            return true;
        }
    }
    return false;
}

/* ---------------------------------------------------------------------------------------------------------- telling */

/*
 * The fence of the words says of a call that it and all before it have ended. The GPU may write that itself, right
 * after the launch, if all calls before have ended and the words say so, or are direct on the same lane, where they end
 * first: what is right for the one before is right for all before that. Every other call moves its lane's own fence,
 * and cuda_flights_tell the words when its turn has come, which is after it saw the fence of the direct calls before,
 * and that was written behind their `done`. So no write of the GPU lands after a newer one of ours; and none of ours
 * after a newer one of the GPU's, because that is enqueued only when all of ours before are done.
 */
static bool may_be_direct(const struct cuda_flights *flights, uint32_t first, unsigned lane)
{
    const struct cuda_flight *before = &flights->flight[(first - 1) % CUDA_FLIGHTS_NR];
    return flights->fence && (flights->ended == first || (before->direct && before->lane == lane));
}

static int write_words(struct cuda_flights *flights, uint32_t first, unsigned lane)
{
    uint64_t done = 0;
    int result = CUDA_RESULT_OK;
    for (uint32_t i = first; i != flights->tail; i++) {
        struct cuda_flight *flight = cuda_flight_at(flights, i);
        done = flight->tell_done ? flight->sequence : done;
        flight->direct = true;
        flight->lane = lane;
    }
    if (done != 0) {
        result = cuda_lane_write(&flights->lane[lane], flights->done_at, done);
    }
    if (result == CUDA_RESULT_OK) {
        result = cuda_lane_write(&flights->lane[lane], flights->fence_at, cuda_flights_newest(flights)->sequence);
    }
    return result;
}

int cuda_flights_write_step(struct cuda_flights *flights, uint32_t first, unsigned lane)
{
    int result = cuda_lane_step(&flights->lane[lane]);
    for (uint32_t i = first; i != flights->tail; i++) {
        cuda_flight_at(flights, i)->until[lane] = flights->lane[lane].fence->written;
    }
    return result;
}

int cuda_flights_write_end(struct cuda_flights *flights, uint32_t first, unsigned lane)
{
    return may_be_direct(flights, first, lane) ? write_words(flights, first, lane)
                                               : cuda_flights_write_step(flights, first, lane);
}

uint64_t cuda_flights_look(struct cuda_flights *flights)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < CUDA_LANES; i++) {
        cuda_lane_look(&flights->lane[i]);
        sum += flights->lane[i].seen;
    }
    if (flights->fence) {
        flights->fence_seen = __atomic_load_n(flights->fence, __ATOMIC_ACQUIRE);
    }
    return sum + flights->fence_seen;
}

void cuda_flights_tell(struct cuda_flights *flights)
{
    uint64_t fence = 0;
    uint64_t done = 0;
    for (; flights->ended != flights->tail; flights->ended++) {
        const struct cuda_flight *flight = cuda_flight_at(flights, flights->ended);
        if (flight->unfinished || cuda_flight_lanes(flights, flight) != 0) {
            break;
        }
        if (!flight->direct) {
            done = flight->tell_done ? flight->sequence : done;
            fence = flight->error.code == MLACAT_OK ? flight->sequence : fence;
        }
    }
    /* As the GPU does: `done` first. Release: who sees a word sees what the calls wrote. */
    if (flights->fence && done != 0) {
        __atomic_store_n(flights->done, done, __ATOMIC_RELEASE);
    }
    if (flights->fence && fence != 0) {
        __atomic_store_n(flights->fence, fence, __ATOMIC_RELEASE);
    }
}

int cuda_flights_reap(struct cuda_flights *flights, struct device_completion *done, int max)
{
    int nr = 0;
    for (; nr < max && flights->head != flights->ended; flights->head++) {
        struct cuda_flight *flight = cuda_flight_at(flights, flights->head);
        unpin(flight);
        flights->bytes -= flight->bytes;
        done[nr].cookie = flight->cookie;
        done[nr].error = flight->error;
        nr++;
    }
    return nr;
}
