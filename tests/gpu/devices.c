/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several GPUs: which one a buffer, a stream and a call are on, whatever number it has in which process. Needs the
 * driver of tests/support/fake_cuda with two devices: the client sees them as 0 and 1.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "raw.h"
#include "require.h"
#include "server.h"
#include "share_register.h"

#define GPUS 2

static char uuids[GPUS][SHARE_UUID_BYTES];
static struct share memory[GPUS]; /* of each one */

/* Returns at once. */
static void launch(struct server *server, const char *driver, const char *device)
{
    char options[256];
    const char *before = getenv("MLACAT_FAKE_CUDA");
    char kept[256];
    snprintf(kept, sizeof(kept), "%s", before);
    printf("%s, device = %s\n", driver, device);
    snprintf(options, sizeof(options), "device = %s\n", device);
    server_prepare(server);
    server_configure(server, options);
    setenv("MLACAT_FAKE_CUDA", driver, 1);
    server_launch(server);
    setenv("MLACAT_FAKE_CUDA", kept, 1);
}

static void start(struct server *server, const char *driver, const char *device)
{
    launch(server, driver, device);
    server_wait_ready(server);
}

static struct outcome run_call(struct raw *raw, struct ref stream, struct ref buffer)
{
    struct call call = {.id = 1, .op = OP_CONCAT_MLA_K, .dtype = DTYPE_BF16};
    static const uint64_t width[3] = {192, 128, 64};
    for (int k = 0; k < 3; k++) {
        call.operand[k] = (struct operand){.buffer = buffer,
                                           .offset_bytes = (uint64_t)k << 20,
                                           .shape = {1, 1, width[k]},
                                           .strides = {(int64_t)width[k], (int64_t)width[k], 1}};
    }
    raw_submit(raw, stream, &call, 1);
    return raw_wait(raw, 1);
}

/* The call ran on this GPU's memory, by what it wrote. */
static void must_run(struct raw *raw, int gpu)
{
    unsigned char source[256];
    unsigned char copied[256];
    memset(source, 0x11 * (gpu + 1), sizeof(source));
    memset(copied, 0, sizeof(copied));
    share_write(&memory[gpu], (size_t)1 << 20, source, sizeof(source));
    share_write(&memory[gpu], 0, copied, sizeof(copied));
    struct ref buffer = share_must_register(raw, uuids[gpu], &memory[gpu], 0, memory[gpu].size);
    struct ref stream = share_must_open_stream(raw, uuids[gpu]);
    struct outcome outcome = run_call(raw, stream, buffer);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    share_read(&memory[gpu], 0, copied, sizeof(copied));
    REQUIRE(memcmp(source, copied, sizeof(source)) == 0);
}

static void must_name_both(const struct outcome *outcome, const char *reason)
{
    REQUIRE(outcome->code == STATUS_INVALID_ARGUMENT && outcome->scope == SCOPE_CALL, "%s", outcome->message);
    REQUIRE(strstr(outcome->message, uuids[0]) && strstr(outcome->message, uuids[1]), "%s: %s", reason,
            outcome->message);
}

static void serve_both(const char *device)
{
    struct server server;
    struct raw raw;
    struct ref buffer;
    start(&server, "daemon;devices=2", device);
    raw_open(&raw, server.socket);
    must_run(&raw, 0);
    must_run(&raw, 1);
    struct outcome outcome = share_register(&raw, uuids[0], &memory[1], 0, memory[1].size, memory[1].size, &buffer);
    must_name_both(&outcome, "registered with the other GPU");
    buffer = share_must_register(&raw, uuids[1], &memory[1], 0, memory[1].size);
    outcome = run_call(&raw, share_must_open_stream(&raw, uuids[0]), buffer);
    must_name_both(&outcome, "a stream of the other GPU");
    raw_close(&raw);
    server_stop(&server);
}

/* The daemon has other numbers for the GPUs than the client, or lacks one. */
static void serve_other_numbers(void)
{
    struct server server;
    struct raw raw;
    struct ref buffer;
    start(&server, "daemon;visible=10", "all");
    raw_open(&raw, server.socket);
    must_run(&raw, 0);
    must_run(&raw, 1);
    raw_close(&raw);
    server_stop(&server);

    start(&server, "daemon;visible=1", "auto");
    raw_open(&raw, server.socket);
    must_run(&raw, 1);
    struct outcome outcome = share_register(&raw, uuids[0], &memory[0], 0, memory[0].size, memory[0].size, &buffer);
    REQUIRE(outcome.code == STATUS_NOT_FOUND && strstr(outcome.message, uuids[1]), "%s", outcome.message);
    raw_close(&raw);
    server_stop(&server);
}

/* Parts of a GPU: the client's driver gives the UUID without a prefix that says so. */
static void serve_parts(void)
{
    struct server server;
    struct raw raw;
    char named[SHARE_UUID_BYTES];
    char line[SHARE_UUID_BYTES + 16];
    snprintf(named, sizeof(named), "MIG-%s", uuids[1] + 4);
    snprintf(line, sizeof(line), "uuid=%s", named);
    start(&server, "daemon;mig;devices=2", named);
    REQUIRE(server_log_has(&server, line));
    raw_open(&raw, server.socket);
    must_run(&raw, 1);
    raw_close(&raw);
    server_stop(&server);
    start(&server, "daemon;mig;devices=2", uuids[1]); /* by the other prefix */
    REQUIRE(server_log_has(&server, line));
    server_stop(&server);
}

/* A GPU that fails is noticed without a call. */
static void lose_idle(void)
{
    struct server server;
    launch(&server, "daemon;devices=2;fail=cuStreamQuery:4:719", "all");
    int status = server_wait(&server);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 1, "status 0x%x", (unsigned)status);
    REQUIRE(server_log_has(&server, "event=device_lost"));
    REQUIRE(server_log_has(&server, "level=error event=exit code=1 status=UNAVAILABLE reason="));
    server_run(&server);
    server_stop(&server);
}

int main(void)
{
    char reason[256];
    char both[2 * SHARE_UUID_BYTES];
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!getenv("MLACAT_FAKE_CUDA")) {
        printf("SKIPPED: needs the fake driver\n");
        return 77;
    }
    for (int i = 0; i < GPUS; i++) {
        if (!share_open_nth(i, uuids[i], reason, sizeof(reason))) {
            printf("no driver: %s\n", reason);
            return 1;
        }
        share_alloc(&memory[i], (size_t)4 << 20);
    }
    snprintf(both, sizeof(both), "%s,%s", uuids[0], uuids[1]);
    serve_both(both);
    serve_both("all");
    serve_other_numbers();
    serve_parts();
    lose_idle();
    printf("cuda_devices: all passed\n");
    return 0;
}
