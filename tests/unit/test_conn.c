/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "conn_client.h"

static void act_close(struct client *c)
{
    conn_close(&c->conn);
}

static void act_pause(struct client *c)
{
    conn_pause(&c->conn, true);
}

static void act_say_why(struct client *c)
{
    conn_send(&c->conn, (const uint8_t *)"why", 3, NULL, 0);
    conn_close(&c->conn);
}

static void test_conn_delivers_packets_of_every_size(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 100, CONN_PACKET_BYTES};
    for (uint32_t i = 0; i < 3; i++) {
        peer_send(client.peer, (uint8_t)(7 + i), sizes[i], 0);
        client_turn();
        assert_int_equal(client.packets, i + 1);
        assert_int_equal(client.last_size, sizes[i]);
        assert_int_equal(client.last_byte, 7 + i);
        assert_int_equal(client.last_fds, 0);
    }
    assert_int_equal(client.ends, 0);
}

static void test_conn_closes_descriptors_that_nobody_took(void **state)
{
    (void)state;
    int before = client_count_fds();
    client.taken_fd = CLIENT_KEEP_FD;
    peer_send(client.peer, 1, 1, CONN_PACKET_FDS);
    client_turn();
    assert_int_equal(client.packets, 1);
    assert_int_equal(client.last_fds, CONN_PACKET_FDS);
    assert_int_equal(client_count_fds(), before + 1);
    assert_int_equal(fcntl(client.taken_fd, F_GETFD), FD_CLOEXEC);
    close(client.taken_fd);
}

static void test_conn_takes_descriptors_after_a_packet_without(void **state)
{
    (void)state;
    peer_send(client.peer, 1, 1, 0);
    client_turn();
    peer_send(client.peer, 2, 1, CONN_PACKET_FDS);
    client_turn();
    assert_int_equal(client.packets, 2);
    assert_int_equal(client.last_fds, CONN_PACKET_FDS);
}

static void test_conn_ends_on_too_many_descriptors(void **state)
{
    (void)state;
    peer_send(client.peer, 1, 1, CONN_PACKET_FDS + 1);
    client_turn();
    assert_int_equal(client.packets, 0);
    client_assert_ended(MLACAT_INVALID_ARGUMENT, "more than 64 descriptors");
}

static void test_conn_ends_when_it_has_no_descriptor_left(void **state)
{
    (void)state;
    struct rlimit kept;
    struct rlimit low;
    int lowest_free = dup(STDERR_FILENO);
    close(lowest_free);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &kept), 0);
    low = kept;
    low.rlim_cur = (rlim_t)lowest_free + 2;
    peer_send(client.peer, 1, 1, 10);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    client_turn();
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &kept), 0);
    assert_int_equal(client.packets, 0);
    client_assert_ended(MLACAT_RESOURCE_EXHAUSTED, "only 2 of a packet's descriptors");
}

static void test_conn_ends_on_a_packet_too_large(void **state)
{
    (void)state;
    peer_send(client.peer, 1, CONN_PACKET_BYTES + 1, 3);
    client_turn();
    assert_int_equal(client.packets, 0);
    client_assert_ended(MLACAT_INVALID_ARGUMENT, "65537 bytes");
}

static void test_conn_ends_on_an_empty_packet(void **state)
{
    (void)state;
    peer_send(client.peer, 1, 0, 3);
    client_turn();
    assert_int_equal(client.packets, 0);
    client_assert_ended(MLACAT_OK, "");
}

static void test_conn_ends_when_the_peer_closes(void **state)
{
    (void)state;
    peer_send(client.peer, 9, 5, 0);
    close(client.peer);
    client.peer = -1;
    client_turn();
    assert_int_equal(client.packets, 1); /* what it sent before counts */
    client_assert_ended(MLACAT_OK, "");
}

static void test_conn_ends_when_the_peer_closes_with_packets_unread(void **state)
{
    (void)state;
    conn_send(&client.conn, (const uint8_t *)"x", 1, NULL, 0);
    close(client.peer); /* gives ECONNRESET */
    client.peer = -1;
    client_turn();
    client_assert_ended(MLACAT_OK, "");
}

static void test_conn_ends_on_an_error_of_the_socket(void **state)
{
    (void)state;
    peer_send(client.peer, 1, 1, 0);
    client_recv_error = EIO;
    client_turn();
    client_assert_ended(MLACAT_INTERNAL, strerror(EIO));
}

static void test_conn_goes_on_when_there_was_nothing_to_read(void **state)
{
    (void)state;
    peer_send(client.peer, 1, 1, 0);
    client_recv_error = EAGAIN;
    client_turn();
    assert_int_equal(client.ends, 0);
    client_turn();
    assert_int_equal(client.packets, 1);
}

