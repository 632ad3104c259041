/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "cuda_driver.h"

#define MIB ((uint64_t)1 << 20)

static struct device device;
static struct error err;
static bool known; /* of the last get */

static int setup(void **state)
{
    (void)state;
    driver_reset();
    driver_device_init(&device);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    driver_device_fini(&device);
    return 0;
}

static struct cuda_segment *get(uint32_t index, uint64_t buffer_id)
{
    struct cuda_ipc_handle handle = driver_allocate(index, 4 * MIB);
    struct cuda_segment *segment = NULL;
    if (cuda_segments_get(&device.segments, &handle, buffer_id, &segment, &known, &err) != MLACAT_OK) {
        fail_msg("%s", err.message);
    }
    return segment;
}

/* Lets time pass as the control thread does; returns how many were closed. */
static uint32_t tend_for(uint64_t ns)
{
    uint32_t before = driver.calls[DRIVER_cuIpcCloseMemHandle];
    uint64_t end_ns = driver.now_ns + ns;
    for (;;) {
        uint64_t in_ns = cuda_segments_tend(&device.segments);
        if (in_ns == UINT64_MAX || driver.now_ns + in_ns > end_ns) {
            driver.now_ns = end_ns;
            return driver.calls[DRIVER_cuIpcCloseMemHandle] - before;
        }
        driver.now_ns += in_ns > 0 ? in_ns : 1;
    }
}

static void test_segments_opens_an_allocation_once(void **state)
{
    (void)state;
    struct cuda_segment *first = get(1, 7);
    assert_false(known);
    struct cuda_segment *second = get(1, 7);
    assert_true(known);
    assert_ptr_equal(first, second);
    assert_int_equal(driver.calls[DRIVER_cuIpcOpenMemHandle], 1);
    assert_int_equal(first->size_bytes, 4 * MIB);
    cuda_segments_put(&device.segments, first);
    assert_int_equal(cuda_segments_tend(&device.segments), UINT64_MAX); /* still in use */
    cuda_segments_put(&device.segments, second);
}

static void test_segments_unused_is_kept_for_a_moment_and_closed(void **state)
{
    (void)state;
    cuda_segments_put(&device.segments, get(1, 7));
    assert_int_equal(tend_for(CUDA_IDLE_NS / 2), 0);
    cuda_segments_put(&device.segments, get(1, 7));
    assert_int_equal(driver.calls[DRIVER_cuIpcOpenMemHandle], 1);
    assert_int_equal(tend_for(CUDA_IDLE_NS * 3 / 4), 0); /* its time starts anew */
    assert_int_equal(tend_for(CUDA_IDLE_NS), 1);
    assert_int_equal(driver.allocations[1].opened, 0);
    cuda_segments_put(&device.segments, get(1, 7));
    assert_false(known);
    assert_int_equal(driver.calls[DRIVER_cuIpcOpenMemHandle], 2);
}

static uint64_t released(void)
{
    return device.segments.released;
}

static uint64_t closed(void)
{
    return device.segments.closed;
}

/* Whoever wants memory back asks until as many are closed as were released before. */
static void test_segments_tell_how_far_closing_is(void **state)
{
    (void)state;
    struct cuda_segment *shared = get(9, 9);
    get(9, 9);
    cuda_segments_put(&device.segments, shared); /* one registration of two */
    assert_int_equal(released(), 0);
    for (uint32_t i = 1; i <= 3; i++) {
        cuda_segments_put(&device.segments, get(i, i));
        assert_int_equal(released(), i);
        assert_int_equal(closed(), 0);
    }
    struct cuda_segment *again = get(1, 1);
    assert_true(known);
    assert_int_equal(closed(), 1);
    assert_int_equal(tend_for(CUDA_IDLE_NS), 1);
    assert_int_equal(closed(), 2);
    cuda_segments_put(&device.segments, again);
    assert_int_equal(released(), 4);
    assert_int_equal(tend_for(CUDA_CLOSE_PACE_NS), 1);
    assert_int_equal(closed(), 3);
    assert_int_equal(tend_for(2 * CUDA_IDLE_NS), 1);
    assert_int_equal(closed(), 4);
    cuda_segments_put(&device.segments, shared);
    assert_int_equal(released(), 5);
    assert_int_equal(closed(), 4);
}

/* Memory that was freed while somebody has it registered yet. */
static void test_segments_tell_how_far_closing_of_old_memory_is(void **state)
{
    (void)state;
    struct cuda_segment *old = get(1, 7);
    struct cuda_segment *new = get(1, 8);
    assert_int_equal(released(), 0);
    cuda_segments_put(&device.segments, old);
    assert_int_equal(closed(), released());
    cuda_segments_put(&device.segments, new);
    assert_int_equal(released(), closed() + 1);
}

