/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of submit and poll: order, exactly once, full, bounded. */
#include "device_row.h"

#include <stdbool.h>
#include <string.h>

#define WIDTH 16
#define CALLS_MAX 4096

/* One row of WIDTH bytes copied from source + from to target + to: built by hand, as op_validate would. */
static struct device_call row_copy(const struct imported *target, uint64_t to, const struct imported *source,
                                   uint64_t from, void *cookie)
{
    struct device_call call;
    memset(&call, 0, sizeof(call));
    call.plan.op = OP_CONCAT_MLA_ABSORB_Q;
    call.plan.dim0 = 1;
    call.plan.dim1 = 1;
    call.plan.width_bytes[OP_OUT] = WIDTH;
    call.plan.width_bytes[OP_FIRST] = WIDTH;
    call.plan.offset_bytes[OP_OUT] = to;
    call.plan.offset_bytes[OP_FIRST] = from;
    call.plan.copy[OP_OUT] = true;
    call.plan.copy[OP_FIRST] = true;
    call.plan.bytes = 2 * WIDTH;
    call.memory[OP_OUT] = target->memory;
    call.memory[OP_FIRST] = source->memory;
    call.memory[OP_SECOND] = source->memory;
    call.cookie = cookie;
    return call;
}

/* Each call reads what the one before wrote: only in order does the first row reach the end. */
static void test_device_runs_calls_of_a_stream_in_order(void **state)
{
    (void)state;
    enum { CALLS = 30 };
    struct imported memory = row_memory_new((CALLS + 1) * WIDTH);
    struct device_completion done[CALLS];
    struct error err;
    memset(memory.client.bytes, 0, (CALLS + 1) * WIDTH);
    memcpy(memory.client.bytes, "sixteen byte row", WIDTH);
    for (uintptr_t i = 0; i < CALLS; i++) {
        struct device_call call = row_copy(&memory, (i + 1) * WIDTH, &memory, i * WIDTH, (void *)(i + 1));
        assert_int_equal(row_submit(row.stream, &call, &err), DEVICE_OK);
        memset(&call, 0xee, sizeof(call)); /* submit has copied it */
    }
    row_poll_all(done, CALLS);
    for (uintptr_t i = 0; i < CALLS; i++) {
        assert_ptr_equal(done[i].cookie, (void *)(i + 1));
        assert_int_equal(done[i].error.code, MLACAT_OK);
    }
    assert_int_equal(row.ops->poll(row.stream, done, CALLS, &err), 0);
    assert_memory_equal(memory.client.bytes + CALLS * WIDTH, "sixteen byte row", WIDTH);
    row_memory_free(&memory);
}

/* AGAIN takes nothing; what was taken completes exactly once, never more of them in one poll than asked for. */
static void test_device_says_again_when_it_is_full(void **state)
{
    (void)state;
    struct imported memory = row_memory_new(4 * WIDTH);
    struct error err;
    enum device_answer answer = DEVICE_OK;
    uintptr_t taken = 0;
    uintptr_t ended = 0;
    for (int round = 0; round < 3; round++) {
        while (taken < CALLS_MAX) {
            struct device_call call = row_copy(&memory, 0, &memory, 2 * WIDTH, (void *)(taken + 1));
            answer = row_submit(row.stream, &call, &err);
            if (answer != DEVICE_OK) {
                break;
            }
            taken++;
        }
        assert_int_equal(answer, DEVICE_AGAIN);
        assert_true(taken > ended);
        for (int polls = 0; polls < row.polls_max && ended < taken - 3; polls++) {
            struct device_completion done[3];
            int nr = row.ops->poll(row.stream, done, 3, &err);
            assert_in_range(nr, 0, 3);
            for (int i = 0; i < nr; i++) {
                ended++;
                assert_ptr_equal(done[i].cookie, (void *)ended);
            }
        }
    }
    struct device_completion rest[8];
    assert_in_range(taken - ended, 0, 3);
    row_poll_all(rest, (int)(taken - ended));
    assert_int_equal(row.ops->poll(row.stream, rest, 8, &err), 0);
    row_memory_free(&memory);
}

