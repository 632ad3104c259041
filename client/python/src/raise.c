/* SPDX-License-Identifier: Apache-2.0 */
#include "raise.h"

#include <stdarg.h>
#include <stdio.h>

/* Which of the classes that belong to one code: a word that mlacat._errors.make knows. Takes the message. */
static int raise_as(const char *kind, enum mlacat_status status, enum mlacat_scope scope, PyObject *message)
{
    PyObject *module = message == NULL ? NULL : PyImport_ImportModule("mlacat._errors");
    PyObject *error =
        module == NULL ? NULL : PyObject_CallMethod(module, "make", "siiO", kind, (int)status, (int)scope, message);
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    }
    Py_XDECREF(error);
    Py_XDECREF(module);
    Py_XDECREF(message);
    return -1;
}

void raise_take(struct failure *failure, enum mlacat_status status)
{
    failure->status = status;
    failure->scope = mlacat_error_scope();
    snprintf(failure->message, sizeof(failure->message), "%s", mlacat_error_message());
}

int raise_failure(const struct failure *failure)
{
    return raise_as("", failure->status, failure->scope,
                    PyUnicode_DecodeUTF8(failure->message, (Py_ssize_t)__builtin_strlen(failure->message), "replace"));
}

int raise_stream_failed(const struct failure *failure, const char *which)
{
    return raise_as("stream", failure->status, MLACAT_SCOPE_STREAM,
                    PyUnicode_FromFormat("an earlier call on %s CUDA stream failed, its output is undefined: %s", which,
                                         failure->message));
}

int raise_capture(void)
{
    return raise_as("capture", MLACAT_FAILED_PRECONDITION, MLACAT_SCOPE_CALL,
                    PyUnicode_FromString("the CUDA stream is being captured into a graph, where a call of the service "
                                         "cannot be: call it outside of the capture"));
}

int raise_argument_error(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    PyObject *message = PyUnicode_FromFormatV(format, arguments);
    va_end(arguments);
    return raise_as("", MLACAT_INVALID_ARGUMENT, MLACAT_SCOPE_CALL, message);
}

int raise_type_error(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    PyObject *message = PyUnicode_FromFormatV(format, arguments);
    va_end(arguments);
    return raise_as("type", MLACAT_INVALID_ARGUMENT, MLACAT_SCOPE_CALL, message);
}

int raise_precondition(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    PyObject *message = PyUnicode_FromFormatV(format, arguments);
    va_end(arguments);
    return raise_as("", MLACAT_FAILED_PRECONDITION, MLACAT_SCOPE_CALL, message);
}
