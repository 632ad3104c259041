/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What clients and an operator see when the driver fails under the daemon. Needs the driver of tests/support/fake_cuda,
 * which fails where it is told to.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "raw.h"
#include "require.h"
#include "server.h"
#include "share_register.h"

static char uuid[SHARE_UUID_BYTES];

static void start(struct server *server, const char *fault)
{
    setenv("MLACAT_FAKE_CUDA", fault, 1);
    server_start(server, "device = auto\n");
    unsetenv("MLACAT_FAKE_CUDA");
}

static struct outcome try_register(struct raw *raw, const struct share *share, struct ref *buffer)
{
    return share_register(raw, uuid, share, 0, share->size, share->size, buffer);
}

/* `event`: that it waits for; generation 0: none. */
static struct call make_call(struct ref buffer, struct ref event, uint64_t id)
{
    struct call call = {.id = id, .op = OP_CONCAT_MLA_K, .dtype = DTYPE_BF16, .wait_event = event};
    static const uint64_t width[3] = {3, 2, 1}; /* a warp for a row: so many blocks that the driver tells the end */
    for (int k = 0; k < 3; k++) {
        call.operand[k] = (struct operand){.buffer = buffer,
                                           .offset_bytes = (uint64_t)k << 20,
                                           .shape = {5000, 1, width[k]},
                                           .strides = {(int64_t)width[k], (int64_t)width[k], 1}};
    }
    return call;
}

static struct outcome run_waiting(struct raw *raw, struct ref stream, struct ref buffer, struct ref event, uint64_t id)
{
    struct call call = make_call(buffer, event, id);
    raw_submit(raw, stream, &call, 1);
    return raw_wait(raw, id);
}

static struct outcome run_call(struct raw *raw, struct ref stream, struct ref buffer, uint64_t id)
{
    return run_waiting(raw, stream, buffer, (struct ref){0}, id);
}

/* The context is gone: whoever has a call is told so, and the process ends, for a supervisor to start it again. */
static void lost_device(const char *fault)
{
    struct server server = {0};
    struct raw raw;
    struct share share;
    struct ref buffer = {0};
    printf("lost: %s\n", fault);
    start(&server, fault);
    raw_open(&raw, server.socket);
    share_alloc(&share, (size_t)4 << 20);
    struct outcome outcome = try_register(&raw, &share, &buffer);
    if (outcome.code == STATUS_OK) {
        struct ref stream = share_must_open_stream(&raw, uuid);
        for (uint64_t id = 1; outcome.code == STATUS_OK && id < 100; id++) {
            outcome = run_call(&raw, stream, buffer, id);
        }
    }
    printf("  %s\n", outcome.message);
    REQUIRE(outcome.code == STATUS_UNAVAILABLE && outcome.scope == SCOPE_DEVICE);
    int status = server_wait(&server);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 1, "status 0x%x", (unsigned)status);
    REQUIRE(server_log_has(&server, "event=device_lost"));
    raw_close(&raw);
    share_free(&share);
    server_run(&server);
    server_stop(&server);
}

/* An import fails, and the next one does not. */
static void failed_import(const char *fault, uint32_t code)
{
    struct server server = {0};
    struct raw raw;
    struct share share;
    struct ref buffer = {0};
    printf("import: %s\n", fault);
    start(&server, fault);
    raw_open(&raw, server.socket);
    share_alloc(&share, (size_t)4 << 20);
    struct outcome outcome = try_register(&raw, &share, &buffer);
    printf("  %s\n", outcome.message);
    REQUIRE(outcome.code == code && outcome.scope == SCOPE_CALL);
    outcome = try_register(&raw, &share, &buffer);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    struct ref stream = share_must_open_stream(&raw, uuid);
    REQUIRE(run_call(&raw, stream, buffer, 1).code == STATUS_OK);
    raw_close(&raw);
    share_free(&share);
    server_stop(&server);
}

