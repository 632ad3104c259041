/* SPDX-License-Identifier: Apache-2.0 */
/* The clients among the children of gpu_faults. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <mlacat/mlacat.h>

#include "gpu_faults.h"
#include "raw.h"
#include "require.h"
#include "share_register.h"

#define MEMORY_BYTES ((size_t)4 << 20)
#define PART_BYTES ((size_t)1 << 20)
#define LARGE_BYTES ((size_t)3 << 30)
#define QUEUED 200
#define ROWS 16
#define WIDTH_A 64
#define WIDTH_B 32
#define OUT_BYTES ((size_t)ROWS * (WIDTH_A + WIDTH_B) * 2)

static struct share memory;
static unsigned char input[2][PART_BYTES];
static unsigned char want[OUT_BYTES];
static unsigned char got[OUT_BYTES];

static void open_device(struct faults *faults, int ordinal)
{
    char uuid[SHARE_UUID_BYTES];
    char reason[256];
    REQUIRE(share_open_nth(ordinal, uuid, reason, sizeof(reason)), "%s: %s", faults->uuid[0], reason);
}

/* Memory for a small call: output, first and second input, a PART_BYTES each. */
static void make_memory(void)
{
    share_alloc(&memory, MEMORY_BYTES);
    for (size_t i = 0; i < PART_BYTES; i++) {
        input[0][i] = (unsigned char)(i * 2654435761u >> 11);
        input[1][i] = (unsigned char)(i * 2246822519u >> 12);
    }
    share_write(&memory, PART_BYTES, input[0], PART_BYTES);
    share_write(&memory, 2 * PART_BYTES, input[1], PART_BYTES);
    for (size_t row = 0; row < ROWS; row++) {
        unsigned char *out = want + row * (WIDTH_A + WIDTH_B) * 2;
        memcpy(out, input[0] + row * WIDTH_A * 2, (size_t)WIDTH_A * 2);
        memcpy(out + (size_t)WIDTH_A * 2, input[1] + row * WIDTH_B * 2, (size_t)WIDTH_B * 2);
    }
}

static void poison(void)
{
    memset(got, 0xa5, sizeof(got));
    share_write(&memory, 0, got, sizeof(got));
}

static void check(void)
{
    share_read(&memory, 0, got, sizeof(got));
    REQUIRE(memcmp(got, want, sizeof(got)) == 0, "the output is wrong");
}

static struct call call_on(struct ref buffer, uint64_t id, uint64_t rows, size_t part_bytes)
{
    struct call call = {.id = id, .op = OP_CONCAT_MLA_ABSORB_Q, .dtype = DTYPE_BF16};
    const uint64_t width[3] = {WIDTH_A + WIDTH_B, WIDTH_A, WIDTH_B};
    for (int k = 0; k < 3; k++) {
        call.operand[k] = (struct operand){.buffer = buffer,
                                           .offset_bytes = (uint64_t)k * part_bytes,
                                           .shape = {rows, 1, width[k]},
                                           .strides = {(int64_t)width[k], (int64_t)width[k], 1}};
    }
    return call;
}

static struct outcome run_small(struct raw *raw, struct ref stream, struct ref buffer, uint64_t id)
{
    struct call call = call_on(buffer, id, ROWS, PART_BYTES);
    raw_submit(raw, stream, &call, 1);
    return raw_wait(raw, id);
}

/* One call that must be right, on the device that is open. */
static void run_one(struct raw *raw, const char *uuid)
{
    struct ref buffer = share_must_register(raw, uuid, &memory, 0, memory.size);
    struct ref stream = share_must_open_stream(raw, uuid);
    poison();
    struct outcome outcome = run_small(raw, stream, buffer, 1);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    check();
}

void faults_look(void *arg)
{
    struct faults *faults = arg;
    int devices = share_devices();
    for (int i = 0; i < devices && i < FAULTS_DEVICES_MAX; i++) {
        if (share_open_nth(i, faults->uuid[i], faults->reason, sizeof(faults->reason))) {
            faults->devices = i + 1;
        }
    }
    if (faults->devices == 0 && faults->reason[0] == '\0') {
        snprintf(faults->reason, sizeof(faults->reason), "no CUDA driver, or no GPU that it can use");
    }
}

