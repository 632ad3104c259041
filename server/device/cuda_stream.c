/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_stream.h"

#include <stdlib.h>

#include "clock.h"
#include "cuda_batch.h"
#include "cuda_device.h"
#include "cuda_flights.h"
#include "cuda_memory.h"

/* Launches of one long call that the GPU has at a time: one runs, one waits or runs beside it. */
#define LAUNCHES_AHEAD 2

struct device_stream {
    struct device *device;
    unsigned lane;           /* that had the last launch */
    uint32_t behind;         /* lanes: where the calls are that the newest one goes behind; 0: there are none */
    struct cuda_batch batch; /* pending: the newest call is unfinished */
    uint64_t progress;       /* seen by poll: all fences together */
    uint64_t progress_ns;    /* when it last moved, or the device was found alive; 0: nothing was in flight */
    struct error lost;       /* why it has ended, if it has */
    struct cuda_flights flights;
};

/* ------------------------------------------------------------------------------------------------------ open, close */

void cuda_stream_close(struct device_stream *stream)
{
    cuda_device_enter(stream->device);
    cuda_flights_close(&stream->flights);
    free(stream);
}

enum mlacat_status cuda_stream_open(struct device *device, const struct device_words *words,
                                    struct device_stream **stream, struct error *err)
{
    struct device_stream *made = calloc(1, sizeof(*made));
    if (!made) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service is out of memory: close streams");
    }
    made->device = device;
    cuda_device_enter(device);
    if (cuda_flights_open(&made->flights, device, words, err) != MLACAT_OK) {
        cuda_stream_close(made);
        return err->code;
    }
    *stream = made;
    return MLACAT_OK;
}

/* -------------------------------------------------------------------------------------------------------- launching */

static void check_result(struct device_stream *stream, int result, bool lost, const char *call)
{
    if (lost) {
        cuda_device_fail(stream->device, &stream->lost, result, call, "the stream has ended");
        stream->lost.scope = MLACAT_SCOPE_DEVICE;
    }
}

/* The next launch of the calls from `first` on. Without the words at its end it runs, and nobody will ever know when it
 * has ended: its memory cannot go. */
static int launch(struct device_stream *stream, uint32_t first, unsigned lane)
{
    struct cuda_flights *flights = &stream->flights;
    if (!atomic_load_explicit(&stream->device->stirred, memory_order_relaxed)) {
        atomic_store_explicit(&stream->device->stirred, true, memory_order_relaxed);
    }
    cuda_flights_choose_side(flights, first);
    struct cuda_end end = cuda_flights_end(flights, first, lane, stream->batch.gate.address != 0);
    enum cuda_launched launched;
    if (end.armed) {
        stream->batch.gate.lapsed = flights->lane[lane].fence->address;
        stream->batch.gate.lapsed_value = flights->lane[lane].fence->written + 1;
    }
    int result = cuda_batch_launch(&stream->batch, &flights->lane[lane], &end.words, &launched);
    check_result(stream, result, cuda_error_is_lost(result),
                 launched == CUDA_LAUNCHED_PART ? "cuLaunchKernelEx" : "cuLaunchKernel");
    cuda_flights_newest(flights)->unfinished = stream->batch.pending;
    stream->lane = lane;
    if (launched == CUDA_LAUNCHED_PART && stream->lost.code == MLACAT_OK) {
        cuda_flights_make_lapse(flights, &end);
    } else if (result != CUDA_RESULT_OK) {
        return result;
    }
    bool told = launched == CUDA_LAUNCHED_TELLS;
    int written = cuda_lane_write(&flights->lane[lane], told ? &end.behind : &end.words);
    if (written == CUDA_RESULT_OK) {
        cuda_flights_expect(flights, &end, told);
        written = cuda_flights_prove(flights);
    } else if (end.armed) {
        flights->lane[lane].fence->written++; /* the gate may write that yet */
    }
    check_result(stream, written, written != CUDA_RESULT_OK, "cuStreamWriteValue64");
    return CUDA_RESULT_OK;
}

static void refuse(struct device_stream *stream, int result, enum mlacat_scope scope, struct error *err)
{
    cuda_device_fail(stream->device, err, result, "cuLaunchKernel", "the call was not launched");
    err->scope = scope;
}

/* Behind what it must not overtake; else the lanes take turns, so that one launch begins while the one before it ends
 * and tells of it. What is alone can be direct, on the one lane for that. */
static unsigned choose_lane(const struct device_stream *stream, uint32_t behind, bool alone)
{
    if (behind != 0) {
        return (unsigned)__builtin_ctz(behind);
    }
    return alone ? CUDA_DIRECT_LANE : (stream->lane + 1) % CUDA_LANES;
}

/*
 * Launches of the newest call, a long one, as many as may be given ahead, so that the GPU is never idle and never far
 * ahead of us. When one fails others may have written: the call has failed when those have ended.
 */
