/* SPDX-License-Identifier: Apache-2.0 */
/* Whose turn it is on the control thread, under a clock that the test moves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "control.h"

#define LANES 3
#define JOBS_MAX (CONTROL_IMPORT_BURST + 10)
#define MS UINT64_C(1000000)
#define RATE 1000 /* one import each millisecond */

struct job {
    struct control_job job;
    char name;
};

static struct control control;
static struct control_lane lanes[LANES];
static struct loop_bell bell;
static struct job jobs[JOBS_MAX];
static uint32_t jobs_nr;
static uint32_t done_nr;
static char order[JOBS_MAX + 1]; /* names of the jobs as they ran */
static _Atomic uint32_t ran_nr;
static _Atomic bool gate_open;
static _Atomic bool device_gone;
static _Atomic bool has_room; /* else jobs named 'r' are to be tried again */
static _Atomic uint32_t tries;
static _Atomic uint64_t now_ns;

uint64_t __wrap_clock_now_ns(void);

uint64_t __wrap_clock_now_ns(void)
{
    return now_ns;
}

static uint64_t tend(struct device *device, struct error *err)
{
    (void)device;
    if (device_gone) {
        error_set_scoped(err, MLACAT_UNAVAILABLE, MLACAT_SCOPE_DEVICE, "it fell off the bus");
    }
    return MS;
}

static const struct device_ops ops = {.tend = tend};

static void wake(void *arg)
{
    (void)arg;
}

static void run(struct control_job *job)
{
    struct job *mine = LIST_ENTRY(job, struct job, job);
    while (!gate_open) {
        sched_yield();
    }
    if (mine->name == 'r') {
        tries++;
        job->again = !has_room;
        if (job->again) {
            return;
        }
    }
    order[ran_nr] = mine->name;
    ran_nr++;
}

static void done(struct control_job *job)
{
    (void)job;
    done_nr++;
}

static void post(int lane, char name, bool is_import)
{
    struct job *job = &jobs[jobs_nr++];
    *job =
        (struct job){.job = {.run = run, .done = done, .lane = lane < 0 ? NULL : &lanes[lane], .is_import = is_import},
                     .name = name};
    list_init(&job->job.link);
    control_post(&control, &job->job);
}

/* The alarm of main() ends a test that waits in vain. */
static void wait_for_jobs(uint32_t nr)
{
    while (done_nr < nr) {
        control_take(&control);
        sched_yield();
    }
    assert_int_equal(done_nr, nr);
}

/* Behind the gate. */
static void wait_until_it_runs(const struct control_lane *lane)
{
    bool running = false;
    while (!running || control.busy_ns == 0) {
        sched_yield();
        pthread_mutex_lock(&control.mutex);
        running = lane->running;
        pthread_mutex_unlock(&control.mutex);
    }
}

static void start(uint32_t rate, bool open)
{
    static struct device *const device = (struct device *)(void *)&bell; /* not NULL */
    struct error err;
    memset(lanes, 0, sizeof(lanes));
    memset(order, 0, sizeof(order));
    jobs_nr = done_nr = 0;
    ran_nr = 0;
    gate_open = open;
    has_room = false;
    tries = 0;
    device_gone = false;
    now_ns = 1000 * MS;
    bell.wake = wake;
    for (int i = 0; i < LANES; i++) {
        control_lane_init(&lanes[i]);
    }
    assert_int_equal(control_start(&control, &ops, device, &bell, &err), MLACAT_OK);
    control_set_import_rate(&control, rate);
}

static void stop(void)
{
    control_stop(&control);
    assert_int_equal(ran_nr, jobs_nr);
}

/* However much one client asks for, another waits for the job that runs and for no more. */
static void test_control_one_job_of_a_busy_client_goes_before(void **state)
{
    (void)state;
    start(0, false);
    for (int i = 0; i < 5; i++) {
        post(0, 'a', true);
    }
    wait_until_it_runs(&lanes[0]);
    post(1, 'b', true);
    gate_open = true;
    wait_for_jobs(6);
    assert_string_equal(order, "abaaaa");
    stop();
}

