/* SPDX-License-Identifier: Apache-2.0 */
#include "client_clock.h"

#include <stdatomic.h>
#include <time.h>

#include "timing.h"

static _Atomic int64_t ahead_ns;
static _Atomic int64_t stopped_ns; /* 0: it goes */

int __real_clock_gettime(clockid_t clock, struct timespec *time);
int __wrap_clock_gettime(clockid_t clock, struct timespec *time);

int __wrap_clock_gettime(clockid_t clock, struct timespec *time)
{
    int result = __real_clock_gettime(clock, time);
    int64_t stopped = stopped_ns;
    int64_t now = (int64_t)time->tv_sec * 1000000000 + time->tv_nsec;
    *time = timing_spec(ahead_ns + (stopped != 0 ? stopped : now));
    return result;
}

void client_clock_reset(void)
{
    ahead_ns = 0;
    stopped_ns = 0;
}

void client_clock_stop(void)
{
    struct timespec now;
    __real_clock_gettime(CLOCK_MONOTONIC, &now);
    stopped_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void client_clock_pass(int64_t ns)
{
    ahead_ns += ns;
}