static void advance(struct device_stream *stream)
{
    struct cuda_flights *flights = &stream->flights;
    uint32_t number = flights->tail - 1;
    uint64_t ahead = 0;
    for (unsigned i = 0; i < CUDA_LANES; i++) {
        ahead += flights->lane[i].fence->written - flights->lane[i].seen;
    }
    for (; stream->batch.pending && ahead < LAUNCHES_AHEAD && stream->lost.code == MLACAT_OK; ahead++) {
        unsigned lane = choose_lane(stream, flights->ended == number ? 0 : stream->behind, false);
        int result = launch(stream, number, lane);
        if (result != CUDA_RESULT_OK) {
            refuse(stream, result, MLACAT_SCOPE_SESSION, &cuda_flights_newest(flights)->error);
            return;
        }
    }
}

/* Launches the calls from `first` on, which are the batch. DEVICE_ERROR: nothing was launched. */
static enum device_answer launch_batch(struct device_stream *stream, uint32_t first, struct error *err)
{
    struct cuda_flights *flights = &stream->flights;
    if (!stream->batch.pending) {
        return DEVICE_OK; /* they copy nothing, and end in their turn */
    }
    unsigned lane = choose_lane(stream, stream->behind, flights->ended == first);
    int result = launch(stream, first, lane);
    if (stream->lost.code != MLACAT_OK) {
        return DEVICE_OK; /* poll says it */
    }
    if (result != CUDA_RESULT_OK) {
        refuse(stream, result, MLACAT_SCOPE_CALL, err);
        return DEVICE_ERROR;
    }
    advance(stream);
    return DEVICE_OK;
}

/* ------------------------------------------------------------------------------------------------------- submitting */

/* A call may wait behind as much as the GPU does in a moment, not behind more: it could not be withdrawn any more. And
 * not behind one that is unfinished, or has failed and is not reported: the fence would pass it. */
static bool is_full(struct device_stream *stream)
{
    struct cuda_flights *flights = &stream->flights;
    const struct cuda_flight *newest = cuda_flights_newest(flights);
    uint32_t nr = flights->tail - flights->head;
    return nr == CUDA_FLIGHTS_NR || flights->bytes >= stream->device->launch_bytes ||
           (nr > 0 && (newest->unfinished || newest->error.code != MLACAT_OK));
}

/* Is there a lane for the call together with those from `first` on, which are the batch so far? */
static bool has_lane(struct device_stream *stream, uint32_t first, const struct cuda_footprint *footprint)
{
    uint32_t behind = stream->behind | cuda_flights_lanes_before(&stream->flights, first, footprint);
    if ((behind & (behind - 1)) != 0 || cuda_flights_conflict_since(&stream->flights, first, footprint)) {
        return false;
    }
    stream->behind = behind;
    return true;
}

/* The call becomes the newest one, and one of the batch. DEVICE_AGAIN: there is no room, or not in this batch. */
static enum device_answer add(struct device_stream *stream, uint32_t first, const struct device_call *call,
                              struct error *err)
{
    struct cuda_footprint footprint;
    if (is_full(stream)) {
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the device stream has work for a millisecond: poll it first");
        return DEVICE_AGAIN;
    }
    cuda_footprint_init(&footprint, call);
    if (!has_lane(stream, first, &footprint)) {
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the call goes behind two others that end at different times");
        return DEVICE_AGAIN;
    }
    if (cuda_flights_add(&stream->flights, call, &footprint, err) != MLACAT_OK) {
        return DEVICE_ERROR;
    }
    if (!cuda_batch_add(&stream->batch, call)) {
        cuda_flights_drop(&stream->flights);
        return DEVICE_AGAIN;
    }
    cuda_flights_newest(&stream->flights)->unfinished = stream->batch.more;
    return DEVICE_OK;
}

/* As many of the calls as go into one launch. */
static enum device_answer submit_batch(struct device_stream *stream, const struct device_call *calls, uint32_t *nr,
                                       struct error *err)
{
    struct cuda_flights *flights = &stream->flights;
    uint32_t first = flights->tail;
    uint32_t most = *nr;
    enum device_answer answer = DEVICE_OK;
    *nr = 0;
    if (stream->lost.code != MLACAT_OK) {
        *err = stream->lost;
        return DEVICE_ERROR;
    }
    if (stream->batch.pending) {
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "a long call has launches left: poll the device stream first");
        return DEVICE_AGAIN;
    }
    cuda_batch_begin(&stream->batch, stream->device->launch_bytes);
    stream->behind = 0;
    while (flights->tail - first < most && answer == DEVICE_OK) {
        answer = add(stream, first, &calls[flights->tail - first], err);
    }
    if (flights->tail == first) {
        return answer;
    }
    answer = launch_batch(stream, first, err);
    while (answer != DEVICE_OK && flights->tail != first) {
        cuda_flights_drop(flights);
    }
    *nr = flights->tail - first;
    return answer;
}

