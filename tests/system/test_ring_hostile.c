/* SPDX-License-Identifier: Apache-2.0 */
/* Clients that write what they must not into the pages of their rings: each loses its session and is told why; nobody
 * else notices. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "mlacat_ring.h"
#include "proc.h"
#include "require.h"
#include "ring_bench.h"

#define SCRIBBLE_MS 1500
#define JUDGED_NR 20  /* of the neighbour's calls at least: of few, one that is late would be too many */
#define QUICK_MS 1000 /* a neighbour's call, whatever others write; on a busy machine at least one of two */

/* The daemon ends the session with these words, and serves the neighbour as before. */
static void expect_end(struct bench *bench, struct bench *neighbour, const char *words)
{
    struct outcome outcome = raw_last_words(&bench->raw);
    assert_int_equal(outcome.code, STATUS_INVALID_ARGUMENT);
    assert_int_equal(outcome.scope, SCOPE_SESSION);
    REQUIRE(strstr(outcome.message, words) != NULL, "%s", outcome.message);
    bench_work(neighbour, 9);
}

static void spoil_flags(struct mlacat_ring_submission *entry)
{
    entry->flags = 1u << 4;
}

static void spoil_ready(struct mlacat_ring_submission *entry)
{
    entry->flags = MLACAT_RING_SUBMIT_READY_BUFFER | MLACAT_RING_SUBMIT_DONE;
}

static void spoil_cancel_with_ready(struct mlacat_ring_submission *entry)
{
    entry->flags = MLACAT_RING_SUBMIT_CANCEL | MLACAT_RING_SUBMIT_READY_BUFFER;
}

static void spoil_high_flags(struct mlacat_ring_submission *entry)
{
    entry->flags = 1u << 31;
}

static void spoil_cancel(struct mlacat_ring_submission *entry)
{
    entry->flags = MLACAT_RING_SUBMIT_CANCEL | MLACAT_RING_SUBMIT_DONE;
}

static void spoil_reserved(struct mlacat_ring_submission *entry)
{
    entry->reserved[1] = UINT64_C(1) << 63;
}

static void test_ring_broken_entries_end_the_session(void **state)
{
    static const struct {
        void (*spoil)(struct mlacat_ring_submission *entry);
        const char *words;
    } cases[] = {{spoil_flags, "flags 0x10"},
                 {spoil_ready, "flags 0xa: a buffer with a ready word needs 0x1 too"},
                 {spoil_cancel_with_ready, "cancel"},
                 {spoil_high_flags, "flags 0x80000000"},
                 {spoil_cancel, "cancel"},
                 {spoil_reserved, "reserved[1]"}};
    struct bench neighbour;
    bench_open(&neighbour, *state);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bench bench;
        bench_open(&bench, *state);
        struct mlacat_ring_submission entry = bench_entry(&bench, 1);
        raw_ring_write(&bench.ring, &entry);
        cases[i].spoil(&entry);
        raw_ring_write(&bench.ring, &entry);
        raw_ring_submit(&bench.ring);
        expect_end(&bench, &neighbour, cases[i].words);
        bench_close(&bench);
    }
    WAIT_UNTIL(raw_stats(&neighbour.raw).sessions_broken == sizeof(cases) / sizeof(cases[0]));
    WAIT_UNTIL(raw_stats(&neighbour.raw).streams == 1);
    bench_close(&neighbour);
}