static void test_control_lanes_take_turns_and_keep_their_order(void **state)
{
    (void)state;
    start(0, false);
    post(-1, '-', false);
    for (int i = 0; i < 3; i++) {
        post(0, (char)('a' + i), false);
    }
    for (int i = 0; i < 3; i++) {
        post(1, (char)('k' + i), false);
        post(2, (char)('x' + i), false);
    }
    gate_open = true;
    wait_for_jobs(10);
    /* The first may have begun before the others came; its lane has no more. */
    assert_string_equal(order, "-akxblycmz");
    stop();
}

static void test_control_imports_of_a_lane_keep_the_rate(void **state)
{
    (void)state;
    start(RATE, true);
    for (int i = 0; i < CONTROL_IMPORT_BURST + 2; i++) {
        post(0, 'a', true);
    }
    wait_for_jobs(CONTROL_IMPORT_BURST);
    post(1, 'b', true); /* the others go on */
    wait_for_jobs(CONTROL_IMPORT_BURST + 1);
    assert_int_equal(order[CONTROL_IMPORT_BURST], 'b');
    post(0, 'c', false); /* behind the imports of its lane */
    now_ns += MS - 1;
    post(1, 'b', true);
    wait_for_jobs(CONTROL_IMPORT_BURST + 2);
    assert_int_equal(order[CONTROL_IMPORT_BURST + 1], 'b');
    now_ns += 1;
    wait_for_jobs(CONTROL_IMPORT_BURST + 3);
    assert_int_equal(order[CONTROL_IMPORT_BURST + 2], 'a');
    now_ns += MS;
    wait_for_jobs(CONTROL_IMPORT_BURST + 5);
    assert_string_equal(order + CONTROL_IMPORT_BURST + 3, "ac");
    stop();
}

static void fill_lane(void)
{
    start(1, true);
    for (int i = 0; i < CONTROL_IMPORT_BURST + 2; i++) {
        post(0, 'a', true);
    }
    wait_for_jobs(CONTROL_IMPORT_BURST);
}

static void test_control_holds_back_nothing_of_who_goes(void **state)
{
    (void)state;
    fill_lane();
    control_hurry(&control, &lanes[0]);
    wait_for_jobs(CONTROL_IMPORT_BURST + 2);
    stop();
}

/* To go and come again gains a client nothing; nor does it cost who is there, or another user. */
static void test_control_next_client_of_the_user_owes(void **state)
{
    (void)state;
    start(RATE, true);
    control_lane_open(&control, &lanes[0], 7);
    for (int i = 0; i < CONTROL_IMPORT_BURST; i++) {
        post(0, 'a', true);
    }
    wait_for_jobs(CONTROL_IMPORT_BURST);
    control_lane_open(&control, &lanes[1], 7);
    post(1, 'b', true);
    wait_for_jobs(CONTROL_IMPORT_BURST + 1);
    control_hurry(&control, &lanes[0]);
    post(0, 'a', true); /* its last */
    wait_for_jobs(CONTROL_IMPORT_BURST + 2);
    control_lane_open(&control, &lanes[2], 7);
    post(2, 'c', true);
    post(1, 'b', true);
    wait_for_jobs(CONTROL_IMPORT_BURST + 3);
    assert_int_equal(order[CONTROL_IMPORT_BURST + 2], 'b');
    now_ns += MS;
    post(1, 'b', true);
    wait_for_jobs(CONTROL_IMPORT_BURST + 4);
    now_ns += MS; /* it owes for the last one too */
    wait_for_jobs(CONTROL_IMPORT_BURST + 5);
    assert_string_equal(order + CONTROL_IMPORT_BURST + 2, "bbc");
    control_hurry(&control, &lanes[2]);
    control_lane_init(&lanes[0]);
    control_lane_open(&control, &lanes[0], 8);
    post(0, 'd', true);
    wait_for_jobs(CONTROL_IMPORT_BURST + 6);
    stop();
}

