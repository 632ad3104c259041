/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon dies, by kill -9 or by a drain, at each step of its clients' lives, and comes back: clients of libmlacat
 * survive it. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "gpu_memory.h"
#include "library.h"
#include "proc.h"

static void restart(struct server *server)
{
    server_kill(server);
    server_run(server);
}

static struct mlacat_server_info info_of(struct mlacat_client *client)
{
    struct mlacat_server_info info = {.size = sizeof(info)};
    MUST(mlacat_server_info(client, &info));
    return info;
}

static void test_restart_idle_client_registers_again(void **state)
{
    struct server *server = *state;
    struct library library;
    library_open(&library, server, &small_shape);
    struct mlacat_server_info before = info_of(library.client);
    assert_int_equal(library_run(&library, 1), MLACAT_OK);
    restart(server);
    assert_int_equal(library_run(&library, 2), MLACAT_OK);
    struct mlacat_server_info after = info_of(library.client);
    assert_memory_not_equal(before.boot_id, after.boot_id, sizeof(before.boot_id));
    assert_int_equal(after.reconnects, 1);
    assert_int_equal(after.pid, server->pid);
    assert_true(memfds_mapped(server->pid, 1));
    library_close(&library);
}

/* Before anything was made, with buffers only, with a stream only. */
static void test_restart_at_each_step_of_setting_up(void **state)
{
    struct server *server = *state;
    struct library library;
    library.client = library_connect(server, 0);
    restart(server);
    trial_make(&library.trial, &small_shape);
    library.buffer = library_register(library.client, &library.trial);
    restart(server);
    MUST(mlacat_stream_open(library.client, NULL, &library.stream));
    restart(server);
    assert_int_equal(library_run(&library, 1), MLACAT_OK);
    restart(server);
    mlacat_buffer_release(library.buffer);
    library.buffer = library_register(library.client, &library.trial);
    assert_int_equal(library_run(&library, 2), MLACAT_OK);
    restart(server);
    library_close(&library);
}

static void test_restart_calls_in_flight_are_unavailable(void **state)
{
    enum { CALLS = 100 };
    struct server *server = *state;
    struct library library;
    struct trial slow;
    struct mlacat_buffer *slow_buffer = NULL;
    uint64_t ids[CALLS];
    struct mlacat_result result = {.size = sizeof(result)};
    library_open(&library, server, &small_shape);
    slow_make(&slow);
    slow_buffer = library_register(library.client, &slow);
    struct mlacat_call call = library_call(&slow, slow_buffer);
    for (int i = 0; i < CALLS; i++) {
        MUST(mlacat_submit(library.stream, &call, &ids[i]));
    }
    server_kill(server);
    enum mlacat_status last = MLACAT_OK; /* of seconds of work, whatever was done before */
    for (int i = 0; i < CALLS; i++) {
        enum mlacat_status status = mlacat_wait(library.stream, ids[i], (int64_t)WAIT_MS * 1000, &result);
        assert_int_equal(result.ended, 1);
        assert_true(status == MLACAT_UNAVAILABLE ? result.message[0] != '\0' : status == last && last == MLACAT_OK);
        last = status;
    }
    assert_int_equal(last, MLACAT_UNAVAILABLE);
    server_run(server);
    assert_int_equal(library_run(&library, 7), MLACAT_OK);
    MUST(mlacat_run(library.stream, &call, &result));
    assert_true(memfds_mapped(server->pid, 2));
    mlacat_buffer_release(slow_buffer);
    trial_free(&slow);
    library_close(&library);
}

struct endings {
    _Atomic uint32_t nr;
    _Atomic uint32_t unavailable;
};

static void count_ending(void *user, uint64_t call_id, const struct mlacat_result *result)
{
    struct endings *endings = user;
    (void)call_id;
    atomic_fetch_add(&endings->unavailable, result->status == MLACAT_UNAVAILABLE);
    atomic_fetch_add(&endings->nr, 1);
}

static void test_restart_callbacks_come_once(void **state)
{
    enum { CALLS = 100 };
    struct server *server = *state;
    struct library library;
    struct trial slow;
    struct mlacat_buffer *slow_buffer = NULL;
    struct endings endings = {0};
    library_open(&library, server, &small_shape);
    slow_make(&slow);
    slow_buffer = library_register(library.client, &slow);
    struct mlacat_call call = library_call(&slow, slow_buffer);
    call.done = count_ending;
    call.user = &endings;
    for (int i = 0; i < CALLS; i++) {
        MUST(mlacat_submit(library.stream, &call, NULL));
    }
    server_kill(server);
    WAIT_UNTIL(atomic_load(&endings.nr) == CALLS);
    assert_true(atomic_load(&endings.unavailable) > 0);
    server_run(server);
    assert_int_equal(library_run(&library, 3), MLACAT_OK);
    mlacat_buffer_release(slow_buffer);
    trial_free(&slow);
    library_close(&library);
    assert_int_equal(atomic_load(&endings.nr), CALLS);
}

/* ----------------------------------------------------------------------------------------------------------- the gap
 */

struct gap {
    struct library library;
    _Atomic bool begun;
    enum mlacat_status status;
    uint64_t took_ms;
    bool right;
};

/* In a thread of its own, without checks: submits while there is no daemon. */
static void *run_in_gap(void *arg)
{
    struct gap *gap = arg;
    struct mlacat_call call = library_call(&gap->library.trial, gap->library.buffer);
    uint64_t start_ms = now_ms();
    atomic_store(&gap->begun, true);
    gap->status = mlacat_run(gap->library.stream, &call, NULL);
    gap->took_ms = now_ms() - start_ms;
    gap->right = trial_right(&gap->library.trial);
    return NULL;
}

