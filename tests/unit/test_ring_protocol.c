/* SPDX-License-Identifier: Apache-2.0 */
/* No wake-up is lost, in any order of the two sides: proto/mlacat_ring.h and ring.c, run in all of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "interleave_atomics.h"

/* The code under test, with the builtins of interleave_atomics.h and with this futex. */
#define syscall(number, word, op, ...) ((void)(word), interleave_futex_wake())
#include "ring.c" /* NOLINT(bugprone-suspicious-include) */
#undef syscall

#define ENTRIES 4
#define CALLS 3

static struct {
    struct mlacat_ring_client client;
    struct mlacat_ring_daemon daemon;
} words;

static struct mlacat_ring_submission submissions[ENTRIES];
static struct mlacat_ring_completion completions[ENTRIES];
static char messages[ENTRIES][MLACAT_ABI_MESSAGE_BYTES];
static struct ring ring;
static uint32_t calls_nr;
static bool client_looks_twice;
static bool daemon_looks_twice;

static void reset(void)
{
    memset(&words, 0, sizeof(words));
    ring = (struct ring){.client = &words.client,
                         .daemon = &words.daemon,
                         .submissions = submissions,
                         .completions = completions,
                         .messages = messages,
                         .entries = ENTRIES,
                         .most = ENTRIES};
}

/* Wakes the worker as the library does. */
static void submit(uint32_t tail)
{
    mlacat_ring_submit(&words.client, tail);
    if (mlacat_ring_daemon_sleeps(&words.daemon)) {
        interleave_ring_bell();
    }
}

static void await_completion(uint32_t head)
{
    while (mlacat_ring_completed(&words.daemon) == head) {
        mlacat_ring_wait(&words.client, 1);
        if (!client_looks_twice || mlacat_ring_completed(&words.daemon) == head) {
            interleave_futex_wait(&words.daemon.complete_tail, head);
        }
        mlacat_ring_wait(&words.client, 0);
    }
}

/* The worker's sleep: worker.c: wait_for_work. */
static void daemon_sleeps(void)
{
    while (!ring_has_more(&ring)) {
        mlacat_ring_sleep(&words.daemon, 1);
        if (!daemon_looks_twice || !ring_has_more(&ring)) {
            interleave_wait_bell();
        }
        mlacat_ring_sleep(&words.daemon, 0);
    }
}

static void take_one(void)
{
    struct mlacat_ring_submission entry;
    struct error err;
    assert_int_equal(ring_take(&ring, &entry, &err), RING_TAKEN);
    ring_release_taken(&ring);
}

static void client_submits(void)
{
    for (uint32_t i = 1; i <= calls_nr; i++) {
        submit(i);
    }
}

static void daemon_takes(void)
{
    for (uint32_t i = 0; i < calls_nr; i++) {
        daemon_sleeps();
        take_one();
    }
}

static void client_waits(void)
{
    for (uint32_t i = 0; i < calls_nr; i++) {
        await_completion(i);
    }
}

static void daemon_completes(void)
{
    const struct error ok = {0};
    ring.in_flight = calls_nr;
    for (uint32_t i = 0; i < calls_nr; i++) {
        ring_complete(&ring, i, &ok, 0, 0);
        ring_publish(&ring);
    }
}

static void client_runs(void)
{
    for (uint32_t i = 0; i < calls_nr; i++) {
        submit(i + 1);
        await_completion(i);
        mlacat_ring_completions_read(&words.client, i + 1);
    }
}

static void daemon_runs(void)
{
    const struct error ok = {0};
    for (uint32_t i = 0; i < calls_nr; i++) {
        daemon_sleeps();
        take_one();
        ring_complete(&ring, i, &ok, 0, 0);
        ring_publish(&ring);
    }
}

static enum interleave_end search(uint32_t calls, void (*client)(void), void (*daemon)(void), bool ignore_fences)
{
    const struct interleave_program program = {.reset = reset,
                                               .main = {client, daemon},
                                               .words = &words,
                                               .words_bytes = sizeof(words),
                                               .ignore_fences = ignore_fences};
    calls_nr = calls;
    enum interleave_end end = interleave(&program);
    print_message("%lu runs\n", (unsigned long)interleave_runs());
    return end;
}

static int setup(void **state)
{
    (void)state;
    client_looks_twice = daemon_looks_twice = true;
    return 0;
}

static void test_ring_protocol_no_submission_is_overslept(void **state)
{
    (void)state;
    assert_int_equal(search(CALLS, client_submits, daemon_takes, false), INTERLEAVE_FINE);
    assert_true(interleave_runs() > 100);
}

static void test_ring_protocol_no_completion_is_overslept(void **state)
{
    (void)state;
    assert_int_equal(search(CALLS, client_waits, daemon_completes, false), INTERLEAVE_FINE);
    assert_true(interleave_runs() > 100);
}

static void test_ring_protocol_there_and_back(void **state)
{
    (void)state;
    assert_int_equal(search(2, client_runs, daemon_runs, false), INTERLEAVE_FINE);
    assert_true(interleave_runs() > 100);
}

/* The search finds what the fences, and the second looks, are there for. */
static void test_ring_protocol_fences_are_needed(void **state)
{
    (void)state;
    assert_int_equal(search(1, client_submits, daemon_takes, true), INTERLEAVE_STUCK);
    assert_int_equal(search(1, client_runs, daemon_runs, true), INTERLEAVE_STUCK);
}

/* The futex compares once more by itself: the client's second look only saves the system call. */
static void test_ring_protocol_second_looks_are_needed(void **state)
{
    (void)state;
    daemon_looks_twice = false;
    assert_int_equal(search(1, client_submits, daemon_takes, false), INTERLEAVE_STUCK);
    daemon_looks_twice = true;
    client_looks_twice = false;
    assert_int_equal(search(1, client_waits, daemon_completes, false), INTERLEAVE_FINE);
}

#define PROTOCOL_TEST(test) cmocka_unit_test_setup(test, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PROTOCOL_TEST(test_ring_protocol_no_submission_is_overslept),
        PROTOCOL_TEST(test_ring_protocol_no_completion_is_overslept),
        PROTOCOL_TEST(test_ring_protocol_there_and_back),
        PROTOCOL_TEST(test_ring_protocol_fences_are_needed),
        PROTOCOL_TEST(test_ring_protocol_second_looks_are_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
