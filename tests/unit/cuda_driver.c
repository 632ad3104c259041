/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_driver.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "cuda_driver_work.h"

struct driver driver;

uint64_t __wrap_clock_now_ns(void);
int __wrap_nanosleep(const struct timespec *time, struct timespec *left);

uint64_t __wrap_clock_now_ns(void)
{
    return driver.now_ns;
}

int __wrap_nanosleep(const struct timespec *time, struct timespec *left)
{
    (void)left;
    driver.now_ns += (uint64_t)time->tv_sec * 1000000000 + (uint64_t)time->tv_nsec;
    return 0;
}

/* Counts the call; true: it is the one that shall fail. */
static bool fails(enum driver_call call)
{
    driver.calls[call]++;
    driver.total++;
    return driver.fail_at != 0 && driver.total - driver.fail_at <= driver.fail_more;
}

static int answer(enum driver_call call)
{
    return fails(call) ? driver.fail_result : CUDA_RESULT_OK;
}

/* ----------------------------------------------------------------------------------------- allocations */

struct cuda_ipc_handle driver_allocate(uint32_t index, uint64_t size)
{
    struct cuda_ipc_handle handle = {{0}};
    memcpy(handle.bytes, &index, sizeof(index));
    driver.allocations[index].size = size;
    driver.allocations[index].base = UINT64_C(0x7000000000) + index * UINT64_C(0x100000000);
    return handle;
}

static struct driver_allocation *allocation_at(cuda_address address)
{
    for (uint32_t i = 0; i < DRIVER_ALLOCATIONS; i++) {
        if (driver.allocations[i].opened > 0 && driver.allocations[i].base == address) {
            return &driver.allocations[i];
        }
    }
    for (uint32_t i = 0; i < DRIVER_ALLOCATIONS; i++) {
        struct driver_allocation *allocation = &driver.allocations[i];
        if (allocation->opened > 0 && address >= allocation->base && address < allocation->base + allocation->size) {
            return allocation;
        }
    }
    return NULL;
}

static int ipc_open(cuda_address *address, struct cuda_ipc_handle handle, unsigned int flags)
{
    uint32_t index;
    memcpy(&index, handle.bytes, sizeof(index));
    assert_int_equal(flags, CUDA_IPC_LAZY_PEER_ACCESS);
    if (fails(DRIVER_cuIpcOpenMemHandle)) {
        return driver.fail_result;
    }
    if (index >= DRIVER_ALLOCATIONS || driver.allocations[index].size == 0) {
        return 400;
    }
    /* The driver would give the old mapping: of memory that is gone. */
    assert_int_equal(driver.allocations[index].opened, 0);
    driver.allocations[index].opened++;
    *address = driver.allocations[index].base;
    return CUDA_RESULT_OK;
}

/* Unregistering host memory is one: it stops launches as well. */
static void note_close(void)
{
    if (driver.last_close_ns != 0 && driver.now_ns - driver.last_close_ns < driver.shortest_close_ns) {
        driver.shortest_close_ns = driver.now_ns - driver.last_close_ns;
    }
    driver.last_close_ns = driver.now_ns;
}

static int ipc_close(cuda_address address)
{
    struct driver_allocation *allocation = allocation_at(address);
    assert_non_null(allocation);
    allocation->opened--;
    note_close();
    return answer(DRIVER_cuIpcCloseMemHandle);
}

static int address_range(cuda_address *base, size_t *bytes, cuda_address address)
{
    if (fails(DRIVER_cuMemGetAddressRange)) {
        return driver.fail_result;
    }
    struct driver_allocation *allocation = allocation_at(address);
    assert_non_null(allocation);
    *base = allocation->base;
    *bytes = allocation->size;
    return CUDA_RESULT_OK;
}

static int pointer_attribute(void *value, int attribute, cuda_address address)
{
    if (fails(DRIVER_cuPointerGetAttribute)) {
        return driver.fail_result;
    }
    if (attribute == CUDA_POINTER_MEMORY_BLOCK_ID) {
        memcpy(value, &driver.block_id, sizeof(driver.block_id));
        return driver.block_id ? CUDA_RESULT_OK : CUDA_RESULT_INVALID_VALUE;
    }
    assert_int_equal(attribute, CUDA_POINTER_DEVICE_ORDINAL);
    *(int *)value = allocation_at(address)->ordinal;
    return CUDA_RESULT_OK;
}

/* ---------------------------------------------------------------------------------------------- chunks */

static int import_chunk(cuda_allocation *allocation, void *handle, int type)
{
    assert_int_equal(type, CUDA_HANDLE_POSIX_FD);
    if (fails(DRIVER_cuMemImportFromShareableHandle)) {
        return driver.fail_result;
    }
    driver.imports++;
    *allocation = (cuda_allocation)(uintptr_t)handle + 1;
    return CUDA_RESULT_OK;
}

