/* SPDX-License-Identifier: Apache-2.0 */
/* The extension mlacat._mlacat; what users see of it is in the package around it. */
#include "client.h"

static int add_tables(PyObject *module)
{
    static const struct {
        const char *name;
        int number;
    } statuses[] = {
#define MLACAT_STATUS(name, number, scope, text) {#name, number},
#include "mlacat_status.def"
    };
    static const struct {
        const char *name;
        int number;
    } scopes[] = {
#define MLACAT_SCOPE(name, number, text) {#name, number},
#include "mlacat_status.def"
    };
    PyObject *status = PyDict_New();
    PyObject *scope = PyDict_New();
    int result = status == NULL || scope == NULL ? -1 : 0;
    for (size_t i = 0; result == 0 && i < sizeof(statuses) / sizeof(statuses[0]); i++) {
        PyObject *number = PyLong_FromLong(statuses[i].number);
        result = number == NULL ? -1 : PyDict_SetItemString(status, statuses[i].name, number);
        Py_XDECREF(number);
    }
    for (size_t i = 0; result == 0 && i < sizeof(scopes) / sizeof(scopes[0]); i++) {
        PyObject *number = PyLong_FromLong(scopes[i].number);
        result = number == NULL ? -1 : PyDict_SetItemString(scope, scopes[i].name, number);
        Py_XDECREF(number);
    }
    if (result == 0) {
        result = PyModule_AddObjectRef(module, "STATUS", status) < 0 ||
                         PyModule_AddObjectRef(module, "SCOPE", scope) < 0 ||
                         PyModule_AddStringConstant(module, "VERSION", mlacat_version()) < 0
                     ? -1
                     : 0;
    }
    Py_XDECREF(status);
    Py_XDECREF(scope);
    return result;
}

static PyMethodDef functions[] = {
    {"check_arguments", (PyCFunction)(void (*)(void))client_check_arguments, METH_FASTCALL,
     "check_arguments(rule, out, first, second): raises what _run would raise for them"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_mlacat", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__mlacat(void);

PyMODINIT_FUNC PyInit__mlacat(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && (add_tables(module) < 0 || client_add_type(module) < 0 || memory_add_type(module) < 0)) {
        Py_CLEAR(module);
    }
    return module;
}
