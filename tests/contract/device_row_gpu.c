/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA device as the row under test, over whatever libcuda.so.1 is: tests/gpu/run.sh runs it on a GPU. The client's
 * memory is of another process (gpu_memory.h), and `bytes` is the CPU's copy of it: what the test has changed goes to
 * the GPU before a call, and when no call is left everything comes back.
 */
#include "device_row.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "cuda_jit.h"
#include "gpu_memory.h"

#define MEMORIES_MAX 16
#define POLL_PAUSE_NS 20000
#define POLLS_MAX 500000

static struct {
    struct client_memory client;
    unsigned char *there; /* what the GPU has, as far as this process knows */
} memories[MEMORIES_MAX];
static int memories_nr;
static int in_flight;

/* The device compiles its kernels in a process of the same program. */
__attribute__((constructor)) static void compile_if_told(int argc, char *argv[])
{
    if (jit_is_helper(argc, argv)) {
        _exit(jit_helper_main(argc, argv));
    }
}

int row_setup(void **state)
{
    (void)state;
    struct error err;
    if (row.ops->open(gpu_memory_device(), &row.device, &row.info, &err) != DEVICE_OK) {
        print_error("%s: %s\n", row.name, err.message);
        return -1;
    }
    return row.ops->stream_open(row.device, NULL, &row.stream, &err) == MLACAT_OK ? 0 : -1;
}

int row_teardown(void **state)
{
    (void)state;
    row.ops->stream_close(row.stream);
    row.ops->close(row.device);
    return 0;
}

struct client_memory client_memory_new(size_t size, int seals)
{
    struct client_memory client = {.fd = memfd_create("contract", MFD_CLOEXEC), .size = size};
    (void)seals;
    assert_true(client.fd >= 0 && memories_nr < MEMORIES_MAX);
    assert_int_equal(ftruncate(client.fd, (off_t)size), 0);
    client.bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, client.fd, 0);
    assert_ptr_not_equal(client.bytes, MAP_FAILED);
    gpu_memory_make(client.fd, size);
    gpu_memory_upload(client.fd);
    memories[memories_nr].client = client;
    memories[memories_nr].there = calloc(1, size);
    assert_non_null(memories[memories_nr].there);
    memories_nr++;
    return client;
}

void client_memory_free(struct client_memory *client)
{
    for (int i = 0; i < memories_nr; i++) {
        if (memories[i].client.fd == client->fd) {
            free(memories[i].there);
            memories[i] = memories[--memories_nr];
            break;
        }
    }
    gpu_memory_free(client->fd);
    munmap(client->bytes, client->size);
    close(client->fd);
}

struct memory_request client_request(const struct client_memory *client)
{
    struct memory_request request;
    const struct share *share = gpu_memory_find(client->fd);
    assert_non_null(share);
    memset(&request, 0, sizeof(request));
    request.kind = MEMORY_CUDA_IPC;
    request.size_bytes = client->size;
    request.allocation_bytes = share->size;
    request.limit_bytes = UINT64_MAX;
    request.buffer_id = share->buffer_id;
    memcpy(request.handle, share->handle, sizeof(request.handle));
    return request;
}

static enum device_answer send_and_submit(struct device_stream *stream, const struct device_call *calls, uint32_t *nr,
                                          struct error *err)
{
    for (int i = 0; i < memories_nr; i++) {
        const struct client_memory *client = &memories[i].client;
        if (memcmp(client->bytes, memories[i].there, client->size) != 0) {
            gpu_memory_upload(client->fd);
            memcpy(memories[i].there, client->bytes, client->size);
        }
    }
    enum device_answer answer = device_cuda_ops.submit(stream, calls, nr, err);
    in_flight += (int)*nr;
    return answer;
}

/* With a pause: the tests count polls, of which a device that works elsewhere would see far too many. */
static int poll_and_fetch(struct device_stream *stream, struct device_completion *done, int max, struct error *err)
{
    const struct timespec pause = {.tv_nsec = POLL_PAUSE_NS};
    int nr = device_cuda_ops.poll(stream, done, max, err);
    if (nr <= 0) {
        nanosleep(&pause, NULL);
        return nr;
    }
    in_flight -= nr;
    for (int i = 0; i < memories_nr && in_flight == 0; i++) {
        const struct client_memory *client = &memories[i].client;
        gpu_memory_download(client->fd);
        memcpy(memories[i].there, client->bytes, client->size);
    }
    return nr;
}

int row_run_tests(const char *group, const struct CMUnitTest *tests, size_t nr)
{
    static struct device_ops moving;
    char name[64];
    setenv("MLACAT_TEST_DEVICE", "cuda", 1);
    (void)gpu_memory_device(); /* the process with the memory is forked before this one starts CUDA */
    moving = device_cuda_ops;
    moving.submit = send_and_submit;
    moving.poll = poll_and_fetch;
    row.name = "cuda";
    row.ops = &moving;
    row.polls_max = POLLS_MAX;
    snprintf(name, sizeof(name), "%s (%s)", group, row.name);
    return _cmocka_run_group_tests(name, tests, nr, NULL, NULL);
}
