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
#include "events.h"
#include "stream.h"
#include "worker.h"

#define LOOKS 20
#define START_NS UINT64_C(1000000000)
#define TICK_NS UINT64_C(4000000)

static struct {
    _Atomic uint32_t polls;
    _Atomic uint32_t naps;
    _Atomic bool done;
    _Atomic bool held;      /* a launch does not return */
    _Atomic bool holding;   /* now */
    _Atomic bool long_naps; /* a nap ends only by a ring */
    _Atomic uint64_t longest_nap_ns;
    _Atomic uint64_t now_ns; /* 0: what the clock says */
    _Atomic bool crowded;
    _Atomic uint64_t ahead_ns;  /* the clock */
    _Atomic uint32_t questions; /* for the event */
    _Atomic bool came;          /* the event */
} counts;

static pthread_t test_thread;
static void *cookie; /* worker: of the call at the device */

void __real_doorbell_nap(struct doorbell *doorbell, uint64_t ns);
void __wrap_doorbell_nap(struct doorbell *doorbell, uint64_t ns);

int __real_sched_yield(void);
int __wrap_sched_yield(void);

/* Those of the test are real. Beside the worker runs somebody who does not sleep, if the test says so. */
int __wrap_sched_yield(void)
{
    if (!pthread_equal(pthread_self(), test_thread) && counts.crowded) {
        counts.ahead_ns += TICK_NS;
        return 0;
    }
    return __real_sched_yield();
}

uint64_t __real_clock_now_ns(void);
uint64_t __wrap_clock_now_ns(void);

uint64_t __wrap_clock_now_ns(void)
{
    return (counts.now_ns != 0 ? counts.now_ns : __real_clock_now_ns()) + counts.ahead_ns;
}

void __wrap_doorbell_nap(struct doorbell *doorbell, uint64_t ns)
{
    if (ns > counts.longest_nap_ns) {
        counts.longest_nap_ns = ns;
    }
    counts.naps++;
    __real_doorbell_nap(doorbell, counts.long_naps ? UINT64_C(3600000000000) : ns);
}

