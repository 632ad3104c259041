/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that wait: deadlines, cancellation, buffers that go while they are in use, memory that comes with the call. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu_memory.h"
#include "proc.h"
#include "require.h"
#include "server.h"
#include "trial.h"

/* A stream that a slow call keeps busy, and a small trial to queue behind it. */
struct scene {
    struct raw raw;
    struct ref stream;
    struct trial slow;
    struct ref slow_buffer;
    struct trial trial;
    struct ref buffer;
};

static void set_scene(struct scene *scene, const struct server *server)
{
    raw_open(&scene->raw, server->socket);
    scene->stream = raw_must_open_stream(&scene->raw);
    slow_make(&scene->slow);
    scene->slow_buffer = raw_must_register(&scene->raw, scene->slow.fd, scene->slow.bytes);
    trial_make(&scene->trial, &small_shape);
    scene->buffer = raw_must_register(&scene->raw, scene->trial.fd, scene->trial.bytes);
}

static void clear_scene(struct scene *scene)
{
    raw_close(&scene->raw);
    trial_free(&scene->slow);
    trial_free(&scene->trial);
}

static void submit_slow(struct scene *scene, uint64_t id)
{
    struct call call = trial_call(&scene->slow, scene->slow_buffer, id);
    raw_submit(&scene->raw, scene->stream, &call, 1);
}

static void submit_small(struct scene *scene, uint64_t id, uint64_t deadline_us)
{
    struct call call = trial_call(&scene->trial, scene->buffer, id);
    call.deadline_us = deadline_us;
    raw_submit(&scene->raw, scene->stream, &call, 1);
}

/* Keeps the stream busy until release. */
static void hold(struct scene *scene)
{
    slow_hold(&scene->raw, scene->stream, &scene->slow, scene->slow_buffer);
}

static void release(struct scene *scene)
{
    slow_release(&scene->raw, scene->stream);
}

/* The one worker has looked at all that was submitted before, on every stream. */
static void pass_worker(struct scene *scene)
{
    struct ref stream = raw_must_open_stream(&scene->raw);
    struct call call = trial_call(&scene->slow, scene->slow_buffer, 1000);
    call.operand[0].shape[0] = call.operand[1].shape[0] = call.operand[2].shape[0] = 0;
    raw_submit(&scene->raw, stream, &call, 1);
    assert_int_equal(raw_wait_aside(&scene->raw, 1000).code, STATUS_OK);
    assert_int_equal(raw_close_stream(&scene->raw, stream).code, STATUS_OK);
}

static int one_worker_setup(void **state)
{
    struct server *server = calloc(1, sizeof(*server));
    REQUIRE(server != NULL);
    *state = server;
    server_start(server, "workers = 1\n");
    return 0;
}

/* Submits a call behind those that hold the stream, and takes completions until it has ended. Returns how many of the
 * others have ended before. */
static int run_late(struct scene *scene, uint64_t id, uint64_t deadline_us, struct outcome *outcome)
{
    int before_nr = 0;
    struct completion done[SLOW_HOLD_CALLS + 1];
    submit_small(scene, id, deadline_us);
    pass_worker(scene);
    while ((done[before_nr] = raw_next(&scene->raw)).call_id != id) {
        assert_int_equal(done[before_nr].outcome.code, STATUS_OK);
        assert_true(++before_nr <= SLOW_HOLD_CALLS);
    }
    *outcome = done[before_nr].outcome;
    for (int i = 0; i < before_nr; i++) {
        raw_keep(&scene->raw, &done[i]);
    }
    return before_nr;
}

static void test_order_deadline_expires_behind_long_calls(void **state)
{
    struct scene scene;
    struct outcome outcome;
    set_scene(&scene, *state);
    hold(&scene);
    assert_true(run_late(&scene, 4, 10000, &outcome) < SLOW_HOLD_CALLS / 2);
    assert_int_equal(outcome.code, STATUS_DEADLINE_EXCEEDED);
    assert_int_equal(outcome.scope, SCOPE_CALL);
    release(&scene);
    assert_true(trial_untouched(&scene.trial));
    submit_small(&scene, 5, UINT64_MAX); /* never comes */
    assert_int_equal(raw_wait(&scene.raw, 5).code, STATUS_OK);
    assert_true(trial_right(&scene.trial));
    clear_scene(&scene);
}

