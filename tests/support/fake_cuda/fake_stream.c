/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams: operations in order, run at once where nothing holds them up; else by a thread that looks at all streams
 * again and again, or by fake_cuda_run.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fake_inside.h"

#define LOOK_NS 20000

/* ---- running ---- */

bool fake_streams_idle(void)
{
    for (const struct cuda_stream *stream = fake.streams; stream; stream = stream->next) {
        if (stream->ops) {
            return false;
        }
    }
    return true;
}

void fake_note_kernel(void)
{
    uint64_t now_ns = fake_now_ns();
    if (now_ns - fake.launched_ns >= FAKE_QUIET_NS) {
        fake.busy_since_ns = now_ns;
    }
    fake.launched_ns = now_ns;
}

static bool is_satisfied(const struct fake_op *op)
{
    const void *word = fake_reach(op->address, op->kind == OP_WAIT_64 ? 8 : 4);
    if (!word) {
        fake.sticky = RESULT_ILLEGAL_ADDRESS;
        return false;
    }
    if (op->kind == OP_WAIT_64) {
        uint64_t value = __atomic_load_n((const uint64_t *)word, __ATOMIC_ACQUIRE);
        return op->flags == FAKE_WAIT_EQUAL ? value == op->value : (int64_t)(value - op->value) >= 0;
    }
    uint32_t value = __atomic_load_n((const uint32_t *)word, __ATOMIC_ACQUIRE);
    return op->flags == FAKE_WAIT_EQUAL ? value == (uint32_t)op->value : (int32_t)(value - (uint32_t)op->value) >= 0;
}

/* A kernel that looks at a word itself, for a time. */
static bool is_at_gate(struct fake_op *op)
{
    if (op->kind != OP_KERNEL || op->signal.gate.address == 0) {
        return false;
    }
    const uint64_t *word = fake_reach(op->signal.gate.address, sizeof(*word));
    if (!word) {
        fake.sticky = RESULT_ILLEGAL_ADDRESS;
        return true;
    }
    uint64_t now_ns = fake_now_ns();
    if (op->gate_ns == 0) {
        op->gate_ns = now_ns;
    }
    if ((int64_t)(__atomic_load_n(word, __ATOMIC_ACQUIRE) - op->signal.gate.value) >= 0) {
        return false;
    }
    if (now_ns - op->gate_ns < op->signal.gate.wait_ns) {
        return true;
    }
    op->lapsed = true;
    uint64_t *lapsed = fake_reach(op->signal.gate.lapsed, sizeof(*lapsed));
    if (!lapsed) {
        fake.sticky = RESULT_ILLEGAL_ADDRESS;
        return true;
    }
    __atomic_store_n(lapsed, op->signal.gate.lapsed_value, __ATOMIC_RELEASE);
    return false;
}

static void write_value(const struct fake_op *op)
{
    uint64_t *word = fake_reach(op->address, sizeof(*word));
    if (word) {
        __atomic_store_n(word, op->value, __ATOMIC_RELEASE);
    } else {
        fake.sticky = RESULT_ILLEGAL_ADDRESS;
    }
}

/* Runs the first operation of a stream if nothing holds it up. */
static bool run_first(struct cuda_stream *stream)
{
    struct fake_op *op = stream->ops;
    bool waits = op && (op->kind == OP_WAIT_64 || op->kind == OP_WAIT_32);
    if (!op || fake.sticky != 0 || (op->due_ns != 0 && fake_now_ns() < op->due_ns) || (waits && !is_satisfied(op)) ||
        is_at_gate(op)) {
        return false;
    }
    if (op->kind == OP_KERNEL) {
        fake_note_kernel();
        fake.sticky = fake_run_kernel(op);
    } else if (op->kind == OP_WRITE_64) {
        write_value(op);
    } else if (op->kind == OP_EVENT) {
        fake_event_reach(op->event, op->value);
    } else if (op->kind == OP_HOST_FUNCTION) {
        op->host_function(op->data);
    } else if (op->kind >= OP_COPY) {
        fake.sticky = fake_run_copy(op);
    }
    stream->ops = op->next;
    if (!stream->ops) {
        stream->last = &stream->ops;
    }
    free(op);
    pthread_cond_broadcast(&fake.moved);
    return true;
}

static void free_destroyed(void)
{
    struct cuda_stream **link = &fake.streams;
    while (*link) {
        struct cuda_stream *stream = *link;
        if (stream->destroyed && !stream->ops) {
            *link = stream->next;
            free(stream);
        } else {
            link = &stream->next;
        }
    }
}