static int chunk_properties(struct cuda_allocation_properties *properties, cuda_allocation allocation)
{
    (void)allocation;
    properties->location = (struct cuda_location){CUDA_LOCATION_DEVICE, driver.location};
    return answer(DRIVER_cuMemGetAllocationPropertiesFromHandle);
}

static int granularity(size_t *bytes, const struct cuda_allocation_properties *properties, int option)
{
    (void)properties;
    assert_int_equal(option, CUDA_GRANULARITY_MINIMUM);
    *bytes = DRIVER_GRAIN;
    return answer(DRIVER_cuMemGetAllocationGranularity);
}

static int reserve(cuda_address *address, size_t bytes, size_t alignment, cuda_address wanted, unsigned long long flags)
{
    (void)bytes;
    (void)flags;
    assert_true(alignment == DRIVER_GRAIN && wanted == 0);
    if (fails(DRIVER_cuMemAddressReserve)) {
        return driver.fail_result;
    }
    driver.reservations++;
    *address = UINT64_C(0x100000000000);
    return CUDA_RESULT_OK;
}

static int free_address(cuda_address address, size_t bytes)
{
    (void)address;
    (void)bytes;
    driver.reservations--;
    driver.calls[DRIVER_cuMemAddressFree]++;
    return CUDA_RESULT_OK;
}

static int map(cuda_address address, size_t bytes, size_t offset, cuda_allocation allocation, unsigned long long flags)
{
    (void)address;
    (void)allocation;
    assert_true(bytes % DRIVER_GRAIN == 0 && offset == 0 && flags == 0);
    if (fails(DRIVER_cuMemMap)) {
        return driver.fail_result;
    }
    driver.maps++;
    return CUDA_RESULT_OK;
}

static int unmap(cuda_address address, size_t bytes)
{
    (void)address;
    assert_true(bytes % DRIVER_GRAIN == 0 && driver.maps > 0);
    driver.maps--;
    driver.calls[DRIVER_cuMemUnmap]++;
    return CUDA_RESULT_OK;
}

static int set_access(cuda_address address, size_t bytes, const struct cuda_access *access, size_t access_nr)
{
    (void)address;
    assert_true(bytes <= driver.maps * DRIVER_GRAIN && access_nr == 1 && access->flags == CUDA_ACCESS_READ_WRITE);
    return answer(DRIVER_cuMemSetAccess);
}

static int release(cuda_allocation allocation)
{
    (void)allocation;
    driver.imports--;
    return CUDA_RESULT_OK;
}

/* ----------------------------------------------------------------------------------- pages and streams */

static int register_host(void *memory, size_t bytes, unsigned int flags)
{
    assert_true(((uintptr_t)memory & 4095) == 0 && bytes > 0 && (bytes & 4095) == 0 && flags == 3);
    if (fails(DRIVER_cuMemHostRegister)) {
        return driver.fail_result;
    }
    driver.pages++;
    return CUDA_RESULT_OK;
}

static int unregister_host(void *memory)
{
    (void)memory;
    driver.pages--;
    note_close();
    return CUDA_RESULT_OK;
}

static int device_pointer(cuda_address *address, void *memory, unsigned int flags)
{
    assert_int_equal(flags, 0);
    *address = (uintptr_t)memory;
    return answer(DRIVER_cuMemHostGetDevicePointer);
}

static int stream_create(struct cuda_stream **stream, unsigned int flags)
{
    assert_int_equal(flags, CUDA_STREAM_NON_BLOCKING);
    if (fails(DRIVER_cuStreamCreate)) {
        return driver.fail_result;
    }
    *stream = driver_stream_at(driver.streams++);
    (*stream)->used = false;
    return CUDA_RESULT_OK;
}

static int stream_destroy(struct cuda_stream *stream)
{
    (void)stream;
    driver.streams--;
    return answer(DRIVER_cuStreamDestroy);
}

static int stream_query(struct cuda_stream *stream)
{
    (void)stream;
    driver.calls[DRIVER_cuStreamQuery]++;
    return driver.query_result;
}

static int write_value(struct cuda_stream *stream, cuda_address address, uint64_t value, unsigned int flags)
{
    assert_int_equal(flags, 0);
    if (fails(DRIVER_cuStreamWriteValue64)) {
        return driver.fail_result;
    }
    if (address == DRIVER_WAKE && !stream->used) {
        driver.calls[DRIVER_cuStreamWriteValue64]--; /* it tells nobody of anything */
        stream->used = true;
        return CUDA_RESULT_OK;
    }
    assert_true(stream->used);
    if (address == DRIVER_WAKE) {
        driver.wakes++;
        return CUDA_RESULT_OK;
    }
    driver_enqueue(
        (struct driver_thing){.stream = stream, .word = (_Atomic uint64_t *)(uintptr_t)address, .value = value});
    return CUDA_RESULT_OK;
}

