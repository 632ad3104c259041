/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's side of a ring, with the client's side played by the test: indices, texts, waking. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mlacat_ring.h"
#include "ring.h"

#define RINGS 3
#define ENTRIES 8
#define CALLS (ENTRIES - 1) /* and a request to cancel */
#define INDEX 1             /* of the ring under test */

static struct ring_pages *pages;
static struct ring ring;
static struct error err;
static uint32_t tail; /* the client's: entries written */
static uint32_t head; /* the client's: completions read */

static int setup(void **state)
{
    (void)state;
    if (ring_pages_new(RINGS, CALLS, &pages, &err) != MLACAT_OK) {
        print_error("%s\n", err.message);
        return -1;
    }
    ring_init(&ring, pages, INDEX, 0);
    tail = head = 0;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    ring_pages_free(pages);
    return 0;
}

/* As if `count` calls had come and gone. */
static void begin_at(uint32_t count)
{
    ring_init(&ring, pages, INDEX, count);
    tail = head = count;
}

static struct mlacat_ring_submission *entries(void)
{
    return (struct mlacat_ring_submission *)(void *)(pages->client + pages->submissions_offset) + INDEX * ENTRIES;
}

static void write_entry(uint64_t call_id)
{
    memset(&entries()[tail % ENTRIES], 0, sizeof(struct mlacat_ring_submission));
    entries()[tail % ENTRIES].call_id = call_id;
    tail++;
    mlacat_ring_submit(ring.client, tail);
}

static void expect_taken(uint64_t call_id)
{
    struct mlacat_ring_submission entry;
    assert_int_equal(ring_take(&ring, &entry, &err), RING_TAKEN);
    assert_int_equal(entry.call_id, call_id);
}

static enum ring_answer take(void)
{
    struct mlacat_ring_submission entry;
    return ring_take(&ring, &entry, &err);
}

static void complete(uint64_t call_id)
{
    const struct error ok = {0};
    ring_complete(&ring, call_id, &ok, 10, 20);
}

static void expect_completion(uint64_t call_id)
{
    assert_int_not_equal(mlacat_ring_completed(ring.daemon), head);
    assert_int_equal(ring.completions[head % ENTRIES].call_id, call_id);
    mlacat_ring_completions_read(ring.client, ++head);
}

/* --------------------------------------------------------------------------------------------- numbers */

/* What the last user's GPU has been told to wait for, or is about to be, must stay true. */
static void test_ring_numbers_go_on(void **state)
{
    const uint64_t sequence = UINT64_C(0x7fffffffe);
    (void)state;
    ring.client->submit_tail = ring.client->complete_head = 3;
    ring.client->waiting = 1;
    ring.client->ready = sequence - 1;
    ring.client->done = sequence - 2;
    ring.daemon->failed = 9;
    ring_init(&ring, pages, INDEX, sequence);
    assert_int_equal(ring.client->submit_tail, (uint32_t)sequence);
    assert_int_equal(ring.client->complete_head, (uint32_t)sequence);
    assert_int_equal(ring.client->waiting, 0);
    assert_int_equal(ring.client->ready, sequence - 1);
    assert_int_equal(ring.client->done, sequence - 2);
    assert_int_equal(mlacat_ring_taken(ring.daemon), (uint32_t)sequence);
    assert_int_equal(mlacat_ring_completed(ring.daemon), (uint32_t)sequence);
    assert_int_equal(mlacat_ring_fence(ring.daemon), sequence);
    assert_int_equal(mlacat_ring_failed(ring.daemon), 9);
    tail = head = (uint32_t)sequence;
    for (uint64_t id = 1; id <= ENTRIES + 1; id++) {
        write_entry(id);
        expect_taken(id);
        assert_int_equal(ring.sequence, sequence + id);
        complete(id);
        ring_publish(&ring);
        expect_completion(id);
    }
}

/* All calls that were promised, and a request to cancel. */
static void test_ring_has_room_for_any_number_of_calls(void **state)
{
    static const uint32_t calls[] = {1, 2, 3, 4, 5, 255, 256, 300, 4096};
    (void)state;
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        struct ring_pages *made;
        struct ring one;
        struct mlacat_ring_submission entry;
        assert_int_equal(ring_pages_new(1, calls[i], &made, &err), MLACAT_OK);
        assert_true(made->entries > calls[i] && (made->entries == 2 || made->entries / 2 <= calls[i]));
        assert_int_equal(made->entries & (made->entries - 1), 0);
        ring_init(&one, made, 0, 0);
        mlacat_ring_submit(one.client, made->entries);
        for (uint32_t k = 0; k <= calls[i]; k++) {
            assert_int_equal(ring_take(&one, &entry, &err), RING_TAKEN);
        }
        if (made->entries > calls[i] + 1) {
            assert_false(ring_has_more(&one));
            assert_int_equal(ring_take(&one, &entry, &err), RING_FULL);
        }
        ring_pages_free(made);
    }
}

