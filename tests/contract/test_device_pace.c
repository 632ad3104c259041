/* SPDX-License-Identifier: Apache-2.0 */
/* How long a poll of a device takes that does the work itself: what a call is like must not matter to other streams. */
#include "device_row.h"

#include <stdbool.h>
#include <string.h>
#include <time.h>

/* Far more than a poll is meant to take, far less than the calls below do; on a slow machine the call itself tells. */
#define POLL_MS_MAX 20
#define POLL_SHARE_MAX 4
#define TRIES 5

/* Rows of `width` bytes, `apart` bytes from each other in both buffers: built by hand, as op_validate would. */
static struct device_call rows_copy(const struct imported *target, const struct imported *source, uint64_t rows,
                                    uint64_t width, uint64_t apart)
{
    struct device_call call;
    memset(&call, 0, sizeof(call));
    call.plan.op = OP_CONCAT_MLA_ABSORB_Q;
    call.plan.dim0 = rows;
    call.plan.dim1 = 1;
    call.plan.bytes = 2 * rows * width;
    for (int k = OP_OUT; k <= OP_FIRST; k++) {
        call.plan.width_bytes[k] = width;
        call.plan.stride_bytes[k][0] = (int64_t)apart;
        call.plan.copy[k] = true;
    }
    call.memory[OP_OUT] = target->memory;
    call.memory[OP_FIRST] = source->memory;
    call.memory[OP_SECOND] = source->memory;
    return call;
}

/* Time that this thread worked: what other programs do to the machine is not the device's fault. */
static uint64_t worked_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Polls until the call has completed: did no poll take longer than POLL_MS_MAX, or than a small part of the call? */
static bool polls_are_short(const struct device_call *call)
{
    struct device_completion done;
    struct error err;
    int nr = 0;
    uint64_t longest_ms = 0;
    uint64_t begin_ms = worked_ms();
    assert_int_equal(row_submit(row.stream, call, &err), DEVICE_OK);
    while (nr == 0) {
        uint64_t start_ms = worked_ms();
        nr = row.ops->poll(row.stream, &done, 1, &err);
        uint64_t took_ms = worked_ms() - start_ms;
        longest_ms = took_ms > longest_ms ? took_ms : longest_ms;
    }
    assert_int_equal(nr, 1);
    assert_int_equal(done.error.code, MLACAT_OK);
    return longest_ms <= POLL_MS_MAX || longest_ms * POLL_SHARE_MAX <= worked_ms() - begin_ms;
}

/* In fresh memory, where each page costs most. */
static bool rows_are_short(uint64_t rows, uint64_t width, uint64_t apart)
{
    const uint64_t bytes = (rows - 1) * apart + width;
    struct imported target = row_memory_new(bytes);
    struct imported source = row_memory_new(bytes);
    struct device_call call = rows_copy(&target, &source, rows, width, apart);
    source.client.bytes[0] = 66;
    source.client.bytes[bytes - 1] = 77;
    bool are_short = polls_are_short(&call);
    assert_int_equal(target.client.bytes[0], 66);
    assert_int_equal(target.client.bytes[bytes - 1], 77);
    row_memory_free(&target);
    row_memory_free(&source);
    return are_short;
}

/* A hypervisor that takes the CPU away for a while counts as work here: it does not do so each time. */
static void check_rows(uint64_t rows, uint64_t width, uint64_t apart)
{
    bool are_short = false;
    for (int i = 0; i < TRIES && !are_short; i++) {
        are_short = rows_are_short(rows, width, apart);
    }
    assert_true(are_short);
}

static void test_device_polls_are_short_in_one_row_of_128_mib(void **state)
{
    (void)state;
    check_rows(1, UINT64_C(128) << 20, 0);
}

static void test_device_polls_are_short_in_bytes_on_pages_of_their_own(void **state)
{
    (void)state;
    check_rows(1 << 15, 1, 4096);
}

static void test_device_polls_are_short_in_rows_just_below_a_step(void **state)
{
    (void)state;
    check_rows(256, 255 << 10, 256 << 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ROW_TEST(test_device_polls_are_short_in_one_row_of_128_mib),
        ROW_TEST(test_device_polls_are_short_in_bytes_on_pages_of_their_own),
        ROW_TEST(test_device_polls_are_short_in_rows_just_below_a_step),
    };
    return ROW_RUN_TESTS("device pace", tests);
}
