/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "conn_client.h"

static void test_conn_send_passes_bytes_and_descriptors(void **state)
{
    (void)state;
    uint32_t fds_nr;
    int fds[CONN_PACKET_FDS];
    for (uint32_t i = 0; i < CONN_PACKET_FDS; i++) {
        fds[i] = STDERR_FILENO;
    }
    memset(client_bytes, 0x5a, sizeof(client_bytes));
    conn_send(&client.conn, client_bytes, CONN_PACKET_BYTES, fds, CONN_PACKET_FDS);
    memset(client_bytes, 0, sizeof(client_bytes));
    assert_int_equal(peer_receive(client.peer, &fds_nr), CONN_PACKET_BYTES);
    assert_int_equal(fds_nr, CONN_PACKET_FDS);
    assert_int_equal(client_bytes[CONN_PACKET_BYTES - 1], 0x5a);
    assert_int_equal(fcntl(STDERR_FILENO, F_GETFD) < 0, 0); /* the caller's stays open */
}

static void test_conn_send_keeps_packets_for_a_slow_reader(void **state)
{
    (void)state;
    uint32_t fds_nr;
    uint32_t sent = client_fill_socket(&client);
    int fd = dup(STDERR_FILENO);
    client_bytes[0] = (uint8_t)sent;
    conn_send(&client.conn, client_bytes, 10, &fd, 1);
    close(fd);
    assert_false(conn_can_send(&client.conn));
    peer_send(client.peer, 1, 1, 0);
    client_settle();
    assert_int_equal(client.packets, 0); /* nothing is read from a client that does not read */
    assert_int_equal(client.writables, 0);
    for (uint32_t i = 0; i <= sent; i++) {
        assert_true(peer_receive(client.peer, &fds_nr) > 0);
        assert_int_equal(client_bytes[0], (uint8_t)i);
        client_turn();
    }
    assert_int_equal(fds_nr, 1);
    client_settle();
    assert_true(conn_can_send(&client.conn));
    assert_int_equal(client.writables, 1);
    assert_int_equal(client.packets, 1);
    assert_int_equal(client.ends, 0);
}

static void test_conn_send_never_overtakes_what_waits(void **state)
{
    (void)state;
    uint32_t fds_nr;
    uint32_t sent = client_fill_socket(&client);
    for (uint32_t i = 0; i + 1 < sent; i++) { /* all that the socket had: now it has room, and one packet waits */
        assert_int_equal(peer_receive(client.peer, &fds_nr), 32768);
    }
    conn_send(&client.conn, (const uint8_t *)"later", 5, NULL, 0);
    client_settle();
    assert_int_equal(peer_receive(client.peer, &fds_nr), 32768);
    assert_int_equal(client_bytes[0], (uint8_t)(sent - 1));
    assert_int_equal(peer_receive(client.peer, &fds_nr), 5);
}

static void test_conn_send_bounds_the_queue(void **state)
{
    (void)state;
    int fd = STDERR_FILENO;
    int before = client_count_fds();
    client_fill_socket(&client); /* the last one waits */
    for (uint32_t i = 1; i < CONN_QUEUE_PACKETS; i++) {
        conn_send(&client.conn, client_bytes, 1, &fd, i < 10 ? 1 : 0);
    }
    assert_int_equal(client.conn.queue_nr, CONN_QUEUE_PACKETS);
    assert_int_equal(client_count_fds(), before + 9);
    client_settle();
    assert_int_equal(client.ends, 0);
    conn_send(&client.conn, client_bytes, 1, NULL, 0);
    assert_int_equal(client.ends, 0);             /* never from within */
    assert_int_equal(client_count_fds(), before); /* what waited is gone at once */
    conn_send(&client.conn, client_bytes, 1, NULL, 0);
    client_turn();
    client_assert_ended(MLACAT_RESOURCE_EXHAUSTED, "256 packets wait");
}

static void test_conn_try_send_keeps_nothing(void **state)
{
    (void)state;
    uint32_t fds_nr;
    uint32_t sent = 0;
    uint32_t received = 0;
    while (conn_try_send(&client.conn, client_bytes, 32768)) {
        sent++;
    }
    assert_int_equal(client.conn.queue_nr, 0);
    assert_false(conn_can_send(&client.conn));
    assert_false(conn_try_send(&client.conn, client_bytes, 1));
    peer_send(client.peer, 1, 1, 0);
    client_settle();
    assert_int_equal(client.packets, 1); /* reading goes on: completions wait in bounded calls */
    assert_int_equal(client.writables, 0);
    while (peer_receive(client.peer, &fds_nr) > 0) {
        received++;
    }
    assert_int_equal(received, sent);
    client_settle();
    assert_int_equal(client.writables, 1);
    assert_true(conn_try_send(&client.conn, client_bytes, 1));
    client_settle();
    assert_int_equal(client.writables, 1);
}

