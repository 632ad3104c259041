/* SPDX-License-Identifier: Apache-2.0 */
/* Every limit is reached, says its name, and touches nobody else; many clients at once. */
#include <fcntl.h>
#include <grp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu_memory.h"
#include "proc.h"
#include "raw_ring.h"
#include "require.h"
#include "server.h"
#include "trial.h"

static void assert_limit(struct outcome outcome, uint32_t scope, const char *option)
{
    REQUIRE(outcome.code == STATUS_RESOURCE_EXHAUSTED, "%u: %s", outcome.code, outcome.message);
    REQUIRE(outcome.scope == scope);
    REQUIRE(strstr(outcome.message, option) != NULL, "\"%s\" does not name %s", outcome.message, option);
}

/* One call of a client on memory of its own is done and right. */
static void assert_served(struct raw *raw)
{
    struct trial trial;
    trial_make(&trial, &small_shape);
    struct ref buffer = raw_must_register(raw, trial.fd, trial.bytes);
    struct ref stream = raw_must_open_stream(raw);
    struct call call = trial_call(&trial, buffer, 1);
    raw_submit(raw, stream, &call, 1);
    REQUIRE(raw_wait(raw, 1).code == STATUS_OK && trial_right(&trial));
    REQUIRE(raw_unregister(raw, buffer).code == STATUS_OK);
    REQUIRE(raw_close_stream(raw, stream).code == STATUS_OK);
    trial_free(&trial);
}

static void assert_no_room(const char *socket, int tries)
{
    struct raw late;
    for (int i = 0; i < tries; i++) {
        raw_connect(&late, socket);
        if (i % 2 == 1) { /* what the daemon says is not lost when something unread is on its way to it */
            raw_send(&late, "unread", 6, NULL, 0);
        }
        assert_limit(raw_last_words(&late), SCOPE_SESSION, "max_clients");
        REQUIRE(!late.reset);
        raw_close(&late);
    }
}

/* Two more than the limit, for we are an operator: the daemon's own user. */
static void test_limits_clients(void **state)
{
    enum { CLIENTS = 6 };
    struct server server;
    struct raw raw[CLIENTS];
    (void)state;
    server_start(&server, "max_clients = 4\n");
    for (int i = 0; i < CLIENTS; i++) {
        raw_open(&raw[i], server.socket);
    }
    assert_no_room(server.socket, 20);
    assert_int_equal(raw_stats(&raw[0]).clients_refused, 20);
    assert_int_equal(raw_stats(&raw[0]).clients, CLIENTS);
    raw_close(&raw[5]);
    WAIT_UNTIL(raw_stats(&raw[0]).clients == CLIENTS - 1);
    raw_open(&raw[5], server.socket);
    for (int i = 0; i < CLIENTS; i++) {
        assert_served(&raw[i]);
        raw_close(&raw[i]);
    }
    server_stop(&server);
}

#define FOREIGN_UID 54321

/* Fills the service up as another user; then says so, and stays. */
static void run_foreign_clients(void *arg)
{
    const struct server *server = arg;
    struct raw raw[3];
    REQUIRE(setgroups(0, NULL) == 0 && setresgid(FOREIGN_UID, FOREIGN_UID, FOREIGN_UID) == 0);
    REQUIRE(setresuid(FOREIGN_UID, FOREIGN_UID, FOREIGN_UID) == 0);
    REQUIRE(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0); /* the change of user has cleared it */
    for (int i = 0; i < 3; i++) {
        raw_open(&raw[i], server->socket);
    }
    assert_no_room(server->socket, 4);
    child_ready();
    child_park();
}

static void test_limits_clients_leave_two_for_the_operator(void **state)
{
    struct server server;
    struct child child;
    struct raw raw[2];
    (void)state;
    if (geteuid() != 0) {
        print_message("becoming another user needs root\n");
        skip();
    }
    server_start(&server, "max_clients = 3\nsocket_mode = 0666\nallow_uids = 54321\n");
    child_start(&child, run_foreign_clients, &server);
    child_wait_ready(&child);
    raw_open(&raw[0], server.socket);
    raw_open(&raw[1], server.socket);
    assert_no_room(server.socket, 2);
    assert_int_equal(raw_stats(&raw[0]).clients, 5);
    assert_served(&raw[1]);
    child_kill(&child);
    raw_close(&raw[0]);
    raw_close(&raw[1]);
    server_stop(&server);
}

