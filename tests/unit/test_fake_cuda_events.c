/* SPDX-License-Identifier: Apache-2.0 */
/* The fake driver's events: as the true one's, also between processes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_cuda.h"

#define OK CUDA_RESULT_OK
#define DISABLE_TIMING 2u
#define INTERPROCESS 4u

static struct cuda_context *context;

static void open_device(const char *words)
{
    fake_cuda_behave(words);
    assert_int_equal(fake_cuInit(0), OK);
    assert_int_equal(fake_cuDevicePrimaryCtxRetain(&context, 0), OK);
    assert_int_equal(fake_cuCtxSetCurrent(context), OK);
}

static int setup(void **state)
{
    (void)state;
    open_device("manual");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    const struct fake_cuda_live none = {0};
    assert_int_equal(fake_cuDevicePrimaryCtxRelease(0), OK);
    struct fake_cuda_live live = fake_cuda_live();
    return memcmp(&live, &none, sizeof(none)) == 0 ? 0 : -1;
}

static void test_fake_cuda_event_follows_its_last_record(void **state)
{
    struct cuda_stream *stream;
    struct cuda_event *event;
    (void)state;
    assert_int_equal(fake_cuStreamCreate(&stream, CUDA_STREAM_NON_BLOCKING), OK);
    assert_int_equal(fake_cuEventCreate(&event, 0), OK);
    assert_int_equal(fake_cuEventQuery(event), OK); /* never recorded */
    assert_int_equal(fake_cuEventRecord(event, stream), OK);
    assert_int_equal(fake_cuEventRecord(event, stream), OK);
    assert_int_equal(fake_cuEventQuery(event), CUDA_RESULT_NOT_READY);
    assert_int_equal(fake_cuda_run(1), 1);
    assert_int_equal(fake_cuEventQuery(event), CUDA_RESULT_NOT_READY);
    assert_int_equal(fake_cuda_run(1), 1);
    assert_int_equal(fake_cuEventQuery(event), OK);
    assert_int_equal(fake_cuEventRecord(event, stream), OK);
    assert_int_equal(fake_cuEventDestroy(event), OK); /* waits for nothing */
    assert_int_equal(fake_cuEventQuery(event), CUDA_RESULT_INVALID_HANDLE);
    assert_int_equal(fake_cuEventDestroy(event), CUDA_RESULT_INVALID_HANDLE);
    assert_int_equal(fake_cuEventRecord(event, stream), CUDA_RESULT_INVALID_HANDLE);
    assert_int_equal(fake_cuda_run(9), 1);
    assert_int_equal(fake_cuStreamDestroy(stream), OK);
}

static void test_fake_cuda_event_is_shared_only_if_made_for_it(void **state)
{
    struct cuda_event *event;
    struct cuda_event *opened;
    struct cuda_ipc_handle handle;
    (void)state;
    assert_int_equal(fake_cuEventCreate(&event, INTERPROCESS), CUDA_RESULT_INVALID_VALUE);
    assert_int_equal(fake_cuEventCreate(&event, 8), CUDA_RESULT_INVALID_VALUE);
    assert_int_equal(fake_cuEventCreate(&event, DISABLE_TIMING), OK);
    assert_int_equal(fake_cuIpcGetEventHandle(&handle, event), CUDA_RESULT_INVALID_HANDLE);
    assert_int_equal(fake_cuEventDestroy(event), OK);
    assert_int_equal(fake_cuEventCreate(&event, INTERPROCESS | DISABLE_TIMING), OK);
    assert_int_equal(fake_cuIpcGetEventHandle(&handle, event), OK);
    assert_int_not_equal(fake_cuIpcOpenEventHandle(&opened, handle), OK); /* its own process */
    fake_cuda_behave("manual;same_process");
    assert_int_equal(fake_cuIpcOpenEventHandle(&opened, handle), OK);
    assert_int_equal(fake_cuEventDestroy(event), OK);
    assert_int_equal(fake_cuEventQuery(opened), OK);
    assert_int_equal(fake_cuEventDestroy(opened), OK);
    assert_int_equal(fake_cuIpcOpenEventHandle(&opened, handle), CUDA_RESULT_INVALID_HANDLE); /* destroyed */
    memset(&handle, 0x5a, sizeof(handle));
    assert_int_equal(fake_cuIpcOpenEventHandle(&opened, handle), CUDA_RESULT_INVALID_VALUE);
}

/* Records when a byte comes, says so, and dies with the record pending. */
static void run_owner(int in, int out)
{
    struct cuda_stream *stream;
    struct cuda_event *event;
    struct cuda_ipc_handle handle;
    char byte;
    open_device("manual");
    int bad = fake_cuStreamCreate(&stream, CUDA_STREAM_NON_BLOCKING) |
              fake_cuEventCreate(&event, INTERPROCESS | DISABLE_TIMING) | fake_cuIpcGetEventHandle(&handle, event);
    bad |= write(out, &handle, sizeof(handle)) != sizeof(handle);
    while (bad == 0 && read(in, &byte, 1) == 1) {
        bad = byte == 'r' ? fake_cuEventRecord(event, stream) : fake_cuda_run(1) != 1;
        bad |= write(out, &byte, 1) != 1;
    }
    _exit(bad);
}

static void tell(int to, int from, char what)
{
    char answer = 0;
    assert_int_equal(write(to, &what, 1), 1);
    assert_int_equal(read(from, &answer, 1), 1);
    assert_int_equal(answer, what);
}

static void test_fake_cuda_event_is_seen_by_another_process(void **state)
{
    struct cuda_event *event;
    struct cuda_ipc_handle handle;
    int to[2];
    int from[2];
    (void)state;
    assert_int_equal(pipe(to) | pipe(from), 0);
    pid_t owner = fork();
    if (owner == 0) {
        run_owner(to[0], from[1]);
    }
    assert_int_equal(read(from[0], &handle, sizeof(handle)), sizeof(handle));
    assert_int_equal(fake_cuIpcOpenEventHandle(&event, handle), OK);
    for (int turn = 0; turn < 2; turn++) {
        assert_int_equal(fake_cuEventQuery(event), OK);
        tell(to[1], from[0], 'r');
        assert_int_equal(fake_cuEventQuery(event), CUDA_RESULT_NOT_READY);
        tell(to[1], from[0], 'd');
        assert_int_equal(fake_cuEventQuery(event), OK);
    }
    tell(to[1], from[0], 'r');
    assert_int_equal(kill(owner, SIGKILL), 0);
    assert_int_equal(waitpid(owner, NULL, 0), owner);
    assert_int_equal(fake_cuEventQuery(event), CUDA_RESULT_NOT_READY); /* for ever */
    assert_int_equal(fake_cuEventDestroy(event), OK);
    for (int i = 0; i < 2; i++) {
        close(to[i]);
        close(from[i]);
    }
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    alarm(60);
    const struct CMUnitTest tests[] = {
        TEST(test_fake_cuda_event_follows_its_last_record),
        TEST(test_fake_cuda_event_is_shared_only_if_made_for_it),
        TEST(test_fake_cuda_event_is_seen_by_another_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