static void test_restart_submit_in_the_gap_waits(void **state)
{
    struct server *server = *state;
    struct gap gap = {.begun = false};
    pthread_t thread;
    library_open(&gap.library, server, &small_shape);
    server_kill(server);
    assert_int_equal(pthread_create(&thread, NULL, run_in_gap, &gap), 0);
    WAIT_UNTIL(atomic_load(&gap.begun));
    for (int i = 0; i < 50; i++) {
        nap(); /* so that the first try has failed, most likely; the result is the same if it has not begun */
    }
    server_run(server);
    pthread_join(thread, NULL);
    assert_int_equal(gap.status, MLACAT_OK);
    assert_true(gap.right);
    library_close(&gap.library);
}

static void test_restart_submit_gives_up_after_its_time(void **state)
{
    struct server *server = *state;
    struct gap gap = {.begun = false};
    gap.library.client = library_connect(server, 150);
    trial_make(&gap.library.trial, &small_shape);
    gap.library.buffer = library_register(gap.library.client, &gap.library.trial);
    MUST(mlacat_stream_open(gap.library.client, NULL, &gap.library.stream));
    server_kill(server);
    run_in_gap(&gap);
    assert_int_equal(gap.status, MLACAT_UNAVAILABLE);
    assert_true(gap.took_ms >= 150 && gap.took_ms < WAIT_MS);
    assert_non_null(strstr(mlacat_error_message(), server->socket));
    assert_true(trial_untouched(&gap.library.trial));
    server_run(server);
    uint64_t end_ms = now_ms() + WAIT_MS;
    do { /* a busy machine may take longer than that to connect again */
        run_in_gap(&gap);
    } while (gap.status == MLACAT_UNAVAILABLE && gap.took_ms >= 150 && now_ms() < end_ms);
    assert_int_equal(gap.status, MLACAT_OK);
    assert_true(gap.right);
    library_close(&gap.library);
}

static void test_restart_after_a_drain(void **state)
{
    struct server *server = *state;
    struct library library;
    library_open(&library, server, &small_shape);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(library_run(&library, i), MLACAT_OK);
        server_drain(server);
        server_run(server);
    }
    assert_int_equal(library_run(&library, 9), MLACAT_OK);
    assert_int_equal(info_of(library.client).reconnects, 3);
    library_close(&library);
}

/* ---------------------------------------------------------------------------------------------------------- under load
 */

struct worker {
    pthread_t thread;
    struct library library;
    _Atomic bool *stop;
    _Atomic uint32_t right_nr;
    uint32_t wrong_nr;
    enum mlacat_status unexpected;
};

static void *run_worker(void *arg)
{
    struct worker *worker = arg;
    for (uint32_t i = 0; !atomic_load(worker->stop); i++) {
        trial_refill(&worker->library.trial, i);
        struct mlacat_call call = library_call(&worker->library.trial, worker->library.buffer);
        enum mlacat_status status = mlacat_run(worker->library.stream, &call, NULL);
        if (status == MLACAT_OK && trial_right(&worker->library.trial)) {
            atomic_fetch_add(&worker->right_nr, 1);
        } else if (status == MLACAT_OK) {
            worker->wrong_nr++;
        } else if (status != MLACAT_UNAVAILABLE) {
            worker->unexpected = status;
        }
    }
    return NULL;
}

static void test_restart_again_and_again_under_load(void **state)
{
    enum { CLIENTS = 4, ROUNDS = 6 };
    struct server *server = *state;
    struct worker workers[CLIENTS];
    _Atomic bool stop = false;
    for (int i = 0; i < CLIENTS; i++) {
        workers[i] = (struct worker){.stop = &stop};
        library_open(&workers[i].library, server, &small_shape);
        assert_int_equal(pthread_create(&workers[i].thread, NULL, run_worker, &workers[i]), 0);
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < CLIENTS; i++) {
            uint32_t right_nr = atomic_load(&workers[i].right_nr);
            WAIT_UNTIL(atomic_load(&workers[i].right_nr) > right_nr + 10);
        }
        if (round % 2 == 0) {
            server_kill(server);
        } else {
            server_drain(server);
        }
        server_run(server);
    }
    for (int i = 0; i < CLIENTS; i++) {
        uint32_t right_nr = atomic_load(&workers[i].right_nr);
        WAIT_UNTIL(atomic_load(&workers[i].right_nr) > right_nr);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(workers[i].thread, NULL);
        assert_int_equal(workers[i].wrong_nr, 0);
        assert_int_equal(workers[i].unexpected, MLACAT_OK);
        library_close(&workers[i].library);
    }
    WAIT_UNTIL(memfds_mapped(server->pid, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_restart_idle_client_registers_again),
        WITH_SERVER(test_restart_at_each_step_of_setting_up),
        WITH_SERVER(test_restart_calls_in_flight_are_unavailable),
        WITH_SERVER(test_restart_callbacks_come_once),
        WITH_SERVER(test_restart_submit_in_the_gap_waits),
        WITH_SERVER(test_restart_submit_gives_up_after_its_time),
        WITH_SERVER(test_restart_after_a_drain),
        WITH_SERVER(test_restart_again_and_again_under_load),
    };
    if (gpu_memory_used()) {
        gpu_memory_own(); /* libmlacat exports from a pointer of this process */
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
