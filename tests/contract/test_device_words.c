/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of batches and of the words that tell how far a stream is. */
#include "device_row.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WIDTH 16
#define LARGE_WIDTH 40960 /* of a call for more than one block */
#define ROWS 64

/* A stream with words in two pages of shared memory, as a ring has them. */
static struct {
    unsigned char *fence_page;
    unsigned char *done_page;
    size_t page_bytes;
    struct device_words words;
    struct device_stream *stream;
    struct imported memory;
    uint64_t width; /* of its rows */
} w;

static unsigned char *shared_page(size_t bytes)
{
    void *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(page, MAP_FAILED);
    return page;
}

static struct device_pages *register_page(unsigned char *page)
{
    struct device_pages *pages;
    struct error err;
    if (row.ops->pages_register(row.device, page, w.page_bytes, &pages, &err) != DEVICE_OK) {
        fail_msg("pages_register: %s", err.message);
    }
    return pages;
}

/* The first one is not 0 all over. */
static void make_rows(uint64_t width)
{
    w.width = width;
    w.memory = row_memory_new(ROWS * width);
    memset(w.memory.client.bytes, 0, ROWS * width);
    for (uint64_t i = 0; i < width; i += WIDTH) {
        memcpy(w.memory.client.bytes + i, "sixteen byte row", WIDTH);
    }
}

static int words_setup(void **state)
{
    struct error err;
    if (row_setup(state) != 0) {
        return -1;
    }
    w.page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    w.fence_page = shared_page(w.page_bytes);
    w.done_page = shared_page(w.page_bytes);
    w.words = (struct device_words){.fence = (uint64_t *)(void *)(w.fence_page + 128),
                                    .fence_pages = register_page(w.fence_page),
                                    .done = (uint64_t *)(void *)(w.done_page + 512),
                                    .ready = (uint64_t *)(void *)(w.done_page + 384),
                                    .client_pages = register_page(w.done_page)};
    make_rows(WIDTH);
    return row.ops->stream_open(row.device, &w.words, &w.stream, &err) == MLACAT_OK ? 0 : -1;
}

static int words_teardown(void **state)
{
    row.ops->stream_close(w.stream);
    row.ops->pages_release(row.device, w.words.fence_pages);
    row.ops->pages_release(row.device, w.words.client_pages);
    munmap(w.fence_page, w.page_bytes); /* at once: the device has no business there any more */
    munmap(w.done_page, w.page_bytes);
    row_memory_free(&w.memory);
    return row_teardown(state);
}

static uint64_t fence(void)
{
    return __atomic_load_n(w.words.fence, __ATOMIC_ACQUIRE);
}

static uint64_t done_word(void)
{
    return __atomic_load_n(w.words.done, __ATOMIC_ACQUIRE);
}

/* Copies row `sequence` - 1 to row `sequence`. */
static struct device_call link_call(uint64_t sequence)
{
    struct device_call call;
    memset(&call, 0, sizeof(call));
    call.plan.op = OP_CONCAT_MLA_ABSORB_Q;
    call.plan.dim0 = call.plan.dim1 = 1;
    call.plan.width_bytes[OP_OUT] = call.plan.width_bytes[OP_FIRST] = w.width;
    call.plan.offset_bytes[OP_OUT] = sequence * w.width;
    call.plan.offset_bytes[OP_FIRST] = (sequence - 1) * w.width;
    call.plan.copy[OP_OUT] = call.plan.copy[OP_FIRST] = true;
    call.plan.bytes = 2 * w.width;
    for (int i = 0; i < OP_OPERANDS; i++) {
        call.memory[i] = w.memory.memory;
    }
    call.cookie = (void *)(uintptr_t)sequence;
    call.sequence = sequence;
    return call;
}

static struct device_call signal_call(uint64_t sequence)
{
    struct device_call call;
    memset(&call, 0xee, sizeof(call)); /* nothing of the plan is looked at */
    call.cookie = (void *)(uintptr_t)sequence;
    call.sequence = sequence;
    call.tell_done = call.signal_only = true;
    return call;
}

