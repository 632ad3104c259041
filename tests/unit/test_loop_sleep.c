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
    bool packets; /* each turn has some; else completions */
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
    return 0;
}

bool __wrap_service_take(struct service *s)
{
    (void)s;
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
}

static void on_turn(void *owner)
{
    (void)owner;
    scene.now_ns += TURN_NS;
    service.had_packets = scene.packets;
    if (++scene.turns == TURNS) {
        uv_walk(&loop, close_handle, NULL);
    }
}

static unsigned yields_of(enum worker_poll poll, bool packets)
{
    uv_idle_t awake;
    scene.now_ns = 1000000000;
    scene.yields = 0;
    scene.turns = 0;
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
    static const enum worker_poll polls[] = {WORKER_POLL_SPIN, WORKER_POLL_BALANCED, WORKER_POLL_SLEEP};
    (void)state;
    for (size_t i = 0; i < sizeof(polls) / sizeof(polls[0]); i++) {
        for (int packets = 0; packets < 2; packets++) {
            assert_in_range(yields_of(polls[i], packets != 0), TURNS / (SPIN_SHARE_NS / TURN_NS),
                            TURNS / (SPIN_SHARE_NS / TURN_NS) + 1);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_loop_that_is_never_idle_lets_others_go_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