static void test_limits_streams_and_buffers(void **state)
{
    struct server server;
    struct raw raw;
    struct raw neighbour;
    struct ref ref;
    struct ref kept[3];
    (void)state;
    server_start(&server, "max_streams = 2\nmax_buffers = 3\n");
    raw_open(&raw, server.socket);
    raw_open(&neighbour, server.socket);
    int fd = memfd_make(4096, F_SEAL_SHRINK);
    for (int i = 0; i < 3; i++) {
        kept[i] = raw_must_register(&raw, fd, 4096);
    }
    assert_limit(raw_register(&raw, fd, 4096, &ref), SCOPE_CALL, "max_buffers");
    assert_int_equal(raw_unregister(&raw, kept[1]).code, STATUS_OK);
    raw_must_register(&raw, fd, 4096);
    assert_limit(raw_register(&raw, fd, 4096, &ref), SCOPE_CALL, "max_buffers");
    kept[0] = raw_must_open_stream(&raw);
    raw_must_open_stream(&raw);
    assert_limit(raw_open_stream(&raw, &ref), SCOPE_CALL, "max_streams");
    assert_int_equal(raw_close_stream(&raw, kept[0]).code, STATUS_OK);
    raw_must_open_stream(&raw);
    assert_served(&neighbour);
    WAIT_UNTIL(memfds_mapped(server.pid, 3));
    raw_close(&raw);
    WAIT_UNTIL(memfds_mapped(server.pid, 0));
    assert_served(&neighbour);
    raw_close(&neighbour);
    close(fd);
    server_stop(&server);
}

/* One call whose operands are three descriptors that come with it. */
static void submit_inline(struct raw *raw, struct ref stream, uint64_t id, int out, int first, int second)
{
    int fds[3] = {out, first, second};
    struct call call = row_call(id, (struct ref){0}, 100, 0, 4, 8, 4);
    for (uint32_t i = 0; i < 3; i++) {
        call.operand[i].is_inline = true;
        call.operand[i].fd = i;
        call.operand[i].size_bytes = 4096;
    }
    REQUIRE(raw_submit_fds(raw, stream, &call, 1, fds, 3) == 0);
}

static void test_limits_mapped_bytes(void **state)
{
    struct server server;
    struct raw raw;
    struct raw neighbour;
    struct ref ref;
    (void)state;
    server_start(&server, "max_mapped = 64KiB\n");
    raw_open(&raw, server.socket);
    raw_open(&neighbour, server.socket);
    int big = memfd_make(48 * 1024, F_SEAL_SHRINK);
    int small = memfd_make(16 * 1024 + 1, F_SEAL_SHRINK);
    int middle = memfd_make(24 * 1024, F_SEAL_SHRINK);
    struct ref buffer = raw_must_register(&raw, big, 4096); /* counts in full */
    assert_int_equal(raw_stats(&raw).mapped_bytes, 48 * 1024);
    assert_limit(raw_register(&raw, small, 1, &ref), SCOPE_CALL, "max_mapped");
    assert_int_equal(raw_unregister(&raw, buffer).code, STATUS_OK);
    WAIT_UNTIL(raw_stats(&raw).mapped_bytes == 0);
    struct ref stream = raw_must_open_stream(&raw);
    submit_inline(&raw, stream, 1, middle, middle, middle); /* at once, and each for itself would fit */
    assert_limit(raw_wait(&raw, 1), SCOPE_CALL, "max_mapped");
    WAIT_UNTIL(raw_stats(&raw).mapped_bytes == 0);
    raw_must_register(&raw, small, 1);
    raw_must_register(&neighbour, big, 48 * 1024);
    submit_inline(&raw, stream, 2, big, small, small);
    assert_limit(raw_wait(&raw, 2), SCOPE_CALL, "max_mapped");
    WAIT_UNTIL(raw_stats(&raw).mapped_bytes == 48 * 1024 + 16 * 1024 + 1);
    assert_served(&neighbour);
    raw_close(&raw);
    raw_close(&neighbour);
    close(big);
    close(small);
    close(middle);
    server_stop(&server);
}

/* Rings count as they are, however little of them is in use. */
static void test_limits_ring_memory(void **state)
{
    struct server server;
    struct raw raw;
    struct raw watcher;
    struct raw_rings rings;
    (void)state;
    server_start(&server, "max_mapped = 64KiB\nmax_streams = 2\nmax_stream_calls = 16\n");
    raw_open(&raw, server.socket);
    raw_open(&watcher, server.socket);
    int half = memfd_make(32 * 1024, F_SEAL_SHRINK);
    struct ref buffer = raw_must_register(&raw, half, 4096);
    assert_limit(raw_rings_open(&raw, &rings), SCOPE_CALL, "max_mapped");
    assert_int_equal(raw_stats(&raw).mapped_bytes, 32 * 1024);
    assert_int_equal(proc_maps(server.pid, "mlacat-ring"), 0);
    assert_int_equal(raw_unregister(&raw, buffer).code, STATUS_OK);
    WAIT_UNTIL(raw_stats(&raw).mapped_bytes == 0);
    struct outcome outcome = raw_rings_open(&raw, &rings);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    assert_int_equal(raw_stats(&watcher).mapped_bytes, rings.opened.client_bytes + rings.opened.daemon_bytes);
    assert_limit(raw_register(&raw, half, 4096, &buffer), SCOPE_CALL, "max_mapped");
    raw_rings_close(&rings);
    raw_close(&raw);
    WAIT_UNTIL(raw_stats(&watcher).mapped_bytes == 0);
    raw_close(&watcher);
    close(half);
    server_stop(&server);
}

