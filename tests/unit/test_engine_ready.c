/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of rings whose `ready` value a device finds in a buffer too: what it is told, what is refused, and for how long
 * the buffer stays. The test plays the client, the loop, and the clock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "arm_scene.h"
#include "paper_device.h"

#define FLAGS (MLACAT_RING_SUBMIT_READY | MLACAT_RING_SUBMIT_READY_BUFFER)
#define BYTES 4096

static struct buffer *word; /* NULL: dropped */

static int setup(void **state)
{
    arm_setup(state);
    word = publish();
    return 0;
}

static void drop_word(void)
{
    buffer_drop(word);
    word = NULL;
}

static int teardown(void **state)
{
    if (word) {
        drop_word();
    }
    return arm_teardown(state);
}

/* Call `id`, which waits for the value `id`, also at `offset` of the word's buffer. */
static struct mlacat_ring_submission *write_ready(uint64_t id, uint64_t offset)
{
    struct mlacat_ring_submission *entry = write_entry(id, FLAGS);
    entry->ready = id;
    entry->ready_buffer = (struct mlacat_ring_buffer){word->ref.id, word->ref.generation};
    entry->ready_offset_bytes = offset;
    return entry;
}

/* It has been dropped, and nobody uses it any more. */
static void expect_let_go(void)
{
    TURN_UNTIL(unpublished == 1);
}

static void expect_kept(void)
{
    settle();
    assert_int_equal(unpublished, 0);
}

/* ------------------------------------------------------------------------------------------ the device */

static void test_engine_ready_is_told_to_the_device(void **state)
{
    (void)state;
    paper.permits = 100;
    const uint64_t offsets[] = {0, 8, BYTES - 8};
    for (uint64_t id = 1; id <= 3; id++) {
        write_ready(id, offsets[id - 1]);
        submit();
        TURN_UNTIL(paper.armed == (int)id);
        assert_ptr_equal(paper.ready_memory, word->memory);
        assert_int_equal(paper.ready_offset, offsets[id - 1]);
        say_ready(id);
        assert_int_equal(wait_for(id), MLACAT_OK);
    }
    send_gated(4, 4, 0);
    TURN_UNTIL(paper.armed == 4);
    assert_null(paper.ready_memory);
    say_ready(4);
    assert_int_equal(wait_for(4), MLACAT_OK);
}

/* ------------------------------------------------------------------------------------------ refusals */

/* Its buffer is let go at once, which the teardown would wait for in vain else. */
static void expect_refused(uint64_t id, enum mlacat_status status, const char *text)
{
    const char(*messages)[MLACAT_ABI_MESSAGE_BYTES] = (void *)(rings->pages->daemon + rings->pages->messages_offset);
    uint32_t place = head % ENTRIES;
    submit();
    struct mlacat_ring_completion completion = wait_for_completion(id);
    assert_int_equal(completion.status, status);
    assert_int_equal(completion.scope, MLACAT_SCOPE_CALL);
    if (!strstr(messages[place], text)) {
        fail_msg("\"%s\" is not in: %s", text, messages[place]);
    }
    assert_int_equal(paper.armed + paper.launched, 0);
}

static void test_engine_ready_refuses_a_buffer_that_there_is_not(void **state)
{
    char text[64];
    (void)state;
    write_ready(1, 0)->ready_buffer.id = 1000000;
    expect_refused(1, MLACAT_NOT_FOUND, "ready: this client has no buffer 1000000.1");
    write_ready(2, 0)->ready_buffer.generation++;
    snprintf(text, sizeof(text), "ready: this client has no buffer %u.2", word->ref.id);
    expect_refused(2, MLACAT_NOT_FOUND, text);
    write_ready(3, 0)->ready_buffer = (struct mlacat_ring_buffer){0, 0};
    expect_refused(3, MLACAT_NOT_FOUND, "ready: this client has no buffer 0.0");
    write_ready(4, 0);
    drop_word();
    expect_let_go();
    expect_refused(4, MLACAT_NOT_FOUND, "ready: this client has no buffer");
}

static void test_engine_ready_refuses_another_device(void **state)
{
    static struct engine other = {.info = {.uuid = "GPU-other"}};
    (void)state;
    word->engine = &other;
    write_ready(1, 0);
    expect_refused(1, MLACAT_INVALID_ARGUMENT, "ready: its buffer is on device \"GPU-other\"");
    word->engine = &engine;
    drop_word();
    expect_let_go();
}

static void test_engine_ready_refuses_what_is_not_inside(void **state)
{
    static const uint64_t outside[] = {BYTES - 7, BYTES, BYTES + 8, UINT64_MAX - 7, UINT64_MAX};
    char text[64];
    (void)state;
    for (uint64_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
        write_ready(1 + i, outside[i]);
        snprintf(text, sizeof(text), "ready is at byte %llu of its buffer of 4096 bytes",
                 (unsigned long long)outside[i]);
        expect_refused(1 + i, MLACAT_INVALID_ARGUMENT, text);
    }
    drop_word();
    expect_let_go();
}

static void test_engine_ready_refuses_a_buffer_that_is_too_small(void **state)
{
    (void)state;
    drop_word();
    expect_let_go();
    paper.import_bytes = 7;
    word = publish();
    write_ready(1, 0);
    expect_refused(1, MLACAT_INVALID_ARGUMENT, "ready is at byte 0 of its buffer of 7 bytes: 8 bytes must be inside");
}

