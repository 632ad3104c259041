/* SPDX-License-Identifier: Apache-2.0 */
/* An engine whose device is not there at the start. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine.h"

struct device {
    int unused;
};

static struct device the_device;
static _Atomic bool plugged_in;
static _Atomic int opens;
static _Atomic int closes;
static _Atomic int tended;
static struct loop_bell bell;
static struct engine engine;
static struct error err;

static void no_wake(void *arg)
{
    (void)arg;
}

static enum device_answer late_open(const char *uuid, struct device **device, struct device_info *info,
                                    struct error *error)
{
    assert_string_equal(uuid, "GPU-late");
    atomic_fetch_add(&opens, 1);
    if (!atomic_load(&plugged_in)) {
        error_set(error, MLACAT_NOT_FOUND, "not plugged in");
        return DEVICE_NODEV;
    }
    *info = (struct device_info){.uuid = "GPU-late-and-long", .name = "a GPU", .kind = "late"};
    *device = &the_device;
    return DEVICE_OK;
}

static void late_close(struct device *device)
{
    assert_ptr_equal(device, &the_device);
    atomic_fetch_add(&closes, 1);
}

static uint64_t late_tend(struct device *device, struct error *lost)
{
    (void)lost;
    assert_ptr_equal(device, &the_device);
    atomic_fetch_add(&tended, 1);
    return DEVICE_TEND_LATER;
}

static const struct device_ops late_ops = {.kind = "late", .open = late_open, .close = late_close, .tend = late_tend};

static enum mlacat_status start(bool wait)
{
    struct engine_options options = {
        .ops = &late_ops, .uuid = "GPU-late", .wait = wait, .workers = 1, .poll = WORKER_POLL_SLEEP, .bell = &bell};
    bell.wake = no_wake;
    opens = closes = tended = 0;
    plugged_in = false;
    return engine_start(&engine, &options, &err);
}

static void retry_and_wait(void)
{
    engine_retry(&engine);
    engine_retry(&engine); /* one at a time */
    while (!engine_take(&engine)) {
        struct timespec pause = {.tv_nsec = 100000};
        nanosleep(&pause, NULL);
    }
}

static void test_engine_without_wait_refuses_to_start(void **state)
{
    (void)state;
    assert_int_equal(start(false), MLACAT_UNAVAILABLE);
    assert_string_equal(err.message, "not plugged in");
}

static void test_engine_absent_device_comes_later(void **state)
{
    (void)state;
    assert_int_equal(start(true), MLACAT_OK);
    assert_false(engine.available);
    assert_string_equal(engine.info.uuid, "GPU-late");
    assert_string_equal(engine.absent_reason.message, "not plugged in");
    retry_and_wait();
    assert_false(engine.available);
    assert_int_equal(opens, 2);
    plugged_in = true;
    retry_and_wait();
    assert_true(engine.available);
    assert_string_equal(engine.info.uuid, "GPU-late-and-long");
    engine_retry(&engine); /* nothing to look for */
    assert_int_equal(opens, 3);
    assert_true(engine_idle(&engine));
    engine_stop(&engine);
    assert_int_equal(closes, 1);
    assert_true(tended > 0);
}

static void test_engine_absent_device_to_the_end(void **state)
{
    (void)state;
    assert_int_equal(start(true), MLACAT_OK);
    retry_and_wait();
    engine_stop(&engine);
    assert_int_equal(closes, 0);
    assert_int_equal(tended, 0);
}

static void test_engine_device_found_while_stopping_is_closed(void **state)
{
    (void)state;
    assert_int_equal(start(true), MLACAT_OK);
    plugged_in = true;
    engine_retry(&engine);
    engine_stop(&engine);
    assert_int_equal(closes, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_without_wait_refuses_to_start),
        cmocka_unit_test(test_engine_absent_device_comes_later),
        cmocka_unit_test(test_engine_absent_device_to_the_end),
        cmocka_unit_test(test_engine_device_found_while_stopping_is_closed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
