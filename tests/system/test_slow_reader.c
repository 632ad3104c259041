/* SPDX-License-Identifier: Apache-2.0 */
/* A client that submits and does not read: the daemon's memory stays bounded, the others notice nothing, and when it
 * reads again it gets each completion exactly once. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proc.h"
#include "require.h"
#include "server.h"
#include "trial.h"

/* A client that works meanwhile. */
struct neighbour {
    struct raw raw;
    struct trial trial;
    struct ref buffer;
    struct ref stream;
};

static void neighbour_open(struct neighbour *neighbour, const char *path)
{
    raw_open(&neighbour->raw, path);
    trial_make(&neighbour->trial, &small_shape);
    neighbour->buffer = raw_must_register(&neighbour->raw, neighbour->trial.fd, neighbour->trial.bytes);
    neighbour->stream = raw_must_open_stream(&neighbour->raw);
}

static void neighbour_close(struct neighbour *neighbour)
{
    raw_close(&neighbour->raw);
    trial_free(&neighbour->trial);
}

static void work(struct neighbour *neighbour, uint32_t id)
{
    trial_refill(&neighbour->trial, id);
    struct call call = trial_call(&neighbour->trial, neighbour->buffer, id);
    raw_submit(&neighbour->raw, neighbour->stream, &call, 1);
    REQUIRE(raw_wait(&neighbour->raw, id).code == STATUS_OK && trial_right(&neighbour->trial));
}

/* Packets until the socket takes no more, and still takes no more after the daemon had time to read. Returns the number
 * of calls in them. */
static uint64_t submit_until_full(struct raw *raw, struct ref stream, const struct trial *trial, struct ref buffer,
                                  uint32_t calls_in_packet, struct neighbour *neighbour)
{
    static struct call calls[RAW_CALLS_MAX];
    uint8_t packet[RAW_PACKET_BYTES];
    uint64_t calls_nr = 0;
    uint32_t full_nr = 0;
    while (full_nr < 50) {
        for (uint32_t i = 0; i < calls_in_packet; i++) {
            calls[i] = trial_call(trial, buffer, calls_nr + i);
        }
        size_t size = raw_pack_submit(packet, stream, calls, calls_in_packet);
        int error = raw_try_send(raw, packet, size, NULL, 0);
        if (error == EAGAIN) {
            full_nr++;
            work(neighbour, full_nr); /* the daemon's loop has turned */
            continue;
        }
        REQUIRE(error == 0, "the daemon gave the slow reader up after %lu calls: %s", (unsigned long)calls_nr,
                strerror(error));
        calls_nr += calls_in_packet;
        full_nr = 0;
        REQUIRE(calls_nr < 1000000, "the daemon reads on and on though nobody takes its answers");
    }
    return calls_nr;
}

static void expect_each_once(struct raw *raw, uint64_t calls_nr)
{
    uint8_t *seen = calloc(calls_nr, 1);
    uint64_t ok_nr = 0;
    REQUIRE(seen != NULL);
    for (uint64_t i = 0; i < calls_nr; i++) {
        struct completion done = raw_next(raw);
        REQUIRE(done.call_id < calls_nr && seen[done.call_id] == 0, "call %lu", (unsigned long)done.call_id);
        REQUIRE(done.outcome.code == STATUS_OK || done.outcome.code == STATUS_RESOURCE_EXHAUSTED, "%u: %s",
                done.outcome.code, done.outcome.message);
        seen[done.call_id] = 1;
        ok_nr += done.outcome.code == STATUS_OK;
    }
    REQUIRE(ok_nr > 0);
    raw_ping(raw);
    REQUIRE(raw->done_nr == 0, "completions came that nobody asked for");
    free(seen);
}

