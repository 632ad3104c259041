/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mlacatctl beside a daemon that serves a GPU: the same commands, and every byte of their results. tests/gpu runs it,
 * with the driver of tests/support/fake_cuda or with a true one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ctl_program.h"
#include "require.h"
#include "server.h"

#define SKIPPED 77
#define CUDA_ROWS 15
#define RING_ROWS 6
#define ORDER_ROWS 4

static int setup(void **state)
{
    static struct server server;
    server_start(&server, "device = auto\n");
    *state = &server;
    return 0;
}

static int teardown(void **state)
{
    server_stop(*state);
    return 0;
}

#define WITH_GPU(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

static void test_ctl_cuda_run_verifies(void **state)
{
    const struct server *server = *state;
    expect(server->socket, "run concat_mla_k --tokens 33 --heads 5 --strided --verify --repeat 2", DONE);
    expect_text(out, " verified\n");
    expect(server->socket, "run concat_mla_absorb_q --dim0 3 --gap 7 --dtype fp8_e4m3 --verify --repeat 2", DONE);
    expect_text(out, " verified\n");
    expect(server->socket, "run concat_mla_k --tokens 0 --verify", DONE);
    expect(server->socket, "run concat_mla_k --device host", FAILED);
    expect_text(err, "no device host");
}

static void test_ctl_cuda_models_are_verified(void **state)
{
    const struct server *server = *state;
    expect(server->socket, "run models --tokens 1,7 --repeat 1", DONE);
    expect_text(out, "every byte of all of them verified");
}

static void test_ctl_cuda_soak_stays_flat(void **state)
{
    const struct server *server = *state;
    int status = ctl(server->socket, "soak --calls 2000 --registrations 200 --json");
    json_t *result = parse_out(); /* there is none when a call fails or a result is wrong */
    if (!has_sanitizer()) {
        assert_true(json_is_true(json_object_get(result, "flat")));
        assert_int_equal(status, DONE);
    }
    json_decref(result);
}

static void test_ctl_cuda_bench_has_every_row(void **state)
{
    const struct server *server = *state;
    unsigned with_figures = 0;
    expect(server->socket, "bench --quick --json --filter cuda.", DONE);
    json_t *rows = parse_out();
    assert_int_equal(json_array_size(rows), CUDA_ROWS);
    for (size_t i = 0; i < CUDA_ROWS; i++) {
        const json_t *row = json_array_get(rows, i);
        const char *name = json_string_value(json_object_get(row, "name"));
        const json_t *note = json_object_get(row, "note");
        double ratio = json_real_value(json_object_get(row, "ratio"));
        /* A build without nvcc has no kernel to compare with. */
        bool without_kernel =
            note && (strcmp(name, "cuda.message.latency") == 0 || strcmp(name, "cuda.small4096") == 0);
        REQUIRE(ratio > 0 || without_kernel, "%s: %s", name, note ? json_string_value(note) : "no ratio");
        with_figures += ratio > 0;
        /* The daemon keeps two quantiles: no others stand in its rows. */
        bool by_daemon = strstr(name, ".daemon") != NULL;
        assert_int_equal(json_is_null(json_object_get(row, "p999")), by_daemon || ratio == 0);
        assert_int_equal(json_is_null(json_object_get(row, "p90")), by_daemon || ratio == 0);
    }
    assert_true(with_figures >= CUDA_ROWS - 2);
    json_decref(rows);
}

static bool has_note(const json_t *row, const char *part)
{
    const char *note = json_string_value(json_object_get(row, "note"));
    return note && strstr(note, part);
}

/* What stands beside the kernel in process needs a build with nvcc; all results are checked on the way. */
static void test_ctl_cuda_bench_of_the_ring(void **state)
{
    const struct server *server = *state;
    unsigned in_process = 0;
    unsigned beside_messages = 0;
    expect(server->socket, "bench --quick --json --filter ring.", DONE);
    json_t *rows = parse_out();
    assert_int_equal(json_array_size(rows), RING_ROWS);
    for (size_t i = 0; i < RING_ROWS; i++) {
        const json_t *row = json_array_get(rows, i);
        const char *reference = json_string_value(json_object_get(row, "reference"));
        bool measured = json_integer_value(json_object_get(row, "samples")) > 0;
        REQUIRE(measured || has_note(row, "without nvcc"), "%.400s", out);
        in_process += strstr(reference, "in process") != NULL;
        beside_messages += strcmp(reference, "the same as messages") == 0;
    }
    assert_int_equal(in_process, 3);
    assert_int_equal(beside_messages, 2);
    const json_t *latency = json_array_get(rows, 0);
    if (json_integer_value(json_object_get(latency, "samples")) > 0) {
        assert_true(has_note(latency, "p99 of the reference"));
        assert_true(json_real_value(json_object_get(latency, "reference_p99")) > 0);
    }
    json_decref(rows);
}

