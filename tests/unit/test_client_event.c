/* SPDX-License-Identifier: Apache-2.0 */
/* Events that calls wait for, as libmlacat registers them, sends them and finds them again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cuda_driver.h> /* the client's; beside this file is one of the daemon's tests */

#include "test_client_scene.h"

#define DEVICE_NAME "GPU-abababab-abab-abab-abab-abababababab"
#define MODE_GLOBAL 0

/* ------------------------------------------------------------------------------------------------------ the driver */

static struct {
    int context_result;
    int event_result;
    int mode;
    unsigned unrelaxed; /* calls in a thread whose capture mode was not relaxed */
} gpu;
static char some_cu_event;

static int get_context_device(int *device)
{
    gpu.unrelaxed += gpu.mode != CUDA_CAPTURE_RELAXED;
    *device = 3;
    return gpu.context_result;
}

static int get_uuid(unsigned char uuid[16], int device)
{
    assert_int_equal(device, 3);
    memset(uuid, 0xab, 16);
    return CUDA_RESULT_OK;
}

static int get_event_handle(void *handle, void *event)
{
    gpu.unrelaxed += gpu.mode != CUDA_CAPTURE_RELAXED;
    assert_ptr_equal(event, &some_cu_event);
    memset(handle, 0x77, 64);
    return gpu.event_result;
}

static int exchange_mode(int *mode)
{
    int before = gpu.mode;
    gpu.mode = *mode;
    *mode = before;
    return CUDA_RESULT_OK;
}

enum mlacat_status __wrap_cuda_driver(const struct cuda_driver **driver);

enum mlacat_status __wrap_cuda_driver(const struct cuda_driver **driver)
{
    static const struct cuda_driver table = {
        .cuCtxGetDevice = get_context_device,
        .cuDeviceGetUuid = get_uuid,
        .cuIpcGetEventHandle = get_event_handle,
        .cuThreadExchangeStreamCaptureMode = exchange_mode,
    };
    *driver = &table;
    return MLACAT_OK;
}

/* ------------------------------------------------------------------------------------------------------ the client */

static int setup(void **state)
{
    memset(&gpu, 0, sizeof(gpu));
    gpu.mode = MODE_GLOBAL;
    *state = scene_open((struct fake_mode){0}, MLACAT_DISPATCH_CALLER);
    return 0;
}

static int teardown(void **state)
{
    scene_close(state);
    assert_int_equal(gpu.unrelaxed, 0);
    assert_int_equal(gpu.mode, MODE_GLOBAL);
    return 0;
}

static struct mlacat_event *must_register(struct mlacat_client *client)
{
    struct mlacat_event *event;
    assert_int_equal(mlacat_event_register(client, &some_cu_event, &event), MLACAT_OK);
    assert_non_null(event);
    return event;
}

static void expect_refused(struct scene *f, enum mlacat_status code, const char *words)
{
    struct mlacat_event *event = (void *)f;
    assert_int_equal(mlacat_event_register(f->client, &some_cu_event, &event), code);
    assert_null(event);
    if (!strstr(mlacat_error_message(), words)) {
        fail_msg("no \"%s\" in: %s", words, mlacat_error_message());
    }
}

static void run_waiting(struct scene *f, struct mlacat_event *event)
{
    struct mlacat_call call = fake_call(f->buffer);
    call.wait = event;
    assert_int_equal(mlacat_run(f->stream, &call, NULL), MLACAT_OK);
    assert_int_equal(fake_seen(f->fake).last_waited, fake_seen(f->fake).last_event);
}

/* ------------------------------------------------------------------------------------------------------ tests */

static void test_client_event_goes_with_the_call(void **state)
{
    struct scene *f = *state;
    uint8_t handle[64];
    struct mlacat_event *event = must_register(f->client);
    memset(handle, 0x77, sizeof(handle));
    struct fake_seen seen = fake_seen(f->fake);
    assert_int_equal(seen.events, 1);
    assert_memory_equal(seen.last_handle, handle, sizeof(handle));
    assert_string_equal(seen.last_device, DEVICE_NAME);
    run_waiting(f, event);
    assert_int_equal(fake_seen(f->fake).waits, 1);
    struct mlacat_call call = fake_call(f->buffer);
    assert_int_equal(mlacat_run(f->stream, &call, NULL), MLACAT_OK);
    assert_int_equal(fake_seen(f->fake).waits, 1);
    mlacat_event_release(event);
    assert_int_equal(fake_seen(f->fake).events_gone, 1);
    mlacat_event_release(NULL);
    must_register(f->client); /* mlacat_disconnect frees it */
}

/* A program that was built before there were events. */
static void test_client_event_is_none_in_an_older_struct(void **state)
{
    struct scene *f = *state;
    struct mlacat_call call = fake_call(f->buffer);
    call.size = offsetof(struct mlacat_call, wait);
    call.wait = (void *)f;
    assert_int_equal(mlacat_run(f->stream, &call, NULL), MLACAT_OK);
    assert_int_equal(fake_seen(f->fake).waits, 0);
}

