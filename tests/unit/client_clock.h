/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clock of the library under test (needs WRAP clock_gettime): the machine's, until a test stops it or takes it
 * ahead. What the kernel waits for goes by the machine's all the same.
 *
 * Owns:     the clock, in static memory.
 * Thread:   any.
 * Lifetime: client_clock_reset before each test.
 * Errors:   none.
 */
#ifndef TEST_CLIENT_CLOCK_H
#define TEST_CLIENT_CLOCK_H

#include <stdint.h>

void client_clock_reset(void);
/* It stands still: no time limit of the library is ever over. */
void client_clock_stop(void);
/* It is so much later at once. */
void client_clock_pass(int64_t ns);

#endif
