/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A folder for a cache under test, and what is in it.
 *
 * Owns:     one folder at a time.
 * Thread:   the main thread.
 * Lifetime: make -> anything -> remove.
 * Errors:   a failed cmocka assertion.
 */
#ifndef MLACAT_TESTS_JIT_FOLDER_H
#define MLACAT_TESTS_JIT_FOLDER_H

#include <stddef.h>

void jit_folder_make(void);
/* With all that is in it, one level deep. */
void jit_folder_remove(void);
const char *jit_folder_path(void);

/* Entries whose name ends in `suffix` ("" for all); the name of the last one stands in jit_folder_entry. */
int jit_folder_count(const char *suffix);
const char *jit_folder_entry(void);
/* The path of a file in the folder; one at a time. */
const char *jit_folder_file(const char *name);

/* Changes the byte at `offset` (negative: from the end) of a file in the folder. */
void jit_folder_damage(const char *name, long offset);
/* NUL-terminated, to be freed. */
char *jit_folder_read(const char *name, size_t *bytes_nr);
void jit_folder_write(const char *name, const void *bytes, size_t bytes_nr);

#endif
