/* SPDX-License-Identifier: Apache-2.0 */
#include "client_driver.h"

#include <cuda_driver.h> /* the library's: there is one of this folder too */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "test_client_say.h"

#define STREAMS 2
#define DEVICES 2
#define OPERATIONS 64
/* Addresses of the GPU are not those of the CPU: who mixes them up shall find nothing there. */
#define OFFSET (UINT64_C(1) << 60)
#define FAILED 999

struct operation {
    bool waits;
    uint64_t *word;
    uint64_t value;
};

struct stream {
    bool capturing;
    unsigned nr;
    struct operation operation[OPERATIONS];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct stream streams[STREAMS];
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static unsigned full; /* operations at which a write waits for room; 0: never */
static struct client_driver_seen seen;
static enum client_driver_call failing;
static bool removed;
static char *registered;
static size_t registered_bytes;
static _Thread_local int capture_mode;
static _Thread_local int pushed;
static char contexts[STREAMS];

/* GPU memory. */
#define BLOCKS 64
#define BLOCK_BYTES (UINT64_C(2) << 20)
#define BLOCK_BASE (UINT64_C(1) << 59)

static struct block {
    unsigned char *bytes; /* NULL: gone */
    void *context;
} blocks[BLOCKS];
static unsigned blocks_nr; /* ever */
static bool has_gpu;
static bool is_apart;
static _Thread_local void *current;
static _Thread_local int device_below; /* of the context that the thread has without a push; -1: it has none */
static int retains;

/* Of the context that is current; -1: none is. */
static int current_device(void)
{
    return pushed > 0 ? 0 : device_below;
}

/* NULL is the default stream of a device: each has one of the streams as that. */
static struct stream *stream_of(void *stream)
{
    if (stream == NULL && current_device() >= 0) {
        return &streams[current_device()];
    }
    for (unsigned i = 0; i < STREAMS; i++) {
        if (stream == &streams[i]) {
            return &streams[i];
        }
    }
    say_give_up("a CUDA stream that there is not");
}

/* With the lock. */
static int enter(enum client_driver_call call)
{
    pthread_mutex_lock(&lock);
    seen.in_strict += capture_mode != CUDA_CAPTURE_RELAXED;
    return failing == call ? FAILED : 0;
}

static int leave(int result)
{
    seen.pushed = pushed;
    seen.capture_mode = capture_mode;
    pthread_mutex_unlock(&lock);
    return result;
}

static int is_capturing(void *stream, int *status)
{
    int result = enter(CLIENT_DRIVER_CAPTURING);
    if (stream == NULL && current_device() < 0) {
        return leave(FAILED);
    }
    *status = stream_of(stream)->capturing;
    return leave(result);
}

static int get_id(void *stream, unsigned long long *id)
{
    enter(CLIENT_DRIVER_NONE);
    *id = 100 + (unsigned long long)(stream_of(stream) - streams);
    return leave(0);
}

static void *context_of(const struct stream *stream)
{
    return &contexts[is_apart ? stream - streams : 0];
}

static int get_context(void *stream, void **out)
{
    enter(CLIENT_DRIVER_NONE);
    *out = context_of(stream_of(stream));
    return leave(0);
}

static int push(void *wanted)
{
    enter(CLIENT_DRIVER_NONE);
    pushed++;
    current = wanted;
    return leave(wanted == &contexts[0] || wanted == &contexts[1] ? 0 : FAILED);
}

static int pop(void **out)
{
    enter(CLIENT_DRIVER_NONE);
    pushed--;
    *out = current;
    return leave(0);
}

static int exchange(int *mode)
{
    pthread_mutex_lock(&lock);
    int before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return leave(0);
}

static int register_memory(void *memory, size_t bytes, unsigned int flags)
{
    int result = enter(CLIENT_DRIVER_REGISTER);
    if (pushed == 0 || flags != (CUDA_HOST_REGISTER_PORTABLE | CUDA_HOST_REGISTER_DEVICEMAP) || bytes % 4096 != 0) {
        say_give_up("memory registered without a context, or as none that can be mapped");
    }
    if (result == 0) {
        registered = memory;
        registered_bytes = bytes;
        seen.registers++;
    }
    return leave(result);
}

static int get_address(unsigned long long *address, void *memory, unsigned int flags)
{
    int result = enter(CLIENT_DRIVER_ADDRESS);
    if (memory != registered || flags != 0 || pushed == 0) {
        say_give_up("the address of memory that is not registered");
    }
    *address = (uintptr_t)memory + OFFSET;
    return leave(result);
}

/* NULL: it is in none that is there. */
static struct block *block_at(unsigned long long address)
{
    uint64_t index = (address - BLOCK_BASE) / BLOCK_BYTES;
    return address >= BLOCK_BASE && index < blocks_nr && blocks[index].bytes != NULL ? &blocks[index] : NULL;
}

static int add_gpu_word(struct stream *to, unsigned long long address, uint64_t value)
{
    const struct block *block = block_at(address);
    if (block == NULL || block->context != context_of(to)) {
        return CUDA_RESULT_INVALID_VALUE;
    }
    uint64_t *word = (uint64_t *)(void *)(block->bytes + (address - BLOCK_BASE) % BLOCK_BYTES);
    to->operation[to->nr++] = (struct operation){.word = word, .value = value};
    return 0;
}

static int add(void *stream, unsigned long long address, uint64_t value, bool waits)
{
    struct stream *to = stream_of(stream);
    if (address < OFFSET && !waits) {
        return add_gpu_word(to, address, value);
    }
    uintptr_t at = (uintptr_t)(address - OFFSET);
    if (at < (uintptr_t)registered || at + 8 > (uintptr_t)registered + registered_bytes || to->nr == OPERATIONS ||
        to->capturing) {
        say_give_up("a word that is not registered, too many operations, or a stream that is being captured");
    }
    to->operation[to->nr++] = (struct operation){waits, (uint64_t *)at, value};
    return 0;
}

static int batch(void *stream, unsigned int nr, struct cuda_word_op *ops, unsigned int flags)
{
    int result = enter(CLIENT_DRIVER_BATCH);
    seen.batches++;
    while (full != 0 && stream_of(stream)->nr >= full) {
        pthread_cond_wait(&moved, &lock);
    }
    for (unsigned i = 0; i < nr && result == 0; i++) {
        bool waits = ops[i].operation == CUDA_WORD_WAIT;
        if (flags != 0 || (!waits && ops[i].operation != CUDA_WORD_WRITE) || ops[i].flags != 0) {
            say_give_up("an operation on a word that the library has no use for");
        }
        result = add(stream, ops[i].address, ops[i].value, waits);
        bool in_gpu = ops[i].address < OFFSET;
        seen.last[i % 3] =
            (struct client_driver_op){waits, in_gpu, in_gpu ? ops[i].address % BLOCK_BYTES : 0, ops[i].value};
        seen.last_nr = i + 1;
    }
    return leave(result);
}

/* ---------------------------------------------------------------------------------------------------- GPU memory */

static int get_device(int *device)
{
    enter(CLIENT_DRIVER_NONE);
    *device = current_device();
    return leave(*device >= 0 ? 0 : FAILED);
}

static int device_of_ordinal(int *device, int ordinal)
{
    *device = ordinal;
    return ordinal < DEVICES ? 0 : FAILED;
}

static int get_primary_state(int device, unsigned int *flags, int *active)
{
    *flags = 0;
    *active = device == 0;
    return 0;
}

static int retain_primary(void **context, int device)
{
    if (device != 0) {
        say_give_up("a context is made");
    }
    enter(CLIENT_DRIVER_NONE);
    seen.retains = ++retains;
    *context = &contexts[0];
    return leave(0);
}

static int release_primary(int device)
{
    (void)device;
    enter(CLIENT_DRIVER_NONE);
    seen.retains = --retains;
    return leave(0);
}

int __wrap_cuda_driver_name_device(const struct cuda_driver *driver, int device, char uuid[CUDA_DEVICE_NAME_BYTES]);

int __wrap_cuda_driver_name_device(const struct cuda_driver *driver, int device, char uuid[CUDA_DEVICE_NAME_BYTES])
{
    (void)driver;
    /* Without a GPU: on no device that a daemon has, so that the words are in host memory only. */
    snprintf(uuid, CUDA_DEVICE_NAME_BYTES, "GPU-%d", has_gpu ? device + 1 : device + 100);
    return 0;
}

static int allocate(unsigned long long *address, size_t bytes)
{
    int result = enter(CLIENT_DRIVER_ALLOC);
    if (pushed == 0 || bytes != BLOCK_BYTES || blocks_nr == BLOCKS) {
        say_give_up("memory without a context, of an odd size, or too much");
    }
    if (result == 0) {
        *address = BLOCK_BASE + blocks_nr * BLOCK_BYTES;
        blocks[blocks_nr] = (struct block){malloc(bytes), current};
        memset(blocks[blocks_nr++].bytes, 0x7f, bytes);
        seen.allocations++;
    }
    return leave(result);
}

static int get_attribute(void *value, int attribute, unsigned long long address)
{
    unsigned number = attribute == CUDA_POINTER_MEMORY_TYPE
                          ? CUDA_MEMORY_DEVICE
                          : attribute == CUDA_POINTER_MAPPED || attribute == CUDA_POINTER_IS_LEGACY_IPC;
    pthread_mutex_lock(&lock);
    const struct block *block = block_at(address);
    int result = block != NULL ? 0 : CUDA_RESULT_INVALID_VALUE;
    uint64_t id = block != NULL ? (uint64_t)(block - blocks) + 1 : 0;
    void *context = block != NULL ? block->context : NULL;
    seen.in_strict += capture_mode != CUDA_CAPTURE_RELAXED;
    pthread_mutex_unlock(&lock);
    if (attribute == CUDA_POINTER_BUFFER_ID) {
        memcpy(value, &id, sizeof(id));
    } else if (attribute == CUDA_POINTER_CONTEXT) {
        memcpy(value, &context, sizeof(context));
    } else if (attribute == CUDA_POINTER_MEMPOOL) {
        memset(value, 0, sizeof(void *));
    } else {
        memcpy(value, &number, sizeof(number));
    }
    return result;
}

static int get_range(unsigned long long *base, size_t *bytes, unsigned long long address)
{
    *base = address - address % BLOCK_BYTES;
    *bytes = BLOCK_BYTES;
    return 0;
}

static int get_handle(void *handle, unsigned long long address)
{
    memset(handle, 7, 64);
    memcpy(handle, &address, sizeof(address));
    return 0;
}

/* ---------------------------------------------------------------------------------------------------- the table */

enum mlacat_status __wrap_cuda_driver(const struct cuda_driver **driver);

enum mlacat_status __wrap_cuda_driver(const struct cuda_driver **driver)
{
    static const struct cuda_driver table = {.cuStreamIsCapturing = is_capturing,
                                             .cuStreamGetId = get_id,
                                             .cuStreamGetCtx = get_context,
                                             .cuCtxPushCurrent = push,
                                             .cuCtxPopCurrent = pop,
                                             .cuThreadExchangeStreamCaptureMode = exchange,
                                             .cuMemHostRegister = register_memory,
                                             .cuMemHostGetDevicePointer = get_address,
                                             .cuCtxGetDevice = get_device,
                                             .cuDeviceGet = device_of_ordinal,
                                             .cuDevicePrimaryCtxGetState = get_primary_state,
                                             .cuDevicePrimaryCtxRetain = retain_primary,
                                             .cuDevicePrimaryCtxRelease = release_primary,
                                             .cuMemAlloc = allocate,
                                             .cuPointerGetAttribute = get_attribute,
                                             .cuMemGetAddressRange = get_range,
                                             .cuIpcGetMemHandle = get_handle,
                                             .cuStreamBatchMemOp = batch};
    *driver = &table;
    return removed ? error_fail(MLACAT_FAILED_PRECONDITION, "no driver here") : MLACAT_OK;
}

/* ---------------------------------------------------------------------------------------------------- control */

void client_driver_reset(void)
{
    pthread_mutex_lock(&lock);
    memset(streams, 0, sizeof(streams));
    seen = (struct client_driver_seen){0};
    failing = CLIENT_DRIVER_NONE;
    removed = has_gpu = is_apart = false;
    full = 0;
    device_below = 0;
    pthread_mutex_unlock(&lock);
    client_driver_end_memory(); /* the library keeps what it has for as long as the process lives */
}

void *client_driver_stream(unsigned index)
{
    return &streams[index];
}

void client_driver_fail(enum client_driver_call call)
{
    pthread_mutex_lock(&lock);
    failing = call;
    pthread_mutex_unlock(&lock);
}

void client_driver_capture(unsigned index, bool capturing)
{
    pthread_mutex_lock(&lock);
    streams[index].capturing = capturing;
    pthread_mutex_unlock(&lock);
}

void client_driver_full(unsigned operations)
{
    pthread_mutex_lock(&lock);
    full = operations;
    pthread_mutex_unlock(&lock);
}

void client_driver_remove(void)
{
    removed = true;
}

void client_driver_gpu(void)
{
    has_gpu = true;
}

void client_driver_current(int device)
{
    device_below = device;
}

void client_driver_apart(void)
{
    is_apart = true;
}

void client_driver_end_memory(void)
{
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < blocks_nr; i++) {
        free(blocks[i].bytes);
        blocks[i].bytes = NULL;
    }
    pthread_mutex_unlock(&lock);
}

const void *client_driver_memory(void)
{
    pthread_mutex_lock(&lock);
    uint64_t address = BLOCK_BASE + (blocks_nr - 1) * BLOCK_BYTES;
    pthread_mutex_unlock(&lock);
    return (const void *)(uintptr_t)address;
}

struct client_driver_seen client_driver_seen(void)
{
    pthread_mutex_lock(&lock);
    struct client_driver_seen now = seen;
    pthread_mutex_unlock(&lock);
    return now;
}

unsigned client_driver_run(unsigned index)
{
    struct stream *stream = &streams[index];
    unsigned done = 0;
    pthread_mutex_lock(&lock);
    for (; done < stream->nr; done++) {
        const struct operation *next = &stream->operation[done];
        if (!next->waits) {
            __atomic_store_n(next->word, next->value, __ATOMIC_RELEASE);
        } else if ((int64_t)(__atomic_load_n(next->word, __ATOMIC_ACQUIRE) - next->value) < 0) {
            break;
        }
    }
    stream->nr -= done;
    memmove(stream->operation, stream->operation + done, stream->nr * sizeof(stream->operation[0]));
    unsigned left = stream->nr;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&lock);
    return left;
}
