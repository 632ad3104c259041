/* SPDX-License-Identifier: Apache-2.0 */
#include "raise.h"
#include "view.h"

static enum mlacat_dtype dtype_of(const struct dlpack_tensor *tensor)
{
    int code = tensor->type_code;
    int bits = tensor->type_lanes == 1 ? tensor->type_bits : 0;
    if (code == DLPACK_FLOAT && (bits == 16 || bits == 32)) {
        return bits == 16 ? MLACAT_DTYPE_FP16 : MLACAT_DTYPE_FP32;
    }
    if (code == DLPACK_BFLOAT && bits == 16) {
        return MLACAT_DTYPE_BF16;
    }
    if (code == DLPACK_FLOAT8_E4M3FN && bits == 8) {
        return MLACAT_DTYPE_FP8_E4M3;
    }
    return code == DLPACK_FLOAT8_E5M2 && bits == 8 ? MLACAT_DTYPE_FP8_E5M2 : MLACAT_DTYPE_END_;
}

static int refuse_dtype(PyObject *object, const char *name)
{
    PyObject *dtype = PyObject_GetAttrString(object, "dtype");
    PyErr_Clear();
    int result = view_refuse_dtype(name, dtype != NULL ? dtype : Py_None);
    Py_XDECREF(dtype);
    return result;
}

static int fill(const struct dlpack_tensor *tensor, PyObject *object, const char *name, struct view *view)
{
    if (tensor->dims < 0 || tensor->dims > VIEW_DIMS) {
        return raise_argument_error("%s has %d dimensions; at most %d", name, (int)tensor->dims, VIEW_DIMS);
    }
    view->dtype = dtype_of(tensor);
    if (view->dtype == MLACAT_DTYPE_END_) {
        return refuse_dtype(object, name);
    }
    view->address = (uintptr_t)tensor->data + tensor->byte_offset;
    view->device_type = tensor->device_type == DLPACK_CUDA_HOST ? DLPACK_CPU : tensor->device_type;
    view->device_id = tensor->device_id;
    view->dims = tensor->dims;
    int64_t dense = 1;
    for (int i = tensor->dims - 1; i >= 0; i--) {
        view->shape[i] = tensor->shape[i];
        view->strides[i] = tensor->strides != NULL ? tensor->strides[i] : dense;
        if (__builtin_mul_overflow(dense, tensor->shape[i], &dense)) {
            dense = 0; /* no memory is that large: refused when its end is looked for */
        }
    }
    return 0;
}

/* A library that does not lend its array says so with a BufferError; what else it may say is the program's. */
static int refuse_export(const char *name)
{
    PyObject *error[3];
    if (!PyErr_ExceptionMatches(PyExc_BufferError)) {
        return -1;
    }
    PyErr_Fetch(&error[0], &error[1], &error[2]);
    PyErr_NormalizeException(&error[0], &error[1], &error[2]);
    raise_precondition("%s cannot be lent by its library: %S", name, error[1]);
    for (int i = 0; i < 3; i++) {
        Py_XDECREF(error[i]);
    }
    return -1;
}

int view_read_exchange(const struct dlpack_exchange *exchange, PyObject *object, const char *name, struct view *view)
{
    struct dlpack_tensor tensor;
    if (exchange->tensor_of(object, &tensor) != 0) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_BufferError, "it cannot be read through its library's DLPack table");
        }
        return refuse_export(name);
    }
    view->exchange = exchange;
    return fill(&tensor, object, name, view);
}

/* DLPack has no 0 for CUDA: the legacy default stream, which that is to CUDA, is 1. */
static PyObject *number_stream(PyObject *stream)
{
    int is_zero = stream == Py_None ? 0 : PyObject_Not(stream);
    return is_zero < 0 ? NULL : is_zero ? PyLong_FromLong(1) : Py_NewRef(stream);
}