/* A word in a buffer costs the call, and not the session; and what is left of the refusal holds no buffer. */
static void test_ring_word_in_a_buffer_is_checked(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    struct mlacat_ring_submission good = bench_entry(&bench, 1);
    good.flags = MLACAT_RING_SUBMIT_READY | MLACAT_RING_SUBMIT_READY_BUFFER;
    good.ready_buffer = good.buffer[0];
    const struct {
        struct mlacat_ring_buffer buffer;
        uint64_t offset;
        uint32_t code;
        const char *words;
    } cases[] = {
        {{good.buffer[0].id + 1000, 1}, 0, STATUS_NOT_FOUND, "ready: this client has no buffer"},
        {{good.buffer[0].id, good.buffer[0].generation + 1}, 0, STATUS_NOT_FOUND, "ready: this client has no buffer"},
        {{UINT32_MAX, UINT32_MAX}, 0, STATUS_NOT_FOUND, "ready: this client has no buffer"},
        {good.buffer[0], bench.trial.bytes - 7, STATUS_INVALID_ARGUMENT, "8 bytes must be inside"},
        {good.buffer[0], UINT64_MAX, STATUS_INVALID_ARGUMENT, "8 bytes must be inside"},
        {good.buffer[0], UINT64_MAX - 7, STATUS_INVALID_ARGUMENT, "8 bytes must be inside"},
        {good.buffer[0], 4, STATUS_INVALID_ARGUMENT, "must be a multiple of 8"},
    };
    for (uint64_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct mlacat_ring_submission entry = good;
        entry.call_id = 10 + i;
        entry.ready_buffer = cases[i].buffer;
        entry.ready_offset_bytes = cases[i].offset;
        raw_ring_send(&bench.ring, &entry);
        struct outcome outcome = raw_ring_wait(&bench.ring, entry.call_id);
        assert_int_equal(outcome.code, cases[i].code);
        assert_int_equal(outcome.scope, SCOPE_CALL);
        REQUIRE(strstr(outcome.message, cases[i].words) != NULL, "%s", outcome.message);
    }
    good.ready = 1;
    raw_ring_send(&bench.ring, &good);
    bench_wait_taken(&bench.ring);
    assert_int_equal(raw_unregister(&bench.raw, bench.buffer).code, STATUS_OK);
    bench_set_ready(&bench, 1);
    assert_int_equal(raw_ring_wait(&bench.ring, 1).code, STATUS_OK);
    WAIT_UNTIL(raw_stats(&bench.raw).buffers == 0);
    bench_close(&bench);
}

static void test_ring_broken_indices_end_the_session(void **state)
{
    struct bench neighbour;
    bench_open(&neighbour, *state);
    for (uint32_t i = 0; i < 4; i++) {
        struct bench bench;
        bench_open(&bench, *state);
        uint32_t entries = bench.ring.entries;
        const uint32_t tails[] = {entries + 1, UINT32_MAX, 0x80000000u, entries * 2};
        bench.ring.tail = tails[i];
        raw_ring_submit(&bench.ring);
        expect_end(&bench, &neighbour, "submit_tail");
        assert_int_equal(mlacat_ring_taken(bench.ring.daemon), 0);
        bench_close(&bench);
    }
    struct bench bench;
    bench_open(&bench, *state);
    struct mlacat_ring_submission entry = bench_entry(&bench, 0);
    for (; entry.call_id <= bench.ring.calls; entry.call_id++) {
        raw_ring_write(&bench.ring, &entry);
    }
    raw_ring_submit(&bench.ring);
    bench_wait_taken(&bench.ring);
    mlacat_ring_completions_read(bench.ring.client, bench.ring.entries + 7); /* more than there are */
    raw_ring_send(&bench.ring, &entry);
    expect_end(&bench, &neighbour, "complete_head");
    bench_close(&bench);
    bench_close(&neighbour);
}

/* A tail that goes back asks for entries again that were taken long ago: an index out of range, not a replay. */
static void test_ring_replay_is_refused(void **state)
{
    struct bench neighbour;
    struct bench bench;
    bench_open(&neighbour, *state);
    bench_open(&bench, *state);
    for (uint64_t id = 1; id <= 5; id++) {
        bench_work(&bench, id);
    }
    bench.ring.tail = 3;
    raw_ring_submit(&bench.ring);
    expect_end(&bench, &neighbour, "submit_tail");
    assert_int_equal(mlacat_ring_completed(bench.ring.daemon), 5);
    bench_close(&bench);
    bench_close(&neighbour);
}

