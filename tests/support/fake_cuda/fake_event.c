/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events, also of other processes: the counts of an event stand in a file that a handle names, so that whoever opened
 * it sees later records too, and one whose process died stays as it was.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_inside.h"

#define EVENT_MAGIC UINT32_C(0xfa4eeeee)
#define FLAG_BLOCKING_SYNC 1u
#define FLAG_DISABLE_TIMING 2u
#define FLAG_INTERPROCESS 4u

/* What is in the file. */
struct fake_progress {
    _Atomic uint64_t recorded; /* calls of cuEventRecord */
    _Atomic uint64_t reached;  /* the last of them that its stream came to */
};

struct cuda_event {
    struct cuda_event *next;
    struct fake_progress *progress;
    int fd; /* -1: opened, of another process */
    bool shared;
    unsigned records; /* operations on streams that will write to `progress` */
    bool destroyed;
};

/* What is in the 64 bytes. */
struct fake_event_handle {
    uint32_t magic;
    int32_t pid;
    int32_t fd;
    uint64_t block_id;
};
_Static_assert(sizeof(struct fake_event_handle) <= sizeof(struct cuda_ipc_handle), "it fits");

static struct cuda_event *events;

unsigned fake_events_nr(void)
{
    unsigned nr = 0;
    for (const struct cuda_event *event = events; event; event = event->next) {
        nr += !event->destroyed;
    }
    return nr;
}

static bool is_event(const struct cuda_event *event)
{
    for (const struct cuda_event *known = events; known; known = known->next) {
        if (known == event) {
            return !event->destroyed;
        }
    }
    return false;
}

/* Takes `fd`, unless the result is an error. */
static int add(int fd, bool own, bool shared, struct cuda_event **event)
{
    struct cuda_event *made = calloc(1, sizeof(*made));
    void *progress = mmap(NULL, sizeof(*made->progress), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (!made || progress == MAP_FAILED) {
        free(made);
        return CUDA_RESULT_OUT_OF_MEMORY;
    }
    made->progress = progress;
    made->fd = own ? fd : -1;
    made->shared = shared;
    made->next = events;
    events = made;
    if (!own) {
        close(fd);
    }
    *event = made;
    return CUDA_RESULT_OK;
}

static void free_if_unused(struct cuda_event *event)
{
    if (!event->destroyed || event->records > 0) {
        return;
    }
    struct cuda_event **link = &events;
    while (*link != event) {
        link = &(*link)->next;
    }
    *link = event->next;
    munmap(event->progress, sizeof(*event->progress));
    if (event->fd >= 0) {
        close(event->fd);
    }
    free(event);
}

int fake_cuEventCreate(struct cuda_event **event, unsigned int flags)
{
    int result = fake_enter_context(CALL_cuEventCreate);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    bool shared = (flags & FLAG_INTERPROCESS) != 0;
    if ((flags & ~(FLAG_BLOCKING_SYNC | FLAG_DISABLE_TIMING | FLAG_INTERPROCESS)) != 0 ||
        (shared && !(flags & FLAG_DISABLE_TIMING))) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    int fd = fake_make_file(sizeof(struct fake_progress));
    result = fd >= 0 ? add(fd, true, shared, event) : CUDA_RESULT_OUT_OF_MEMORY;
    if (result != CUDA_RESULT_OK && fd >= 0) {
        close(fd);
    }
    return fake_leave(result);
}

int fake_cuEventDestroy(struct cuda_event *event)
{
    int result = fake_enter_context(CALL_cuEventDestroy);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_event(event)) {
        return fake_leave(CUDA_RESULT_INVALID_HANDLE);
    }
    event->destroyed = true; /* does not wait: streams that come to it later still find it */
    free_if_unused(event);
    return fake_leave(CUDA_RESULT_OK);
}

int fake_cuEventQuery(struct cuda_event *event)
{
    int result = fake_enter_context(CALL_cuEventQuery);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_event(event)) {
        return fake_leave(CUDA_RESULT_INVALID_HANDLE);
    }
    uint64_t recorded = atomic_load(&event->progress->recorded);
    return fake_leave(atomic_load(&event->progress->reached) >= recorded ? CUDA_RESULT_OK : CUDA_RESULT_NOT_READY);
}

uint64_t fake_event_begin(struct cuda_event *event)
{
    if (!is_event(event)) {
        return 0;
    }
    event->records++;
    return atomic_fetch_add(&event->progress->recorded, 1) + 1;
}

void fake_event_reach(struct cuda_event *event, uint64_t record)
{
    if (atomic_load(&event->progress->reached) < record) {
        atomic_store(&event->progress->reached, record);
    }
    event->records--;
    free_if_unused(event);
}

int fake_cuIpcGetEventHandle(struct cuda_ipc_handle *handle, struct cuda_event *event)
{
    int result = fake_enter_context(CALL_cuIpcGetEventHandle);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (!is_event(event) || !event->shared || event->fd < 0) {
        return fake_leave(CUDA_RESULT_INVALID_HANDLE);
    }
    size_t bytes;
    struct fake_event_handle inside = {.magic = EVENT_MAGIC, .pid = getpid(), .fd = event->fd};
    fake_know_file(event->fd, &bytes, &inside.block_id);
    memset(handle, 0, sizeof(*handle));
    memcpy(handle, &inside, sizeof(inside));
    return fake_leave(CUDA_RESULT_OK);
}

static int open_handle(struct cuda_event **event, const struct cuda_ipc_handle *handle)
{
    struct fake_event_handle inside;
    size_t bytes = 0;
    uint64_t block_id = 0;
    memcpy(&inside, handle, sizeof(inside));
    if (inside.magic != EVENT_MAGIC) {
        return CUDA_RESULT_INVALID_VALUE;
    }
    if (inside.pid == getpid() && !fake.behaviour.same_process) {
        return RESULT_INVALID_CONTEXT;
    }
    int fd = fake_open_file(inside.pid, inside.fd);
    if (fd < 0) {
        return CUDA_RESULT_INVALID_HANDLE;
    }
    int result = CUDA_RESULT_INVALID_HANDLE;
    if (fake_know_file(fd, &bytes, &block_id) && bytes == sizeof(struct fake_progress) && block_id == inside.block_id) {
        result = add(fd, false, true, event);
    }
    if (result != CUDA_RESULT_OK) {
        close(fd);
    }
    return result;
}

int fake_cuIpcOpenEventHandle(struct cuda_event **event, struct cuda_ipc_handle handle)
{
    int result = fake_enter_context(CALL_cuIpcOpenEventHandle);
    return result != CUDA_RESULT_OK ? result : fake_leave(open_handle(event, &handle));
}
