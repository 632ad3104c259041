/* SPDX-License-Identifier: Apache-2.0 */
/* Who goes first when a device has more to close than the pace allows: nobody's memory waits for others without end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "cuda_driver.h"
#include "cuda_pages.h"

#define PAGE 4096
#define MIB ((uint64_t)1 << 20)
#define OF_OTHERS 1000 /* allocations of others: from this index on */

static struct device device;
static struct error err;
static unsigned char *page; /* of a client's rings */

static int setup(void **state)
{
    (void)state;
    driver_reset();
    driver_device_init(&device);
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(page != MAP_FAILED);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    driver_device_fini(&device);
    munmap(page, PAGE);
    return 0;
}

static struct cuda_segment *get(uint32_t index, uint64_t buffer_id)
{
    struct cuda_ipc_handle handle = driver_allocate(index, 4 * MIB);
    struct cuda_segment *segment = NULL;
    bool known;
    if (cuda_segments_get(&device.segments, &handle, buffer_id, &segment, &known, &err) != MLACAT_OK) {
        fail_msg("%s", err.message);
    }
    return segment;
}

/* A call is in flight: closing is paced. */
static struct cuda_segment *get_busy(void)
{
    struct cuda_segment *busy = get(2, 2);
    assert_true(cuda_segment_pin(busy));
    return busy;
}

static void put_busy(struct cuda_segment *busy)
{
    assert_true(driver.shortest_close_ns >= CUDA_CLOSE_PACE_NS);
    cuda_segment_unpin(busy);
    cuda_segments_put(&device.segments, busy);
}

/* A session with a ring comes and goes. */
static void release_page(void)
{
    struct device_pages *made = NULL;
    if (cuda_pages_register(&device.pages, page, PAGE, &made, &err) == DEVICE_OK) {
        cuda_pages_release(&device.pages, made);
    }
}

/* As the control thread does, with time that passes. */
static void tend(void)
{
    uint64_t in_ns = device_cuda_ops.tend(&device, &err);
    driver.now_ns += in_ns < CUDA_LOOK_NS ? in_ns : CUDA_LOOK_NS;
}

/* Clients connect and go without a pause. */
static void test_cuda_closing_memory_does_not_wait_for_pages(void **state)
{
    (void)state;
    for (int i = 0; i < CUDA_PAGES_RELEASED_MAX; i++) {
        release_page();
    }
    struct cuda_segment *busy = get_busy();
    uint64_t start_ns = driver.now_ns;
    cuda_segments_put(&device.segments, get(1, 1));
    while (driver.allocations[1].opened > 0) {
        release_page();
        tend();
        assert_in_range(driver.now_ns - start_ns, 0, CUDA_IDLE_NS + 3 * CUDA_CLOSE_PACE_NS);
    }
    put_busy(busy);
}

/* While it is quiet memory goes every half millisecond. */
static void test_cuda_closing_pages_do_not_wait_for_memory(void **state)
{
    (void)state;
    uint32_t index = OF_OTHERS;
    for (; index < OF_OTHERS + 500; index++) {
        cuda_segments_put(&device.segments, get(index, 1));
    }
    while (driver.calls[DRIVER_cuIpcCloseMemHandle] < 10) {
        tend();
    }
    uint64_t start_ns = driver.now_ns;
    release_page();
    while (device.pages.released_nr > 0) {
        cuda_segments_put(&device.segments, get(index++, 1));
        tend();
        assert_in_range(driver.now_ns - start_ns, 0, 3 * CUDA_CLOSE_PACE_NS);
    }
}

/* Imports that close what they replace come without a pause: between them the control thread tends the device, but the
 * time has just been used. */
static void imports_that_close(bool pages)
{
    uint64_t buffer_id = 0;
    struct cuda_segment *busy = get_busy();
    struct cuda_segment *last = get(OF_OTHERS, buffer_id);
    uint64_t start_ns = driver.now_ns;
    if (pages) {
        release_page();
    } else {
        cuda_segments_put(&device.segments, get(1, 1));
    }
    while (pages ? device.pages.released_nr > 0 : driver.allocations[1].opened > 0) {
        struct cuda_segment *old = last;
        last = get(OF_OTHERS, ++buffer_id);
        cuda_segments_put(&device.segments, old);
        device_cuda_ops.tend(&device, &err);
        assert_in_range(driver.now_ns - start_ns, 0, CUDA_IDLE_NS + 4 * CUDA_CLOSE_PACE_NS);
    }
    cuda_segments_put(&device.segments, last);
    put_busy(busy);
}

static void test_cuda_closing_memory_does_not_wait_for_imports(void **state)
{
    (void)state;
    imports_that_close(false);
}

static void test_cuda_closing_pages_do_not_wait_for_imports(void **state)
{
    (void)state;
    imports_that_close(true);
}

/* ... and those that open what they must not. */
static void test_cuda_closing_memory_does_not_wait_for_refused_imports(void **state)
{
    (void)state;
    struct cuda_ipc_handle handle = driver_allocate(OF_OTHERS, MIB);
    struct cuda_segment *none;
    bool known;
    driver.allocations[OF_OTHERS].ordinal = 1;
    struct cuda_segment *busy = get_busy();
    uint64_t start_ns = driver.now_ns;
    cuda_segments_put(&device.segments, get(1, 1));
    while (driver.allocations[1].opened > 0) {
        assert_int_equal(cuda_segments_get(&device.segments, &handle, 1, &none, &known, &err), MLACAT_INVALID_ARGUMENT);
        device_cuda_ops.tend(&device, &err);
        assert_in_range(driver.now_ns - start_ns, 0, CUDA_IDLE_NS + 4 * CUDA_CLOSE_PACE_NS);
    }
    put_busy(busy);
}

/* What an import must close may be what is due anyhow: it goes once. */
static void test_cuda_closing_import_in_the_place_of_what_is_due(void **state)
{
    (void)state;
    cuda_segments_put(&device.segments, get(1, 1));
    driver.now_ns += CUDA_IDLE_NS;
    struct cuda_ipc_handle handle = driver_allocate(3, 4 * MIB);
    driver.allocations[3].base = driver.allocations[1].base + 2 * MIB;
    struct cuda_segment *fresh = NULL;
    bool known;
    assert_int_equal(cuda_segments_get(&device.segments, &handle, 3, &fresh, &known, &err), MLACAT_OK);
    assert_int_equal(driver.allocations[1].opened, 0);
    assert_int_equal(driver.allocations[3].opened, 1);
    assert_int_equal(device.segments.unused_nr, 0);
    cuda_segments_put(&device.segments, fresh);
}

#define CLOSING_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CLOSING_TEST(test_cuda_closing_memory_does_not_wait_for_pages),
        CLOSING_TEST(test_cuda_closing_pages_do_not_wait_for_memory),
        CLOSING_TEST(test_cuda_closing_memory_does_not_wait_for_imports),
        CLOSING_TEST(test_cuda_closing_pages_do_not_wait_for_imports),
        CLOSING_TEST(test_cuda_closing_memory_does_not_wait_for_refused_imports),
        CLOSING_TEST(test_cuda_closing_import_in_the_place_of_what_is_due),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
