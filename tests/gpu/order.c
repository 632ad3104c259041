/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stream-ordered calls on a GPU: the caller's own work, the service's call and again the caller's work in one CUDA
 * stream, with no thread that waits in between.
 *
 *     gpu_order [case ...]   MLACATD names the daemon
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu_memory.h"
#include "mlacat/mlacat.h"
#include "require.h"
#include "server.h"
#include "share.h"

#define SKIPPED 77
#define STEPS 64
#define TOKENS 64
#define HEADS 16
#define WIDTH1 128 /* elements of bf16 */
#define WIDTH2 64
#define ROW1 (WIDTH1 * 2)
#define ROW2 (WIDTH2 * 2)
#define ROWS (TOKENS * HEADS)
#define FIRST_BYTES ((size_t)ROWS * ROW1)
#define SECOND_BYTES ((size_t)TOKENS * ROW2)
#define OUT_BYTES ((size_t)ROWS * (ROW1 + ROW2))
/* A lane's memory: both inputs and the output, which every step uses, and a copy of the output of each step. */
#define FIRST_AT 0
#define SECOND_AT (FIRST_AT + FIRST_BYTES)
#define OUT_AT (SECOND_AT + SECOND_BYTES)
#define COPIES_AT (OUT_AT + OUT_BYTES)
#define LANE_BYTES (COPIES_AT + STEPS * OUT_BYTES)
#define FREE_MS 100   /* from the daemon's exit until nothing waits for it any more */
#define FREE_TRIES 20 /* where a CPU that has other work plays the GPU */

#define MUST(call) REQUIRE((call) == MLACAT_OK, "%s", mlacat_error_message())
#define MUST_CUDA(call) REQUIRE((call) == CUDA_OK)

#define CUDA_OK 0
#define CUDA_NOT_READY 600
#define NON_BLOCKING 1u
#define MPS_ENABLED 133 /* CU_DEVICE_ATTRIBUTE_MPS_ENABLED */
#define WAIT_GREATER_OR_EQUAL 0u
#define LATE_MS 5 /* more than a GPU is given a call ahead */
#define LATE_TRIES 50

/* The driver's calls of the caller's own streams, with the version of the ABI; those of graphs a driver may lack. */
#define STREAM_CALLS(X)                                                                       \
    X(cuCtxGetDevice, 2000, (int *device))                                                    \
    X(cuDeviceGetAttribute, 2000, (int *value, int attribute, int device))                    \
    X(cuStreamCreate, 2000, (void **stream, unsigned flags))                                  \
    X(cuStreamDestroy, 4000, (void *stream))                                                  \
    X(cuStreamQuery, 2000, (void *stream))                                                    \
    X(cuStreamSynchronize, 2000, (void *stream))                                              \
    X(cuStreamWaitValue64, 11070, (void *stream, uint64_t at, uint64_t value, unsigned how))  \
    X(cuStreamWriteValue64, 11070, (void *stream, uint64_t at, uint64_t value, unsigned how)) \
    X(cuMemsetD8Async, 3020, (uint64_t to, unsigned char byte, size_t bytes, void *stream))   \
    X(cuMemcpyDtoDAsync, 3020, (uint64_t to, uint64_t from, size_t bytes, void *stream))
#define GRAPH_CALLS(X)                                         \
    X(cuStreamBeginCapture, 10010, (void *stream, int mode))   \
    X(cuStreamEndCapture, 10000, (void *stream, void **graph)) \
    X(cuGraphDestroy, 10000, (void *graph))
#define MEMBER(name, abi, parameters) int(*name) parameters;
static struct {
    STREAM_CALLS(MEMBER)
    GRAPH_CALLS(MEMBER)
} cuda;
static struct server server;
static char uuid[SHARE_UUID_BYTES];

/* A CUDA stream and the mlacat stream that is bound to it. */
struct lane {
    struct mlacat_client *client;
    struct mlacat_stream *stream;
    void *cuda_stream;
    struct mlacat_buffer *buffer;
    struct share share;
    unsigned char salt; /* so that no two lanes have the same bytes */
};

