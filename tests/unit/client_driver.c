/* SPDX-License-Identifier: Apache-2.0 */
#include "client_driver.h"

#include <cuda_driver.h> /* the library's: there is one of this folder too */
#include <pthread.h>
#include <string.h>

#include "error.h"
#include "test_client_say.h"

#define STREAMS 2
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
static char context;

static struct stream *stream_of(void *stream)
{
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
    *status = stream_of(stream)->capturing;
    return leave(result);
}

static int get_id(void *stream, unsigned long long *id)
{
    enter(CLIENT_DRIVER_NONE);
    *id = 100 + (unsigned long long)(stream_of(stream) - streams);
    return leave(0);
}

static int get_context(void *stream, void **out)
{
    enter(CLIENT_DRIVER_NONE);
    stream_of(stream);
    *out = &context;
    return leave(0);
}

static int push(void *wanted)
{
    enter(CLIENT_DRIVER_NONE);
    pushed++;
    return leave(wanted == &context ? 0 : FAILED);
}

static int pop(void **out)
{
    enter(CLIENT_DRIVER_NONE);
    pushed--;
    *out = &context;
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

static int add(void *stream, unsigned long long address, uint64_t value, bool waits)
{
    struct stream *to = stream_of(stream);
    uintptr_t at = (uintptr_t)(address - OFFSET);
    if (at < (uintptr_t)registered || at + 8 > (uintptr_t)registered + registered_bytes || to->nr == OPERATIONS ||
        to->capturing) {
        say_give_up("a word that is not registered, too many operations, or a stream that is being captured");
    }
    to->operation[to->nr++] = (struct operation){waits, (uint64_t *)at, value};
    return 0;
}

static int write_value(void *stream, unsigned long long address, uint64_t value, unsigned int flags)
{
    int result = enter(CLIENT_DRIVER_WRITE);
    seen.writes += flags == 0;
    while (full != 0 && stream_of(stream)->nr >= full) {
        pthread_cond_wait(&moved, &lock);
    }
    return leave(result != 0 ? result : add(stream, address, value, false));
}

static int wait_value(void *stream, unsigned long long address, uint64_t value, unsigned int flags)
{
    int result = enter(CLIENT_DRIVER_WAIT);
    seen.waits += flags == CUDA_WAIT_GREATER_OR_EQUAL;
    return leave(result != 0 ? result : add(stream, address, value, true));
}

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
                                             .cuStreamWriteValue64 = write_value,
                                             .cuStreamWaitValue64 = wait_value};
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
    removed = false;
    full = 0;
    pthread_mutex_unlock(&lock);
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
