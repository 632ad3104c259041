/* SPDX-License-Identifier: Apache-2.0 */
/* Peers that do not keep to the protocol: each loses its own connection, is told why, and nobody else notices. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "proc.h"
#include "require.h"
#include "server.h"
#include "trial.h"

/* A client that watches the daemon, and what there must be again when all others are gone. */
struct watch {
    struct server *server;
    struct raw raw;
    uint32_t fds_nr;
};

static void watch_begin(struct watch *watch, struct server *server)
{
    watch->server = server;
    raw_open(&watch->raw, server->socket);
    raw_stats(&watch->raw);
    watch->fds_nr = proc_fds(server->pid);
}

/* The daemon lives, and has nothing of the others any more. */
static void watch_end(struct watch *watch, uint64_t broken_nr)
{
    WAIT_UNTIL(proc_fds(watch->server->pid) == watch->fds_nr);
    struct counts counts = raw_stats(&watch->raw);
    assert_int_equal(counts.clients, 1);
    assert_int_equal(counts.sessions_broken, broken_nr);
    raw_close(&watch->raw);
}

static void assert_broken(struct raw *raw, uint32_t code, const char *word)
{
    struct outcome outcome = raw_last_words(raw);
    REQUIRE(outcome.code == code, "%u instead of %u: %s", outcome.code, code, outcome.message);
    REQUIRE(outcome.scope == SCOPE_SESSION);
    REQUIRE(strstr(outcome.message, word) != NULL, "\"%s\" does not say \"%s\"", outcome.message, word);
    REQUIRE(!raw->reset, "the last words came after a reset");
    raw_close(raw);
}

/* ---------------------------------------------------------------------------------------------------------- greeting
 */

static void test_protocol_version_and_features(void **state)
{
    struct watch watch;
    struct raw raw;
    watch_begin(&watch, *state);
    const char *path = watch.server->socket;
    raw_connect(&raw, path);
    struct outcome outcome = raw_hello(&raw, 2, 0, "future");
    assert_int_equal(outcome.code, STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(outcome.message, "2"));
    assert_non_null(strstr(outcome.message, "1"));
    assert_broken(&raw, STATUS_FAILED_PRECONDITION, "version");
    raw_connect(&raw, path);
    assert_int_equal(raw_hello(&raw, 1, UINT64_C(1) << 40, "greedy").code, STATUS_FAILED_PRECONDITION);
    assert_broken(&raw, STATUS_FAILED_PRECONDITION, "0x10000000000");
    raw_connect(&raw, path);
    assert_int_equal(raw_hello(&raw, 1, MLACAT__V1__FEATURE__FEATURE_INLINE_MEMORY, "modest").code, STATUS_OK);
    assert_int_equal(raw.server_pid, watch.server->pid);
    assert_true(raw.pidfd >= 0);
    raw_close(&raw);
    watch_end(&watch, 2);
}

static void test_protocol_second_hello(void **state)
{
    struct watch watch;
    struct raw raw;
    watch_begin(&watch, *state);
    raw_open(&raw, watch.server->socket);
    Mlacat__V1__Hello hello = MLACAT__V1__HELLO__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    hello.protocol_version = 1;
    envelope.request_id = 9;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_HELLO;
    envelope.hello = &hello;
    raw_send_envelope(&raw, &envelope, NULL, 0);
    assert_broken(&raw, STATUS_FAILED_PRECONDITION, "Hello");
    watch_end(&watch, 1);
}

/* Packs an envelope whose body is the field `number`, empty. */
static size_t pack_empty_body(uint8_t packet[16], uint32_t number, uint64_t request_id)
{
    size_t size = 0;
    if (request_id != 0) {
        packet[size++] = 0x08;
        packet[size++] = (uint8_t)request_id;
    }
    uint32_t key = number << 3 | 2;
    packet[size++] = (uint8_t)(key < 128 ? key : (key & 127) | 128);
    if (key >= 128) {
        packet[size++] = (uint8_t)(key >> 7);
    }
    packet[size++] = 0;
    return size;
}

static void test_protocol_nothing_before_hello(void **state)
{
    struct watch watch;
    struct raw raw;
    uint8_t packet[16];
    uint64_t broken_nr = 0;
    watch_begin(&watch, *state);
    for (uint32_t body = MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER; body <= MLACAT__V1__ENVELOPE__BODY_SET_LOG_LEVEL;
         body++) {
        if (body == MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER) {
            continue; /* an empty one is refused as such, first */
        }
        raw_connect(&raw, watch.server->socket);
        raw_send(&raw, packet, pack_empty_body(packet, body, 1), NULL, 0);
        assert_broken(&raw, STATUS_UNAUTHENTICATED, "Hello");
        broken_nr++;
    }
    watch_end(&watch, broken_nr);
}

