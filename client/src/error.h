/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     the error that mlacat_error_message shows: one for each thread.
 * Thread:   any.
 * Lifetime: a struct error is a plain value; a zeroed one is OK.
 * Errors:   -
 */
#ifndef MLACAT_CLIENT_ERROR_H
#define MLACAT_CLIENT_ERROR_H

#include <stddef.h>

#include "mlacat/mlacat.h"

struct error {
    enum mlacat_status code;
    enum mlacat_scope scope;
    char message[MLACAT_MESSAGE_BYTES];
};

/* Fills `err` with the code, its default scope and a text; returns the code. */
__attribute__((format(printf, 3, 4))) enum mlacat_status error_set(struct error *err, enum mlacat_status code,
                                                                   const char *format, ...);

/* Makes `err` (or a new error of the code's default scope) the one of this thread; returns its code. */
enum mlacat_status error_raise(const struct error *err);
__attribute__((format(printf, 2, 3))) enum mlacat_status error_fail(enum mlacat_status code, const char *format, ...);

/* The one of this thread, which error_raise brings back: for who does not pass on the error of a function that raises
 * its own. */
struct error error_raised(void);

/* A code or scope as a peer sent it, which may be any number. */
enum mlacat_status error_status_of(uint32_t number);
enum mlacat_scope error_scope_of(uint32_t number, enum mlacat_status code);

/* Copies a text, cut to `size` bytes with its NUL, never inside a UTF-8 character. NULL counts as "". */
void error_copy_text(char *to, size_t size, const char *from);

#endif
