/* SPDX-License-Identifier: Apache-2.0 */
#include "view.h"

#include <string.h>

#include "raise.h"

#define DTYPES_KNOWN 8

/* An attribute of the object, by a name that becomes a Python string once. */
static PyObject *attribute(PyObject *object, PyObject **kept, const char *name)
{
    if (*kept == NULL) {
        *kept = PyUnicode_InternFromString(name);
    }
    return *kept == NULL ? NULL : PyObject_GetAttr(object, *kept);
}

/* ---------------------------------------------------------------------------------------------------- numpy */

/* What the capsule of __array_struct__ points to (the array interface, version 3). */
struct array_struct {
    int two;
    int dims;
    char type_kind;
    int item_bytes;
    int flags;
    Py_ssize_t *shape;
    Py_ssize_t *strides; /* bytes */
    void *data;
    PyObject *description;
};
enum { ARRAY_NATIVE_ORDER = 0x200, ARRAY_WRITABLE = 0x400 };

int view_refuse_dtype(const char *name, PyObject *dtype)
{
    return raise_type_error("%s has dtype %S; bfloat16, float16, float8_e4m3, float8_e5m2 and float32 can be "
                            "concatenated (numpy: uint16 and uint8 are taken as bfloat16 and float8_e4m3)",
                            name, dtype);
}

/* Types that numpy itself does not know come from ml_dtypes; their names tell. */
static enum mlacat_dtype dtype_of_name(const char *text)
{
    static const struct {
        const char *name;
        enum mlacat_dtype dtype;
    } names[] = {
        {"bfloat16", MLACAT_DTYPE_BF16},        {"float16", MLACAT_DTYPE_FP16},
        {"float32", MLACAT_DTYPE_FP32},         {"float8_e4m3fn", MLACAT_DTYPE_FP8_E4M3},
        {"float8_e5m2", MLACAT_DTYPE_FP8_E5M2}, {"float8_e4m3", MLACAT_DTYPE_FP8_E4M3},
    };
    const char *dot = strrchr(text, '.');
    text = dot == NULL ? text : dot + 1;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(names[i].name, text) == 0) {
            return names[i].dtype;
        }
    }
    return MLACAT_DTYPE_END_;
}

/* Objects that say a dtype are few, and the same each time; turning one into text is slow. */
static int dtype_of_object(PyObject *dtype, const char *name, enum mlacat_dtype *out)
{
    static struct {
        PyObject *object; /* owned */
        enum mlacat_dtype dtype;
    } known[DTYPES_KNOWN];
    static unsigned next;
    for (unsigned i = 0; i < DTYPES_KNOWN; i++) {
        if (known[i].object == dtype) {
            *out = known[i].dtype;
            return 0;
        }
    }
    PyObject *text = PyObject_Str(dtype);
    const char *utf8 = text == NULL ? NULL : PyUnicode_AsUTF8AndSize(text, NULL);
    if (utf8 == NULL) {
        Py_XDECREF(text);
        return -1;
    }
    *out = dtype_of_name(utf8);
    Py_DECREF(text);
    if (*out == MLACAT_DTYPE_END_) {
        return view_refuse_dtype(name, dtype);
    }
    unsigned i = next++ % DTYPES_KNOWN;
    PyObject *forgotten = known[i].object;
    Py_INCREF(dtype);
    known[i].object = dtype;
    known[i].dtype = *out;
    Py_XDECREF(forgotten); /* may run Python code, which finds the table in order */
    return 0;
}

static enum mlacat_dtype dtype_of_kind(char kind, int bytes)
{
    if (kind == 'f') {
        return bytes == 4 ? MLACAT_DTYPE_FP32 : bytes == 2 ? MLACAT_DTYPE_FP16 : MLACAT_DTYPE_END_;
    }
    if (kind == 'u') {
        return bytes == 2 ? MLACAT_DTYPE_BF16 : bytes == 1 ? MLACAT_DTYPE_FP8_E4M3 : MLACAT_DTYPE_END_;
    }
    return MLACAT_DTYPE_END_;
}

