/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring's layout, once more and independently of the assertions in the header: these numbers are the contract with
 * every client that is already built. Changing one is a new feature bit, not an edit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "mlacat_abi.h"

struct field {
    const char *name;
    size_t is_offset, is_bytes;
    size_t offset, bytes;
};

/* clang-format off */
#define FIELD(type, member, offset, bytes) \
    { #type "." #member, offsetof(struct type, member), sizeof(((struct type *)NULL)->member), offset, bytes }
/* clang-format on */

static const struct field fields[] = {
    FIELD(mlacat_ring_buffer, id, 0, 4),
    FIELD(mlacat_ring_buffer, generation, 4, 4),

    FIELD(mlacat_ring_submission, call_id, 0, 8),
    FIELD(mlacat_ring_submission, op, 8, 2),
    FIELD(mlacat_ring_submission, dtype, 10, 2),
    FIELD(mlacat_ring_submission, flags, 12, 4),
    FIELD(mlacat_ring_submission, ready, 16, 8),
    FIELD(mlacat_ring_submission, deadline_us, 24, 8),
    FIELD(mlacat_ring_submission, buffer, 32, 24),
    FIELD(mlacat_ring_submission, offset_bytes, 56, 24),
    FIELD(mlacat_ring_submission, dim0, 80, 8),
    FIELD(mlacat_ring_submission, dim1, 88, 8),
    FIELD(mlacat_ring_submission, width_first, 96, 8),
    FIELD(mlacat_ring_submission, width_second, 104, 8),
    FIELD(mlacat_ring_submission, stride, 112, 48),
    FIELD(mlacat_ring_submission, ready_buffer, 160, 8),
    FIELD(mlacat_ring_submission, ready_offset_bytes, 168, 8),
    FIELD(mlacat_ring_submission, reserved, 176, 16),

    FIELD(mlacat_ring_completion, call_id, 0, 8),
    FIELD(mlacat_ring_completion, status, 8, 2),
    FIELD(mlacat_ring_completion, scope, 10, 2),
    FIELD(mlacat_ring_completion, reserved, 12, 4),
    FIELD(mlacat_ring_completion, queue_ns, 16, 8),
    FIELD(mlacat_ring_completion, device_ns, 24, 8),

    FIELD(mlacat_ring_client, submit_tail, 0, 4),
    FIELD(mlacat_ring_client, complete_head, 128, 4),
    FIELD(mlacat_ring_client, waiting, 256, 4),
    FIELD(mlacat_ring_client, ready, 384, 8),
    FIELD(mlacat_ring_client, done, 512, 8),

    FIELD(mlacat_ring_daemon, submit_head, 0, 4),
    FIELD(mlacat_ring_daemon, complete_tail, 128, 4),
    FIELD(mlacat_ring_daemon, sleeping, 256, 4),
    FIELD(mlacat_ring_daemon, looked_ns, 264, 8),
    FIELD(mlacat_ring_daemon, fence, 384, 8),
    FIELD(mlacat_ring_daemon, failed, 392, 4),
};

#define FIELDS_NR (sizeof(fields) / sizeof(fields[0]))

static void test_layout_every_field_is_where_clients_expect_it(void **state)
{
    (void)state;
    for (size_t i = 0; i < FIELDS_NR; i++) {
        if (fields[i].is_offset != fields[i].offset || fields[i].is_bytes != fields[i].bytes)
            fail_msg("%s is %zu bytes at %zu, clients expect %zu at %zu", fields[i].name, fields[i].is_bytes,
                     fields[i].is_offset, fields[i].bytes, fields[i].offset);
    }
}

static void test_layout_sizes_are_fixed(void **state)
{
    (void)state;
    assert_int_equal(sizeof(struct mlacat_ring_buffer), 8);
    assert_int_equal(sizeof(struct mlacat_ring_submission), 192);
    assert_int_equal(sizeof(struct mlacat_ring_completion), 32);
    assert_int_equal(sizeof(struct mlacat_ring_client), 640);
    assert_int_equal(sizeof(struct mlacat_ring_daemon), 512);
}

/* No byte of an entry is padding that a client could leave uninitialised or a later version could not name. */
static void test_layout_entries_have_no_holes(void **state)
{
    (void)state;
    size_t submission = 0, completion = 0;
    for (size_t i = 0; i < FIELDS_NR; i++) {
        if (strncmp(fields[i].name, "mlacat_ring_submission.", 23) == 0)
            submission += fields[i].bytes;
        if (strncmp(fields[i].name, "mlacat_ring_completion.", 23) == 0)
            completion += fields[i].bytes;
    }
    assert_int_equal(submission, sizeof(struct mlacat_ring_submission));
    assert_int_equal(completion, sizeof(struct mlacat_ring_completion));
}

/* Words that different sides write never share a line, wherever the page is mapped. */
static void test_layout_polled_words_have_lines_of_their_own(void **state)
{
    (void)state;
    for (size_t i = 1; i < FIELDS_NR; i++) {
        if (strncmp(fields[i].name, "mlacat_ring_client.", 19) != 0 &&
            strncmp(fields[i].name, "mlacat_ring_daemon.", 19) != 0)
            continue;
        if (strcmp(fields[i].name, "mlacat_ring_daemon.failed") == 0 ||
            strcmp(fields[i].name, "mlacat_ring_daemon.looked_ns") == 0)
            continue; /* read with their neighbours, and hardly ever written */
        if (fields[i].is_offset % MLACAT_ABI_LINE != 0)
            fail_msg("%s at %zu does not begin a line of %u bytes", fields[i].name, fields[i].is_offset,
                     MLACAT_ABI_LINE);
    }
    assert_int_equal(_Alignof(struct mlacat_ring_client), MLACAT_ABI_LINE);
    assert_int_equal(_Alignof(struct mlacat_ring_daemon), MLACAT_ABI_LINE);
}

static void test_layout_flags_are_distinct_bits(void **state)
{
    (void)state;
    assert_int_equal(MLACAT_RING_SUBMIT_READY, 1);
    assert_int_equal(MLACAT_RING_SUBMIT_DONE, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout_every_field_is_where_clients_expect_it),
        cmocka_unit_test(test_layout_sizes_are_fixed),
        cmocka_unit_test(test_layout_entries_have_no_holes),
        cmocka_unit_test(test_layout_polled_words_have_lines_of_their_own),
        cmocka_unit_test(test_layout_flags_are_distinct_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
