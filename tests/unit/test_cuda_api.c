/* SPDX-License-Identifier: Apache-2.0 */
/* Where the toolkit's header is, what we declared of the driver's ABI is compared with it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cuda_api.h"
#include "cuda_error.h"

#if defined(HAVE_CUDA_H)
#include <cuda.h>
#include <cudaTypedefs.h>

/* There is such an entry point in that version of the ABI. */
#define CUDA_CALL(need, name, abi, parameters)            \
    static PFN_##name##_v##abi real_##name;               \
    __attribute__((unused)) static void *use_##name(void) \
    {                                                     \
        return (void *)(uintptr_t)real_##name;            \
    }
#include "cuda_api.def"

#define SAME(ours, theirs) _Static_assert((long long)(ours) == (long long)(theirs), #ours)

SAME(sizeof(struct cuda_uuid), sizeof(CUuuid));
SAME(sizeof(struct cuda_ipc_handle), sizeof(CUipcMemHandle));
SAME(sizeof(cuda_address), sizeof(CUdeviceptr));
SAME(sizeof(cuda_allocation), sizeof(CUmemGenericAllocationHandle));
SAME(sizeof(struct cuda_access), sizeof(CUmemAccessDesc));
SAME(offsetof(struct cuda_access, flags), offsetof(CUmemAccessDesc, flags));
SAME(sizeof(struct cuda_allocation_properties), sizeof(CUmemAllocationProp));
SAME(offsetof(struct cuda_allocation_properties, handle_types), offsetof(CUmemAllocationProp, requestedHandleTypes));
SAME(offsetof(struct cuda_allocation_properties, location), offsetof(CUmemAllocationProp, location));
SAME(offsetof(struct cuda_allocation_properties, win32_metadata), offsetof(CUmemAllocationProp, win32HandleMetaData));
SAME(offsetof(struct cuda_allocation_properties, compression), offsetof(CUmemAllocationProp, allocFlags));
SAME(sizeof(struct cuda_launch_attribute), sizeof(CUlaunchAttribute));
SAME(offsetof(struct cuda_launch_attribute, value), offsetof(CUlaunchAttribute, value));
SAME(sizeof(struct cuda_launch_config), sizeof(CUlaunchConfig));
SAME(offsetof(struct cuda_launch_config, shared_bytes), offsetof(CUlaunchConfig, sharedMemBytes));
SAME(offsetof(struct cuda_launch_config, stream), offsetof(CUlaunchConfig, hStream));
SAME(offsetof(struct cuda_launch_config, attributes), offsetof(CUlaunchConfig, attrs));
SAME(offsetof(struct cuda_launch_config, attributes_nr), offsetof(CUlaunchConfig, numAttrs));

SAME(CUDA_RESULT_OK, CUDA_SUCCESS);
SAME(CUDA_RESULT_NOT_FOUND, CUDA_ERROR_NOT_FOUND);
SAME(CUDA_RESULT_ALREADY_MAPPED, CUDA_ERROR_ALREADY_MAPPED);
SAME(CUDA_RESULT_NOT_READY, CUDA_ERROR_NOT_READY);
#define CUDA_ERROR_ROW(number, name, status, fate, text) SAME(number, CUDA_ERROR_##name);
#include "cuda_error.def"

