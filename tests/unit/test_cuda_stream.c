/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_flights.h"
#include "cuda_scene.h"

#define ALL 1000000
#define OTHERS_NR (CUDA_FENCES_PER_SLAB / CUDA_LANES)

static struct device_completion done[256];

static int setup(void **state)
{
    (void)state;
    scene_open(false);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scene_close();
    return 0;
}

static enum device_answer submit(uint64_t rows, uint64_t cookie)
{
    struct device_call call = scene_call(rows, cookie);
    return scene_submit(stream, &call);
}

static int poll(void)
{
    return cuda_stream_poll(stream, done, 256, &err);
}

static void test_stream_completes_when_the_fence_is_written(void **state)
{
    (void)state;
    assert_int_equal(submit(4, 1), DEVICE_OK);
    assert_int_equal(submit(4, 2), DEVICE_OK);
    assert_int_equal(poll(), 0);
    driver_work(1); /* the kernel has ended, its fence is not written */
    assert_int_equal(poll(), 0);
    driver_work(1);
    assert_int_equal(poll(), 1);
    assert_ptr_equal(done[0].cookie, (void *)1);
    assert_int_equal(done[0].error.code, MLACAT_OK);
    assert_int_equal(atomic_load(&memory->segment->pins), 3);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    assert_ptr_equal(done[0].cookie, (void *)2);
    assert_int_equal(driver.calls[DRIVER_cuStreamQuery], 0);
}

static void test_stream_nothing_to_copy_ends_in_its_turn(void **state)
{
    (void)state;
    struct device_call call = scene_call(4, 2);
    call.plan.copy[OP_OUT] = false;
    assert_int_equal(submit(4, 1), DEVICE_OK);
    assert_int_equal(scene_submit(stream, &call), DEVICE_OK);
    assert_int_equal(poll(), 0);
    assert_int_equal(driver.launches, 1);
    driver_work(ALL);
    assert_int_equal(poll(), 2);
}

static void test_stream_long_call_is_many_launches_few_ahead(void **state)
{
    (void)state;
    uint64_t rows = 200 * MIB / 192;
    uint32_t most = 0;
    int polls = 0;
    assert_int_equal(submit(rows, 1), DEVICE_OK);
    assert_int_equal(submit(4, 2), DEVICE_AGAIN); /* it could not be cancelled any more */
    while (poll() == 0 && polls++ < 10000) {
        uint32_t ahead = driver.launches;
        most = ahead - (uint32_t)polls > most && polls > 1 ? ahead - (uint32_t)polls : most;
        driver_work(2);
    }
    assert_ptr_equal(done[0].cookie, (void *)1);
    assert_true(driver.launches >= 400 / 8);
    assert_true(most <= 3);
    assert_int_equal(driver.calls[DRIVER_cuStreamWriteValue64] + driver.signal_launches, driver.launches);
    assert_int_equal(submit(4, 2), DEVICE_OK);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
}

static void test_stream_is_full_after_a_millisecond_of_work(void **state)
{
    (void)state;
    int taken = 0;
    while (submit(2 * MIB / 384, (uint64_t)taken) == DEVICE_OK) {
        taken++;
    }
    assert_int_equal(taken, 5); /* 8 MiB in calls of a little less than 2 */
    driver_work(2);
    assert_int_equal(poll(), 1);
    assert_int_equal(submit(4, 9), DEVICE_OK);
    driver_work(ALL);
    assert_int_equal(poll(), 5);
    taken = 0;
    while (submit(4, (uint64_t)taken) == DEVICE_OK) {
        taken++;
    }
    assert_int_equal(taken, 128);
    driver_work(ALL);
    assert_int_equal(cuda_stream_poll(stream, done, 100, &err), 100);
    assert_int_equal(poll(), 28);
}

static void test_stream_stale_memory_fails_the_call(void **state)
{
    (void)state;
    atomic_store(&memory->segment->stale, true);
    assert_int_equal(submit(4, 1), DEVICE_ERROR);
    assert_int_equal(err.code, MLACAT_FAILED_PRECONDITION);
    assert_int_equal(err.scope, MLACAT_SCOPE_BUFFER);
    assert_int_equal(driver.launches, 0);
}

static void test_stream_refused_launch_leaves_nothing(void **state)
{
    (void)state;
    driver.fail_at = 1;
    driver.fail_result = 701;
    assert_int_equal(submit(4, 1), DEVICE_ERROR);
    assert_int_equal(err.scope, MLACAT_SCOPE_CALL);
    assert_int_equal(atomic_load(&memory->segment->pins), 0);
    assert_int_equal(submit(4, 2), DEVICE_OK);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    assert_ptr_equal(done[0].cookie, (void *)2);
}

/* The first launches run: the call ends, with the error, only when they have. */
static void test_stream_later_launch_fails_after_the_first_ended(void **state)
{
    (void)state;
    driver.fail_at = 3; /* kernel, fence, kernel */
    driver.fail_result = 701;
    assert_int_equal(submit(20 * MIB / 192, 1), DEVICE_OK);
    assert_int_equal(poll(), 0);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    assert_int_equal(done[0].error.code, MLACAT_INTERNAL);
    assert_int_equal(done[0].error.scope, MLACAT_SCOPE_SESSION);
    assert_int_equal(submit(4, 2), DEVICE_OK);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
}