/* One operation of each stream at most. */
static unsigned run_round(unsigned most)
{
    unsigned nr = 0;
    for (struct cuda_stream *stream = fake.streams; stream && nr < most; stream = stream->next) {
        nr += run_first(stream);
    }
    free_destroyed();
    return nr;
}

unsigned fake_cuda_run(unsigned most)
{
    unsigned nr = 0;
    unsigned step = 1;
    pthread_mutex_lock(&fake.lock);
    while (nr < most && step > 0) {
        step = run_round(most - nr);
        nr += step;
    }
    pthread_mutex_unlock(&fake.lock);
    return nr;
}

static void *run_gpu(void *unused)
{
    const struct timespec look = {.tv_nsec = LOOK_NS};
    (void)unused;
    pthread_mutex_lock(&fake.lock);
    for (;;) {
        while (fake_streams_idle() || fake.behaviour.manual || fake.sticky != 0) {
            pthread_cond_wait(&fake.moved, &fake.lock);
        }
        if (run_round(UINT32_MAX) == 0) {
            pthread_mutex_unlock(&fake.lock);
            nanosleep(&look, NULL);
            pthread_mutex_lock(&fake.lock);
        }
    }
    return NULL;
}

static void need_gpu_thread(void)
{
    pthread_t thread;
    if (fake.gpu_process != getpid()) {
        if (pthread_create(&thread, NULL, run_gpu, NULL) != 0) {
            fake_break("no thread for the device");
        }
        pthread_detach(thread);
        fake.gpu_process = getpid();
    }
}

static uint64_t launch_ns(void)
{
    uint64_t ns = (uint64_t)fake.behaviour.delay_us * 1000;
    uint64_t *x = &fake.behaviour.uneven;
    if (*x == 0 || ns == 0) {
        return ns;
    }
    *x = *x * 6364136223846793005u + 1442695040888963407u;
    return (*x >> 33) % (2 * ns);
}

/* Takes over `op`. */
static int add(struct cuda_stream *stream, const struct fake_op *op)
{
    struct fake_op *made = malloc(sizeof(*made));
    if (!made) {
        return CUDA_RESULT_OUT_OF_MEMORY;
    }
    *made = *op;
    made->next = NULL;
    if (op->kind == OP_KERNEL) {
        fake_note_kernel();
    }
    if (op->kind == OP_KERNEL && (fake.behaviour.delay_us > 0 || op->spin_ns > 0)) {
        uint64_t now_ns = fake_now_ns();
        uint64_t start_ns = stream->busy_until_ns > now_ns ? stream->busy_until_ns : now_ns;
        made->due_ns = stream->busy_until_ns = start_ns + launch_ns() + op->spin_ns;
    }
    *stream->last = made;
    stream->last = &made->next;
    if (!fake.behaviour.manual) {
        while (run_first(stream)) {
        }
        if (stream->ops) {
            need_gpu_thread();
        }
    }
    pthread_cond_broadcast(&fake.moved);
    return CUDA_RESULT_OK;
}

/* ---- streams ---- */

static struct cuda_stream *make_stream(void)
{
    struct cuda_stream *made = calloc(1, sizeof(*made));
    if (made) {
        made->last = &made->ops;
        made->context = fake_current;
        made->id = ++fake.stream_ids;
        made->next = fake.streams;
        fake.streams = made;
    }
    return made;
}

/* Of the current context. It waits for no other stream, nor another one for it. */
static struct cuda_stream *default_stream(void)
{
    struct cuda_stream *stream = fake.streams;
    if (!fake_current) {
        return NULL;
    }
    if (fake.behaviour.daemon) {
        fake_break("work on the default stream, which others wait for");
    }
    while (stream && !(stream->is_default && stream->context == fake_current)) {
        stream = stream->next;
    }
    if (!stream) {
        stream = make_stream();
        if (stream) {
            stream->is_default = true;
        }
    }
    return stream;
}

static bool is_stream(const struct cuda_stream *stream)
{
    for (const struct cuda_stream *known = fake.streams; known; known = known->next) {
        if (known == stream) {
            return !stream->destroyed;
        }
    }
    return false;
}

/* What a client means by NULL too. */
int fake_stream_find(struct cuda_stream **stream)
{
    if (*stream) {
        return is_stream(*stream) ? CUDA_RESULT_OK : CUDA_RESULT_INVALID_HANDLE;
    }
    *stream = default_stream();
    return *stream ? CUDA_RESULT_OK : RESULT_INVALID_CONTEXT;
}

