/* SPDX-License-Identifier: Apache-2.0 */
/* mlacatctl as a program: exit status, what it prints, how long it waits. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "ctl_program.h"
#include "proc.h"
#include "require.h"
#include "server.h"
#include "test_ctl_proxy.h"
#include "trial.h"

/* The promise is 20 ms; a busy machine gets room, more than one try, and what its programs take to start anyway. */
#define PING_MS 200
#define PING_TRIES 50
#define PING_STARTS 10
/* That the daemon answers matters, not how soon: on a busy machine ping's own limit, a second, is little. */
#define PING "ping --timeout 20000"
#define FULL_LOOKS 50
/* Guard bytes in front of the output of `run`. */
#define GUARD_BYTES 256

/* ----------------------------------------------------------------------------------------------------- exit status */

static void test_ctl_wrong_usage_is_64(void **state)
{
    static const char *const wrong[] = {"",
                                        "pong",
                                        "ping again",
                                        "ping --verify",
                                        "run",
                                        "run concat_mla_v",
                                        "run --json",
                                        "stats --timeout 0",
                                        "log-level loud",
                                        "bench --filter nothing"};
    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        expect("/tmp/no-mlacat-here/socket", wrong[i], USAGE);
        REQUIRE(out[0] == '\0' && err[0] != '\0', "mlacatctl %s: said \"%s\"", wrong[i], out);
    }
    expect(NULL, "--help", DONE);
    expect(NULL, "run --help", DONE);
    expect(NULL, "--version", DONE);
}

static void test_ctl_nobody_there_is_2(void **state)
{
    static const char *const commands[] = {"ping",
                                           "ping --alive",
                                           "info",
                                           "stats",
                                           "drain",
                                           "drain --wait 1",
                                           "log-level info",
                                           "run concat_mla_k",
                                           "run models",
                                           "soak",
                                           "bench --quick --filter memory"};
    (void)state;
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        expect("/tmp/no-mlacat-here/socket", commands[i], UNREACHABLE);
        expect_text(strncmp(commands[i], "ping", 4) == 0 ? out : err, "nobody listens");
    }
}

static void test_ctl_full_daemon_is_alive_but_not_ready(void **state)
{
    struct server server;
    struct raw raw[3]; /* max_clients and the operator's two */
    (void)state;
    server_start(&server, "max_clients = 1\n");
    for (int i = 0; i < 3; i++) {
        raw_open(&raw[i], server.socket);
    }
    expect(server.socket, PING, FAILED);
    expect_text(out, "max_clients");
    expect(server.socket, PING " --alive", DONE);
    expect(server.socket, "stats", UNREACHABLE);
    for (int i = 0; i < 3; i++) {
        raw_close(&raw[i]);
    }
    server_stop(&server);
}

static void test_ctl_refused_user_finds_it_alive_but_not_ready(void **state)
{
    struct proxy proxy;
    proxy_start(&proxy, *state, PROXY_REFUSES, 0);
    expect(proxy.socket, PING, FAILED);
    expect_text(out, "user 54321");
    expect(proxy.socket, PING " --alive", DONE);
    proxy_stop(&proxy);
}

/* ------------------------------------------------------------------------------------------------------------ waits */

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t time_of(const char *socket, const char *words)
{
    uint64_t begin_ms = now_ms();
    expect(socket, words, DONE);
    return now_ms() - begin_ms;
}

static void test_ctl_ping_is_quick(void **state)
{
    const struct server *server = *state;
    uint64_t best_ms = UINT64_MAX;
    uint64_t start_ms = WAIT_MS;
    for (int i = 0; i < PING_TRIES && best_ms >= PING_MS + PING_STARTS * start_ms; i++) {
        start_ms = least(start_ms, time_of(NULL, "--version"));
        best_ms = least(best_ms, time_of(server->socket, PING));
    }
    print_message("ping: %lu ms, of which the program's start is %lu ms\n", (unsigned long)best_ms,
                  (unsigned long)start_ms);
    assert_true(has_sanitizer() || best_ms < PING_MS + PING_STARTS * start_ms);
}

