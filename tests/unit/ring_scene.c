/* SPDX-License-Identifier: Apache-2.0 */
#include "ring_scene.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>
#include <unistd.h>

#include "paper_device.h"
#include "ring_stream.h"

/* ------------------------------------------------------------------------------------------ the loop */

struct engine engine;
struct control_lane lane;
static struct loop_bell bell;
struct rings *rings;
struct stream *stream;
struct buffer *buffer;
static int opened;
int gone;
int imported;
int unpublished;
int broken_nr;
struct error broken;

static void no_wake(void *arg)
{
    (void)arg;
}

static void on_opened(struct stream *s)
{
    assert_int_equal(s->state, STREAM_OPEN);
    opened++;
}

static void on_broken(struct stream *s, const struct error *why)
{
    (void)s;
    broken_nr++;
    broken = *why;
}

static void on_gone(struct stream *s)
{
    (void)s;
    gone++;
}

static void on_imported(struct buffer *b)
{
    b->ref = (struct wire_ref){(uint32_t)imported, 1};
    imported++;
}

static void on_unpublished(struct buffer *b)
{
    (void)b;
    unpublished++;
}

static void on_buffer_gone(struct buffer *b)
{
    (void)b;
}

static const struct stream_handlers stream_handlers = {
    .on_opened = on_opened, .on_broken = on_broken, .on_gone = on_gone};
static const struct buffer_handlers buffer_handlers = {
    .on_imported = on_imported, .on_unpublished = on_unpublished, .on_gone = on_buffer_gone};

struct buffer *publish(void)
{
    static const struct memory_request request = {.kind = MEMORY_HOST};
    struct buffer *made;
    struct error err;
    int before = imported;
    assert_int_equal(buffer_import(&engine, &lane, &request, &buffer_handlers, NULL, &made, &err), MLACAT_OK);
    TURN_UNTIL(imported == before + 1);
    buffer_publish(made, &rings->table);
    return made;
}

_Atomic uint32_t naps;
_Atomic bool long_naps;

void __real_doorbell_nap(struct doorbell *doorbell, uint64_t ns);
void __wrap_doorbell_nap(struct doorbell *doorbell, uint64_t ns);

void __wrap_doorbell_nap(struct doorbell *doorbell, uint64_t ns)
{
    bool is_long = long_naps;
    naps++;
    __real_doorbell_nap(doorbell, is_long ? UINT64_C(3600000000000) : ns);
}

/* ------------------------------------------------------------------------------------------ the client */

struct mlacat_ring_client *client;
const struct mlacat_ring_daemon *daemon_page;
static int doorbell_fd; /* as the client has it */
uint32_t tail;
uint32_t head;

struct mlacat_ring_submission *write_entry(uint64_t id, uint32_t flags)
{
    struct mlacat_ring_submission *entries = (void *)(rings->pages->client + rings->pages->submissions_offset);
    struct mlacat_ring_submission *entry = &entries[tail++ % ENTRIES];
    memset(entry, 0, sizeof(*entry));
    entry->call_id = id;
    entry->op = OP_CONCAT_MLA_ABSORB_Q;
    entry->dtype = 1;
    entry->flags = flags;
    entry->dim0 = entry->dim1 = 1;
    entry->width_first = entry->width_second = 4;
    for (int i = 0; i < 3; i++) {
        entry->buffer[i] = (struct mlacat_ring_buffer){buffer ? buffer->ref.id : 0, 1};
        entry->offset_bytes[i] = (uint64_t)i * 64;
        entry->stride[i][0] = entry->stride[i][1] = 32;
    }
    return entry;
}

void ring_doorbell(void)
{
    if (mlacat_ring_daemon_sleeps(daemon_page)) {
        uint64_t one = 1;
        assert_int_equal(write(doorbell_fd, &one, sizeof(one)), sizeof(one));
    }
}

void submit(void)
{
    mlacat_ring_submit(client, tail);
    ring_doorbell();
}

void send_calls(uint64_t first_id, uint32_t nr, uint32_t flags)
{
    for (uint32_t i = 0; i < nr; i++) {
        write_entry(first_id + i, flags)->ready = 1;
    }
    submit();
}

struct mlacat_ring_completion wait_for_completion(uint64_t id)
{
    const struct mlacat_ring_completion *entries = (void *)(rings->pages->daemon + rings->pages->completions_offset);
    TURN_UNTIL(mlacat_ring_completed(daemon_page) != head);
    struct mlacat_ring_completion completion = entries[head % ENTRIES];
    assert_int_equal(completion.call_id, id);
    mlacat_ring_completions_read(client, ++head);
    return completion;
}

uint16_t wait_for(uint64_t id)
{
    return wait_for_completion(id).status;
}

/* ------------------------------------------------------------------------------------------ both */

struct engine_options scene_options = {
    .uuid = "", .workers = 1, .poll = WORKER_POLL_BALANCED, .spin_ns = 1000, .bell = &bell};

void scene_open(const struct device_ops *ops)
{
    struct error err;
    struct ring_stream *ring;
    struct engine_options options = scene_options;
    options.ops = ops;
    memset(&paper, 0, sizeof(paper));
    opened = gone = imported = unpublished = broken_nr = 0;
    tail = head = 0;
    bell.wake = no_wake;
    naps = 0;
    long_naps = false;
    control_lane_init(&lane);
    assert_int_equal(engine_start(&engine, &options, &err), MLACAT_OK);
    assert_int_equal(rings_new(2, ENTRIES - 1, &rings, &err), MLACAT_OK);
    assert_int_equal(ring_stream_new(rings, &engine, &ring, &err), MLACAT_OK);
    client = ring->ring.client;
    daemon_page = ring->ring.daemon;
    doorbell_fd = dup(ring->doorbell_fd);
    assert_int_equal(stream_open(&engine, &lane, ENTRIES, ring, &stream_handlers, NULL, &stream, &err), MLACAT_OK);
    buffer = publish();
    TURN_UNTIL(opened == 1);
}

void await_gone(void)
{
    TURN_UNTIL(gone == 1);
    stream = NULL;
}

void scene_close(void)
{
    paper.permits = 1 << 20;
    paper.lapse_nr = 1 << 20;
    if (stream) {
        stream_drop_ring(stream);
        stream_close(stream);
        await_gone();
    }
    if (buffer) {
        buffer_drop(buffer);
    }
    TURN_UNTIL(paper.released == imported);
    rings_free(rings);
    TURN_UNTIL(engine_idle(&engine));
    engine_stop(&engine);
    close(doorbell_fd);
}
