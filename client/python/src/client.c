/* SPDX-License-Identifier: Apache-2.0 */
#include "client.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------------- connecting */

static unsigned long forks; /* of this process and those that it comes from */

static void count_fork(void)
{
    forks++;
}

/* The first host device that is available. */
static void find_host(struct client *self)
{
    struct mlacat_device_info device = {.size = sizeof(device)};
    self->host[0] = '\0';
    for (uint32_t i = 0; mlacat_device_info(self->connection, i, &device) == MLACAT_OK; i++) {
        if (strcmp(device.kind, "host") == 0 && device.available) {
            snprintf(self->host, sizeof(self->host), "%s", device.uuid);
            return;
        }
    }
}

static int connect_client(struct client *self)
{
    struct failure failure = {.status = MLACAT_OK};
    enum mlacat_status status;
    struct mlacat_client *connection = NULL;
    PyThreadState *thread = PyEval_SaveThread();
    status = mlacat_connect(&self->options, &connection);
    if (status != MLACAT_OK) {
        raise_take(&failure, status);
    }
    PyEval_RestoreThread(thread);
    if (status != MLACAT_OK) {
        return raise_failure(&failure);
    }
    if (self->connection != NULL) {
        /* Another thread of a forked child has connected meanwhile. */
        thread = PyEval_SaveThread();
        mlacat_disconnect(connection);
        PyEval_RestoreThread(thread);
        return 0;
    }
    self->connection = connection;
    self->forks = forks;
    find_host(self);
    return 0;
}

/* In a forked child nothing of the parent's connection may be used; disconnecting closes descriptors only. */
static int connect_in_child(struct client *self)
{
    lanes_abandon(&self->lanes);
    segments_abandon(&self->segments);
    self->busy = 0;
    self->settling = false;
    if (self->connection != NULL) {
        mlacat_disconnect(self->connection);
        self->connection = NULL;
    }
    return self->closed ? 0 : connect_client(self);
}

int client_enter(struct client *self)
{
    if (self->forks != forks && connect_in_child(self) < 0) {
        return -1;
    }
    if (self->connection == NULL || self->closed) {
        return raise_precondition(self->closed ? "the client is closed; make another" : "the client never connected");
    }
    self->busy++;
    return 0;
}

void client_leave(struct client *self)
{
    self->busy--;
    if (self->closed) {
        client_settle(self);
    }
}

void client_settle(struct client *self)
{
    if (!self->closed || self->busy > 0 || self->settling || self->connection == NULL || self->forks != forks) {
        return;
    }
    self->settling = true;
    /* Both let others run, which may release memory by now: the last of them comes here again. */
    if (lanes_close(&self->lanes) == 0 && segments_drop(&self->segments) == 0 && self->busy == 0) {
        struct mlacat_client *connection = self->connection;
        self->connection = NULL;
        PyThreadState *thread = PyEval_SaveThread();
        mlacat_disconnect(connection);
        PyEval_RestoreThread(thread);
    }
    self->settling = false;
}

/* ---------------------------------------------------------------------------------------------------- the type */

static char *copy_text(PyObject *text, int *result)
{
    const char *utf8 = text == NULL || text == Py_None ? NULL : PyUnicode_AsUTF8AndSize(text, NULL);
    char *copy = utf8 == NULL ? NULL : strdup(utf8);
    if (text != NULL && text != Py_None && copy == NULL) {
        *result = -1;
        if (!PyErr_Occurred()) {
            PyErr_NoMemory();
        }
    }
    return copy;
}

static int init(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"socket", "name", "connect_timeout_ms", "reconnect_timeout_ms", "spin_us", NULL};
    struct client *self = (struct client *)object;
    PyObject *socket = NULL;
    PyObject *name = NULL;
    unsigned int connect_ms = 0;
    unsigned int reconnect_ms = 0;
    unsigned int spin_us = 0;
    int result = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|OO$III", names, &socket, &name, &connect_ms, &reconnect_ms,
                                     &spin_us)) {
        return -1;
    }
    if (self->connection != NULL) {
        return raise_precondition("the client is connected already");
    }
    free(self->socket);
    free(self->name);
    self->socket = copy_text(socket, &result);
    self->name = copy_text(name, &result);
    self->options = (struct mlacat_connect_options){.size = sizeof(self->options),
                                                    .socket = self->socket,
                                                    .name = self->name,
                                                    .connect_timeout_ms = connect_ms,
                                                    .reconnect_timeout_ms = reconnect_ms,
                                                    .spin_us = spin_us};
    return result < 0 ? -1 : connect_client(self);
}

