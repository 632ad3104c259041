/* SPDX-License-Identifier: Apache-2.0 */
/* When a submit through a ring looks whether the daemon is there, which is a system call: seldom, but before a call
 * would be lost to one that is gone. The clock is the test's. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

#include <cmocka.h>

#include "client_clock.h"
#include "ring.h"
#include "test_client_scene.h"
#include "timing.h"

/* Looks at the connection of this thread. */
static _Thread_local unsigned looks;

int __real_poll(struct pollfd *items, nfds_t nr, int timeout);
int __wrap_poll(struct pollfd *items, nfds_t nr, int timeout);

int __wrap_poll(struct pollfd *items, nfds_t nr, int timeout)
{
    looks += nr == 1 && timeout == 0;
    return __real_poll(items, nr, timeout);
}

static int setup(void **state)
{
    client_clock_reset();
    struct scene *f = scene_open((struct fake_mode){.rings = true}, MLACAT_DISPATCH_THREAD);
    *state = f;
    rings_set(f->rings, (struct rings_mode){.awake = true});
    while (mlacat_ring_daemon_slept(f->stream->ring->daemon)) {
        usleep(100);
    }
    client_clock_stop();
    return 0;
}

static int teardown(void **state)
{
    client_clock_reset();
    return scene_close(state);
}

/* Submits, and returns how often it looked at the connection. The wait for the end is another matter. */
static unsigned submit(struct scene *f)
{
    uint64_t id;
    looks = 0;
    assert_int_equal(mlacat_submit(f->stream, &f->call, &id), MLACAT_OK);
    unsigned nr = looks;
    assert_int_equal(mlacat_wait(f->stream, id, -1, NULL), MLACAT_OK);
    return nr;
}

static void tell_look(struct scene *f, int64_t from_now_ns)
{
    rings_tell_look(f->rings, 0, (uint64_t)(timing_now() + from_now_ns));
}

static void test_client_ring_pause_one_after_the_other(void **state)
{
    struct scene *f = *state;
    submit(f);
    for (int i = 0; i < 3 * RINGS_ENTRIES; i++) {
        client_clock_pass(RING_PAUSE_NS - 1);
        assert_int_equal(submit(f), 0);
    }
}

static void test_client_ring_pause_without_a_word_of_the_daemon(void **state)
{
    struct scene *f = *state;
    submit(f);
    for (int i = 0; i < 3; i++) {
        client_clock_pass(RING_PAUSE_NS);
        assert_int_equal(submit(f), 1);
    }
}

static void test_client_ring_pause_while_the_worker_looks(void **state)
{
    struct scene *f = *state;
    submit(f);
    for (int i = 0; i < 100; i++) {
        client_clock_pass(RING_CHECK_NS);
        tell_look(f, i % 2 == 0 ? -(RING_PAUSE_NS - 1) : RING_PAUSE_NS - 1); /* CPUs read their clocks a little apart */
        assert_int_equal(submit(f), 0);
    }
}

/* As of a worker that is busy, a daemon that is gone, or one in another time. */
static void test_client_ring_pause_word_that_says_nothing(void **state)
{
    static const int64_t words[] = {-RING_PAUSE_NS, RING_PAUSE_NS, -1000 * RING_CHECK_NS, 1000 * RING_CHECK_NS};
    struct scene *f = *state;
    submit(f);
    for (unsigned i = 0; i < 4; i++) {
        client_clock_pass(RING_PAUSE_NS);
        tell_look(f, words[i]);
        assert_int_equal(submit(f), 1);
    }
}

/* The call would be lost. */
static void test_client_ring_pause_after_the_daemon_has_gone(void **state)
{
    struct scene *f = *state;
    submit(f);
    tell_look(f, 0);
    fake_die(f->fake, NULL);
    client_clock_pass(RING_PAUSE_NS);
    assert_int_equal(submit(f), 1);
    assert_int_equal(fake_seen(f->fake).pages_opens, 2);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_client_ring_pause_one_after_the_other),
        TEST(test_client_ring_pause_without_a_word_of_the_daemon),
        TEST(test_client_ring_pause_while_the_worker_looks),
        TEST(test_client_ring_pause_word_that_says_nothing),
        TEST(test_client_ring_pause_after_the_daemon_has_gone),
    };
    alarm(120); /* ends a test that waits in vain */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