static void poll_all(struct device_completion *done, int nr)
{
    struct error err;
    int have = 0;
    for (int polls = 0; have < nr && polls < row.polls_max; polls++) {
        int got = row.ops->poll(w.stream, done + have, nr - have, &err);
        assert_true(got >= 0);
        have += got;
        /* What has completed is to be seen in the fence. */
        assert_true(have == 0 || fence() >= (uint64_t)(uintptr_t)done[have - 1].cookie);
    }
    assert_int_equal(have, nr);
}

static void test_device_batch_runs_in_order(void **state)
{
    enum { CALLS = DEVICE_BATCH };
    struct device_call calls[CALLS];
    struct device_completion done[CALLS];
    struct error err;
    uint32_t taken = 0;
    (void)state;
    for (uint64_t i = 0; i < CALLS; i++) {
        calls[i] = link_call(i + 1);
    }
    while (taken < CALLS) {
        uint32_t nr = CALLS - taken;
        enum device_answer answer = row.ops->submit(w.stream, calls + taken, &nr, &err);
        assert_true(answer == DEVICE_OK ? nr >= 1 : answer == DEVICE_AGAIN && nr == 0);
        poll_all(done + taken, (int)nr);
        taken += nr;
    }
    memset(calls, 0xee, sizeof(calls));
    for (uint64_t i = 0; i < CALLS; i++) {
        assert_ptr_equal(done[i].cookie, (void *)(uintptr_t)(i + 1));
        assert_int_equal(done[i].error.code, MLACAT_OK);
    }
    assert_memory_equal(w.memory.client.bytes + CALLS * WIDTH, "sixteen byte row", WIDTH);
    assert_int_equal(fence(), CALLS);
    assert_int_equal(done_word(), 0); /* nobody asked for it */
}

/* However many are offered: those that were taken complete, the others never. */
static void test_device_batch_is_taken_as_far_as_there_is_room(void **state)
{
    enum { CALLS = 4096 };
    struct device_completion done;
    struct error err;
    uint64_t taken = 0;
    uint64_t ended = 0;
    (void)state;
    for (enum device_answer answer = DEVICE_OK; answer == DEVICE_OK && taken < CALLS;) {
        struct device_call calls[7];
        uint32_t nr = 7;
        for (uint64_t i = 0; i < 7; i++) {
            calls[i] = link_call(1);
            calls[i].sequence = taken + i + 1;
            calls[i].cookie = (void *)(uintptr_t)(taken + i + 1);
        }
        answer = row.ops->submit(w.stream, calls, &nr, &err);
        assert_true(answer == DEVICE_OK ? nr >= 1 && nr <= 7 : nr == 0);
        taken += nr;
    }
    assert_true(taken > 7 && taken < CALLS);
    for (int polls = 0; polls < row.polls_max && ended < taken; polls++) {
        int got = row.ops->poll(w.stream, &done, 1, &err);
        assert_in_range(got, 0, 1);
        ended += (uint64_t)got;
        assert_true(got == 0 || (uintptr_t)done.cookie == ended);
    }
    assert_int_equal(row.ops->poll(w.stream, &done, 1, &err), 0);
    assert_int_equal(ended, taken);
    assert_int_equal(fence(), taken);
}

static void test_device_tells_done_when_asked(void **state)
{
    struct device_completion done[3];
    struct error err;
    (void)state;
    for (uint64_t i = 1; i <= 3; i++) {
        struct device_call call = link_call(i);
        call.tell_done = i == 2;
        assert_int_equal(row_submit(w.stream, &call, &err), DEVICE_OK);
    }
    poll_all(done, 3);
    assert_int_equal(done_word(), 2);
    assert_int_equal(fence(), 3);
}

static void test_device_calls_without_rows_move_the_words(void **state)
{
    struct device_completion done;
    struct error err;
    (void)state;
    struct device_call call = link_call(1);
    call.plan.copy[OP_OUT] = call.plan.copy[OP_FIRST] = false;
    call.plan.dim0 = 0;
    call.tell_done = true;
    assert_int_equal(row_submit(w.stream, &call, &err), DEVICE_OK);
    poll_all(&done, 1);
    assert_int_equal(fence(), 1);
    assert_int_equal(done_word(), 1);
}

