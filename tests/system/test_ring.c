/* SPDX-License-Identifier: Apache-2.0 */
/* Calls through shared memory: the same results, texts and order as by packets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gpu_memory.h"
#include "mlacat_ring.h"
#include "require.h"
#include "ring_bench.h"

#define ROW 16

static cpu_set_t all_processors;

static void test_ring_runs_a_call(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    assert_int_equal(bench.ring.calls, 256);
    bench_work(&bench, 77);
    assert_int_equal(raw_ring_fence(&bench.ring), 1);
    assert_int_equal(mlacat_ring_failed(bench.ring.daemon), 0);
    bench_close(&bench);
}

static void run_trial(struct bench *bench, const struct trial_shape *shape)
{
    struct trial trial;
    trial_make(&trial, shape);
    struct ref buffer = raw_must_register(&bench->raw, trial.fd, trial.bytes);
    struct call call = trial_call(&trial, buffer, 7);
    raw_ring_call(&bench->ring, &call, 1);
    struct outcome outcome = raw_ring_wait(&bench->ring, 7);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    REQUIRE(trial_right(&trial), "op %u dtype %u strided %d", shape->op, shape->dtype, shape->strided);
    assert_int_equal(raw_unregister(&bench->raw, buffer).code, STATUS_OK);
    trial_free(&trial);
}

static void test_ring_all_ops_dtypes_and_strides(void **state)
{
    static const uint64_t sizes[][4] = {{1, 1, 1, 1}, {5, 8, 128, 64}, {33, 3, 7, 5}, {3, 2, 0, 4}, {0, 8, 128, 64}};
    struct bench bench;
    bench_open(&bench, *state);
    for (uint32_t op = OP_CONCAT_MLA_K; op <= OP_CONCAT_MLA_ABSORB_Q; op++) {
        for (uint32_t dtype = DTYPE_BF16; dtype <= DTYPE_FP32; dtype++) {
            for (uint32_t i = 0; i < 10; i++) {
                const uint64_t *size = sizes[i / 2];
                run_trial(&bench, &(struct trial_shape){op, dtype, size[0], size[1], size[2], size[3], i % 2 == 1,
                                                        op * 1000 + dtype * 100 + i});
            }
        }
    }
    WAIT_UNTIL(raw_stats(&bench.raw).buffers == 1);
    bench_close(&bench);
}

/* Each call reads what the one before wrote: only in order does the first row reach the end. */
static void test_ring_runs_batches_in_order_past_its_end(void **state)
{
    enum { ROWS = 1000, BYTES = (ROWS + 1) * ROW };
    struct bench bench;
    bench_open(&bench, *state);
    int fd = memfd_make(BYTES, F_SEAL_SHRINK);
    struct ref buffer = raw_must_register(&bench.raw, fd, BYTES);
    uint8_t *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memcpy(memory, "sixteen byte row", ROW);
    gpu_memory_upload(fd);
    for (uint64_t id = 0, ended = 0; ended < ROWS;) {
        while (id < ROWS && id - ended < bench.ring.calls) {
            struct call call = row_call(id, buffer, (id + 1) * ROW, id * ROW, ROW / 2, id * ROW + ROW / 2, ROW / 2);
            struct mlacat_ring_submission entry = raw_ring_entry(&call);
            raw_ring_write(&bench.ring, &entry);
            id++;
        }
        raw_ring_submit(&bench.ring);
        do {
            assert_int_equal(raw_ring_wait(&bench.ring, ended++).code, STATUS_OK);
        } while (raw_ring_has(&bench.ring));
    }
    gpu_memory_download(fd);
    assert_memory_equal(memory + ROWS * ROW, "sixteen byte row", ROW);
    assert_int_equal(raw_ring_fence(&bench.ring), ROWS);
    munmap(memory, BYTES);
    close(fd);
    bench_close(&bench);
}

