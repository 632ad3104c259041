/* SPDX-License-Identifier: Apache-2.0 */
#include "device_fault.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

struct fault {
    enum fault_kind kind;
    uint32_t skip; /* calls that go well before */
    uint32_t times;
    uint64_t calls;
    uint64_t hits;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t cleared;
    const struct device_ops *inner;
    struct fault fault[FAULT_SLOTS];
    uint64_t clears;
    bool lost;
} faults = {.lock = PTHREAD_MUTEX_INITIALIZER, .cleared = PTHREAD_COND_INITIALIZER};

void device_fault_over(const struct device_ops *inner)
{
    pthread_mutex_lock(&faults.lock);
    faults.inner = inner;
    memset(faults.fault, 0, sizeof(faults.fault));
    faults.lost = false;
    pthread_mutex_unlock(&faults.lock);
}

void device_fault_set(enum fault_slot slot, enum fault_kind kind, uint32_t nth, uint32_t times)
{
    pthread_mutex_lock(&faults.lock);
    faults.fault[slot].kind = kind;
    faults.fault[slot].skip = nth - 1;
    faults.fault[slot].times = times;
    pthread_mutex_unlock(&faults.lock);
}

void device_fault_clear(void)
{
    pthread_mutex_lock(&faults.lock);
    for (int slot = 0; slot < FAULT_SLOTS; slot++) {
        faults.fault[slot].times = 0;
    }
    faults.lost = false;
    faults.clears++;
    pthread_cond_broadcast(&faults.cleared);
    pthread_mutex_unlock(&faults.lock);
}

uint64_t device_fault_calls(enum fault_slot slot)
{
    pthread_mutex_lock(&faults.lock);
    uint64_t calls = faults.fault[slot].calls;
    pthread_mutex_unlock(&faults.lock);
    return calls;
}

uint64_t device_fault_hits(enum fault_slot slot)
{
    pthread_mutex_lock(&faults.lock);
    uint64_t hits = faults.fault[slot].hits;
    pthread_mutex_unlock(&faults.lock);
    return hits;
}

/* On the control thread, which may be made to wait. */
static bool is_control(enum fault_slot slot)
{
    return slot == FAULT_IMPORT || slot == FAULT_EVENT_IMPORT || slot == FAULT_STREAM_OPEN;
}

/* Counts one call of the slot; true: it goes wrong, *kind says how. Holds here what is to be held. */
static bool goes_wrong(enum fault_slot slot, enum fault_kind *kind)
{
    pthread_mutex_lock(&faults.lock);
    struct fault *fault = &faults.fault[slot];
    bool hit = false;
    fault->calls++;
    if (faults.lost && (slot == FAULT_SUBMIT || slot == FAULT_POLL)) {
        *kind = FAULT_FAIL;
        hit = true;
    } else if (fault->times > 0 && fault->skip > 0) {
        fault->skip--;
    } else if (fault->times > 0) {
        fault->times -= fault->times != FAULT_FOR_EVER;
        *kind = fault->kind;
        hit = true;
    }
    if (hit) {
        fault->hits++;
        faults.lost |= slot == FAULT_POLL && *kind == FAULT_FAIL;
    }
    if (hit && *kind == FAULT_HOLD && is_control(slot)) {
        uint64_t clears = faults.clears;
        while (faults.clears == clears) {
            pthread_cond_wait(&faults.cleared, &faults.lock);
        }
        hit = false;
    }
    pthread_mutex_unlock(&faults.lock);
    return hit;
}

static enum mlacat_status set_error(struct error *err, enum fault_kind kind, const char *what)
{
    return error_set(err, kind == FAULT_FAIL ? MLACAT_INTERNAL : MLACAT_RESOURCE_EXHAUSTED,
                     "injected: this %s was told to go wrong", what);
}

static enum device_answer fault_open(const char *uuid, struct device **device, struct device_info *info,
                                     struct error *err)
{
    return faults.inner->open(uuid, device, info, err);
}

static void fault_close(struct device *device)
{
    faults.inner->close(device);
}

static enum mlacat_status fault_mem_import(struct device *device, struct memory_request *request,
                                           struct device_memory **memory, struct memory_info *info, struct error *err)
{
    enum fault_kind kind;
    if (!goes_wrong(FAULT_IMPORT, &kind)) {
        return faults.inner->mem_import(device, request, memory, info, err);
    }
    for (uint32_t i = 0; i < request->chunks_nr; i++) { /* taken in every outcome */
        close(request->fds[i]);
        request->fds[i] = -1;
    }
    return set_error(err, kind, "import");
}

