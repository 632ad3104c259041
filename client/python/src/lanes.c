/* SPDX-License-Identifier: Apache-2.0 */
#include "lanes.h"

#include <stdlib.h>

/* cudaStreamPerThread */
#define STREAM_PER_THREAD ((void *)2)

static unsigned long thread_of(void *cuda_stream)
{
    return cuda_stream == STREAM_PER_THREAD ? PyThread_get_thread_ident() : 0;
}

static struct lane *use(struct lanes *lanes, struct lane *lane)
{
    lane->used = ++lanes->clock;
    lane->pins++;
    return lane;
}

struct lane *lanes_find(struct lanes *lanes, int device_id, void *cuda_stream)
{
    unsigned long thread = thread_of(cuda_stream);
    for (unsigned i = 0; i < lanes->nr; i++) {
        struct lane *lane = lanes->at[i];
        if (lane->cuda_stream == cuda_stream && lane->device_id == device_id && lane->thread == thread) {
            return use(lanes, lane);
        }
    }
    return NULL;
}

static void close_stream(struct mlacat_stream *stream)
{
    PyThreadState *thread = PyEval_SaveThread();
    mlacat_stream_close(stream);
    PyEval_RestoreThread(thread);
}

static void close_lane(struct lane *lane)
{
    struct mlacat_stream *stream = lane->stream;
    free(lane);
    close_stream(stream);
}

void lane_unpin(struct lane *lane)
{
    if (--lane->pins == 0 && lane->gone) {
        close_lane(lane);
    }
}

static void take_off(struct lanes *lanes, struct lane *lane)
{
    for (unsigned i = 0; i < lanes->nr; i++) {
        if (lanes->at[i] == lane) {
            lanes->at[i] = lanes->at[--lanes->nr];
            lanes->host_nr -= lane->device_id < 0;
            lane->gone = true;
            return;
        }
    }
}

void lanes_remove(struct lanes *lanes, struct lane *lane)
{
    take_off(lanes, lane);
}

/* Whether a call of it failed that nobody was told of. One that is of no use otherwise, after a restart, owes nothing.
 * Without the GIL, as a submit may hold what this waits for, while the driver waits for Python: with a pin. */
static bool has_failed(struct lane *lane, struct failure *failure)
{
    PyThreadState *thread = PyEval_SaveThread();
    enum mlacat_status status = mlacat_stream_status(lane->stream);
    if (status != MLACAT_OK) {
        raise_take(failure, status);
    }
    PyEval_RestoreThread(thread);
    return status != MLACAT_OK && failure->scope != MLACAT_SCOPE_CALL;
}

static struct lane *find_idlest(const struct lanes *lanes)
{
    struct lane *idlest = NULL;
    for (unsigned i = 0; i < lanes->nr; i++) {
        struct lane *lane = lanes->at[i];
        if (lane->pins == 0 && lane->device_id >= 0 && (idlest == NULL || lane->used < idlest->used)) {
            idlest = lane;
        }
    }
    return idlest;
}

/* Closes the lane that was not used for the longest time. False: all are in use, or it has failed, with an exception:
 * nobody would hear of that any more. */
static bool close_idlest(struct lanes *lanes)
{
    struct failure failure;
    struct lane *idlest = find_idlest(lanes);
    if (idlest == NULL) {
        return false;
    }
    idlest->pins++;
    bool failed = has_failed(idlest, &failure);
    take_off(lanes, idlest);
    lane_unpin(idlest); /* closed now, or by another thread that has begun to use it meanwhile */
    if (failed) {
        raise_stream_failed(&failure, "another");
    }
    return !failed;
}

static enum mlacat_status open_stream(struct mlacat_client *client, const char *device, enum mlacat_transport transport,
                                      struct mlacat_stream **stream, struct failure *failure)
{
    struct mlacat_stream_options options = {.size = sizeof(options), .transport = transport};
    enum mlacat_status status;
    PyThreadState *thread = PyEval_SaveThread();
    status = mlacat_stream_open_with(client, device, &options, stream);
    if (status != MLACAT_OK) {
        raise_take(failure, status);
    }
    PyEval_RestoreThread(thread);
    return status;
}

/* Another thread may have added one like it meanwhile: then there are two, which is right too, and the idler one is
 * closed in time. */
