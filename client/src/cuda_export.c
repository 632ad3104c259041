/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_export.h"

#include <fcntl.h>

#include "cuda_current.h"
#include "cuda_driver.h"

/* What is asked about a pointer. */
struct question {
    const struct cuda_driver *cuda;
    unsigned long long address;
    size_t bytes;
    int ordinal;
    int device;
    void *pool;
    bool legacy;
    struct cuda_export *memory;
    struct wire_fds *fds;
    enum mlacat_status (*answer)(struct question *); /* runs with a context of the device */
};

#define NOT_SHAREABLE "the memory at %p cannot be shared with another process: "

static void *pointer_of(const struct question *q)
{
    return (void *)(uintptr_t)q->address;
}

static enum mlacat_status fail_driver(const char *call, int result)
{
    return error_fail(MLACAT_INTERNAL, "the CUDA driver failed: %s: %d", call, result);
}

/* One attribute at a time: asked for several, the driver says success for a pointer that it does not know. */
static int attribute(const struct question *q, int number, void *value)
{
    return q->cuda->cuPointerGetAttribute(value, number, q->address);
}

static enum mlacat_status check_pointer(struct question *q)
{
    unsigned int type = 0;
    unsigned int managed = 0;
    unsigned int mapped = 1;
    int result = attribute(q, CUDA_POINTER_MEMORY_TYPE, &type);
    if (result != 0 || type != CUDA_MEMORY_DEVICE) {
        return error_fail(MLACAT_INVALID_ARGUMENT,
                          "%p is no GPU memory (the driver says %d, type %u); give a pointer of cudaMalloc, or use "
                          "mlacat_buffer_alloc for memory of the host device",
                          pointer_of(q), result, type);
    }
    if (attribute(q, CUDA_POINTER_IS_MANAGED, &managed) == 0 && managed != 0) {
        return error_fail(MLACAT_FAILED_PRECONDITION, NOT_SHAREABLE "it is managed; allocate it with cudaMalloc",
                          pointer_of(q));
    }
    if (attribute(q, CUDA_POINTER_MAPPED, &mapped) == 0 && mapped == 0) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "%p is reserved but no memory is mapped there", pointer_of(q));
    }
    result = attribute(q, CUDA_POINTER_DEVICE_ORDINAL, &q->ordinal);
    if (result != 0) {
        return fail_driver("cuPointerGetAttribute", result);
    }
    unsigned int legacy = 0;
    q->legacy = attribute(q, CUDA_POINTER_IS_LEGACY_IPC, &legacy) == 0 && legacy != 0;
    if (attribute(q, CUDA_POINTER_MEMPOOL, &q->pool) != 0) {
        q->pool = NULL;
    }
    return MLACAT_OK;
}

static enum mlacat_status name_device(struct question *q, char uuid[CLIENT_UUID_BYTES])
{
    int result = q->cuda->cuDeviceGet(&q->device, q->ordinal);
    if (result == 0) {
        result = cuda_driver_name_device(q->cuda, q->device, uuid);
    }
    return result == 0 ? MLACAT_OK : fail_driver("cuDeviceGetUuid", result);
}

static enum mlacat_status fail_extent(const struct question *q, unsigned long long base, size_t all)
{
    return error_fail(MLACAT_INVALID_ARGUMENT,
                      "%zu bytes at %p end past their allocation of %zu bytes at %p; give the size of the allocation "
                      "or less",
                      q->bytes, pointer_of(q), all, (void *)(uintptr_t)base);
}

/* Notes what the memory at `address` is now. */
static enum mlacat_status note_piece(struct question *q, unsigned long long address)
{
    unsigned long long buffer_id = 0;
    int result = q->cuda->cuPointerGetAttribute(&buffer_id, CUDA_POINTER_BUFFER_ID, address);
    if (result != 0) {
        return fail_driver("cuPointerGetAttribute", result);
    }
    q->memory->pieces[q->memory->pieces_nr++] = (struct cuda_piece){address, buffer_id};
    return MLACAT_OK;
}

