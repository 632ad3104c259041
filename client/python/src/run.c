/* SPDX-License-Identifier: Apache-2.0 */
/* The path of a call. */
#include <string.h>

#include "client.h"

#define ATTEMPTS 3

struct work {
    const struct shape_rule *rule;
    PyObject *stream; /* None: the current one */
    void *cuda_stream;
    struct view views[OPERANDS];
    struct mlacat_call call;
    struct extent extents[OPERANDS];
    struct segment *segments[OPERANDS]; /* pinned */
    int large;                          /* the operand that is too large for one registration */
};

static const struct shape_rule *find_rule(PyObject *number)
{
    unsigned long index = PyLong_AsUnsignedLong(number);
    if (index >= shape_rules_nr) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_ValueError, "there is no rule %lu", index);
        }
        return NULL;
    }
    return &shape_rules[index];
}

static void end_views(struct work *work)
{
    for (int k = 0; k < OPERANDS; k++) {
        view_end(&work->views[k]);
    }
}

/* args: rule, output, first input, second input, and a stream where nr is 5. */
static int read_arguments(struct work *work, struct view_kinds *kinds, PyObject *const *args, Py_ssize_t nr)
{
    memset(work->views, 0, sizeof(work->views));
    if (nr != 4 && nr != 5) {
        PyErr_Format(PyExc_TypeError, "4 or 5 arguments are taken, %zd were given", nr);
        return -1;
    }
    work->rule = find_rule(args[0]);
    work->stream = nr == 5 ? args[4] : Py_None;
    if (work->rule == NULL) {
        return -1;
    }
    for (int k = 0; k < OPERANDS; k++) {
        if (view_read(kinds, args[k + 1], work->rule->names[k], work->stream, &work->views[k]) < 0) {
            end_views(work);
            return -1;
        }
    }
    if (shape_call(work->rule, work->views, &work->call) < 0) {
        end_views(work);
        return -1;
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------------------- memory */

static void unpin(struct work *work, int nr)
{
    for (int k = 0; k < nr; k++) {
        segment_unpin(work->segments[k]);
    }
}

static int refuse_host_memory(const struct shape_rule *rule, int operand)
{
    return raise_precondition("%s is memory that the daemon does not see; make the array with Client.empty() of this "
                              "client, and fill it there",
                              rule->names[operand]);
}

/* What the driver cannot tell is no capture: the call itself will have its error. */
static bool is_capturing(const struct work *work)
{
    int capturing = 0;
    PyThreadState *thread = PyEval_SaveThread(); /* the driver may wait for a callback in Python */
    enum mlacat_status status =
        mlacat_is_capturing((const void *)work->views[0].address, work->cuda_stream, &capturing);
    PyEval_RestoreThread(thread);
    return status == MLACAT_OK && capturing != 0;
}

/* The one around an operand that is in none yet. NULL: as segments_register. */
static struct segment *make_segment(struct client *self, const struct work *work, int operand, bool *too_large)
{
    if (work->views[0].device_type == DLPACK_CPU) {
        refuse_host_memory(work->rule, operand);
        return NULL;
    }
    if (is_capturing(work)) {
        raise_capture();
        return NULL;
    }
    return segments_register(&self->segments, self->connection, &work->extents[operand], too_large);
}

/* Finds or makes the buffers of all operands, and pins them. -1: exception, or *too_large, as segments_register;
 * work->large is that operand then. */
static int resolve(struct client *self, struct work *work, bool *too_large)
{
    for (int k = 0; k < OPERANDS; k++) {
        struct mlacat_tensor *tensor = &work->call.operand[k];
        struct extent *extent = &work->extents[k];
        struct segment *segment = NULL;
        if (tensor->shape[2] == 0) {
            segment = work->segments[0]; /* no byte of it is used, and any buffer will do; the output has bytes */
            segment_pin(segment);
            work->segments[k] = segment;
            tensor->buffer = segment->buffer;
            continue;
        }
        if (shape_extent(work->rule, k, &work->views[k], &work->call, extent) < 0) {
            unpin(work, k);
            return -1;
        }
        segment = segments_find(&self->segments, extent);
        if (segment != NULL) {
            segment_pin(segment);
        } else {
            segment = make_segment(self, work, k, too_large);
        }
        if (segment == NULL) {
            work->large = k;
            unpin(work, k);
            return -1;
        }
        work->segments[k] = segment;
        tensor->buffer = segment->buffer;
        tensor->offset_bytes = work->views[k].address - segment->begin;
    }
    return 0;
}

static void forget(struct client *self, const struct work *work)
{
    for (int k = 0; k < OPERANDS; k++) {
        if (work->call.operand[k].shape[2] != 0) {
            segments_forget(&self->segments, &work->extents[k]);
        }
    }
}

/* ---------------------------------------------------------------------------------------------------- host device */

static enum mlacat_status run_in(struct lane *lane, const struct work *work, struct failure *failure, bool *broken)
{
    enum mlacat_status status;
    *broken = false;
    PyThreadState *thread = PyEval_SaveThread();
    status = mlacat_run(lane->stream, &work->call, NULL);
    if (status != MLACAT_OK) {
        raise_take(failure, status);
        *broken = mlacat_stream_status(lane->stream) != MLACAT_OK;
    }
    PyEval_RestoreThread(thread);
    return status;
}

static int run_host(struct client *self, struct work *work)
{
    struct failure failure;
    bool again = true;
    if (resolve(self, work, NULL) < 0) {
        return -1;
    }
    int result = -1;
    for (int attempt = 0; again && attempt < 2; attempt++) {
        bool broken;
        struct lane *lane = lanes_host(&self->lanes, self->connection, self->host);
        if (lane == NULL) {
            break;
        }
        enum mlacat_status status = run_in(lane, work, &failure, &broken);
        /* A stream that did not survive a restart took no call: another one may. */
        again = status == MLACAT_FAILED_PRECONDITION && broken && attempt == 0;
        if (broken) {
            lanes_remove(&self->lanes, lane);
        }
        lane_unpin(lane);
        if (status == MLACAT_OK) {
            result = 0;
        } else if (!again) {
            raise_failure(&failure);
        }
    }
    unpin(work, OPERANDS);
    return result;
}

/* ---------------------------------------------------------------------------------------------------- CUDA device */

/* torch's current stream of a device. */
static PyObject *ask_torch(long device)
{
    PyObject *module = PyImport_ImportModule("mlacat._torch");
    PyObject *number = module == NULL ? NULL : PyObject_CallMethod(module, "current_stream", "l", device);
    Py_XDECREF(module);
    return number;
}

/* DLPack's numbers for streams are those of CUDA: 1 legacy default, 2 per-thread default, else a handle. */
static int find_stream(const struct work *work, void **stream)
{
    const struct view *view = &work->views[0];
    if (work->stream != Py_None) {
        *stream = PyLong_AsVoidPtr(work->stream);
        return PyErr_Occurred() ? -1 : 0;
    }
    *stream = NULL;
    if (view->exchange != NULL && view->exchange->current_stream != NULL) {
        return view->exchange->current_stream(view->device_type, view->device_id, stream);
    }
    if (view->is_torch) {
        PyObject *number = ask_torch(view->device_id);
        if (number == NULL) {
            return -1;
        }
        *stream = PyLong_AsVoidPtr(number);
        Py_DECREF(number);
        return PyErr_Occurred() ? -1 : 0;
    }
    return 0;
}

/* *stream_failed: it is of no use any more, because of this call or one of before. */
static enum mlacat_status submit(struct lane *lane, const struct work *work, struct failure *failure,
                                 bool *stream_failed)
{
    enum mlacat_status status;
    PyThreadState *thread = PyEval_SaveThread();
    status = mlacat_submit_on_stream(lane->stream, &work->call, work->cuda_stream, NULL);
    if (status != MLACAT_OK) {
        raise_take(failure, status);
        /* One that could not be opened again after a restart owes nothing: another is opened. */
        *stream_failed = mlacat_stream_status(lane->stream) != MLACAT_OK && mlacat_error_scope() != MLACAT_SCOPE_CALL;
    }
    PyEval_RestoreThread(thread);
    return status;
}

enum outcome { DONE, AGAIN, TOO_LARGE, RAISED };

/* What to do about a call that was not taken. With a pin on the lane. */
static enum outcome recover(struct client *self, struct work *work, struct lane *lane, const struct failure *failure,
                            bool stream_failed)
{
    if (stream_failed) {
        /* Closing it waits for what may still run, while the caller's arguments are alive. */
        lanes_remove(&self->lanes, lane);
        return failure->status == MLACAT_INTERNAL ? raise_failure(failure) : raise_stream_failed(failure, "this"),
               RAISED;
    }
    if (failure->status == MLACAT_FAILED_PRECONDITION && is_capturing(work)) {
        return raise_capture(), RAISED;
    }
    if (failure->status == MLACAT_FAILED_PRECONDITION) {
        /* Memory that was freed since it was registered, or was gone when the daemon came back; and perhaps a CUDA
         * stream of before that had the same handle. */
        forget(self, work);
        if (failure->scope != MLACAT_SCOPE_BUFFER) {
            lanes_remove(&self->lanes, lane);
        }
        return AGAIN;
    }
    return raise_failure(failure), RAISED;
}

/* The lane of the CUDA stream, opened if there is none yet. With one pin; NULL: exception. */
static struct lane *find_lane(struct client *self, const struct work *work)
{
    int device_id = work->views[0].device_id;
    struct lane *lane = lanes_find(&self->lanes, device_id, work->cuda_stream);
    if (lane == NULL && is_capturing(work)) {
        raise_capture();
    } else if (lane == NULL) {
        lane = lanes_open(&self->lanes, self->connection, device_id, work->cuda_stream,
                          mlacat_buffer_device(work->segments[0]->buffer));
    }
    return lane;
}

static enum outcome try_ordered(struct client *self, struct work *work, struct failure *failure)
{
    bool stream_failed = false;
    bool too_large = false;
    if (resolve(self, work, shape_can_halve(&work->call) ? &too_large : NULL) < 0) {
        return too_large ? TOO_LARGE : RAISED;
    }
    enum outcome outcome = RAISED;
    struct lane *lane = find_lane(self, work);
    if (lane != NULL) {
        if (submit(lane, work, failure, &stream_failed) == MLACAT_OK) {
            outcome = DONE;
        } else {
            outcome = recover(self, work, lane, failure, stream_failed);
        }
        lane_unpin(lane);
    }
    unpin(work, OPERANDS);
    return outcome;
}

static int run_on_stream(struct client *self, struct work *work);

/* As two calls, in order, each of which needs less memory to be registered at a time. */
static int run_halves(struct client *self, const struct work *work)
{
    struct work halves[2] = {*work, *work};
    shape_halve(work->large, &halves[0].call, &halves[1].call, halves[1].views);
    return run_on_stream(self, &halves[0]) < 0 ? -1 : run_on_stream(self, &halves[1]);
}

static int run_on_stream(struct client *self, struct work *work)
{
    struct failure failure;
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        switch (try_ordered(self, work, &failure)) {
        case DONE:
            return 0;
        case AGAIN:
            break;
        case TOO_LARGE:
            return run_halves(self, work);
        case RAISED:
            return -1;
        }
    }
    return raise_failure(&failure);
}

static int run_ordered(struct client *self, struct work *work)
{
    return find_stream(work, &work->cuda_stream) < 0 ? -1 : run_on_stream(self, work);
}

/* ---------------------------------------------------------------------------------------------------- entry points */

static int run(struct client *self, struct work *work)
{
    switch (work->views[0].device_type) {
    case DLPACK_CPU:
        return run_host(self, work);
    case DLPACK_CUDA:
        return run_ordered(self, work);
    default:
        return raise_type_error("%s is on a device of DLPack type %d; memory of the host (1) and of CUDA (2) is taken",
                                work->rule->names[0], work->views[0].device_type);
    }
}

PyObject *client_run(PyObject *object, PyObject *const *args, Py_ssize_t nr)
{
    struct client *self = (struct client *)object;
    struct work work;
    if (read_arguments(&work, &self->kinds, args, nr) < 0) {
        return NULL;
    }
    int result = 0;
    if (!shape_is_empty(&work.call)) {
        result = client_enter(self);
        if (result == 0) {
            result = run(self, &work);
            client_leave(self);
        }
    }
    end_views(&work);
    if (result < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *client_check_arguments(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nr)
{
    static struct view_kinds kinds;
    struct work work;
    if (read_arguments(&work, &kinds, args, nr) < 0) {
        return NULL;
    }
    end_views(&work);
    return PyBool_FromLong(shape_is_empty(&work.call));
}
