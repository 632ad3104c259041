/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA device on the fake driver, from its opening to its end: under the rules of a daemon, and with each entry
 * point failing in turn. Each run is a process of its own, and this program is its own compile helper.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "cuda_jit.h"
#include "device.h"
#include "fake_cuda.h"
#include "jit_folder.h"

#define CHUNK ((size_t)2 << 20)
#define ROWS 100
#define A_BYTES 256
#define B_BYTES 128
#define OUT_BYTES ((uint64_t)ROWS * (A_BYTES + B_BYTES))
#define OK CUDA_RESULT_OK

static struct error err;

/* What a client shares: an allocation for the inputs and a chunk for the output, both filled. */
struct client {
    struct cuda_context *context;
    cuda_address inputs;
    struct cuda_ipc_handle handle;
    uint64_t buffer_id;
    int chunk;
};

/* The daemon's side. */
struct service {
    struct device *device;
    struct device_info info;
    struct device_memory *inputs;
    struct device_memory *output;
    struct device_stream *stream;
};

/* In a child cmocka's checks would go on with the parent's tests. */
static void must(bool good, const char *what)
{
    if (!good) {
        fprintf(stderr, "not so: %s; last error: %s\n", what, err.message);
        _exit(1);
    }
}
#define MUST(condition) must(condition, #condition)

static void fill_client(struct client *client, unsigned char fill)
{
    MUST(fake_cuMemAlloc(&client->inputs, CHUNK) == OK);
    MUST(fake_cuIpcGetMemHandle(&client->handle, client->inputs) == OK);
    MUST(fake_cuPointerGetAttribute(&client->buffer_id, CUDA_POINTER_BUFFER_ID, client->inputs) == OK);
    for (size_t i = 0; i < CHUNK; i++) {
        ((unsigned char *)(uintptr_t)client->inputs)[i] = (unsigned char)(i * 13 + fill);
    }
}

static void start_client(struct client *client)
{
    const struct cuda_allocation_properties pinned = {.type = CUDA_ALLOCATION_PINNED,
                                                      .location = {.type = CUDA_LOCATION_DEVICE}};
    cuda_allocation allocation;
    MUST(fake_cuInit(0) == OK);
    MUST(fake_cuDevicePrimaryCtxRetain(&client->context, 0) == OK);
    MUST(fake_cuCtxSetCurrent(client->context) == OK);
    fill_client(client, 1);
    MUST(fake_cuMemCreate(&allocation, CHUNK, &pinned, 0) == OK);
    MUST(fake_cuMemExportToShareableHandle(&client->chunk, allocation, CUDA_HANDLE_POSIX_FD, 0) == OK);
    MUST(fake_cuMemRelease(allocation) == OK);
}

static enum mlacat_status import_inputs(struct service *service, const struct client *client)
{
    struct memory_info info;
    struct memory_request request = {.kind = MEMORY_CUDA_IPC,
                                     .size_bytes = CHUNK,
                                     .allocation_bytes = CHUNK,
                                     .buffer_id = client->buffer_id,
                                     .limit_bytes = CHUNK};
    memcpy(request.handle, client->handle.bytes, sizeof(request.handle));
    return device_cuda_ops.mem_import(service->device, &request, &service->inputs, &info, &err);
}

static enum mlacat_status import_output(struct service *service, const struct client *client)
{
    struct memory_info info;
    struct memory_request request = {.kind = MEMORY_CUDA_VMM,
                                     .chunks_nr = 1,
                                     .size_bytes = CHUNK,
                                     .limit_bytes = CHUNK,
                                     .fds = {dup(client->chunk)},
                                     .chunk_bytes = {CHUNK}};
    return device_cuda_ops.mem_import(service->device, &request, &service->output, &info, &err);
}

static struct device_call make_call(const struct service *service)
{
    return (struct device_call){
        .memory = {service->output, service->inputs, service->inputs},
        .plan = {.op = OP_CONCAT_MLA_K,
                 .dim0 = ROWS,
                 .dim1 = 1,
                 .width_bytes = {A_BYTES + B_BYTES, A_BYTES, B_BYTES},
                 .stride_bytes = {{A_BYTES + B_BYTES, 0}, {A_BYTES, 0}, {B_BYTES, 0}},
                 .offset_bytes = {0, 0, (uint64_t)ROWS * A_BYTES},
                 .copy = {true, true, true},
                 .bytes = 2 * OUT_BYTES},
    };
}

