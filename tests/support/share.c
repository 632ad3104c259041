/* SPDX-License-Identifier: Apache-2.0 */
#include "share.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "cuda_api.h"
#include "require.h"

/* What only the owner of memory calls, beside the service's own table; with the version of the ABI. */
#define OWNER_CALLS(X)                                                                                                \
    X(cuMemAlloc, 3020, (cuda_address *, size_t))                                                                     \
    X(cuMemFree, 3020, (cuda_address))                                                                                \
    X(cuMemcpyHtoD, 3020, (cuda_address, const void *, size_t))                                                       \
    X(cuMemcpyDtoH, 3020, (void *, cuda_address, size_t))                                                             \
    X(cuMemcpyDtoDAsync, 3020, (cuda_address, cuda_address, size_t, struct cuda_stream *))                            \
    X(cuEventCreate, 2000, (struct cuda_event **, unsigned))                                                          \
    X(cuEventRecord, 2000, (struct cuda_event *, struct cuda_stream *))                                               \
    X(cuIpcGetEventHandle, 4010, (struct cuda_ipc_handle *, struct cuda_event *))                                     \
    X(cuStreamWaitValue64, 11070, (struct cuda_stream *, cuda_address, uint64_t, unsigned))                           \
    X(cuIpcGetMemHandle, 4010, (struct cuda_ipc_handle *, cuda_address))                                              \
    X(cuMemCreate, 10020, (cuda_allocation *, size_t, const struct cuda_allocation_properties *, unsigned long long)) \
    X(cuMemExportToShareableHandle, 10020, (void *, cuda_allocation, int, unsigned long long))

#define MEMBER(name, abi, parameters) int(*name) parameters;
static struct {
    OWNER_CALLS(MEMBER)
} owner;
#define ENTRY(name, abi, parameters) {#name, abi, &owner.name},
static const struct {
    const char *name;
    int abi;
    void *slot;
} entries[] = {OWNER_CALLS(ENTRY)};
static const struct cuda_api *cuda;
struct cuda_event;

#define EVENT_INTERPROCESS (2u | 4u) /* for other processes, and without a time */
#define WAIT_EQUAL 1
#define WORD_BYTES 4096
#define NEVER UINT64_MAX
#define SHARE_CONNECTIONS "2" /* what MPS gives a process by itself */
static struct cuda_context *context;

#define MUST(call) REQUIRE((call) == CUDA_RESULT_OK)

/* Any thread may be the caller. */
static void enter(void)
{
    MUST(cuda->cuCtxSetCurrent(context));
}

bool share_find(const char *name, int abi, void *slot)
{
    int (*find)(const char *name, void **address, int abi, uint64_t flags, int *answer);
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    REQUIRE(library != NULL);
    void *symbol = dlsym(library, "cuGetProcAddress_v2");
    REQUIRE(symbol != NULL);
    memcpy(&find, &symbol, sizeof(find));
    int answer = 0;
    void *address = NULL;
    bool found = find(name, &address, abi, 0, &answer) == CUDA_RESULT_OK && address;
    memcpy(slot, &address, sizeof(address));
    return found;
}

static bool find_calls(char *reason, size_t reason_size)
{
    for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
        bool found = share_find(entries[i].name, entries[i].abi, entries[i].slot);
        if (!found && strncmp(entries[i].name, "cuMemcpy", strlen("cuMemcpy")) != 0) {
            snprintf(reason, reason_size, "the driver has no %s", entries[i].name);
            return false;
        }
    }
    return true;
}

static bool find_driver(char *reason, size_t reason_size)
{
    struct error err;
    /* A client's share, not the 32 that cuda_api_get would take for the service: under MPS three processes with so many
     * are all that there is room for (server.c takes it back for the daemon). */
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", SHARE_CONNECTIONS, 0);
    cuda = cuda_api_get(&err);
    if (!cuda) {
        snprintf(reason, reason_size, "%s", err.message);
    }
    return cuda && find_calls(reason, reason_size);
}

int share_devices(void)
{
    char reason[256];
    int devices_nr = 0;
    return find_driver(reason, sizeof(reason)) && cuda->cuDeviceGetCount(&devices_nr) == CUDA_RESULT_OK ? devices_nr
                                                                                                        : 0;
}

bool share_open(char uuid[SHARE_UUID_BYTES], char *reason, size_t reason_size)
{
    return share_open_nth(0, uuid, reason, reason_size);
}