static void test_ctl_stopped_daemon_is_2(void **state)
{
    const struct server *server = *state;
    assert_int_equal(kill(server->pid, SIGSTOP), 0);
    expect(server->socket, "ping --timeout 100", UNREACHABLE);
    expect_text(out, "100 ms");
    expect(server->socket, "ping --alive --timeout 100", UNREACHABLE);
    expect(server->socket, "info --timeout 100", UNREACHABLE);
    assert_int_equal(kill(server->pid, SIGCONT), 0);
    expect(server->socket, PING " --alive", DONE);
}

static void test_ctl_daemon_that_hangs_after_the_handshake_is_2(void **state)
{
    static const char *const commands[] = {"stats",
                                           "drain",
                                           "drain --wait 10",
                                           "log-level info",
                                           "run concat_mla_k",
                                           "soak",
                                           "bench --quick --filter memory",
                                           "ping",
                                           "ping --alive"};
    struct proxy proxy;
    char words[64];
    proxy_start(&proxy, *state, PROXY_MUTE, 0);
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        snprintf(words, sizeof(words), "%s --timeout 150", commands[i]);
        expect(proxy.socket, words, UNREACHABLE);
        expect_text(strncmp(words, "ping", 4) == 0 ? out : err, "150 ms");
    }
    proxy_stop(&proxy);
}

/* ------------------------------------------------------------------------------------------------------------ drain */

static void test_ctl_drain_waits_for_the_exit(void **state)
{
    const struct server *server = *state;
    expect_json(server->socket, "drain --wait 10 --json", DONE, "state");
    expect_text(out, "exited");
    expect(server->socket, "ping", UNREACHABLE);
}

static void test_ctl_drain_tells_that_it_has_not_ended(void **state)
{
    struct server *server = *state;
    struct raw raw;
    struct raw other;
    struct trial trial;
    uint8_t packet[RAW_PACKET_BYTES];
    raw_open(&raw, server->socket);
    raw_open(&other, server->socket);
    trial_make(&trial, &small_shape);
    struct call call = trial_call(&trial, raw_must_register(&raw, trial.fd, trial.bytes), 0);
    size_t size = raw_pack_submit(packet, raw_must_open_stream(&raw), &call, 1);
    /* A client that does not read, until nothing more goes in, though the daemon's loop turns: it cannot get rid of its
     * completions. */
    for (int full_nr = 0; full_nr < FULL_LOOKS;) {
        if (raw_try_send(&raw, packet, size, NULL, 0) == 0) {
            full_nr = 0;
        } else {
            full_nr++;
            raw_ping(&other);
        }
    }
    expect(server->socket, "drain --wait 0.1 --json", FAILED);
    expect_text(out, "draining");
    expect_text(err, "has not exited within 0.1 s");
    server_kill(server);
    trial_free(&trial);
    raw_close(&other);
    raw_close(&raw);
    server_run(server);
}

/* ------------------------------------------------------------------------------------------------------------- JSON */

#define PING_KEYS "reachable ready reason ms"

static void test_ctl_json_of_ping_has_one_shape(void **state)
{
    const struct server *server = *state;
    struct proxy proxy;
    expect_json(server->socket, PING " --json", DONE, PING_KEYS);
    expect_json("/tmp/no-mlacat-here/socket", "ping --json", UNREACHABLE, PING_KEYS);
    proxy_start(&proxy, server, PROXY_MUTE, 0);
    expect_json(proxy.socket, "ping --json --timeout 100", UNREACHABLE, PING_KEYS);
    proxy_stop(&proxy);
    proxy_start(&proxy, server, PROXY_REFUSES, 0);
    expect_json(proxy.socket, PING " --json", FAILED, PING_KEYS);
    proxy_stop(&proxy);
}