static bool open_gpu(char *reason, size_t reason_size)
{
    if (!share_open(uuid, reason, reason_size)) {
        return false;
    }
#define MUST_FIND(name, abi, parameters) REQUIRE(share_find(#name, abi, &cuda.name), "the driver has no " #name);
#define FIND(name, abi, parameters) share_find(#name, abi, &cuda.name);
    STREAM_CALLS(MUST_FIND)
    GRAPH_CALLS(FIND)
    return true;
}

static struct mlacat_client *connect_client(void)
{
    struct mlacat_connect_options options = {.size = sizeof(options),
                                             .socket = server.socket,
                                             .name = "gpu_order",
                                             .connect_timeout_ms = WAIT_MS,
                                             .reconnect_timeout_ms = WAIT_MS};
    struct mlacat_client *client;
    MUST(mlacat_connect(&options, &client));
    return client;
}

static struct mlacat_stream *open_stream(struct mlacat_client *client)
{
    struct mlacat_stream_options options = {.size = sizeof(options), .transport = MLACAT_TRANSPORT_RING};
    struct mlacat_stream *stream;
    MUST(mlacat_stream_open_with(client, uuid, &options, &stream));
    return stream;
}

static struct lane lane_on(struct mlacat_client *client, void *cuda_stream, unsigned char salt)
{
    struct lane lane = {.client = client, .cuda_stream = cuda_stream, .salt = salt};
    share_alloc(&lane.share, LANE_BYTES);
    MUST(mlacat_buffer_register_ptr(client, (void *)(uintptr_t)lane.share.address, LANE_BYTES, &lane.buffer));
    lane.stream = open_stream(client);
    return lane;
}

static struct lane lane_open(struct mlacat_client *client, unsigned char salt)
{
    void *cuda_stream;
    MUST_CUDA(cuda.cuStreamCreate(&cuda_stream, NON_BLOCKING));
    return lane_on(client, cuda_stream, salt);
}

static void lane_close(struct lane *lane)
{
    mlacat_stream_close(lane->stream);
    mlacat_buffer_release(lane->buffer);
    share_free(&lane->share);
    if (lane->cuda_stream) {
        MUST_CUDA(cuda.cuStreamDestroy(lane->cuda_stream));
    }
}

/* A failed stream is of no use any more; the CUDA stream is. */
static void lane_reopen_stream(struct lane *lane)
{
    mlacat_stream_close(lane->stream);
    lane->stream = open_stream(lane->client);
}

static struct mlacat_call call_of(const struct lane *lane)
{
    struct mlacat_call call = {.size = sizeof(call), .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16};
    call.operand[0] = mlacat_tensor_contiguous(lane->buffer, OUT_AT, TOKENS, HEADS, WIDTH1 + WIDTH2);
    call.operand[1] = mlacat_tensor_contiguous(lane->buffer, FIRST_AT, TOKENS, HEADS, WIDTH1);
    call.operand[2] = mlacat_tensor_contiguous(lane->buffer, SECOND_AT, TOKENS, 1, WIDTH2);
    return call;
}

static enum mlacat_status submit(const struct lane *lane)
{
    struct mlacat_call call = call_of(lane);
    return mlacat_submit_on_stream(lane->stream, &call, lane->cuda_stream, NULL);
}

static unsigned char first_byte(const struct lane *lane, int step)
{
    return (unsigned char)(lane->salt + 2 * step);
}

static unsigned char second_byte(const struct lane *lane, int step)
{
    return (unsigned char)(lane->salt + 2 * step + 1);
}

/* The caller's work, which makes the inputs; the call; and the caller's work with the output. */
static void lane_step(const struct lane *lane, int step)
{
    uint64_t memory = lane->share.address;
    MUST_CUDA(cuda.cuMemsetD8Async(memory + FIRST_AT, first_byte(lane, step), FIRST_BYTES, lane->cuda_stream));
    MUST_CUDA(cuda.cuMemsetD8Async(memory + SECOND_AT, second_byte(lane, step), SECOND_BYTES, lane->cuda_stream));
    MUST(submit(lane));
    MUST_CUDA(cuda.cuMemcpyDtoDAsync(memory + COPIES_AT + (size_t)step * OUT_BYTES, memory + OUT_AT, OUT_BYTES,
                                     lane->cuda_stream));
}

