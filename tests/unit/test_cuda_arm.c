/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that a CUDA stream takes before their turn: the GPU waits for their word, for a time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "cuda_scene.h"

#define ALL UINT32_MAX
#define WAIT_NS 40000
#define SMALL 4    /* rows of what one block copies */
#define LARGE 2000 /* more than that, and one launch */

static struct device_completion done[8];

static int setup(void **state)
{
    (void)state;
    scene_open(true);
    device.mps = true;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scene_close();
    return 0;
}

/* A call that a client's CUDA stream waits for. */
static struct device_call call_of(uint64_t rows, uint64_t sequence)
{
    struct device_call call = scene_call(rows, sequence);
    call.tell_done = true;
    return call;
}

static enum device_answer arm(const struct device_call *call)
{
    return cuda_stream_arm(stream, call, call->sequence, WAIT_NS, &err);
}

static enum device_answer submit(const struct device_call *call)
{
    uint32_t nr = 1;
    return cuda_stream_submit(stream, call, &nr, &err);
}

static int poll(void)
{
    return cuda_stream_poll(stream, done, 8, &err);
}

static void set_ready(uint64_t value)
{
    *(uint64_t *)(void *)(mapping + ((const unsigned char *)words.ready - mapping)) = value;
}

static void assert_words(uint64_t done_word, uint64_t fence)
{
    assert_int_equal(*words.done, done_word);
    assert_int_equal(*words.fence, fence);
}

/* One that runs ends when the fence says so, before the write behind it. A large one has a kernel before that too. */
static void run_armed(uint64_t rows, uint64_t sequence)
{
    struct device_call call = call_of(rows, sequence);
    assert_int_equal(arm(&call), DEVICE_OK);
    assert_int_equal(poll(), 0);
    set_ready(sequence);
    driver_work(rows == LARGE ? 2 : 1);
    assert_words(sequence - 1, sequence - 1);
    driver_work(1);
    assert_words(sequence, sequence - 1);
    assert_int_equal(poll(), 0);
    driver_work(1);
    assert_int_equal(poll(), 1);
    assert_ptr_equal(done[0].cookie, (void *)(uintptr_t)sequence);
    assert_false(done[0].lapsed);
    assert_int_equal(done[0].error.code, MLACAT_OK);
}

static void test_cuda_arm_runs_when_the_word_is_there(void **state)
{
    (void)state;
    run_armed(SMALL, 1);
    driver_work(ALL);
    assert_int_equal(driver.launches, 1);
    assert_int_equal(driver.calls[DRIVER_cuStreamWriteValue64], 1); /* to wake who waits for `done` */
    assert_int_equal(poll(), 0);
    run_armed(SMALL, 2);
    struct device_call call = call_of(4, 3);
    assert_int_equal(arm(&call), DEVICE_OK);
    set_ready(3);
    driver_work(3);
    assert_int_equal(poll(), 1);
    assert_words(3, 3);
}

/* The next poll says that it has lapsed, and nothing is left of that; then it runs. */
static void submit_lapsed(const struct device_call *call)
{
    assert_int_equal(poll(), 1);
    assert_true(done[0].lapsed);
    assert_int_equal(done[0].error.code, MLACAT_OK);
    assert_int_equal(atomic_load(&memory->segment->pins), 0);
    assert_int_equal(submit(call), DEVICE_OK);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    assert_false(done[0].lapsed);
    assert_words(call->sequence, call->sequence);
}

static void test_cuda_arm_lapses_without_a_trace(void **state)
{
    (void)state;
    for (uint64_t sequence = 1; sequence <= 3; sequence++) {
        struct device_call call = call_of(4, sequence);
        assert_int_equal(arm(&call), DEVICE_OK);
        assert_int_equal(poll(), 0);
        driver_work(3); /* what it does not do too */
        assert_int_equal(driver.lapses, sequence);
        assert_words(sequence - 1, sequence - 1);
        submit_lapsed(&call);
    }
}

/* The word came, and the launch was over, before anybody looked. */
static void test_cuda_arm_is_seen_late(void **state)
{
    (void)state;
    struct device_call call = call_of(4, 1);
    assert_int_equal(arm(&call), DEVICE_OK);
    set_ready(1);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    assert_false(done[0].lapsed);
    assert_words(1, 1);
}

