/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     the time limit of a command, on SIGALRM: a daemon that is stopped or stuck takes a request and never
 *           answers, and no wait of the library for an answer has an end of its own.
 * Thread:   the main one.
 * Lifetime: guard_start .. guard_stop; one at a time, a second start replaces the first.
 * Errors:   none.
 */
#ifndef MLACAT_CTL_GUARD_H
#define MLACAT_CTL_GUARD_H

#include <stdint.h>

/* When `ms` have passed: writes the text to `fd` and ends the program with `status`. */
__attribute__((format(printf, 4, 5))) void guard_start(uint64_t ms, int fd, int status, const char *format, ...);
void guard_stop(void);

#endif