static void check_step(const struct lane *lane, int step)
{
    unsigned char want[ROW1 + ROW2];
    unsigned char *got = malloc(OUT_BYTES);
    REQUIRE(got != NULL);
    memset(want, first_byte(lane, step), ROW1);
    memset(want + ROW1, second_byte(lane, step), ROW2);
    share_read(&lane->share, COPIES_AT + (size_t)step * OUT_BYTES, got, OUT_BYTES);
    for (size_t row = 0; row < ROWS; row++) {
        REQUIRE(memcmp(got + row * sizeof(want), want, sizeof(want)) == 0, "step %d, row %zu: %02x %02x, not %02x %02x",
                step, row, got[row * sizeof(want)], got[row * sizeof(want) + ROW1], want[0], want[ROW1]);
    }
    free(got);
}

/* The only wait of `steps` steps, and a look at what each of them gave. */
static void lane_check(const struct lane *lane, int steps)
{
    MUST_CUDA(cuda.cuStreamSynchronize(lane->cuda_stream));
    MUST(mlacat_stream_status(lane->stream));
    for (int step = 0; step < steps; step++) {
        check_step(lane, step);
    }
}

static void lane_run(const struct lane *lane, int steps)
{
    for (int step = 0; step < steps; step++) {
        lane_step(lane, step);
    }
    lane_check(lane, steps);
}

/* ---------------------------------------------------------------------------------------------------- cases */

/* What the daemon has counted of stream-ordered calls, on all devices. */
static struct gated {
    uint64_t calls, armed, lapses;
} gated_now(struct mlacat_client *client)
{
    struct gated now = {0};
    struct mlacat_stats *stats;
    MUST(mlacat_stats(client, &stats));
    for (uint32_t i = 0; i < stats->devices_nr; i++) {
        now.calls += stats->devices[i].gated_calls;
        now.armed += stats->devices[i].armed_calls;
        now.lapses += stats->devices[i].armed_lapses;
    }
    mlacat_stats_free(stats);
    return now;
}

static void case_chain(struct mlacat_client *client)
{
    struct lane lane = lane_open(client, 1);
    struct gated before = gated_now(client);
    lane_run(&lane, STEPS);
    lane_run(&lane, STEPS);                                          /* more calls than the ring has entries */
    WAIT_UNTIL(gated_now(client).calls == before.calls + 2 * STEPS); /* told after the CUDA stream was */
    struct gated after = gated_now(client);
    REQUIRE(after.armed - before.armed <= 2 * STEPS);
    printf("  of %d calls the GPU started %d by itself, and gave back %d\n", 2 * STEPS,
           (int)(after.armed - before.armed), (int)(after.lapses - before.lapses));
    lane_close(&lane);
}

static bool has_mps(void)
{
    int device;
    int enabled;
    MUST_CUDA(cuda.cuCtxGetDevice(&device));
    MUST_CUDA(cuda.cuDeviceGetAttribute(&enabled, MPS_ENABLED, device));
    return enabled != 0;
}

/* The first call of a stream, which the GPU is given at once where it can be; but the caller's stream waits for another
 * one for longer than that is for. Returns how often it lapsed. */
static uint64_t run_late(struct mlacat_client *client)
{
    struct lane lane = lane_open(client, 21);
    struct gated before = gated_now(client);
    uint64_t word = lane.share.address + LANE_BYTES - sizeof(word);
    void *other;
    MUST_CUDA(cuda.cuStreamCreate(&other, NON_BLOCKING));
    MUST_CUDA(cuda.cuStreamWriteValue64(other, word, 0, 0));
    MUST_CUDA(cuda.cuStreamSynchronize(other));
    MUST_CUDA(cuda.cuStreamWaitValue64(lane.cuda_stream, word, 1, WAIT_GREATER_OR_EQUAL));
    lane_step(&lane, 0);
    usleep(LATE_MS * 1000);
    MUST_CUDA(cuda.cuStreamWriteValue64(other, word, 1, 0));
    lane_check(&lane, 1);
    WAIT_UNTIL(gated_now(client).calls == before.calls + 1);
    struct gated after = gated_now(client);
    uint64_t lapses = after.lapses - before.lapses;
    REQUIRE(has_mps() || (after.armed == 0 && after.lapses == 0));
    REQUIRE(lapses == 0 || after.armed == before.armed, "a call lapsed and was started by the GPU all the same");
    lane_close(&lane);
    MUST_CUDA(cuda.cuStreamDestroy(other));
    return lapses;
}