static void test_protocol_bad_peers_do_not_fill_the_log(void **state)
{
    enum { PEERS = 1000, LOG_BYTES_MAX = 32 << 10, LOG_MS = 5000 }; /* so much in so long */
    struct watch watch;
    struct raw raw;
    struct stat log;
    uint8_t packet[16];
    size_t size = pack_empty_body(packet, MLACAT__V1__ENVELOPE__BODY_STATS_REQUEST, 1);
    watch_begin(&watch, *state);
    uint64_t start_ms = now_ms();
    for (int i = 0; i < PEERS; i++) {
        raw_connect(&raw, watch.server->socket);
        raw_send(&raw, packet, size, NULL, 0);
        assert_broken(&raw, STATUS_UNAUTHENTICATED, "Hello");
    }
    watch_end(&watch, PEERS);
    assert_int_equal(stat(watch.server->log, &log), 0);
    assert_in_range(log.st_size, 1, LOG_BYTES_MAX * (1 + (now_ms() - start_ms) / LOG_MS));
}

static void test_protocol_hello_timeout(void **state)
{
    struct server *server = *state;
    struct raw silent;
    struct raw watcher;
    raw_open(&watcher, server->socket); /* while there is time for it */
    server_configure(server, "hello_timeout_ms = 30\n");
    assert_int_equal(kill(server->pid, SIGHUP), 0);
    WAIT_UNTIL(server_log_has(server, "event=config_changed option=hello_timeout_ms"));
    assert_true(raw_ready(&watcher, NULL)); /* so the change is in force */
    raw_connect(&silent, server->socket);
    assert_broken(&silent, STATUS_UNAUTHENTICATED, "30 ms");
    assert_int_equal(raw_stats(&watcher).sessions_broken, 1); /* the watcher said Hello and may be silent for long */
    raw_close(&watcher);
}

/* --------------------------------------------------------------------------------------------------------- packets */

static void test_protocol_malformed_packets(void **state)
{
    static const struct {
        const char *bytes;
        size_t size;
    } packets[] = {
        {"\xff", 1},                 /* a key without end */
        {"\x12\x7f", 2},             /* a Hello of 127 bytes that are not there */
        {"\x08\x01", 2},             /* a request id and no body */
        {"\x08\x01\x9a\x06\x00", 5}, /* body 99 */
        {"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12},
        {"GET / HTTP/1.1\r\n\r\n", 18},
        {"\x08\x01\x3a\x02\x12\xff", 6}, /* a Submit whose call has no length */
        {"\x4a\x00", 2},                 /* StatsRequest without a request id */
        {"\x08\x00\x4a\x00", 4},
    };
    struct watch watch;
    struct raw raw;
    watch_begin(&watch, *state);
    for (size_t i = 0; i < sizeof(packets) / sizeof(packets[0]); i++) {
        raw_open(&raw, watch.server->socket);
        raw_send(&raw, packets[i].bytes, packets[i].size, NULL, 0);
        assert_broken(&raw, STATUS_INVALID_ARGUMENT, "");
    }
    watch_end(&watch, sizeof(packets) / sizeof(packets[0]));
}

static void test_protocol_messages_of_the_daemon(void **state)
{
    struct watch watch;
    struct raw raw;
    uint8_t packet[16];
    uint64_t broken_nr = 0;
    watch_begin(&watch, *state);
    const uint32_t last = MLACAT__V1__ENVELOPE__BODY_EVENT_REGISTERED;
    for (uint32_t body = MLACAT__V1__ENVELOPE__BODY_WELCOME; body <= last; body++) {
        raw_open(&raw, watch.server->socket);
        raw_send(&raw, packet, pack_empty_body(packet, body, 1), NULL, 0);
        assert_broken(&raw, STATUS_INVALID_ARGUMENT, "only the service sends");
        broken_nr++;
    }
    watch_end(&watch, broken_nr);
}

static void test_protocol_oversized_packets(void **state)
{
    static const size_t sizes[] = {RAW_PACKET_BYTES + 1, 100000, 190000};
    struct watch watch;
    struct raw raw;
    uint8_t *bytes = calloc(1, 200000);
    assert_non_null(bytes);
    watch_begin(&watch, *state);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        raw_open(&raw, watch.server->socket);
        assert_int_equal(raw_send(&raw, bytes, sizes[i], NULL, 0), 0);
        assert_broken(&raw, STATUS_INVALID_ARGUMENT, "65536");
    }
    raw_open(&raw, watch.server->socket);
    assert_int_equal(raw_send(&raw, bytes, RAW_PACKET_BYTES, NULL, 0), 0);
    assert_broken(&raw, STATUS_INVALID_ARGUMENT, "no Envelope"); /* its size was in order */
    free(bytes);
    watch_end(&watch, sizeof(sizes) / sizeof(sizes[0]) + 1);
}