void fake_cuda_capture(struct cuda_stream *stream, bool capturing)
{
    pthread_mutex_lock(&fake.lock);
    if (fake_stream_find(&stream) == CUDA_RESULT_OK) {
        stream->capturing = capturing;
    }
    pthread_mutex_unlock(&fake.lock);
}

int fake_cuStreamCreate(struct cuda_stream **stream, unsigned int flags)
{
    int result = fake_enter_context(CALL_cuStreamCreate);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (flags != CUDA_STREAM_NON_BLOCKING && flags != 0) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    *stream = make_stream();
    return fake_leave(*stream ? CUDA_RESULT_OK : CUDA_RESULT_OUT_OF_MEMORY);
}

int fake_cuStreamDestroy(struct cuda_stream *stream)
{
    int result = fake_enter_context(CALL_cuStreamDestroy);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_stream(stream)) {
        return fake_leave(CUDA_RESULT_INVALID_HANDLE);
    }
    stream->destroyed = true; /* what is on it still runs */
    free_destroyed();
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuStreamQuery(struct cuda_stream *stream)
{
    int result = fake_enter_context(CALL_cuStreamQuery);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!stream) { /* the default one, which nobody uses */
        return fake_leave(CUDA_RESULT_OK);
    }
    if (!is_stream(stream)) {
        return fake_leave(CUDA_RESULT_INVALID_HANDLE);
    }
    return fake_leave(stream->ops ? CUDA_RESULT_NOT_READY : CUDA_RESULT_OK);
}

int fake_cuStreamIsCapturing(struct cuda_stream *stream, int *status)
{
    int result = fake_enter(CALL_cuStreamIsCapturing);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    result = fake_stream_find(&stream);
    if (result != CUDA_RESULT_OK) {
        return fake_leave(result);
    }
    *status = stream->capturing;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuStreamGetId(struct cuda_stream *stream, unsigned long long *id)
{
    int result = fake_enter(CALL_cuStreamGetId);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    result = fake_stream_find(&stream);
    if (result != CUDA_RESULT_OK) {
        return fake_leave(result);
    }
    *id = stream->id;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuStreamGetCtx(struct cuda_stream *stream, struct cuda_context **context)
{
    int result = fake_enter(CALL_cuStreamGetCtx);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    result = fake_stream_find(&stream);
    if (result != CUDA_RESULT_OK) {
        return fake_leave(result);
    }
    *context = stream->context;
    return fake_leave(CUDA_RESULT_OK);
}

int fake_stream_add(struct cuda_stream *stream, const struct fake_op *op)
{
    return is_stream(stream) ? add(stream, op) : CUDA_RESULT_INVALID_HANDLE;
}

static void check_may_block(const char *call)
{
    if (fake.behaviour.daemon && fake.ready) {
        fake_break("%s after READY: a worker must not wait for the device", call);
    }
}

int fake_cuStreamSynchronize(struct cuda_stream *stream)
{
    int result = fake_enter_context(CALL_cuStreamSynchronize);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    check_may_block("cuStreamSynchronize");
    while (fake_stream_find(&stream) == CUDA_RESULT_OK && stream->ops && fake.sticky == 0) {
        pthread_cond_wait(&fake.moved, &fake.lock);
    }
    return fake_leave(fake.sticky);
}

int fake_cuCtxSynchronize(void)
{
    int result = fake_enter_context(CALL_cuCtxSynchronize);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    check_may_block("cuCtxSynchronize");
    while (!fake_streams_idle() && fake.sticky == 0) {
        pthread_cond_wait(&fake.moved, &fake.lock);
    }
    return fake_leave(fake.sticky);
}

/* ---- operations ---- */

/* The rest of both launches. */
static int launch(struct cuda_stream *stream, struct cuda_function *function, unsigned grid, unsigned block,
                  void **parameters)
{
    if (fake.behaviour.daemon && fake.ready && !function->launched) {
        fake_break("the first launch of a kernel after READY: it loads the kernel, and waits for all that runs");
    }
    while (fake.closing > 0) {
        pthread_cond_wait(&fake.moved, &fake.lock);
    }
    struct fake_op op = {.kind = OP_KERNEL, .function = function, .grid = grid, .block = block};
    fake_take_parameters(&op, parameters);
    function->launched = true;
    fake_check_launch(&op);
    return add(stream, &op);
}

int fake_cuLaunchKernel(struct cuda_function *function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                        unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                        struct cuda_stream *stream, void **parameters, void **extra)
{
    int result = fake_enter_context(CALL_cuLaunchKernel);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_stream(stream) || grid_x == 0 || grid_y != 1 || grid_z != 1 || block_x == 0 || block_y != 1 ||
        block_z != 1 || shared_bytes != 0 || !parameters || extra) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    if (function->kind == KERNEL_GATED || function->kind == KERNEL_TAIL) {
        fake_break("what goes behind a gate was launched to begin when that has ended, and not before");
    }
    return fake_leave(launch(stream, function, grid_x, block_x, parameters));
}

/* One that may begin before the one ahead of it has ended, if it waits for that itself; so here it begins then. */
int fake_cuLaunchKernelEx(const struct cuda_launch_config *config, struct cuda_function *function, void **parameters,
                          void **extra)
{
    int result = fake_enter_context(CALL_cuLaunchKernelEx);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_stream(config->stream) || config->grid_x == 0 || config->grid_y != 1 || config->grid_z != 1 ||
        config->block_x == 0 || config->block_y != 1 || config->block_z != 1 || config->shared_bytes != 0 ||
        config->attributes_nr != 1 || config->attributes->id != CUDA_LAUNCH_SERIALIZED_BY_PROGRAM || !parameters ||
        extra) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    if (config->attributes->value.serialized_by_program && function->kind != KERNEL_GATED &&
        function->kind != KERNEL_TAIL) {
        fake_break("a kernel was launched to begin before its turn, and does not wait for that itself");
    }
    return fake_leave(launch(config->stream, function, config->grid_x, config->block_x, parameters));
}