/* In the GPU's memory, wherever the buffer begins. */
static void test_engine_ready_refuses_what_is_not_aligned(void **state)
{
    (void)state;
    write_ready(1, 4);
    expect_refused(1, MLACAT_INVALID_ARGUMENT, "ready is at byte 4 of its buffer, which is at byte 0");
    drop_word();
    expect_let_go();
    paper.import_at = 12;
    word = publish();
    write_ready(2, 8);
    expect_refused(2, MLACAT_INVALID_ARGUMENT,
                   "which is at byte 12 of its allocation: the sum must be a multiple of 8");
    write_ready(3, 4);
    submit();
    TURN_UNTIL(paper.armed == 1);
    say_ready(3);
    paper.permits = 1;
    assert_int_equal(wait_for(3), MLACAT_OK);
}

/* Who waits for `done` of it is told in its turn; its buffers do not wait for that. */
static void test_engine_ready_refused_call_tells_done(void **state)
{
    (void)state;
    write_ready(1, 4)->flags |= MLACAT_RING_SUBMIT_DONE;
    submit();
    TURN_UNTIL(paper.signals == 1);
    drop_word();
    expect_let_go();
    paper.permits = 1;
    assert_int_equal(wait_for(1), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(client->done, 1);
}

/* Of an operand, behind which the word's buffer is not looked at. */
static void test_engine_ready_refused_operand(void **state)
{
    (void)state;
    write_ready(1, 0)->buffer[1].id = 1000000;
    expect_refused(1, MLACAT_NOT_FOUND, "no buffer 1000000.1");
    write_ready(2, 0)->op = 99;
    expect_refused(2, MLACAT_UNIMPLEMENTED, "");
    drop_word();
    expect_let_go();
}

static void test_engine_ready_without_a_value_ends_the_session(void **state)
{
    (void)state;
    write_ready(1, 0)->flags = MLACAT_RING_SUBMIT_READY_BUFFER;
    submit();
    TURN_UNTIL(broken_nr == 1);
    assert_int_equal(broken.code, MLACAT_INVALID_ARGUMENT);
    assert_int_equal(broken.scope, MLACAT_SCOPE_SESSION);
    assert_non_null(strstr(broken.message, "entry of call 1 has flags 0x8: a buffer with a ready word needs 0x1 too"));
}

/* ------------------------------------------------------------------------------------------ how long it stays */

static void test_engine_ready_stays_until_the_call_has_run(void **state)
{
    (void)state;
    write_ready(1, 0);
    submit();
    TURN_UNTIL(paper.armed == 1);
    drop_word();
    expect_kept();
    say_ready(1);
    expect_kept();
    paper.permits = 1;
    assert_int_equal(wait_for(1), MLACAT_OK);
    expect_let_go();
}

static void test_engine_ready_stays_for_a_call_that_lapsed(void **state)
{
    (void)state;
    write_ready(1, 0);
    submit();
    TURN_UNTIL(paper.armed == 1);
    drop_word();
    lapse();
    expect_kept();
    send_cancel(101, 1);
    assert_int_equal(wait_for(1), MLACAT_CANCELLED);
    assert_int_equal(wait_for(101), MLACAT_OK);
    expect_let_go();
}

/* The client has gone; the device has the first one. */
static void test_engine_ready_is_let_go_with_the_ring(void **state)
{
    (void)state;
    write_ready(1, 0);
    write_ready(2, 8);
    submit();
    TURN_UNTIL(paper.armed == 1 && mlacat_ring_taken(daemon_page) == 2);
    stream_drop_ring(stream);
    stream_close(stream);
    drop_word();
    expect_kept();
    paper.lapse_nr = 1;
    await_gone();
    expect_let_go();
    assert_int_equal(outcomes(MLACAT_ABORTED), 2);
}

static void test_engine_ready_is_let_go_when_the_device_is_lost(void **state)
{
    (void)state;
    write_ready(1, 0);
    write_ready(2, 8);
    submit();
    TURN_UNTIL(paper.armed == 1);
    drop_word();
    expect_kept();
    paper.lost = 1;
    assert_int_equal(wait_for(1), MLACAT_INTERNAL);
    assert_int_equal(wait_for(2), MLACAT_INTERNAL);
    expect_let_go();
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_engine_ready_is_told_to_the_device),
        TEST(test_engine_ready_refuses_a_buffer_that_there_is_not),
        TEST(test_engine_ready_refuses_another_device),
        TEST(test_engine_ready_refuses_what_is_not_inside),
        TEST(test_engine_ready_refuses_a_buffer_that_is_too_small),
        TEST(test_engine_ready_refuses_what_is_not_aligned),
        TEST(test_engine_ready_refused_call_tells_done),
        TEST(test_engine_ready_refused_operand),
        TEST(test_engine_ready_without_a_value_ends_the_session),
        TEST(test_engine_ready_stays_until_the_call_has_run),
        TEST(test_engine_ready_stays_for_a_call_that_lapsed),
        TEST(test_engine_ready_is_let_go_with_the_ring),
        TEST(test_engine_ready_is_let_go_when_the_device_is_lost),
    };
    alarm(120); /* ends a test that waits in vain */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
