/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "closer.h"
#include "cuda_driver.h"
#include "cuda_memory.h"

#define MIB ((uint64_t)1 << 20)

static struct device device;
static struct error err;
static struct device_memory *memory;
static struct memory_info info;

static int setup(void **state)
{
    (void)state;
    driver_reset();
    driver_device_init(&device);
    memory = NULL;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    driver_device_fini(&device);
    return 0;
}

static struct memory_request handle_request(uint64_t allocation, uint64_t offset, uint64_t size)
{
    struct memory_request request;
    memset(&request, 0, sizeof(request));
    struct cuda_ipc_handle handle = driver_allocate(1, 4 * MIB);
    request.kind = MEMORY_CUDA_IPC;
    request.allocation_bytes = allocation;
    request.offset_bytes = offset;
    request.size_bytes = size;
    request.buffer_id = 7;
    request.limit_bytes = 64 * MIB;
    memcpy(request.handle, handle.bytes, sizeof(request.handle));
    return request;
}

static struct memory_request chunk_request(uint32_t chunks_nr, uint64_t chunk_bytes, uint64_t offset, uint64_t size)
{
    struct memory_request request;
    memset(&request, 0, sizeof(request));
    request.kind = MEMORY_CUDA_VMM;
    request.chunks_nr = chunks_nr;
    request.offset_bytes = offset;
    request.size_bytes = size;
    request.limit_bytes = 64 * MIB;
    for (uint32_t i = 0; i < chunks_nr; i++) {
        request.fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        request.chunk_bytes[i] = chunk_bytes;
    }
    return request;
}

static enum mlacat_status import(struct memory_request request)
{
    return cuda_memory_import(&device, &request, &memory, &info, &err);
}

static int open_fds(void)
{
    int nr = 0;
    assert_true(closer_flush(5000));
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir)) {
        nr++;
    }
    closedir(dir);
    return nr;
}

static void test_memory_handle_gives_base_plus_offset(void **state)
{
    (void)state;
    assert_int_equal(import(handle_request(4 * MIB, MIB, 2 * MIB)), MLACAT_OK);
    assert_int_equal(memory->base, driver.allocations[1].base + MIB);
    assert_int_equal(info.memory.allocation_offset_bytes, MIB);
    assert_int_equal(info.memory.size_bytes, 2 * MIB);
    assert_int_equal(info.charged_bytes, 2 * MIB);
    struct op_allocation first = info.memory.allocation;
    struct device_memory *one = memory;
    assert_int_equal(import(handle_request(4 * MIB, 0, MIB)), MLACAT_OK);
    assert_memory_equal(&first, &info.memory.allocation, sizeof(first)); /* one memory, so overlaps are seen */
    cuda_memory_release(&device, one);
    cuda_memory_release(&device, memory);
}

