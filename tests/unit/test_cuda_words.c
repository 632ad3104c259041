/* SPDX-License-Identifier: Apache-2.0 */
/* CUDA streams that tell their progress in the words of a ring, and the pages of those words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>
#include <sys/mman.h>

#include "cuda_scene.h"

#define ALL UINT32_MAX

static struct device_completion done[256];

static int setup(void **state)
{
    (void)state;
    scene_open(true);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scene_close();
    return 0;
}

static enum device_answer submit(const struct device_call *calls, uint32_t *nr)
{
    return cuda_stream_submit(stream, calls, nr, &err);
}

static enum device_answer submit_one(const struct device_call *call)
{
    uint32_t nr = 1;
    return submit(call, &nr);
}

static int poll(void)
{
    return cuda_stream_poll(stream, done, 256, &err);
}

static uint64_t fence(void)
{
    return __atomic_load_n(words.fence, __ATOMIC_ACQUIRE);
}

static uint64_t done_word(void)
{
    return __atomic_load_n(words.done, __ATOMIC_ACQUIRE);
}

/* More than one block does, which would tell its end itself. */
static struct device_call large_call(uint64_t sequence)
{
    struct device_call call = scene_call(5000, sequence);
    call.plan.offset_bytes[OP_OUT] = 1;
    return call;
}

/* Written by the kernel itself, or behind it. A write behind the kernel's own is for the client's CUDA stream. */
static void end_of_a_call_moves_words(struct device_call call, uint32_t writes)
{
    call.tell_done = true;
    assert_int_equal(submit_one(&call), DEVICE_OK);
    driver_work(1); /* the kernel */
    assert_int_equal(poll(), 0);
    driver_work(1);
    assert_int_equal(done_word(), 7);
    assert_int_equal(fence(), 0);
    assert_int_equal(poll(), 0);
    driver_work(1);
    assert_int_equal(fence(), 7);
    assert_int_equal(poll(), 1);
    assert_ptr_equal(done[0].cookie, (void *)7);
    assert_int_equal(driver.calls[DRIVER_cuStreamWriteValue64], writes);
}

static void test_cuda_words_end_of_a_small_call_moves_them(void **state)
{
    (void)state;
    end_of_a_call_moves_words(scene_call(4, 7), 1);
}

static void test_cuda_words_end_of_a_call_moves_them(void **state)
{
    (void)state;
    end_of_a_call_moves_words(large_call(7), 2);
}

/* A kernel whose `done` is still on its way, though the fence says that it has ended; then a signal. */
static void signal_behind_done_on_its_way(void)
{
    struct device_call call = scene_call(4, 1);
    struct device_call signal = scene_call(4, 2);
    call.tell_done = signal.tell_done = signal.signal_only = true;
    driver.fence_first = true;
    assert_int_equal(submit_one(&call), DEVICE_OK);
    driver_work(2);
    assert_int_equal(poll(), 1);
    assert_int_equal(fence(), 1);
    assert_int_equal(done_word(), 0);
    assert_int_equal(submit_one(&signal), DEVICE_OK);
    assert_int_equal(poll(), 0);
    assert_int_equal(fence(), 1);
    assert_int_equal(done_word(), 0);
}

static void test_cuda_words_done_never_goes_back(void **state)
{
    (void)state;
    signal_behind_done_on_its_way();
    driver_work(1);
    assert_int_equal(done_word(), 1);
    assert_int_equal(poll(), 0);
    driver_work(1); /* behind the kernel */
    assert_int_equal(poll(), 1);
    assert_int_equal(fence(), 2);
    assert_int_equal(done_word(), 2);
}

static void test_cuda_words_done_that_never_comes_asks_the_driver(void **state)
{
    (void)state;
    signal_behind_done_on_its_way();
    assert_int_equal(poll(), 0);
    driver.now_ns += CUDA_FENCE_SILENCE_NS;
    driver.query_result = 719;
    assert_int_equal(poll(), -1);
    driver_work(ALL);
}

static void test_cuda_words_batch_in_order(void **state)
{
    (void)state;
    struct device_call calls[5];
    uint32_t nr = 5;
    for (uint64_t i = 0; i < 5; i++) {
        calls[i] = scene_call(4, i + 1);
    }
    calls[2].signal_only = calls[2].tell_done = true;
    calls[3].plan.copy[OP_OUT] = false;
    assert_int_equal(submit(calls, &nr), DEVICE_OK);
    assert_int_equal(nr, 5);
    assert_int_equal(driver.launches, 3); /* what copies nothing goes with the launch before it */
    driver_work(3);
    assert_int_equal(poll(), 1);
    assert_int_equal(fence(), 1);
    driver_work(2);
    assert_int_equal(done_word(), 3);
    assert_int_equal(fence(), 4);
    assert_int_equal(poll(), 3);
    assert_ptr_equal(done[1].cookie, (void *)3);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    assert_int_equal(fence(), 5);
    assert_int_equal(done_word(), 3);
}