/* A launch that the driver refuses fails its call and no other. */
static void failed_launch(const char *fault)
{
    struct server server = {0};
    struct raw raw;
    struct share share;
    uint32_t failed = 0;
    printf("launch: %s\n", fault);
    start(&server, fault);
    raw_open(&raw, server.socket);
    share_alloc(&share, (size_t)4 << 20);
    struct ref buffer = share_must_register(&raw, uuid, &share, 0, share.size);
    struct ref stream = share_must_open_stream(&raw, uuid);
    for (uint64_t id = 1; id <= 40; id++) {
        struct outcome outcome = run_call(&raw, stream, buffer, id);
        if (outcome.code != STATUS_OK) {
            REQUIRE(outcome.code == STATUS_INTERNAL && outcome.scope == SCOPE_CALL, "%s", outcome.message);
            failed++;
        }
    }
    REQUIRE(failed == 1);
    raw_close(&raw);
    share_free(&share);
    server_stop(&server);
}

/* An event that the driver does not open, or of which it cannot tell whether it has come. The event's stream stands
 * still for the rest of the program, which frees no more memory. */
static void failed_event(const char *fault, uint32_t import_code, uint32_t call_code, uint32_t call_scope)
{
    static unsigned char handle[SHARE_HANDLE_BYTES];
    struct server server = {0};
    struct raw raw;
    struct share share;
    struct ref event;
    printf("event: %s\n", fault);
    if (handle[0] == 0) {
        share_never(handle);
    }
    start(&server, fault);
    raw_open(&raw, server.socket);
    share_alloc(&share, (size_t)4 << 20);
    struct ref buffer = share_must_register(&raw, uuid, &share, 0, share.size);
    struct ref stream = share_must_open_stream(&raw, uuid);
    struct outcome outcome = share_register_event(&raw, uuid, handle, &event);
    REQUIRE(outcome.code == import_code && (outcome.code == STATUS_OK || outcome.scope == SCOPE_CALL), "%s",
            outcome.message);
    if (import_code == STATUS_OK) {
        outcome = run_waiting(&raw, stream, buffer, event, 1);
        REQUIRE(outcome.code == call_code && outcome.scope == call_scope, "%s", outcome.message);
    }
    printf("  %s\n", outcome.message);
    if (call_scope == SCOPE_DEVICE) {
        int status = server_wait(&server);
        REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 1, "status 0x%x", (unsigned)status);
        server_run(&server);
    } else {
        REQUIRE(share_register_event(&raw, uuid, handle, &event).code == STATUS_OK);
        REQUIRE(run_call(&raw, stream, buffer, 2).code == STATUS_OK);
    }
    raw_close(&raw);
    server_stop(&server);
}

/* The driver does not come back while the daemon starts. */
static void hangs_at_the_start(int signal)
{
    struct server server;
    printf("hangs at the start: signal %d\n", signal);
    server_prepare(&server);
    server_configure(&server, "device = auto\n");
    setenv("MLACAT_FAKE_CUDA", "fail=cuInit:1:hang", 1);
    server_launch(&server);
    unsetenv("MLACAT_FAKE_CUDA");
    WAIT_UNTIL(server_log_has(&server, "cuInit hangs"));
    REQUIRE(kill(server.pid, signal) == 0);
    int status = server_wait(&server);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status 0x%x", (unsigned)status);
    server_stop(&server);
}

