/* SPDX-License-Identifier: Apache-2.0 */
/* Rings under load: a client on a thread of its own, for the thread sanitizer; a client that writes into its entries
 * while they are read; and who has to wait for whom. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "paper_device.h"
#include "ring_call.h"
#include "ring_scene.h"
#include "ring_stream.h"

static int setup(void **state)
{
    (void)state;
    scene_open(&paper_ops);
    return 0;
}

static int spin_setup(void **state)
{
    scene_options.poll = WORKER_POLL_SPIN;
    setup(state);
    scene_options.poll = WORKER_POLL_BALANCED;
    return 0;
}

static int two_workers_setup(void **state)
{
    scene_options.workers = 2;
    setup(state);
    scene_options.workers = 1;
    return 0;
}

/* ------------------------------------------------------------------------------------------ stress */

#define ROUNDS 150
#define NAMES 4             /* of buffers: 0 stays, the others come and go */
#define BATCH (ENTRIES - 1) /* the daemon keeps one place for a request to cancel */
#define STRESS_CALLS (ROUNDS * 2 * BATCH)

static uint8_t ended[STRESS_CALLS]; /* how often each call has */
static uint32_t wrong_outputs;

static const struct mlacat_ring_completion *completion_at(uint32_t index)
{
    const struct mlacat_ring_completion *entries = (void *)(rings->pages->daemon + rings->pages->completions_offset);
    return &entries[index % ENTRIES];
}

/* As many calls as the ring has room for. Every fourth up to the last names the buffer that stays; the second fails. */
static void write_all(void)
{
    for (uint32_t i = 0; i < BATCH; i++) {
        struct mlacat_ring_submission *entry = write_entry(tail, 0);
        for (int k = 0; k < 3; k++) {
            entry->buffer[k].id = (BATCH - 1 - i) % NAMES;
        }
        if (i == 1) {
            entry->op = 99;
        }
        if (i % 7 == 0) {
            submit();
        }
    }
    submit();
}

static void wait_until_taken(uint32_t index)
{
    while ((int32_t)(mlacat_ring_taken(daemon_page) - index) < 0) {
        sched_yield();
    }
}

/* Only the fence says that these are there. */
static void read_outputs(uint64_t first_sequence)
{
    while (mlacat_ring_fence(daemon_page) < first_sequence + BATCH - 1) {
        sched_yield();
    }
    for (uint64_t i = (BATCH - 1) % NAMES; i < BATCH; i += NAMES) {
        wrong_outputs += paper.output[(first_sequence + i) % PAPER_OUTPUTS] != first_sequence + i;
    }
}

/* Gives each place back at once, and submits nothing meanwhile: only this lets the daemon write there again. */
static void read_completions(void)
{
    while (head != tail) {
        while (mlacat_ring_completed(daemon_page) == head) {
            ring_doorbell();
            sched_yield();
        }
        ended[completion_at(head)->call_id % STRESS_CALLS]++;
        mlacat_ring_completions_read(client, ++head);
    }
}

/* Each round is one in which a place is written again while nothing but the word under test says that it is free, or a
 * result read while nothing else says that it is there. */
static void *stress_main(void *arg)
{
    (void)arg;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint64_t first_sequence = (uint64_t)tail + 1;
        write_all();
        wait_until_taken(tail);
        write_all(); /* over entries that are taken, of calls whose ends nobody has looked at */
        read_outputs(first_sequence);
        read_completions();
    }
    return NULL;
}

/* Meanwhile the loop gives names to buffers and takes them away. */
static void run_stress(void)
{
    pthread_t thread;
    paper.permits = 1 << 30;
    memset(ended, 0, sizeof(ended));
    wrong_outputs = 0;
    assert_int_equal(pthread_create(&thread, NULL, stress_main, NULL), 0);
    int all = imported;
    while (pthread_tryjoin_np(thread, NULL) != 0) {
        imported = 1 + all % (NAMES - 1);
        struct buffer *coming = publish();
        int before = unpublished;
        all++;
        buffer_drop(coming);
        TURN_UNTIL(unpublished > before);
    }
    imported = all;
    for (int i = 0; i < STRESS_CALLS; i++) {
        assert_int_equal(ended[i], 1);
    }
    assert_int_equal(wrong_outputs, 0);
    assert_int_equal(broken_nr, 0);
    assert_true(mlacat_ring_failed(daemon_page) >= 2 * ROUNDS);
    TURN_UNTIL(engine.buffers_nr == 1);
}

/* A worker that is always awake is never rung: nothing but the ring's words is between the two. */
static void test_engine_ring_stress_awake(void **state)
{
    (void)state;
    run_stress();
}

static void test_engine_ring_stress_asleep(void **state)
{
    (void)state;
    run_stress();
}

