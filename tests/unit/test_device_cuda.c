/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening and closing the CUDA device over the driver of tests/support/fake_cuda, which this program is linked with: it
 * bears the driver's name, so that the device's dlopen finds it. The tests stand in an order: the driver is loaded once
 * in a process, so what keeps it from loading comes first.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cuda_jit.h"
#include "cuda_kernels.h"
#include "device.h"
#include "fake_cuda.h"

static struct device *device;
static struct device_info info;
static struct error err;

static enum device_answer open_device(const char *uuid)
{
    device = NULL;
    memset(&info, 0, sizeof(info));
    return device_cuda_ops.open(uuid, &device, &info, &err);
}

static void assert_nothing_left(void)
{
    const struct fake_cuda_live none = {0};
    struct fake_cuda_live live = fake_cuda_live();
    assert_memory_equal(&live, &none, sizeof(none));
}

static void assert_says(const char *part)
{
    if (!strstr(err.message, part)) {
        fail_msg("\"%s\" is not in \"%s\"", part, err.message);
    }
}

static void test_device_cuda_old_driver_is_no_device(void **state)
{
    (void)state;
    fake_cuda_behave("missing=cuStreamWriteValue64");
    assert_int_equal(open_device(""), DEVICE_NODEV);
    assert_says("cuStreamWriteValue64");
    fake_cuda_behave("driver=11080");
    assert_int_equal(open_device(""), DEVICE_NODEV);
    fake_cuda_behave("fail=cuInit:1:100");
    assert_int_equal(open_device(""), DEVICE_NODEV);
    assert_says("cuInit");
}

static void test_device_cuda_opens_by_uuid(void **state)
{
    (void)state;
    char first[DEVICE_UUID_BYTES];
    char second[DEVICE_UUID_BYTES];
    fake_cuda_behave("devices=2");
    assert_int_equal(open_device(""), DEVICE_OK);
    assert_string_equal(info.kind, "cuda");
    memcpy(first, info.uuid, sizeof(first));
    device_cuda_ops.close(device);
    snprintf(second, sizeof(second), "%s", first);
    second[strlen(second) - 1] = '1';
    assert_int_equal(open_device(second), DEVICE_OK);
    assert_string_equal(info.uuid, second);
    device_cuda_ops.close(device);
    second[4] ^= 'a' ^ 'A'; /* as another tool may write it */
    memcpy(second, "MIG-", 4);
    assert_int_equal(open_device(second), DEVICE_OK);
    device_cuda_ops.close(device);
    first[12] = '\0';
    assert_int_equal(open_device(first), DEVICE_OK);
    device_cuda_ops.close(device);
    assert_int_equal(open_device("GPU-"), DEVICE_NODEV);
    assert_int_equal(open_device("GPU-0"), DEVICE_NODEV);
    assert_says("\"GPU-0\"");
}

static void test_device_cuda_needs_its_abilities(void **state)
{
    (void)state;
    fake_cuda_behave("attribute=122:0");
    assert_int_equal(open_device(""), DEVICE_NODEV);
    assert_says("64 bits");
    fake_cuda_behave("devices=0");
    assert_int_equal(open_device(""), DEVICE_NODEV);
}

/* Calls that take something down: what the driver refuses to take down stays. */
static bool takes_down(const char *name)
{
    static const char *const names[] = {"cuDevicePrimaryCtxRelease", "cuMemHostUnregister", "cuModuleUnload",
                                        "cuStreamDestroy", "cuMemFree"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(names[i], name) == 0) {
            return true;
        }
    }
    return false;
}

/* Whatever the driver refuses while the device opens: it says so, leaves nothing, and the next attempt works. */
static void test_device_cuda_each_call_failing_in_turn(void **state)
{
    (void)state;
    static const char *const names[] = {
#define CUDA_CALL(need, name, abi, parameters) #name,
#include "cuda_api.def"
    };
    uint32_t failed = 0;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        for (int nth = 1; !takes_down(names[i]); nth++) {
            char words[128];
            snprintf(words, sizeof(words), "fail=%s:%d:2", names[i], nth);
            fake_cuda_behave(words);
            enum device_answer answer = open_device("");
            if (answer == DEVICE_OK) {
                device_cuda_ops.close(device);
            } else {
                assert_int_not_equal(err.code, MLACAT_OK);
                assert_true(err.message[0] != '\0');
                failed++;
            }
            if (fake_cuda_calls(names[i]) < (uint64_t)nth) {
                break;
            }
            assert_nothing_left();
        }
    }
    assert_in_range(failed, 10, 100);
    fake_cuda_behave(NULL);
    if (open_device("") != DEVICE_OK) {
        fail_msg("%s", err.message);
    }
    device_cuda_ops.close(device);
    assert_nothing_left();
}

static void test_device_cuda_loads_and_launches_all_before_it_is_open(void **state)
{
    (void)state;
    fake_cuda_behave("daemon");
    assert_int_equal(open_device(""), DEVICE_OK);
    uint64_t launches = fake_cuda_calls("cuLaunchKernel");
    assert_int_equal(fake_cuda_calls("cuModuleLoadDataEx"), 1);
    /* The gate and the tail with the kernel for each vector; or the gate was looked for in vain (built-in PTX). */
    uint64_t behind = fake_cuda_calls("cuLaunchKernelEx");
    launches += behind > 0 ? behind - 2 * (CUDA_VECTORS_NR - 1) : 1;
    assert_int_equal(launches, fake_cuda_calls("cuModuleGetFunction"));
    assert_int_equal(fake_cuda_calls("cuStreamSynchronize"), 1);
    fake_cuda_ready();
    struct device_stream *stream;
    assert_int_equal(device_cuda_ops.stream_open(device, NULL, &stream, &err), MLACAT_OK);
    device_cuda_ops.stream_close(stream);
    assert_int_equal(fake_cuda_calls("cuMemHostUnregister"), 0);
    device_cuda_ops.close(device);
}

/* It has none of the kernels around a gate, and that is all. */
static void test_device_cuda_older_gpu_is_a_device(void **state)
{
    (void)state;
    fake_cuda_behave("daemon;attribute=75:8");
    assert_int_equal(open_device(""), DEVICE_OK);
    assert_int_equal(fake_cuda_calls("cuLaunchKernel"), fake_cuda_calls("cuModuleGetFunction") - 1);
    assert_int_equal(fake_cuda_calls("cuLaunchKernelEx"), 0);
    device_cuda_ops.close(device);
    assert_nothing_left();
}

int main(int argc, char *argv[])
{
    if (jit_is_helper(argc, argv)) {
        return jit_helper_main(argc, argv);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_cuda_old_driver_is_no_device),
        cmocka_unit_test(test_device_cuda_opens_by_uuid),
        cmocka_unit_test(test_device_cuda_needs_its_abilities),
        cmocka_unit_test(test_device_cuda_loads_and_launches_all_before_it_is_open),
        cmocka_unit_test(test_device_cuda_older_gpu_is_a_device),
        cmocka_unit_test(test_device_cuda_each_call_failing_in_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