static void test_conn_reads_one_batch_a_turn(void **state)
{
    (void)state;
    struct client other;
    client_open(&other);
    for (uint8_t i = 0; i < CONN_BATCH_PACKETS + 4; i++) {
        peer_send(client.peer, i, 1, 0);
        peer_send(other.peer, i, 1, 0);
    }
    client_turn();
    assert_int_equal(client.packets, CONN_BATCH_PACKETS);
    assert_int_equal(client.last_byte, CONN_BATCH_PACKETS - 1);
    assert_int_equal(other.packets, CONN_BATCH_PACKETS);
    assert_int_equal(client_recv_calls, 2);
    client_turn();
    assert_int_equal(client.packets, CONN_BATCH_PACKETS + 4);
    assert_int_equal(other.packets, CONN_BATCH_PACKETS + 4);
    assert_int_equal(client_recv_calls, 4);
    client_settle(); /* a short batch means that the socket is empty: not asked again */
    assert_int_equal(client_recv_calls, 4);
    client_close(&other);
}

static void test_conn_close_in_mid_batch_drops_the_rest(void **state)
{
    (void)state;
    for (uint8_t i = 0; i < CONN_BATCH_PACKETS + 4; i++) {
        peer_send(client.peer, i, 1, 3);
    }
    client.act_at = 2;
    client.act = act_close;
    client_settle();
    assert_int_equal(client.packets, 2);
    assert_int_equal(client.ends, 0);
    assert_int_equal(client.closed, 1);
}

static void test_conn_pause_holds_from_the_next_batch_on(void **state)
{
    (void)state;
    for (uint8_t i = 0; i < CONN_BATCH_PACKETS + 4; i++) {
        peer_send(client.peer, i, 1, 1);
    }
    client.act_at = 2;
    client.act = act_pause;
    client_settle();
    assert_int_equal(client.packets, CONN_BATCH_PACKETS);
    conn_pause(&client.conn, false);
    client_settle();
    assert_int_equal(client.packets, CONN_BATCH_PACKETS + 4);
    assert_int_equal(client.last_byte, CONN_BATCH_PACKETS + 3);
}

static void test_conn_tells_the_end_of_a_paused_peer(void **state)
{
    (void)state;
    conn_pause(&client.conn, true);
    client_settle();
    assert_int_equal(client.ends, 0);
    close(client.peer);
    client.peer = -1;
    client_turn();
    client_assert_ended(MLACAT_OK, "");
}

static void test_conn_drops_what_follows_a_bad_packet(void **state)
{
    (void)state;
    peer_send(client.peer, 1, 1, 0);
    peer_send(client.peer, 2, CONN_PACKET_BYTES + 1, 0);
    peer_send(client.peer, 3, 1, 3);
    client_turn();
    assert_int_equal(client.packets, 1);
    client_assert_ended(MLACAT_INVALID_ARGUMENT, "65537");
}

static void test_conn_last_words_reach_the_peer(void **state)
{
    (void)state;
    uint32_t fds_nr;
    client.act_on_end = act_say_why;
    peer_send(client.peer, 1, 1, CONN_PACKET_FDS + 1);
    for (uint8_t i = 0; i < CONN_BATCH_PACKETS + 4; i++) {
        peer_send(client.peer, i, 1, 1); /* unread at the close: would turn the last words into ECONNRESET */
    }
    client_turn();
    assert_int_equal(client.ends, 1);
    assert_int_equal(peer_receive(client.peer, &fds_nr), 3);
    assert_memory_equal(client_bytes, "why", 3);
    assert_int_equal(peer_receive(client.peer, &fds_nr), 0);
    client_turn();
    assert_int_equal(client.closed, 1);
}

static void test_conn_open_takes_the_descriptor_of_a_failure(void **state)
{
    (void)state;
    struct conn conn;
    struct error err;
    int before = client_count_fds();
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC); /* a file cannot be polled */
    assert_int_equal(conn_open(&conn, &client_loop, client_reader, fd, 0, &client_handlers, NULL, &err),
                     MLACAT_INTERNAL);
    assert_non_null(strstr(err.message, "cannot be polled"));
    assert_int_equal(client_count_fds(), before);
}

#define CONN_TEST(name) cmocka_unit_test_setup_teardown(name, client_set_up, client_tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CONN_TEST(test_conn_delivers_packets_of_every_size),
        CONN_TEST(test_conn_closes_descriptors_that_nobody_took),
        CONN_TEST(test_conn_takes_descriptors_after_a_packet_without),
        CONN_TEST(test_conn_ends_on_too_many_descriptors),
        CONN_TEST(test_conn_ends_when_it_has_no_descriptor_left),
        CONN_TEST(test_conn_ends_on_a_packet_too_large),
        CONN_TEST(test_conn_ends_on_an_empty_packet),
        CONN_TEST(test_conn_ends_when_the_peer_closes),
        CONN_TEST(test_conn_ends_when_the_peer_closes_with_packets_unread),
        CONN_TEST(test_conn_ends_on_an_error_of_the_socket),
        CONN_TEST(test_conn_goes_on_when_there_was_nothing_to_read),
        CONN_TEST(test_conn_reads_one_batch_a_turn),
        CONN_TEST(test_conn_close_in_mid_batch_drops_the_rest),
        CONN_TEST(test_conn_pause_holds_from_the_next_batch_on),
        CONN_TEST(test_conn_tells_the_end_of_a_paused_peer),
        CONN_TEST(test_conn_drops_what_follows_a_bad_packet),
        CONN_TEST(test_conn_last_words_reach_the_peer),
        CONN_TEST(test_conn_open_takes_the_descriptor_of_a_failure),
    };
    return cmocka_run_group_tests(tests, client_group_set_up, NULL);
}
