/* SPDX-License-Identifier: Apache-2.0 */
#include "share.h"

#include <dlfcn.h>
#include <stdio.h>
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

#define MUST(call) REQUIRE((call) == CUDA_RESULT_OK)

static bool find_calls(char *reason, size_t reason_size)
{
    int (*find)(const char *name, void **address, int abi, uint64_t flags, int *answer);
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    REQUIRE(library != NULL);
    void *symbol = dlsym(library, "cuGetProcAddress_v2");
    REQUIRE(symbol != NULL);
    memcpy(&find, &symbol, sizeof(find));
    for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
        int answer = 0;
        void *address = NULL;
        bool found = find(entries[i].name, &address, entries[i].abi, 0, &answer) == CUDA_RESULT_OK && address;
        if (!found && strncmp(entries[i].name, "cuMemcpy", strlen("cuMemcpy")) != 0) {
            snprintf(reason, reason_size, "the driver has no %s", entries[i].name);
            return false;
        }
        memcpy(entries[i].slot, &address, sizeof(address));
    }
    return true;
}

bool share_open(char uuid[SHARE_UUID_BYTES], char *reason, size_t reason_size)
{
    struct error err;
    struct cuda_context *context;
    struct cuda_uuid bytes;
    int device;
    cuda = cuda_api_get(&err);
    if (!cuda) {
        snprintf(reason, reason_size, "%s", err.message);
        return false;
    }
    if (!find_calls(reason, reason_size)) {
        return false;
    }
    if (cuda->cuDeviceGet(&device, 0) != CUDA_RESULT_OK ||
        cuda->cuDevicePrimaryCtxRetain(&context, device) != CUDA_RESULT_OK) {
        snprintf(reason, reason_size, "there is no usable GPU");
        return false;
    }
    MUST(cuda->cuCtxSetCurrent(context));
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
        memcpy((void *)(uintptr_t)(share->address + at), from, size);
        return;
    }
    MUST(owner.cuMemcpyHtoD(share->address + at, from, size));
}

void share_read(const struct share *share, size_t at, void *to, size_t size)
{
    if (!owner.cuMemcpyDtoH) {
        memcpy(to, (const void *)(uintptr_t)(share->address + at), size);
        return;
    }
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

/* ------------------------------------------------------------------------------------------------------ registering */

static struct outcome outcome_of(const Mlacat__V1__Envelope *reply)
{
    struct outcome outcome = {0};
    REQUIRE(reply->body_case == MLACAT__V1__ENVELOPE__BODY_ANSWER && reply->answer->status != NULL);
    outcome.code = reply->answer->status->code;
    outcome.scope = reply->answer->status->scope;
    snprintf(outcome.message, sizeof(outcome.message), "%s", reply->answer->status->message);
    return outcome;
}

static struct outcome register_memory(struct raw *raw, const char *uuid, Mlacat__V1__Memory *memory, const int *fds,
                                      uint32_t fds_nr, struct ref *buffer)
{
    Mlacat__V1__RegisterBuffer message = MLACAT__V1__REGISTER_BUFFER__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    struct outcome outcome = {0};
    message.device_uuid = (char *)(uintptr_t)uuid;
    message.memory = memory;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER;
    envelope.register_buffer = &message;
    Mlacat__V1__Envelope *reply = raw_request(raw, &envelope, fds, fds_nr);
    if (reply->body_case == MLACAT__V1__ENVELOPE__BODY_BUFFER_REGISTERED) {
        *buffer = (struct ref){reply->buffer_registered->buffer->id, reply->buffer_registered->buffer->generation};
    } else {
        outcome = outcome_of(reply);
    }
    raw_free(reply);
    return outcome;
}

static struct outcome register_chunks(struct raw *raw, const char *uuid, const struct share *share, size_t offset,
                                      size_t size, size_t claimed, struct ref *buffer)
{
    Mlacat__V1__Memory memory = MLACAT__V1__MEMORY__INIT;
    Mlacat__V1__CudaVmmMemory vmm = MLACAT__V1__CUDA_VMM_MEMORY__INIT;
    Mlacat__V1__CudaVmmChunk chunks[SHARE_CHUNKS];
    Mlacat__V1__CudaVmmChunk *pointers[SHARE_CHUNKS];
    for (uint32_t i = 0; i < SHARE_CHUNKS; i++) {
        mlacat__v1__cuda_vmm_chunk__init(&chunks[i]);
        chunks[i].fd = i;
        chunks[i].size_bytes = claimed / SHARE_CHUNKS;
        pointers[i] = &chunks[i];
    }
    vmm.n_chunks = SHARE_CHUNKS;
    vmm.chunks = pointers;
    vmm.offset_bytes = offset;
    vmm.size_bytes = size;
    memory.kind_case = MLACAT__V1__MEMORY__KIND_CUDA_VMM;
    memory.cuda_vmm = &vmm;
    return register_memory(raw, uuid, &memory, share->fds, SHARE_CHUNKS, buffer);
}

struct outcome share_register(struct raw *raw, const char *uuid, const struct share *share, size_t offset, size_t size,
                              size_t claimed, struct ref *buffer)
{
    Mlacat__V1__Memory memory = MLACAT__V1__MEMORY__INIT;
    Mlacat__V1__CudaIpcMemory ipc = MLACAT__V1__CUDA_IPC_MEMORY__INIT;
    if (share->chunks_nr > 0) {
        return register_chunks(raw, uuid, share, offset, size, claimed, buffer);
    }
    ipc.handle.data = (uint8_t *)(uintptr_t)share->handle;
    ipc.handle.len = sizeof(share->handle);
    ipc.allocation_bytes = claimed;
    ipc.offset_bytes = offset;
    ipc.size_bytes = size;
    ipc.buffer_id = share->buffer_id;
    memory.kind_case = MLACAT__V1__MEMORY__KIND_CUDA_IPC;
    memory.cuda_ipc = &ipc;
    return register_memory(raw, uuid, &memory, NULL, 0, buffer);
}

struct ref share_must_register(struct raw *raw, const char *uuid, const struct share *share, size_t offset, size_t size)
{
    struct ref buffer = {0};
    struct outcome outcome = share_register(raw, uuid, share, offset, size, share->size, &buffer);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    return buffer;
}

struct ref share_must_open_stream(struct raw *raw, const char *uuid)
{
    Mlacat__V1__OpenStream message = MLACAT__V1__OPEN_STREAM__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    message.device_uuid = (char *)(uintptr_t)uuid;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_OPEN_STREAM;
    envelope.open_stream = &message;
    Mlacat__V1__Envelope *reply = raw_request(raw, &envelope, NULL, 0);
    REQUIRE(reply->body_case == MLACAT__V1__ENVELOPE__BODY_STREAM_OPENED);
    struct ref stream = {reply->stream_opened->stream->id, reply->stream_opened->stream->generation};
    raw_free(reply);
    return stream;
}
