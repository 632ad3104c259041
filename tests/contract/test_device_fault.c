/* SPDX-License-Identifier: Apache-2.0 */
/* The faults that device_fault injects keep to the contract too: tests that use it can rely on that. */
#include "device_row.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "device_fault.h"

static int fault_setup(void **state)
{
    row.name = "fault over host";
    row.ops = &device_fault_ops;
    return row_setup(state);
}

static struct device_call empty_call(void *cookie)
{
    struct device_call call;
    memset(&call, 0, sizeof(call));
    call.plan.op = OP_CONCAT_MLA_K;
    call.cookie = cookie;
    return call;
}

static void test_device_fault_goes_wrong_at_the_nth_import(void **state)
{
    (void)state;
    struct client_memory client = client_memory_new(4096, F_SEAL_SHRINK);
    int fds = open_fds();
    static const enum mlacat_status codes[] = {MLACAT_OK, MLACAT_INTERNAL, MLACAT_INTERNAL, MLACAT_OK};
    device_fault_set(FAULT_IMPORT, FAULT_FAIL, 2, 2);
    for (int i = 0; i < 4; i++) {
        struct memory_request request = client_request(&client);
        struct device_memory *memory = NULL;
        struct memory_info info;
        struct error err;
        assert_int_equal(row.ops->mem_import(row.device, &request, &memory, &info, &err), codes[i]);
        assert_int_equal(open_fds(), fds);
        if (memory) {
            row.ops->mem_release(row.device, memory);
        }
    }
    assert_int_equal(device_fault_calls(FAULT_IMPORT), 4);
    assert_int_equal(device_fault_hits(FAULT_IMPORT), 2);
    client_memory_free(&client);
}

static void test_device_fault_refuses_streams(void **state)
{
    (void)state;
    struct device_stream *stream;
    struct error err;
    device_fault_set(FAULT_STREAM_OPEN, FAULT_REFUSE, 1, FAULT_FOR_EVER);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(row.ops->stream_open(row.device, NULL, &stream, &err), MLACAT_RESOURCE_EXHAUSTED);
        assert_non_null(strstr(err.message, "injected"));
    }
    device_fault_clear();
    assert_int_equal(row.ops->stream_open(row.device, NULL, &stream, &err), MLACAT_OK);
    row.ops->stream_close(stream);
}

static void test_device_fault_submit_that_fails_never_completes(void **state)
{
    (void)state;
    struct device_completion done[4];
    struct error err;
    static const enum device_answer answers[] = {DEVICE_OK, DEVICE_AGAIN, DEVICE_OK, DEVICE_ERROR};
    for (uintptr_t i = 0; i < 4; i++) {
        struct device_call call = empty_call((void *)(i + 1));
        if (i == 1 || i == 3) {
            device_fault_set(FAULT_SUBMIT, i == 1 ? FAULT_REFUSE : FAULT_FAIL, 1, 1);
        }
        assert_int_equal(row_submit(row.stream, &call, &err), answers[i]);
    }
    row_poll_all(done, 2);
    assert_ptr_equal(done[0].cookie, (void *)1);
    assert_ptr_equal(done[1].cookie, (void *)3);
    assert_int_equal(row.ops->poll(row.stream, done, 4, &err), 0);
}

static void test_device_fault_holds_polls_until_cleared(void **state)
{
    (void)state;
    struct device_completion done;
    struct error err;
    struct device_call call = empty_call(&done);
    device_fault_set(FAULT_POLL, FAULT_HOLD, 1, FAULT_FOR_EVER);
    assert_int_equal(row_submit(row.stream, &call, &err), DEVICE_OK);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(row.ops->poll(row.stream, &done, 1, &err), 0);
    }
    device_fault_clear();
    assert_int_equal(row.ops->poll(row.stream, &done, 1, &err), 1);
}

static void test_device_fault_loses_the_device(void **state)
{
    (void)state;
    struct device_completion done;
    struct error err;
    struct device_call call = empty_call(&done);
    assert_int_equal(row_submit(row.stream, &call, &err), DEVICE_OK);
    device_fault_set(FAULT_POLL, FAULT_FAIL, 1, 1);
    for (int i = 0; i < 3; i++) { /* lost is lost */
        assert_int_equal(row.ops->poll(row.stream, &done, 1, &err), -1);
        assert_int_equal(err.code, MLACAT_INTERNAL);
    }
    assert_int_equal(row_submit(row.stream, &call, &err), DEVICE_ERROR);
}

static void test_device_fault_fails_a_completion(void **state)
{
    (void)state;
    struct device_completion done[3];
    struct error err;
    device_fault_set(FAULT_COMPLETION, FAULT_FAIL, 2, 1);
    for (uintptr_t i = 0; i < 3; i++) {
        struct device_call call = empty_call((void *)(i + 1));
        assert_int_equal(row_submit(row.stream, &call, &err), DEVICE_OK);
    }
    row_poll_all(done, 3);
    assert_int_equal(done[0].error.code, MLACAT_OK);
    assert_int_equal(done[1].error.code, MLACAT_DATA_LOSS);
    assert_int_equal(done[1].error.scope, MLACAT_SCOPE_SESSION);
    assert_int_equal(done[2].error.code, MLACAT_OK);
}

static atomic_int opened;

static void *open_stream(void *arg)
{
    struct error err;
    enum mlacat_status status = row.ops->stream_open(row.device, NULL, arg, &err);
    atomic_store(&opened, 1);
    return status == MLACAT_OK ? arg : NULL;
}

static void test_device_fault_holds_a_stream_open_until_cleared(void **state)
{
    (void)state;
    pthread_t thread;
    struct device_stream *stream = NULL;
    void *result;
    atomic_store(&opened, 0);
    device_fault_set(FAULT_STREAM_OPEN, FAULT_HOLD, 1, 1);
    assert_int_equal(pthread_create(&thread, NULL, open_stream, &stream), 0);
    while (device_fault_hits(FAULT_STREAM_OPEN) == 0) {
    }
    assert_int_equal(atomic_load(&opened), 0);
    device_fault_clear();
    assert_int_equal(pthread_join(thread, &result), 0);
    assert_ptr_equal(result, &stream);
    row.ops->stream_close(stream);
}

#define FAULT_TEST(test) cmocka_unit_test_setup_teardown(test, fault_setup, row_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FAULT_TEST(test_device_fault_goes_wrong_at_the_nth_import),
        FAULT_TEST(test_device_fault_refuses_streams),
        FAULT_TEST(test_device_fault_submit_that_fails_never_completes),
        FAULT_TEST(test_device_fault_holds_polls_until_cleared),
        FAULT_TEST(test_device_fault_loses_the_device),
        FAULT_TEST(test_device_fault_fails_a_completion),
        FAULT_TEST(test_device_fault_holds_a_stream_open_until_cleared),
    };
    return cmocka_run_group_tests_name("device fault", tests, NULL, NULL);
}
