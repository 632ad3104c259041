/* SPDX-License-Identifier: Apache-2.0 */
#include "paper_device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mlacat_ring.h"

#define PAPER_WAIT_MOST_NS 1000000

struct paper paper;

struct device_stream {
    struct device_words words;
    struct device_call calls[PAPER_CALLS];
    int nr;
    bool armed; /* the one call that it then has */
    uint64_t value;
};

static struct device_memory {
    int unused;
} paper_memory;

static struct device_pages {
    int unused;
} paper_pages;

static enum device_answer paper_open(const char *uuid, struct device **device, struct device_info *info,
                                     struct error *err)
{
    (void)uuid;
    (void)err;
    *device = NULL;
    *info = (struct device_info){.uuid = "paper", .kind = "paper"};
    return DEVICE_OK;
}

static void paper_close(struct device *device)
{
    (void)device;
    assert_int_equal(paper.pages, 0);
}

static enum mlacat_status paper_import(struct device *device, struct memory_request *request,
                                       struct device_memory **memory, struct memory_info *info, struct error *err)
{
    (void)device;
    (void)request;
    (void)err;
    *memory = &paper_memory;
    uint64_t bytes = paper.import_bytes;
    *info = (struct memory_info){.memory = {.allocation = {1, 1},
                                            .allocation_offset_bytes = paper.import_at,
                                            .size_bytes = bytes != 0 ? bytes : 4096}};
    return MLACAT_OK;
}

static void paper_release(struct device *device, struct device_memory *memory)
{
    (void)device;
    (void)memory;
    paper.released++;
}

static enum device_answer paper_pages_register(struct device *device, void *address, size_t bytes,
                                               struct device_pages **pages, struct error *err)
{
    (void)device;
    if (paper.no_room_nr > 0) {
        paper.no_room_nr--;
        error_set(err, MLACAT_RESOURCE_EXHAUSTED, "no room on paper");
        return DEVICE_AGAIN;
    }
    assert_int_equal(((uintptr_t)address | bytes) % (size_t)sysconf(_SC_PAGESIZE), 0);
    *pages = &paper_pages;
    paper.pages++;
    return DEVICE_OK;
}

static void paper_pages_release(struct device *device, struct device_pages *pages)
{
    (void)device;
    assert_ptr_equal(pages, &paper_pages);
    paper.pages--;
}

static enum mlacat_status paper_stream_open(struct device *device, const struct device_words *words,
                                            struct device_stream **stream, struct error *err)
{
    (void)device;
    (void)err;
    *stream = calloc(1, sizeof(**stream));
    (*stream)->words = *words;
    return MLACAT_OK;
}

static void paper_stream_close(struct device_stream *stream)
{
    assert_int_equal(stream->nr, 0);
    free(stream);
}

static const struct mlacat_ring_daemon *daemon_of(const struct device_stream *stream)
{
    return (const void *)((const char *)stream->words.fence - offsetof(struct mlacat_ring_daemon, fence));
}

static enum device_answer paper_submit(struct device_stream *stream, const struct device_call *calls, uint32_t *nr,
                                       struct error *err)
{
    uint32_t taken = 0;
    assert_false(stream->armed);
    while (paper.held || paper.held_fence == stream->words.fence) {
        paper.holding = 1;
        sched_yield();
    }
    paper.holding = 0;
    if (paper.refuse_nr > 0 && !calls[0].signal_only) {
        paper.refuse_nr--;
        *nr = 0;
        error_set(err, MLACAT_INTERNAL, "paper says no");
        return DEVICE_ERROR;
    }
    while (taken < *nr && stream->nr < PAPER_CALLS) {
        paper.signals += calls[taken].signal_only;
        stream->calls[stream->nr++] = calls[taken++];
        if (paper.logged < PAPER_LOG) {
            paper.log[paper.logged] = stream->words.fence;
            paper.logged++;
        }
    }
    paper.failed_early = (int)mlacat_ring_failed(daemon_of(stream));
    paper.largest = (int)taken > paper.largest ? (int)taken : paper.largest;
    paper.launched += (int)taken;
    *nr = taken;
    return taken > 0 ? DEVICE_OK : DEVICE_AGAIN;
}

