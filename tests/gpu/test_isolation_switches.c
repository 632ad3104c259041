/* SPDX-License-Identifier: Apache-2.0 */
/* Who ran on a CPU, with a child that runs on the one that its parent sleeps on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "isolation_switches.h"

#define WORK_NS UINT64_C(20000000) /* by another clock than that of the records: half of it must be seen */

static uint64_t cpu_time_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * UINT64_C(1000000000) + (uint64_t)time.tv_nsec;
}

/* The CPU that this process and its children run on from now on. */
static int stay_here(void)
{
    cpu_set_t set;
    int cpu = sched_getcpu();
    assert_true(cpu >= 0);
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    assert_int_equal(sched_setaffinity(0, sizeof(set), &set), 0);
    return cpu;
}

static void child_works(int go, int done)
{
    char byte = 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    uint64_t begin_ns = read(go, &byte, 1) == 1 ? cpu_time_ns() : 0;
    while (cpu_time_ns() - begin_ns < WORK_NS) {
    }
    if (write(done, &byte, 1) == 1) {
        pause();
    }
    _exit(0);
}

/* Returns the child, which has run in between and is still there. */
static pid_t let_a_child_work(uint64_t *from_ns, uint64_t *to_ns)
{
    char byte = 0;
    int go[2];
    int done[2];
    assert_int_equal(pipe(go), 0);
    assert_int_equal(pipe(done), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        child_works(go[0], done[1]);
    }
    *from_ns = clock_now_ns();
    assert_int_equal(write(go[1], &byte, 1), 1);
    assert_int_equal(read(done[0], &byte, 1), 1);
    *to_ns = clock_now_ns();
    for (int i = 0; i < 2; i++) {
        close(go[i]);
        close(done[i]);
    }
    return child;
}

static void test_switches_tell_who_ran(void **state)
{
    struct isolation_users users = {0};
    struct isolation_switches *switches = *state;
    uint64_t from_ns;
    uint64_t to_ns;
    isolation_use_add(&users, getpid());
    pid_t child = let_a_child_work(&from_ns, &to_ns);
    struct isolation_holders strange = isolation_switches_between(switches, &users, from_ns, to_ns);
    struct isolation_holders before = isolation_switches_between(switches, &users, from_ns - 1, from_ns);
    isolation_use_add(&users, child);
    struct isolation_holders known = isolation_switches_between(switches, &users, from_ns, to_ns);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    assert_true(strange.others_ns >= WORK_NS / 2);
    assert_true(strange.others_ns <= to_ns - from_ns);
    assert_true(strange.others_ns - known.others_ns >= WORK_NS / 2);
    assert_int_equal(before.others_ns, 0);
    assert_true(strange.longest_ns > 0);
    assert_int_equal(strange.longest_ns, known.longest_ns);
    assert_true(strlen(strange.longest) > 0);
}

/* The kernel's pages are written round and round. */
static void test_switches_are_kept_when_there_were_many(void **state)
{
    struct isolation_users users = {0};
    struct isolation_switches *switches = *state;
    uint64_t from_ns;
    uint64_t to_ns;
    isolation_use_add(&users, getpid());
    for (int i = 0; i < 9000; i++) {
        const struct timespec shortly = {.tv_nsec = 1};
        nanosleep(&shortly, NULL);
        if (i % 100 == 0) {
            isolation_switches_take(switches);
        }
    }
    pid_t child = let_a_child_work(&from_ns, &to_ns);
    struct isolation_holders strange = isolation_switches_between(switches, &users, from_ns, to_ns);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    assert_true(strange.others_ns >= WORK_NS / 2);
}

static int open_here(void **state)
{
    *state = isolation_switches_open(stay_here());
    return *state ? 0 : -1;
}

static int close_again(void **state)
{
    isolation_switches_close(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_switches_tell_who_ran, open_here, close_again),
        cmocka_unit_test_setup_teardown(test_switches_are_kept_when_there_were_many, open_here, close_again),
    };
    struct isolation_switches *switches = isolation_switches_open(0);
    if (!switches && (errno == EACCES || errno == EPERM || errno == ENOSYS)) {
        printf("SKIPPED: perf_event_open: %s: needs root, or kernel.perf_event_paranoid <= 0\n", strerror(errno));
        return 77;
    }
    if (switches) {
        isolation_switches_close(switches);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
