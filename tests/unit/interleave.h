/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs two threads in every order that their shared words can tell apart, with stores seen late: each thread has a
 * buffer of stores that the other does not see yet and that reach memory one by one, at any time, in any order that
 * release stores allow. A full fence waits for its own. This covers what makes "store, then look" protocols fail on
 * real processors.
 *
 * The code under test is compiled with its atomic builtins replaced (interleave_atomics.h).
 *
 * Owns:     the two threads (contexts of this one) and the search.
 * Thread:   one.
 * Lifetime: interleave, as often as wanted.
 * Errors:   given back: the order in which it got stuck is printed when `tell` is set.
 */
#ifndef MLACAT_TESTS_INTERLEAVE_H
#define MLACAT_TESTS_INTERLEAVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct interleave_program {
    void (*reset)(void); /* before each run */
    void (*main[2])(void);
    void *words; /* the shared words; accesses to other memory are not looked at */
    size_t words_bytes;
    bool ignore_fences; /* to see that the search finds what they prevent */
    bool tell;
};

enum interleave_end {
    INTERLEAVE_FINE, /* every order came to its end */
    INTERLEAVE_STUCK /* in some order both wait */
};

enum interleave_end interleave(const struct interleave_program *program);
/* Of the last search. */
uint64_t interleave_runs(void);

/* For the replaced builtins, and for what the threads do beside. */
void interleave_store(void *word, size_t bytes, uint64_t value, int order);
uint64_t interleave_load(const void *word, size_t bytes, int order);
void interleave_fence(int order);
/* A flag that one sets and the other waits for and takes: an eventfd in an epoll, by edge. */
void interleave_ring_bell(void);
void interleave_wait_bell(void);
/* A futex: the comparison is the kernel's, after all stores of the caller. */
void interleave_futex_wait(const uint32_t *word, uint32_t value);
void interleave_futex_wake(void);

#endif