/* Before a single one of those in front has ended; a machine that has other work may need some tries. */
static void test_order_deadline_is_prompt(void **state)
{
    enum { TRIES = 30 };
    struct scene scene;
    struct outcome outcome;
    uint64_t tries = 0;
    int before_nr;
    set_scene(&scene, *state);
    do {
        hold(&scene);
        before_nr = run_late(&scene, 3, 1000, &outcome);
        assert_int_equal(outcome.code, STATUS_DEADLINE_EXCEEDED);
        release(&scene);
    } while (before_nr > 0 && ++tries < TRIES);
    assert_int_equal(before_nr, 0);
    assert_true(trial_untouched(&scene.trial));
    assert_int_equal(raw_stats(&scene.raw).outcomes[STATUS_DEADLINE_EXCEEDED], tries + 1);
    clear_scene(&scene);
}

/* Asks to cancel those that hold the stream, in turn, until it is too late: that one runs. */
static bool one_runs(struct scene *scene)
{
    uint32_t code = STATUS_OK;
    for (uint64_t i = 0; i < SLOW_HOLD_CALLS && code != STATUS_FAILED_PRECONDITION; i++) {
        code = raw_cancel(&scene->raw, scene->stream, SLOW_HOLD_ID + i).code;
    }
    return code == STATUS_FAILED_PRECONDITION;
}

static void test_order_cancel_of_queued_running_and_ended(void **state)
{
    struct scene scene;
    set_scene(&scene, *state);
    hold(&scene);
    submit_small(&scene, 2, 0);
    submit_slow(&scene, 3);
    pass_worker(&scene);
    assert_int_equal(raw_cancel(&scene.raw, scene.stream, 2).code, STATUS_OK);
    assert_int_equal(raw_cancel(&scene.raw, scene.stream, 3).code, STATUS_OK);
    assert_true(one_runs(&scene));
    assert_int_equal(raw_cancel(&scene.raw, scene.stream, 99).code, STATUS_NOT_FOUND);
    assert_int_equal(raw_wait_aside(&scene.raw, 2).code, STATUS_CANCELLED);
    assert_int_equal(raw_wait_aside(&scene.raw, 3).code, STATUS_CANCELLED);
    release(&scene);
    const uint64_t ended[] = {SLOW_HOLD_ID, 2, 3};
    for (size_t i = 0; i < sizeof(ended) / sizeof(ended[0]); i++) {
        assert_int_equal(raw_cancel(&scene.raw, scene.stream, ended[i]).code, STATUS_NOT_FOUND);
    }
    assert_true(trial_untouched(&scene.trial));
    struct counts counts = raw_stats(&scene.raw);
    assert_true(counts.outcomes[STATUS_CANCELLED] >= 2);
    assert_int_equal(counts.calls_in_flight, 0);
    clear_scene(&scene);
}

static void test_order_unregister_lets_calls_finish(void **state)
{
    struct server *server = *state;
    struct scene scene;
    set_scene(&scene, server);
    hold(&scene);
    submit_small(&scene, 2, 0);
    assert_int_equal(raw_unregister(&scene.raw, scene.buffer).code, STATUS_OK);
    assert_int_equal(raw_unregister(&scene.raw, scene.slow_buffer).code, STATUS_OK);
    assert_true(memfds_mapped(server->pid, 2));
    submit_small(&scene, 3, 0);
    struct outcome refused = raw_wait_aside(&scene.raw, 3);
    assert_int_equal(refused.code, STATUS_NOT_FOUND);
    assert_int_equal(raw_unregister(&scene.raw, scene.buffer).code, STATUS_NOT_FOUND);
    release(&scene);
    assert_int_equal(raw_wait(&scene.raw, 2).code, STATUS_OK);
    assert_true(trial_right(&scene.trial));
    WAIT_UNTIL(memfds_mapped(server->pid, 0));
    WAIT_UNTIL(raw_stats(&scene.raw).mapped_bytes == raw_by_ring_bytes(&scene.raw));
    clear_scene(&scene);
}