static void test_ctl_json_of_info_and_stats(void **state)
{
    const struct server *server = *state;
    expect_json(server->socket, "info --json", DONE, "server client_version limits devices ops");
    json_t *info = parse_out();
    expect_keys(json_object_get(info, "server"), "version pid boot_id");
    expect_keys(json_object_get(info, "limits"), "streams buffers mapped_bytes stream_calls calls events");
    expect_keys(json_array_get(json_object_get(info, "devices"), 0), "uuid kind name available reason workers");
    expect_keys(json_array_get(json_object_get(info, "ops"), 1), "number name operands");
    json_decref(info);
    expect(server->socket, "run concat_mla_k --tokens 1 --repeat 1", DONE);
    expect_json(server->socket, "stats --json", DONE,
                "uptime_us clients streams buffers mapped_bytes calls_in_flight clients_total clients_refused "
                "sessions_broken ops outcomes client_stats devices");
    json_t *stats = parse_out();
    expect_keys(json_array_get(json_object_get(stats, "ops"), 0),
                "op device calls bytes queue_ns_p50 queue_ns_p99 device_ns_p50 device_ns_p99");
    expect_keys(json_array_get(json_object_get(stats, "client_stats"), 0),
                "name pid uid streams buffers mapped_bytes calls calls_in_flight");
    json_t *device = json_array_get(json_object_get(stats, "devices"), 0);
    expect_keys(device,
                "device imports_first imports_known releases import_first_ns_p50 import_first_ns_p99 "
                "import_known_ns_p50 import_known_ns_p99 release_ns_p50 release_ns_p99 memory_released memory_closed "
                "gated_calls armed_calls armed_lapses");
    assert_string_equal(json_string_value(json_object_get(device, "device")), "host");
    assert_true(json_integer_value(json_object_get(device, "imports_first")) >= 3); /* the operands of the run */
    assert_true(json_integer_value(json_object_get(device, "import_first_ns_p99")) > 0);
    json_decref(stats);
}

static void test_ctl_json_of_bench(void **state)
{
    const struct server *server = *state;
    expect(server->socket, "bench --quick --json --filter message.", DONE);
    json_t *rows = parse_out();
    assert_int_equal(json_array_size(rows), 5);
    for (size_t i = 0; i < 4; i++) {
        const json_t *row = json_array_get(rows, i);
        expect_keys(json_array_get(rows, i),
                    "name value unit reference reference_value ratio p50 p90 p99 p999 reference_p90 reference_p99 "
                    "reference_p999 samples");
        expect_text(json_string_value(json_object_get(row, "reference")), "CPU");
        REQUIRE(json_real_value(json_object_get(row, "ratio")) > 0, "%.400s", out);
    }
    expect_text(json_string_value(json_object_get(json_array_get(rows, 4), "note")), "for a GPU");
    json_decref(rows);
}

static json_int_t sum_of(const json_t *buckets)
{
    json_int_t sum = 0;
    double longest = 0;
    for (size_t i = 0; i < json_array_size(buckets); i++) {
        const json_t *bucket = json_array_get(buckets, i);
        REQUIRE(json_real_value(json_array_get(bucket, 0)) > longest, "bucket %zu does not end behind the one before",
                i);
        longest = json_real_value(json_array_get(bucket, 0));
        sum += json_integer_value(json_array_get(bucket, 1));
    }
    return sum;
}

/* No system call for a submit is a figure, and the best one. */
static void test_ctl_bench_tells_none_from_not_known(void **state)
{
    const struct server *server = *state;
    expect(server->socket, "bench --quick --json --filter ring.submit.writes", DONE);
    json_t *rows = parse_out();
    const json_t *row = json_array_get(rows, 0);
    static const char *const figures[] = {"value", "p50", "p90", "p99", "p999", "reference_p90"};
    for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++) {
        assert_true(json_is_real(json_object_get(row, figures[i])));
    }
    json_decref(rows);
    expect(server->socket, "bench --quick --filter ring.submit.writes", DONE);
    REQUIRE(strstr(out, " - ") == NULL, "%s", out);
}