/* What is wrong with call `kind`; false: there are no more. */
static bool spoil(struct call *call, int kind)
{
    switch (kind) {
    case 0:
        call->op = 99;
        return true;
    case 1:
        call->dtype = 77;
        return true;
    case 2:
        call->operand[1].buffer.generation++;
        return true;
    case 3:
        call->operand[2].buffer.id = UINT32_MAX;
        return true;
    case 4:
        call->operand[0].offset_bytes = UINT64_MAX - 5;
        return true;
    case 5:
        call->operand[1].offset_bytes = call->operand[0].offset_bytes;
        call->operand[1].strides[0] = call->operand[0].strides[0] + 1;
        return true;
    case 6:
        call->operand[0].strides[1] = 0;
        return true;
    case 7:
        call->operand[0].buffer.generation = 0;
        return true;
    default:
        return false;
    }
}

static void test_ring_refuses_like_the_message_path(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    struct ref stream = raw_must_open_stream(&bench.raw);
    struct call call = trial_call(&bench.trial, bench.buffer, 1);
    for (int kind = 0; spoil(&call, kind); kind++) {
        raw_submit(&bench.raw, stream, &call, 1);
        struct outcome by_packet = raw_wait(&bench.raw, 1);
        raw_ring_call(&bench.ring, &call, 1);
        struct outcome by_ring = raw_ring_wait(&bench.ring, 1);
        assert_int_not_equal(by_ring.code, STATUS_OK);
        assert_int_equal(by_ring.code, by_packet.code);
        assert_int_equal(by_ring.scope, by_packet.scope);
        assert_string_equal(by_ring.message, by_packet.message);
        assert_int_equal(mlacat_ring_failed(bench.ring.daemon), kind + 1);
        call = trial_call(&bench.trial, bench.buffer, 1);
    }
    assert_true(trial_untouched(&bench.trial));
    bench_work(&bench, 2);
    bench_close(&bench);
}

static void test_ring_widths_that_overflow_are_refused(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    struct mlacat_ring_submission entry = bench_entry(&bench, 3);
    entry.width_first = UINT64_MAX;
    entry.width_second = 2;
    raw_ring_send(&bench.ring, &entry);
    assert_int_equal(raw_ring_wait(&bench.ring, 3).code, STATUS_INVALID_ARGUMENT);
    entry.width_first = UINT64_MAX - 1;
    raw_ring_send(&bench.ring, &entry);
    assert_int_equal(raw_ring_wait(&bench.ring, 3).code, STATUS_INVALID_ARGUMENT);
    assert_true(trial_untouched(&bench.trial));
    bench_close(&bench);
}

/* A client that writes on without reading: the worker takes no more than the ring holds, and goes on when it reads. */
static void test_ring_full_is_taken_up_again(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    uint32_t most = bench.ring.calls + 1;
    struct mlacat_ring_submission entry = bench_entry(&bench, 0);
    for (entry.call_id = 0; entry.call_id < most; entry.call_id++) {
        raw_ring_write(&bench.ring, &entry);
    }
    raw_ring_submit(&bench.ring);
    WAIT_UNTIL(mlacat_ring_completed(bench.ring.daemon) == most);
    for (; entry.call_id < most + 3; entry.call_id++) {
        raw_ring_write(&bench.ring, &entry);
    }
    raw_ring_submit(&bench.ring);
    struct bench other; /* whose calls pass the same worker, or another */
    bench_open(&other, *state);
    bench_work(&other, 1);
    assert_int_equal(mlacat_ring_taken(bench.ring.daemon), most);
    for (uint64_t id = 0; id < 3; id++) {
        assert_int_equal(raw_ring_wait(&bench.ring, id).code, STATUS_OK);
    }
    raw_ring_submit(&bench.ring); /* wakes the worker */
    for (uint64_t id = 3; id < most + 3; id++) {
        assert_int_equal(raw_ring_wait(&bench.ring, id).code, STATUS_OK);
    }
    bench_close(&other);
    bench_close(&bench);
}

static void test_ring_and_packets_do_not_mix(void **state)
{
    struct bench bench;
    struct raw_rings again;
    struct raw_ring ring;
    bench_open(&bench, *state);
    struct call call = trial_call(&bench.trial, bench.buffer, 5);
    raw_submit(&bench.raw, bench.ring.stream, &call, 1);
    struct outcome refused = raw_wait(&bench.raw, 5);
    assert_int_equal(refused.code, STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(refused.message, "ring"));
    assert_int_equal(raw_cancel(&bench.raw, bench.ring.stream, 5).code, STATUS_FAILED_PRECONDITION);
    assert_int_equal(raw_rings_open(&bench.raw, &again).code, STATUS_ALREADY_EXISTS);
    assert_true(trial_untouched(&bench.trial));
    bench_work(&bench, 6);
    struct raw raw;
    const struct server *server = *state;
    raw_open(&raw, server->socket);
    again.raw = &raw;
    assert_int_equal(raw_ring_open(&again, &ring).code, STATUS_FAILED_PRECONDITION);
    raw_close(&raw);
    bench_close(&bench);
}

