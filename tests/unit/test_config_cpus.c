/* SPDX-License-Identifier: Apache-2.0 */
/* What is chosen by the number of CPUs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "config.h"
#include "cpus.h"

#define US UINT64_C(1000)

static uint32_t cpus;

uint32_t __wrap_cpus_usable(void);
uint32_t __wrap_cpus_usable(void)
{
    return cpus;
}

static void test_config_workers_half_of_the_cpus(void **state)
{
    (void)state;
    static const uint32_t cases[][2] = {{1, 1}, {2, 1}, {3, 1}, {4, 2}, {16, 8}, {129, 64}, {1000, 64}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        cpus = cases[i][0];
        assert_int_equal(config_workers(&(struct config){.workers = 0}), cases[i][1]);
        assert_int_equal(config_workers(&(struct config){.workers = 5}), 5);
    }
}

/* The event loop does not look on for as long as a worker. */
static void test_config_spin_by_the_cpus(void **state)
{
    (void)state;
    static const struct {
        uint32_t cpus;
        uint32_t spin_us;
        uint64_t workers_us;
        uint64_t loop_us;
    } cases[] = {{1, 0, 50, 50},          {7, 0, 50, 50},          {8, 0, 5000, 1000},
                 {200, 0, 5000, 1000},    {1, 20, 20, 20},         {8, 20, 20, 20},
                 {1, 10000, 10000, 1000}, {8, 10000, 10000, 1000}, {8, 1000, 1000, 1000}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct config config = {.spin_us = cases[i].spin_us};
        cpus = cases[i].cpus;
        assert_int_equal(config_spin_ns(&config), cases[i].workers_us * US);
        assert_int_equal(config_loop_spin_ns(&config), cases[i].loop_us * US);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_workers_half_of_the_cpus),
        cmocka_unit_test(test_config_spin_by_the_cpus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
