/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that block: in a full socket, beside another reader, under signals. A thread that nobody wakes is what these
 * tests are about, so each of them may take WATCHDOG_SECONDS only. */
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "test_client_scene.h"

#define WATCHDOG_SECONDS 50

enum { CALLS = 2000 }; /* more packets than a socket takes */

static struct {
    pthread_t reader; /* waits for the first call, which is held */
    pid_t reader_id;  /* both are set before await_threads sees their thread */
    uint64_t first;
    enum mlacat_status first_status;
    int64_t timeout_us;
    pthread_t writer;
    pid_t writer_id;
    unsigned submitted;
} side;

static atomic_uint interrupted;

static void on_interrupt(int signal)
{
    (void)signal;
    atomic_fetch_add(&interrupted, 1);
}

static int setup(void **state)
{
    struct sigaction action = {.sa_handler = on_interrupt}; /* without SA_RESTART */
    side.timeout_us = -1;
    side.submitted = 0;
    *state = scene_open((struct fake_mode){.hold = true, .stream_calls = CALLS + 1}, MLACAT_DISPATCH_THREAD);
    sigaction(SIGUSR1, &action, NULL);
    alarm(WATCHDOG_SECONDS);
    return 0;
}

static int teardown(void **state)
{
    alarm(0);
    return scene_close(state);
}

static bool sleeps(pid_t thread)
{
    char path[64];
    char state = 0;
    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)thread);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%*d (%*[^)]) %c", &state), 1);
    fclose(file);
    return state == 'S';
}

/* Sends the thread 20 signals, each while it sleeps: what a signal must not end is a wait. (And the thread sanitizer
 * puts off one that comes at any other time. Of many at once it may lose the signal mask of the thread.) */
static void interrupt(pid_t thread)
{
    for (int i = 0; i < 20; i++) {
        unsigned before = atomic_load(&interrupted);
        while (!sleeps(thread)) {
            sched_yield();
        }
        assert_int_equal(syscall(SYS_tgkill, getpid(), thread, SIGUSR1), 0);
        while (atomic_load(&interrupted) == before) {
            sched_yield();
        }
    }
}

/* Until a thread reads, and `watching` other ones wait for space beside it. */
static void await_threads(struct mlacat_client *client, unsigned watching)
{
    for (bool there = false; !there; sched_yield()) {
        unsigned nr = 0;
        struct waiter *waiter;
        pthread_mutex_lock(&client->lock);
        TAILQ_FOREACH(waiter, &client->watchers, link)
        {
            nr++;
        }
        there = client->reading && nr == watching;
        pthread_mutex_unlock(&client->lock);
    }
}

static void *wait_for_first(void *user)
{
    struct scene *f = user;
    side.reader_id = gettid();
    side.first_status = mlacat_wait(f->stream, side.first, side.timeout_us, NULL);
    return NULL;
}

static void start_reader(struct scene *f)
{
    assert_int_equal(mlacat_submit(f->stream, &f->call, &side.first), MLACAT_OK);
    fake_await_calls(f->fake, 1);
    assert_int_equal(pthread_create(&side.reader, NULL, wait_for_first, f), 0);
    await_threads(f->client, 0);
}

static void *submit_all(void *user)
{
    struct scene *f = user;
    uint64_t id;
    side.writer_id = gettid();
    while (side.submitted < CALLS && mlacat_submit(f->stream, &f->call, &id) == MLACAT_OK) {
        side.submitted++;
    }
    return NULL;
}

/* Starts a thread that submits to a daemon which reads nothing. */
static void start_writer(struct scene *f)
{
    fake_set(f->fake, (struct fake_mode){.deaf = true});
    fake_sync(f->fake);
    assert_int_equal(pthread_create(&side.writer, NULL, submit_all, f), 0);
}

/* The daemon reads again, but completes nothing: only space wakes the writer. */
static void make_space(struct scene *f)
{
    fake_set(f->fake, (struct fake_mode){.hold = true, .stream_calls = CALLS + 1});
}

static void test_client_submit_sees_space(void **state)
{
    struct scene *f = *state;
    start_writer(f);
    await_threads(f->client, 0); /* the writer, as the reader */
    interrupt(side.writer_id);
    make_space(f);
    pthread_join(side.writer, NULL);
    assert_int_equal(side.submitted, CALLS);
}

static void test_client_submit_sees_space_while_another_thread_reads(void **state)
{
    struct scene *f = *state;
    start_reader(f);
    start_writer(f);
    await_threads(f->client, 1);
    interrupt(side.writer_id);
    make_space(f);
    pthread_join(side.writer, NULL);
    assert_int_equal(side.submitted, CALLS);
    await_threads(f->client, 0); /* the reader is still there */
    fake_release(f->fake, 1, false);
    pthread_join(side.reader, NULL);
    assert_int_equal(side.first_status, MLACAT_OK);
}

/* Who waits for space must take in completions once nobody else does: the daemon may be waiting for that. */
static void test_client_submit_takes_over_the_reading(void **state)
{
    struct scene *f = *state;
    start_reader(f);
    start_writer(f);
    await_threads(f->client, 1);
    fake_release(f->fake, 1, false);
    pthread_join(side.reader, NULL);
    assert_int_equal(side.first_status, MLACAT_OK);
    fake_send_raw(f->fake, "\x8a\x02", 3, -1); /* an Answer to nothing: something to read */
    await_threads(f->client, 0);
    make_space(f);
    pthread_join(side.writer, NULL);
    assert_int_equal(side.submitted, CALLS);
}

/* The fake closes what came with a request only after its reply, but before it looks around again. */
static unsigned count_fds(struct fake *fake)
{
    unsigned nr = 0;
    fake_sync(fake);
    DIR *folder = opendir("/proc/self/fd");
    assert_non_null(folder);
    while (readdir(folder) != NULL) {
        nr++;
    }
    closedir(folder);
    return nr;
}

static void test_client_submit_sees_the_end_while_it_waits_for_space(void **state)
{
    struct scene *f = *state;
    unsigned before = count_fds(f->fake);
    start_reader(f);
    start_writer(f);
    await_threads(f->client, 1);
    fake_die(f->fake, NULL);
    make_space(f);
    pthread_join(side.reader, NULL);
    assert_int_equal(side.first_status, MLACAT_UNAVAILABLE);
    pthread_join(side.writer, NULL);
    assert_int_equal(side.submitted, CALLS);
    assert_int_equal(count_fds(f->fake), before);
}

static void test_client_wait_goes_on_after_signals(void **state)
{
    struct scene *f = *state;
    const int64_t timeouts[] = {-1, 60 * 1000000};
    for (unsigned i = 0; i < 2; i++) {
        side.timeout_us = timeouts[i];
        assert_int_equal(mlacat_submit(f->stream, &f->call, &side.first), MLACAT_OK);
        assert_int_equal(pthread_create(&side.reader, NULL, wait_for_first, f), 0);
        await_threads(f->client, 0);
        interrupt(side.reader_id);
        fake_await_calls(f->fake, i + 1);
        fake_release(f->fake, 1, false);
        pthread_join(side.reader, NULL);
        assert_int_equal(side.first_status, MLACAT_OK);
    }
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_client_submit_sees_space),
        CASE(test_client_submit_sees_space_while_another_thread_reads),
        CASE(test_client_submit_takes_over_the_reading),
        CASE(test_client_submit_sees_the_end_while_it_waits_for_space),
        CASE(test_client_wait_goes_on_after_signals),
    };
    return cmocka_run_group_tests_name("client_wait", tests, NULL, NULL);
}