/* Everything in the ring ends before the answer; the ring's number is free again, and its numbers go on. */
static void test_ring_close_ends_what_is_there(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    for (int round = 0; round < 20; round++) {
        struct mlacat_ring_submission entry = bench_entry(&bench, 0);
        for (entry.call_id = 0; entry.call_id < 50; entry.call_id++) {
            raw_ring_write(&bench.ring, &entry);
        }
        raw_ring_submit(&bench.ring);
        assert_int_equal(raw_close_stream(&bench.raw, bench.ring.stream).code, STATUS_OK);
        assert_int_equal(mlacat_ring_completed(bench.ring.daemon), bench.ring.tail);
        assert_int_equal(raw_close_stream(&bench.raw, bench.ring.stream).code, STATUS_NOT_FOUND);
        uint32_t index = bench.ring.index;
        uint64_t sequence = bench.ring.sequence;
        raw_ring_close(&bench.ring);
        assert_int_equal(raw_ring_open(&bench.rings, &bench.ring).code, STATUS_OK);
        assert_int_equal(bench.ring.index, index);
        assert_true(bench.ring.sequence == sequence && sequence == (uint64_t)round * 51 + 50);
        assert_true(raw_ring_fence(&bench.ring) == sequence);
        bench_work(&bench, 100);
    }
    bench_close(&bench);
}

/* The wait that a client's GPU was told of for a call that ended early is true for ever. */
static void test_ring_done_stays_for_the_next_stream(void **state)
{
    struct bench bench;
    bench_open(&bench, *state);
    struct mlacat_ring_submission entry = bench_entry(&bench, 1);
    entry.flags = MLACAT_RING_SUBMIT_READY | MLACAT_RING_SUBMIT_DONE;
    entry.ready = 1; /* which comes late */
    raw_ring_send(&bench.ring, &entry);
    entry = cancel_entry(2, 1);
    raw_ring_send(&bench.ring, &entry);
    assert_int_equal(raw_ring_wait(&bench.ring, 2).code, STATUS_OK);
    assert_int_equal(raw_ring_wait(&bench.ring, 1).code, STATUS_CANCELLED);
    assert_int_equal(bench_done(&bench), 1);
    assert_int_equal(raw_close_stream(&bench.raw, bench.ring.stream).code, STATUS_OK);
    raw_ring_close(&bench.ring);
    assert_int_equal(raw_ring_open(&bench.rings, &bench.ring).code, STATUS_OK);
    assert_int_equal(bench_done(&bench), 1);
    bench_set_ready(&bench, 1);
    entry = bench_entry(&bench, 3);
    entry.flags = MLACAT_RING_SUBMIT_READY | MLACAT_RING_SUBMIT_DONE;
    entry.ready = bench.ring.sequence + 1;
    raw_ring_send(&bench.ring, &entry);
    bench_wait_taken(&bench.ring);
    assert_false(raw_ring_has(&bench.ring)); /* the late one opens no gate of another stream's */
    bench_set_ready(&bench, bench.ring.sequence);
    assert_int_equal(raw_ring_wait(&bench.ring, 3).code, STATUS_OK);
    assert_int_equal(bench_done(&bench), 3);
    bench_close(&bench);
}