#define IMPORT_BURST 256
#define IMPORTS_HELD 40 /* at one each second */

static int allocation;

/* Registers as much as it may at once, and then more. It is always the same memory: what is open already counts too. */
static void open_eager(struct raw *raw, const struct server *server)
{
    raw_open(raw, server->socket);
    allocation = memfd_make(4096, F_SEAL_SHRINK);
    for (int i = 0; i < IMPORT_BURST; i++) {
        raw_must_register(raw, allocation, 4096);
    }
    for (int i = 0; i < IMPORTS_HELD; i++) {
        raw_send_register(raw, allocation, 4096);
    }
}

static void close_eager(struct raw *raw)
{
    raw_close(raw);
    close(allocation);
}

static void test_limits_imports_of_one_client_wait_alone(void **state)
{
    struct server server;
    struct raw eager;
    struct raw neighbour;
    const uint64_t all = IMPORT_BURST + IMPORTS_HELD + 1;
    (void)state;
    server_start(&server, "import_rate = 1\n");
    open_eager(&eager, &server);
    raw_open(&neighbour, server.socket);
    raw_must_register(&neighbour, allocation, 4096);
    WAIT_UNTIL(raw_stats(&neighbour).buffers == all);
    assert_true(raw_stats(&neighbour).mapped_bytes < all * 4096);
    server_configure(&server, "import_rate = 0\n");
    REQUIRE(kill(server.pid, SIGHUP) == 0);
    WAIT_UNTIL(raw_stats(&neighbour).mapped_bytes == all * 4096);
    close_eager(&eager);
    WAIT_UNTIL(raw_stats(&neighbour).buffers == 1);
    raw_close(&neighbour);
    server_stop(&server);
}

/* Whoever goes is not held back: the test would wait longer than it may. */
static void test_limits_held_imports_go_with_their_client(void **state)
{
    struct server server;
    struct raw eager;
    struct raw neighbour;
    (void)state;
    server_start(&server, "import_rate = 1\n");
    open_eager(&eager, &server);
    raw_open(&neighbour, server.socket);
    WAIT_UNTIL(raw_stats(&neighbour).buffers == IMPORT_BURST + IMPORTS_HELD);
    close_eager(&eager);
    WAIT_UNTIL(raw_stats(&neighbour).buffers == 0);
    raw_close(&neighbour);
    server_stop(&server);
}

/* The daemon hears of no call's end while it reads a packet: the one call too many of a packet is refused. */
static void test_limits_calls_of_a_client(void **state)
{
    enum { CALLS = 100 };
    static struct call calls[CALLS + 1];
    struct server server;
    struct raw raw;
    (void)state;
    server_start(&server, "max_calls = 100\n");
    raw_open(&raw, server.socket);
    int fd = memfd_make(4096, F_SEAL_SHRINK);
    struct ref buffer = raw_must_register(&raw, fd, 4096);
    struct ref stream = raw_must_open_stream(&raw);
    for (uint64_t id = 0; id <= CALLS; id++) {
        calls[id] = row_call(id, buffer, 100, 0, 4, 8, 4);
    }
    raw_submit(&raw, stream, calls, CALLS + 1);
    assert_limit(raw_wait_aside(&raw, CALLS), SCOPE_CALL, "max_calls");
    for (uint64_t id = 0; id < CALLS; id++) {
        assert_int_equal(raw_wait_aside(&raw, id).code, STATUS_OK);
    }
    close(fd);
    raw_close(&raw);
    server_stop(&server);
}

/* Of two streams too. The second packet has far more calls than there is room for, also if some of the long ones have
 * ended when it comes. */