/* The buffer is given back while its call may be queued, running or over; no reply is waited for in between. */
static void test_order_unregister_races_with_completion(void **state)
{
    struct server *server = *state;
    struct scene scene;
    uint64_t rounds = env_number("MLACAT_RACE_ROUNDS", 3000);
    set_scene(&scene, server);
    for (uint64_t i = 0; i < rounds; i++) {
        struct ref buffer = raw_must_register(&scene.raw, scene.trial.fd, scene.trial.bytes);
        struct call call = trial_call(&scene.trial, buffer, i);
        raw_submit(&scene.raw, scene.stream, &call, 1);
        if (i % 3 == 0) {
            REQUIRE(raw_wait(&scene.raw, i).code == STATUS_OK);
        }
        REQUIRE(raw_unregister(&scene.raw, buffer).code == STATUS_OK);
        if (i % 3 != 0) {
            REQUIRE(raw_wait(&scene.raw, i).code == STATUS_OK);
        }
    }
    assert_true(trial_right(&scene.trial));
    WAIT_UNTIL(raw_stats(&scene.raw).buffers == 2);
    WAIT_UNTIL(memfds_mapped(server->pid, 2));
    clear_scene(&scene);
}

static void test_order_close_stream_waits_for_its_calls(void **state)
{
    struct scene scene;
    set_scene(&scene, *state);
    slow_begin(&scene.raw, scene.stream, &scene.slow, scene.slow_buffer, 1);
    submit_small(&scene, 2, 0);
    /* Completions that come before the reply are kept, so both must have come. */
    assert_int_equal(raw_close_stream(&scene.raw, scene.stream).code, STATUS_OK);
    assert_int_equal(scene.raw.done_nr, 2);
    assert_int_equal(raw_wait(&scene.raw, 1).code, STATUS_OK);
    assert_int_equal(raw_wait(&scene.raw, 2).code, STATUS_OK);
    assert_true(trial_right(&scene.trial));
    clear_scene(&scene);
}

/* ----------------------------------------------------------------------------------------------------- inline memory
 */

/* Makes all operands inline: each names a descriptor of its own, all of the same memory. */
static void make_inline(struct call *call, int fd, size_t bytes, int fds[3])
{
    for (uint32_t i = 0; i < 3; i++) {
        call->operand[i].is_inline = true;
        call->operand[i].fd = i;
        call->operand[i].size_bytes = bytes;
        fds[i] = fd;
    }
}

static void test_order_inline_memory_is_mapped_for_one_call(void **state)
{
    struct server *server = *state;
    struct scene scene;
    int fds[3];
    set_scene(&scene, server);
    uint32_t fds_nr = proc_fds(server->pid);
    struct call call = trial_call(&scene.trial, scene.buffer, 1);
    make_inline(&call, scene.trial.fd, scene.trial.bytes, fds);
    assert_int_equal(raw_submit_fds(&scene.raw, scene.stream, &call, 1, fds, 3), 0);
    assert_int_equal(raw_wait(&scene.raw, 1).code, STATUS_OK);
    assert_true(trial_right(&scene.trial));
    WAIT_UNTIL(memfds_mapped(server->pid, 2));
    WAIT_UNTIL(raw_stats(&scene.raw).mapped_bytes == scene.slow.bytes + scene.trial.bytes);
    WAIT_UNTIL(descriptors_open(server->pid, fds_nr));
    clear_scene(&scene);
}

