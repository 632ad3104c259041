/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of event_import, event_query and event_release. */
#include "device_row.h"

#include <string.h>

static struct device_event *import(const uint8_t handle[MEMORY_HANDLE_BYTES])
{
    struct device_event *event = NULL;
    struct error err;
    assert_int_equal(row.ops->event_import(row.device, handle, &event, &err), MLACAT_OK);
    assert_non_null(event);
    return event;
}

static void assert_answer(struct device_event *event, enum device_answer answer)
{
    struct error err;
    assert_int_equal(row.ops->event_query(event, &err), answer);
}

/* A handle of nobody's, and any handle where the device has no events. */
static void test_device_event_of_nobody_is_refused(void **state)
{
    (void)state;
    uint8_t handle[MEMORY_HANDLE_BYTES];
    struct device_event *event = NULL;
    struct error err;
    memset(handle, 0x5a, sizeof(handle));
    enum mlacat_status status = row.ops->event_import(row.device, handle, &event, &err);
    assert_int_equal(status, row.events ? MLACAT_INVALID_ARGUMENT : MLACAT_UNIMPLEMENTED);
    assert_int_equal(err.code, status);
    assert_non_null(strstr(err.message, "event"));
    assert_null(event);
}

static void test_device_event_is_done_with_its_last_record(void **state)
{
    (void)state;
    uint8_t handle[MEMORY_HANDLE_BYTES];
    if (!row.events) {
        return;
    }
    row.events->make(handle);
    struct device_event *event = import(handle);
    struct device_event *again = import(handle);
    assert_answer(event, DEVICE_OK); /* never recorded */
    for (int turn = 0; turn < 3; turn++) {
        row.events->record();
        assert_answer(event, DEVICE_AGAIN);
        assert_answer(again, DEVICE_AGAIN);
        row.events->come();
        assert_answer(event, DEVICE_OK);
        assert_answer(again, DEVICE_OK);
    }
    row.ops->event_release(row.device, event);
    row.events->record();
    assert_answer(again, DEVICE_AGAIN);
    row.ops->event_release(row.device, again); /* does not wait for it */
    row.events->come();
    row.events->destroy();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ROW_TEST(test_device_event_of_nobody_is_refused),
        ROW_TEST(test_device_event_is_done_with_its_last_record),
    };
    return ROW_RUN_TESTS("device events", tests);
}