static struct lane *add(struct lanes *lanes, struct mlacat_stream *stream, const struct lane *like)
{
    struct lane *lane = lanes->nr < LANES_MOST + LANES_HOST ? malloc(sizeof(*lane)) : NULL;
    if (lane == NULL) {
        close_stream(stream);
        raise_precondition("%d threads open streams at a time; try again with less of them", LANES_MOST);
        return NULL;
    }
    *lane = *like;
    lane->stream = stream;
    lanes->at[lanes->nr++] = lane;
    lanes->host_nr += lane->device_id < 0;
    return use(lanes, lane);
}

struct lane *lanes_open(struct lanes *lanes, struct mlacat_client *client, int device_id, void *cuda_stream,
                        const char *device)
{
    const struct lane like = {.device_id = device_id, .cuda_stream = cuda_stream, .thread = thread_of(cuda_stream)};
    struct mlacat_stream *stream;
    struct failure failure;
    while (lanes->nr - lanes->host_nr >= LANES_MOST) {
        if (!close_idlest(lanes)) {
            if (!PyErr_Occurred()) {
                raise_precondition("calls are being ordered on %d CUDA streams at a time, which is the limit",
                                   LANES_MOST);
            }
            return NULL;
        }
    }
    while (open_stream(client, device, MLACAT_TRANSPORT_RING, &stream, &failure) != MLACAT_OK) {
        if (failure.status != MLACAT_RESOURCE_EXHAUSTED || !close_idlest(lanes)) {
            if (!PyErr_Occurred()) {
                raise_failure(&failure);
            }
            return NULL;
        }
    }
    return add(lanes, stream, &like);
}

static struct lane *find_host(const struct lanes *lanes)
{
    struct lane *idlest = NULL;
    for (unsigned i = 0; i < lanes->nr; i++) {
        struct lane *lane = lanes->at[i];
        if (lane->device_id < 0 && (idlest == NULL || lane->pins < idlest->pins)) {
            idlest = lane;
        }
    }
    return idlest;
}

struct lane *lanes_host(struct lanes *lanes, struct mlacat_client *client, const char *device)
{
    struct lane *idlest = find_host(lanes);
    if (idlest != NULL && (idlest->pins == 0 || lanes->host_nr >= LANES_HOST)) {
        return use(lanes, idlest);
    }
    struct mlacat_stream *stream;
    struct failure failure;
    enum mlacat_status status = open_stream(client, device, MLACAT_TRANSPORT_AUTO, &stream, &failure);
    if (status == MLACAT_OK && lanes->host_nr < LANES_HOST) {
        return add(lanes, stream, &(struct lane){.device_id = -1});
    }
    /* Others opened theirs meanwhile, or there are no more to be had: take turns. */
    idlest = find_host(lanes);
    if (idlest != NULL) {
        use(lanes, idlest);
    }
    if (status == MLACAT_OK) {
        close_stream(stream);
    } else if (idlest == NULL) {
        raise_failure(&failure);
    }
    return idlest;
}

/* The table may change between two looks. Those of the host have told their callers. */
static struct lane *find_unchecked(const struct lanes *lanes, uint64_t check)
{
    for (unsigned i = 0; i < lanes->nr; i++) {
        if (lanes->at[i]->device_id >= 0 && lanes->at[i]->checked < check) {
            return lanes->at[i];
        }
    }
    return NULL;
}

int lanes_check(struct lanes *lanes)
{
    struct failure failure;
    struct lane *lane;
    uint64_t check = ++lanes->clock;
    while ((lane = find_unchecked(lanes, check)) != NULL) {
        lane->checked = check;
        lane->pins++;
        bool failed = has_failed(lane, &failure) && !lane->gone; /* else another thread has told */
        if (failed) {
            take_off(lanes, lane);
        }
        lane_unpin(lane);
        if (failed) {
            return raise_stream_failed(&failure, "some");
        }
    }
    return 0;
}

unsigned lanes_close(struct lanes *lanes)
{
    for (unsigned i = lanes->nr; i-- > 0;) {
        if (i < lanes->nr && lanes->at[i]->pins == 0) {
            struct lane *lane = lanes->at[i];
            take_off(lanes, lane);
            close_lane(lane);
        }
    }
    return lanes->nr;
}

void lanes_abandon(struct lanes *lanes)
{
    while (lanes->nr > 0) {
        struct lane *lane = lanes->at[--lanes->nr];
        lane->gone = true;
        if (lane->pins == 0) {
            free(lane);
        }
    }
    lanes->host_nr = 0;
}
