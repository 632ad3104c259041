/* SPDX-License-Identifier: Apache-2.0 */
/* _mlacat.Memory: bytes that the daemon sees too, for numpy to make arrays of. It ends with the last of these. */
#include "client.h"

struct memory {
    PyObject_HEAD struct client *client; /* owned */
    struct segment *segment;
};

static PyObject *memory_type;

static void dealloc(PyObject *object)
{
    struct memory *self = (struct memory *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    if (self->segment != NULL) {
        self->client->busy++; /* the connection must not end while the buffer is released without the GIL */
        segments_remove(&self->client->segments, self->segment);
        client_leave(self->client);
    }
    Py_XDECREF((PyObject *)self->client);
    release(object);
    Py_DECREF((PyObject *)type);
}

static PyObject *array_interface(PyObject *object, void *Py_UNUSED(closure))
{
    const struct segment *segment = ((struct memory *)object)->segment;
    return Py_BuildValue("{s:(n),s:s,s:(KO),s:i}", "shape", (Py_ssize_t)(segment->end - segment->begin), "typestr",
                         "|u1", "data", (unsigned long long)segment->begin, Py_False, "version", 3);
}

PyObject *client_alloc(PyObject *object, PyObject *number)
{
    struct client *self = (struct client *)object;
    size_t bytes = PyLong_AsSize_t(number);
    if (PyErr_Occurred() || client_enter(self) < 0) {
        return NULL;
    }
    struct failure failure;
    struct mlacat_buffer *buffer = NULL;
    enum mlacat_status status = MLACAT_NOT_FOUND;
    struct memory *memory = NULL;
    if (self->host[0] == '\0') {
        raise_precondition("the daemon serves no host device; for a GPU allocate with its own library");
        goto leave;
    }
    PyThreadState *thread = PyEval_SaveThread();
    status = mlacat_buffer_alloc(self->connection, self->host, bytes, &buffer);
    if (status != MLACAT_OK) {
        raise_take(&failure, status);
    }
    PyEval_RestoreThread(thread);
    if (status != MLACAT_OK) {
        raise_failure(&failure);
        goto leave;
    }
    uintptr_t begin = (uintptr_t)mlacat_buffer_data(buffer);
    struct segment *segment = segments_add(&self->segments, (struct extent){begin, begin + bytes}, buffer, true);
    if (segment == NULL) {
        goto leave;
    }
    memory = (struct memory *)PyType_GenericAlloc((PyTypeObject *)memory_type, 0);
    if (memory == NULL) {
        segments_remove(&self->segments, segment);
        goto leave;
    }
    memory->segment = segment;
    memory->client = self;
    Py_INCREF(object);
leave:
    client_leave(self);
    return (PyObject *)memory;
}

static PyGetSetDef attributes[] = {
    {"__array_interface__", array_interface, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Memory that the daemon sees too."},
    {Py_tp_dealloc, dealloc},
    {Py_tp_getset, attributes},
    {0, NULL},
};

static PyType_Spec spec = {"mlacat._mlacat.Memory", sizeof(struct memory), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

int memory_add_type(PyObject *module)
{
    if (memory_type == NULL) {
        memory_type = PyType_FromSpec(&spec);
    }
    return memory_type == NULL ? -1 : PyModule_AddObjectRef(module, "Memory", memory_type);
}