/* A launch never returns: the daemon says that it is not ready, and its manager hears nothing more from it. */
static void hangs_in_a_launch(void)
{
    struct server server;
    struct raw raw;
    struct share share;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char reason[256];
    char notice[256];
    printf("hangs in a launch\n");
    server_prepare(&server);
    server_configure(&server, "device = auto\n");
    snprintf(address.sun_path, sizeof(address.sun_path), "%.80s.notify", server.folder);
    int notices = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    REQUIRE(notices >= 0 && bind(notices, (const struct sockaddr *)&address, sizeof(address)) == 0);
    server.notify_socket = address.sun_path;
    server.watchdog_us = "40000";
    setenv("MLACAT_FAKE_CUDA", "fail=cuLaunchKernel:25:hang", 1);
    server_run(&server);
    unsetenv("MLACAT_FAKE_CUDA");
    raw_open(&raw, server.socket);
    share_alloc(&share, (size_t)4 << 20);
    struct ref buffer = share_must_register(&raw, uuid, &share, 0, share.size);
    struct ref stream = share_must_open_stream(&raw, uuid);
    for (uint64_t id = 1; !server_log_has(&server, "cuLaunchKernel hangs"); id++) {
        struct call call = make_call(buffer, (struct ref){0}, id);
        raw_submit(&raw, stream, &call, 1);
        raw_ready(&raw, NULL);
    }
    WAIT_UNTIL(!raw_ready(&raw, reason));
    REQUIRE(strstr(reason, "no progress"), "%s", reason);
    REQUIRE(server_log_has(&server, "event=stuck"));
    while (recv(notices, notice, sizeof(notice), 0) > 0) {
    }
    struct pollfd more = {.fd = notices, .events = POLLIN};
    REQUIRE(poll(&more, 1, 200) == 0); /* ten times as long as it would take */
    server_kill(&server);
    raw_close(&raw);
    share_free(&share);
    close(notices);
    unlink(address.sun_path);
    server_stop(&server);
}

/* The driver does not come back from a close when nobody else has anything left to do. */
static void hangs_at_the_end(void)
{
    struct server server = {0};
    struct raw raw;
    struct share share;
    printf("hangs at the end\n");
    start(&server, "fail=cuIpcCloseMemHandle:1:hang");
    raw_open(&raw, server.socket);
    share_alloc(&share, (size_t)4 << 20);
    struct ref buffer = share_must_register(&raw, uuid, &share, 0, share.size);
    REQUIRE(raw_unregister(&raw, buffer).code == STATUS_OK);
    WAIT_UNTIL(server_log_has(&server, "cuIpcCloseMemHandle hangs"));
    REQUIRE(kill(server.pid, SIGTERM) == 0);
    int status = server_wait(&server);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 1, "status 0x%x", (unsigned)status);
    REQUIRE(server_log_has(&server, "event=stop_timeout") && server_log_has(&server, "event=exit code=1"));
    raw_close(&raw);
    share_free(&share);
    server_stop(&server);
}

int main(void)
{
    char reason[256];
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!getenv("MLACAT_FAKE_CUDA")) {
        printf("SKIPPED: needs the fake driver\n");
        return 77;
    }
    if (!share_open(uuid, reason, sizeof(reason))) {
        printf("no driver: %s\n", reason);
        return 1;
    }
    failed_import("fail=cuIpcOpenMemHandle:1:2", STATUS_RESOURCE_EXHAUSTED);
    failed_import("fail=cuMemGetAddressRange:1:1", STATUS_INVALID_ARGUMENT);
    failed_import("fail=cuPointerGetAttribute:1:2", STATUS_RESOURCE_EXHAUSTED);
    failed_launch("fail=cuLaunchKernel:25:701");
    lost_device("fail=cuLaunchKernel:25:700");
    lost_device("fail=cuStreamWriteValue64:10:719");
    lost_device("fail=cuIpcOpenMemHandle:1:719");
    hangs_at_the_start(SIGTERM);
    hangs_at_the_start(SIGINT);
    hangs_in_a_launch();
    hangs_at_the_end();
    failed_event("fail=cuIpcOpenEventHandle:1:2", STATUS_RESOURCE_EXHAUSTED, STATUS_OK, SCOPE_NONE);
    failed_event("fail=cuEventQuery:3:400", STATUS_OK, STATUS_INVALID_ARGUMENT, SCOPE_CALL);
    failed_event("fail=cuEventQuery:3:719", STATUS_OK, STATUS_UNAVAILABLE, SCOPE_DEVICE);
    printf("cuda_faults: all passed\n");
    return 0;
}