enum device_answer cuda_stream_submit(struct device_stream *stream, const struct device_call *calls, uint32_t *nr,
                                      struct error *err)
{
    uint32_t taken = 0;
    enum device_answer answer = DEVICE_OK;
    cuda_device_enter(stream->device);
    while (taken < *nr && answer == DEVICE_OK) {
        uint32_t batch = *nr - taken;
        answer = submit_batch(stream, &calls[taken], &batch, err);
        taken += batch;
    }
    *nr = taken;
    return taken > 0 ? DEVICE_OK : answer;
}

static enum device_answer not_quicker(struct error *err)
{
    error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the call is no quicker when it is armed: submit it when its word came");
    return DEVICE_AGAIN;
}

/* Where the GPU is to look for the newest call's word: in its own memory, if the client writes it there too, which it
 * reads in half the time; 0: that memory has gone. */
static cuda_address find_word(struct cuda_flights *flights, const struct device_call *call)
{
    if (!call->ready_memory) {
        return flights->ready_at;
    }
    if (!cuda_memory_pin(call->ready_memory)) {
        return 0;
    }
    cuda_flights_newest(flights)->ready_memory = call->ready_memory;
    return call->ready_memory->base + call->ready_offset;
}

enum device_answer cuda_stream_arm(struct device_stream *stream, const struct device_call *call, uint64_t value,
                                   uint64_t wait_ns, struct error *err)
{
    struct cuda_flights *flights = &stream->flights;
    struct cuda_batch *batch = &stream->batch;
    struct cuda_footprint footprint;
    if (!stream->device->mps || flights->head != flights->tail || batch->pending || stream->lost.code != MLACAT_OK) {
        return not_quicker(err);
    }
    cuda_device_enter(stream->device);
    cuda_footprint_init(&footprint, call);
    if (cuda_flights_add(flights, call, &footprint, err) != MLACAT_OK) {
        return DEVICE_AGAIN;
    }
    cuda_batch_begin(batch, stream->device->launch_bytes);
    cuda_batch_add(batch, call);
    cuda_address word = cuda_batch_can_wait(batch, &stream->device->kernels) ? find_word(flights, call) : 0;
    if (word != 0) {
        batch->gate = (struct concat_mla_gate){.address = word, .value = value, .wait_ns = wait_ns};
        if (launch(stream, flights->tail - 1, CUDA_DIRECT_LANE) == CUDA_RESULT_OK || stream->lost.code != MLACAT_OK) {
            return DEVICE_OK; /* if it is lost, poll says it */
        }
    }
    batch->pending = false;
    cuda_flights_drop(flights);
    return not_quicker(err);
}

/* ---------------------------------------------------------------------------------------------------------- polling */

/* `progress` stands still? A kernel that faulted writes nothing; only the driver knows. A fault ends all lanes, so it
 * is enough to ask about one that has something. */
static void check_alive(struct device_stream *stream, uint64_t progress)
{
    struct cuda_flights *flights = &stream->flights;
    uint32_t lanes = cuda_flights_awaited(flights);
    if (progress != stream->progress) {
        stream->progress = progress;
        stream->progress_ns = 0;
        return;
    }
    uint64_t now_ns = clock_now_ns();
    if (stream->progress_ns == 0) {
        stream->progress_ns = now_ns;
    }
    if (lanes == 0 || now_ns - stream->progress_ns < CUDA_FENCE_SILENCE_NS) {
        return;
    }
    stream->progress_ns = now_ns;
    cuda_device_enter(stream->device);
    int result = stream->device->cuda->cuStreamQuery(flights->lane[__builtin_ctz(lanes)].stream);
    check_result(stream, result, result != CUDA_RESULT_OK && result != CUDA_RESULT_NOT_READY, "cuStreamQuery");
}

static void find_ended(struct device_stream *stream)
{
    struct cuda_flights *flights = &stream->flights;
    uint64_t progress = cuda_flights_look(flights);
    cuda_flights_tell(flights);
    int proved = cuda_flights_prove(flights); /* for a signal, with which nothing was launched */
    check_result(stream, proved, proved != CUDA_RESULT_OK, "cuStreamWriteValue64");
    if (stream->batch.pending) {
        cuda_device_enter(stream->device);
        advance(stream);
    }
    if (flights->ended == flights->tail) {
        stream->progress_ns = 0;
    } else {
        check_alive(stream, progress);
    }
}

int cuda_stream_poll(struct device_stream *stream, struct device_completion *done, int max, struct error *err)
{
    if (stream->lost.code == MLACAT_OK && stream->flights.ended != stream->flights.tail) {
        find_ended(stream);
    }
    if (stream->lost.code != MLACAT_OK) {
        *err = stream->lost;
        return -1;
    }
    return cuda_flights_reap(&stream->flights, done, max);
}
