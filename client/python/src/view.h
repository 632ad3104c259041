/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An argument of a call as what it is in memory, whichever library made it: numpy arrays (__array_struct__), tensors of
 * a library with DLPack's exchange table (PyTorch from 2.10 on), older PyTorch tensors (attributes), all else that
 * speaks DLPack. Nothing is copied.
 *
 * Owns:     what DLPack lends, until view_end.
 * Thread:   with the GIL.
 * Lifetime: a view is valid while its object is, and until view_end.
 * Errors:   -1 with a Python exception set.
 */
#ifndef MLACAT_PYTHON_VIEW_H
#define MLACAT_PYTHON_VIEW_H

#include "python.h"

#include <mlacat/mlacat.h>
#include <stdbool.h>

#include "dlpack_abi.h"

#define VIEW_DIMS 8
#define VIEW_KINDS 8

struct view {
    uintptr_t address;
    int device_type; /* DLPACK_CPU, DLPACK_CUDA */
    int device_id;
    enum mlacat_dtype dtype;
    bool read_only;
    int dims;
    int64_t shape[VIEW_DIMS];
    int64_t strides[VIEW_DIMS];             /* elements */
    const struct dlpack_exchange *exchange; /* NULL: another way to the current stream */
    bool is_torch;
    void *lent; /* NULL, or what view_end gives back */
    bool lent_versioned;
};

/* How objects of a type are read, found out once. */
enum view_reader { VIEW_NONE, VIEW_EXCHANGE, VIEW_NUMPY, VIEW_TORCH, VIEW_DLPACK };
struct view_kind {
    PyTypeObject *type; /* owned */
    enum view_reader reader;
    const struct dlpack_exchange *exchange;
};
/* The types seen last; zeroed at first. */
struct view_kinds {
    struct view_kind kind[VIEW_KINDS];
    unsigned next;
};

/* `name` is the argument's, for messages. `stream`: the CUDA stream that the call is ordered on, for producers that
 * need to know (None: theirs). */
int view_read(struct view_kinds *kinds, PyObject *object, const char *name, PyObject *stream, struct view *view);
void view_end(struct view *view);

int view_read_numpy(PyObject *object, const char *name, struct view *view);
int view_read_torch(PyObject *object, const char *name, struct view *view);
int view_read_exchange(const struct dlpack_exchange *exchange, PyObject *object, const char *name, struct view *view);
int view_read_dlpack(PyObject *object, const char *name, PyObject *stream, struct view *view);
/* For readers: a refusal of the argument's dtype. */
int view_refuse_dtype(const char *name, PyObject *dtype);

#endif