/* The capsule of obj.__dlpack__, of version 1 if the producer can make one. */
static PyObject *export_capsule(PyObject *object, PyObject *stream)
{
    PyObject *method = PyObject_GetAttrString(object, "__dlpack__");
    PyObject *none = PyTuple_New(0);
    PyObject *newest = Py_BuildValue("{s:O,s:(ii)}", "stream", stream, "max_version", 1, 1);
    PyObject *capsule = NULL;
    if (method != NULL && none != NULL && newest != NULL) {
        capsule = PyObject_Call(method, none, newest);
        if (capsule == NULL && PyErr_ExceptionMatches(PyExc_TypeError) &&
            PyDict_DelItemString(newest, "max_version") == 0) {
            PyErr_Clear();
            capsule = PyObject_Call(method, none, newest);
        }
    }
    Py_XDECREF(method);
    Py_XDECREF(none);
    Py_XDECREF(newest);
    return capsule;
}

/* Takes over what the capsule holds: its name says so afterwards. */
static const struct dlpack_tensor *take(PyObject *capsule, const char *name, struct view *view)
{
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        struct dlpack_managed_versioned *managed = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        if (managed->version.major != 1) {
            raise_type_error("%s: DLPack version %u; 1 is understood", name, (unsigned)managed->version.major);
            return NULL;
        }
        PyCapsule_SetName(capsule, "used_dltensor_versioned");
        view->lent = managed;
        view->lent_versioned = true;
        view->read_only = (managed->flags & (DLPACK_READ_ONLY | DLPACK_IS_COPIED)) != 0;
        return &managed->tensor;
    }
    struct dlpack_managed *managed = PyCapsule_GetPointer(capsule, "dltensor");
    if (managed == NULL) {
        return NULL;
    }
    PyCapsule_SetName(capsule, "used_dltensor");
    view->lent = managed;
    return &managed->tensor;
}

/* The stream argument of __dlpack__ means something for a GPU only. */
static int read_device(PyObject *object, long *type)
{
    PyObject *device = PyObject_CallMethod(object, "__dlpack_device__", NULL);
    PyObject *first = device == NULL ? NULL : PySequence_GetItem(device, 0);
    PyObject *number = first == NULL ? NULL : PyNumber_Long(first); /* some libraries have an enum there */
    *type = number == NULL ? -1 : PyLong_AsLong(number);
    Py_XDECREF(number);
    Py_XDECREF(first);
    Py_XDECREF(device);
    return PyErr_Occurred() ? -1 : 0;
}

int view_read_dlpack(PyObject *object, const char *name, PyObject *stream, struct view *view)
{
    long device = 0;
    if (read_device(object, &device) < 0) {
        return -1;
    }
    PyObject *number = device == DLPACK_CUDA ? number_stream(stream) : Py_NewRef(Py_None);
    PyObject *capsule = number == NULL ? NULL : export_capsule(object, number);
    Py_XDECREF(number);
    if (capsule == NULL) {
        return refuse_export(name);
    }
    const struct dlpack_tensor *tensor = take(capsule, name, view);
    int result = tensor == NULL ? -1 : fill(tensor, object, name, view);
    Py_DECREF(capsule);
    if (result < 0) {
        view_end(view);
    }
    return result;
}

static void give_back(const struct view *view)
{
    if (view->lent_versioned) {
        struct dlpack_managed_versioned *managed = view->lent;
        if (managed->deleter != NULL) {
            managed->deleter(managed);
        }
    } else {
        struct dlpack_managed *managed = view->lent;
        if (managed->deleter != NULL) {
            managed->deleter(managed);
        }
    }
}

void view_end(struct view *view)
{
    PyObject *error[3];
    if (view->lent == NULL) {
        return;
    }
    /* The producer may run Python code, which must not meet an exception of ours. */
    PyErr_Fetch(&error[0], &error[1], &error[2]);
    give_back(view);
    PyErr_Restore(error[0], error[1], error[2]);
    view->lent = NULL;
}
