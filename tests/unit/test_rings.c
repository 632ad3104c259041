/* SPDX-License-Identifier: Apache-2.0 */
/* The pages of a session's rings and the device: registered once, at the rate of imports, when there is room. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <limits.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "paper_device.h"
#include "ring_scene.h"
#include "ring_stream.h"

#define STREAMS 3
#define IMPORT_NS UINT64_C(1000000000) /* one each second */

/* Of another client than the scene's. */
static struct rings *others;
static struct control_lane their_lane;
static struct stream *streams[STREAMS];
static int streams_opened;
static int streams_refused;
static int streams_gone;

static void on_opened(struct stream *s)
{
    streams_opened += s->state == STREAM_OPEN;
    streams_refused += s->state != STREAM_OPEN;
}

static void on_stream_gone(struct stream *s)
{
    (void)s;
    streams_gone++;
}

static const struct stream_handlers handlers = {.on_opened = on_opened, .on_gone = on_stream_gone};

static void open_stream(int i)
{
    struct ring_stream *ring;
    struct error err;
    assert_int_equal(ring_stream_new(others, &engine, &ring, &err), MLACAT_OK);
    assert_int_equal(stream_open(&engine, &their_lane, ENTRIES, ring, &handlers, NULL, &streams[i], &err), MLACAT_OK);
}

static int setup(void **state)
{
    static struct device_ops gpu_like;
    struct error err;
    (void)state;
    gpu_like = paper_ops;
    gpu_like.import_holds_up = true;
    scene_open(&gpu_like);
    streams_opened = streams_refused = streams_gone = 0;
    memset(streams, 0, sizeof(streams));
    control_lane_init(&their_lane);
    control_set_import_rate(&engine.control, 1);
    return rings_new(STREAMS, ENTRIES, &others, &err) == MLACAT_OK ? 0 : -1;
}

static int teardown(void **state)
{
    int left_nr = 0;
    (void)state;
    for (int i = 0; i < STREAMS; i++) {
        if (streams[i]) {
            stream_close(streams[i]);
            left_nr++;
        }
    }
    TURN_UNTIL(streams_gone == left_nr + streams_refused);
    rings_free(others);
    scene_close();
    assert_int_equal(paper.pages, 0);
    return 0;
}

static uint64_t owed_ns(void)
{
    pthread_mutex_lock(&engine.control.mutex);
    uint64_t full_ns = their_lane.imports.full_ns; /* when nothing is owed any more */
    pthread_mutex_unlock(&engine.control.mutex);
    return full_ns;
}

/* One import, however many streams are opened at once. */
static void test_rings_registration_counts_as_one_import(void **state)
{
    (void)state;
    uint64_t before_ns = clock_now_ns();
    assert_int_equal(owed_ns(), 0);
    for (int i = 0; i < STREAMS; i++) {
        open_stream(i);
    }
    TURN_UNTIL(streams_opened == STREAMS);
    assert_true(owed_ns() > before_ns);
    assert_true(owed_ns() <= clock_now_ns() + IMPORT_NS);
    assert_int_equal(paper.pages, 2 + 2);
}

/* Between the tries others have the thread; what is registered then is not registered twice. */
static void test_rings_stream_waits_for_room(void **state)
{
    (void)state;
    paper.no_room_nr = 2;
    open_stream(0);
    TURN_UNTIL(streams_opened + streams_refused == 1);
    assert_int_equal(streams_opened, 1);
    assert_int_equal(paper.no_room_nr, 0);
    assert_int_equal(paper.pages, 2 + 2);
}

/* The open ends unheard, and what it would have registered is not. */
static void test_rings_stream_without_room_goes_with_its_client(void **state)
{
    (void)state;
    paper.no_room_nr = INT_MAX;
    open_stream(0);
    stream_close(streams[0]);
    streams[0] = NULL;
    control_hurry(&engine.control, &their_lane);
    TURN_UNTIL(streams_gone == 1);
    streams_gone = 0;
    assert_int_equal(streams_opened + streams_refused, 0);
    assert_int_equal(paper.pages, 2);
    assert_true(paper.no_room_nr > 0);
    paper.no_room_nr = 0;
}

#define RINGS_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        RINGS_TEST(test_rings_registration_counts_as_one_import),
        RINGS_TEST(test_rings_stream_waits_for_room),
        RINGS_TEST(test_rings_stream_without_room_goes_with_its_client),
    };
    alarm(50);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
