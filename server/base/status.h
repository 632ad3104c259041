/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     the status codes, scopes and the error that carries them with a text.
 * Thread:   any; nothing is shared.
 * Lifetime: an error is a plain value in the caller's memory.
 * Errors:   -
 */
#ifndef MLACAT_BASE_STATUS_H
#define MLACAT_BASE_STATUS_H

#include <stdarg.h>

#define MLACAT_STATUS(name, number, scope, text) MLACAT_##name = number,
enum mlacat_status {
#include "mlacat_status.def"
};

#define MLACAT_SCOPE(name, number, text) MLACAT_SCOPE_##name = number,
enum mlacat_scope {
#include "mlacat_status.def"
};

#define ERROR_MESSAGE_BYTES 240

/* Why something failed. A zeroed one is OK. */
struct error {
    enum mlacat_status code;
    enum mlacat_scope scope;
    char message[ERROR_MESSAGE_BYTES]; /* NUL-terminated; cut at the end of a UTF-8 character if too long */
};

/* Fills `err` with the code, its default scope and a text that says what was wrong, with which value, and what to do.
 * err->message may be one of the arguments. Returns the code, so that a function can `return error_set(...)`. */
__attribute__((format(printf, 3, 4))) enum mlacat_status error_set(struct error *err, enum mlacat_status code,
                                                                   const char *format, ...);
/* The same with a scope other than the code's own. */
__attribute__((format(printf, 4, 5))) enum mlacat_status
error_set_scoped(struct error *err, enum mlacat_status code, enum mlacat_scope scope, const char *format, ...);

/* "INVALID_ARGUMENT"; a number that is not in the table gives the name, text and scope of UNKNOWN. */
const char *status_name(enum mlacat_status code);
/* The table's text: what the code means and what to do. */
const char *status_text(enum mlacat_status code);
enum mlacat_scope status_scope(enum mlacat_status code);
/* "SESSION"; "UNKNOWN" for a number that is not in the table. */
const char *scope_name(enum mlacat_scope scope);

#endif