void faults_run_calls(void *arg)
{
    struct faults *faults = arg;
    struct raw raw;
    open_device(faults, 0);
    make_memory();
    raw_open(&raw, faults->socket);
    struct ref buffer = share_must_register(&raw, faults->uuid[0], &memory, 0, memory.size);
    struct ref stream = share_must_open_stream(&raw, faults->uuid[0]);
    child_ready();
    for (uint64_t id = 1; !atomic_load(&faults->stop); id++) {
        poison();
        struct outcome outcome = run_small(&raw, stream, buffer, id);
        REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
        check();
        atomic_fetch_add(&faults->raw_calls, 1);
    }
    raw_close(&raw);
}

void faults_queue_calls(void *arg)
{
    struct faults *faults = arg;
    static struct call calls[QUEUED];
    struct raw raw;
    struct share large;
    open_device(faults, 0);
    size_t bytes = getenv("MLACAT_FAKE_CUDA") ? MEMORY_BYTES : LARGE_BYTES;
    share_alloc(&large, bytes);
    raw_open(&raw, faults->socket);
    struct ref buffer = share_must_register(&raw, faults->uuid[0], &large, 0, large.size);
    struct ref stream = share_must_open_stream(&raw, faults->uuid[0]);
    size_t part = bytes / 4;
    for (uint64_t i = 0; i < QUEUED; i++) {
        calls[i] = call_on(buffer, i, part / ((WIDTH_A + WIDTH_B) * 2), part);
    }
    raw_submit(&raw, stream, calls, QUEUED);
    raw_next(&raw);
    child_ready();
    child_park();
}

/* -------------------------------------------------------------------------------------------------- through libmlacat
 */

static struct mlacat_client *connect_library(const struct faults *faults)
{
    struct mlacat_connect_options options = {
        .size = sizeof(options), .socket = faults->socket, .name = "gpu_faults", .reconnect_timeout_ms = 10000};
    struct mlacat_client *client;
    REQUIRE(mlacat_connect(&options, &client) == MLACAT_OK, "%s", mlacat_error_message());
    return client;
}

void faults_run_library(void *arg)
{
    struct faults *faults = arg;
    struct mlacat_call call = {.size = sizeof(call), .op = MLACAT_OP_CONCAT_MLA_ABSORB_Q, .dtype = MLACAT_DTYPE_BF16};
    const uint64_t width[3] = {WIDTH_A + WIDTH_B, WIDTH_A, WIDTH_B};
    struct mlacat_buffer *buffer;
    struct mlacat_stream *stream;
    open_device(faults, 0);
    make_memory();
    struct mlacat_client *client = connect_library(faults);
    REQUIRE(mlacat_buffer_register_ptr(client, (void *)(uintptr_t)memory.address, memory.size, &buffer) == MLACAT_OK,
            "%s", mlacat_error_message());
    REQUIRE(mlacat_stream_open(client, faults->uuid[0], &stream) == MLACAT_OK, "%s", mlacat_error_message());
    for (int k = 0; k < 3; k++) {
        call.operand[k] = mlacat_tensor_contiguous(buffer, (uint64_t)k * PART_BYTES, ROWS, 1, width[k]);
    }
    child_ready();
    while (!atomic_load(&faults->stop)) {
        poison();
        enum mlacat_status status = mlacat_run(stream, &call, NULL);
        REQUIRE(status == MLACAT_OK || status == MLACAT_UNAVAILABLE, "%s", mlacat_error_message());
        if (status == MLACAT_OK) {
            check();
        }
        atomic_fetch_add(status == MLACAT_OK ? &faults->library_calls : &faults->unavailable, 1);
    }
    mlacat_disconnect(client);
}

void faults_free_registered(void *arg)
{
    struct faults *faults = arg;
    struct mlacat_buffer *buffer;
    struct share large;
    open_device(faults, 0);
    share_alloc(&large, FAULTS_GIVEN_BYTES);
    struct mlacat_client *client = connect_library(faults);
    REQUIRE(mlacat_buffer_register_ptr(client, (void *)(uintptr_t)large.address, large.size, &buffer) == MLACAT_OK,
            "%s", mlacat_error_message());
    faults_free_and_stay(faults, &large);
    mlacat_disconnect(client);
}

