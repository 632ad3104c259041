/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Points in time: nanoseconds of CLOCK_MONOTONIC, which no clock change moves.
 *
 * Owns:     nothing.
 * Thread:   any.
 * Lifetime: -
 * Errors:   none.
 */
#ifndef MLACAT_CLIENT_TIMING_H
#define MLACAT_CLIENT_TIMING_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

#define TIMING_NEVER INT64_MAX
#define TIMING_NO_WAIT INT64_C(0) /* a time that is always over */
#define TIMING_MS INT64_C(1000000)

static inline int64_t timing_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static inline struct timespec timing_spec(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = (long)(ns % 1000000000)};
}

/* timeout_us of the public functions: negative = for ever, 0 = only look. */
static inline int64_t timing_deadline(int64_t timeout_us)
{
    if (timeout_us < 0) {
        return TIMING_NEVER;
    }
    if (timeout_us == 0) {
        return TIMING_NO_WAIT;
    }
    int64_t now = timing_now();
    return timeout_us > (TIMING_NEVER - now) / 1000 ? TIMING_NEVER : now + timeout_us * 1000;
}

/* A condition variable whose timed wait counts on CLOCK_MONOTONIC. */
static inline void timing_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* 0, or ETIMEDOUT. */
static inline int timing_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t deadline)
{
    if (deadline == TIMING_NEVER) {
        return pthread_cond_wait(cond, lock);
    }
    struct timespec until = timing_spec(deadline);
    return pthread_cond_timedwait(cond, lock, &until);
}

#endif