/* Those that ran did not write what the lane counts on; a long call, which has a few launches ahead, sees none. */
static void test_cuda_arm_that_ran_holds_up_no_long_call(void **state)
{
    (void)state;
    for (uint64_t sequence = 1; sequence <= 4; sequence++) {
        run_armed(sequence % 2 ? SMALL : LARGE, sequence);
        driver_work(ALL);
    }
    struct device_call small = scene_call(4, 5); /* has the lane, so that the long one begins on another */
    struct device_call large = scene_call(20 * MIB / 192, 6);
    assert_int_equal(submit(&small), DEVICE_OK);
    large.plan.offset_bytes[OP_OUT] = MIB;
    assert_int_equal(submit(&large), DEVICE_OK);
    int nr = 0;
    for (int polls = 0; polls < 10000 && nr < 2; polls++) {
        driver_work(1);
        nr += poll();
    }
    assert_int_equal(nr, 2);
    assert_words(4, 6);
}

static void assert_refused(const struct device_call *call)
{
    uint32_t launches = driver.launches;
    uint32_t pins = (uint32_t)atomic_load(&memory->segment->pins);
    assert_int_equal(arm(call), DEVICE_AGAIN);
    assert_int_equal(driver.launches, launches);
    assert_int_equal(atomic_load(&memory->segment->pins), pins);
}

static void test_cuda_arm_refuses_what_is_no_quicker(void **state)
{
    (void)state;
    struct device_call huge = call_of(1 << 20, 1);
    struct device_call large = call_of(LARGE, 1);
    struct device_call empty = call_of(4, 1);
    struct device_call small = call_of(4, 1);
    assert_refused(&huge); /* more than one launch */
    device.kernels.gate = NULL;
    assert_refused(&large); /* it would wait on all of the GPU */
    empty.plan.copy[OP_OUT] = false;
    assert_refused(&empty);
    device.mps = false; /* the one it waits for could not run */
    assert_refused(&small);
    device.mps = true;
    assert_int_equal(submit(&small), DEVICE_OK);
    struct device_call behind = call_of(4, 2);
    assert_refused(&behind);
    driver_work(ALL);
    assert_refused(&behind); /* not seen yet */
    assert_int_equal(poll(), 1);
    run_armed(SMALL, 2);
}

static void test_cuda_arm_failed_launch_is_left_to_submit(void **state)
{
    (void)state;
    struct device_call call = call_of(4, 1);
    driver.total = 0;
    driver.fail_at = 1;
    driver.fail_result = 701;
    assert_int_equal(arm(&call), DEVICE_AGAIN);
    assert_int_equal(atomic_load(&memory->segment->pins), 0);
    driver.fail_at = 0;
    assert_int_equal(submit(&call), DEVICE_OK);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
}

static void test_cuda_arm_lost_write_loses_the_stream(void **state)
{
    (void)state;
    struct device_call call = call_of(4, 1);
    driver.total = 0;
    driver.fail_at = 2; /* kernel, write behind it */
    driver.fail_result = 999;
    assert_int_equal(arm(&call), DEVICE_OK);
    driver.fail_at = 0;
    assert_int_equal(poll(), -1);
    assert_int_equal(err.scope, MLACAT_SCOPE_DEVICE);
    driver_work(ALL);
}

/* ------------------------------------------------------------------------------------------------------ the word */

static uint64_t word[2];

/* Memory of the client where its word is in word[1]. */
static struct device_memory word_memory(void)
{
    struct device_memory made = *memory;
    made.base = (uintptr_t)word;
    return made;
}

static void test_cuda_arm_looks_where_the_word_is_told_to_be(void **state)
{
    (void)state;
    struct device_memory made = word_memory();
    for (uint64_t sequence = 1; sequence <= 4; sequence++) {
        bool large = sequence > 2;
        bool runs = sequence % 2 == 1;
        struct device_call call = call_of(large ? LARGE : SMALL, sequence);
        call.ready_memory = &made;
        call.ready_offset = sizeof(word[0]);
        word[0] = UINT64_MAX;
        word[1] = runs ? sequence : sequence - 1;
        set_ready(runs ? sequence - 1 : sequence);
        assert_int_equal(arm(&call), DEVICE_OK);
        driver_work(ALL);
        assert_int_equal(atomic_load(&memory->segment->pins), OP_OPERANDS + 1); /* until the end is seen */
        assert_int_equal(poll(), 1);
        assert_int_equal(done[0].lapsed, !runs);
        assert_int_equal(atomic_load(&memory->segment->pins), 0);
        if (!runs) {
            assert_int_equal(submit(&call), DEVICE_OK);
            driver_work(ALL);
            assert_int_equal(poll(), 1);
            assert_int_equal(atomic_load(&memory->segment->pins), 0);
        }
    }
}