static void test_protocol_empty_packet_ends_the_connection(void **state)
{
    struct watch watch;
    struct raw raw;
    watch_begin(&watch, *state);
    raw_open(&raw, watch.server->socket);
    assert_int_equal(raw_send(&raw, "", 0, NULL, 0), 0);
    raw_expect_end(&raw); /* looks like the end of the stream: no words */
    raw_close(&raw);
    watch_end(&watch, 0);
}

static size_t pack_valid_submit(uint8_t packet[RAW_PACKET_BYTES])
{
    struct call calls[3];
    for (uint64_t i = 0; i < 3; i++) {
        calls[i] = row_call(i, (struct ref){0, 1}, 64, 0, 8, 16, 8);
    }
    return raw_pack_submit(packet, (struct ref){0, 1}, calls, 3);
}

static void test_protocol_truncated_packets(void **state)
{
    struct watch watch;
    struct raw raw;
    uint8_t packet[RAW_PACKET_BYTES];
    size_t size = pack_valid_submit(packet);
    watch_begin(&watch, *state);
    for (size_t i = 1; i < size; i++) {
        raw_open(&raw, watch.server->socket);
        raw_send(&raw, packet, i, NULL, 0);
        assert_broken(&raw, STATUS_INVALID_ARGUMENT, "no Envelope");
    }
    watch_end(&watch, size - 1);
}

/* ----------------------------------------------------------------------------------------------------- random packets
 */

static uint32_t next_random(uint64_t *random)
{
    *random = *random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*random >> 33);
}

/* True if the connection goes on after what was sent, which may have been answered or not. */
static bool goes_on(struct raw *raw)
{
    Mlacat__V1__HealthRequest health = MLACAT__V1__HEALTH_REQUEST__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__Envelope *reply;
    envelope.request_id = UINT64_MAX;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_HEALTH_REQUEST;
    envelope.health_request = &health;
    raw_send_envelope(raw, &envelope, NULL, 0);
    while ((reply = raw_receive(raw)) != NULL) {
        bool healthy = reply->body_case == MLACAT__V1__ENVELOPE__BODY_HEALTH;
        raw_free(reply);
        if (healthy) {
            return true;
        }
    }
    return false;
}

static void open_with_objects(struct raw *raw, const char *path, int fd)
{
    raw_open(raw, path);
    raw_must_register(raw, fd, 4096);
    raw_must_open_stream(raw);
}

static void test_protocol_random_packets(void **state)
{
    uint64_t packets_nr = env_number("MLACAT_FUZZ_PACKETS", 4000);
    uint64_t random = env_number("MLACAT_FUZZ_SEED", 1);
    struct watch watch;
    struct raw raw;
    uint8_t valid[RAW_PACKET_BYTES];
    uint8_t packet[RAW_PACKET_BYTES];
    size_t valid_size = pack_valid_submit(valid);
    int fd = memfd_make(4096, F_SEAL_SHRINK);
    print_message("seed %lu\n", (unsigned long)random);
    watch_begin(&watch, *state);
    open_with_objects(&raw, watch.server->socket, fd);
    for (uint64_t i = 0; i < packets_nr; i++) {
        size_t size = valid_size;
        if (i % 4 == 0) { /* bytes out of nothing */
            size = 1 + next_random(&random) % 300;
            for (size_t k = 0; k < size; k++) {
                packet[k] = (uint8_t)next_random(&random);
            }
        } else { /* a Submit with a few bytes changed */
            memcpy(packet, valid, size);
            for (uint32_t k = next_random(&random) % 4; k < 4; k++) {
                packet[next_random(&random) % size] = (uint8_t)next_random(&random);
            }
        }
        raw_send(&raw, packet, size, NULL, 0);
        if (!goes_on(&raw)) {
            raw_close(&raw);
            open_with_objects(&raw, watch.server->socket, fd);
        }
    }
    raw_close(&raw);
    WAIT_UNTIL(raw_stats(&watch.raw).clients == 1);
    assert_true(raw_stats(&watch.raw).sessions_broken > packets_nr / 8);
    watch_end(&watch, raw_stats(&watch.raw).sessions_broken);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_protocol_version_and_features),
        WITH_SERVER(test_protocol_second_hello),
        WITH_SERVER(test_protocol_nothing_before_hello),
        WITH_SERVER(test_protocol_hello_timeout),
        WITH_SERVER(test_protocol_malformed_packets),
        WITH_SERVER(test_protocol_messages_of_the_daemon),
        WITH_SERVER(test_protocol_oversized_packets),
        WITH_SERVER(test_protocol_empty_packet_ends_the_connection),
        WITH_SERVER(test_protocol_truncated_packets),
        WITH_SERVER(test_protocol_random_packets),
        WITH_SERVER(test_protocol_bad_peers_do_not_fill_the_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
