/* SPDX-License-Identifier: Apache-2.0 */
#include "log.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"

static const char *const level_names[] = {"error", "warning", "info", "debug"};
static const int journal_priorities[] = {3, 4, 6, 7}; /* of syslog(3) */
#define LEVELS (sizeof(level_names) / sizeof(level_names[0]))

static _Atomic(enum log_level) current_level = LOG_LEVEL_INFO;
static bool to_journal;

/* $JOURNAL_STREAM is "device:inode" of the journal's socket. It is inherited, so standard error may be another file by
 * now. */
static bool stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    struct stat st;
    if (!stream || fstat(STDERR_FILENO, &st)) {
        return false;
    }
    char expected[64];
    snprintf(expected, sizeof(expected), "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    return strcmp(stream, expected) == 0;
}

void log_init(enum log_level level)
{
    to_journal = stderr_is_journal();
    log_set_level(level);
}

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&current_level, level, memory_order_relaxed);
}

enum log_level log_get_level(void)
{
    return atomic_load_explicit(&current_level, memory_order_relaxed);
}

const char *log_level_name(enum log_level level)
{
    return (size_t)level < LEVELS ? level_names[level] : "unknown";
}

bool log_level_parse(const char *name, enum log_level *level)
{
    for (size_t i = 0; i < LEVELS; i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *level = (enum log_level)i;
            return true;
        }
    }
    return false;
}

/*
 * May this place log now? Takes what was left out before, to be told with this line. Threads that race at the start of
 * a window may log a few lines more or fewer than the limit; nothing else depends on these counters, so all of them are
 * relaxed.
 */
static bool site_take(struct log_site *site, uint32_t *left_out)
{
    const uint64_t window_ns = LOG_RATE_SECONDS * UINT64_C(1000000000);
    uint64_t now = clock_now_ns();
    uint64_t start = atomic_load_explicit(&site->window_start_ns, memory_order_relaxed);
    if (start == 0 || (now > start && now - start >= window_ns)) {
        if (atomic_compare_exchange_strong_explicit(&site->window_start_ns, &start, now, memory_order_relaxed,
                                                    memory_order_relaxed)) {
            atomic_store_explicit(&site->lines, 0, memory_order_relaxed);
        }
    }
    if (atomic_fetch_add_explicit(&site->lines, 1, memory_order_relaxed) >= LOG_RATE_LINES) {
        atomic_fetch_add_explicit(&site->left_out, 1, memory_order_relaxed);
        return false;
    }
    *left_out = atomic_exchange_explicit(&site->left_out, 0, memory_order_relaxed);
    return true;
}

/* A line while it is put together; the last byte is kept for the newline. */
struct line {
    char bytes[LOG_LINE_BYTES];
    size_t used;
    bool cut;
};

__attribute__((format(printf, 2, 0))) static void line_vadd(struct line *line, const char *format, va_list args)
{
    size_t room = sizeof(line->bytes) - line->used;
    int needed = vsnprintf(line->bytes + line->used, room, format, args);
    if (needed < 0) {
        return;
    }
    line->cut = (size_t)needed >= room;
    line->used += line->cut ? room - 1 : (size_t)needed;
}

__attribute__((format(printf, 2, 3))) static void line_add(struct line *line, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    line_vadd(line, format, args);
    va_end(args);
}

static void line_add_prefix(struct line *line, enum log_level level)
{
    if (to_journal) {
        line_add(line, "<%d>", journal_priorities[level]);
        return;
    }
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    line_add(line, "time=%04d-%02d-%02dT%02d:%02d:%02d.%06ldZ level=%s ", utc.tm_year + 1900, utc.tm_mon + 1,
             utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec, now.tv_nsec / 1000, level_names[level]);
}

static bool is_printable(char c)
{
    return c >= ' ' && c <= '~';
}

void log_line(struct log_site *site, enum log_level level, const char *event, const char *format, ...)
{
    uint32_t left_out = 0;
    if (level > log_get_level() || (site && !site_take(site, &left_out))) {
        return;
    }
    int saved_errno = errno;
    struct line line;
    line.used = 0;
    line_add_prefix(&line, level);
    line_add(&line, "event=%s ", event);
    if (left_out > 0) {
        line_add(&line, "left_out=%u ", left_out);
    }
    va_list args;
    va_start(args, format);
    line_vadd(&line, format, args);
    va_end(args);

    if (line.cut) {
        memcpy(line.bytes + line.used - 3, "...", 3);
    }
    for (size_t i = 0; i < line.used; i++) {
        if (!is_printable(line.bytes[i])) {
            line.bytes[i] = '?';
        }
    }
    line.bytes[line.used++] = '\n';
    /* A reader that stalls must not stall us. A line is shorter than PIPE_BUF: where there is room, it fits. */
    struct pollfd log = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (poll(&log, 1, 0) > 0) {
        ssize_t written;
        do {
            written = write(STDERR_FILENO, line.bytes, line.used);
        } while (written < 0 && errno == EINTR);
    }
    errno = saved_errno;
}

/* Bytes that a character takes in quotes: itself, \" or \\, or \xNN. */
static size_t quoted_bytes(char c)
{
    return !is_printable(c) ? 4 : c == '"' || c == '\\' ? 2 : 1;
}

const char *log_quote(const char *text, char *out, uint32_t out_bytes)
{
    assert(out_bytes >= LOG_QUOTE_MIN_BYTES);
    if (!text) {
        text = "";
    }
    size_t room = out_bytes - sizeof("\"\"");
    size_t needed = 0;
    for (const char *c = text; *c && needed <= room; c++) {
        needed += quoted_bytes(*c);
    }
    bool cut = needed > room;
    if (cut) {
        room -= 3;
    }
    size_t used = 0;
    out[used++] = '"';
    for (const char *c = text; *c; c++) {
        size_t bytes = quoted_bytes(*c);
        if (used - 1 + bytes > room) {
            break;
        }
        if (bytes == 1) {
            out[used] = *c;
        } else if (bytes == 2) {
            out[used] = '\\';
            out[used + 1] = *c;
        } else {
            snprintf(out + used, 5, "\\x%02x", (unsigned char)*c);
        }
        used += bytes;
    }
    snprintf(out + used, out_bytes - used, "%s\"", cut ? "..." : "");
    return out;
}

const char *log_text(const char *text)
{
    static _Thread_local char quoted[4 * ERROR_MESSAGE_BYTES];
    return log_quote(text, quoted, sizeof(quoted));
}