static void test_conn_send_to_a_dead_peer_ends_from_the_loop(void **state)
{
    (void)state;
    close(client.peer);
    client.peer = -1;
    conn_send(&client.conn, client_bytes, 1, NULL, 0);
    assert_int_equal(client.ends, 0);
    conn_send(&client.conn, client_bytes, 1, NULL, 0);
    assert_true(conn_try_send(&client.conn, client_bytes, 1));
    client_turn();
    client_assert_ended(MLACAT_OK, "");
    conn_send(&client.conn, client_bytes, 1, NULL, 0);
    assert_true(conn_try_send(&client.conn, client_bytes, 1));
    client_assert_ended(MLACAT_OK, "");
}

static void test_conn_send_errors_end_the_connection(void **state)
{
    (void)state;
    client_send_error = EMSGSIZE;
    conn_send(&client.conn, client_bytes, 123, NULL, 0);
    assert_int_equal(client.ends, 0);
    client_settle();
    client_assert_ended(MLACAT_INTERNAL, "123 bytes with 0 descriptors");
}

static void test_conn_try_send_errors_end_the_connection(void **state)
{
    (void)state;
    client_send_error = ENOBUFS;
    assert_true(conn_try_send(&client.conn, client_bytes, 1));
    assert_int_equal(client.ends, 0);
    client_settle();
    client_assert_ended(MLACAT_RESOURCE_EXHAUSTED, "short of memory");
}

static void test_conn_queue_errors_end_the_connection(void **state)
{
    (void)state;
    uint32_t fds_nr;
    client_fill_socket(&client);
    client_send_error = ENOMEM;
    while (peer_receive(client.peer, &fds_nr) > 0) {
    }
    client_settle();
    assert_int_equal(client.writables, 0);
    client_assert_ended(MLACAT_RESOURCE_EXHAUSTED, "short of memory");
}

static void test_conn_close_wins_over_a_due_end(void **state)
{
    (void)state;
    client_send_error = EPIPE;
    conn_send(&client.conn, client_bytes, 1, NULL, 0);
    conn_close(&client.conn);
    client_settle();
    assert_int_equal(client.ends, 0);
    assert_int_equal(client.closed, 1);
}

static void test_conn_close_drops_what_waits(void **state)
{
    (void)state;
    int fd = STDERR_FILENO;
    client_fill_socket(&client);
    conn_send(&client.conn, client_bytes, 1, &fd, 1);
}

static void test_conn_changes_the_poll_mask_only_when_it_must(void **state)
{
    (void)state;
    uint32_t fds_nr;
    for (int i = 0; i < 100; i++) {
        peer_send(client.peer, 1, 1, 0);
        client_turn();
        conn_send(&client.conn, client_bytes, 1, NULL, 0);
        assert_true(conn_try_send(&client.conn, client_bytes, 1));
        assert_int_equal(peer_receive(client.peer, &fds_nr), 1);
        assert_int_equal(peer_receive(client.peer, &fds_nr), 1);
        conn_pause(&client.conn, false);
    }
    assert_int_equal(client.packets, 100);
    assert_int_equal(client_mask_changes, 1);
}

#define CONN_TEST(name) cmocka_unit_test_setup_teardown(name, client_set_up, client_tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CONN_TEST(test_conn_send_passes_bytes_and_descriptors),
        CONN_TEST(test_conn_send_keeps_packets_for_a_slow_reader),
        CONN_TEST(test_conn_send_never_overtakes_what_waits),
        CONN_TEST(test_conn_send_bounds_the_queue),
        CONN_TEST(test_conn_try_send_keeps_nothing),
        CONN_TEST(test_conn_send_to_a_dead_peer_ends_from_the_loop),
        CONN_TEST(test_conn_send_errors_end_the_connection),
        CONN_TEST(test_conn_try_send_errors_end_the_connection),
        CONN_TEST(test_conn_queue_errors_end_the_connection),
        CONN_TEST(test_conn_close_wins_over_a_due_end),
        CONN_TEST(test_conn_close_drops_what_waits),
        CONN_TEST(test_conn_changes_the_poll_mask_only_when_it_must),
    };
    return cmocka_run_group_tests(tests, client_group_set_up, NULL);
}