/* What the descriptors allow beyond the protocol. */
static void test_ring_descriptors_give_no_power(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, bench.rings.daemon_fd, 0), MAP_FAILED);
    assert_int_equal(pwrite(bench.rings.daemon_fd, "x", 1, 0), -1);
    assert_int_equal(mprotect((void *)(uintptr_t)bench.rings.daemon, 4096, PROT_READ | PROT_WRITE), -1);
    assert_int_equal(ftruncate(bench.rings.client_fd, 0), -1);
    assert_int_equal(ftruncate(bench.rings.daemon_fd, 0), -1);

    /* The doorbell made blocking, and full: the daemon neither reads nor writes it. */
    uint64_t most = UINT64_MAX - 1;
    assert_int_equal(fcntl(bench.ring.doorbell, F_SETFL, 0), 0);
    assert_int_equal(write(bench.ring.doorbell, &most, sizeof(most)), sizeof(most));
    uint64_t count;
    assert_int_equal(read(bench.ring.doorbell, &count, sizeof(count)), sizeof(count));
    bench_work(&bench, 1);

    /* A hole in C: its words are 0 again, which is no number of entries that was ever reached. */
    struct mlacat_ring_submission entry = bench_entry(&bench, 2);
    raw_ring_send(&bench.ring, &entry);
    assert_int_equal(raw_ring_wait(&bench.ring, 2).code, STATUS_OK);
    assert_int_equal(fallocate(bench.rings.client_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                               (off_t)bench.rings.opened.client_bytes),
                     0);
    uint64_t one = 1;
    assert_int_equal(write(bench.ring.doorbell, &one, sizeof(one)), sizeof(one));
    assert_int_equal(raw_last_words(&bench.raw).scope, SCOPE_SESSION);
    bench_close(&bench);
}

/* ------------------------------------------------------------------------------------------ scribblers */

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* Writes over one word of the pages: anywhere, or one that matters, with a value that is random or nearly right. */
static void scribble(struct bench *bench, uint64_t *seed)
{
    uint64_t what = next_random(seed);
    uint64_t value = next_random(seed);
    struct mlacat_ring_submission *entry = &bench->ring.submissions[value % bench->ring.entries];
    uint64_t *words = (uint64_t *)(void *)entry;
    switch (what % 8) {
    case 0:
        words[what / 8 % (sizeof(*entry) / 8)] = value;
        break;
    case 1:
        words[what / 8 % 22] = value % 4096; /* not the reserved ones: the entry is read on */
        break;
    case 2:
        words[what / 8 % 22] ^= UINT64_C(1) << (value % 64);
        break;
    case 3:
        *entry = bench_entry(bench, value);
        break;
    case 4:
        entry->flags =
            (uint32_t)(value & (MLACAT_RING_SUBMIT_READY | MLACAT_RING_SUBMIT_READY_BUFFER | MLACAT_RING_SUBMIT_DONE));
        break;
    case 5:
        bench->ring.client->waiting = (uint32_t)value;
        bench->ring.client->ready = value;
        bench->ring.client->done = value;
        break;
    case 6:
        mlacat_ring_completions_read(bench->ring.client, mlacat_ring_completed(bench->ring.daemon));
        break;
    default:
        bench->ring.tail = mlacat_ring_taken(bench->ring.daemon) + (uint32_t)(value % 32);
        raw_ring_submit(&bench->ring);
        break;
    }
    if (what % 1009 == 0) {
        uint32_t *tail = what & 1024 ? &bench->ring.client->submit_tail : &bench->ring.client->complete_head;
        *tail = (uint32_t)value;
    }
}