SAME(CUDA_DEVICE_MULTIPROCESSORS, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME(CUDA_DEVICE_MEMORY_CLOCK_KHZ, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE);
SAME(CUDA_DEVICE_MEMORY_BUS_BITS, CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH);
SAME(CUDA_DEVICE_UNIFIED_ADDRESSING, CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING);
SAME(CUDA_DEVICE_COMPUTE_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(CUDA_DEVICE_COMPUTE_MINOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME(CUDA_DEVICE_HOST_REGISTER, CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED);
SAME(CUDA_DEVICE_VMM, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
SAME(CUDA_DEVICE_VMM_POSIX_FD, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
SAME(CUDA_DEVICE_STREAM_MEM_OPS_64, CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS);
SAME(CUDA_DEVICE_MPS_ENABLED, CU_DEVICE_ATTRIBUTE_MPS_ENABLED);
SAME(CUDA_POINTER_BUFFER_ID, CU_POINTER_ATTRIBUTE_BUFFER_ID);
SAME(CUDA_POINTER_DEVICE_ORDINAL, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
SAME(CUDA_POINTER_MEMORY_BLOCK_ID, CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID);
SAME(CUDA_STREAM_NON_BLOCKING, CU_STREAM_NON_BLOCKING);
SAME(CUDA_IPC_LAZY_PEER_ACCESS, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
SAME(CUDA_HOST_REGISTER_PORTABLE, CU_MEMHOSTREGISTER_PORTABLE);
SAME(CUDA_HOST_REGISTER_DEVICE_MAP, CU_MEMHOSTREGISTER_DEVICEMAP);
SAME(CUDA_HANDLE_POSIX_FD, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
SAME(CUDA_LOCATION_DEVICE, CU_MEM_LOCATION_TYPE_DEVICE);
SAME(CUDA_ALLOCATION_PINNED, CU_MEM_ALLOCATION_TYPE_PINNED);
SAME(CUDA_ACCESS_READ_WRITE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
SAME(CUDA_GRANULARITY_MINIMUM, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
SAME(CUDA_LAUNCH_SERIALIZED_BY_PROGRAM, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
#endif

static void test_cuda_api_without_a_driver_says_so(void **state)
{
    (void)state;
    struct error err;
    const struct cuda_api *cuda = cuda_api_get(&err);
    if (cuda) {
        assert_non_null(cuda->cuLaunchKernel); /* a host with a GPU */
        assert_ptr_equal(cuda_api_get(&err), cuda);
        return;
    }
    assert_int_equal(err.code, MLACAT_UNAVAILABLE);
    assert_non_null(strstr(err.message, "CUDA driver"));
    assert_null(cuda_api_get(&err)); /* and tries again */
}

static void test_cuda_api_sets_the_environment_unless_it_is_set(void **state)
{
    (void)state;
    struct error err;
    setenv("CUDA_MODULE_LOADING", "LAZY", 1);
    unsetenv("CUDA_DEVICE_MAX_CONNECTIONS");
    cuda_api_get(&err);
    assert_string_equal(getenv("CUDA_MODULE_LOADING"), "LAZY");
    assert_string_equal(getenv("CUDA_DEVICE_MAX_CONNECTIONS"), "32");
}

/* A wait for something outside the GPU can stop every stream of the process: it must not even be within reach. */
static void test_cuda_api_knows_no_device_wait(void **state)
{
    (void)state;
    static const char *const names[] = {
#define CUDA_CALL(need, name, abi, parameters) #name,
#include "cuda_api.def"
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        assert_null(strstr(names[i], "Wait"));
        assert_null(strstr(names[i], "HostFunc"));
        assert_null(strstr(names[i], "Callback"));
        assert_null(strstr(names[i], "EventSynchronize"));
    }
}

static void test_cuda_error_maps_to_status_and_scope(void **state)
{
    (void)state;
    struct error err;
    assert_int_equal(cuda_error_set(&err, 2, "cuX", "the thing %d", 5), MLACAT_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(err.message, "the thing 5: cuX: OUT_OF_MEMORY (2): "));
    assert_int_equal(err.scope, MLACAT_SCOPE_CALL);
    assert_int_equal(cuda_error_set(&err, 700, "cuX", "it"), MLACAT_UNAVAILABLE);
    assert_int_equal(err.scope, MLACAT_SCOPE_DEVICE);
    assert_int_equal(cuda_error_set(&err, 12345, "cuX", "it"), MLACAT_INTERNAL);
    assert_int_equal(err.scope, MLACAT_SCOPE_CALL);
    assert_true(cuda_error_is_lost(719));
    assert_false(cuda_error_is_lost(CUDA_RESULT_NOT_READY));
    assert_false(cuda_error_is_lost(1));
}

static void test_cuda_error_numbers_are_named_once(void **state)
{
    (void)state;
    static const int numbers[] = {
#define CUDA_ERROR_ROW(number, name, status, fate, text) number,
#include "cuda_error.def"
    };
    for (size_t i = 1; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        assert_true(numbers[i - 1] < numbers[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_api_sets_the_environment_unless_it_is_set),
        cmocka_unit_test(test_cuda_api_without_a_driver_says_so),
        cmocka_unit_test(test_cuda_api_knows_no_device_wait),
        cmocka_unit_test(test_cuda_error_maps_to_status_and_scope),
        cmocka_unit_test(test_cuda_error_numbers_are_named_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