/* --------------------------------------------------------------------------------------------- entries */

static void test_ring_takes_in_order_past_the_wrap(void **state)
{
    (void)state;
    begin_at(UINT32_MAX - 20);
    for (uint64_t id = 1; id <= 100; id++) {
        write_entry(id);
        if (id % 3 == 0) {
            write_entry(++id);
            expect_taken(id - 1);
        }
        expect_taken(id);
        assert_int_equal(take(), RING_EMPTY);
        assert_int_equal(ring.sequence, (uint64_t)UINT32_MAX - 20 + id);
        ring_release_taken(&ring);
        assert_int_equal(mlacat_ring_taken(ring.daemon), tail);
        for (uint64_t k = id - ring.in_flight + 1; ring.in_flight > 0; k++) {
            complete(k);
        }
        ring_publish(&ring);
        while (head != tail) {
            mlacat_ring_completions_read(ring.client, ++head);
        }
        assert_int_equal(mlacat_ring_completed(ring.daemon), tail);
    }
    assert_true(tail < 100); /* it has wrapped */
}

static void test_ring_is_full_until_completions_are_read(void **state)
{
    (void)state;
    begin_at(UINT32_MAX - 3);
    for (uint64_t id = 0; id < ENTRIES; id++) {
        write_entry(id);
    }
    for (uint64_t id = 0; id < ENTRIES; id++) {
        assert_true(ring_has_more(&ring));
        expect_taken(id);
    }
    write_entry(ENTRIES); /* its place is free again, but ENTRIES are in flight */
    assert_false(ring_has_more(&ring));
    assert_int_equal(take(), RING_FULL);
    complete(0);
    complete(1);
    ring_publish(&ring);
    assert_int_equal(take(), RING_FULL); /* and now unread */
    expect_completion(0);
    assert_true(ring_has_more(&ring));
    expect_taken(ENTRIES);
    write_entry(ENTRIES + 1);
    assert_int_equal(take(), RING_FULL);
    expect_completion(1);
    expect_taken(ENTRIES + 1);
    assert_int_equal(take(), RING_EMPTY);
}

/* The copy counts, whatever the client does to the entry then. */
static void test_ring_copies_entries(void **state)
{
    struct mlacat_ring_submission entry;
    struct mlacat_ring_submission wanted;
    (void)state;
    write_entry(7);
    memset(&wanted, 0xab, sizeof(wanted));
    entries()[0] = wanted;
    assert_int_equal(ring_take(&ring, &entry, &err), RING_TAKEN);
    memset(&entries()[0], 0, sizeof(entry));
    assert_memory_equal(&entry, &wanted, sizeof(entry));
}

static void expect_broken(const char *what)
{
    err = (struct error){0};
    assert_true(ring_has_more(&ring));
    assert_int_equal(take(), RING_BROKEN);
    assert_int_equal(err.code, MLACAT_INVALID_ARGUMENT);
    assert_int_equal(err.scope, MLACAT_SCOPE_SESSION);
    assert_non_null(strstr(err.message, what));
}

static void test_ring_refuses_broken_tails(void **state)
{
    static const uint32_t offsets[] = {ENTRIES + 1, ENTRIES + 2, 0x80000000u, (uint32_t)-1, (uint32_t)-ENTRIES};
    static const uint32_t starts[] = {0, 1, UINT32_MAX - 2};
    (void)state;
    for (size_t s = 0; s < sizeof(starts) / sizeof(starts[0]); s++) {
        for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
            begin_at(starts[s]);
            ring.client->submit_tail = starts[s] + offsets[i];
            expect_broken("submit_tail");
            assert_int_equal(ring.submit_head, starts[s]);
        }
        begin_at(starts[s]);
        ring.client->submit_tail = starts[s] + ENTRIES; /* the most that an honest one has */
        assert_int_equal(take(), RING_TAKEN);
    }
}

static void test_ring_refuses_broken_heads(void **state)
{
    static const uint32_t offsets[] = {1, 2, ENTRIES, 0x80000000u, (uint32_t)-ENTRIES - 1};
    (void)state;
    for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
        begin_at(UINT32_MAX - 1);
        for (uint64_t id = 0; id < ENTRIES; id++) {
            write_entry(id);
            expect_taken(id);
        }
        complete(0);
        complete(1);
        ring_publish(&ring);
        complete(2); /* not shown yet: nobody can have read it */
        write_entry(ENTRIES);
        ring.client->complete_head = ring.published + offsets[i];
        expect_broken("complete_head");
    }
}

/* --------------------------------------------------------------------------------------------- completions */

