/* SPDX-License-Identifier: Apache-2.0 */
/* On which side of the GPU's channels the direct lane launches a call, and when it must not turn to the other one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "cuda_flights.h"
#include "cuda_scene.h"

static struct cuda_flights flights;

static int setup(void **state)
{
    (void)state;
    scene_open(true);
    memset(&flights, 0, sizeof(flights));
    assert_int_equal(cuda_flights_open(&flights, &device, &words, &err), MLACAT_OK);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    cuda_flights_close(&flights);
    scene_close();
    return 0;
}

static struct cuda_lane *direct_lane(void)
{
    return &flights.lane[CUDA_DIRECT_LANE];
}

static void assert_side(enum cuda_side side)
{
    assert_ptr_equal(direct_lane()->stream, direct_lane()->channel[side]->stream);
}

static void add(uint64_t sequence, bool tell_done)
{
    struct device_call call = scene_call(4, sequence);
    struct cuda_footprint footprint;
    call.tell_done = tell_done;
    cuda_footprint_init(&footprint, &call);
    assert_int_equal(cuda_flights_add(&flights, &call, &footprint, &err), MLACAT_OK);
}

/* The newest call, or a launch of it, on the direct lane. `told`: its kernel writes the words. */
static void launch(bool told)
{
    uint32_t first = flights.tail - 1;
    cuda_flights_choose_side(&flights, first);
    struct cuda_end end = cuda_flights_end(&flights, first, CUDA_DIRECT_LANE, false);
    cuda_flights_expect(&flights, &end, told);
}

/* The GPU has written so much; returns how many calls have ended with it. */
static int see(uint64_t fence, uint64_t fence_of_lane)
{
    struct device_completion done[CUDA_FLIGHTS_NR];
    __atomic_store_n(words.fence, fence, __ATOMIC_RELEASE);
    atomic_store(direct_lane()->fence->word, fence_of_lane);
    cuda_flights_look(&flights);
    cuda_flights_tell(&flights);
    return cuda_flights_reap(&flights, done, CUDA_FLIGHTS_NR);
}

static void test_cuda_side_goes_by_who_waits(void **state)
{
    (void)state;
    for (uint64_t sequence = 1; sequence <= 6; sequence++) {
        bool tell_done = sequence % 3 == 0;
        add(sequence, tell_done);
        launch(false);
        assert_side(tell_done ? CUDA_SIDE_APART : CUDA_SIDE_BESIDE);
        assert_int_equal(see(sequence, 0), 1);
    }
}

/* Its words would come before those of the call before it. */
static void test_cuda_side_stays_behind_a_call_in_flight(void **state)
{
    (void)state;
    add(1, true);
    launch(false);
    add(2, false);
    launch(false);
    assert_side(CUDA_SIDE_APART);
    assert_int_equal(see(1, 0), 1);
    add(3, false);
    launch(false);
    assert_side(CUDA_SIDE_APART);
    assert_int_equal(see(3, 0), 2);
    add(4, false);
    launch(false);
    assert_side(CUDA_SIDE_BESIDE);
}

/* The fence has come, but nobody knows of `done`, which a newer one on the other side could come before. */
static void test_cuda_side_stays_until_done_has_landed(void **state)
{
    (void)state;
    add(1, true);
    launch(true);
    assert_int_equal(see(1, 0), 1);
    add(2, false);
    launch(false);
    assert_side(CUDA_SIDE_APART);
    assert_int_equal(see(2, 0), 1);
}

/* A long call that began behind another one: its next launch would end before the one on the lane. */
static void test_cuda_side_stays_for_all_launches_under_way(void **state)
{
    (void)state;
    add(1, false);
    launch(false);
    add(2, true);
    cuda_flights_newest(&flights)->unfinished = true;
    launch(false);
    assert_side(CUDA_SIDE_BESIDE);
    assert_int_equal(see(1, 0), 1);
    launch(false);
    assert_side(CUDA_SIDE_BESIDE);
    assert_int_equal(see(1, 1), 0);
    launch(false);
    assert_side(CUDA_SIDE_BESIDE);
    assert_int_equal(see(1, 3), 0);
    launch(false);
    assert_side(CUDA_SIDE_APART);
    cuda_flights_newest(&flights)->unfinished = false;
    assert_int_equal(see(1, 4), 1);
}

#define SIDE_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SIDE_TEST(test_cuda_side_goes_by_who_waits),
        SIDE_TEST(test_cuda_side_stays_behind_a_call_in_flight),
        SIDE_TEST(test_cuda_side_stays_until_done_has_landed),
        SIDE_TEST(test_cuda_side_stays_for_all_launches_under_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
