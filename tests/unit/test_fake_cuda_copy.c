/* SPDX-License-Identifier: Apache-2.0 */
/* The fake driver's copies, fills, and stack of contexts: what a client does with its own memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "fake_cuda.h"

#define BYTES 4096
#define OK CUDA_RESULT_OK
#define INVALID_CONTEXT 201

struct client {
    struct cuda_context *context;
    struct cuda_stream *stream;
    cuda_address memory;
};

static struct client client;

static int open_client(void **state)
{
    (void)state;
    fake_cuda_behave("");
    assert_int_equal(fake_cuInit(0), OK);
    assert_int_equal(fake_cuDevicePrimaryCtxRetain(&client.context, 0), OK);
    assert_int_equal(fake_cuCtxSetCurrent(client.context), OK);
    assert_int_equal(fake_cuStreamCreate(&client.stream, CUDA_STREAM_NON_BLOCKING), OK);
    assert_int_equal(fake_cuMemAlloc(&client.memory, BYTES), OK);
    return 0;
}

static int close_client(void **state)
{
    (void)state;
    fake_cuda_behave("");
    assert_int_equal(fake_cuMemFree(client.memory), OK);
    assert_int_equal(fake_cuStreamDestroy(client.stream), OK);
    assert_int_equal(fake_cuCtxSetCurrent(NULL), OK);
    assert_int_equal(fake_cuDevicePrimaryCtxRelease(0), OK);
    return 0;
}

static void test_fake_cuda_copy_goes_there_and_back(void **state)
{
    unsigned char from[16];
    unsigned char to[16] = {0};
    (void)state;
    for (unsigned i = 0; i < sizeof(from); i++) {
        from[i] = (unsigned char)(i + 1);
    }
    assert_int_equal(fake_cuMemsetD8Async(client.memory, 0x77, BYTES, client.stream), OK);
    assert_int_equal(fake_cuMemcpyHtoDAsync(client.memory, from, sizeof(from), client.stream), OK);
    assert_int_equal(fake_cuMemcpyDtoDAsync(client.memory + 100, client.memory, 8, client.stream), OK);
    assert_int_equal(fake_cuMemcpyDtoHAsync(to, client.memory + 96, sizeof(to), client.stream), OK);
    assert_int_equal(fake_cuStreamSynchronize(client.stream), OK);
    for (unsigned i = 0; i < sizeof(to); i++) {
        assert_int_equal(to[i], i >= 4 && i < 12 ? i - 3 : 0x77);
    }
}

static void test_fake_cuda_copy_waits_for_the_stream(void **state)
{
    unsigned char to = 0;
    (void)state;
    fake_cuda_behave("manual");
    assert_int_equal(fake_cuMemsetD8Async(client.memory, 9, BYTES, client.stream), OK);
    assert_int_equal(fake_cuMemcpyDtoHAsync(&to, client.memory, 1, client.stream), OK);
    assert_int_equal(fake_cuda_run(1), 1);
    assert_int_equal(to, 0);
    assert_int_equal(fake_cuda_run(1), 1);
    assert_int_equal(to, 9);
}

static void test_fake_cuda_copy_refuses_what_is_no_memory(void **state)
{
    unsigned char byte = 0;
    (void)state;
    assert_int_equal(fake_cuMemsetD8Async(client.memory + 1, 0, BYTES, client.stream), CUDA_RESULT_INVALID_VALUE);
    assert_int_equal(fake_cuMemcpyDtoDAsync(client.memory, client.memory + 1, BYTES, client.stream),
                     CUDA_RESULT_INVALID_VALUE);
    assert_int_equal(fake_cuMemcpyHtoDAsync(8, &byte, 1, client.stream), CUDA_RESULT_INVALID_VALUE);
    assert_int_equal(fake_cuMemcpyDtoHAsync(&byte, client.memory, 1, NULL), CUDA_RESULT_INVALID_HANDLE);
}

static void test_fake_cuda_contexts_are_a_stack(void **state)
{
    struct cuda_context *found = NULL;
    unsigned flags = 1;
    int active = 0;
    int mode = 2;
    (void)state;
    assert_int_equal(fake_cuDevicePrimaryCtxGetState(0, &flags, &active), OK);
    assert_int_equal(active, 1);
    assert_int_equal(fake_cuCtxPushCurrent(client.context), OK);
    assert_int_equal(fake_cuCtxPopCurrent(&found), OK);
    assert_ptr_equal(found, client.context);
    assert_int_equal(fake_cuCtxPopCurrent(&found), OK); /* the one that was set */
    assert_int_equal(fake_cuCtxPopCurrent(&found), INVALID_CONTEXT);
    assert_int_equal(fake_cuCtxSetCurrent(client.context), OK);
    assert_int_equal(fake_cuThreadExchangeStreamCaptureMode(&mode), OK);
    assert_int_equal(mode, 0);
    assert_int_equal(fake_cuThreadExchangeStreamCaptureMode(&mode), OK);
    assert_int_equal(mode, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_fake_cuda_copy_goes_there_and_back, open_client, close_client),
        cmocka_unit_test_setup_teardown(test_fake_cuda_copy_waits_for_the_stream, open_client, close_client),
        cmocka_unit_test_setup_teardown(test_fake_cuda_copy_refuses_what_is_no_memory, open_client, close_client),
        cmocka_unit_test_setup_teardown(test_fake_cuda_contexts_are_a_stack, open_client, close_client),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
