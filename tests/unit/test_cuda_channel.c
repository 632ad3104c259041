/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA streams of a device: which side each is on, what is kept of them, and what is left when the driver fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_channel.h"
#include "cuda_driver.h"

static struct device device;
static struct error err;

static int setup(void **state)
{
    (void)state;
    driver_reset();
    driver_device_init(&device);
    driver.total = 0;
    return 0;
}

/* Asserts that no stream is left. */
static int teardown(void **state)
{
    (void)state;
    driver_device_fini(&device);
    return 0;
}

static struct cuda_channel *take(enum cuda_side side)
{
    struct cuda_channel *channel = NULL;
    assert_int_equal(cuda_channel_take(&device.channels, side, &channel, &err), MLACAT_OK);
    assert_int_equal(channel->side, side);
    return channel;
}

static void give(struct cuda_channel *channel)
{
    cuda_channel_give(&device.channels, channel);
}

/* The driver of the test numbers its streams in the order in which they are made, and fails who writes to one that was
 * not used when it was its turn. */
static void test_cuda_channel_sides_go_by_the_order_of_creation(void **state)
{
    struct cuda_channel *apart[3];
    struct cuda_channel *beside[3];
    (void)state;
    for (int i = 0; i < 3; i++) {
        apart[i] = take(CUDA_SIDE_APART);
        assert_int_equal(driver.streams, 2 * i + 1);
        beside[i] = take(CUDA_SIDE_BESIDE);
        assert_int_equal(driver.streams, 2 * i + 2);
    }
    for (int i = 0; i < 3; i++) {
        assert_true((char *)apart[i]->stream < (char *)beside[i]->stream);
        assert_true(i == 0 || (char *)beside[i - 1]->stream < (char *)apart[i]->stream);
    }
    for (int i = 0; i < 3; i++) {
        give(apart[i]);
        give(beside[i]);
    }
    assert_int_equal(driver.streams, 0);
}

/* Each is used before the next one is made. */
static void test_cuda_channel_is_used_at_once(void **state)
{
    (void)state;
    driver.fail_at = 4; /* two to make and two to use */
    driver.fail_result = 2;
    struct cuda_channel *channel;
    assert_int_not_equal(cuda_channel_take(&device.channels, CUDA_SIDE_BESIDE, &channel, &err), MLACAT_OK);
    assert_int_equal(driver.calls[DRIVER_cuStreamCreate], 2);
    assert_int_equal(driver.calls[DRIVER_cuStreamWriteValue64], 1); /* those that went well are not counted */
}

static void test_cuda_channel_of_the_other_side_is_kept(void **state)
{
    (void)state;
    struct cuda_channel *beside = take(CUDA_SIDE_BESIDE);
    assert_int_equal(driver.streams, 2);
    struct cuda_channel *apart = take(CUDA_SIDE_APART);
    assert_int_equal(driver.streams, 2);
    assert_true((char *)apart->stream < (char *)beside->stream);
    const struct cuda_stream *given = beside->stream;
    give(beside);
    beside = take(CUDA_SIDE_BESIDE);
    assert_ptr_equal(beside->stream, given);
    assert_int_equal(driver.streams, 2);
    give(apart);
    assert_int_equal(driver.streams, 2);
    give(beside);
    assert_int_equal(driver.streams, 0);
}

/* To the driver it is not a new process because all of its streams have gone. */
static void test_cuda_channel_destroyed_ones_count(void **state)
{
    (void)state;
    give(take(CUDA_SIDE_APART));
    assert_int_equal(driver.streams, 0);
    struct cuda_channel *apart = take(CUDA_SIDE_APART);
    assert_int_equal(driver.streams, 2); /* the second one ever is on the other side */
    give(apart);
    assert_int_equal(driver.streams, 0);
}

/* The first or the second one cannot be made, or not used. */
static void test_cuda_channel_failure_leaves_nothing(void **state)
{
    for (uint32_t at = 1; at <= 4; at++) {
        struct cuda_channel *channel = NULL;
        teardown(state);
        setup(state);
        driver.fail_at = at;
        driver.fail_result = 2;
        assert_int_not_equal(cuda_channel_take(&device.channels, CUDA_SIDE_BESIDE, &channel, &err), MLACAT_OK);
        assert_null(channel);
        assert_int_equal(driver.streams, 0);
        driver.fail_at = 0;
        give(take(CUDA_SIDE_BESIDE));
        assert_int_equal(driver.streams, 0);
    }
}

/* What was made before is kept for others while somebody has one, and what was not used has had no turn. */
static void test_cuda_channel_failure_leaves_others_alone(void **state)
{
    struct cuda_channel *failed;
    (void)state;
    struct cuda_channel *first = take(CUDA_SIDE_APART);
    driver.total = 0;
    driver.fail_at = 4;
    driver.fail_result = 2;
    assert_int_not_equal(cuda_channel_take(&device.channels, CUDA_SIDE_APART, &failed, &err), MLACAT_OK);
    driver.fail_at = 0;
    assert_int_equal(driver.streams, 2);
    struct cuda_channel *beside = take(CUDA_SIDE_BESIDE);
    assert_int_equal(driver.streams, 2);
    struct cuda_channel *apart = take(CUDA_SIDE_APART);
    assert_int_equal(driver.streams, 3);
    give(first);
    give(apart);
    assert_int_equal(driver.streams, 3);
    give(beside);
    assert_int_equal(driver.streams, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_cuda_channel_sides_go_by_the_order_of_creation),
        TEST(test_cuda_channel_is_used_at_once),
        TEST(test_cuda_channel_of_the_other_side_is_kept),
        TEST(test_cuda_channel_destroyed_ones_count),
        TEST(test_cuda_channel_failure_leaves_nothing),
        TEST(test_cuda_channel_failure_leaves_others_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