static void fault_mem_release(struct device *device, struct device_memory *memory)
{
    faults.inner->mem_release(device, memory);
}

static void fault_mem_closed(const struct device *device, uint64_t *released, uint64_t *closed)
{
    faults.inner->mem_closed(device, released, closed);
}

static enum mlacat_status fault_event_import(struct device *device, const uint8_t handle[MEMORY_HANDLE_BYTES],
                                             struct device_event **event, struct error *err)
{
    enum fault_kind kind;
    if (goes_wrong(FAULT_EVENT_IMPORT, &kind)) {
        return set_error(err, kind, "event_import");
    }
    return faults.inner->event_import(device, handle, event, err);
}

static void fault_event_release(struct device *device, struct device_event *event)
{
    faults.inner->event_release(device, event);
}

static enum device_answer fault_event_query(struct device_event *event, struct error *err)
{
    enum fault_kind kind;
    if (!goes_wrong(FAULT_EVENT_QUERY, &kind)) {
        return faults.inner->event_query(event, err);
    }
    set_error(err, kind, "event_query");
    return kind == FAULT_FAIL ? DEVICE_ERROR : DEVICE_AGAIN;
}

static enum device_answer fault_pages_register(struct device *device, void *address, size_t bytes,
                                               struct device_pages **pages, struct error *err)
{
    return faults.inner->pages_register(device, address, bytes, pages, err);
}

static void fault_pages_release(struct device *device, struct device_pages *pages)
{
    faults.inner->pages_release(device, pages);
}

static enum mlacat_status fault_stream_open(struct device *device, const struct device_words *words,
                                            struct device_stream **stream, struct error *err)
{
    enum fault_kind kind;
    if (goes_wrong(FAULT_STREAM_OPEN, &kind)) {
        return set_error(err, kind, "stream_open");
    }
    return faults.inner->stream_open(device, words, stream, err);
}

static uint64_t fault_tend(struct device *device, struct error *err)
{
    return faults.inner->tend(device, err);
}

static void fault_stream_close(struct device_stream *stream)
{
    faults.inner->stream_close(stream);
}

/* Counts calls, not batches: the row underneath gets those before the one that goes wrong. */
static enum device_answer fault_submit(struct device_stream *stream, const struct device_call *calls, uint32_t *nr,
                                       struct error *err)
{
    enum fault_kind kind = FAULT_REFUSE;
    uint32_t good_nr = 0;
    while (good_nr < *nr && !goes_wrong(FAULT_SUBMIT, &kind)) {
        good_nr++;
    }
    if (good_nr > 0) {
        *nr = good_nr;
        return faults.inner->submit(stream, calls, nr, err);
    }
    *nr = 0;
    set_error(err, kind, "submit");
    return kind == FAULT_FAIL ? DEVICE_ERROR : DEVICE_AGAIN;
}

static int fault_poll(struct device_stream *stream, struct device_completion *done, int max, struct error *err)
{
    enum fault_kind kind;
    if (goes_wrong(FAULT_POLL, &kind)) {
        if (kind == FAULT_FAIL) {
            set_error(err, kind, "poll");
            return -1;
        }
        return 0;
    }
    int nr = faults.inner->poll(stream, done, max, err);
    for (int i = 0; i < nr; i++) {
        if (goes_wrong(FAULT_COMPLETION, &kind)) {
            error_set(&done[i].error, MLACAT_DATA_LOSS, "injected: this completion was told to go wrong");
        }
    }
    return nr;
}

const struct device_ops device_fault_ops = {
    .kind = "fault",
    .works_in_poll = true, /* as the host device does */
    .open = fault_open,
    .close = fault_close,
    .mem_import = fault_mem_import,
    .mem_release = fault_mem_release,
    .mem_closed = fault_mem_closed,
    .event_import = fault_event_import,
    .event_release = fault_event_release,
    .event_query = fault_event_query,
    .tend = fault_tend,
    .pages_register = fault_pages_register,
    .pages_release = fault_pages_release,
    .stream_open = fault_stream_open,
    .stream_close = fault_stream_close,
    .submit = fault_submit,
    .poll = fault_poll,
};