static void test_segments_close_one_per_pace(void **state)
{
    (void)state;
    struct cuda_segment *busy = get(50, 50);
    assert_true(cuda_segment_pin(busy));
    for (uint32_t i = 0; i < 50; i++) {
        cuda_segments_put(&device.segments, get(i, i));
    }
    assert_int_equal(tend_for(CUDA_IDLE_NS + 20 * CUDA_CLOSE_PACE_NS), 21);
    assert_int_equal(tend_for(40 * CUDA_CLOSE_PACE_NS), 29);
    assert_int_equal(driver.shortest_close_ns, CUDA_CLOSE_PACE_NS);
    assert_int_equal(device.segments.unused_nr, 0);
    cuda_segment_unpin(busy);
    cuda_segments_put(&device.segments, busy);
}

/* A runner that has given back what it had, between its steps. */
static void test_segments_close_faster_while_quiet(void **state)
{
    (void)state;
    struct cuda_segment *other = get(100, 100);
    for (uint32_t i = 0; i < 100; i++) {
        cuda_segments_put(&device.segments, get(i, i));
    }
    assert_int_equal(tend_for(CUDA_IDLE_NS + 40 * CUDA_QUIET_PACE_NS), 41);
    assert_int_equal(driver.shortest_close_ns, CUDA_QUIET_PACE_NS);
    assert_true(cuda_segment_pin(other));
    assert_int_equal(tend_for(5 * CUDA_CLOSE_PACE_NS), 5);
    cuda_segment_unpin(other);
    assert_int_equal(tend_for(CUDA_QUIET_NS), 3); /* not at once */
    assert_int_equal(tend_for(20 * CUDA_QUIET_PACE_NS), 20);
    cuda_segments_put(&device.segments, other);
}

static void test_segments_new_memory_replaces_old(void **state)
{
    (void)state;
    struct cuda_segment *old = get(1, 7);
    uint64_t serial = old->serial;
    struct cuda_segment *fresh = get(1, 8); /* asserts in the driver that the old one was closed first */
    assert_ptr_not_equal(old, fresh);
    assert_int_not_equal(fresh->serial, serial);
    assert_int_equal(old->state, CUDA_SEGMENT_CLOSED);
    assert_false(cuda_segment_pin(old));
    assert_true(cuda_segment_pin(fresh));
    cuda_segment_unpin(fresh);
    cuda_segments_put(&device.segments, old);
    cuda_segments_put(&device.segments, fresh);
}

static void test_segments_replacing_keeps_the_pace(void **state)
{
    (void)state;
    struct cuda_segment *held[4];
    for (uint32_t i = 0; i < 4; i++) {
        held[i] = get(1, i);
    }
    assert_int_equal(driver.calls[DRIVER_cuIpcCloseMemHandle], 3);
    assert_true(driver.shortest_close_ns >= CUDA_CLOSE_PACE_NS);
    for (uint32_t i = 0; i < 4; i++) {
        cuda_segments_put(&device.segments, held[i]);
    }
}

static void test_segments_pinned_old_memory_is_not_closed(void **state)
{
    (void)state;
    struct cuda_segment *old = get(1, 7);
    struct cuda_segment *fresh;
    struct cuda_ipc_handle handle = driver_allocate(1, 4 * MIB);
    assert_true(cuda_segment_pin(old));
    assert_int_equal(cuda_segments_get(&device.segments, &handle, 8, &fresh, &known, &err), MLACAT_FAILED_PRECONDITION);
    assert_int_equal(driver.calls[DRIVER_cuIpcCloseMemHandle], 0);
    assert_false(cuda_segment_pin(old)); /* but nothing new may use it */
    assert_int_equal(tend_for(1000 * CUDA_CLOSE_PACE_NS), 0);
    cuda_segment_unpin(old);
    assert_int_equal(tend_for(2 * CUDA_CLOSE_PACE_NS), 1);
    assert_int_equal(old->state, CUDA_SEGMENT_CLOSED);
    cuda_segments_put(&device.segments, old);
    cuda_segments_put(&device.segments, get(1, 8));
}

