/* SPDX-License-Identifier: Apache-2.0 */
/*
 * _mlacat.Client: a connection with its streams and registered memory.
 *
 * A forked child has a Client that connects anew at its first use; arrays of before are no memory of that connection.
 * close() takes effect when no call of another thread is under way, and keeps the connection while arrays of
 * Client.empty live, because their memory ends with it.
 *
 * Owns:     the connection, lanes, segments.
 * Thread:   with the GIL.
 * Lifetime: a Python object.
 * Errors:   a Python exception.
 */
#ifndef MLACAT_PYTHON_CLIENT_H
#define MLACAT_PYTHON_CLIENT_H

#include "lanes.h"
#include "segments.h"

#define HOST_UUID_BYTES 64

struct client {
    PyObject_HEAD struct mlacat_client *connection; /* NULL: none any more */
    struct mlacat_connect_options options;
    char *socket;
    char *name;
    char host[HOST_UUID_BYTES]; /* UUID of the host device; "": the daemon has none */
    unsigned long forks;        /* how often the process had been forked when it connected */
    unsigned busy;              /* calls under way */
    bool closed;
    bool settling;
    struct lanes lanes;
    struct segments segments;
    struct view_kinds kinds;
};

/* client_enter succeeds -> client_leave. */
int client_enter(struct client *client);
void client_leave(struct client *client);
/* After something that close() waits for has ended. */
void client_settle(struct client *client);

PyObject *client_run(PyObject *self, PyObject *const *args, Py_ssize_t nr);
PyObject *client_check_arguments(PyObject *module, PyObject *const *args, Py_ssize_t nr);
PyObject *client_alloc(PyObject *self, PyObject *bytes);

/* Adds the type to the module. */
int client_add_type(PyObject *module);
int memory_add_type(PyObject *module);

#endif