/* As many calls as the limit says, and a request to cancel: also where the limit is no power of two. */
static void test_ring_holds_as_many_calls_as_it_should(void **state)
{
    static const uint32_t limits[] = {1, 2, 3, 300};
    (void)state;
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        struct server server;
        struct bench bench;
        char options[64];
        snprintf(options, sizeof(options), "max_stream_calls = %u\n", limits[i]);
        server_start(&server, options);
        bench_open(&bench, &server);
        assert_int_equal(bench.ring.calls, limits[i]);
        struct mlacat_ring_submission entry = bench_entry(&bench, 0);
        entry.flags = MLACAT_RING_SUBMIT_READY;
        entry.ready = 1;
        for (; entry.call_id < limits[i]; entry.call_id++) {
            raw_ring_send(&bench.ring, &entry);
        }
        entry = cancel_entry(1000, 0);
        raw_ring_send(&bench.ring, &entry);
        assert_int_equal(raw_ring_wait(&bench.ring, 0).code, STATUS_CANCELLED);
        assert_int_equal(raw_ring_wait(&bench.ring, 1000).code, STATUS_OK);
        bench_set_ready(&bench, 1);
        for (uint64_t id = 1; id < limits[i]; id++) {
            assert_int_equal(raw_ring_wait(&bench.ring, id).code, STATUS_OK);
        }
        assert_int_equal(raw_stats(&bench.raw).gated_calls, limits[i] - 1);
        bench_work(&bench, 7);
        assert_int_equal(raw_stats(&bench.raw).gated_calls, limits[i] - 1);
        bench_close(&bench);
        server_stop(&server);
    }
}

/* The test and the daemon on the first two processors that there are. */
static int two_processors_setup(void **state)
{
    cpu_set_t two;
    CPU_ZERO(&two);
    assert_int_equal(sched_getaffinity(0, sizeof(all_processors), &all_processors), 0);
    for (size_t cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&two) < 2; cpu++) {
        if (CPU_ISSET(cpu, &all_processors)) {
            CPU_SET(cpu, &two);
        }
    }
    assert_int_equal(sched_setaffinity(0, sizeof(two), &two), 0);
    return server_setup(state);
}

static int two_processors_teardown(void **state)
{
    assert_int_equal(sched_setaffinity(0, sizeof(all_processors), &all_processors), 0);
    return server_teardown(state);
}

/* All rings are full before the first answer is read. */
static void test_ring_64_streams_of_one_client(void **state)
{
    enum { STREAMS = 64, CALLS = 256 };
    static struct raw_ring rings[STREAMS];
    static struct trial trials[STREAMS];
    struct bench bench;
    bench_open(&bench, *state);
    assert_int_equal(bench.rings.opened.rings, STREAMS);
    rings[0] = bench.ring;
    for (int i = 0; i < STREAMS; i++) {
        if (i > 0) {
            assert_int_equal(raw_ring_open(&bench.rings, &rings[i]).code, STATUS_OK);
        }
        trial_make(&trials[i], &small_shape);
    }
    struct raw_ring more;
    assert_int_equal(raw_ring_open(&bench.rings, &more).code, STATUS_RESOURCE_EXHAUSTED);
    for (int i = 0; i < STREAMS; i++) {
        struct ref buffer = raw_must_register(&bench.raw, trials[i].fd, trials[i].bytes);
        struct call call = trial_call(&trials[i], buffer, 0);
        for (call.id = 0; call.id < CALLS; call.id++) {
            raw_ring_call(&rings[i], &call, 1);
        }
    }
    for (int i = 0; i < STREAMS; i++) {
        for (uint64_t id = 0; id < CALLS; id++) {
            assert_int_equal(raw_ring_wait(&rings[i], id).code, STATUS_OK);
        }
        assert_true(trial_right(&trials[i]));
        trial_free(&trials[i]);
        if (i > 0) {
            raw_ring_close(&rings[i]);
        }
    }
    assert_int_equal(raw_stats(&bench.raw).outcomes[STATUS_OK], STREAMS * CALLS);
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_ring_runs_a_call),
        WITH_SERVER(test_ring_all_ops_dtypes_and_strides),
        WITH_SERVER(test_ring_runs_batches_in_order_past_its_end),
        WITH_SERVER(test_ring_refuses_like_the_message_path),
        WITH_SERVER(test_ring_widths_that_overflow_are_refused),
        WITH_SERVER(test_ring_full_is_taken_up_again),
        WITH_SERVER(test_ring_and_packets_do_not_mix),
        WITH_SERVER(test_ring_close_ends_what_is_there),
        WITH_SERVER(test_ring_done_stays_for_the_next_stream),
        cmocka_unit_test(test_ring_holds_as_many_calls_as_it_should),
        cmocka_unit_test_setup_teardown(test_ring_64_streams_of_one_client, two_processors_setup,
                                        two_processors_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