void fake_check_may_wait(const char *call)
{
    if (fake.behaviour.daemon) {
        fake_break("%s: a pending wait holds a hardware connection, and a client can make it last", call);
    }
}

int fake_cuEventRecord(struct cuda_event *event, struct cuda_stream *stream)
{
    int result = fake_enter_context(CALL_cuEventRecord);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    uint64_t record = is_stream(stream) ? fake_event_begin(event) : 0;
    if (record == 0) {
        return fake_leave(CUDA_RESULT_INVALID_HANDLE);
    }
    struct fake_op op = {.kind = OP_EVENT, .event = event, .value = record};
    result = add(stream, &op);
    if (result != CUDA_RESULT_OK) {
        fake_event_reach(event, record);
    }
    return fake_leave(result);
}

int fake_cuStreamWaitEvent(struct cuda_stream *stream, struct cuda_event *event, unsigned int flags)
{
    int result = fake_enter_context(CALL_cuStreamWaitEvent);
    (void)stream;
    (void)event;
    (void)flags;
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    fake_check_may_wait("cuStreamWaitEvent");
    return fake_leave(RESULT_NOT_SUPPORTED);
}

int fake_cuLaunchHostFunc(struct cuda_stream *stream, void (*function)(void *data), void *data)
{
    int result = fake_enter_context(CALL_cuLaunchHostFunc);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    fake_check_may_wait("cuLaunchHostFunc");
    if (!is_stream(stream)) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    struct fake_op op = {.kind = OP_HOST_FUNCTION, .host_function = function, .data = data};
    result = add(stream, &op);
    return fake_leave(result);
}

struct fake_cuda_live fake_cuda_live(void)
{
    struct fake_cuda_live live = {0};
    pthread_mutex_lock(&fake.lock);
    for (int i = 0; i < FAKE_DEVICES_MAX; i++) {
        live.contexts += fake.contexts[i].retains;
    }
    for (const struct fake_range *range = fake.ranges; range; range = range->next) {
        live.allocations += range->kind == RANGE_ALLOCATION;
        live.opened += range->kind == RANGE_OPENED ? range->opens : 0;
        live.reserved += range->kind == RANGE_RESERVED;
        live.mapped += range->kind == RANGE_CHUNK;
        live.registered += range->kind == RANGE_HOST;
    }
    for (const struct cuda_stream *stream = fake.streams; stream; stream = stream->next) {
        live.streams += !stream->destroyed && !stream->is_default;
        for (const struct fake_op *op = stream->ops; op; op = op->next) {
            live.pending++;
        }
    }
    live.events = fake_events_nr();
    live.chunks = fake.chunks_nr;
    live.modules = fake.modules_nr;
    pthread_mutex_unlock(&fake.lock);
    return live;
}