/* Only of rows that are times; each call of both sides is in a bucket. The ring stands beside this process, too. */
static void test_ctl_histograms_of_bench(void **state)
{
    const struct server *server = *state;
    char path[] = "/tmp/mlacat_histogram_XXXXXX";
    char arguments[128];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    snprintf(arguments, sizeof(arguments), "bench --quick --json --filter ring. --histogram %s", path);
    expect(server->socket, arguments, DONE);
    json_t *rows = parse_out();
    json_t *histograms = json_loadfd(fd, 0, NULL);
    assert_int_equal(json_array_size(rows), 6);
    assert_int_equal(json_array_size(histograms), 2);
    for (size_t i = 0; i < 2; i++) {
        const json_t *row = json_array_get(rows, i);
        json_t *histogram = json_array_get(histograms, i);
        json_int_t samples = json_integer_value(json_object_get(row, "samples"));
        expect_keys(histogram, "name unit reference samples buckets reference_samples reference_buckets");
        assert_string_equal(json_string_value(json_object_get(histogram, "name")),
                            i == 0 ? "ring.latency" : "ring.latency.messages");
        assert_string_equal(json_string_value(json_object_get(histogram, "reference")),
                            i == 0 ? "kernel in process" : "the same as messages");
        assert_true(samples > 0);
        assert_int_equal(json_integer_value(json_object_get(histogram, "samples")), samples);
        assert_int_equal(sum_of(json_object_get(histogram, "buckets")), samples);
        assert_int_equal(sum_of(json_object_get(histogram, "reference_buckets")),
                         json_integer_value(json_object_get(histogram, "reference_samples")));
    }
    json_decref(histograms);
    json_decref(rows);
    close(fd);
    unlink(path);
    expect(server->socket, "bench --quick --filter ring.latency --histogram /nowhere/at/all", FAILED);
    expect_text(err, "/nowhere/at/all");
}

/* -------------------------------------------------------------------------------------------------------------- run */

#define RUN_KEYS "op shape dtype layout bytes bytes_per_s p50_us p99_us samples verified result"

static void test_ctl_run_verifies(void **state)
{
    const struct server *server = *state;
    expect(server->socket, "run concat_mla_k --tokens 3 --heads 5 --verify --repeat 2", DONE);
    expect_text(out, " verified\n");
    expect(server->socket, "run concat_mla_absorb_q --dim0 3 --strided --gap 7 --repeat 2", DONE);
    expect_text(out, " not verified\n");
    expect_json(server->socket, "run concat_mla_absorb_q --dim0 3 --verify --repeat 2 --json", DONE, RUN_KEYS);
    expect(server->socket, "run concat_mla_k --tokens 3 --device nowhere", FAILED);
    expect_text(err, "nowhere");
}

static void test_ctl_run_finds_a_wrong_byte(void **state)
{
    static const size_t offsets[] = {GUARD_BYTES - 1, GUARD_BYTES, GUARD_BYTES + 1000};
    struct proxy proxy;
    for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
        proxy_start(&proxy, *state, PROXY_CORRUPTS, offsets[i]);
        expect(proxy.socket, "run concat_mla_k --tokens 8 --verify --repeat 1", FAILED);
        expect_text(out, "expected");
        expect_json(proxy.socket, "run concat_mla_k --tokens 8 --verify --repeat 1 --json", FAILED, RUN_KEYS);
        proxy_stop(&proxy);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ctl_wrong_usage_is_64),
        cmocka_unit_test(test_ctl_nobody_there_is_2),
        cmocka_unit_test(test_ctl_full_daemon_is_alive_but_not_ready),
        WITH_SERVER(test_ctl_refused_user_finds_it_alive_but_not_ready),
        WITH_SERVER(test_ctl_ping_is_quick),
        WITH_SERVER(test_ctl_stopped_daemon_is_2),
        WITH_SERVER(test_ctl_daemon_that_hangs_after_the_handshake_is_2),
        WITH_SERVER(test_ctl_drain_waits_for_the_exit),
        WITH_SERVER(test_ctl_drain_tells_that_it_has_not_ended),
        WITH_SERVER(test_ctl_json_of_ping_has_one_shape),
        WITH_SERVER(test_ctl_json_of_info_and_stats),
        WITH_SERVER(test_ctl_json_of_bench),
        WITH_SERVER(test_ctl_bench_tells_none_from_not_known),
        WITH_SERVER(test_ctl_histograms_of_bench),
        WITH_SERVER(test_ctl_run_verifies),
        WITH_SERVER(test_ctl_run_finds_a_wrong_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