static void test_device_completes_calls_without_rows(void **state)
{
    (void)state;
    struct imported memory = row_memory_new(4 * WIDTH);
    memset(memory.client.bytes, 7, 4 * WIDTH);
    struct device_call call = row_copy(&memory, 0, &memory, 2 * WIDTH, &memory);
    call.plan.dim0 = 0;
    call.plan.copy[OP_OUT] = call.plan.copy[OP_FIRST] = false;
    assert_int_equal(row_run(&call).error.code, MLACAT_OK);
    call.plan.dim0 = 1; /* rows, but every input is in its place */
    memset(memory.client.bytes + 2 * WIDTH, 8, WIDTH);
    assert_int_equal(row_run(&call).error.code, MLACAT_OK);
    assert_int_equal(memory.client.bytes[0], 7);
    row_memory_free(&memory);
}

static void test_device_streams_are_independent(void **state)
{
    (void)state;
    struct imported memory = row_memory_new(4 * WIDTH);
    struct device_stream *other;
    struct device_completion done;
    struct error err;
    assert_int_equal(row.ops->stream_open(row.device, NULL, &other, &err), MLACAT_OK);
    struct device_call call = row_copy(&memory, 0, &memory, 2 * WIDTH, &memory);
    assert_int_equal(row_submit(row.stream, &call, &err), DEVICE_OK);
    assert_int_equal(row.ops->poll(other, &done, 1, &err), 0);
    row_poll_all(&done, 1);
    row.ops->stream_close(other);
    row_memory_free(&memory);
}

/* A large call, on a device that works inside poll, takes several polls; its result is whole all the same. */
static void test_device_poll_does_a_bounded_piece_of_work(void **state)
{
    (void)state;
    const uint64_t rows = 40000;
    const uint64_t wide = 1024;
    struct imported target = row_memory_new(rows * wide);
    struct imported source = row_memory_new(rows * wide);
    struct device_completion done;
    struct error err;
    for (uint64_t i = 0; i < rows * wide; i += 8) {
        uint64_t word = i * 0x9e3779b97f4a7c15ull;
        memcpy(source.client.bytes + i, &word, 8);
    }
    struct device_call call = row_copy(&target, 0, &source, 0, &target);
    call.plan.dim0 = rows;
    call.plan.width_bytes[OP_OUT] = call.plan.width_bytes[OP_FIRST] = wide;
    call.plan.stride_bytes[OP_OUT][0] = call.plan.stride_bytes[OP_FIRST][0] = (int64_t)wide;
    call.plan.bytes = 2 * rows * wide;
    assert_int_equal(row_submit(row.stream, &call, &err), DEVICE_OK);
    if (row.works_in_poll) {
        assert_int_equal(row.ops->poll(row.stream, &done, 1, &err), 0);
    }
    row_poll_all(&done, 1);
    assert_int_equal(done.error.code, MLACAT_OK);
    assert_true(memcmp(target.client.bytes, source.client.bytes, rows * wide) == 0);
    row_memory_free(&target);
    row_memory_free(&source);
}

/* A release of one import leaves another of the same file alone. */
static void test_device_memory_of_one_file_is_shared(void **state)
{
    (void)state;
    struct imported one = row_memory_new(4 * WIDTH);
    struct imported two = {.client = one.client};
    struct memory_request request = client_request(&one.client);
    struct error err;
    assert_int_equal(row.ops->mem_import(row.device, &request, &two.memory, &two.info, &err), MLACAT_OK);
    memcpy(one.client.bytes, "sixteen byte row", WIDTH);
    struct device_call call = row_copy(&two, 2 * WIDTH, &one, 0, &one);
    assert_int_equal(row_run(&call).error.code, MLACAT_OK);
    row.ops->mem_release(row.device, two.memory);
    assert_memory_equal(one.client.bytes + 2 * WIDTH, "sixteen byte row", WIDTH);
    call = row_copy(&one, WIDTH, &one, 0, &one);
    assert_int_equal(row_run(&call).error.code, MLACAT_OK);
    row_memory_free(&one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ROW_TEST(test_device_runs_calls_of_a_stream_in_order),   ROW_TEST(test_device_says_again_when_it_is_full),
        ROW_TEST(test_device_completes_calls_without_rows),      ROW_TEST(test_device_streams_are_independent),
        ROW_TEST(test_device_poll_does_a_bounded_piece_of_work), ROW_TEST(test_device_memory_of_one_file_is_shared),
    };
    return ROW_RUN_TESTS("device calls", tests);
}