static void test_cuda_words_batch_stops_at_a_refused_call(void **state)
{
    (void)state;
    struct device_call calls[3] = {scene_call(4, 1), scene_call(4, 2), scene_call(4, 3)};
    uint32_t nr = 3;
    driver.fail_at = 2; /* kernel, kernel */
    driver.fail_result = 701;
    assert_int_equal(submit(calls, &nr), DEVICE_OK);
    assert_int_equal(nr, 1);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    nr = 2;
    assert_int_equal(submit(&calls[1], &nr), DEVICE_OK); /* it was once */
    assert_int_equal(nr, 2);
    driver_work(ALL);
    assert_int_equal(poll(), 2);
}

/* A long call is many launches, on all lanes: the words move when poll has seen the last one's end. */
static void test_cuda_words_long_call_moves_them_once(void **state)
{
    (void)state;
    struct device_call call = scene_call(200 * MIB / 192, 1);
    call.tell_done = true;
    assert_int_equal(submit_one(&call), DEVICE_OK);
    for (int polls = 0; polls < 10000 && poll() == 0; polls++) {
        assert_int_equal(fence(), 0);
        assert_int_equal(done_word(), 0);
        driver_work(1);
    }
    assert_int_equal(fence(), 1);
    assert_int_equal(done_word(), 1);
    assert_true(driver.launches >= 400 / 8);
    assert_int_equal(driver.calls[DRIVER_cuStreamWriteValue64] + driver.signal_launches, driver.launches);
}

/* The fence stays, `done` comes, and nothing is taken that could pass the fence before the failure is told. */
static void test_cuda_words_failed_call_leaves_the_fence(void **state)
{
    (void)state;
    struct device_call call = scene_call(6 * MIB / 384, 1); /* room for others beside it, and yet several launches: */
    struct device_call next = scene_call(4, 2);
    call.plan.offset_bytes[OP_OUT] = 1; /* byte by byte */
    call.tell_done = true;
    driver.fail_at = 3; /* kernel, step, kernel */
    driver.fail_result = 701;
    assert_int_equal(submit_one(&call), DEVICE_OK);
    assert_int_equal(submit_one(&next), DEVICE_AGAIN);
    assert_int_equal(poll(), 0);
    assert_int_equal(submit_one(&next), DEVICE_AGAIN); /* failed, not told */
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    assert_int_equal(done[0].error.code, MLACAT_INTERNAL);
    assert_int_equal(fence(), 0);
    assert_int_equal(done_word(), 1);
    assert_int_equal(submit_one(&next), DEVICE_OK);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    assert_int_equal(fence(), 2);
}

static void test_cuda_words_lost_write_loses_the_stream(void **state)
{
    (void)state;
    for (uint32_t fail_at = 2; fail_at <= 3; fail_at++) {
        struct device_call call = large_call(1);
        call.tell_done = true;
        driver.total = 0;
        driver.fail_at = fail_at; /* kernel, done, fence */
        driver.fail_result = 999;
        assert_int_equal(submit_one(&call), DEVICE_OK);
        assert_int_equal(poll(), -1);
        assert_int_equal(err.scope, MLACAT_SCOPE_DEVICE);
        cuda_stream_close(stream);
        driver_work(ALL);
        assert_int_equal(cuda_stream_open(&device, &words, &stream, &err), MLACAT_OK);
    }
}

static void test_cuda_words_silent_fence_asks_the_driver(void **state)
{
    (void)state;
    struct device_call call = scene_call(4, 1);
    assert_int_equal(submit_one(&call), DEVICE_OK);
    assert_int_equal(poll(), 0);
    driver.now_ns += CUDA_FENCE_SILENCE_NS;
    driver.query_result = 719;
    assert_int_equal(poll(), -1);
}

/* ---------------------------------------------------------------------------------------------- pages */