/* Their results are checked before the figures are printed. */
static void test_ctl_cuda_bench_of_stream_ordered_calls(void **state)
{
    const struct server *server = *state;
    expect(server->socket, "bench --quick --json --filter order.", DONE);
    json_t *rows = parse_out();
    assert_int_equal(json_array_size(rows), ORDER_ROWS);
    for (size_t i = 0; i < ORDER_ROWS; i++) {
        const json_t *row = json_array_get(rows, i);
        bool measured = json_real_value(json_object_get(row, "ratio")) > 0 && has_note(row, " us/call");
        REQUIRE(measured || has_note(row, "without nvcc"), "%.400s", out);
    }
    double with_work = json_real_value(json_object_get(json_array_get(rows, 2), "reference_value"));
    REQUIRE(with_work == 0 || with_work >= 2000, "2 ms of work between the calls: %f us", with_work);
    json_decref(rows);
}

static json_int_t gated_calls(const char *socket)
{
    expect(socket, "stats --json", DONE);
    json_t *stats = parse_out();
    const json_t *device = json_array_get(json_object_get(stats, "devices"), 0);
    json_int_t gated = json_integer_value(json_object_get(device, "gated_calls"));
    json_int_t armed = json_integer_value(json_object_get(device, "armed_calls"));
    REQUIRE(json_is_integer(json_object_get(device, "armed_lapses")) && armed <= gated, "%.400s", out);
    json_decref(stats);
    return gated;
}

/* A table of them is shown once there were any, with their number. */
static void test_ctl_cuda_stats_of_stream_ordered_calls(void **state)
{
    const struct server *server = *state;
    char number[32];
    assert_int_equal(gated_calls(server->socket), 0);
    expect(server->socket, "stats", DONE);
    assert_null(strstr(out, "stream-ordered"));
    expect(server->socket, "bench --quick --filter order.single", DONE);
    bool measured = strstr(out, "without nvcc") == NULL;
    json_int_t gated = gated_calls(server->socket);
    REQUIRE((gated > 0) == measured, "%ld stream-ordered calls", (long)gated);
    expect(server->socket, "stats", DONE);
    snprintf(number, sizeof(number), " %ld ", (long)gated);
    assert_true((strstr(out, "stream-ordered") && strstr(out, number)) == measured);
}

static void test_ctl_cuda_rows_of_the_host_say_why_not(void **state)
{
    const struct server *server = *state;
    expect(server->socket, "bench --quick --json --filter call.large", DONE);
    expect_text(out, "is a GPU");
    expect(server->socket, "bench --quick --filter message", DONE);
}

/* The client must find the GPU by its UUID; one that it cannot see is an error that says where to look. */
static void test_ctl_cuda_client_without_the_gpu(void **state)
{
    const struct server *server = *state;
    const char *words = getenv("MLACAT_FAKE_CUDA");
    char *kept = words ? strdup(words) : NULL;
    if (!kept) {
        skip(); /* a true driver is there for all */
    }
    setenv("MLACAT_FAKE_CUDA", "devices=0", 1);
    expect(server->socket, "run concat_mla_k --tokens 1", FAILED);
    expect_text(err, "FAILED_PRECONDITION");
    expect_text(err, "cuInit");
    setenv("MLACAT_FAKE_CUDA", "missing=cuMemFree", 1);
    expect(server->socket, "run concat_mla_k --tokens 1", FAILED);
    expect_text(err, "has no cuMemFree of version 3020");
    setenv("MLACAT_FAKE_CUDA", "fail=cuMemAlloc:1:2", 1);
    expect(server->socket, "run concat_mla_k --tokens 1", FAILED);
    expect_text(err, "RESOURCE_EXHAUSTED");
    setenv("MLACAT_FAKE_CUDA", kept, 1);
    free(kept);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_GPU(test_ctl_cuda_run_verifies),
        WITH_GPU(test_ctl_cuda_models_are_verified),
        WITH_GPU(test_ctl_cuda_soak_stays_flat),
        WITH_GPU(test_ctl_cuda_bench_has_every_row),
        WITH_GPU(test_ctl_cuda_bench_of_the_ring),
        WITH_GPU(test_ctl_cuda_bench_of_stream_ordered_calls),
        WITH_GPU(test_ctl_cuda_stats_of_stream_ordered_calls),
        WITH_GPU(test_ctl_cuda_rows_of_the_host_say_why_not),
        WITH_GPU(test_ctl_cuda_client_without_the_gpu),
    };
    struct server server;
    server_start(&server, "device = auto\n");
    bool on_gpu = server_log_has(&server, "kind=cuda name=");
    server_stop(&server);
    if (!on_gpu) {
        printf("SKIPPED: the daemon finds no GPU here\n");
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