static void test_cuda_arm_failed_launch_lets_go_of_the_word(void **state)
{
    (void)state;
    struct device_memory made = word_memory();
    struct device_call call = call_of(SMALL, 1);
    call.ready_memory = &made;
    driver.total = 0;
    driver.fail_at = 1;
    driver.fail_result = 701;
    assert_int_equal(arm(&call), DEVICE_AGAIN);
    assert_int_equal(atomic_load(&memory->segment->pins), 0);
    driver.fail_at = 0;
}

/* It has gone, and its place has another's: that is nothing to look at, and no harm to the call. */
static void test_cuda_arm_without_the_memory_of_the_word_is_left_to_submit(void **state)
{
    (void)state;
    struct cuda_segment *segment = memory->segment;
    struct cuda_segment gone = {.stale = true};
    struct device_memory made = word_memory();
    struct device_call call = call_of(SMALL, 1);
    made.segment = &gone;
    call.ready_memory = &made;
    assert_int_equal(arm(&call), DEVICE_AGAIN);
    assert_int_equal(atomic_load(&segment->pins), 0);
    assert_int_equal(atomic_load(&gone.pins), 0);
    assert_int_equal(driver.launches, 0);
    assert_int_equal(submit(&call), DEVICE_OK);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
}

/* The word in the page is where calls without such a memory go again. */
static void test_cuda_arm_word_is_of_one_call(void **state)
{
    (void)state;
    struct device_memory made = word_memory();
    struct device_call call = call_of(SMALL, 1);
    call.ready_memory = &made;
    word[0] = 1;
    assert_int_equal(arm(&call), DEVICE_OK);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    assert_false(done[0].lapsed);
    word[0] = 2;
    call = call_of(SMALL, 2);
    assert_int_equal(arm(&call), DEVICE_OK);
    assert_int_equal(atomic_load(&memory->segment->pins), OP_OPERANDS);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    assert_true(done[0].lapsed);
}

/* ------------------------------------------------------------------------------------------------------ large calls */

static void test_cuda_arm_large_goes_behind_a_gate(void **state)
{
    (void)state;
    run_armed(LARGE, 1);
    assert_int_equal(driver.launches, 1);
    assert_int_equal(driver.calls[DRIVER_cuLaunchKernelEx], 2);
    assert_int_equal(driver.calls[DRIVER_cuStreamWriteValue64], 1); /* to wake who waits for `done` */
    assert_int_equal(driver.gated_copies, 1);
    driver_work(ALL);
    run_armed(SMALL, 2);
    driver_work(ALL);
    run_armed(LARGE, 3);
    assert_int_equal(driver.gated_copies, 2);
}

/* The gate tells of it; then the word comes, but the copy behind it has not heard of that. */
static void test_cuda_arm_large_lapses_without_a_trace(void **state)
{
    (void)state;
    for (uint64_t sequence = 1; sequence <= 3; sequence++) {
        struct device_call call = call_of(LARGE, sequence);
        assert_int_equal(arm(&call), DEVICE_OK);
        assert_int_equal(poll(), 0);
        driver_work(1);
        assert_int_equal(driver.lapses, sequence);
        set_ready(sequence);
        assert_int_equal(poll(), 1);
        assert_true(done[0].lapsed);
        assert_int_equal(atomic_load(&memory->segment->pins), 0);
        driver_work(ALL);
        assert_int_equal(driver.gated_copies, 0);
        assert_words(sequence - 1, sequence - 1);
        assert_int_equal(submit(&call), DEVICE_OK);
        driver_work(ALL);
        assert_int_equal(poll(), 1);
        assert_false(done[0].lapsed);
        assert_words(sequence, sequence);
    }
    run_armed(LARGE, 4);
}

/* Armed anew before the GPU is over what is left of the one that has lapsed. */
static void test_cuda_arm_large_again_behind_one_that_lapsed(void **state)
{
    (void)state;
    struct device_call call = call_of(LARGE, 1);
    assert_int_equal(arm(&call), DEVICE_OK);
    driver_work(1);
    assert_int_equal(poll(), 1);
    assert_true(done[0].lapsed);
    assert_int_equal(arm(&call), DEVICE_OK);
    set_ready(1);
    driver_work(2); /* the copy that is in vain, and the other gate */
    assert_int_equal(driver.gated_copies, 0);
    assert_int_equal(poll(), 0);
    driver_work(ALL);
    assert_int_equal(driver.gated_copies, 1);
    assert_int_equal(poll(), 1);
    assert_false(done[0].lapsed);
    assert_words(1, 1);
}

