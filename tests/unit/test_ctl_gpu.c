/* SPDX-License-Identifier: Apache-2.0 */
/* mlacatctl's use of the driver, on the fake one: which GPU, memory there and back, and each failure by its name. */
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "exporter.h"
#include "fake_cuda.h"
#include "gpu.h"
#include "gpu_kernel.h"

#define UUID "GPU-fafafafa-fafa-fafa-fafa-fafafafafa"
#define BYTES 10000

static struct gpu gpu;

static void assert_error(const char *part)
{
    if (!strstr(gpu.error, part)) {
        fail_msg("\"%s\" is not in \"%s\"", part, gpu.error);
    }
}

static void test_ctl_gpu_is_found_by_its_uuid(void **state)
{
    (void)state;
    fake_cuda_behave("devices=3");
    assert_true(gpu_open(&gpu, UUID "02"));
    assert_int_equal(gpu.device, 2);
    gpu_close(&gpu);
    assert_true(gpu_open(&gpu, "MIG-fafafafa-fafa-fafa-fafa-fafafafafa01")); /* a part of a GPU */
    assert_int_equal(gpu.device, 1);
    gpu_close(&gpu);
    assert_false(gpu_open(&gpu, UUID "03"));
    assert_error("sees 3 GPUs, and " UUID "03 is none of them");
    assert_false(gpu_open(&gpu, "GPU-"));
    assert_int_equal(fake_cuda_live().contexts, 0);
}

static void test_ctl_gpu_memory_goes_there_and_back(void **state)
{
    static unsigned char from[BYTES];
    static unsigned char to[BYTES];
    gpu_address a = 0;
    gpu_address b = 0;
    (void)state;
    fake_cuda_behave("");
    for (size_t i = 0; i < BYTES; i++) {
        from[i] = (unsigned char)(i * 7);
    }
    assert_true(gpu_open(&gpu, UUID "00"));
    assert_true(gpu_alloc(&gpu, BYTES, &a) && gpu_alloc(&gpu, BYTES, &b));
    assert_true(gpu_upload(&gpu, a, from, BYTES));
    assert_true(gpu_fill(&gpu, b, 1, BYTES));
    assert_true(gpu_copy(&gpu, b + 1, a + 1, BYTES - 1) && gpu_wait(&gpu));
    assert_true(gpu_download(&gpu, to, b, BYTES));
    assert_int_equal(fake_cuda_calls("cuStreamSynchronize"), 4); /* each of them waited */
    assert_int_equal(to[0], 1);
    assert_memory_equal(to + 1, from + 1, BYTES - 1);
    gpu_free(&gpu, a);
    gpu_free(&gpu, b);
    gpu_close(&gpu);
    assert_int_equal(fake_cuda_live().allocations, 0);
    assert_int_equal(fake_cuda_live().streams, 0);
    assert_int_equal(fake_cuda_live().contexts, 0);
}

/* Each failure ends in false with the name of the call, and nothing is left. */
static void test_ctl_gpu_open_fails_at_each_call(void **state)
{
    static const char *const calls[] = {"cuDeviceGetCount",         "cuDeviceGet",     "cuDeviceGetUuid",
                                        "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuStreamCreate"};
    char words[64];
    (void)state;
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        snprintf(words, sizeof(words), "fail=%s:1:999", calls[i]);
        fake_cuda_behave(words);
        assert_false(gpu_open(&gpu, UUID "00"));
        assert_error(calls[i]);
        assert_error("999");
        assert_int_equal(fake_cuda_live().contexts, 0);
        assert_int_equal(fake_cuda_live().streams, 0);
    }
}

static void test_ctl_gpu_memory_fails_by_name(void **state)
{
    gpu_address address = 1;
    unsigned char byte = 0;
    (void)state;
    fake_cuda_behave(
        "memory=4194304;fail=cuMemcpyHtoDAsync:1:999;fail=cuMemcpyDtoHAsync:1:999;fail=cuMemsetD8Async:1:999");
    assert_true(gpu_open(&gpu, UUID "00"));
    assert_false(gpu_alloc(&gpu, (size_t)1 << 30, &address));
    assert_int_equal(address, 0);
    assert_error("1073741824 bytes of GPU memory");
    assert_true(gpu_alloc(&gpu, 1, &address));
    assert_false(gpu_upload(&gpu, address, &byte, 1));
    assert_error("cuMemcpyHtoDAsync");
    assert_false(gpu_download(&gpu, &byte, address, 1));
    assert_error("cuMemcpyDtoHAsync");
    assert_false(gpu_fill(&gpu, address, 0, 1));
    assert_error("cuMemsetD8Async");
    gpu_free(&gpu, address);
    gpu_free(&gpu, 0);
    gpu_close(&gpu);
}