bool share_open_nth(int ordinal, char uuid[SHARE_UUID_BYTES], char *reason, size_t reason_size)
{
    struct cuda_uuid bytes;
    int device;
    if (!find_driver(reason, reason_size)) {
        return false;
    }
    int result = cuda->cuDeviceGet(&device, ordinal);
    if (result == CUDA_RESULT_OK) {
        result = cuda->cuDevicePrimaryCtxRetain(&context, device);
    }
    if (result != CUDA_RESULT_OK) {
        snprintf(reason, reason_size, "there is no usable GPU %d: the driver says %d", ordinal, result);
        return false;
    }
    enter();
    MUST(cuda->cuDeviceGetUuid(&bytes, device));
    int at = snprintf(uuid, SHARE_UUID_BYTES, "GPU-");
    for (int i = 0; i < 16; i++) {
        at += snprintf(uuid + at, SHARE_UUID_BYTES - (size_t)at, "%s%02x",
                       i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", bytes.bytes[i]);
    }
    return true;
}

bool share_try_alloc(struct share *share, size_t size)
{
    struct cuda_ipc_handle handle;
    memset(share, 0, sizeof(*share));
    cuda_address address = 0;
    enter();
    if (owner.cuMemAlloc(&address, size) != CUDA_RESULT_OK) {
        return false;
    }
    MUST(owner.cuIpcGetMemHandle(&handle, address));
    memcpy(share->handle, handle.bytes, sizeof(handle.bytes));
    MUST(cuda->cuPointerGetAttribute(&share->buffer_id, CUDA_POINTER_BUFFER_ID, address));
    share->address = address;
    share->size = size;
    return true;
}

void share_alloc(struct share *share, size_t size)
{
    REQUIRE(share_try_alloc(share, size), "cuMemAlloc of %zu bytes", size);
}

void share_alloc_chunks(struct share *share)
{
    struct cuda_allocation_properties properties = {.type = CUDA_ALLOCATION_PINNED,
                                                    .handle_types = CUDA_HANDLE_POSIX_FD,
                                                    .location = {.type = CUDA_LOCATION_DEVICE, .id = 0}};
    struct cuda_access access = {.location = properties.location, .flags = CUDA_ACCESS_READ_WRITE};
    cuda_address address = 0;
    memset(share, 0, sizeof(*share));
    enter();
    MUST(cuda->cuMemGetAllocationGranularity(&share->chunk_bytes, &properties, CUDA_GRANULARITY_MINIMUM));
    share->chunks_nr = SHARE_CHUNKS;
    share->size = SHARE_CHUNKS * share->chunk_bytes;
    MUST(cuda->cuMemAddressReserve(&address, share->size, 0, 0, 0));
    for (int i = 0; i < SHARE_CHUNKS; i++) {
        cuda_allocation allocation = 0;
        MUST(owner.cuMemCreate(&allocation, share->chunk_bytes, &properties, 0));
        MUST(cuda->cuMemMap(address + (size_t)i * share->chunk_bytes, share->chunk_bytes, 0, allocation, 0));
        MUST(owner.cuMemExportToShareableHandle(&share->fds[i], allocation, CUDA_HANDLE_POSIX_FD, 0));
        share->allocations[i] = allocation;
    }
    MUST(cuda->cuMemSetAccess(address, share->size, &access, 1));
    share->address = address;
}

void share_free(struct share *share)
{
    enter();
    if (share->chunks_nr == 0) {
        MUST(owner.cuMemFree(share->address));
        return;
    }
    for (uint32_t i = 0; i < share->chunks_nr; i++) {
        MUST(cuda->cuMemUnmap(share->address + i * share->chunk_bytes, share->chunk_bytes));
        MUST(cuda->cuMemRelease(share->allocations[i]));
        close(share->fds[i]);
    }
    MUST(cuda->cuMemAddressFree(share->address, share->size));
}

void share_write(const struct share *share, size_t at, const void *from, size_t size)
{
    if (!owner.cuMemcpyHtoD) { /* the driver of tests without a GPU: its memory is ours */
        uint64_t word;
        void *to = (void *)(uintptr_t)(share->address + at);
        if (size == sizeof(word)) { /* its streams may wait for it */
            memcpy(&word, from, size);
            __atomic_store_n((uint64_t *)to, word, __ATOMIC_RELEASE);
        } else {
            memcpy(to, from, size);
        }
        return;
    }
    enter();
    MUST(owner.cuMemcpyHtoD(share->address + at, from, size));
    MUST(cuda->cuStreamSynchronize(NULL)); /* it returns when the bytes are on their way: another process reads them */
}

void share_read(const struct share *share, size_t at, void *to, size_t size)
{
    if (!owner.cuMemcpyDtoH) {
        memcpy(to, (const void *)(uintptr_t)(share->address + at), size);
        return;
    }
    enter();
    MUST(owner.cuMemcpyDtoH(to, share->address + at, size));
}

size_t share_free_bytes(void)
{
    size_t free_bytes = 0;
    size_t all_bytes = 0;
    MUST(cuda->cuMemGetInfo(&free_bytes, &all_bytes));
    return free_bytes;
}

double share_copy_us(const struct share *to, const struct share *from, size_t size, int times)
{
    static struct cuda_stream *stream;
    if (!stream) {
        MUST(cuda->cuStreamCreate(&stream, CUDA_STREAM_NON_BLOCKING));
    }
    MUST(cuda->cuStreamSynchronize(stream));
    uint64_t start_ns = clock_now_ns();
    for (int i = 0; i < times; i++) {
        MUST(owner.cuMemcpyDtoDAsync(to->address, from->address, size, stream));
    }
    MUST(cuda->cuStreamSynchronize(stream));
    return (double)(clock_now_ns() - start_ns) / 1e3;
}

void share_never(unsigned char handle[SHARE_HANDLE_BYTES])
{
    struct cuda_ipc_handle made_handle;
    struct cuda_stream *stream;
    struct cuda_event *made;
    struct share word;
    const uint64_t zero = 0;
    share_alloc(&word, WORD_BYTES);
    share_write(&word, 0, &zero, sizeof(zero));
    MUST(cuda->cuStreamCreate(&stream, CUDA_STREAM_NON_BLOCKING));
    MUST(owner.cuEventCreate(&made, EVENT_INTERPROCESS));
    MUST(owner.cuStreamWaitValue64(stream, word.address, NEVER, WAIT_EQUAL));
    MUST(owner.cuEventRecord(made, stream));
    MUST(owner.cuIpcGetEventHandle(&made_handle, made));
    memcpy(handle, made_handle.bytes, sizeof(made_handle.bytes));
}
