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
    /* As many on one side as on the other: that is how they are made. */
    for (unsigned i = 0; i < CUDA_LANES; i++) {
        enum cuda_side side = i < CUDA_LANES - 1 ? CUDA_SIDE_BESIDE : CUDA_SIDE_APART;
        if (cuda_lane_open(&flights->lane[i], device, side, err) != MLACAT_OK) {
            return err->code;
        }
    }
    if (cuda_lane_open_other(&flights->lane[CUDA_DIRECT_LANE], CUDA_SIDE_APART, err) != MLACAT_OK) {
        return err->code;
    }
    if (words) {
        flights->fence = words->fence;
        flights->done = words->done;
        flights->fence_at = cuda_pages_address(words->fence_pages, words->fence);
        flights->done_at = cuda_pages_address(words->client_pages, words->done);
        flights->wake_at = device->wake;
        flights->ready_at = cuda_pages_address(words->client_pages, words->ready);
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
    if (flight->ready_memory) {
        cuda_memory_unpin(flight->ready_memory);
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

/* 1, by the number of the lane: its fence is not as far. */
static uint32_t is_before(const struct cuda_flights *flights, unsigned lane, uint64_t until)
{
    return (uint32_t)(flights->lane[lane].seen < until) << lane;
}

/* The lanes that still have something of the call. */
static uint32_t lanes_of(const struct cuda_flights *flights, const struct cuda_flight *flight)
{
    uint32_t lanes = 0;
    if (flight->direct && flights->fence_seen >= flight->sequence) {
        return 0;
    }
    if (flight->direct && !flight->armed) {
        return 1u << CUDA_DIRECT_LANE;
    }
    for (unsigned i = 0; i < CUDA_LANES; i++) {
        lanes |= is_before(flights, i, flight->until[i]);
    }
    return lanes;
}

uint32_t cuda_flights_awaited(const struct cuda_flights *flights)
{
    const struct cuda_flight *oldest = &flights->flight[flights->ended % CUDA_FLIGHTS_NR];
    uint32_t lanes = lanes_of(flights, oldest);
    if (oldest->tell_done && !oldest->direct) {
        lanes |=
            flights->done_loose ? 1u << CUDA_DIRECT_LANE : is_before(flights, CUDA_DIRECT_LANE, flights->done_until);
    }
    return lanes;
}

uint32_t cuda_flights_lanes_before(const struct cuda_flights *flights, uint32_t first,
                                   const struct cuda_footprint *footprint)
{
    uint32_t lanes = 0;
    for (uint32_t i = flights->ended; i != first && (lanes & (lanes - 1)) == 0; i++) {
        if (cuda_footprints_conflict(&flights->footprint[i % CUDA_FLIGHTS_NR], footprint)) {
            lanes |= lanes_of(flights, &flights->flight[i % CUDA_FLIGHTS_NR]);
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
 * after the copies of the launch, if all calls before have ended and the words say so, or the one before is direct too:
 * what is right for that is right for all before it, and it ends first, because all direct calls are on one lane. Every
 * other call moves its lane's own fence, and cuda_flights_tell the words when its turn has come, which is after it saw
 * the end of the direct calls before. So no write of the GPU lands after a newer one of ours; and none of ours after a
 * newer one of the GPU's, because that is enqueued only when all of ours before are done.
 *
 * It is all the same whether the launch writes the words or the driver does behind it: either way that comes after the
 * copies of the launch and before anything of the lane's next one, because launches of one CUDA stream run one after
 * the other, and the lane turns to its other one only when all that it wrote has landed (cuda_flights_choose_side). But
 * a kernel writes its two words in no order: whoever sees the fence cannot know that `done` has landed before something
 * behind the kernel says so. A newer `done` of the GPU lands later all the same, from the same CUDA stream; a newer one
 * of ours waits for that (cuda_flights_prove).
 *
 * A call that is several launches is never direct: they are on several lanes.
 */
static bool may_be_direct(const struct cuda_flights *flights, uint32_t first, unsigned lane)
{
    const struct cuda_flight *before = &flights->flight[(first - 1) % CUDA_FLIGHTS_NR];
    const struct cuda_flight *newest = &flights->flight[(flights->tail - 1) % CUDA_FLIGHTS_NR];
    return flights->fence && lane == CUDA_DIRECT_LANE && !newest->unfinished &&
           (flights->ended == first || before->direct);
}

static void end_by_words(const struct cuda_flights *flights, struct cuda_end *end)
{
    for (uint32_t i = end->first; i != flights->tail; i++) {
        const struct cuda_flight *flight = &flights->flight[i % CUDA_FLIGHTS_NR];
        if (flight->tell_done) {
            end->words.address[0] = flights->done_at;
            end->words.value[0] = flight->sequence;
        }
        end->words.value[1] = flight->sequence;
    }
    end->words.address[1] = flights->fence_at;
}

static struct concat_mla_end end_of_lane(const struct cuda_lane *lane)
{
    return (struct concat_mla_end){.address = {lane->fence->address}, .value = {lane->fence->written + 1}};
}

void cuda_flights_choose_side(struct cuda_flights *flights, uint32_t first)
{
    struct cuda_lane *lane = &flights->lane[CUDA_DIRECT_LANE];
    bool idle = flights->ended == first && lane->seen == lane->fence->written && !flights->done_loose;
    if (idle) {
        cuda_lane_turn(lane, cuda_flights_newest(flights)->tell_done ? CUDA_SIDE_APART : CUDA_SIDE_BESIDE);
    }
}

struct cuda_end cuda_flights_end(const struct cuda_flights *flights, uint32_t first, unsigned lane, bool armed)
{
    const struct cuda_lane *on = &flights->lane[lane];
    struct cuda_end end = {.first = first, .lane = lane, .direct = may_be_direct(flights, first, lane), .armed = armed};
    if (!end.direct) {
        end.words = end_of_lane(on);
        return end;
    }
    end_by_words(flights, &end);
    if (end.words.address[0] != 0) {
        end.behind = (struct concat_mla_end){.address = {flights->wake_at}, .value = {1}};
    }
    return end;
}

/* One further than what the gate writes if it lapses: the copy may be there, and run if that does not. */
void cuda_flights_make_lapse(struct cuda_flights *flights, struct cuda_end *end)
{
    struct cuda_lane *lane = &flights->lane[end->lane];
    lane->fence->written++;
    end->words = end_of_lane(lane);
}

void cuda_flights_expect(struct cuda_flights *flights, const struct cuda_end *end, bool told)
{
    struct cuda_fence *fence = flights->lane[end->lane].fence;
    fence->written += !end->direct || end->armed;
    flights->done_loose |= told && end->direct && end->words.address[0] != 0;
    for (uint32_t i = end->first; i != flights->tail; i++) {
        struct cuda_flight *flight = cuda_flight_at(flights, i);
        flight->direct = end->direct;
        flight->armed = end->armed;
        if (!end->direct || end->armed) {
            flight->until[end->lane] = fence->written;
        }
    }
}

/* There is a call whose `done` is ours to write. */
static bool has_done_to_tell(const struct cuda_flights *flights)
{
    for (uint32_t i = flights->ended; i != flights->tail; i++) {
        const struct cuda_flight *flight = &flights->flight[i % CUDA_FLIGHTS_NR];
        if (flight->tell_done && !flight->direct) {
            return true;
        }
    }
    return false;
}

int cuda_flights_prove(struct cuda_flights *flights)
{
    struct cuda_lane *lane = &flights->lane[CUDA_DIRECT_LANE];
    if (!flights->done_loose || !has_done_to_tell(flights)) {
        return CUDA_RESULT_OK;
    }
    struct concat_mla_end end = end_of_lane(lane);
    flights->done_until = ++lane->fence->written;
    flights->done_loose = false;
    return cuda_lane_write(lane, &end);
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

/* An armed launch moves either the fence of the words or that of its lane, and the lane counts on its own. This one has
 * run; nothing that is behind it writes there. */
static void pass_lapse(struct cuda_lane *lane, const struct cuda_flight *flight)
{
    lane->seen = flight->until[CUDA_DIRECT_LANE];
    atomic_store_explicit(lane->fence->word, lane->seen, memory_order_relaxed);
}

void cuda_flights_tell(struct cuda_flights *flights)
{
    uint64_t fence = 0;
    uint64_t done = 0;
    for (; flights->ended != flights->tail; flights->ended++) {
        struct cuda_flight *flight = cuda_flight_at(flights, flights->ended);
        if (flight->unfinished || cuda_flights_awaited(flights) != 0) {
            break;
        }
        if (flight->direct) {
            flight->lapsed = flights->fence_seen < flight->sequence;
            if (flight->armed && !flight->lapsed) {
                pass_lapse(&flights->lane[CUDA_DIRECT_LANE], flight);
            }
        } else {
            done = flight->tell_done ? flight->sequence : done;
            fence = flight->error.code == MLACAT_OK ? flight->sequence : fence;
        }
    }
    /* Release: who sees a word sees what the calls wrote. */
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
        done[nr].lapsed = flight->lapsed;
        nr++;
    }
    return nr;
}
