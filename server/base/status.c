/* SPDX-License-Identifier: Apache-2.0 */
#include "status.h"

#include <stdio.h>
#include <string.h>

struct status_row {
    const char *name;
    enum mlacat_scope scope;
    const char *text;
};

#define MLACAT_STATUS(name, number, scope, text) [number] = {#name, MLACAT_SCOPE_##scope, text},
static const struct status_row statuses[] = {
#include "mlacat_status.def"
};

#define MLACAT_SCOPE(name, number, text) [number] = #name,
static const char *const scopes[] = {
#include "mlacat_status.def"
};

#define ROWS(table) (sizeof(table) / sizeof((table)[0]))

/* Codes also come from peers and newer versions: a number without a row counts as UNKNOWN. */
static const struct status_row *row_of(enum mlacat_status code)
{
    size_t number = (size_t)code;
    return number < ROWS(statuses) && statuses[number].name ? &statuses[number] : &statuses[MLACAT_UNKNOWN];
}

const char *status_name(enum mlacat_status code)
{
    return row_of(code)->name;
}

const char *status_text(enum mlacat_status code)
{
    return row_of(code)->text;
}

enum mlacat_scope status_scope(enum mlacat_status code)
{
    return row_of(code)->scope;
}

const char *scope_name(enum mlacat_scope scope)
{
    size_t number = (size_t)scope;
    return number < ROWS(scopes) && scopes[number] ? scopes[number] : "UNKNOWN";
}

/* The length of the longest part of text[0, bytes) that does not end inside a UTF-8 character. */
static size_t whole_characters(const char *text, size_t bytes)
{
    size_t start = bytes;
    while (start > 0 && bytes - start < 3 && ((unsigned char)text[start - 1] & 0xC0) == 0x80) {
        start--;
    }
    if (start == 0) {
        return bytes;
    }
    unsigned char lead = (unsigned char)text[start - 1];
    size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    return bytes - (start - 1) < length ? start - 1 : bytes;
}

__attribute__((format(printf, 4, 0))) static enum mlacat_status
fill(struct error *err, enum mlacat_status code, enum mlacat_scope scope, const char *format, va_list args)
{
    /* Written aside first, so that err->message may itself be one of the arguments. */
    char text[ERROR_MESSAGE_BYTES];
    int needed = vsnprintf(text, sizeof(text), format, args);
    if (needed < 0) {
        text[0] = '\0';
    } else if ((size_t)needed >= sizeof(text)) {
        text[whole_characters(text, sizeof(text) - 1)] = '\0';
    }
    err->code = code;
    err->scope = scope;
    memcpy(err->message, text, sizeof(text));
    return code;
}

enum mlacat_status error_set(struct error *err, enum mlacat_status code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fill(err, code, status_scope(code), format, args);
    va_end(args);
    return code;
}

enum mlacat_status error_set_scoped(struct error *err, enum mlacat_status code, enum mlacat_scope scope,
                                    const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fill(err, code, scope, format, args);
    va_end(args);
    return code;
}