/* Submits one call and polls it to its end. OK: the output was right. */
static enum mlacat_status run_call(struct service *service, const struct client *client)
{
    struct device_completion done = {0};
    struct device_call call = make_call(service);
    int nr = 0;
    if (device_cuda_ops.submit(service->stream, &call, &(uint32_t){1}, &err) != DEVICE_OK) {
        return err.code;
    }
    for (int i = 0; nr == 0 && i < 1000; i++) {
        nr = device_cuda_ops.poll(service->stream, &done, 1, &err);
    }
    MUST(nr != 0); /* every call that was taken completes, or the stream is lost */
    if (nr < 0 || done.error.code != MLACAT_OK) {
        return nr < 0 ? err.code : done.error.code;
    }
    unsigned char *output = mmap(NULL, CHUNK, PROT_READ, MAP_SHARED, client->chunk, 0);
    const unsigned char *a = (const unsigned char *)(uintptr_t)client->inputs;
    const unsigned char *b = a + (size_t)ROWS * A_BYTES;
    MUST(output != MAP_FAILED);
    for (size_t i = 0; i < ROWS; i++) {
        MUST(memcmp(output + i * (A_BYTES + B_BYTES), a + i * A_BYTES, A_BYTES) == 0);
        MUST(memcmp(output + i * (A_BYTES + B_BYTES) + A_BYTES, b + i * B_BYTES, B_BYTES) == 0);
    }
    munmap(output, CHUNK);
    return MLACAT_OK;
}

/* Closes what is open. */
static void stop(struct service *service)
{
    if (service->stream) {
        device_cuda_ops.stream_close(service->stream);
    }
    if (service->output) {
        device_cuda_ops.mem_release(service->device, service->output);
    }
    if (service->inputs) {
        device_cuda_ops.mem_release(service->device, service->inputs);
    }
    if (service->device) {
        device_cuda_ops.close(service->device);
    }
}

/* The whole life of a device, until something fails. */
static enum mlacat_status live(const struct client *client)
{
    struct service service = {0};
    enum mlacat_status status = MLACAT_OK;
    if (device_cuda_ops.open(NULL, &service.device, &service.info, &err) != DEVICE_OK) {
        MUST(err.code != MLACAT_OK);
        return err.code;
    }
    status = device_cuda_ops.stream_open(service.device, NULL, &service.stream, &err);
    if (status == MLACAT_OK) {
        status = import_inputs(&service, client);
    }
    if (status == MLACAT_OK) {
        status = import_output(&service, client);
    }
    for (int i = 0; i < 2 && status == MLACAT_OK; i++) {
        status = run_call(&service, client);
    }
    stop(&service);
    return status;
}

/* Runs `body` in a process of its own; it is to return 0. */
static int in_child(int (*body)(const char *word), const char *word)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        _exit(body(word));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* ---- good days ---- */

static int live_by_the_rules(const char *unused)
{
    struct client client;
    (void)unused;
    fake_cuda_behave("");
    start_client(&client);
    struct fake_cuda_live before = fake_cuda_live();
    fake_cuda_behave("same_process;daemon");
    MUST(live(&client) == MLACAT_OK);
    struct fake_cuda_live after = fake_cuda_live();
    MUST(memcmp(&before, &after, sizeof(before)) == 0);
    /* The calls, and before them each kernel once, with a gate and a tail around each that goes between those: of which
     * the built-in PTX has none. */
    uint64_t gates = fake_cuda_calls("cuLaunchKernelEx") / 2;
    MUST(fake_cuda_calls("cuLaunchKernel") == 2 + 11 + gates && (gates == 0 || gates == 5));
    return 0;
}

static void test_fake_cuda_device_lives_by_the_rules(void **state)
{
    (void)state;
    assert_int_equal(in_child(live_by_the_rules, NULL), 0);
}

/* The client frees its inputs; what it allocates then has the old handle's bytes. */
static void replace_inputs(struct client *client, unsigned char fill, const char *word)
{
    struct cuda_ipc_handle first = client->handle;
    fake_cuda_behave(""); /* a client has no rules */
    MUST(fake_cuMemFree(client->inputs) == OK);
    fill_client(client, fill);
    fake_cuda_behave(word);
    MUST(memcmp(&first, &client->handle, sizeof(first)) == 0);
}