static void run_slow_reader(struct server *server, uint32_t calls_in_packet)
{
    struct neighbour neighbour;
    struct raw raw;
    struct trial trial;
    neighbour_open(&neighbour, server->socket);
    raw_open(&raw, server->socket);
    trial_make(&trial, &small_shape);
    struct ref buffer = raw_must_register(&raw, trial.fd, trial.bytes);
    struct ref stream = raw_must_open_stream(&raw);
    for (int round = 0; round < 2; round++) {
        uint64_t before_kib = proc_status_kib(server->pid, "RssAnon");
        uint64_t calls_nr = submit_until_full(&raw, stream, &trial, buffer, calls_in_packet, &neighbour);
        uint64_t after_kib = proc_status_kib(server->pid, "RssAnon");
        if (!has_sanitizer()) {
            assert_true(after_kib < before_kib + 4096);
        }
        expect_each_once(&raw, calls_nr);
    }
    assert_true(trial_right(&trial));
    assert_int_equal(raw_stats(&raw).sessions_broken, 0);
    raw_close(&raw);
    trial_free(&trial);
    neighbour_close(&neighbour);
}

static void test_slow_reader_of_single_calls(void **state)
{
    run_slow_reader(*state, 1);
}

static void test_slow_reader_of_batches(void **state)
{
    run_slow_reader(*state, 100);
}

static void test_slow_reader_of_large_batches(void **state)
{
    run_slow_reader(*state, 600);
}

/* Nobody reads, nothing but requests: the daemon stops reading, and answers all when it is read again. */
static void test_slow_reader_of_replies(void **state)
{
    static const uint8_t stats_packet[] = {0x08, 0x01, 0x4a, 0x00};
    struct server *server = *state;
    struct neighbour neighbour;
    struct raw raw;
    uint64_t sent_nr = 0;
    neighbour_open(&neighbour, server->socket);
    raw_open(&raw, server->socket);
    for (uint32_t full_nr = 0; full_nr < 50;) {
        int error = raw_try_send(&raw, stats_packet, sizeof(stats_packet), NULL, 0);
        REQUIRE(error == 0 || error == EAGAIN);
        if (error == EAGAIN) {
            full_nr++;
            work(&neighbour, full_nr);
        } else {
            sent_nr++;
            full_nr = 0;
        }
        REQUIRE(sent_nr < 100000);
    }
    for (uint64_t i = 0; i < sent_nr; i++) {
        Mlacat__V1__Envelope *reply = raw_receive(&raw);
        REQUIRE(reply != NULL && reply->body_case == MLACAT__V1__ENVELOPE__BODY_STATS && reply->request_id == 1);
        raw_free(reply);
    }
    assert_true(raw_ready(&raw, NULL));
    raw_close(&raw);
    neighbour_close(&neighbour);
}

static void test_slow_reader_that_goes_away(void **state)
{
    struct server *server = *state;
    struct neighbour neighbour;
    struct raw raw;
    struct trial trial;
    neighbour_open(&neighbour, server->socket);
    uint32_t fds_nr = proc_fds(server->pid);
    trial_make(&trial, &small_shape);
    for (int round = 0; round < 3; round++) {
        raw_open(&raw, server->socket);
        struct ref buffer = raw_must_register(&raw, trial.fd, trial.bytes);
        struct ref stream = raw_must_open_stream(&raw);
        submit_until_full(&raw, stream, &trial, buffer, 1, &neighbour);
        raw_close(&raw);
        WAIT_UNTIL(raw_stats(&neighbour.raw).clients == 1 && raw_stats(&neighbour.raw).calls_in_flight == 0);
    }
    WAIT_UNTIL(proc_fds(server->pid) == fds_nr && proc_maps(server->pid, MEMFD_NAME) == 1);
    trial_free(&trial);
    neighbour_close(&neighbour);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_slow_reader_of_single_calls),  WITH_SERVER(test_slow_reader_of_batches),
        WITH_SERVER(test_slow_reader_of_large_batches), WITH_SERVER(test_slow_reader_of_replies),
        WITH_SERVER(test_slow_reader_that_goes_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