static void test_ring_completions_carry_code_scope_times_and_text(void **state)
{
    struct error failed;
    (void)state;
    write_entry(5);
    write_entry(6);
    expect_taken(5);
    expect_taken(6);
    error_set_scoped(&failed, MLACAT_DATA_LOSS, MLACAT_SCOPE_SESSION, "page %d is gone", 9);
    ring_complete(&ring, 6, &failed, 11, 22);
    complete(5);
    assert_int_equal(mlacat_ring_completed(ring.daemon), 0); /* not shown before ring_publish */
    ring_publish(&ring);
    assert_int_equal(mlacat_ring_completed(ring.daemon), 2);
    assert_int_equal(ring.completions[0].call_id, 6);
    assert_int_equal(ring.completions[0].status, MLACAT_DATA_LOSS);
    assert_int_equal(ring.completions[0].scope, MLACAT_SCOPE_SESSION);
    assert_int_equal(ring.completions[0].queue_ns, 11);
    assert_int_equal(ring.completions[0].device_ns, 22);
    assert_string_equal(ring.messages[0], "page 9 is gone");
    assert_int_equal(ring.completions[1].call_id, 5);
    assert_int_equal(ring.completions[1].status | ring.completions[1].scope, 0);
}

static void test_ring_longest_text_fits(void **state)
{
    struct error failed;
    (void)state;
    error_set(&failed, MLACAT_INTERNAL, "%0*d", 2 * ERROR_MESSAGE_BYTES, 1);
    for (uint64_t id = 0; id < 2; id++) {
        write_entry(id);
        expect_taken(id);
        ring_complete(&ring, id, &failed, 0, 0);
    }
    assert_int_equal(strlen(ring.messages[0]), strlen(failed.message));
    assert_string_equal(ring.messages[1], failed.message);
}

static void test_ring_counts_failed_calls(void **state)
{
    (void)state;
    assert_int_equal(mlacat_ring_failed(ring.daemon), 0);
    ring_count_failed(&ring);
    ring_count_failed(&ring);
    assert_int_equal(mlacat_ring_failed(ring.daemon), 2);
}

/* --------------------------------------------------------------------------------------------- waking */

static _Atomic int futex_wakes;

long __real_syscall(long number, ...);
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f);

long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f)
{
    if (number == SYS_futex && (b & FUTEX_CMD_MASK) == FUTEX_WAKE) {
        futex_wakes++;
        assert_int_equal(b & FUTEX_PRIVATE_FLAG, 0); /* the client is another process */
    }
    return __real_syscall(number, a, b, c, d, e, f);
}

static void test_ring_publish_wakes_only_who_waits(void **state)
{
    (void)state;
    write_entry(1);
    write_entry(2);
    expect_taken(1);
    expect_taken(2);
    futex_wakes = 0;
    complete(1);
    ring_publish(&ring);
    assert_int_equal(futex_wakes, 0);
    mlacat_ring_wait(ring.client, 1);
    ring_publish(&ring); /* nothing new: nobody to wake */
    assert_int_equal(futex_wakes, 0);
    complete(2);
    ring_publish(&ring);
    assert_int_equal(futex_wakes, 1);
}

/* Sleeps as a client does, on its own read-only mapping of D. */
static void *sleeper_main(void *arg)
{
    const unsigned char *daemon_page = arg;
    const struct mlacat_ring_daemon *daemon = (const struct mlacat_ring_daemon *)(const void *)daemon_page + INDEX;
    mlacat_ring_wait(ring.client, 1);
    while (mlacat_ring_completed(daemon) == 0) {
        __real_syscall(SYS_futex, &daemon->complete_tail, FUTEX_WAIT, 0, NULL, NULL, 0);
    }
    mlacat_ring_wait(ring.client, 0);
    return NULL;
}

static void test_ring_publish_wakes_a_sleeper(void **state)
{
    pthread_t thread;
    (void)state;
    void *mapped = mmap(NULL, pages->daemon_bytes, PROT_READ, MAP_SHARED, pages->daemon_fd, 0);
    assert_ptr_not_equal(mapped, MAP_FAILED);
    write_entry(1);
    expect_taken(1);
    assert_int_equal(pthread_create(&thread, NULL, sleeper_main, mapped), 0);
    while (!mlacat_ring_client_waits(ring.client)) {
        sched_yield();
    }
    complete(1);
    ring_publish(&ring);
    assert_int_equal(pthread_join(thread, NULL), 0); /* the alarm of main() ends a test that waits in vain */
    munmap(mapped, pages->daemon_bytes);
}

#define RING_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        RING_TEST(test_ring_numbers_go_on),
        RING_TEST(test_ring_has_room_for_any_number_of_calls),
        RING_TEST(test_ring_takes_in_order_past_the_wrap),
        RING_TEST(test_ring_is_full_until_completions_are_read),
        RING_TEST(test_ring_copies_entries),
        RING_TEST(test_ring_refuses_broken_tails),
        RING_TEST(test_ring_refuses_broken_heads),
        RING_TEST(test_ring_completions_carry_code_scope_times_and_text),
        RING_TEST(test_ring_longest_text_fits),
        RING_TEST(test_ring_counts_failed_calls),
        RING_TEST(test_ring_publish_wakes_only_who_waits),
        RING_TEST(test_ring_publish_wakes_a_sleeper),
    };
    alarm(60);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