/* ------------------------------------------------------------------------------------------ read once */

/* The client writes into the entries at the worst moments: what was copied counts. */
static bool scribbles;

static void scribble(void)
{
    if (scribbles) {
        void *entries = rings->pages->client + rings->pages->submissions_offset;
        memset(entries, 0xff, ENTRIES * sizeof(struct mlacat_ring_submission));
    }
}

enum mlacat_status __real_ring_call_check(const struct mlacat_ring_submission *entry, struct error *err);
enum mlacat_status __wrap_ring_call_check(const struct mlacat_ring_submission *entry, struct error *err);

enum mlacat_status __wrap_ring_call_check(const struct mlacat_ring_submission *entry, struct error *err)
{
    enum mlacat_status code = __real_ring_call_check(entry, err);
    scribble();
    return code;
}

struct buffer_slot *__real_buffer_table_pin(const struct buffer_table *table, struct wire_ref ref, bool *rings);
struct buffer_slot *__wrap_buffer_table_pin(const struct buffer_table *table, struct wire_ref ref, bool *rings);

struct buffer_slot *__wrap_buffer_table_pin(const struct buffer_table *table, struct wire_ref ref, bool *rings_)
{
    struct buffer_slot *slot = __real_buffer_table_pin(table, ref, rings_);
    scribble();
    return slot;
}

static void test_engine_ring_reads_each_entry_once(void **state)
{
    (void)state;
    paper.permits = 1 << 20;
    scribbles = true;
    for (uint64_t id = 1; id <= 3 * ENTRIES; id++) {
        send_calls(id, 1, MLACAT_RING_SUBMIT_DONE);
        assert_int_equal(wait_for(id), MLACAT_OK);
    }
    assert_int_equal(broken_nr, 0);
    assert_int_equal(client->done, 3 * ENTRIES);
}

/* ------------------------------------------------------------------------------------------ fairness */

#define MANY (ENTRIES - 4)

/* A second stream of the same client; NULL: it is closed. */
static struct stream *second;
static struct ring_stream *second_ring;
static bool second_gone;

static void on_second_opened(struct stream *s)
{
    assert_int_equal(s->state, STREAM_OPEN);
}

static void on_second_broken(struct stream *s, const struct error *why)
{
    (void)s;
    fail_msg("%s", why->message);
}

static void on_second_gone(struct stream *s)
{
    (void)s;
    second_gone = true;
}

static void open_second(void)
{
    static const struct stream_handlers handlers = {
        .on_opened = on_second_opened, .on_broken = on_second_broken, .on_gone = on_second_gone};
    struct error err;
    second_gone = false;
    assert_int_equal(ring_stream_new(rings, &engine, &second_ring, &err), MLACAT_OK);
    assert_int_equal(stream_open(&engine, &lane, ENTRIES, second_ring, &handlers, NULL, &second, &err), MLACAT_OK);
    TURN_UNTIL(second->state == STREAM_OPEN);
}

static void close_second(void)
{
    paper.permits = 1 << 20;
    stream_drop_ring(second);
    stream_close(second);
    TURN_UNTIL(second_gone);
    second = NULL;
}

/* Copies of the entry that the first ring has at its place 0. */
static void send_second(uint32_t nr)
{
    struct mlacat_ring_submission *entries = (void *)(rings->pages->client + rings->pages->submissions_offset);
    uint32_t second_tail = second_ring->ring.client->submit_tail;
    for (uint32_t i = 0; i < nr; i++) {
        entries[ENTRIES + (second_tail + i) % ENTRIES] = entries[0];
    }
    mlacat_ring_submit(second_ring->ring.client, second_tail + nr);
    uint64_t one = 1;
    assert_int_equal(write(second_ring->doorbell_fd, &one, sizeof(one)), sizeof(one));
}

/* The place of the n-th launch of a stream among all of them, from 1. */
static int launched_at(const void *fence, int n)
{
    for (int i = 0; i < paper.logged; i++) {
        if (paper.log[i] == fence && --n == 0) {
            return i + 1;
        }
    }
    fail_msg("it was not launched");
    return 0;
}

static const void *fence_of(const struct mlacat_ring_daemon *daemon)
{
    return &daemon->fence;
}

