/* SPDX-License-Identifier: Apache-2.0 */
#include "arm_scene.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "clock.h"
#include "paper_device.h"

_Atomic uint64_t frozen_ns;

uint64_t __real_clock_now_ns(void);
uint64_t __wrap_clock_now_ns(void);

uint64_t __wrap_clock_now_ns(void)
{
    return frozen_ns != 0 ? frozen_ns : __real_clock_now_ns();
}

static int open_with(const struct device_ops *ops)
{
    frozen_ns = 0;
    scene_open(ops);
    paper.takes_arms = 1;
    return 0;
}

int arm_setup_running(void **state)
{
    (void)state;
    return open_with(&paper_ops);
}

int arm_setup(void **state)
{
    arm_setup_running(state);
    frozen_ns = __real_clock_now_ns();
    return 0;
}

int arm_setup_without(void **state)
{
    static struct device_ops ops;
    (void)state;
    ops = paper_ops;
    ops.arm = NULL;
    open_with(&ops);
    frozen_ns = __real_clock_now_ns();
    return 0;
}

int arm_teardown(void **state)
{
    (void)state;
    frozen_ns = 0;
    scene_close();
    return 0;
}

uint64_t rounds(void)
{
    return atomic_load(&engine.workers[0].heartbeat);
}

void settle(void)
{
    uint64_t before = rounds();
    TURN_UNTIL(rounds() >= before + 3);
}

void pass(uint64_t ns)
{
    frozen_ns += ns;
    settle();
}

void send_gated(uint64_t id, uint64_t ready, uint32_t more_flags)
{
    write_entry(id, MLACAT_RING_SUBMIT_READY | more_flags)->ready = ready;
    submit();
}

void send_cancel(uint64_t id, uint64_t of_id)
{
    write_entry(id, MLACAT_RING_SUBMIT_CANCEL)->ready = of_id;
    submit();
}

void say_ready(uint64_t value)
{
    __atomic_store_n(&client->ready, value, __ATOMIC_RELEASE);
}

void arm_one(void)
{
    send_gated(1, 1, 0);
    TURN_UNTIL(paper.armed == 1);
}

void arm_one_before(uint32_t nr)
{
    write_entry(1, MLACAT_RING_SUBMIT_READY)->ready = 1;
    send_calls(2, nr, 0);
    TURN_UNTIL(paper.armed == 1);
    assert_int_equal(mlacat_ring_taken(daemon_page), 1 + nr);
}

void lapse(void)
{
    frozen_ns += paper.wait_ns;
    paper.lapse_nr = 1;
    TURN_UNTIL(paper.lapse_nr == 0);
    settle();
}

uint64_t outcomes(enum mlacat_status status)
{
    return counters_outcome(&engine.workers[0].counters, status);
}

void assert_gates(uint64_t calls, uint64_t armed, uint64_t lapses)
{
    struct gate_counters gates = {0};
    counters_merge_gates(&gates, &engine.workers[0].counters);
    assert_int_equal(gates.calls, calls);
    assert_int_equal(gates.armed, armed);
    assert_int_equal(gates.lapses, lapses);
}