static void dealloc(PyObject *object)
{
    struct client *self = (struct client *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    self->closed = true;
    if (self->forks != forks) {
        connect_in_child(self);
    }
    client_settle(self);
    for (unsigned i = 0; i < VIEW_KINDS; i++) {
        Py_XDECREF((PyObject *)self->kinds.kind[i].type);
    }
    free(self->segments.at);
    free(self->socket);
    free(self->name);
    release(object);
    Py_DECREF((PyObject *)type);
}

/* The last one who can be told of a call that has failed. */
static PyObject *close_client(PyObject *object, PyObject *Py_UNUSED(none))
{
    struct client *self = (struct client *)object;
    PyObject *error[3];
    if (self->forks != forks) {
        self->closed = true;
        connect_in_child(self);
    } else if (self->connection != NULL && !self->closed) {
        self->busy++; /* others run while it looks, and must not end the connection */
        lanes_check(&self->lanes);
        self->busy--;
    }
    self->closed = true;
    PyErr_Fetch(&error[0], &error[1], &error[2]);
    client_settle(self);
    if (error[0] != NULL) {
        PyErr_Restore(error[0], error[1], error[2]);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *check(PyObject *object, PyObject *Py_UNUSED(none))
{
    struct client *self = (struct client *)object;
    if (client_enter(self) < 0) {
        return NULL;
    }
    int result = lanes_check(&self->lanes);
    client_leave(self);
    if (result < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *reclaim(PyObject *object, PyObject *number)
{
    struct client *self = (struct client *)object;
    int64_t timeout_us = PyLong_AsLongLong(number);
    struct failure failure;
    enum mlacat_status status;
    if (PyErr_Occurred() || client_enter(self) < 0) {
        return NULL;
    }
    PyThreadState *thread = PyEval_SaveThread();
    status = mlacat_reclaim(self->connection, timeout_us);
    if (status != MLACAT_OK) {
        raise_take(&failure, status);
    }
    PyEval_RestoreThread(thread);
    client_leave(self);
    if (status != MLACAT_OK) {
        raise_failure(&failure);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *list_devices(struct mlacat_client *connection)
{
    struct mlacat_device_info device = {.size = sizeof(device)};
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list != NULL && mlacat_device_info(connection, i, &device) == MLACAT_OK; i++) {
        PyObject *row =
            Py_BuildValue("{s:s,s:s,s:s,s:O,s:s}", "uuid", device.uuid, "kind", device.kind, "name", device.name,
                          "available", device.available ? Py_True : Py_False, "reason", device.reason);
        if (row == NULL || PyList_Append(list, row) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *devices(PyObject *object, PyObject *Py_UNUSED(none))
{
    struct client *self = (struct client *)object;
    if (client_enter(self) < 0) {
        return NULL;
    }
    PyObject *list = list_devices(self->connection);
    client_leave(self);
    return list;
}

/* By a connection of its own: the client's would wait for reconnect_timeout_ms. */
static PyObject *probe(PyObject *object, PyObject *number)
{
    struct mlacat_connect_options options = ((struct client *)object)->options;
    struct mlacat_client *connection = NULL;
    options.connect_timeout_ms = (uint32_t)PyLong_AsUnsignedLong(number);
    if (PyErr_Occurred()) {
        return NULL;
    }
    PyThreadState *thread = PyEval_SaveThread();
    enum mlacat_status status = mlacat_connect(&options, &connection);
    PyEval_RestoreThread(thread);
    if (status != MLACAT_OK) {
        return PyList_New(0);
    }
    PyObject *list = list_devices(connection);
    thread = PyEval_SaveThread();
    mlacat_disconnect(connection);
    PyEval_RestoreThread(thread);
    return list;
}

static PyObject *server(PyObject *object, PyObject *Py_UNUSED(none))
{
    struct client *self = (struct client *)object;
    struct mlacat_server_info info = {.size = sizeof(info)};
    if (client_enter(self) < 0) {
        return NULL;
    }
    mlacat_server_info(self->connection, &info);
    client_leave(self);
    return Py_BuildValue("{s:s,s:I,s:I}", "version", info.version, "pid", info.pid, "reconnects", info.reconnects);
}

static PyObject *held(PyObject *object, PyObject *Py_UNUSED(none))
{
    struct client *self = (struct client *)object;
    return Py_BuildValue("{s:I,s:I}", "segments", self->segments.nr, "streams", self->lanes.nr);
}

static PyObject *is_closed(PyObject *object, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((struct client *)object)->closed);
}

#define METHOD(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef methods[] = {
    {"_run", METHOD(client_run), METH_FASTCALL, "_run(rule, out, first, second, stream)"},
    {"_alloc", client_alloc, METH_O, "_alloc(bytes): memory of the host device"},
    {"_reclaim", reclaim, METH_O, "_reclaim(microseconds), negative: without end"},
    {"_probe", probe, METH_O, "_probe(milliseconds): devices() of the daemon that answers by then; [] if none does"},
    {"_held", held, METH_NOARGS, "How many segments and streams the client holds."},
    {"close", close_client, METH_NOARGS,
     "Waits for the ordered calls and ends the connection, or has the last of the other threads' calls do that. Arrays "
     "of empty() stay valid, and the connection ends after the last one. Raises what check() would, when it is done."},
    {"check", check, METH_NOARGS, "Raises StreamFailed if a stream-ordered call has failed that nobody was told of."},
    {"devices", devices, METH_NOARGS, "The devices of the daemon, a dict each."},
    {"server", server, METH_NOARGS, "Version and pid of the daemon, and how often the client connected again."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"closed", is_closed, NULL, "True after close().", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "A connection to mlacatd."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, init},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {0, NULL},
};

static PyType_Spec spec = {"mlacat._mlacat.Client", sizeof(struct client), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                           slots};

int client_add_type(PyObject *module)
{
    static bool watched;
    if (!watched) {
        watched = pthread_atfork(NULL, NULL, count_fork) == 0;
    }
    PyObject *type = PyType_FromSpec(&spec);
    int result = type == NULL ? -1 : PyModule_AddObjectRef(module, "Client", type);
    Py_XDECREF(type);
    return result;
}
