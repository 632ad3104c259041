/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_driver_work.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "cuda_driver.h"

#define THINGS 4096
#define STREAMS 64

static struct driver_thing things[THINGS];
static uint32_t things_head;
static uint32_t things_tail;
static struct cuda_stream streams[STREAMS]; /* more than these share one */

void driver_work_reset(void)
{
    memset(streams, 0, sizeof(streams));
    things_head = 0;
    things_tail = 0;
}

struct cuda_stream *driver_stream_at(uint32_t index)
{
    return &streams[index % STREAMS];
}

void driver_enqueue(struct driver_thing thing)
{
    assert_true(things_tail - things_head < THINGS);
    things[things_tail++ % THINGS] = thing;
}

static uint64_t *ticket_of(const struct driver_thing *thing)
{
    return (uint64_t *)(uintptr_t)thing->ticket.address;
}

static bool is_done(const struct driver_thing *thing)
{
    return !(thing->gated && thing->stream->lapsed) &&
           (thing->ticket.address == 0 || *ticket_of(thing) == thing->ticket.number);
}

/* A word tells how far something is: it never goes back. */
static void do_thing(struct driver_thing *thing)
{
    if (thing->gate.address != 0) {
        thing->stream->lapsed = atomic_load((_Atomic uint64_t *)(uintptr_t)thing->gate.address) < thing->gate.value;
        driver.lapses += thing->stream->lapsed;
        if (thing->stream->lapsed) {
            assert_true(atomic_load((_Atomic uint64_t *)(uintptr_t)thing->gate.lapsed) < thing->gate.lapsed_value);
            atomic_store((_Atomic uint64_t *)(uintptr_t)thing->gate.lapsed, thing->gate.lapsed_value);
        }
    }
    if (thing->ticket.address != 0 && thing->gate.address != 0) {
        assert_true(*ticket_of(thing) < thing->ticket.number); /* never used before */
        *ticket_of(thing) = thing->stream->lapsed ? 0 : thing->ticket.number;
    }
    if (is_done(thing)) {
        driver.gated_copies += thing->copies;
        if (thing->word) {
            assert_true(atomic_load(thing->word) < thing->value);
            atomic_store(thing->word, thing->value);
        }
    }
    thing->stream = NULL;
}

#define ANY UINT32_MAX

/* Of the first device stream: the lanes with the CUDA streams in the order in which they are made. Lane 0 has two. */
static bool is_on(const struct cuda_stream *stream, uint32_t lane)
{
    static const uint32_t lanes[] = {0, 0, 2, 1};
    size_t index = (size_t)(stream - streams);
    return lane == ANY || (index < sizeof(lanes) / sizeof(lanes[0]) && lanes[index] == lane);
}

static uint32_t work(uint32_t lane, uint32_t nr)
{
    uint32_t done = 0;
    for (uint32_t i = things_head; done < nr && i != things_tail; i++) {
        struct driver_thing *thing = &things[i % THINGS];
        if (thing->stream && is_on(thing->stream, lane)) {
            do_thing(thing);
            done++;
        }
    }
    while (things_head != things_tail && !things[things_head % THINGS].stream) {
        things_head++;
    }
    return done;
}

uint32_t driver_work(uint32_t nr)
{
    return work(ANY, nr);
}

uint32_t driver_work_on(uint32_t index, uint32_t nr)
{
    return work(index, nr);
}

uint32_t driver_things_on(uint32_t index)
{
    uint32_t nr = 0;
    for (uint32_t i = things_head; i != things_tail; i++) {
        const struct cuda_stream *stream = things[i % THINGS].stream;
        nr += stream && is_on(stream, index);
    }
    return nr;
}