/* Each call reads what the one before it wrote. */
static void test_order_holds_behind_an_inline_import(void **state)
{
    enum { LINKS = 40 };
    struct raw raw;
    struct call calls[LINKS + 1];
    int fds[3];
    raw_open(&raw, ((struct server *)*state)->socket);
    struct ref stream = raw_must_open_stream(&raw);
    int fd = memfd_make(4096, F_SEAL_SHRINK);
    uint8_t *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    struct ref buffer = raw_must_register(&raw, fd, 4096);
    memcpy(memory, "abcdefgh", 8);
    gpu_memory_upload(fd);
    calls[0] = row_call(0, buffer, 16, 0, 4, 4, 4);
    make_inline(&calls[0], fd, 4096, fds);
    for (uint64_t i = 1; i <= LINKS; i++) {
        calls[i] = row_call(i, buffer, 16 + 16 * i, 16 * i, 4, 16 * i + 4, 4);
    }
    assert_int_equal(raw_submit_fds(&raw, stream, calls, LINKS + 1, fds, 3), 0);
    for (uint64_t i = 0; i <= LINKS; i++) {
        assert_int_equal(raw_wait(&raw, i).code, STATUS_OK);
    }
    gpu_memory_download(fd);
    assert_memory_equal(memory + 16 + 16 * LINKS, "abcdefgh", 8);
    munmap(memory, 4096);
    close(fd);
    raw_close(&raw);
}

static void test_order_failed_inline_import_fails_one_call(void **state)
{
    struct server *server = *state;
    struct scene scene;
    int fds[3];
    set_scene(&scene, server);
    uint32_t fds_nr = proc_fds(server->pid);
    int unsealed = memfd_make(scene.trial.bytes, 0);
    struct call calls[2] = {trial_call(&scene.trial, scene.buffer, 1), trial_call(&scene.trial, scene.buffer, 2)};
    make_inline(&calls[0], scene.trial.fd, scene.trial.bytes, fds);
    fds[1] = unsealed;
    assert_int_equal(raw_submit_fds(&scene.raw, scene.stream, calls, 2, fds, 3), 0);
    struct outcome outcome = raw_wait(&scene.raw, 1);
    assert_int_equal(outcome.code, STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(outcome.message, "F_SEAL_SHRINK"));
    assert_int_equal(raw_wait(&scene.raw, 2).code, STATUS_OK);
    assert_true(trial_right(&scene.trial));
    /* Refused before the import: the descriptors go all the same. */
    calls[0].operand[2].is_inline = false;
    calls[0].operand[2].buffer.generation += 7;
    assert_int_equal(raw_submit_fds(&scene.raw, scene.stream, calls, 1, fds, 2), 0);
    assert_int_equal(raw_wait(&scene.raw, 1).code, STATUS_NOT_FOUND);
    WAIT_UNTIL(memfds_mapped(server->pid, 2));
    WAIT_UNTIL(descriptors_open(server->pid, fds_nr));
    close(unsealed);
    clear_scene(&scene);
}

#define WITH_ONE_WORKER(test) cmocka_unit_test_setup_teardown(test, one_worker_setup, server_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_ONE_WORKER(test_order_deadline_expires_behind_long_calls),
        WITH_ONE_WORKER(test_order_deadline_is_prompt),
        WITH_ONE_WORKER(test_order_cancel_of_queued_running_and_ended),
        WITH_SERVER(test_order_unregister_lets_calls_finish),
        WITH_SERVER(test_order_unregister_races_with_completion),
        WITH_SERVER(test_order_close_stream_waits_for_its_calls),
    };
    const struct CMUnitTest packet_tests[] = {
        WITH_SERVER(test_order_inline_memory_is_mapped_for_one_call),
        WITH_SERVER(test_order_holds_behind_an_inline_import),
    };
    const struct CMUnitTest memfd_tests[] = {
        WITH_SERVER(test_order_failed_inline_import_fails_one_call),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (raw_by_ring()) {
        return failed;
    }
    failed += cmocka_run_group_tests(packet_tests, NULL, NULL);
    return gpu_memory_used() ? failed : failed + cmocka_run_group_tests(memfd_tests, NULL, NULL);
}