static void test_device_signals_in_order_without_a_call(void **state)
{
    struct device_completion done[3];
    struct error err;
    (void)state;
    struct device_call calls[3] = {link_call(1), signal_call(2), link_call(2)};
    calls[2].sequence = 3;
    calls[2].cookie = (void *)(uintptr_t)3;
    for (uint32_t taken = 0; taken < 3;) {
        uint32_t nr = 3 - taken;
        assert_int_equal(row.ops->submit(w.stream, calls + taken, &nr, &err), DEVICE_OK);
        taken += nr;
    }
    poll_all(done, 3);
    for (uint64_t i = 0; i < 3; i++) {
        assert_ptr_equal(done[i].cookie, (void *)(uintptr_t)(i + 1));
        assert_int_equal(done[i].error.code, MLACAT_OK);
    }
    assert_int_equal(done_word(), 2);
    assert_int_equal(fence(), 3);
    assert_memory_equal(w.memory.client.bytes + 2 * WIDTH, "sixteen byte row", WIDTH);
}

/* The last bytes of a long call are there when the fence says so. */
static void test_device_fence_follows_the_output(void **state)
{
    const uint64_t rows = 20000;
    const uint64_t wide = 1024;
    struct imported target = row_memory_new(rows * wide);
    struct imported source = row_memory_new(rows * wide);
    struct device_completion done;
    struct error err;
    int nr = 0;
    (void)state;
    memset(source.client.bytes, 0x5a, rows * wide);
    struct device_call call = link_call(1);
    call.plan.dim0 = rows;
    call.plan.width_bytes[OP_OUT] = call.plan.width_bytes[OP_FIRST] = wide;
    call.plan.stride_bytes[OP_OUT][0] = call.plan.stride_bytes[OP_FIRST][0] = (int64_t)wide;
    call.plan.offset_bytes[OP_OUT] = call.plan.offset_bytes[OP_FIRST] = 0;
    call.plan.bytes = 2 * rows * wide;
    call.memory[OP_OUT] = target.memory;
    call.memory[OP_FIRST] = call.memory[OP_SECOND] = source.memory;
    call.tell_done = true;
    assert_int_equal(row_submit(w.stream, &call, &err), DEVICE_OK);
    for (int polls = 0; polls < row.polls_max && fence() == 0; polls++) {
        assert_true(nr == 0 && done_word() <= 1);
        nr = row.ops->poll(w.stream, &done, 1, &err);
    }
    assert_int_equal(fence(), 1);
    assert_int_equal(target.client.bytes[rows * wide - 1], 0x5a);
    assert_int_equal(done_word(), 1);
    if (nr == 0) {
        poll_all(&done, 1);
    }
    row_memory_free(&target);
    row_memory_free(&source);
}

/* ---------------------------------------------------------------------------------------------------- armed calls */

#define ARM_CALLS (ROWS - 1) /* rows behind the first one */
#define ARM_WAIT_NS 50000

static _Atomic bool flickers;

/* A client that shows its word and takes it back, at any moment. */
static void *flicker(void *unused)
{
    uint64_t *ready = (uint64_t *)(void *)(w.done_page + 384);
    uint32_t random = 1;
    (void)unused;
    while (flickers) {
        random = random * 1664525u + 1013904223u;
        __atomic_store_n(ready, random >> 31, __ATOMIC_RELEASE);
        for (uint32_t i = random >> 26; i > 0; i--) {
            sched_yield();
        }
    }
    return NULL;
}

/* Polls until the call has completed, while no word goes back, nor further than it. */
static struct device_completion poll_one(uint64_t sequence)
{
    struct device_completion done;
    struct error err;
    uint64_t last_fence = fence();
    uint64_t last_done = done_word();
    int nr = 0;
    for (int polls = 0; nr == 0 && polls < row.polls_max; polls++) {
        nr = row.ops->poll(w.stream, &done, 1, &err);
        assert_in_range(fence(), last_fence, sequence);
        assert_in_range(done_word(), last_done, sequence);
        last_fence = fence();
        last_done = done_word();
    }
    assert_int_equal(nr, 1);
    assert_ptr_equal(done.cookie, (void *)(uintptr_t)sequence);
    assert_true(done.lapsed || done.error.code == MLACAT_OK);
    return done;
}

