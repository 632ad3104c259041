/* SPDX-License-Identifier: Apache-2.0 */
/* Which calls of a CUDA stream run side by side, which are one launch, and what the words say meanwhile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_flights.h"
#include "cuda_scene.h"

#define ALL UINT32_MAX
#define SMALL 4                           /* rows of a call */
#define LARGE (2 * MIB / 384)             /* a quarter of what the GPU does in a millisecond */
#define LONG (20 * MIB / 192)             /* several launches */
#define IN_AT (512 * MIB)                 /* where inputs are */
#define OUT_BYTES ((uint64_t)SMALL * 192) /* of a small call */

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

/* A K call that writes rows of 192 bytes from `out` on, and reads such of 128 from `first` on, and others. */
static struct device_call call_of(uint64_t sequence, uint64_t rows, uint64_t out, uint64_t first)
{
    struct device_call call = scene_call(rows, sequence);
    call.plan.offset_bytes[OP_OUT] = out;
    call.plan.offset_bytes[OP_FIRST] = first;
    call.plan.offset_bytes[OP_SECOND] = 1000 * MIB;
    return call;
}

/* One that meets no other with another number. */
static struct device_call call_apart(uint64_t sequence, uint64_t rows)
{
    return call_of(sequence, rows, sequence * 4 * MIB, IN_AT);
}