static int fill_numpy(const struct array_struct *array, PyObject *object, const char *name, struct view *view)
{
    if (array->two != 2 || array->dims > VIEW_DIMS || !(array->flags & ARRAY_NATIVE_ORDER)) {
        return raise_type_error("%s: an array of %d dimensions in %s byte order; at most %d, native", name, array->dims,
                                array->flags & ARRAY_NATIVE_ORDER ? "native" : "foreign", VIEW_DIMS);
    }
    view->dtype = dtype_of_kind(array->type_kind, array->item_bytes);
    if (view->dtype == MLACAT_DTYPE_END_) {
        static PyObject *kept;
        PyObject *dtype = attribute(object, &kept, "dtype");
        int result = dtype == NULL ? -1 : dtype_of_object(dtype, name, &view->dtype);
        Py_XDECREF(dtype);
        if (result < 0) {
            return -1;
        }
    }
    view->address = (uintptr_t)array->data;
    view->device_type = DLPACK_CPU;
    view->read_only = !(array->flags & ARRAY_WRITABLE);
    view->dims = array->dims;
    for (int i = 0; i < array->dims; i++) {
        view->shape[i] = array->shape[i];
        view->strides[i] = array->strides[i] / array->item_bytes;
        if (array->strides[i] % array->item_bytes != 0 && array->shape[i] > 1) {
            return raise_argument_error("%s has a stride of %zd bytes, which is no multiple of its %d byte elements",
                                        name, array->strides[i], array->item_bytes);
        }
    }
    return 0;
}

int view_read_numpy(PyObject *object, const char *name, struct view *view)
{
    static PyObject *kept;
    PyObject *capsule = attribute(object, &kept, "__array_struct__");
    const struct array_struct *array = capsule == NULL ? NULL : PyCapsule_GetPointer(capsule, NULL);
    int result = array == NULL ? -1 : fill_numpy(array, object, name, view);
    Py_XDECREF(capsule);
    return result;
}

/* ---------------------------------------------------------------------------------------------------- old PyTorch */

/* A tuple of integers. */
static int read_tuple(PyObject *tuple, int64_t *out, int *nr)
{
    Py_ssize_t size = tuple == NULL ? -1 : PyTuple_Size(tuple);
    for (Py_ssize_t i = 0; i < size && i < VIEW_DIMS; i++) {
        out[i] = PyLong_AsLongLong(PyTuple_GetItem(tuple, i));
    }
    Py_XDECREF(tuple);
    *nr = (int)size;
    return size < 0 || PyErr_Occurred() ? -1 : 0;
}

static int read_number(PyObject *object, const char *method, uintptr_t *out)
{
    PyObject *number = PyObject_CallMethod(object, method, NULL);
    *out = number == NULL ? 0 : (uintptr_t)PyLong_AsVoidPtr(number);
    Py_XDECREF(number);
    return PyErr_Occurred() ? -1 : 0;
}

int view_read_torch(PyObject *object, const char *name, struct view *view)
{
    int strides_nr = 0;
    uintptr_t device = 0;
    PyObject *is_cuda = PyObject_GetAttrString(object, "is_cuda");
    PyObject *dtype = PyObject_GetAttrString(object, "dtype");
    int result = is_cuda == NULL || dtype == NULL ? -1 : dtype_of_object(dtype, name, &view->dtype);
    view->device_type = is_cuda == Py_True ? DLPACK_CUDA : DLPACK_CPU;
    Py_XDECREF(is_cuda);
    Py_XDECREF(dtype);
    if (result < 0 || read_number(object, "data_ptr", &view->address) < 0 ||
        read_tuple(PyObject_GetAttrString(object, "shape"), view->shape, &view->dims) < 0 ||
        read_tuple(PyObject_CallMethod(object, "stride", NULL), view->strides, &strides_nr) < 0 ||
        (view->device_type == DLPACK_CUDA && read_number(object, "get_device", &device) < 0)) {
        return -1;
    }
    if (view->dims > VIEW_DIMS || strides_nr != view->dims) {
        return raise_argument_error("%s has %d dimensions; at most %d", name, view->dims, VIEW_DIMS);
    }
    view->device_id = (int)device;
    view->is_torch = true;
    return 0;
}

/* ---------------------------------------------------------------------------------------------------- any */