/* True if it was armed and has run; else nothing of it has happened. */
static bool arm(const struct device_call *call)
{
    const unsigned char *output = w.memory.client.bytes + call->plan.offset_bytes[OP_OUT];
    struct error err;
    if (!row.ops->arm || row.ops->arm(w.stream, call, 1, ARM_WAIT_NS, &err) != DEVICE_OK) {
        return false;
    }
    if (!poll_one(call->sequence).lapsed) {
        return true;
    }
    assert_true(fence() < call->sequence && done_word() < call->sequence);
    for (uint64_t i = 0; i < w.width; i++) {
        assert_int_equal(output[i], 0);
    }
    return false;
}

/* Whatever the word does, an armed call runs once or not at all. One that has lapsed is submitted; or it has failed
 * meanwhile, and only tells so, which no `done` of a call before it may undo. */
static void arm_all(void)
{
    pthread_t client;
    uint64_t row_nr = 1;
    struct error err;
    flickers = true;
    assert_int_equal(pthread_create(&client, NULL, flicker, NULL), 0);
    for (uint64_t sequence = 1; sequence <= ARM_CALLS; sequence++) {
        struct device_call call = link_call(row_nr);
        call.sequence = sequence;
        call.cookie = (void *)(uintptr_t)sequence;
        call.tell_done = true;
        if (!arm(&call)) {
            call.signal_only = sequence % 2 == 0;
            assert_int_equal(row_submit(w.stream, &call, &err), DEVICE_OK);
            assert_false(poll_one(sequence).lapsed);
        }
        assert_int_equal(fence(), sequence);
        if (!call.signal_only) {
            assert_memory_equal(w.memory.client.bytes + row_nr * w.width, w.memory.client.bytes, w.width);
            row_nr++;
        }
    }
    flickers = false;
    pthread_join(client, NULL);
    assert_int_equal(done_word(), ARM_CALLS);
}

static void test_device_armed_runs_or_lapses(void **state)
{
    (void)state;
    arm_all();
}

static void test_device_armed_large_runs_or_lapses(void **state)
{
    (void)state;
    row_memory_free(&w.memory);
    make_rows(LARGE_WIDTH);
    arm_all();
}

/* In memory of the client, when the call says so: whatever the word in the page says, and whatever is beside it. */
static void test_device_armed_goes_by_the_word_in_memory(void **state)
{
    struct imported memory = row_memory_new(4096);
    uint64_t *words = (uint64_t *)(void *)memory.client.bytes;
    uint64_t *ready = (uint64_t *)(void *)(w.done_page + 384);
    struct error err;
    (void)state;
    for (uint64_t sequence = 1; row.ops->arm && sequence <= 8; sequence++) {
        bool there = sequence % 2 == 1;
        struct device_call call = link_call(sequence);
        call.tell_done = true;
        call.ready_memory = memory.memory;
        call.ready_offset = sequence * sizeof(words[0]);
        for (uint64_t i = 0; i < 10; i++) {
            __atomic_store_n(&words[i], (i == sequence) == there, __ATOMIC_RELEASE);
        }
        __atomic_store_n(ready, !there, __ATOMIC_RELEASE);
        assert_int_equal(row.ops->arm(w.stream, &call, 1, ARM_WAIT_NS, &err), DEVICE_OK);
        assert_int_equal(poll_one(sequence).lapsed, !there);
        if (!there) {
            assert_int_equal(row_submit(w.stream, &call, &err), DEVICE_OK);
            assert_false(poll_one(sequence).lapsed);
        }
        assert_memory_equal(w.memory.client.bytes + sequence * w.width, w.memory.client.bytes, w.width);
    }
    row_memory_free(&memory);
}

#define WORDS_TEST(test) cmocka_unit_test_setup_teardown(test, words_setup, words_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WORDS_TEST(test_device_batch_runs_in_order),
        WORDS_TEST(test_device_batch_is_taken_as_far_as_there_is_room),
        WORDS_TEST(test_device_tells_done_when_asked),
        WORDS_TEST(test_device_calls_without_rows_move_the_words),
        WORDS_TEST(test_device_signals_in_order_without_a_call),
        WORDS_TEST(test_device_fence_follows_the_output),
        WORDS_TEST(test_device_armed_runs_or_lapses),
        WORDS_TEST(test_device_armed_large_runs_or_lapses),
        WORDS_TEST(test_device_armed_goes_by_the_word_in_memory),
    };
    return ROW_RUN_TESTS("device words", tests);
}