/* Calls read the new memory, and none uses the old any more. Several times, as fast as it goes: closing is paced. */
static int meet_new_memory_in_an_old_place(const char *word)
{
    struct client client;
    struct service service = {0};
    fake_cuda_behave("");
    start_client(&client);
    fake_cuda_behave(word);
    MUST(device_cuda_ops.open(NULL, &service.device, &service.info, &err) == DEVICE_OK);
    MUST(device_cuda_ops.stream_open(service.device, NULL, &service.stream, &err) == MLACAT_OK);
    MUST(import_inputs(&service, &client) == MLACAT_OK);
    MUST(import_output(&service, &client) == MLACAT_OK);
    MUST(run_call(&service, &client) == MLACAT_OK);
    for (unsigned char fill = 2; fill < 5; fill++) {
        struct device_memory *old = service.inputs;
        replace_inputs(&client, fill, word);
        MUST(import_inputs(&service, &client) == MLACAT_OK);
        MUST(run_call(&service, &client) == MLACAT_OK);
        struct device_call call = make_call(&service);
        call.memory[OP_FIRST] = old;
        MUST(device_cuda_ops.submit(service.stream, &call, &(uint32_t){1}, &err) == DEVICE_ERROR);
        MUST(err.code == MLACAT_FAILED_PRECONDITION);
        device_cuda_ops.mem_release(service.device, old);
    }
    stop(&service);
    MUST(fake_cuda_live().opened == 0);
    return 0;
}

static void test_fake_cuda_device_meets_new_memory_in_an_old_place(void **state)
{
    (void)state;
    assert_int_equal(in_child(meet_new_memory_in_an_old_place, "same_process;daemon"), 0);
    assert_int_equal(in_child(meet_new_memory_in_an_old_place, "same_process;daemon;already_mapped"), 0);
}

/* ---- bad days ---- */

static const char *const names[] = {
#define CUDA_CALL(need, name, abi, parameters) #name,
#include "cuda_api.def"
};
#define NAMES_NR (sizeof(names) / sizeof(names[0]))

/* What they were to give back stays, and nobody can help it. */
static bool gives_back(const char *name)
{
    static const char *const calls[] = {
        "cuDevicePrimaryCtxRelease", "cuIpcCloseMemHandle", "cuMemUnmap",      "cuMemAddressFree", "cuMemRelease",
        "cuMemHostUnregister",       "cuModuleUnload",      "cuStreamDestroy", "cuCtxSetCurrent",  "cuMemFree"};
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        if (strcmp(calls[i], name) == 0) {
            return true;
        }
    }
    return false;
}

enum { CHILD_FAILED = 1, CHILD_NO_SUCH_CALL = 3 };

/* `rule` is CALL:N:RESULT. Returns 0 if the call was there and failed, and all was given back. */
static int live_with_a_failure(const char *rule)
{
    struct client client;
    char words[128];
    char name[64];
    unsigned long nth = strtoul(strchr(rule, ':') + 1, NULL, 10);
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(rule, ":"), rule);
    fake_cuda_behave("");
    start_client(&client);
    struct fake_cuda_live before = fake_cuda_live();
    /* A stream that could not be destroyed would make the end look like a busy daemon's. */
    snprintf(words, sizeof(words), "same_process;%sfail=%s", gives_back(name) ? "" : "daemon;", rule);
    fake_cuda_behave(words);
    MUST(freopen("/dev/null", "w", stderr) != NULL); /* the device's log */
    enum mlacat_status status = live(&client);
    if (fake_cuda_calls(name) < nth) {
        return status == MLACAT_OK ? CHILD_NO_SUCH_CALL : CHILD_FAILED;
    }
    struct fake_cuda_live after = fake_cuda_live();
    return gives_back(name) || memcmp(&before, &after, sizeof(before)) == 0 ? 0 : CHILD_FAILED;
}

static void fail_each_in_turn(const char *result)
{
    unsigned failures_nr = 0;
    for (size_t i = 0; i < NAMES_NR; i++) {
        for (unsigned nth = 1;; nth++) {
            char rule[96];
            snprintf(rule, sizeof(rule), "%s:%u:%s", names[i], nth, result);
            int code = in_child(live_with_a_failure, rule);
            if (code == CHILD_NO_SUCH_CALL) {
                break;
            }
            if (code != 0) {
                fail_msg("fail=%s: %s (%d)", rule, code < 0 ? "the process died" : "something was not given back",
                         code);
            }
            failures_nr++;
        }
    }
    assert_true(failures_nr > NAMES_NR);
}

static void test_fake_cuda_device_each_call_failing_in_turn(void **state)
{
    (void)state;
    fail_each_in_turn("999");
}

static int make_cache(void **state)
{
    (void)state;
    jit_folder_make();
    return setenv("CACHE_DIRECTORY", jit_folder_path(), 1);
}

static int remove_cache(void **state)
{
    (void)state;
    jit_folder_remove();
    return 0;
}

int main(int argc, char *argv[])
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fake_cuda_device_lives_by_the_rules),
        cmocka_unit_test(test_fake_cuda_device_meets_new_memory_in_an_old_place),
        cmocka_unit_test(test_fake_cuda_device_each_call_failing_in_turn),
    };
    if (jit_is_helper(argc, argv)) {
        return jit_helper_main(argc, argv);
    }
    return cmocka_run_group_tests(tests, make_cache, remove_cache);
}