static void test_memory_handle_bounds(void **state)
{
    (void)state;
    assert_int_equal(import(handle_request(4 * MIB, 4 * MIB, 1)), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(import(handle_request(4 * MIB, UINT64_MAX, 2)), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(import(handle_request(4 * MIB, 0, 0)), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(driver.calls[DRIVER_cuIpcOpenMemHandle], 0);
    /* The client says more than there is: only the driver knows. */
    assert_int_equal(import(handle_request(8 * MIB, 6 * MIB, MIB)), MLACAT_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "4194304"));
    assert_int_equal(import(handle_request(128 * MIB, 0, 128 * MIB)), MLACAT_RESOURCE_EXHAUSTED);
}

static void test_memory_other_kind_is_refused(void **state)
{
    (void)state;
    int before = open_fds();
    struct memory_request request = chunk_request(1, DRIVER_GRAIN, 0, DRIVER_GRAIN);
    request.kind = MEMORY_HOST;
    assert_int_equal(import(request), MLACAT_INVALID_ARGUMENT);
    request = handle_request(4 * MIB, 0, MIB);
    request.chunks_nr = 1;
    request.fds[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_int_equal(import(request), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(open_fds(), before);
}

static void test_memory_chunks_map_into_one_range(void **state)
{
    (void)state;
    int before = open_fds();
    assert_int_equal(import(chunk_request(3, DRIVER_GRAIN, 100, 2 * DRIVER_GRAIN)), MLACAT_OK);
    assert_int_equal(open_fds(), before);
    assert_int_equal(driver.maps, 3);
    assert_int_equal(driver.imports, 0); /* the mapping keeps the memory */
    assert_int_equal(driver.calls[DRIVER_cuMemSetAccess], 1);
    assert_int_equal(memory->base, memory->range + 100);
    assert_int_equal(info.charged_bytes, 3 * DRIVER_GRAIN);
    cuda_memory_release(&device, memory);
    assert_int_equal(driver.maps, 0);
    assert_int_equal(driver.reservations, 0);
}

static void test_memory_chunks_bounds(void **state)
{
    (void)state;
    int before = open_fds();
    assert_int_equal(import(chunk_request(2, DRIVER_GRAIN, 0, 2 * DRIVER_GRAIN + 1)), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(import(chunk_request(2, DRIVER_GRAIN + 4096, 0, 4096)), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(import(chunk_request(2, UINT64_MAX / 2 + 1, 0, 4096)), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(import(chunk_request(2, 0, 0, 4096)), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(import(chunk_request(0, 0, 0, 4096)), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(import(chunk_request(33, DRIVER_GRAIN, 0, 4096)), MLACAT_RESOURCE_EXHAUSTED);
    driver.location = 1;
    assert_int_equal(import(chunk_request(1, DRIVER_GRAIN, 0, 4096)), MLACAT_INVALID_ARGUMENT);
    driver.location = 0;
    device.vmm = false;
    assert_int_equal(import(chunk_request(1, DRIVER_GRAIN, 0, 4096)), MLACAT_UNIMPLEMENTED);
    assert_int_equal(open_fds(), before);
}

static void test_memory_chunks_are_named_by_block(void **state)
{
    (void)state;
    driver.block_id = 42;
    assert_int_equal(import(chunk_request(1, DRIVER_GRAIN, 0, 4096)), MLACAT_OK);
    struct op_allocation first = info.memory.allocation;
    struct device_memory *one = memory;
    assert_int_equal(import(chunk_request(1, DRIVER_GRAIN, 4096, 4096)), MLACAT_OK);
    assert_memory_equal(&first, &info.memory.allocation, sizeof(first));
    cuda_memory_release(&device, one);
    cuda_memory_release(&device, memory);
}

static void test_memory_chunks_each_call_failing_in_turn(void **state)
{
    (void)state;
    int before = open_fds();
    uint32_t failed = 0;
    driver.block_id = 42;
    for (driver.fail_at = 1;; driver.fail_at++) {
        driver.total = 0;
        if (import(chunk_request(3, DRIVER_GRAIN, 0, 4096)) == MLACAT_OK && driver.total < driver.fail_at) {
            break;
        }
        if (memory) { /* the name of the block is not needed */
            cuda_memory_release(&device, memory);
            memory = NULL;
        }
        assert_int_equal(driver.maps, 0);
        assert_int_equal(driver.imports, 0);
        assert_int_equal(driver.reservations, 0);
        assert_int_equal(open_fds(), before);
        failed++;
    }
    assert_int_equal(failed, 2 + 3 * 3 + 1 + 1); /* grain, range, 3 x (import, properties, map), access, name */
    driver.fail_at = 0;
    cuda_memory_release(&device, memory);
}

#define MEMORY_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        MEMORY_TEST(test_memory_handle_gives_base_plus_offset),
        MEMORY_TEST(test_memory_handle_bounds),
        MEMORY_TEST(test_memory_other_kind_is_refused),
        MEMORY_TEST(test_memory_chunks_map_into_one_range),
        MEMORY_TEST(test_memory_chunks_bounds),
        MEMORY_TEST(test_memory_chunks_are_named_by_block),
        MEMORY_TEST(test_memory_chunks_each_call_failing_in_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