static void test_client_event_is_refused_with_its_cause(void **state)
{
    struct scene *f = *state;
    struct mlacat_event *event;
    assert_int_equal(mlacat_event_register(f->client, NULL, &event), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(mlacat_event_register(f->client, &some_cu_event, NULL), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(mlacat_event_register(NULL, &some_cu_event, &event), MLACAT_INVALID_ARGUMENT);
    gpu.context_result = 201;
    expect_refused(f, MLACAT_FAILED_PRECONDITION, "cudaSetDevice");
    gpu.context_result = 0;
    gpu.event_result = 400;
    expect_refused(f, MLACAT_INVALID_ARGUMENT, "CU_EVENT_INTERPROCESS");
    gpu.event_result = 0;
    fake_set(f->fake, (struct fake_mode){.refuse_event = true, .code = MLACAT_RESOURCE_EXHAUSTED, .text = "enough"});
    expect_refused(f, MLACAT_RESOURCE_EXHAUSTED, "enough");
}

static void test_client_event_of_another_client_is_refused(void **state)
{
    struct scene *f = *state;
    struct mlacat_client *other = fake_client(f->fake, MLACAT_DISPATCH_CALLER);
    struct mlacat_call call = fake_call(f->buffer);
    call.wait = must_register(other);
    assert_int_equal(mlacat_run(f->stream, &call, NULL), MLACAT_INVALID_ARGUMENT);
    assert_non_null(strstr(mlacat_error_message(), "another client"));
    assert_int_equal(fake_seen(f->fake).calls, 0);
    mlacat_disconnect(other);
}

static void test_client_event_is_refused_on_a_ring(void **state)
{
    struct scene *f = *state;
    struct mlacat_stream *stream;
    struct mlacat_buffer *buffer;
    fake_set(f->fake, (struct fake_mode){.rings = true});
    fake_sync(f->fake);
    struct mlacat_client *client = fake_client(f->fake, MLACAT_DISPATCH_THREAD);
    assert_int_equal(mlacat_stream_open(client, NULL, &stream), MLACAT_OK);
    assert_int_equal(mlacat_buffer_alloc(client, NULL, 4096, &buffer), MLACAT_OK);
    struct mlacat_call call = fake_call(buffer);
    call.wait = must_register(client);
    assert_int_equal(mlacat_run(stream, &call, NULL), MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(mlacat_error_message(), "MLACAT_TRANSPORT_MESSAGE"));
    mlacat_disconnect(client);
}

static void test_client_event_is_registered_again(void **state)
{
    struct scene *f = *state;
    struct mlacat_event *event = must_register(f->client);
    struct mlacat_event *released = must_register(f->client);
    mlacat_event_release(released);
    fake_die(f->fake, NULL);
    struct mlacat_call call = fake_call(f->buffer);
    if (mlacat_run(f->stream, &call, NULL) != MLACAT_OK) { /* the end may be seen only by the submit */
        assert_int_equal(mlacat_run(f->stream, &call, NULL), MLACAT_OK);
    }
    assert_int_equal(fake_seen(f->fake).events, 3);
    run_waiting(f, event);
}

static void reconnect_in(struct scene *f, struct fake_mode mode)
{
    fake_set(f->fake, mode);
    fake_sync(f->fake);
    fake_die(f->fake, NULL);
    struct mlacat_call call = fake_call(f->buffer);
    unsigned hellos = fake_seen(f->fake).hellos;
    while (fake_seen(f->fake).hellos == hellos) {
        mlacat_run(f->stream, &call, NULL);
    }
}

static void expect_broken(struct scene *f, struct mlacat_event *event, const char *words)
{
    struct mlacat_call call = fake_call(f->buffer);
    call.wait = event;
    assert_int_equal(mlacat_run(f->stream, &call, NULL), MLACAT_FAILED_PRECONDITION);
    if (!strstr(mlacat_error_message(), words)) {
        fail_msg("no \"%s\" in: %s", words, mlacat_error_message());
    }
}

static void test_client_event_that_is_not_restored_is_broken(void **state)
{
    struct scene *f = *state;
    struct mlacat_event *event = must_register(f->client);
    reconnect_in(f, (struct fake_mode){.refuse_event = true, .code = MLACAT_NOT_FOUND, .text = "no such GPU"});
    fake_set(f->fake, (struct fake_mode){0});
    expect_broken(f, event, "no such GPU");
    /* A daemon of today that has the GPU again. */
    reconnect_in(f, (struct fake_mode){0});
    run_waiting(f, event);
}

static void test_client_event_is_never_sent_to_an_older_daemon(void **state)
{
    struct scene *f = *state;
    struct mlacat_event *event = must_register(f->client);
    reconnect_in(f, (struct fake_mode){.old = true});
    expect_broken(f, event, "knows no events");
    expect_refused(f, MLACAT_UNIMPLEMENTED, "update it");
    mlacat_event_release(event);
    assert_int_equal(fake_seen(f->fake).events_gone, 0);
}

static void test_client_event_is_left_alone_by_a_forked_child(void **state)
{
    struct scene *f = *state;
    struct mlacat_event *event = must_register(f->client);
    pid_t child = fork();
    if (child == 0) {
        struct mlacat_event *another;
        mlacat_event_release(event);
        _exit(mlacat_event_register(f->client, &some_cu_event, &another) == MLACAT_FAILED_PRECONDITION ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    run_waiting(f, event);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    alarm(60);
    const struct CMUnitTest tests[] = {
        TEST(test_client_event_goes_with_the_call),
        TEST(test_client_event_is_none_in_an_older_struct),
        TEST(test_client_event_is_refused_with_its_cause),
        TEST(test_client_event_of_another_client_is_refused),
        TEST(test_client_event_is_refused_on_a_ring),
        TEST(test_client_event_is_registered_again),
        TEST(test_client_event_that_is_not_restored_is_broken),
        TEST(test_client_event_is_never_sent_to_an_older_daemon),
        TEST(test_client_event_is_left_alone_by_a_forked_child),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