/* Words are things of their own, so that a test sees the GPU between a launch's copies and each of them; `thing` is
 * what all have alike. */
static void write_end(struct driver_thing thing, const struct concat_mla_end *end)
{
    for (int i = 0; i < CONCAT_MLA_END_WORDS; i++) {
        int word = driver.fence_first ? CONCAT_MLA_END_WORDS - 1 - i : i;
        if (end->address[word] != 0) {
            thing.word = (_Atomic uint64_t *)(uintptr_t)end->address[word];
            thing.value = end->value[word];
            driver_enqueue(thing);
        }
    }
}

static bool is_gated(const struct cuda_function *function)
{
    return (uintptr_t)function - DRIVER_GATEDS < CUDA_VECTORS_NR;
}

/* NULL: the kernel is none that tells its end. */
static const struct concat_mla_signal *signal_of(const struct cuda_function *function, void **parameters)
{
    uintptr_t vector = (uintptr_t)function - DRIVER_SIGNALS;
    if (vector >= CUDA_VECTORS_NR) {
        return NULL;
    }
    const struct concat_mla_range *range = parameters[1];
    assert_int_equal(range->vector_bytes, 1u << vector);
    return parameters[2];
}

static int launch_kernel(struct cuda_function *function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                         unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                         struct cuda_stream *stream, void **parameters, void **extra)
{
    assert_true(grid_x > 0 && grid_y == 1 && grid_z == 1 && block_x > 0 && block_y == 1 && block_z == 1);
    assert_true(shared_bytes == 0 && parameters != NULL && extra == NULL);
    if (fails(DRIVER_cuLaunchKernel)) {
        return driver.fail_result;
    }
    driver.launches++;
    driver.many_launches += function == DRIVER_MANY;
    driver.launch_grid += grid_x;
    const struct concat_mla_signal *signal = signal_of(function, parameters);
    assert_true(function != DRIVER_TAIL && !is_gated(function)); /* they begin before their turn, or are in vain */
    if (function == DRIVER_GATE) {
        const struct concat_mla_gate *gate = parameters[0];
        assert_true(grid_x == 1 && block_x == CONCAT_MLA_GATE_THREADS && gate->address != 0 && gate->wait_ns > 0);
        driver_enqueue((struct driver_thing){
            .stream = stream, .gate = *gate, .ticket = *(const struct concat_mla_ticket *)parameters[1]});
        return CUDA_RESULT_OK;
    }
    if (!signal) {
        driver_enqueue((struct driver_thing){.stream = stream});
        return CUDA_RESULT_OK;
    }
    assert_true(grid_x == 1 && block_x % CONCAT_MLA_MANY_THREADS == 0 && block_x <= CONCAT_MLA_SIGNAL_THREADS);
    assert_true(signal->gate.address == 0 || signal->gate.wait_ns > 0);
    driver_enqueue((struct driver_thing){.stream = stream, .gate = signal->gate});
    write_end((struct driver_thing){.stream = stream, .gated = signal->gate.address != 0}, &signal->end);
    driver.signal_launches++;
    return CUDA_RESULT_OK;
}

/* Only kernels that wait themselves for the one before them may be launched so. */
static int launch_behind(const struct cuda_launch_config *config, struct cuda_function *function, void **parameters,
                         void **extra)
{
    assert_true(config->attributes_nr == 1 && config->attributes->id == CUDA_LAUNCH_SERIALIZED_BY_PROGRAM &&
                config->attributes->value.serialized_by_program == 1);
    assert_true(config->grid_x > 0 && config->grid_y == 1 && config->grid_z == 1 && config->block_x > 0 &&
                config->block_y == 1 && config->block_z == 1 && config->shared_bytes == 0 && extra == NULL);
    if (fails(DRIVER_cuLaunchKernelEx)) {
        return driver.fail_result;
    }
    if (function == DRIVER_TAIL) {
        assert_true(config->grid_x == 1 && config->block_x == CONCAT_MLA_GATE_THREADS);
        write_end(
            (struct driver_thing){.stream = config->stream, .ticket = *(const struct concat_mla_ticket *)parameters[1]},
            parameters[0]);
        return CUDA_RESULT_OK;
    }
    const struct concat_mla_range *range = parameters[1];
    assert_true(is_gated(function) && range->vector_bytes == 1u << ((uintptr_t)function - DRIVER_GATEDS));
    driver_enqueue((struct driver_thing){
        .stream = config->stream, .ticket = *(const struct concat_mla_ticket *)parameters[2], .copies = true});
    driver.launch_grid += config->grid_x;
    return CUDA_RESULT_OK;
}