/* Memory of cudaMalloc. The handle is of the base: that is what the driver's documentation asks for. */
static enum mlacat_status export_handle(struct question *q)
{
    unsigned long long base = 0;
    size_t all = 0;
    int result = q->cuda->cuMemGetAddressRange(&base, &all, q->address);
    if (result != 0) {
        return fail_driver("cuMemGetAddressRange", result);
    }
    uint64_t offset = q->address - base;
    if (offset > all || q->bytes > all - offset) {
        return fail_extent(q, base, all);
    }
    result = q->cuda->cuIpcGetMemHandle(q->memory->handle, base);
    if (result != 0) {
        return error_fail(MLACAT_FAILED_PRECONDITION,
                          NOT_SHAREABLE "cuIpcGetMemHandle: %d; allocate it with cudaMalloc, in the pid namespace of "
                                        "the daemon",
                          pointer_of(q), result);
    }
    q->memory->allocation_bytes = all;
    q->memory->offset_bytes = offset;
    return note_piece(q, q->address);
}

/* One chunk of cuMemCreate; *end: where the next one begins. */
static enum mlacat_status export_chunk(struct question *q, unsigned long long at, unsigned long long *end)
{
    unsigned long long base = 0;
    unsigned long long allocation = 0;
    size_t size = 0;
    int fd = -1;
    if (q->fds->nr == WIRE_PACKET_FDS) {
        return error_fail(MLACAT_OUT_OF_RANGE,
                          "%zu bytes at %p take more than %d chunks of GPU memory; register them in parts", q->bytes,
                          pointer_of(q), WIRE_PACKET_FDS);
    }
    int result = q->cuda->cuMemGetAddressRange(&base, &size, at);
    if (result != 0) {
        return at == q->address ? fail_driver("cuMemGetAddressRange", result)
                                : fail_extent(q, q->address, (size_t)(at - q->address));
    }
    result = q->cuda->cuMemRetainAllocationHandle(&allocation, (void *)(uintptr_t)at);
    if (result != 0) {
        return fail_driver("cuMemRetainAllocationHandle", result);
    }
    result = q->cuda->cuMemExportToShareableHandle(&fd, allocation, CUDA_HANDLE_POSIX_FD, 0);
    q->cuda->cuMemRelease(allocation);
    if (result != 0) {
        return error_fail(MLACAT_FAILED_PRECONDITION,
                          NOT_SHAREABLE "its allocator made it without a handle type (error %d); for PyTorch set "
                                        "TORCH_CUDA_EXPANDABLE_SEGMENTS_IPC=1 or expandable_segments:False",
                          pointer_of(q), result);
    }
    if (q->fds->nr == 0) {
        q->memory->offset_bytes = at - base;
    }
    q->memory->chunk_bytes[q->fds->nr] = size;
    q->fds->fd[q->fds->nr++] = fd;
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    *end = base + size;
    return note_piece(q, at);
}

static enum mlacat_status export_chunks(struct question *q)
{
    unsigned long long at = q->address;
    while (at < q->address + q->bytes) {
        enum mlacat_status status = export_chunk(q, at, &at);
        if (status != MLACAT_OK) {
            return status;
        }
    }
    return MLACAT_OK;
}

/* The driver's attribute can be wrong for memory of cudaMalloc, so what is left is tried. */
static enum mlacat_status export_memory(struct question *q)
{
    unsigned long long allocation = 0;
    if (q->legacy) {
        return export_handle(q);
    }
    if (q->cuda->cuMemRetainAllocationHandle(&allocation, pointer_of(q)) == 0) {
        q->cuda->cuMemRelease(allocation);
        return export_chunks(q);
    }
    if (q->pool != NULL) {
        return error_fail(MLACAT_FAILED_PRECONDITION,
                          NOT_SHAREABLE "it belongs to a pool (cudaMallocAsync); allocate it with cudaMalloc, or with "
                                        "PyTorch's own allocator (backend:native)",
                          pointer_of(q));
    }
    return export_handle(q);
}

/* With a context of the memory's device: the one that it belongs to, or the primary one if that is in use. A context is
 * never made here. */
static enum mlacat_status answer_in_context(struct question *q)
{
    void *context = NULL;
    void *primary = NULL;
    enum mlacat_status status;
    if (attribute(q, CUDA_POINTER_CONTEXT, &context) != 0 || context == NULL) {
        int result = cuda_current_hold_primary(q->cuda, q->device, &primary);
        if (result != 0 || primary == NULL) {
            return error_fail(MLACAT_FAILED_PRECONDITION,
                              "CUDA device %d has no active context in this process (%d); use the device first",
                              q->ordinal, result);
        }
        context = primary;
    }
    int result = q->cuda->cuCtxPushCurrent(context);
    if (result == 0) {
        status = q->answer(q);
        q->cuda->cuCtxPopCurrent(&context);
    } else {
        status = fail_driver("cuCtxPushCurrent", result);
    }
    if (primary != NULL) {
        q->cuda->cuDevicePrimaryCtxRelease(q->device);
    }
    return status;
}