static void test_limits_calls_of_streams(void **state)
{
    enum { STREAM_CALLS = 100, MORE = 2 };
    static struct call calls[STREAM_CALLS + 1];
    struct server server;
    struct raw raw;
    struct raw neighbour;
    struct trial slow;
    (void)state;
    server_start(&server, "max_stream_calls = 100\nmax_calls = 102\n");
    raw_open(&raw, server.socket);
    raw_open(&neighbour, server.socket);
    slow_make(&slow);
    struct ref buffer = raw_must_register(&raw, slow.fd, slow.bytes);
    struct ref one = raw_must_open_stream(&raw);
    struct ref two = raw_must_open_stream(&raw);
    for (uint64_t id = 0; id <= STREAM_CALLS; id++) {
        calls[id] = trial_call(&slow, buffer, id);
    }
    raw_submit(&raw, one, calls, STREAM_CALLS + 1);
    assert_limit(raw_wait_aside(&raw, STREAM_CALLS), SCOPE_CALL, "max_stream_calls");
    for (uint64_t i = 0; i < STREAM_CALLS; i++) {
        calls[i] = row_call(1000 + i, buffer, 100, 0, 4, 8, 4);
    }
    raw_submit(&raw, two, calls, STREAM_CALLS);
    assert_limit(raw_wait_aside(&raw, 1000 + STREAM_CALLS - 1), SCOPE_CALL, "max_calls");
    for (uint64_t i = 0; i < MORE; i++) {
        assert_int_equal(raw_wait_aside(&raw, 1000 + i).code, STATUS_OK);
    }
    assert_served(&neighbour);
    raw_close(&raw); /* with those that have not begun */
    raw_close(&neighbour);
    trial_free(&slow);
    server_stop(&server);
}

/* ---------------------------------------------------------------------------------------------------- many clients */

#define CLIENT_CALLS 50
#define CLIENT_DEPTH 5

static void run_client(void *arg)
{
    const struct server *server = arg;
    struct trial trial[CLIENT_DEPTH];
    struct ref buffer[CLIENT_DEPTH];
    struct call calls[CLIENT_DEPTH];
    struct raw raw;
    raw_open(&raw, server->socket);
    struct ref stream = raw_must_open_stream(&raw);
    for (uint32_t i = 0; i < CLIENT_DEPTH; i++) {
        struct trial_shape shape = {1 + i % 2, 1 + i, 2 + i, 16, 128, 64, i % 2 == 0, (uint32_t)getpid() + i};
        trial_make(&trial[i], &shape);
        buffer[i] = raw_must_register(&raw, trial[i].fd, trial[i].bytes);
    }
    for (uint32_t done_nr = 0; done_nr < CLIENT_CALLS; done_nr += CLIENT_DEPTH) {
        for (uint32_t i = 0; i < CLIENT_DEPTH; i++) {
            trial_refill(&trial[i], (uint32_t)getpid() + done_nr + i);
            calls[i] = trial_call(&trial[i], buffer[i], done_nr + i);
        }
        raw_submit(&raw, stream, calls, CLIENT_DEPTH);
        for (uint32_t i = 0; i < CLIENT_DEPTH; i++) {
            struct outcome outcome = raw_wait(&raw, done_nr + i);
            REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
            REQUIRE(trial_right(&trial[i]));
        }
    }
    raw_close(&raw);
}

static void test_limits_many_clients_at_once(void **state)
{
    enum { CLIENTS = 32 };
    struct server *server = *state;
    struct child child[CLIENTS];
    struct raw watcher;
    raw_open(&watcher, server->socket);
    uint32_t fds_nr = proc_fds(server->pid);
    for (int i = 0; i < CLIENTS; i++) {
        child_start(&child[i], run_client, server);
    }
    for (int i = 0; i < CLIENTS; i++) {
        child_join(&child[i]);
    }
    WAIT_UNTIL(raw_stats(&watcher).clients == 1);
    WAIT_UNTIL(raw_stats(&watcher).mapped_bytes == 0);
    struct counts counts = raw_stats(&watcher);
    assert_int_equal(counts.outcomes[STATUS_OK], CLIENTS * CLIENT_CALLS);
    assert_int_equal(counts.calls_in_flight, 0);
    assert_int_equal(counts.sessions_broken, 0);
    WAIT_UNTIL(descriptors_open(server->pid, fds_nr));
    WAIT_UNTIL(memfds_mapped(server->pid, 0));
    raw_close(&watcher);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limits_clients),
        cmocka_unit_test(test_limits_clients_leave_two_for_the_operator),
        cmocka_unit_test(test_limits_streams_and_buffers),
        WITH_SERVER(test_limits_many_clients_at_once),
    };
    const struct CMUnitTest packet_tests[] = {
        cmocka_unit_test(test_limits_calls_of_a_client),
        cmocka_unit_test(test_limits_calls_of_streams),
    };
    const struct CMUnitTest memfd_tests[] = {
        cmocka_unit_test(test_limits_mapped_bytes),
        cmocka_unit_test(test_limits_ring_memory),
    };
    const struct CMUnitTest gpu_tests[] = {
        cmocka_unit_test(test_limits_imports_of_one_client_wait_alone),
        cmocka_unit_test(test_limits_held_imports_go_with_their_client),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (raw_by_ring()) {
        return failed;
    }
    failed += cmocka_run_group_tests(packet_tests, NULL, NULL);
    return failed + (gpu_memory_used() ? cmocka_run_group_tests(gpu_tests, NULL, NULL)
                                       : cmocka_run_group_tests(memfd_tests, NULL, NULL));
}
