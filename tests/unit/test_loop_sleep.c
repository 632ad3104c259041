/* SPDX-License-Identifier: Apache-2.0 */
/* A loop that has events in every turn, and when it lets others go first. The time here is the test's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>
#include <uv.h>

#include "loop_sleep.h"

#define TURN_NS 5000
#define TURNS 1000
#define SPIN_NS 50000

static struct {
    uint64_t now_ns;
    unsigned yields;
    unsigned turns;
    unsigned early; /* yields before this turn's events were handed on */
    bool handed_on;
    uint64_t yield_takes_ns;
    bool busy_at_end; /* it would not have waited for its sockets */
    bool packets;     /* each turn has some; else completions */
} scene;

static uv_loop_t loop;
static struct loop_sleep loop_sleep;
static struct service service;

uint64_t __wrap_clock_now_ns(void);
int __wrap_sched_yield(void);
bool __wrap_service_take(struct service *s);
uint32_t __wrap_service_streams(const struct service *s);

uint64_t __wrap_clock_now_ns(void)
{
    return scene.now_ns;
}

int __wrap_sched_yield(void)
{
    scene.yields++;
    scene.early += !scene.handed_on;
    scene.now_ns += scene.yield_takes_ns;
    return 0;
}

bool __wrap_service_take(struct service *s)
{
    (void)s;
    scene.handed_on = false;
    return !scene.packets;
}

uint32_t __wrap_service_streams(const struct service *s)
{
    (void)s;
    return 1;
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    uv_close(handle, NULL);
}

static void keep_awake(uv_idle_t *idle)
{
    (void)idle;
    scene.now_ns += TURN_NS;
}

static void on_turn(void *owner)
{
    (void)owner;
    scene.handed_on = true;
    service.had_packets = scene.packets;
    if (++scene.turns == TURNS) {
        scene.busy_at_end = uv_is_active((uv_handle_t *)&loop_sleep.busy);
        uv_walk(&loop, close_handle, NULL);
    }
}

static unsigned yields_of(enum worker_poll poll, bool packets)
{
    uv_idle_t awake;
    scene.now_ns = 1000000000;
    scene.yields = 0;
    scene.turns = 0;
    scene.early = 0;
    scene.packets = packets;
    service = (struct service){.bell = &loop_sleep.bell, .had_packets = packets};
    assert_int_equal(uv_loop_init(&loop), 0);
    loop_sleep_init(&loop_sleep, &loop, &service, poll, SPIN_NS, on_turn, NULL);
    uv_idle_init(&loop, &awake);
    uv_idle_start(&awake, keep_awake);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    assert_true(scene.turns >= TURNS);
    return scene.yields;
}

static void test_a_loop_that_is_never_idle_lets_others_go_first(void **state)
{
    static const enum worker_poll polls[] = {WORKER_POLL_SPIN, WORKER_POLL_BALANCED};
    (void)state;
    for (size_t i = 0; i < sizeof(polls) / sizeof(polls[0]); i++) {
        for (int packets = 0; packets < 2; packets++) {
            assert_in_range(yields_of(polls[i], packets != 0), TURNS / (SPIN_SHARE_NS / TURN_NS),
                            TURNS / (SPIN_SHARE_NS / TURN_NS) + 1);
            assert_int_equal(scene.early, 0);
        }
    }
}

/* It only waits for its sockets, as other programs do, and the kernel shares the CPUs out. */
static void test_a_loop_that_never_looks_on_does_not(void **state)
{
    (void)state;
    assert_int_equal(yields_of(WORKER_POLL_SLEEP, true), 0);
    assert_int_equal(yields_of(WORKER_POLL_SLEEP, false), 0);
}

/* So that it is let in when it is woken. */
static void test_a_loop_beside_who_does_not_sleep_looks_on_no_more(void **state)
{
    (void)state;
    scene.yield_takes_ns = 4000000;
    unsigned yields = yields_of(WORKER_POLL_BALANCED, true);
    scene.yield_takes_ns = 0;
    assert_int_equal(yields, 4);
    assert_false(scene.busy_at_end);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_loop_that_is_never_idle_lets_others_go_first),
        cmocka_unit_test(test_a_loop_that_never_looks_on_does_not),
        cmocka_unit_test(test_a_loop_beside_who_does_not_sleep_looks_on_no_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
