/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors as the classes of mlacat._errors.
 *
 * Owns:     nothing.
 * Thread:   with the GIL; raise_take in the thread that the library failed in.
 * Lifetime: -
 * Errors:   every function but raise_take sets a Python exception and returns -1.
 */
#ifndef MLACAT_PYTHON_RAISE_H
#define MLACAT_PYTHON_RAISE_H

#include "python.h"

#include <mlacat/mlacat.h>

/* What the library said last in this thread, kept while it is asked other things. */
struct failure {
    enum mlacat_status status;
    enum mlacat_scope scope;
    char message[MLACAT_MESSAGE_BYTES];
};

void raise_take(struct failure *failure, enum mlacat_status status);
int raise_failure(const struct failure *failure);
/* An ordered call of before has failed, on "this" CUDA stream or "another". */
int raise_stream_failed(const struct failure *failure, const char *which);
/* The CUDA stream is being captured into a graph. */
int raise_capture(void);
/* Formats as PyUnicode_FromFormat. INVALID_ARGUMENT, as an error that is a ValueError too, or a TypeError. */
int raise_argument_error(const char *format, ...);
int raise_type_error(const char *format, ...);
int raise_precondition(const char *format, ...);

#endif