static enum device_answer paper_arm(struct device_stream *stream, const struct device_call *call, uint64_t value,
                                    uint64_t wait_ns, struct error *err)
{
    (void)err;
    assert_non_null(stream->words.ready);
    assert_int_equal(stream->nr, 0);
    assert_false(call->signal_only);
    assert_in_range(wait_ns, 1, PAPER_WAIT_MOST_NS);
    paper.offered++;
    if (!paper.takes_arms) {
        return DEVICE_AGAIN;
    }
    stream->calls[stream->nr++] = *call;
    stream->value = value;
    stream->armed = true;
    paper.wait_ns = wait_ns;
    paper.ready_memory = call->ready_memory;
    paper.ready_offset = call->ready_offset;
    paper.armed++;
    return DEVICE_OK;
}

/* The armed call lapses. */
static bool has_lapsed(struct device_stream *stream, struct device_completion *done)
{
    if (!stream->armed || paper.lapse_nr <= 0) {
        return false;
    }
    *done = (struct device_completion){.cookie = stream->calls[0].cookie, .lapsed = true};
    stream->armed = false;
    stream->nr = 0;
    paper.lapse_nr--;
    return true;
}

/* The armed call still waits. */
static bool is_waiting(const struct device_stream *stream)
{
    uint64_t ready = __atomic_load_n(stream->words.ready, __ATOMIC_ACQUIRE);
    return stream->armed && !paper.quick && (int64_t)(ready - stream->value) < 0;
}

/* As device.h asks: `done`, then the fence; a call that fails moves only the first, and is the last of its poll. */
static int paper_poll(struct device_stream *stream, struct device_completion *done, int max, struct error *err)
{
    int nr = 0;
    bool failed = false;
    if (paper.lost) {
        stream->nr = 0;
        stream->armed = false;
        error_set(err, MLACAT_INTERNAL, "paper burnt");
        return -1;
    }
    if (has_lapsed(stream, done)) {
        return 1;
    }
    if (is_waiting(stream)) {
        return 0;
    }
    while (!failed && nr < max && stream->nr > 0 && paper.permits > 0) {
        struct device_call *call = &stream->calls[0];
        paper.permits--;
        done[nr] = (struct device_completion){.cookie = call->cookie};
        if (call->tell_done) {
            __atomic_store_n(stream->words.done, call->sequence, __ATOMIC_RELEASE);
        }
        failed = !call->signal_only && paper.fail_nr > 0;
        if (failed) {
            paper.fail_nr--;
            error_set_scoped(&done[nr].error, MLACAT_INTERNAL, MLACAT_SCOPE_CALL, "paper was torn");
        } else {
            paper.output[call->sequence % PAPER_OUTPUTS] = call->sequence;
            __atomic_store_n(stream->words.fence, call->sequence, __ATOMIC_RELEASE);
        }
        nr++;
        memmove(stream->calls, stream->calls + 1, sizeof(stream->calls) - sizeof(stream->calls[0]));
        stream->nr--;
        stream->armed = false;
    }
    return nr;
}

static uint64_t paper_tend(struct device *device, struct error *err)
{
    (void)device;
    (void)err;
    return DEVICE_TEND_LATER;
}

const struct device_ops paper_ops = {
    .kind = "paper",
    .open = paper_open,
    .close = paper_close,
    .mem_import = paper_import,
    .mem_release = paper_release,
    .tend = paper_tend,
    .pages_register = paper_pages_register,
    .pages_release = paper_pages_release,
    .stream_open = paper_stream_open,
    .stream_close = paper_stream_close,
    .submit = paper_submit,
    .arm = paper_arm,
    .poll = paper_poll,
};