static enum device_answer submit_apart(uint64_t sequence, uint64_t rows)
{
    struct device_call call = call_apart(sequence, rows);
    return scene_submit(stream, &call);
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

/* ------------------------------------------------------------------------------------------------- lanes */

/* One after the other on the lanes; the words and the completions come in order of submission. */
static void test_cuda_lanes_calls_apart_run_side_by_side(void **state)
{
    (void)state;
    for (uint64_t i = 1; i <= CUDA_LANES + 1; i++) {
        assert_int_equal(submit_apart(i, SMALL), DEVICE_OK);
    }
    assert_int_equal(driver_things_on(0), 4);
    for (uint32_t lane = 1; lane < CUDA_LANES; lane++) {
        assert_int_equal(driver_work_on(lane, ALL), 2);
    }
    assert_int_equal(poll(), 0);
    assert_int_equal(fence(), 0);
    driver_work_on(0, 2);
    assert_int_equal(fence(), 1); /* the GPU says it: it was alone */
    assert_int_equal(poll(), CUDA_LANES);
    assert_int_equal(fence(), CUDA_LANES);
    for (uintptr_t i = 0; i < CUDA_LANES; i++) {
        assert_ptr_equal(done[i].cookie, (void *)(i + 1));
    }
    driver_work(ALL);
    assert_int_equal(fence(), CUDA_LANES); /* it was not */
    assert_int_equal(poll(), 1);
    assert_int_equal(fence(), CUDA_LANES + 1);
}

/* What is alone is told by the GPU, always on the same lane. */
static void test_cuda_lanes_a_call_alone_needs_no_poll(void **state)
{
    (void)state;
    for (uint64_t i = 1; i <= 3; i++) {
        assert_int_equal(submit_apart(i, SMALL), DEVICE_OK);
        assert_int_equal(driver_work_on(0, ALL), 2);
        assert_int_equal(fence(), i);
        assert_int_equal(poll(), 1);
    }
}

/* Also after others were elsewhere: its `done` lands after that of a kernel before, which may still be on its way. */
static void test_cuda_lanes_a_call_alone_returns_to_the_lane_of_the_words(void **state)
{
    (void)state;
    struct device_call call = call_apart(1, SMALL);
    call.tell_done = true;
    driver.fence_first = true;
    assert_int_equal(scene_submit(stream, &call), DEVICE_OK);
    assert_int_equal(submit_apart(2, SMALL), DEVICE_OK);
    assert_int_equal(driver_work_on(0, 2), 2); /* without `done` */
    assert_int_equal(driver_work_on(1, ALL), 2);
    assert_int_equal(poll(), 2);
    call = call_apart(3, SMALL);
    call.tell_done = true;
    assert_int_equal(scene_submit(stream, &call), DEVICE_OK);
    assert_int_equal(driver_things_on(CUDA_DIRECT_LANE), 1 + 3);
    assert_int_equal(done_word(), 0);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    assert_int_equal(fence(), 3);
    assert_int_equal(done_word(), 3);
}

static void test_cuda_lanes_a_call_stays_behind_what_it_meets(void **state)
{
    (void)state;
    const uint64_t out = 8 * MIB;
    const struct {
        uint64_t out;
        uint64_t first;
        bool meets;
    } rows[] = {
        {out, IN_AT, true},                             /* writes the same */
        {out + OUT_BYTES - 1, IN_AT, true},             /* ... its last byte */
        {out + OUT_BYTES, IN_AT, false},                /* ... what stands behind it */
        {out - OUT_BYTES, IN_AT, false},                /* ... before it */
        {out - OUT_BYTES + 1, IN_AT, true},             /* ... and one byte of it */
        {16 * MIB, out, true},                          /* reads what is written */
        {16 * MIB, out - (uint64_t)SMALL * 128, false}, /* ... what stands before it */
        {IN_AT, 600 * MIB, true},                       /* writes what is read */
        {1000 * MIB, 600 * MIB, true},                  /* ... by the other input */
        {16 * MIB, IN_AT, false},                       /* reads the same */
    };
    for (uint64_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct device_call one = call_of(2 * i + 1, SMALL, out, IN_AT);
        struct device_call two = call_of(2 * i + 2, SMALL, rows[i].out, rows[i].first);
        two.plan.offset_bytes[OP_SECOND] = 900 * MIB;
        assert_int_equal(scene_submit(stream, &one), DEVICE_OK);
        uint32_t before = 0;
        for (uint32_t lane = 0; lane < CUDA_LANES; lane++) {
            before += driver_things_on(lane) > 0;
        }
        assert_int_equal(scene_submit(stream, &two), DEVICE_OK);
        uint32_t after = 0;
        for (uint32_t lane = 0; lane < CUDA_LANES; lane++) {
            after += driver_things_on(lane) > 0;
        }
        assert_int_equal(after - before, !rows[i].meets);
        driver_work(ALL);
        assert_int_equal(poll(), 2);
    }
}

/* No lane waits for another one: the call does, here. */
static void test_cuda_lanes_a_call_that_meets_two_waits_for_one(void **state)
{
    (void)state;
    struct device_call third = call_of(3, SMALL, 4 * MIB, 8 * MIB); /* writes the first one's, reads the second's */
    assert_int_equal(submit_apart(1, SMALL), DEVICE_OK);
    assert_int_equal(submit_apart(2, SMALL), DEVICE_OK);
    assert_int_equal(scene_submit(stream, &third), DEVICE_AGAIN);
    assert_int_equal(atomic_load(&memory->segment->pins), 6);
    driver_work_on(1, ALL);
    assert_int_equal(scene_submit(stream, &third), DEVICE_AGAIN); /* nobody has looked */
    assert_int_equal(poll(), 0);
    assert_int_equal(scene_submit(stream, &third), DEVICE_OK);
    assert_int_equal(driver_things_on(0), 4);
    assert_int_equal(driver_things_on(1), 0);
    driver_work(ALL);
    assert_int_equal(poll(), 3);
    assert_int_equal(fence(), 3);
}

static void test_cuda_lanes_launches_of_a_long_call_alternate(void **state)
{
    (void)state;
    assert_int_equal(submit_apart(1, LONG), DEVICE_OK);
    assert_int_equal(driver_things_on(0), 2);
    assert_int_equal(driver_things_on(1), 2);
    driver_work_on(1, ALL);
    assert_int_equal(poll(), 0);
    assert_int_equal(driver_things_on(2 % CUDA_LANES), 2);
    for (int polls = 0; polls < 1000 && poll() == 0; polls++) {
        assert_int_equal(fence(), 0);
        driver_work_on((uint32_t)polls % CUDA_LANES, 1);
    }
    assert_int_equal(fence(), 1);
}

/* Until what it met has ended. */
static void test_cuda_lanes_long_call_stays_behind_what_it_meets(void **state)
{
    (void)state;
    struct device_call call = call_of(2, LONG, 4 * MIB, IN_AT);
    assert_int_equal(submit_apart(1, SMALL), DEVICE_OK);
    assert_int_equal(scene_submit(stream, &call), DEVICE_OK);
    assert_int_equal(driver_things_on(0), 2 + 2 * 2);
    driver_work_on(0, 4);
    assert_int_equal(poll(), 1);
    assert_int_equal(driver_things_on(1), 2);
    for (int polls = 0; polls < 1000 && poll() == 0; polls++) {
        driver_work(1);
    }
    assert_int_equal(fence(), 2);
}

/* ------------------------------------------------------------------------------------------------- batches */

static void test_cuda_lanes_small_calls_are_one_launch(void **state)
{
    (void)state;
    struct device_call calls[DEVICE_BATCH];
    uint32_t nr = DEVICE_BATCH;
    for (uint64_t i = 0; i < DEVICE_BATCH; i++) {
        calls[i] = call_apart(i + 1, SMALL);
        calls[i].tell_done = i < 7;
    }
    assert_int_equal(cuda_stream_submit(stream, calls, &nr, &err), DEVICE_OK);
    assert_int_equal(nr, DEVICE_BATCH);
    assert_int_equal(driver.launches, 1);
    assert_int_equal(driver.many_launches, 1);
    assert_int_equal(driver_work(ALL), 3);
    assert_int_equal(fence(), DEVICE_BATCH);
    assert_int_equal(done_word(), 7);
    assert_int_equal(poll(), DEVICE_BATCH);
}

/* Each call is a batch of its own, or not, as what it touches asks for. */
static void test_cuda_lanes_calls_that_meet_are_launches_of_their_own(void **state)
{
    (void)state;
    const struct {
        uint64_t out;
        uint64_t first;
        uint32_t launches;
    } rows[] = {{4 * MIB, IN_AT, 2}, {20 * MIB, 4 * MIB, 2}, {IN_AT, 600 * MIB, 2}, {20 * MIB, IN_AT, 1}};
    for (uint64_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct device_call calls[4] = {
            call_of(4 * i + 1, SMALL, 4 * MIB, IN_AT), call_of(4 * i + 2, SMALL, 8 * MIB, 700 * MIB),
            call_of(4 * i + 3, SMALL, rows[i].out, rows[i].first), call_of(4 * i + 4, SMALL, 12 * MIB, 700 * MIB)};
        uint32_t nr = 4;
        driver.launches = 0;
        assert_int_equal(cuda_stream_submit(stream, calls, &nr, &err), DEVICE_OK);
        assert_int_equal(nr, 4);
        assert_int_equal(driver.launches, rows[i].launches);
        driver_work(ALL);
        assert_int_equal(poll(), 4);
        assert_int_equal(fence(), 4 * i + 4);
    }
}

static void test_cuda_lanes_large_calls_keep_to_themselves(void **state)
{
    (void)state;
    struct device_call calls[3] = {call_apart(1, SMALL), call_apart(2, LARGE), call_apart(3, SMALL)};
    uint32_t nr = 3;
    assert_int_equal(cuda_stream_submit(stream, calls, &nr, &err), DEVICE_OK);
    assert_int_equal(nr, 3);
    assert_int_equal(driver.launches, 3);
    assert_int_equal(driver.many_launches, 0);
    assert_int_equal(driver_things_on(1), 2);
    driver_work(ALL);
    assert_int_equal(poll(), 3);
}

/* A batch is on one lane: a call that must be on another one begins the next. */
static void test_cuda_lanes_batch_goes_behind_what_any_of_it_meets(void **state)
{
    (void)state;
    assert_int_equal(submit_apart(1, SMALL), DEVICE_OK);
    assert_int_equal(submit_apart(2, SMALL), DEVICE_OK);
    struct device_call calls[4] = {call_apart(3, SMALL), call_of(4, SMALL, 8 * MIB, IN_AT), call_apart(5, SMALL),
                                   call_of(6, SMALL, 4 * MIB, IN_AT)};
    uint32_t nr = 4;
    assert_int_equal(cuda_stream_submit(stream, calls, &nr, &err), DEVICE_OK);
    assert_int_equal(nr, 4);
    assert_int_equal(driver.many_launches, 1);
    assert_int_equal(driver_things_on(1), 4); /* 2, then 3, 4 and 5 */
    assert_int_equal(driver_things_on(0), 4); /* 1, then 6 */
    driver_work(ALL);
    assert_int_equal(poll(), 6);
}

static void test_cuda_lanes_refused_batch_takes_none_of_its_calls(void **state)
{
    (void)state;
    struct device_call calls[4] = {call_apart(1, SMALL), call_of(2, SMALL, 4 * MIB, IN_AT), call_apart(3, SMALL),
                                   call_apart(4, SMALL)};
    uint32_t nr = 4;
    driver.fail_at = 2; /* kernel, kernel */
    driver.fail_result = 701;
    assert_int_equal(cuda_stream_submit(stream, calls, &nr, &err), DEVICE_OK);
    assert_int_equal(nr, 1);
    assert_int_equal(atomic_load(&memory->segment->pins), 3);
    driver.total = 0;
    driver.fail_at = 1;
    nr = 3;
    assert_int_equal(cuda_stream_submit(stream, &calls[1], &nr, &err), DEVICE_ERROR);
    assert_int_equal(nr, 0);
    assert_int_equal(err.scope, MLACAT_SCOPE_CALL);
    driver_work(ALL);
    assert_int_equal(poll(), 1);
    nr = 3;
    assert_int_equal(cuda_stream_submit(stream, &calls[1], &nr, &err), DEVICE_OK);
    assert_int_equal(nr, 3);
    driver_work(ALL);
    assert_int_equal(poll(), 3);
    assert_int_equal(fence(), 4);
}

/* A small call by itself needs no write behind it, on whichever lane and with whichever word, but one to wake the
 * client's CUDA stream if it has written `done`, and one to say that this has landed before another is told. */
static void test_cuda_lanes_small_calls_tell_their_end(void **state)
{
    (void)state;
    struct device_call calls[DEVICE_BATCH];
    const struct {
        uint64_t rows;
        uint32_t calls;
        bool tells;
    } launches[] = {{SMALL, 1, true},
                    {SMALL, 2, false},
                    {24, 1, true}, /* in single bytes 128 threads copy 4 rows */
                    {25, 1, false}};
    uint64_t sequence = 0;
    for (size_t i = 0; i < sizeof(launches) / sizeof(launches[0]); i++) {
        /* The first one by the words, the others by their lane's. */
        for (uint32_t lane = 0; lane < CUDA_LANES; lane++) {
            uint32_t nr = launches[i].calls;
            for (uint32_t k = 0; k < nr; k++) {
                calls[k] = call_apart(++sequence % 100, launches[i].rows);
                calls[k].sequence = sequence;
                calls[k].tell_done = true;
                calls[k].plan.offset_bytes[OP_OUT]++;
            }
            driver.launches = driver.signal_launches = driver.calls[DRIVER_cuStreamWriteValue64] = 0;
            assert_int_equal(cuda_stream_submit(stream, calls, &nr, &err), DEVICE_OK);
            assert_int_equal(nr, launches[i].calls);
            assert_int_equal(driver.launches, 1);
            assert_int_equal(driver.signal_launches, launches[i].tells);
            uint64_t writes = driver.calls[DRIVER_cuStreamWriteValue64];
            assert_true(launches[i].tells ? writes == (lane <= 1) : writes > 0);
        }
        driver_work(ALL);
        assert_int_equal(poll(), (int)(CUDA_LANES * launches[i].calls));
        assert_int_equal(fence(), sequence);
        assert_int_equal(done_word(), sequence);
    }
}

/* ------------------------------------------------------------------------------------------------- footprints */

static void test_cuda_footprint_bounds_negative_strides(void **state)
{
    (void)state;
    struct cuda_footprint footprint;
    struct device_call call = call_of(1, 10, 8 * MIB, IN_AT);
    call.plan.dim1 = 3;
    call.plan.stride_bytes[OP_OUT][0] = -1000;
    call.plan.stride_bytes[OP_OUT][1] = 300;
    call.plan.copy[OP_SECOND] = false;
    cuda_footprint_init(&footprint, &call);
    assert_int_equal(footprint.extent[OP_OUT].begin, memory->base + 8 * MIB - 9000);
    assert_int_equal(footprint.extent[OP_OUT].end, memory->base + 8 * MIB + 600 + 192);
    assert_int_equal(footprint.extent[OP_FIRST].end, memory->base + IN_AT + 9 * 128 + 128);
    assert_int_equal(footprint.extent[OP_SECOND].end, 0);
}

/* Nobody knows whether chunks of two imports are the same memory; those of one buffer are told apart by their place. */
static void test_cuda_footprint_chunks_of_two_buffers_meet(void **state)
{
    (void)state;
    struct device_memory chunks[2] = {{.base = UINT64_C(1) << 40}, {.base = UINT64_C(2) << 40}};
    struct cuda_footprint x;
    struct cuda_footprint y;
    struct device_call one = call_of(1, SMALL, 0, IN_AT);
    struct device_call two = call_of(2, SMALL, 4 * MIB, IN_AT);
    one.memory[OP_OUT] = two.memory[OP_OUT] = &chunks[0];
    cuda_footprint_init(&x, &one);
    cuda_footprint_init(&y, &two);
    assert_false(cuda_footprints_conflict(&x, &y));
    two.memory[OP_OUT] = &chunks[1];
    cuda_footprint_init(&y, &two);
    assert_true(cuda_footprints_conflict(&x, &y));
    two.memory[OP_OUT] = memory;
    two.memory[OP_SECOND] = &chunks[1];
    cuda_footprint_init(&y, &two);
    assert_true(cuda_footprints_conflict(&x, &y));
    one.memory[OP_OUT] = memory;
    one.memory[OP_SECOND] = &chunks[0];
    cuda_footprint_init(&x, &one);
    assert_false(cuda_footprints_conflict(&x, &y)); /* both only read them */
}

/* ------------------------------------------------------------------------------------------------- random */

static uint64_t random_next(void)
{
    static uint64_t x = 88172645463325252;
    x ^= x << 13;
    x ^= x >> 7;
    return x ^= x << 17;
}

static struct device_call random_call(uint64_t sequence)
{
    uint64_t kind = random_next() % 16;
    uint64_t rows = kind == 0 ? LONG : kind < 4 ? LARGE : SMALL;
    struct device_call call = call_of(sequence, rows, random_next() % 12 * 16 * MIB, random_next() % 12 * 16 * MIB);
    call.tell_done = random_next() % 3 == 0;
    call.plan.offset_bytes[OP_OUT] += kind == 1; /* in single bytes, and then so many that the driver tells the end */
    call.signal_only = kind == 15;
    call.plan.copy[OP_OUT] = kind != 14;
    return call;
}

/* Whatever the order in which the lanes move, the words and the completions keep theirs (the driver sees to it that the
 * GPU takes no word back), and nothing is lost. */
static void test_cuda_lanes_words_never_go_back(void **state)
{
    (void)state;
    struct device_call calls[DEVICE_BATCH];
    uint64_t taken = 0;
    uint64_t ended = 0;
    uint64_t seen = 0;
    uint64_t last_done = 0;
    for (int round = 0; round < 20000 || ended < taken; round++) {
        uint32_t nr = round < 20000 ? (uint32_t)(random_next() % DEVICE_BATCH) : 0;
        for (uint32_t i = 0; i < nr; i++) {
            calls[i] = random_call(taken + i + 1);
        }
        if (nr > 0 && cuda_stream_submit(stream, calls, &nr, &err) == DEVICE_OK) {
            for (uint32_t i = 0; i < nr; i++) {
                last_done = calls[i].tell_done ? calls[i].sequence : last_done;
            }
            taken += nr;
        }
        driver_work_on((uint32_t)(random_next() % CUDA_LANES), (uint32_t)(random_next() % 4));
        driver.fence_first = random_next() % 2;
        assert_true(fence() >= seen && fence() <= taken);
        int got = cuda_stream_poll(stream, done, (int)(random_next() % 9), &err);
        assert_true(got >= 0);
        for (int i = 0; i < got; i++) {
            assert_ptr_equal(done[i].cookie, (void *)(uintptr_t)++ended);
        }
        assert_true(fence() >= seen && fence() >= ended);
        seen = fence();
    }
    driver_work(ALL); /* the last `done` */
    assert_int_equal(fence(), taken);
    assert_int_equal(done_word(), last_done);
    assert_true(driver.many_launches > 100);
    assert_true(driver.signal_launches > 100 && driver.signal_launches < driver.launches - 100);
}

#define LANES_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        LANES_TEST(test_cuda_lanes_calls_apart_run_side_by_side),
        LANES_TEST(test_cuda_lanes_a_call_alone_needs_no_poll),
        LANES_TEST(test_cuda_lanes_a_call_alone_returns_to_the_lane_of_the_words),
        LANES_TEST(test_cuda_lanes_a_call_stays_behind_what_it_meets),
        LANES_TEST(test_cuda_lanes_a_call_that_meets_two_waits_for_one),
        LANES_TEST(test_cuda_lanes_launches_of_a_long_call_alternate),
        LANES_TEST(test_cuda_lanes_long_call_stays_behind_what_it_meets),
        LANES_TEST(test_cuda_lanes_small_calls_are_one_launch),
        LANES_TEST(test_cuda_lanes_calls_that_meet_are_launches_of_their_own),
        LANES_TEST(test_cuda_lanes_large_calls_keep_to_themselves),
        LANES_TEST(test_cuda_lanes_batch_goes_behind_what_any_of_it_meets),
        LANES_TEST(test_cuda_lanes_refused_batch_takes_none_of_its_calls),
        LANES_TEST(test_cuda_lanes_small_calls_tell_their_end),
        LANES_TEST(test_cuda_footprint_bounds_negative_strides),
        LANES_TEST(test_cuda_footprint_chunks_of_two_buffers_meet),
        LANES_TEST(test_cuda_lanes_words_never_go_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