static void test_stream_lost_at_launch(void **state)
{
    (void)state;
    driver.fail_at = 1;
    driver.fail_result = 700;
    assert_int_equal(submit(4, 1), DEVICE_OK);
    assert_int_equal(poll(), -1);
    assert_int_equal(err.scope, MLACAT_SCOPE_DEVICE);
    assert_int_equal(submit(4, 2), DEVICE_ERROR);
    assert_int_equal(poll(), -1);
}

static void test_stream_lost_fence_write(void **state)
{
    (void)state;
    struct device_call call = scene_call(5000, 1);
    call.plan.offset_bytes[OP_OUT] = 1; /* more than one block does, which would tell its end itself */
    driver.fail_at = 2;
    driver.fail_result = 999;
    assert_int_equal(scene_submit(stream, &call), DEVICE_OK);
    assert_int_equal(poll(), -1);
    assert_int_equal(err.scope, MLACAT_SCOPE_DEVICE);
}

static void test_stream_silent_fence_asks_the_driver(void **state)
{
    (void)state;
    assert_int_equal(submit(4, 1), DEVICE_OK);
    assert_int_equal(poll(), 0);
    driver.now_ns += CUDA_FENCE_SILENCE_NS - 1;
    assert_int_equal(poll(), 0);
    assert_int_equal(driver.calls[DRIVER_cuStreamQuery], 0);
    driver.now_ns += 1;
    assert_int_equal(poll(), 0);
    assert_int_equal(poll(), 0);
    assert_int_equal(driver.calls[DRIVER_cuStreamQuery], 1);
    driver.query_result = 719;
    driver.now_ns += CUDA_FENCE_SILENCE_NS;
    assert_int_equal(poll(), -1);
    assert_int_equal(err.code, MLACAT_UNAVAILABLE);
    assert_true(atomic_load(&device.lost));
}

static void test_stream_goes_on_from_the_fence_of_an_older_one(void **state)
{
    (void)state;
    assert_int_equal(submit(4, 1), DEVICE_OK);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    struct device_stream *others[OTHERS_NR];
    for (uint32_t i = 0; i < OTHERS_NR; i++) { /* one more than a slab has left: a second one */
        assert_int_equal(cuda_stream_open(&device, NULL, &others[i], &err), MLACAT_OK);
    }
    assert_int_equal(driver.pages, 2);
    cuda_stream_close(stream);
    assert_int_equal(cuda_stream_open(&device, NULL, &stream, &err), MLACAT_OK);
    for (uint32_t i = 0; i < OTHERS_NR; i++) {
        cuda_stream_close(others[i]);
        assert_int_equal(cuda_stream_open(&device, NULL, &others[i], &err), MLACAT_OK);
    }
    assert_int_equal(driver.pages, 2); /* none given back before the end, none made again */
    struct device_call call = scene_call(4, 5);
    for (uint32_t i = 0; i < OTHERS_NR; i++) {
        assert_int_equal(scene_submit(others[i], &call), DEVICE_OK);
        assert_int_equal(cuda_stream_poll(others[i], done, 1, &err), 0);
        driver_work(ALL);
        assert_int_equal(cuda_stream_poll(others[i], done, 1, &err), 1);
        cuda_stream_close(others[i]);
    }
}

static void test_stream_open_each_call_failing_in_turn(void **state)
{
    (void)state;
    struct device_stream *more;
    uint32_t fail_at = 1;
    driver.total = 0;
    driver.fail_at = fail_at;
    while (cuda_stream_open(&device, NULL, &more, &err) != MLACAT_OK) { /* what it has made by then is kept */
        assert_int_equal(err.code, MLACAT_RESOURCE_EXHAUSTED);
        driver.total = 0;
        driver.fail_at = ++fail_at;
    }
    driver.fail_at = 0;
    assert_true(fail_at > CUDA_LANES);
    cuda_stream_close(more);
}

#define STREAM_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        STREAM_TEST(test_stream_completes_when_the_fence_is_written),
        STREAM_TEST(test_stream_nothing_to_copy_ends_in_its_turn),
        STREAM_TEST(test_stream_long_call_is_many_launches_few_ahead),
        STREAM_TEST(test_stream_is_full_after_a_millisecond_of_work),
        STREAM_TEST(test_stream_stale_memory_fails_the_call),
        STREAM_TEST(test_stream_refused_launch_leaves_nothing),
        STREAM_TEST(test_stream_later_launch_fails_after_the_first_ended),
        STREAM_TEST(test_stream_lost_at_launch),
        STREAM_TEST(test_stream_lost_fence_write),
        STREAM_TEST(test_stream_silent_fence_asks_the_driver),
        STREAM_TEST(test_stream_goes_on_from_the_fence_of_an_older_one),
        STREAM_TEST(test_stream_open_each_call_failing_in_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