/* Other handle bytes, but the driver gives addresses that a segment has: its owner freed it. */
static void test_segments_overlap_retires_the_old(void **state)
{
    (void)state;
    struct cuda_segment *old = get(1, 7);
    struct cuda_ipc_handle handle = driver_allocate(2, 4 * MIB);
    driver.allocations[2].base = driver.allocations[1].base + 2 * MIB;
    struct cuda_segment *fresh;
    assert_int_equal(cuda_segments_get(&device.segments, &handle, 9, &fresh, &known, &err), MLACAT_OK);
    assert_false(cuda_segment_pin(old));
    assert_int_equal(driver.allocations[1].opened, 0);
    assert_int_equal(driver.allocations[2].opened, 1);
    assert_true(driver.shortest_close_ns >= CUDA_CLOSE_PACE_NS);
    cuda_segments_put(&device.segments, old);
    cuda_segments_put(&device.segments, fresh);
}

static void test_segments_other_device_is_refused_and_closed(void **state)
{
    (void)state;
    struct cuda_ipc_handle handle = driver_allocate(3, MIB);
    struct cuda_segment *segment;
    driver.allocations[3].ordinal = 1;
    assert_int_equal(cuda_segments_get(&device.segments, &handle, 1, &segment, &known, &err), MLACAT_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "GPU-00000000-0000-0000-0000-000000000001, not of GPU-test"));
    assert_int_equal(driver.allocations[3].opened, 0);
}

static void test_segments_too_many_unused_are_refused(void **state)
{
    (void)state;
    struct cuda_segment *segment;
    for (uint32_t i = 0; i < CUDA_UNUSED_MAX; i++) {
        cuda_segments_put(&device.segments, get(i, i));
    }
    struct cuda_ipc_handle handle = driver_allocate(CUDA_UNUSED_MAX, MIB);
    assert_int_equal(cuda_segments_get(&device.segments, &handle, 1, &segment, &known, &err),
                     MLACAT_RESOURCE_EXHAUSTED);
    cuda_segments_put(&device.segments, get(5, 5)); /* what is open costs nothing */
    tend_for(CUDA_IDLE_NS + CUDA_CLOSE_PACE_NS);
    cuda_segments_put(&device.segments, get(CUDA_UNUSED_MAX, 1));
}

/* Whatever call of the driver fails, nothing stays open and the next attempt works. */
static void test_segments_each_call_failing_in_turn(void **state)
{
    (void)state;
    struct cuda_ipc_handle handle = driver_allocate(1, MIB);
    struct cuda_segment *segment = NULL;
    uint32_t failed = 0;
    for (driver.fail_at = 1;; driver.fail_at++) {
        driver.total = 0;
        driver.now_ns += CUDA_CLOSE_PACE_NS;
        if (cuda_segments_get(&device.segments, &handle, 1, &segment, &known, &err) == MLACAT_OK) {
            break;
        }
        assert_int_equal(err.code, MLACAT_RESOURCE_EXHAUSTED);
        assert_int_equal(driver.allocations[1].opened, 0);
        failed++;
    }
    assert_int_equal(failed, 3);
    driver.fail_at = 0;
    cuda_segments_put(&device.segments, segment);
}

static void test_segments_lost_context_marks_the_device(void **state)
{
    (void)state;
    struct cuda_ipc_handle handle = driver_allocate(1, MIB);
    struct cuda_segment *segment;
    driver.fail_at = 1;
    driver.fail_result = 700;
    assert_int_equal(cuda_segments_get(&device.segments, &handle, 1, &segment, &known, &err), MLACAT_UNAVAILABLE);
    assert_int_equal(err.scope, MLACAT_SCOPE_DEVICE);
    assert_true(atomic_load(&device.lost));
}

#define SEGMENTS_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SEGMENTS_TEST(test_segments_opens_an_allocation_once),
        SEGMENTS_TEST(test_segments_unused_is_kept_for_a_moment_and_closed),
        SEGMENTS_TEST(test_segments_tell_how_far_closing_is),
        SEGMENTS_TEST(test_segments_tell_how_far_closing_of_old_memory_is),
        SEGMENTS_TEST(test_segments_close_one_per_pace),
        SEGMENTS_TEST(test_segments_close_faster_while_quiet),
        SEGMENTS_TEST(test_segments_new_memory_replaces_old),
        SEGMENTS_TEST(test_segments_replacing_keeps_the_pace),
        SEGMENTS_TEST(test_segments_pinned_old_memory_is_not_closed),
        SEGMENTS_TEST(test_segments_overlap_retires_the_old),
        SEGMENTS_TEST(test_segments_other_device_is_refused_and_closed),
        SEGMENTS_TEST(test_segments_too_many_unused_are_refused),
        SEGMENTS_TEST(test_segments_each_call_failing_in_turn),
        SEGMENTS_TEST(test_segments_lost_context_marks_the_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