static void wait_for_tries(uint32_t nr)
{
    while (tries < nr) {
        sched_yield();
    }
    assert_int_equal(tries, nr);
}

/* Without a sleep on the control thread: others go on, and what is behind it in its lane stays there. */
static void test_control_job_without_room_is_tried_again(void **state)
{
    (void)state;
    start(1, true);
    post(0, 'r', true);
    post(0, 'a', false);
    wait_for_tries(1);
    post(1, 'b', false);
    post(2, 'c', false);
    wait_for_jobs(2);
    now_ns += CONTROL_AGAIN_NS - 1;
    post(1, 'b', false);
    wait_for_jobs(3);
    assert_int_equal(tries, 1);
    now_ns += 1;
    wait_for_tries(2);
    post(1, 'b', false);
    wait_for_jobs(4);                              /* the second try's turn is over */
    assert_int_equal(lanes[0].imports.full_ns, 0); /* a try costs nothing */
    has_room = true;
    now_ns += CONTROL_AGAIN_NS;
    wait_for_jobs(6);
    assert_string_equal(order, "bcbbra");
    assert_int_not_equal(lanes[0].imports.full_ns, 0);
    stop();
}

static void test_control_job_without_room_ends_with_its_client(void **state)
{
    (void)state;
    start(0, true);
    post(0, 'r', false);
    wait_for_tries(1);
    control_hurry(&control, &lanes[0]);
    wait_for_jobs(1);
    assert_in_range(tries, 1, 2); /* the hurry may have come before the first one's end */
    ran_nr++;                     /* for stop, which counts */
    stop();
}

static void test_control_new_rate_holds_at_once(void **state)
{
    (void)state;
    fill_lane();
    control_set_import_rate(&control, 0);
    wait_for_jobs(CONTROL_IMPORT_BURST + 2);
    stop();
}

static void test_control_stop_runs_what_is_held_back(void **state)
{
    (void)state;
    fill_lane();
    stop(); /* and looks */
}

static void test_control_tells_of_a_lost_device_without_jobs(void **state)
{
    const struct error *lost;
    (void)state;
    start(0, true);
    assert_null(control_lost(&control));
    device_gone = true;
    while (!(lost = control_lost(&control))) {
        now_ns += MS;
        sched_yield();
    }
    assert_string_equal(lost->message, "it fell off the bus");
    assert_int_equal(lost->scope, MLACAT_SCOPE_DEVICE);
    stop();
}

static bool is_stuck_after(uint64_t ms)
{
    now_ns += ms * MS;
    return control_stuck(&control);
}

static void test_control_that_does_not_come_back_is_stuck(void **state)
{
    (void)state;
    start(0, false);
    post(0, 'a', false);
    wait_until_it_runs(&lanes[0]);
    assert_int_equal(control.jobs_nr, 1);
    assert_false(is_stuck_after(29999));
    assert_true(is_stuck_after(1));
    gate_open = true;
    wait_for_jobs(1);
    assert_int_equal(control.jobs_nr, 0);
    stop();
    assert_false(is_stuck_after(20000)); /* it has nothing to do */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_control_one_job_of_a_busy_client_goes_before),
        cmocka_unit_test(test_control_lanes_take_turns_and_keep_their_order),
        cmocka_unit_test(test_control_imports_of_a_lane_keep_the_rate),
        cmocka_unit_test(test_control_holds_back_nothing_of_who_goes),
        cmocka_unit_test(test_control_next_client_of_the_user_owes),
        cmocka_unit_test(test_control_job_without_room_is_tried_again),
        cmocka_unit_test(test_control_job_without_room_ends_with_its_client),
        cmocka_unit_test(test_control_new_rate_holds_at_once),
        cmocka_unit_test(test_control_stop_runs_what_is_held_back),
        cmocka_unit_test(test_control_tells_of_a_lost_device_without_jobs),
        cmocka_unit_test(test_control_that_does_not_come_back_is_stuck),
    };
    alarm(50);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