static enum mlacat_status ask(struct question *q, char uuid[CLIENT_UUID_BYTES])
{
    enum mlacat_status status = cuda_driver(&q->cuda);
    if (status != MLACAT_OK) {
        return status;
    }
    if (q->bytes > UINTPTR_MAX - q->address) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "%zu bytes at %p go past the end of the address space", q->bytes,
                          pointer_of(q));
    }
    struct cuda_asking asking;
    cuda_asking_begin(&asking, q->cuda);
    status = check_pointer(q);
    if (status == MLACAT_OK) {
        status = name_device(q, uuid);
    }
    if (status == MLACAT_OK) {
        status = answer_in_context(q);
    }
    cuda_asking_end(&asking);
    return status;
}

enum mlacat_status cuda_export(const void *pointer, size_t bytes, struct cuda_export *memory, struct wire_fds *fds,
                               char uuid[CLIENT_UUID_BYTES])
{
    struct question q = {
        .address = (uintptr_t)pointer, .bytes = bytes, .memory = memory, .fds = fds, .answer = export_memory};
    return ask(&q, uuid);
}

/* ---------------------------------------------------------------------------------------------------- asking again */

void cuda_asking_begin(struct cuda_asking *asking, const struct cuda_driver *cuda)
{
    *asking = (struct cuda_asking){.cuda = cuda, .capture_mode = CUDA_CAPTURE_RELAXED};
    asking->exchanged = cuda->cuThreadExchangeStreamCaptureMode(&asking->capture_mode) == CUDA_RESULT_OK;
}

void cuda_asking_end(struct cuda_asking *asking)
{
    if (asking->exchanged) {
        asking->cuda->cuThreadExchangeStreamCaptureMode(&asking->capture_mode);
    }
}

enum cuda_memory_state cuda_asking_memory(const struct cuda_asking *asking, const struct cuda_piece *pieces,
                                          uint32_t pieces_nr, int *result)
{
    int answer = CUDA_RESULT_OK;
    enum cuda_memory_state state = CUDA_MEMORY_SAME;
    for (uint32_t i = 0; i < pieces_nr && state == CUDA_MEMORY_SAME; i++) {
        unsigned long long buffer_id = 0;
        answer = asking->cuda->cuPointerGetAttribute(&buffer_id, CUDA_POINTER_BUFFER_ID, pieces[i].address);
        if (answer == CUDA_RESULT_INVALID_VALUE || (answer == CUDA_RESULT_OK && buffer_id != pieces[i].buffer_id)) {
            state = CUDA_MEMORY_FREED;
        } else if (answer != CUDA_RESULT_OK) {
            state = CUDA_MEMORY_UNKNOWN;
        }
    }
    if (result != NULL) {
        *result = answer;
    }
    return state;
}

/* ------------------------------------------------------------------------------------------------ where memory ends */

/* From the start of the first allocation or chunk to the end of the last one; what it finds goes where an export's
 * would. */
static enum mlacat_status find_range(struct question *q)
{
    unsigned long long at = q->address;
    q->memory->offset_bytes = 0;
    do {
        unsigned long long base = 0;
        size_t size = 0;
        int result = q->cuda->cuMemGetAddressRange(&base, &size, at);
        if (result != 0) {
            return at == q->address ? fail_driver("cuMemGetAddressRange", result)
                                    : fail_extent(q, q->address, (size_t)(at - q->address));
        }
        if (at == q->address) {
            q->memory->offset_bytes = at - base;
        }
        at = base + size;
    } while (at - q->address < q->bytes);
    q->memory->allocation_bytes = at - (q->address - q->memory->offset_bytes);
    return MLACAT_OK;
}

enum mlacat_status mlacat_memory_range(const void *pointer, size_t bytes, void **base, size_t *all)
{
    struct cuda_export found;
    struct question q = {.address = (uintptr_t)pointer, .bytes = bytes, .memory = &found, .answer = find_range};
    char uuid[CLIENT_UUID_BYTES];
    if (base == NULL || all == NULL) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "%s is NULL; give the address of a variable",
                          base == NULL ? "base" : "all");
    }
    enum mlacat_status status = ask(&q, uuid);
    if (status == MLACAT_OK) {
        *base = (void *)(uintptr_t)(q.address - found.offset_bytes);
        *all = found.allocation_bytes;
    }
    return status;
}
