/* SPDX-License-Identifier: Apache-2.0 */
/* How a worker waits for a device that wakes nobody: the device here finishes when the test says so, and counts how
 * often it is asked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "buffers.h"
#include "clock.h"
#include "stream.h"
#include "worker.h"

#define LOOKS 20

static struct {
    _Atomic uint32_t polls;
    _Atomic uint32_t naps;
    _Atomic bool done;
    _Atomic bool long_naps; /* a nap ends only by a ring */
} counts;

static void *cookie; /* worker: of the call at the device */

void __real_doorbell_nap(struct doorbell *doorbell, uint64_t ns);
void __wrap_doorbell_nap(struct doorbell *doorbell, uint64_t ns);

void __wrap_doorbell_nap(struct doorbell *doorbell, uint64_t ns)
{
    assert_int_equal(ns, WORKER_NAP_NS);
    counts.naps++;
    __real_doorbell_nap(doorbell, counts.long_naps ? UINT64_C(3600000000000) : ns);
}

static enum device_answer submit(struct device_stream *stream, const struct device_call *call, struct error *err)
{
    (void)stream;
    (void)err;
    if (cookie) {
        return DEVICE_AGAIN;
    }
    cookie = call->cookie;
    return DEVICE_OK;
}

static int poll_device(struct device_stream *stream, struct device_completion *done, int max, struct error *err)
{
    (void)stream;
    (void)max;
    (void)err;
    counts.polls++;
    if (!counts.done) {
        return 0;
    }
    *done = (struct device_completion){.cookie = cookie};
    cookie = NULL;
    return 1;
}

static struct device_ops ops = {.submit = submit, .poll = poll_device};
static struct loop_bell bell;
static struct worker worker;
static struct stream stream;
static struct call calls[2];

static void start(enum worker_poll policy, bool works_in_poll)
{
    struct error err;
    memset(&counts, 0, sizeof(counts));
    memset(&stream, 0, sizeof(stream));
    memset(calls, 0, sizeof(calls));
    cookie = NULL;
    list_init(&stream.active_link);
    list_init(&stream.queue);
    list_init(&stream.launched);
    ops.works_in_poll = works_in_poll;
    assert_int_equal(worker_start(&worker, &ops, &bell, policy, 100000, &err), MLACAT_OK);
    worker_count_stream(&worker, 1);
}

static void post(struct call *call)
{
    static struct buffer buffer;
    call->stream = &stream;
    for (int i = 0; i < OP_OPERANDS; i++) {
        call->buffer[i] = &buffer;
    }
    list_init(&call->queue_link);
    worker_post(&worker, call);
}

/* The alarm of main() ends a test that waits in vain. */
static struct call *wait_for_call(void)
{
    struct call *call;
    while (!(call = worker_take(&worker))) {
        sched_yield();
    }
    return call;
}

static void finish(void)
{
    counts.done = true;
    assert_ptr_equal(wait_for_call(), &calls[0]);
    worker_stop(&worker);
}

static void wait_for_polls(uint32_t more)
{
    uint32_t before = counts.polls;
    while (counts.polls - before < more) {
        sched_yield();
    }
}

static void test_worker_naps_between_looks_at_a_busy_device(void **state)
{
    (void)state;
    start(WORKER_POLL_BALANCED, false);
    post(&calls[0]);
    while (counts.naps == 0) {
        sched_yield();
    }
    uint64_t start_ns = clock_now_ns();
    wait_for_polls(LOOKS);
    /* The first and the last look may be cut off. */
    assert_true(clock_now_ns() - start_ns >= (LOOKS - 2) * (uint64_t)WORKER_NAP_NS);
    finish();
}

static void test_worker_mail_ends_a_nap(void **state)
{
    (void)state;
    start(WORKER_POLL_SLEEP, false);
    counts.long_naps = true;
    post(&calls[0]);
    while (counts.naps == 0) {
        sched_yield();
    }
    uint32_t before = counts.naps;
    counts.done = true;
    post(&calls[1]);
    assert_ptr_equal(wait_for_call(), &calls[0]);
    assert_ptr_equal(wait_for_call(), &calls[1]);
    assert_int_equal(counts.naps, before);
    worker_stop(&worker);
}

static void test_worker_withdrawal_ends_a_nap(void **state)
{
    (void)state;
    start(WORKER_POLL_SLEEP, false);
    counts.long_naps = true;
    post(&calls[0]);
    post(&calls[1]); /* waits for room */
    while (counts.naps < 1 || counts.polls == 0) {
        sched_yield();
    }
    assert_true(call_withdraw(&calls[1], CALL_WITHDRAWN_CANCEL));
    worker_withdrawn(&worker);
    assert_ptr_equal(wait_for_call(), &calls[1]);
    assert_int_equal(calls[1].error.code, MLACAT_CANCELLED);
    counts.long_naps = false;
    counts.done = true;
    worker_withdrawn(&worker); /* wakes it */
    assert_ptr_equal(wait_for_call(), &calls[0]);
    worker_stop(&worker);
}

/* Neither where polling is the work, nor with the policy that never sleeps. */
static void test_worker_does_not_nap(void **state)
{
    static const struct {
        enum worker_poll policy;
        bool works_in_poll;
    } cases[] = {{WORKER_POLL_BALANCED, true}, {WORKER_POLL_SLEEP, true}, {WORKER_POLL_SPIN, false}};
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(cases[i].policy, cases[i].works_in_poll);
        post(&calls[0]);
        uint64_t end_ns = clock_now_ns() + 1000000; /* ten times what balanced spins */
        while (clock_now_ns() < end_ns || counts.polls < LOOKS) {
            sched_yield();
        }
        assert_int_equal(counts.naps, 0);
        finish();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worker_naps_between_looks_at_a_busy_device),
        cmocka_unit_test(test_worker_mail_ends_a_nap),
        cmocka_unit_test(test_worker_withdrawal_ends_a_nap),
        cmocka_unit_test(test_worker_does_not_nap),
    };
    alarm(50);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
