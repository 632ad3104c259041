/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mlacatctl as a program: runs it and looks at what it prints.
 *
 * Owns:     what the last run printed.
 * Thread:   the main thread of the test.
 * Lifetime: each run replaces what the last one printed.
 * Errors:   a failed check (require.h) that shows the output.
 */
#ifndef MLACAT_TESTS_CTL_PROGRAM_H
#define MLACAT_TESTS_CTL_PROGRAM_H

#include <jansson.h>

#define OUTPUT_BYTES 65536

enum { DONE = 0, FAILED = 1, UNREACHABLE = 2, USAGE = 64 };

/* What the last run printed. */
extern char out[OUTPUT_BYTES];
extern char err[OUTPUT_BYTES];

/* Runs "mlacatctl WORDS", with --socket unless that is NULL; gives the exit status. */
int ctl(const char *socket, const char *words);
/* The same; the exit status must be this one. */
void expect(const char *socket, const char *words, int status);
void expect_text(const char *text, const char *part);

/* `out` as JSON. */
json_t *parse_out(void);
/* The value is an object that has these keys, separated by blanks, and no others. */
void expect_keys(json_t *object, const char *keys);
/* expect, parse_out and expect_keys. */
void expect_json(const char *socket, const char *words, int status, const char *keys);

#endif