static atomic_bool ran;
static atomic_bool waited;

/* Runs the kernel, and what is behind it, when somebody asks for its end. */
static void *run_when_asked(void *unused)
{
    while (fake_cuda_calls("cuEventQuery") < 2 && !atomic_load(&waited)) {
        sched_yield();
    }
    atomic_store(&ran, true);
    fake_cuda_run(UINT_MAX);
    return unused;
}

/* Nobody waits at the launch; the wait ends with what was launched. */
static void test_ctl_gpu_kernel_is_waited_for(void **state)
{
    struct gpu_kernel kernel;
    uint64_t ns = 0;
    void *parameters[] = {&ns};
    pthread_t thread;
    (void)state;
    atomic_store(&ran, false);
    atomic_store(&waited, false);
    fake_cuda_behave("manual");
    assert_true(gpu_open(&gpu, UUID "00"));
    assert_false(gpu_kernel_open(&kernel, &gpu, ".version", "no_such_kernel"));
    assert_error("cuModuleGetFunction");
    assert_true(gpu_kernel_open(&kernel, &gpu, ".version", "mlacat_spin"));
    assert_true(gpu_kernel_launch(&kernel, 1, 32, parameters));
    assert_int_equal(fake_cuda_live().pending, 1);
    assert_int_equal(pthread_create(&thread, NULL, run_when_asked, NULL), 0);
    assert_true(gpu_kernel_wait(&kernel));
    assert_true(atomic_load(&ran));
    atomic_store(&waited, true);
    pthread_join(thread, NULL);
    assert_int_equal(fake_cuda_live().pending, 0);
    gpu_kernel_close(&kernel);
    gpu_close(&gpu);
    assert_int_equal(fake_cuda_live().modules, 0);
    assert_int_equal(fake_cuda_live().events, 0);
}

static void test_ctl_gpu_kernel_fails_by_name(void **state)
{
    struct gpu_kernel kernel;
    uint64_t ns = 0;
    void *parameters[] = {&ns};
    (void)state;
    fake_cuda_behave("fail=cuLaunchKernel:1:999;fail=cuEventRecord:1:999;fail=cuEventQuery:1:999");
    assert_true(gpu_open(&gpu, UUID "00"));
    assert_true(gpu_kernel_open(&kernel, &gpu, ".version", "mlacat_spin"));
    assert_false(gpu_kernel_launch(&kernel, 1, 32, parameters));
    assert_error("cuLaunchKernel");
    assert_false(gpu_kernel_wait(&kernel));
    assert_error("cuEventRecord");
    assert_false(gpu_kernel_wait(&kernel));
    assert_error("cuEventQuery");
    gpu_kernel_close(&kernel);
    gpu_close(&gpu);
}

static void test_ctl_exporter_gives_memory_of_another_process(void **state)
{
    struct exporter exporter;
    struct gpu_handle handles[EXPORTER_HANDLES_MAX];
    char error[GPU_ERROR_BYTES];
    gpu_address address[2] = {0};
    (void)state;
    fake_cuda_behave("");
    assert_true(exporter_start(&exporter));
    assert_true(gpu_open(&gpu, UUID "00"));
    assert_true(exporter_ask(&exporter, UUID "00", BYTES, 2, handles, error));
    assert_true(gpu_import(&gpu, &handles[0], &address[0]) && gpu_import(&gpu, &handles[1], &address[1]));
    assert_true(address[0] != address[1]);
    assert_true(gpu_import_close(&gpu, address[0]) && gpu_import_close(&gpu, address[1]));
    assert_true(exporter_ask(&exporter, UUID "00", BYTES, 1, handles, error));
    assert_false(exporter_ask(&exporter, UUID "00", (size_t)1 << 40, 1, handles, error));
    assert_non_null(strstr(error, "cuMemAlloc"));
    exporter_stop(&exporter);
    gpu_close(&gpu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        /* First: its child must not have the driver's state of this process. */
        cmocka_unit_test(test_ctl_exporter_gives_memory_of_another_process),
        cmocka_unit_test(test_ctl_gpu_is_found_by_its_uuid),
        cmocka_unit_test(test_ctl_gpu_memory_goes_there_and_back),
        cmocka_unit_test(test_ctl_gpu_open_fails_at_each_call),
        cmocka_unit_test(test_ctl_gpu_memory_fails_by_name),
        cmocka_unit_test(test_ctl_gpu_kernel_is_waited_for),
        cmocka_unit_test(test_ctl_gpu_kernel_fails_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