/* The worker comes back from a launch and finds a ring full of entries, and one entry in the other. */
static void test_engine_ring_streams_of_a_worker_take_turns(void **state)
{
    (void)state;
    open_second();
    for (int many_first = 0; many_first < 2; many_first++) {
        const void *busy = fence_of(many_first ? daemon_page : second_ring->ring.daemon);
        const void *quiet = fence_of(many_first ? second_ring->ring.daemon : daemon_page);
        paper.permits = 1 << 20;
        paper.held = 1;
        uint32_t taken = mlacat_ring_taken(daemon_page);
        send_calls(0, 1, 0);
        TURN_UNTIL(mlacat_ring_taken(daemon_page) == taken + 1 && paper.holding);
        paper.logged = 0;
        send_calls(0, many_first ? MANY : 1, 0);
        send_second(many_first ? 1 : MANY);
        paper.held = 0;
        TURN_UNTIL(paper.logged == 1 + MANY + 1);
        /* The first ring has one launch more, which was held. */
        assert_in_range(launched_at(quiet, many_first ? 1 : 2), 1, 1 + DEVICE_BATCH + 1);
        assert_in_range(launched_at(busy, MANY), DEVICE_BATCH + 2, 1 + MANY + 1);
        TURN_UNTIL(mlacat_ring_completed(daemon_page) == tail);
        mlacat_ring_completions_read(client, head = tail);
        mlacat_ring_completions_read(second_ring->ring.client, second_ring->ring.client->submit_tail);
    }
}

/* One whose launch does not return holds up its own worker, and not the other one. */
static void test_engine_ring_streams_of_two_workers_are_apart(void **state)
{
    (void)state;
    open_second();
    assert_ptr_not_equal(stream->worker, second->worker);
    paper.permits = 1 << 20;
    paper.held_fence = fence_of(daemon_page);
    send_calls(1, 1, 0);
    TURN_UNTIL(mlacat_ring_taken(daemon_page) == 1);
    for (uint32_t nr = 1; nr <= 10 * MANY; nr += MANY) {
        send_second(MANY);
        TURN_UNTIL(mlacat_ring_completed(second_ring->ring.daemon) == nr + MANY - 1);
        mlacat_ring_completions_read(second_ring->ring.client, nr + MANY - 1);
    }
    assert_int_equal(mlacat_ring_completed(daemon_page), 0);
    paper.held_fence = NULL;
    assert_int_equal(wait_for(1), MLACAT_OK);
}

static int teardown(void **state)
{
    (void)state;
    scribbles = false;
    paper.held = 0;
    paper.held_fence = NULL;
    if (second) {
        close_second();
    }
    scene_close();
    return 0;
}

#define RING_TEST(test, setup) cmocka_unit_test_setup_teardown(test, setup, teardown)

/* While it is awake, and as rarely as it may. */
static void test_engine_ring_tells_that_it_looks(void **state)
{
    (void)state;
    uint64_t last_ns = 0;
    for (int i = 0; i < 20; i++) {
        TURN_UNTIL(mlacat_ring_looked(daemon_page) != last_ns);
        uint64_t looked_ns = mlacat_ring_looked(daemon_page);
        assert_true(looked_ns >= last_ns + RING_TELL_NS);
        assert_true(looked_ns <= clock_now_ns());
        last_ns = looked_ns;
    }
}

/* The client of a stream that ends is not to rely on the word any more, however lately it was true. */
static void test_engine_ring_tells_no_more_at_the_end(void **state)
{
    (void)state;
    send_calls(1, 1, 0);
    TURN_UNTIL(paper.launched == 1 && mlacat_ring_looked(daemon_page) != 0);
    stream_drop_ring(stream);
    TURN_UNTIL(mlacat_ring_looked(daemon_page) == 0);
    usleep(10 * RING_TELL_NS / 1000);
    assert_true(mlacat_ring_looked(daemon_page) == 0); /* it is attached for as long as the call runs */
    paper.permits = 1;
}

/* Who wants to know then must ask elsewhere. */
static void test_engine_ring_asleep_it_tells_nothing(void **state)
{
    (void)state;
    TURN_UNTIL(engine.workers[0].doorbell.asleep);
    uint64_t before_ns = mlacat_ring_looked(daemon_page);
    usleep(10 * RING_TELL_NS / 1000);
    assert_true(mlacat_ring_looked(daemon_page) == before_ns);
    send_calls(1, 1, 0);
    paper.permits = 1;
    assert_int_equal(wait_for(1), MLACAT_OK);
    TURN_UNTIL(mlacat_ring_looked(daemon_page) > before_ns);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RING_TEST(test_engine_ring_stress_awake, spin_setup),
        RING_TEST(test_engine_ring_stress_asleep, setup),
        RING_TEST(test_engine_ring_reads_each_entry_once, setup),
        RING_TEST(test_engine_ring_streams_of_a_worker_take_turns, setup),
        RING_TEST(test_engine_ring_streams_of_two_workers_are_apart, two_workers_setup),
        RING_TEST(test_engine_ring_tells_that_it_looks, spin_setup),
        RING_TEST(test_engine_ring_tells_no_more_at_the_end, spin_setup),
        RING_TEST(test_engine_ring_asleep_it_tells_nothing, setup),
    };
    alarm(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