static enum device_answer submit(struct device_stream *stream, const struct device_call *call, uint32_t *nr,
                                 struct error *err)
{
    (void)stream;
    (void)err;
    while (counts.held) {
        counts.holding = true;
        sched_yield();
    }
    counts.holding = false;
    if (cookie) {
        *nr = 0;
        return DEVICE_AGAIN;
    }
    *nr = 1;
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

static enum device_answer query_event(struct device_event *event, struct error *err)
{
    (void)event;
    (void)err;
    counts.questions++;
    return counts.came ? DEVICE_OK : DEVICE_AGAIN;
}

static struct device_ops ops = {.submit = submit, .poll = poll_device, .event_query = query_event};
static struct loop_bell bell;
static struct worker worker;
static struct stream stream;
static struct call calls[2];

static void start_looking(enum worker_poll policy, bool works_in_poll, uint64_t spin_ns, uint64_t now_ns)
{
    struct error err;
    test_thread = pthread_self();
    memset(&counts, 0, sizeof(counts));
    counts.now_ns = now_ns;
    memset(&stream, 0, sizeof(stream));
    memset(calls, 0, sizeof(calls));
    cookie = NULL;
    list_init(&stream.active_link);
    list_init(&stream.queue);
    list_init(&stream.launched);
    ops.works_in_poll = works_in_poll;
    assert_int_equal(worker_start(&worker, &ops, &bell, policy, spin_ns, &err), MLACAT_OK);
    worker_count_stream(&worker, 1);
}

static void start(enum worker_poll policy, bool works_in_poll)
{
    start_looking(policy, works_in_poll, 100000, 0);
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
    assert_int_equal(counts.longest_nap_ns, WORKER_NAP_NS);
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

/* It is let in when it wakes up, and not when it yields. */
static void test_worker_beside_who_does_not_sleep_naps(void **state)
{
    (void)state;
    start_looking(WORKER_POLL_BALANCED, false, UINT64_C(3600000000000), START_NS);
    post(&calls[0]);
    wait_for_polls(LOOKS);
    assert_int_equal(counts.naps, 0);
    counts.crowded = true;
    counts.now_ns = START_NS + 2 * MLACAT_YIELD_ALONE_NS;
    while (counts.naps == 0) {
        sched_yield();
    }
    assert_int_equal(counts.ahead_ns, 4 * TICK_NS);
    finish();
}

static void hold(struct call *call)
{
    counts.held = true;
    post(call);
    while (!counts.holding) {
        sched_yield();
    }
}

/* No round ends between its sleep and the launch that does not return. */
static void test_worker_is_not_stuck_with_a_call_that_has_just_come(void **state)
{
    (void)state;
    start(WORKER_POLL_SLEEP, false);
    while (!worker.doorbell.asleep) {
        sched_yield();
    }
    worker_stuck(&worker);
    hold(&calls[0]);
    assert_false(worker_stuck(&worker));
    assert_true(worker_stuck(&worker));
    counts.done = true;
    counts.held = false;
    while (mailbox_empty(&worker.outbox) || !worker.doorbell.asleep) {
        sched_yield();
    }
    worker_stuck(&worker); /* the loop has not taken the call */
    assert_ptr_equal(wait_for_call(), &calls[0]);
    hold(&calls[1]);
    assert_false(worker_stuck(&worker));
    assert_true(worker_stuck(&worker));
    counts.held = false;
    assert_ptr_equal(wait_for_call(), &calls[1]);
    worker_stop(&worker);
}

/* ------------------------------------------------------------------------------- calls that wait for an event */

static void wait_for_rounds(void)
{
    uint64_t before = worker.heartbeat;
    while (worker.heartbeat < before + LOOKS) {
        sched_yield();
    }
}

/* The time goes on by `ns`, and the worker makes rounds; returns how often it asks in these. */
static uint32_t questions_after(uint64_t ns)
{
    uint32_t before = counts.questions;
    counts.now_ns += ns;
    wait_for_rounds();
    return counts.questions - before;
}

/* `call` waits for the event, since START_NS. */
static void start_gated(struct call *call)
{
    static struct event event;
    start(WORKER_POLL_BALANCED, false);
    counts.now_ns = START_NS;
    call->event = &event;
    post(call);
    while (counts.questions == 0) {
        sched_yield();
    }
    wait_for_rounds(); /* it notes when it last did something before the time goes on */
}

static void test_worker_asks_for_an_event_ever_more_rarely(void **state)
{
    (void)state;
    start_gated(&calls[0]);
    assert_true(questions_after(0) >= LOOKS - 1);
    assert_true(questions_after(80000) >= 1); /* and those of rounds before the time goes on */
    assert_int_equal(questions_after(80000 / 8 - 1), 0);
    assert_int_equal(questions_after(1), 1);
    assert_int_equal(questions_after(100 * (uint64_t)WORKER_ASK_MOST_NS), 1);
    assert_int_equal(questions_after(WORKER_ASK_MOST_NS - 1), 0);
    assert_int_equal(questions_after(1), 1);
    assert_int_equal(counts.polls, 0);
    counts.came = true;
    counts.now_ns += WORKER_ASK_MOST_NS;
    finish();
}

static void test_worker_naps_until_it_asks_again(void **state)
{
    (void)state;
    start_gated(&calls[0]);
    questions_after(100 * (uint64_t)WORKER_ASK_MOST_NS);
    while (counts.longest_nap_ns < WORKER_ASK_MOST_NS) {
        sched_yield();
    }
    assert_int_equal(counts.longest_nap_ns, WORKER_ASK_MOST_NS);
    counts.came = true;
    counts.now_ns += WORKER_ASK_MOST_NS;
    finish();
}

/* The clock stands still: nothing but the withdrawal can end it, and the call behind it. */
static void test_worker_withdrawn_call_waits_for_no_question(void **state)
{
    (void)state;
    start_gated(&calls[0]);
    questions_after(100 * (uint64_t)WORKER_ASK_MOST_NS);
    counts.long_naps = true;
    counts.done = true;
    assert_true(call_withdraw(&calls[0], CALL_WITHDRAWN_CANCEL));
    worker_withdrawn(&worker);
    assert_ptr_equal(wait_for_call(), &calls[0]);
    assert_int_equal(calls[0].error.code, MLACAT_CANCELLED);
    post(&calls[1]);
    assert_ptr_equal(wait_for_call(), &calls[1]);
    assert_int_equal(calls[1].error.code, MLACAT_OK);
    worker_stop(&worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worker_naps_between_looks_at_a_busy_device),
        cmocka_unit_test(test_worker_mail_ends_a_nap),
        cmocka_unit_test(test_worker_withdrawal_ends_a_nap),
        cmocka_unit_test(test_worker_does_not_nap),
        cmocka_unit_test(test_worker_beside_who_does_not_sleep_naps),
        cmocka_unit_test(test_worker_is_not_stuck_with_a_call_that_has_just_come),
        cmocka_unit_test(test_worker_asks_for_an_event_ever_more_rarely),
        cmocka_unit_test(test_worker_naps_until_it_asks_again),
        cmocka_unit_test(test_worker_withdrawn_call_waits_for_no_question),
    };
    alarm(50);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
