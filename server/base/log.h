/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     the process-wide log: one line an event on standard error, `key=value` fields. In front stands the journald
 *           priority "<N>" when standard error is the journal ($JOURNAL_STREAM), else `time=... level=...`. Never any
 *           tensor data.
 * Thread:   any; a line is one write(2). log_init: before other threads start.
 * Lifetime: from process start; log_init only changes level and form.
 * Errors:   none; a line that cannot be written is lost. errno is kept.
 */
#ifndef MLACAT_BASE_LOG_H
#define MLACAT_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "status.h"

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Reads $JOURNAL_STREAM and sets the first level. */
void log_init(enum log_level level);
void log_set_level(enum log_level level);
enum log_level log_get_level(void);
const char *log_level_name(enum log_level level);
/* false if the name is not one of error, warning, info, debug. */
bool log_level_parse(const char *name, enum log_level *level);

/* At most LOG_RATE_LINES lines in LOG_RATE_SECONDS from one place in the code, whatever the level. The first line after
 * that carries `left_out=N`: how many were dropped. */
#define LOG_RATE_LINES 10
#define LOG_RATE_SECONDS 5
/* A line with its newline; a longer one is cut and ends in "...". */
#define LOG_LINE_BYTES 1024

/* State of one place in the code; static storage, zeroed. Any thread may log from there. */
struct log_site {
    _Atomic uint64_t window_start_ns; /* 0: never used */
    _Atomic uint32_t lines;           /* asked for in this window, dropped ones too */
    _Atomic uint32_t left_out;        /* dropped and not told yet */
};

/*
 * `event` is a short lower_case name; `format` gives `key=value` fields. Use the macros below; `site` NULL: no rate
 * limit. Every byte that is not printable ASCII is written as '?': text of others goes through log_quote.
 */
__attribute__((format(printf, 4, 5))) void log_line(struct log_site *site, enum log_level level, const char *event,
                                                    const char *format, ...);
/* Quotes `text` (NULL: empty) for a field value: in double quotes, printable ASCII kept, a backslash before '"' and
 * '\', the rest as \xNN; what does not fit is cut and ends in "...". out_bytes: at least LOG_QUOTE_MIN_BYTES. Returns
 * `out`. */
#define LOG_QUOTE_MIN_BYTES 8
const char *log_quote(const char *text, char *out, uint32_t out_bytes);
/* log_quote into a buffer of this thread that the next log_text of the thread uses again. */
const char *log_text(const char *text);

#define LOG_AT(level, event, ...)                            \
    do {                                                     \
        static struct log_site log_site_;                    \
        log_line(&log_site_, (level), (event), __VA_ARGS__); \
    } while (0)
#define log_error(event, ...) LOG_AT(LOG_LEVEL_ERROR, event, __VA_ARGS__)
#define log_warning(event, ...) LOG_AT(LOG_LEVEL_WARNING, event, __VA_ARGS__)
#define log_info(event, ...) LOG_AT(LOG_LEVEL_INFO, event, __VA_ARGS__)
#define log_debug(event, ...) LOG_AT(LOG_LEVEL_DEBUG, event, __VA_ARGS__)

#endif