static bool has(PyObject *object, const char *attribute)
{
    PyObject *value = PyObject_GetAttrString(object, attribute);
    if (value == NULL) {
        PyErr_Clear();
        return false;
    }
    Py_DECREF(value);
    return true;
}

/* NULL: the type has no such table, or one that is not ours to read. */
static const struct dlpack_exchange *exchange_of(PyTypeObject *type)
{
    PyObject *capsule = PyObject_GetAttrString((PyObject *)type, "__dlpack_c_exchange_api__");
    const struct dlpack_exchange *table = NULL;
    if (capsule != NULL && PyCapsule_IsValid(capsule, "dlpack_exchange_api")) {
        table = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    }
    Py_XDECREF(capsule);
    PyErr_Clear();
    return table != NULL && table->version.major == 1 && table->tensor_of != NULL ? table : NULL;
}

static bool is_of_torch(PyObject *type)
{
    PyObject *module = PyObject_GetAttrString(type, "__module__");
    const char *text = module != NULL && PyUnicode_Check(module) ? PyUnicode_AsUTF8AndSize(module, NULL) : NULL;
    bool is = text != NULL && (strncmp(text, "torch.", 6) == 0 || strcmp(text, "torch") == 0);
    Py_XDECREF(module);
    PyErr_Clear();
    return is;
}

/* Also a class that a program derives from torch.Tensor: calls on it go by torch's current stream. */
static bool is_torch_type(PyTypeObject *type)
{
    PyObject *bases = PyObject_GetAttrString((PyObject *)type, "__mro__");
    Py_ssize_t nr = bases == NULL ? 0 : PyTuple_Size(bases);
    bool is = false;
    for (Py_ssize_t i = 0; i < nr && !is; i++) {
        is = is_of_torch(PyTuple_GetItem(bases, i));
    }
    Py_XDECREF(bases);
    PyErr_Clear();
    return is;
}

/* torch may have been imported after this package: its first tensor tells. */
static void register_torch_ops(PyObject *object)
{
    PyObject *module = PyImport_ImportModule("mlacat._torch");
    PyObject *result = module == NULL ? NULL : PyObject_CallMethod(module, "register", NULL);
    if (result == NULL) {
        PyErr_WriteUnraisable(object); /* the call itself does not need them */
    }
    Py_XDECREF(result);
    Py_XDECREF(module);
}

static struct view_kind find_kind(struct view_kinds *kinds, PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    for (unsigned i = 0; i < VIEW_KINDS; i++) {
        if (kinds->kind[i].type == type) {
            return kinds->kind[i];
        }
    }
    struct view_kind found = {.type = type, .exchange = exchange_of(type)};
    bool is_torch = is_torch_type(type);
    if (is_torch) {
        register_torch_ops((PyObject *)type);
    }
    if (found.exchange != NULL) {
        found.reader = VIEW_EXCHANGE;
    } else if (is_torch) {
        found.reader = VIEW_TORCH;
    } else if (has(object, "__array_struct__")) {
        found.reader = VIEW_NUMPY;
    } else if (has(object, "__dlpack__")) {
        found.reader = VIEW_DLPACK;
    }
    struct view_kind *kind = &kinds->kind[kinds->next++ % VIEW_KINDS];
    PyObject *forgotten = (PyObject *)kind->type;
    Py_INCREF((PyObject *)type);
    *kind = found;
    Py_XDECREF(forgotten); /* may run Python code, which finds the table in order */
    return found;
}

int view_read(struct view_kinds *kinds, PyObject *object, const char *name, PyObject *stream, struct view *view)
{
    struct view_kind kind = find_kind(kinds, object);
    *view = (struct view){.device_type = DLPACK_CPU};
    switch (kind.reader) {
    case VIEW_EXCHANGE:
        return view_read_exchange(kind.exchange, object, name, view);
    case VIEW_NUMPY:
        return view_read_numpy(object, name, view);
    case VIEW_TORCH:
        return view_read_torch(object, name, view);
    case VIEW_DLPACK:
        return view_read_dlpack(object, name, stream, view);
    case VIEW_NONE:
        break;
    }
    return raise_type_error(
        "%s is a %S; give a torch tensor, a numpy array of Client.empty, or an array with __dlpack__", name,
        Py_TYPE(object));
}