static void case_late(struct mlacat_client *client)
{
    int tries = 1; /* a worker that others keep from its CPU does not arm it */
    while (run_late(client) == 0 && has_mps()) {
        REQUIRE(tries++ < LATE_TRIES, "no call of %d lapsed", LATE_TRIES);
    }
    printf("  %s, try %d\n", has_mps() ? "lapsed" : "without MPS no call is armed", tries);
}

static void case_two_streams(struct mlacat_client *client)
{
    struct lane lanes[2] = {lane_open(client, 1), lane_open(client, 77)};
    for (int step = 0; step < STEPS; step++) {
        lane_step(&lanes[step % 2], step);
        lane_step(&lanes[1 - step % 2], step);
    }
    for (int i = 0; i < 2; i++) {
        lane_check(&lanes[i], STEPS);
        lane_close(&lanes[i]);
    }
}

/* All streams of the process then share one queue of the GPU, in which a wait holds up whatever comes after it. */
static void run_with_one_connection(void *arg)
{
    char reason[256];
    (void)arg;
    REQUIRE(setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1", 1) == 0);
    if (!open_gpu(reason, sizeof(reason))) {
        return; /* the parent finds out as well */
    }
    struct mlacat_client *client = connect_client();
    case_two_streams(client);
    mlacat_disconnect(client);
}

/* The daemon refuses the call when the CUDA stream waits for it already. */
static void case_failed_call(struct mlacat_client *client)
{
    struct lane lane = lane_open(client, 3);
    struct lane other = lane_open(client, 9);
    struct mlacat_call call = call_of(&lane);
    lane_run(&lane, 2);
    call.operand[1].offset_bytes = OUT_AT;
    MUST(mlacat_submit_on_stream(lane.stream, &call, lane.cuda_stream, NULL));
    MUST_CUDA(cuda.cuStreamSynchronize(lane.cuda_stream));
    WAIT_UNTIL(mlacat_stream_status(lane.stream) != MLACAT_OK);
    printf("  failed: %s\n", mlacat_error_message());
    REQUIRE(mlacat_stream_status(lane.stream) == MLACAT_INVALID_ARGUMENT);
    REQUIRE(mlacat_error_scope() == MLACAT_SCOPE_STREAM);
    REQUIRE(submit(&lane) == MLACAT_INVALID_ARGUMENT);
    lane_run(&other, 2);
    lane_reopen_stream(&lane);
    lane_run(&lane, 2);
    lane_close(&lane);
    lane_close(&other);
}

/* The daemon stands still, so that the GPU waits for calls that it has not seen, and is then killed. Returns when the
 * client was told, in milliseconds from the daemon's exit; another one runs by then. */
static uint64_t kill_daemon(struct lane *lane)
{
    lane_run(lane, 1);
    REQUIRE(kill(server.pid, SIGSTOP) == 0);
    for (int step = 0; step < 3; step++) {
        lane_step(lane, step);
    }
    REQUIRE(cuda.cuStreamQuery(lane->cuda_stream) == CUDA_NOT_READY);
    server_kill(&server);
    uint64_t exited_ms = now_ms();
    WAIT_UNTIL(cuda.cuStreamQuery(lane->cuda_stream) == CUDA_OK);
    uint64_t free_ms = now_ms() - exited_ms;
    WAIT_UNTIL(mlacat_stream_status(lane->stream) == MLACAT_UNAVAILABLE);
    uint64_t told_ms = now_ms() - exited_ms;
    printf("  after the daemon's exit: CUDA stream free in %lu ms, UNAVAILABLE told in %lu ms\n",
           (unsigned long)free_ms, (unsigned long)told_ms);
    REQUIRE(submit(lane) == MLACAT_UNAVAILABLE);
    server_run(&server);
    lane_reopen_stream(lane);
    lane_run(lane, 2);
    return told_ms;
}

static void case_daemon_killed(struct mlacat_client *client)
{
    struct lane lane = lane_open(client, 5);
    int tries = gpu_memory_is_fake() ? FREE_TRIES : 1;
    while (kill_daemon(&lane) > FREE_MS) {
        REQUIRE(--tries > 0, "more than %d ms", FREE_MS);
    }
    lane_close(&lane);
}

/* Nothing of a refused call is in the graph, and the capture goes on. */
static void case_capture(struct mlacat_client *client)
{
    void *graph = NULL;
    if (!cuda.cuStreamBeginCapture) {
        printf("  left out: the driver has no cuStreamBeginCapture\n");
        return;
    }
    struct lane lane = lane_open(client, 7);
    struct lane other = lane_open(client, 11);
    lane_run(&lane, 1);
    for (int mode = 0; mode < 3; mode++) { /* CU_STREAM_CAPTURE_MODE_GLOBAL, THREAD_LOCAL, RELAXED */
        MUST_CUDA(cuda.cuStreamBeginCapture(lane.cuda_stream, mode));
        REQUIRE(submit(&lane) == MLACAT_FAILED_PRECONDITION);
        MUST(submit(&other)); /* the first one of the other stream too */
        MUST_CUDA(cuda.cuStreamEndCapture(lane.cuda_stream, &graph));
        MUST_CUDA(cuda.cuGraphDestroy(graph));
    }
    REQUIRE(submit(&lane) == MLACAT_OK);
    lane_run(&lane, 2);
    MUST_CUDA(cuda.cuStreamSynchronize(other.cuda_stream));
    lane_close(&lane);
    lane_close(&other);
}

static void case_bound(struct mlacat_client *client)
{
    struct lane lane = lane_open(client, 13);
    void *own = lane.cuda_stream;
    void *another;
    MUST_CUDA(cuda.cuStreamCreate(&another, NON_BLOCKING));
    lane_run(&lane, 1);
    lane.cuda_stream = another;
    REQUIRE(submit(&lane) == MLACAT_FAILED_PRECONDITION);
    printf("  refused: %s\n", mlacat_error_message());
    MUST_CUDA(cuda.cuStreamSynchronize(another)); /* was given nothing to wait for */
    lane.cuda_stream = own;
    lane_run(&lane, 2);
    MUST_CUDA(cuda.cuStreamDestroy(another));
    lane_close(&lane);
}

/* The legacy default stream, which is what a program has that made none. */
static void case_default_stream(struct mlacat_client *client)
{
    if (getenv("MLACAT_FAKE_CUDA")) {
        printf("  left out: the fake driver has no default stream\n");
        return;
    }
    struct lane lane = lane_on(client, NULL, 17);
    lane_run(&lane, STEPS);
    lane_close(&lane);
}

static const struct {
    const char *name;
    void (*run)(struct mlacat_client *client);
} cases[] = {
    {"chain", case_chain},
    {"late", case_late},
    {"two_streams", case_two_streams},
    {"failed_call", case_failed_call},
    {"daemon_killed", case_daemon_killed},
    {"capture", case_capture},
    {"bound", case_bound},
    {"default_stream", case_default_stream},
};

static bool is_wanted(int argc, char *argv[], const char *name)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0) {
            return true;
        }
    }
    return argc == 1;
}

int main(int argc, char *argv[])
{
    char reason[256];
    setvbuf(stdout, NULL, _IOLBF, 0);
    unsetenv("CUDA_DEVICE_MAX_CONNECTIONS"); /* as most programs have it; one_connection sets it */
    server_start(&server, "device = auto\n");
    if (is_wanted(argc, argv, "one_connection")) { /* before this process starts CUDA */
        struct child one_connection;
        printf("one_connection\n");
        child_start(&one_connection, run_with_one_connection, NULL);
        child_join(&one_connection);
    }
    if (!open_gpu(reason, sizeof(reason))) {
        printf("SKIPPED: %s\n", reason);
        server_stop(&server);
        return SKIPPED;
    }
    struct mlacat_client *client = connect_client();
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (is_wanted(argc, argv, cases[i].name)) {
            printf("%s\n", cases[i].name);
            cases[i].run(client);
        }
    }
    mlacat_disconnect(client);
    server_stop(&server);
    printf("gpu_order: all passed\n");
    return 0;
}
