/* SPDX-License-Identifier: Apache-2.0 */
#include "test_client_watched.h"

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include <cuda_driver.h> /* the client's; beside this file is one of the daemon's tests */

#include "client.h"
#include "client_clock.h"
#include "timing.h"

/* ------------------------------------------------------------------------------------------------------ the driver */

#define MODE_GLOBAL 0

struct watched_gpu gpu = {.gate = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local int capture_mode = MODE_GLOBAL;

static int exchange_mode(int *mode)
{
    int before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return 0;
}

static int get_attribute(void *value, int attribute, unsigned long long address)
{
    static const unsigned long long context = 0xc0;
    unsigned long long number = 0;
    uint64_t id = gpu.id[(address - BASE) / PIECE_BYTES];
    gpu.unrelaxed += capture_mode != CUDA_CAPTURE_RELAXED;
    if (attribute == CUDA_POINTER_BUFFER_ID) {
        if (!pthread_equal(pthread_self(), gpu.test)) {
            pthread_mutex_lock(&gpu.gate);
            pthread_mutex_unlock(&gpu.gate);
        }
        gpu.asked++;
    }
    int result = gpu.result; /* read once: the test changes it */
    if (result != 0 || id == 0) {
        return result != 0 ? result : CUDA_RESULT_INVALID_VALUE;
    }
    switch (attribute) {
    case CUDA_POINTER_BUFFER_ID:
        memcpy(value, &id, sizeof(id));
        return 0;
    case CUDA_POINTER_CONTEXT:
        memcpy(value, &context, sizeof(context));
        return 0;
    case CUDA_POINTER_MEMPOOL:
        memcpy(value, &number, sizeof(number));
        return 0;
    case CUDA_POINTER_MEMORY_TYPE:
        number = CUDA_MEMORY_DEVICE;
        break;
    case CUDA_POINTER_MAPPED:
        number = 1;
        break;
    case CUDA_POINTER_IS_LEGACY_IPC:
        number = gpu.legacy;
        break;
    default:
        break;
    }
    *(unsigned *)value = (unsigned)number;
    return 0;
}

static int get_range(unsigned long long *base, size_t *bytes, unsigned long long address)
{
    *base = address - (address - BASE) % PIECE_BYTES;
    *bytes = PIECE_BYTES;
    return 0;
}

static int get_handle(void *handle, unsigned long long address)
{
    memset(handle, 7, 64);
    memcpy(handle, &address, sizeof(address));
    return 0;
}

static int retain(unsigned long long *allocation, void *address)
{
    *allocation = (uintptr_t)address;
    return 0;
}

static int export_chunk(void *handle, unsigned long long allocation, int type, unsigned long long flags)
{
    (void)allocation;
    (void)flags;
    assert_int_equal(type, CUDA_HANDLE_POSIX_FD);
    *(int *)handle = memfd_create("chunk", MFD_CLOEXEC);
    return 0;
}

static int release(unsigned long long allocation)
{
    (void)allocation;
    return 0;
}

static int get_device(int *device, int ordinal)
{
    *device = ordinal;
    return 0;
}

static int get_uuid(unsigned char uuid[16], int device)
{
    memset(uuid, 0xab + device, 16);
    return 0;
}

static int push(void *context)
{
    (void)context;
    return 0;
}

static int pop(void **context)
{
    (void)context;
    return 0;
}

enum mlacat_status __wrap_cuda_driver(const struct cuda_driver **driver);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *user);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *user);

enum mlacat_status __wrap_cuda_driver(const struct cuda_driver **driver)
{
    static const struct cuda_driver table = {
        .cuPointerGetAttribute = get_attribute,
        .cuMemGetAddressRange = get_range,
        .cuIpcGetMemHandle = get_handle,
        .cuMemRetainAllocationHandle = retain,
        .cuMemExportToShareableHandle = export_chunk,
        .cuMemRelease = release,
        .cuDeviceGet = get_device,
        .cuDeviceGetUuid = get_uuid,
        .cuCtxPushCurrent = push,
        .cuCtxPopCurrent = pop,
        .cuThreadExchangeStreamCaptureMode = exchange_mode,
    };
    *driver = &table;
    return MLACAT_OK;
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *user)
{
    return gpu.exhausted ? EAGAIN : __real_pthread_create(thread, attributes, run, user);
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until);
int __real_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until);

int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until)
{
    int64_t ns = (int64_t)until->tv_sec * 1000000000 + until->tv_nsec - timing_now();
    if (!pthread_equal(pthread_self(), gpu.test) && ns > gpu.longest_wait_ns) {
        gpu.longest_wait_ns = ns;
    }
    return __real_pthread_cond_timedwait(cond, mutex, until);
}

/* ------------------------------------------------------------------------------------------------------ the client */

static int set_up(void **state, struct fake_mode mode, enum mlacat_dispatch dispatch)
{
    client_clock_reset();
    for (unsigned i = 0; i < PIECES; i++) {
        gpu.id[i] = i + 1;
    }
    gpu.result = 0;
    gpu.asked = gpu.unrelaxed = 0;
    gpu.longest_wait_ns = 0;
    gpu.legacy = true;
    gpu.exhausted = false;
    gpu.test = pthread_self();
    struct scene *f = scene_open(mode, dispatch);
    memcpy(f->client->server.devices[0].uuid, DEVICE, sizeof(DEVICE));
    *state = f;
    return 0;
}

int watched_setup(void **state)
{
    return set_up(state, (struct fake_mode){0}, MLACAT_DISPATCH_CALLER);
}

int watched_setup_ring(void **state)
{
    return set_up(state, (struct fake_mode){.rings = true}, MLACAT_DISPATCH_THREAD);
}

int watched_teardown(void **state)
{
    scene_close(state);
    assert_int_equal(gpu.unrelaxed, 0);
    assert_int_equal(capture_mode, MODE_GLOBAL);
    return 0;
}

struct mlacat_buffer *register_at(struct scene *f, void *at, size_t bytes)
{
    struct mlacat_buffer *buffer;
    assert_int_equal(mlacat_buffer_register_ptr(f->client, at, bytes, &buffer), MLACAT_OK);
    return buffer;
}

void reuse(unsigned piece)
{
    static uint64_t last = 100000;
    gpu.id[piece] = ++last;
}

void expect_usable(struct scene *f, struct mlacat_buffer *buffer)
{
    struct mlacat_call call = fake_call(buffer);
    assert_int_equal(mlacat_run(f->stream, &call, NULL), MLACAT_OK);
}

void expect_broken(struct scene *f, struct mlacat_buffer *buffer)
{
    struct mlacat_call call = fake_call(buffer);
    unsigned calls = fake_seen(f->fake).calls;
    assert_int_equal(mlacat_run(f->stream, &call, NULL), MLACAT_FAILED_PRECONDITION);
    assert_int_equal(mlacat_error_scope(), MLACAT_SCOPE_BUFFER);
    assert_non_null(strstr(mlacat_error_message(), "was freed since it was registered: release this buffer and"));
    assert_int_equal(fake_seen(f->fake).calls, calls);
}

void await_idle(struct scene *f)
{
    bool idle = false;
    while (!idle) {
        pthread_mutex_lock(&f->client->lock);
        idle = f->client->watch_idle;
        pthread_mutex_unlock(&f->client->lock);
        sched_yield();
    }
}