/* Whoever had them registered unmaps his at once; the driver's go one by one, in time. */
static void test_cuda_pages_outlive_the_callers_mapping(void **state)
{
    (void)state;
    unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct device_pages *pages[3];
    uint32_t before = driver.pages;
    for (int i = 0; i < 3; i++) {
        pages[i] = register_page(page);
    }
    page[8] = 77;
    const unsigned char *seen = (const unsigned char *)(uintptr_t)cuda_pages_address(pages[1], page + 8);
    assert_ptr_not_equal(seen, page + 8);
    munmap(page, PAGE);
    assert_int_equal(*seen, 77);
    for (int i = 0; i < 3; i++) {
        cuda_pages_release(&device.pages, pages[i]);
    }
    assert_int_equal(driver.pages, before + 3);
    device.segments.closed_ns = driver.now_ns;
    assert_int_equal(cuda_pages_tend(&device.pages), CUDA_CLOSE_PACE_NS);
    assert_int_equal(driver.pages, before + 3);
    for (uint32_t i = 1; i <= 3; i++) {
        driver.now_ns += CUDA_CLOSE_PACE_NS;
        uint64_t in_ns = cuda_pages_tend(&device.pages);
        assert_int_equal(driver.pages, before + 3 - i);
        assert_int_equal(in_ns, i < 3 ? CUDA_CLOSE_PACE_NS : UINT64_MAX);
        assert_int_equal(device.segments.closed_ns, driver.now_ns); /* the next close of a segment waits as well */
    }
    assert_int_equal(cuda_pages_tend(&device.pages), UINT64_MAX);
}

/* Clients that come and go faster than the pace pin no more and more memory. */
static void test_cuda_pages_released_are_bounded(void **state)
{
    (void)state;
    unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint32_t before = driver.pages;
    for (int i = 0; i < CUDA_PAGES_RELEASED_MAX + 3; i++) {
        driver.now_ns += i < CUDA_PAGES_RELEASED_MAX ? 0 : CUDA_CLOSE_PACE_NS;
        cuda_pages_release(&device.pages, register_page(page));
    }
    assert_int_equal(driver.pages, before + CUDA_PAGES_RELEASED_MAX);
    struct device_pages *none = NULL;
    driver.now_ns += CUDA_CLOSE_PACE_NS - 1;
    assert_int_equal(cuda_pages_register(&device.pages, page, PAGE, &none, &err), DEVICE_AGAIN);
    assert_int_equal(err.code, MLACAT_RESOURCE_EXHAUSTED);
    assert_null(none);
    driver.now_ns -= CUDA_CLOSE_PACE_NS - 1;
    munmap(page, PAGE);
    assert_int_equal(driver.pages, before + CUDA_PAGES_RELEASED_MAX);
    assert_int_equal(device.segments.closed_ns, driver.now_ns); /* others wait for their turn too */
    cuda_pages_fini(&device.pages);
    assert_int_equal(driver.pages, before);
    cuda_pages_init(&device.pages, &device);
}

static void test_cuda_pages_each_call_failing_in_turn(void **state)
{
    (void)state;
    unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct device_pages *pages;
    uint32_t before = driver.pages;
    for (uint32_t fail_at = 1; fail_at <= 2; fail_at++) {
        driver.total = 0;
        driver.fail_at = fail_at;
        driver.fail_result = 2;
        assert_int_equal(cuda_pages_register(&device.pages, page, PAGE, &pages, &err), DEVICE_ERROR);
        assert_int_equal(err.code, MLACAT_RESOURCE_EXHAUSTED);
        assert_int_equal(driver.pages, before);
    }
    driver.fail_at = 0;
    pages = register_page(page);
    cuda_pages_release(&device.pages, pages);
    munmap(page, PAGE);
}

#define WORDS_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WORDS_TEST(test_cuda_words_end_of_a_small_call_moves_them),
        WORDS_TEST(test_cuda_words_end_of_a_call_moves_them),
        WORDS_TEST(test_cuda_words_done_never_goes_back),
        WORDS_TEST(test_cuda_words_done_that_never_comes_asks_the_driver),
        WORDS_TEST(test_cuda_words_batch_in_order),
        WORDS_TEST(test_cuda_words_batch_stops_at_a_refused_call),
        WORDS_TEST(test_cuda_words_long_call_moves_them_once),
        WORDS_TEST(test_cuda_words_failed_call_leaves_the_fence),
        WORDS_TEST(test_cuda_words_lost_write_loses_the_stream),
        WORDS_TEST(test_cuda_words_silent_fence_asks_the_driver),
        WORDS_TEST(test_cuda_pages_outlive_the_callers_mapping),
        WORDS_TEST(test_cuda_pages_released_are_bounded),
        WORDS_TEST(test_cuda_pages_each_call_failing_in_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
