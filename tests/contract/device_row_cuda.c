/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA device as the row under test, over the driver of tests/support/fake_cuda: the client's side of memory is an
 * allocation of the same process (which the fake driver allows when told to), known by its IPC handle.
 */
#include "device_row.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cuda_jit.h"
#include "fake_cuda.h"

/* Launches run on a thread of the library, as on a GPU: not before the next poll, those of a stream in order, and those
 * of two streams in any. The memory is slow (CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE), so that a call is soon a long one
 * of many launches. */
#define BEHAVIOUR "same_process;delay_us=100;uneven=1;memory=4294967296;attribute=36:1000;attribute=133:1"
#define POLL_PAUSE_NS 20000
#define POLLS_MAX 500000

enum mlacat_status __wrap_jit_load(const struct jit_options *options,
                                   enum mlacat_status (*load)(void *owner, const struct jit_image *image,
                                                              struct error *err),
                                   void *owner, struct jit_report *report, struct error *err);

/* Machine code for the fake driver; a helper process would run this program's tests once more. */
enum mlacat_status __wrap_jit_load(const struct jit_options *options,
                                   enum mlacat_status (*load)(void *owner, const struct jit_image *image,
                                                              struct error *err),
                                   void *owner, struct jit_report *report, struct error *err)
{
    static const char text[] = "// PTX";
    const struct jit_image image = {.bytes = text, .bytes_nr = sizeof(text), .ptx = true, .source = JIT_FROM_BUILD};
    (void)options;
    memset(report, 0, sizeof(*report));
    return load(owner, &image, err);
}

int row_setup(void **state)
{
    (void)state;
    struct error err;
    fake_cuda_behave(BEHAVIOUR);
    if (row.ops->open("", &row.device, &row.info, &err) != DEVICE_OK) {
        print_error("%s: %s\n", row.name, err.message);
        return -1;
    }
    return row.ops->stream_open(row.device, NULL, &row.stream, &err) == MLACAT_OK ? 0 : -1;
}

int row_teardown(void **state)
{
    (void)state;
    const struct fake_cuda_live none = {0};
    row.ops->stream_close(row.stream);
    row.ops->close(row.device);
    struct fake_cuda_live live = fake_cuda_live();
    return memcmp(&live, &none, sizeof(none)) == 0 ? 0 : -1;
}

struct client_memory client_memory_new(size_t size, int seals)
{
    cuda_address address = 0;
    (void)seals;
    assert_int_equal(fake_cuMemAlloc(&address, size), CUDA_RESULT_OK);
    return (struct client_memory){.fd = -1, .bytes = (unsigned char *)(uintptr_t)address, .size = size};
}

void client_memory_free(struct client_memory *client)
{
    assert_int_equal(fake_cuMemFree((uintptr_t)client->bytes), CUDA_RESULT_OK);
}

struct memory_request client_request(const struct client_memory *client)
{
    struct memory_request request;
    struct cuda_ipc_handle handle;
    memset(&request, 0, sizeof(request));
    request.kind = MEMORY_CUDA_IPC;
    request.size_bytes = client->size;
    request.allocation_bytes = client->size;
    request.limit_bytes = UINT64_MAX;
    cuda_address address = (uintptr_t)client->bytes;
    assert_int_equal(fake_cuIpcGetMemHandle(&handle, address), CUDA_RESULT_OK);
    assert_int_equal(fake_cuPointerGetAttribute(&request.buffer_id, CUDA_POINTER_BUFFER_ID, address), CUDA_RESULT_OK);
    memcpy(request.handle, handle.bytes, sizeof(request.handle));
    return request;
}

/* ------------------------------------------------------------------------------------------------------ an event */

#define EVENT_INTERPROCESS (2u | 4u) /* with CU_EVENT_DISABLE_TIMING */

static struct {
    struct cuda_stream *stream;
    struct cuda_event *event;
    cuda_address word; /* that the stream waits for */
    uint64_t turn;
} gate;

static void make_event(uint8_t handle[MEMORY_HANDLE_BYTES])
{
    struct cuda_ipc_handle made;
    gate.turn = 0;
    assert_int_equal(fake_cuStreamCreate(&gate.stream, CUDA_STREAM_NON_BLOCKING), CUDA_RESULT_OK);
    assert_int_equal(fake_cuEventCreate(&gate.event, EVENT_INTERPROCESS), CUDA_RESULT_OK);
    assert_int_equal(fake_cuMemAlloc(&gate.word, sizeof(gate.turn)), CUDA_RESULT_OK);
    assert_int_equal(fake_cuIpcGetEventHandle(&made, gate.event), CUDA_RESULT_OK);
    memcpy(handle, made.bytes, sizeof(made.bytes));
}

static void record_event(void)
{
    assert_int_equal(fake_cuStreamWaitValue64(gate.stream, gate.word, ++gate.turn, 0), CUDA_RESULT_OK);
    assert_int_equal(fake_cuEventRecord(gate.event, gate.stream), CUDA_RESULT_OK);
}

static void let_event_come(void)
{
    atomic_store((_Atomic uint64_t *)(uintptr_t)gate.word, gate.turn);
    assert_int_equal(fake_cuStreamSynchronize(gate.stream), CUDA_RESULT_OK);
}

static void destroy_event(void)
{
    assert_int_equal(fake_cuEventDestroy(gate.event), CUDA_RESULT_OK);
    assert_int_equal(fake_cuMemFree(gate.word), CUDA_RESULT_OK);
    assert_int_equal(fake_cuStreamDestroy(gate.stream), CUDA_RESULT_OK);
}

static const struct row_events events = {make_event, record_event, let_event_come, destroy_event};

/* The tests count polls, of which a device that works elsewhere would see far too many. */
static int poll_with_pause(struct device_stream *stream, struct device_completion *done, int max, struct error *err)
{
    const struct timespec pause = {.tv_nsec = POLL_PAUSE_NS};
    int nr = device_cuda_ops.poll(stream, done, max, err);
    if (nr == 0) {
        nanosleep(&pause, NULL);
    }
    return nr;
}

int row_run_tests(const char *group, const struct CMUnitTest *tests, size_t nr)
{
    static struct device_ops paused;
    char name[64];
    paused = device_cuda_ops;
    paused.poll = poll_with_pause;
    row.name = "cuda over the fake driver";
    row.ops = &paused;
    row.events = &events;
    row.polls_max = POLLS_MAX;
    snprintf(name, sizeof(name), "%s (%s)", group, row.name);
    return _cmocka_run_group_tests(name, tests, nr, NULL, NULL);
}
