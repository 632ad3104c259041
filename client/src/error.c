/* SPDX-License-Identifier: Apache-2.0 */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local struct error last_error;

static enum mlacat_scope default_scope(enum mlacat_status code)
{
    switch (code) {
#define MLACAT_STATUS(name, number, scope, text) \
    case MLACAT_##name:                          \
        return MLACAT_SCOPE_##scope;
#include "mlacat_status.def"
    default:
        return MLACAT_SCOPE_CALL;
    }
}

/* Takes away the last character of a text that was cut, if only a part of it is left. */
static void trim_partial_character(char *text)
{
    size_t length = strlen(text);
    size_t start = length;
    while (start > 0 && length - start < 4 && ((unsigned char)text[start - 1] & 0xc0) == 0x80) {
        start--;
    }
    if (start == 0) {
        return;
    }
    unsigned char lead = (unsigned char)text[start - 1];
    size_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    if (length - (start - 1) < bytes) {
        text[start - 1] = '\0';
    }
}

static void format_error(struct error *err, enum mlacat_status code, const char *format, va_list args)
{
    err->code = code;
    err->scope = default_scope(code);
    if (vsnprintf(err->message, sizeof(err->message), format, args) >= (int)sizeof(err->message)) {
        trim_partial_character(err->message);
    }
}

enum mlacat_status error_set(struct error *err, enum mlacat_status code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    format_error(err, code, format, args);
    va_end(args);
    return code;
}

enum mlacat_status error_raise(const struct error *err)
{
    last_error = *err;
    return err->code;
}

struct error error_raised(void)
{
    return last_error;
}

enum mlacat_status error_fail(enum mlacat_status code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    format_error(&last_error, code, format, args);
    va_end(args);
    return code;
}

enum mlacat_status error_status_of(uint32_t number)
{
    return number < MLACAT_STATUS_END_ ? (enum mlacat_status)number : MLACAT_UNKNOWN;
}

enum mlacat_scope error_scope_of(uint32_t number, enum mlacat_status code)
{
    return number > 0 && number < MLACAT_SCOPE_END_ ? (enum mlacat_scope)number : default_scope(code);
}

void error_copy_text(char *to, size_t size, const char *from)
{
    if (from == NULL) {
        from = "";
    }
    size_t length = strnlen(from, size);
    size_t kept = length < size ? length : size - 1;
    memcpy(to, from, kept);
    to[kept] = '\0';
    if (kept < length) {
        trim_partial_character(to);
    }
}

const char *mlacat_error_message(void)
{
    return last_error.message;
}

enum mlacat_scope mlacat_error_scope(void)
{
    return last_error.scope;
}