static bool has_ended(struct raw *raw)
{
    char byte;
    ssize_t got = recv(raw->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return got >= 0 || errno == ECONNRESET;
}

/* Shared by the processes. */
struct shared {
    _Atomic uint32_t thrown_out; /* sessions, seen from here */
    _Atomic bool stop;
};

struct scribblers {
    const struct server *server;
    struct shared *shared;
};

/* Connects again as soon as the daemon has thrown it out. */
static void scribbler_main(void *arg)
{
    const struct scribblers *scribblers = arg;
    uint64_t seed = (uint64_t)getpid() * UINT64_C(0x9e3779b97f4a7c15) + 1;
    struct shared *shared = scribblers->shared;
    while (!shared->stop) {
        struct bench bench;
        bool ended = false;
        bench_open(&bench, scribblers->server);
        for (uint32_t i = 0; !shared->stop && !ended; i++) {
            scribble(&bench, &seed);
            ended = i % 64 == 0 && has_ended(&bench.raw);
        }
        shared->thrown_out += ended;
        bench_close(&bench);
    }
}

static bool work_quickly(struct bench *bench, uint64_t id)
{
    uint64_t start_ms = now_ms();
    bench_work(bench, id);
    return now_ms() - start_ms < QUICK_MS;
}

/* That the scribblers have been thrown out, that some of their calls were good and some bad. On a busy machine a short
 * run has few sessions: then one kind of bad call may be missing. */
static bool has_seen_all(struct bench *neighbour, uint64_t own_nr, const struct shared *shared)
{
    struct counts counts = raw_stats(&neighbour->raw);
    uint64_t unknown = counts.outcomes[STATUS_NOT_FOUND];
    uint64_t invalid = counts.outcomes[STATUS_INVALID_ARGUMENT];
    bool is_long = env_number("MLACAT_SCRIBBLE_MS", SCRIBBLE_MS) > SCRIBBLE_MS;
    return shared->thrown_out > 0 && counts.outcomes[STATUS_OK] > own_nr &&
           (is_long ? unknown > 0 && invalid > 0 : unknown + invalid > 0);
}

/* Nothing is left of them, each that broke the rules has lost its session, and all that they did was done. */
static void run_scribblers(const struct server *server)
{
    enum { SCRIBBLERS = 2 };
    struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct scribblers scribblers = {server, shared};
    struct child child[SCRIBBLERS];
    struct bench neighbour;
    bench_open(&neighbour, server);
    bench_work(&neighbour, 1);
    uint32_t fds_nr = proc_fds(server->pid);
    uint32_t maps_nr = proc_maps(server->pid, "mlacat-ring");
    for (int i = 0; i < SCRIBBLERS; i++) {
        child_start(&child[i], scribbler_main, &scribblers);
    }
    uint64_t end_ms = now_ms() + env_number("MLACAT_SCRIBBLE_MS", SCRIBBLE_MS);
    uint64_t id = 1;
    uint64_t quick_nr = 0;
    while (now_ms() < end_ms || id <= JUDGED_NR) {
        quick_nr += work_quickly(&neighbour, ++id);
    }
    WAIT_UNTIL(has_seen_all(&neighbour, id, shared));
    shared->stop = true;
    for (int i = 0; i < SCRIBBLERS; i++) {
        child_join(&child[i]);
    }
    REQUIRE(2 * quick_nr >= id - 1, "%lu of %lu calls were late", (unsigned long)(id - 1 - quick_nr),
            (unsigned long)(id - 1));
    /* In its last moments one may have been thrown out without looking. */
    assert_in_range(raw_stats(&neighbour.raw).sessions_broken, shared->thrown_out, shared->thrown_out + SCRIBBLERS);
    WAIT_UNTIL(raw_stats(&neighbour.raw).clients == 1);
    WAIT_UNTIL(raw_stats(&neighbour.raw).buffers == 1);
    WAIT_UNTIL(proc_fds(server->pid) == fds_nr);
    WAIT_UNTIL(proc_maps(server->pid, "mlacat-ring") == maps_nr);
    bench_work(&neighbour, 1);
    bench_close(&neighbour);
    munmap(shared, sizeof(*shared));
}

static void test_ring_scribblers_disturb_nobody(void **state)
{
    run_scribblers(*state);
}

/* Not even one whose stream has the same worker. */
static void test_ring_scribblers_share_a_worker(void **state)
{
    struct server server;
    (void)state;
    server_start(&server, "workers = 1\n");
    run_scribblers(&server);
    server_stop(&server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_ring_broken_entries_end_the_session), WITH_SERVER(test_ring_word_in_a_buffer_is_checked),
        WITH_SERVER(test_ring_broken_indices_end_the_session), WITH_SERVER(test_ring_replay_is_refused),
        WITH_SERVER(test_ring_descriptors_give_no_power),      WITH_SERVER(test_ring_scribblers_disturb_nobody),
        cmocka_unit_test(test_ring_scribblers_share_a_worker),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