static int allocate(cuda_address *address, size_t bytes)
{
    if (fails(DRIVER_cuMemAlloc)) {
        return driver.fail_result;
    }
    *address = (uintptr_t)calloc(1, bytes);
    driver.allocated++;
    return *address != 0 ? CUDA_RESULT_OK : CUDA_RESULT_OUT_OF_MEMORY;
}

static int free_memory(cuda_address address)
{
    free((void *)(uintptr_t)address);
    driver.allocated--;
    return CUDA_RESULT_OK;
}

static int set_current(struct cuda_context *context)
{
    (void)context;
    return CUDA_RESULT_OK;
}

/* ---------------------------------------------------------------------------------------------- device */

static int device_get(int *device, int ordinal)
{
    *device = ordinal;
    return CUDA_RESULT_OK;
}

/* GPU-00000000-0000-0000-0000-0000000000NN */
static int device_uuid(struct cuda_uuid *uuid, int device)
{
    memset(uuid, 0, sizeof(*uuid));
    uuid->bytes[sizeof(uuid->bytes) - 1] = (unsigned char)device;
    return CUDA_RESULT_OK;
}

static int device_name(char *name, int name_bytes, int device)
{
    snprintf(name, (size_t)name_bytes, "GPU %d of paper", device);
    return CUDA_RESULT_OK;
}

void driver_reset(void)
{
    memset(&driver, 0, sizeof(driver));
    driver_work_reset();
    driver.now_ns = 1000000000;
    driver.shortest_close_ns = UINT64_MAX;
    driver.fail_result = CUDA_RESULT_OUT_OF_MEMORY;
    driver.query_result = CUDA_RESULT_NOT_READY;
    driver.api = (struct cuda_api){
        .driver_version = 13000,
        .cuDeviceGet = device_get,
        .cuDeviceGetUuid = device_uuid,
        .cuDeviceGetName = device_name,
        .cuIpcOpenMemHandle = ipc_open,
        .cuIpcCloseMemHandle = ipc_close,
        .cuMemGetAddressRange = address_range,
        .cuPointerGetAttribute = pointer_attribute,
        .cuMemImportFromShareableHandle = import_chunk,
        .cuMemGetAllocationPropertiesFromHandle = chunk_properties,
        .cuMemGetAllocationGranularity = granularity,
        .cuMemAddressReserve = reserve,
        .cuMemAddressFree = free_address,
        .cuMemMap = map,
        .cuMemUnmap = unmap,
        .cuMemSetAccess = set_access,
        .cuMemRelease = release,
        .cuMemHostRegister = register_host,
        .cuMemHostUnregister = unregister_host,
        .cuMemHostGetDevicePointer = device_pointer,
        .cuStreamCreate = stream_create,
        .cuStreamDestroy = stream_destroy,
        .cuStreamQuery = stream_query,
        .cuStreamWriteValue64 = write_value,
        .cuLaunchKernel = launch_kernel,
        .cuLaunchKernelEx = launch_behind,
        .cuMemAlloc = allocate,
        .cuMemFree = free_memory,
        .cuCtxSetCurrent = set_current,
    };
}

void driver_device_init(struct device *device)
{
    struct error err;
    memset(device, 0, sizeof(*device));
    device->cuda = &driver.api;
    device->vmm = true;
    device->launch_bytes = (uint64_t)8 << 20;
    device->wake = DRIVER_WAKE;
    device->kernels.many = DRIVER_MANY;
    for (uintptr_t i = 0; i < CUDA_VECTORS_NR; i++) {
        device->kernels.signal[i] = (struct cuda_function *)(DRIVER_SIGNALS + i);
        device->kernels.gated[i] = (struct cuda_function *)(DRIVER_GATEDS + i);
    }
    device->kernels.gate = DRIVER_GATE;
    device->kernels.tail = DRIVER_TAIL;
    snprintf(device->uuid, sizeof(device->uuid), "GPU-test");
    cuda_channels_init(&device->channels, device);
    assert_int_equal(cuda_fences_init(&device->fences, device, &err), MLACAT_OK);
    assert_int_equal(cuda_segments_init(&device->segments, device, &err), MLACAT_OK);
    cuda_pages_init(&device->pages, device);
    driver.total = 0;
}

void driver_device_fini(struct device *device)
{
    cuda_pages_fini(&device->pages);
    cuda_segments_fini(&device->segments);
    cuda_fences_fini(&device->fences);
    for (uint32_t i = 0; i < DRIVER_ALLOCATIONS; i++) {
        assert_int_equal(driver.allocations[i].opened, 0);
    }
    assert_int_equal(driver.pages, 0);
    assert_int_equal(driver.allocated, 0);
    assert_int_equal(driver.streams, 0);
    assert_int_equal(driver.maps, 0);
    assert_int_equal(driver.imports, 0);
    assert_int_equal(driver.reservations, 0);
}
