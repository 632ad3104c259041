/* SPDX-License-Identifier: Apache-2.0 */
/* A thread that waits for a call on a ring, beside one that does not sleep: who goes first is away for long. */
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "test_client_scene.h"
#include "timing.h"

#define LOOKS_FOR_NS INT64_C(3600000000000)
#define LONG_NS INT64_C(1000000)
#define LOOK_NS 100

static pthread_t waiter;
static _Atomic bool waits;
static _Atomic int64_t waiter_ns; /* its clock */
static _Atomic int64_t yield_takes_ns;
static _Atomic unsigned yields;      /* of the waiter */
static _Atomic unsigned first_sleep; /* yields before it */
static _Atomic unsigned sleeps;

int __real_clock_gettime(clockid_t clock, struct timespec *time);
int __wrap_clock_gettime(clockid_t clock, struct timespec *time);
int __real_sched_yield(void);
int __wrap_sched_yield(void);
long __real_syscall(long number, ...);
long __wrap_syscall(long number, long a, long b, long c, const struct timespec *time, long e, long f);

static bool is_waiter(void)
{
    return waits && pthread_equal(pthread_self(), waiter);
}

/* The waiter's goes on by its looks and its yields alone: that it gets no turn for long makes no difference. */
int __wrap_clock_gettime(clockid_t clock, struct timespec *time)
{
    if (!is_waiter()) {
        return __real_clock_gettime(clock, time);
    }
    waiter_ns += LOOK_NS;
    *time = timing_spec(waiter_ns);
    return 0;
}

int __wrap_sched_yield(void)
{
    if (is_waiter()) {
        yields++;
        waiter_ns += yield_takes_ns;
    }
    return __real_sched_yield();
}

long __wrap_syscall(long number, long a, long b, long c, const struct timespec *time, long e, long f)
{
    if (number == SYS_futex && b == FUTEX_WAIT && is_waiter() && sleeps++ == 0) {
        first_sleep = yields;
    }
    return __real_syscall(number, a, b, c, time, e, f);
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int setup(void **state)
{
    struct scene *f = scene_open((struct fake_mode){.rings = true}, MLACAT_DISPATCH_THREAD);
    f->client->spin_ns = LOOKS_FOR_NS;
    waiter = pthread_self();
    waiter_ns = timing_now();
    waits = false;
    *state = f;
    return 0;
}

static void *release_later(void *user)
{
    struct scene *f = user;
    rings_await_parked(f->rings, 0);
    rings_release(f->rings, 0, 1);
    return NULL;
}

/* Waits for a call that ends when the thread sleeps. */
static void wait_for_call(struct scene *f)
{
    pthread_t thread;
    uint64_t id;
    rings_set(f->rings, (struct rings_mode){.hold = true});
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    assert_int_equal(pthread_create(&thread, NULL, release_later, f), 0);
    yields = 0;
    sleeps = 0;
    waits = true;
    assert_int_equal(mlacat_wait(f->stream, id, -1, NULL), MLACAT_OK);
    waits = false;
    pthread_join(thread, NULL);
}

static void test_client_ring_crowded_waits_asleep(void **state)
{
    yield_takes_ns = LONG_NS;
    wait_for_call(*state);
    assert_true(sleeps > 0);
    assert_int_equal(first_sleep, 11); /* of 1 ms each: the first is forgotten for 10 ms */
    wait_for_call(*state);
    assert_int_equal(first_sleep, 0); /* it knows */
    for (int64_t i = 1; i < 10; i++) {
        waiter_ns += 200 * LONG_NS << least(i - 1, 3);
        wait_for_call(*state);
        assert_int_equal(first_sleep, 1); /* asks again */
        waiter_ns += 100 * LONG_NS << least(i, 3);
        wait_for_call(*state);
        assert_int_equal(first_sleep, 0); /* for twice as long as the time before */
    }
}

static void test_client_ring_not_crowded_looks_on(void **state)
{
    yield_takes_ns = LONG_NS / 4;
    wait_for_call(*state);
    assert_true(first_sleep > 40); /* until it looks at the connection */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_client_ring_crowded_waits_asleep, setup, scene_close),
        cmocka_unit_test_setup_teardown(test_client_ring_not_crowded_looks_on, setup, scene_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