/* The launch after so many fails. Whatever is there has ended before the call has, which is as if it had lapsed. */
static void break_launch(uint64_t sequence, uint32_t launched, bool ready)
{
    struct device_call call = call_of(LARGE, sequence);
    driver.total = 0;
    driver.fail_at = launched + 1;
    driver.fail_result = 701;
    assert_int_equal(arm(&call), DEVICE_OK);
    driver.fail_at = 0;
    if (ready) {
        set_ready(sequence);
    }
    for (uint32_t i = 0; i < launched; i++) {
        assert_int_equal(driver_work(1), 1);
        assert_int_equal(poll(), 0);
    }
    assert_int_equal(driver_work(ALL), 1);
    assert_words(sequence - 1, sequence - 1);
    submit_lapsed(&call);
}

static void test_cuda_arm_large_that_is_there_in_part_lapses(void **state)
{
    (void)state;
    break_launch(1, 1, false);
    break_launch(2, 1, true);
    break_launch(3, 2, false);
    assert_int_equal(driver.gated_copies, 0);
    break_launch(4, 2, true);
    assert_int_equal(driver.gated_copies, 1);
    run_armed(LARGE, 5);
    driver_work(ALL);
    run_armed(SMALL, 6);
}

static void test_cuda_arm_large_without_a_gate_is_left_to_submit(void **state)
{
    (void)state;
    struct device_call call = call_of(LARGE, 1);
    driver.total = 0;
    driver.fail_at = 1;
    driver.fail_result = 701;
    assert_int_equal(arm(&call), DEVICE_AGAIN);
    assert_int_equal(atomic_load(&memory->segment->pins), 0);
    assert_int_equal(driver_work(ALL), 0);
    driver.fail_at = 0;
    run_armed(LARGE, 1);
}

/* The calls from `fail_at` on, `nr` of them, fail so that nobody will ever know when the rest has ended. */
static void lose(uint32_t fail_at, uint32_t nr, int result)
{
    struct device_call call = call_of(LARGE, 1);
    driver.total = 0;
    driver.fail_at = fail_at;
    driver.fail_more = nr - 1;
    driver.fail_result = result;
    assert_int_equal(arm(&call), DEVICE_OK);
    driver.fail_at = 0;
    set_ready(1);
    driver_work(ALL);
    assert_int_equal(*words.done, 0);
    assert_int_equal(poll(), -1);
    assert_int_equal(err.scope, MLACAT_SCOPE_DEVICE);
}

static void test_cuda_arm_large_lost_between_launches(void **state)
{
    (void)state;
    lose(2, 1, 719);
    assert_non_null(strstr(err.message, "cuLaunchKernelEx"));
}

static void test_cuda_arm_large_lost_before_the_tail(void **state)
{
    (void)state;
    lose(3, 1, 719);
    assert_non_null(strstr(err.message, "cuLaunchKernelEx"));
}

static void test_cuda_arm_large_in_part_and_no_write_behind_it(void **state)
{
    (void)state;
    lose(3, 2, 701);
}

#define ARM_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ARM_TEST(test_cuda_arm_runs_when_the_word_is_there),
        ARM_TEST(test_cuda_arm_lapses_without_a_trace),
        ARM_TEST(test_cuda_arm_is_seen_late),
        ARM_TEST(test_cuda_arm_that_ran_holds_up_no_long_call),
        ARM_TEST(test_cuda_arm_refuses_what_is_no_quicker),
        ARM_TEST(test_cuda_arm_failed_launch_is_left_to_submit),
        ARM_TEST(test_cuda_arm_lost_write_loses_the_stream),
        ARM_TEST(test_cuda_arm_looks_where_the_word_is_told_to_be),
        ARM_TEST(test_cuda_arm_failed_launch_lets_go_of_the_word),
        ARM_TEST(test_cuda_arm_without_the_memory_of_the_word_is_left_to_submit),
        ARM_TEST(test_cuda_arm_word_is_of_one_call),
        ARM_TEST(test_cuda_arm_large_goes_behind_a_gate),
        ARM_TEST(test_cuda_arm_large_lapses_without_a_trace),
        ARM_TEST(test_cuda_arm_large_again_behind_one_that_lapsed),
        ARM_TEST(test_cuda_arm_large_that_is_there_in_part_lapses),
        ARM_TEST(test_cuda_arm_large_without_a_gate_is_left_to_submit),
        ARM_TEST(test_cuda_arm_large_lost_between_launches),
        ARM_TEST(test_cuda_arm_large_lost_before_the_tail),
        ARM_TEST(test_cuda_arm_large_in_part_and_no_write_behind_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