void faults_free_released(void *arg)
{
    struct faults *faults = arg;
    struct raw raw;
    struct share large;
    open_device(faults, 0);
    share_alloc(&large, FAULTS_GIVEN_BYTES);
    raw_open(&raw, faults->socket);
    struct ref buffer = share_must_register(&raw, faults->uuid[0], &large, 0, large.size);
    REQUIRE(raw_unregister(&raw, buffer).code == STATUS_OK);
    faults_free_and_stay(faults, &large);
    raw_close(&raw);
}

/* ---------------------------------------------------------------------------------------------------------- refusals
 */

void faults_register_small(void *arg)
{
    struct faults *faults = arg;
    struct raw raw;
    struct ref buffer;
    open_device(faults, 0);
    make_memory();
    raw_open(&raw, faults->socket);
    child_ready();
    WAIT_UNTIL(atomic_load(&faults->freed_ns) != 0);
    struct outcome outcome = share_register(&raw, faults->uuid[0], &memory, 0, memory.size, memory.size, &buffer);
    printf("  import with no memory left: %s\n", outcome.code == STATUS_OK ? "done" : outcome.message);
    REQUIRE(outcome.code == STATUS_OK || outcome.code == STATUS_RESOURCE_EXHAUSTED, "%s", outcome.message);
    raw_close(&raw);
}

static void names_both(const struct faults *faults, const struct outcome *outcome)
{
    printf("  refused: %s\n", outcome->message);
    REQUIRE(outcome->code == STATUS_INVALID_ARGUMENT || outcome->code == STATUS_FAILED_PRECONDITION);
    REQUIRE(strstr(outcome->message, faults->uuid[0]) && strstr(outcome->message, faults->uuid[1]),
            "it does not name both devices");
}

void faults_use_both(void *arg)
{
    struct faults *faults = arg;
    struct raw raw;
    raw_open(&raw, faults->socket);
    open_device(faults, 0);
    make_memory();
    run_one(&raw, faults->uuid[0]);
    open_device(faults, 1);
    make_memory();
    run_one(&raw, faults->uuid[1]);
    struct ref second = share_must_register(&raw, faults->uuid[1], &memory, 0, memory.size);
    struct ref stream = share_must_open_stream(&raw, faults->uuid[0]);
    struct outcome outcome = run_small(&raw, stream, second, 1);
    names_both(faults, &outcome);
    raw_close(&raw);
}

/* Device 0 of this process is device 1 of the daemon. */
void faults_use_second_as_first(void *arg)
{
    struct faults *faults = arg;
    struct raw raw;
    setenv("CUDA_VISIBLE_DEVICES", "1", 1);
    if (getenv("MLACAT_FAKE_CUDA")) {
        printf("  left out: the fake driver does not read CUDA_VISIBLE_DEVICES\n");
        return;
    }
    open_device(faults, 0);
    make_memory();
    raw_open(&raw, faults->socket);
    run_one(&raw, faults->uuid[1]);
    raw_close(&raw);
}

static FILE *refused; /* what the client of faults_is_served said when it was not */

static void run_one_call(void *arg)
{
    struct faults *faults = arg;
    struct raw raw;
    char uuid[SHARE_UUID_BYTES];
    char reason[256];
    REQUIRE(dup2(fileno(refused), STDERR_FILENO) >= 0); /* that it is not served yet is no failure */
    REQUIRE(share_open(uuid, reason, sizeof(reason)), "%s", reason);
    REQUIRE(access(faults->socket, F_OK) == 0);
    make_memory();
    raw_open(&raw, faults->socket);
    run_one(&raw, uuid);
    raw_close(&raw);
}

bool faults_is_served(struct faults *faults)
{
    struct child client;
    int status = 0;
    refused = tmpfile();
    REQUIRE(refused != NULL);
    child_start(&client, run_one_call, faults);
    REQUIRE(waitpid(client.pid, &status, 0) == client.pid);
    close(client.ready_fd);
    bool served = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    rewind(refused);
    while (!served && fgets(faults->reason, sizeof(faults->reason), refused) != NULL) {
        /* The last line says why it ended. */
    }
    fclose(refused);
    return served;
}
