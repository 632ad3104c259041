/* SPDX-License-Identifier: Apache-2.0 */
/* A test program says so when another thread than the test's ends it. Each program here is a child. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char said[4096];

/* What a program said on its standard error; it must not have ended well. */
static void run_program(void (*program)(void))
{
    int ends[2];
    size_t nr = 0;
    ssize_t got;
    int status;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL); /* a child that ends by exit() would print it again */
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        unsetenv("CMOCKA_TEST_ABORT");
        dup2(ends[1], STDERR_FILENO);
        close(ends[1]);
        program();
        _exit(0);
    }
    close(ends[1]);
    while ((got = read(ends[0], said + nr, sizeof(said) - 1 - nr)) > 0) {
        nr += (size_t)got;
    }
    said[nr] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) != 0);
}

static void *failing_main(void *arg)
{
    assert_int_equal(1, (intptr_t)arg);
    return NULL;
}

/* cmocka's handlers of signals are the whole program's. */
static void *crashing_main(void *arg)
{
    raise(SIGSEGV);
    return arg;
}

static void run_thread(void *(*main)(void *arg))
{
    pthread_t thread;
    pthread_create(&thread, NULL, main, NULL);
    pthread_join(thread, NULL);
}

static void failing_program(void)
{
    run_thread(failing_main);
}

static void crashing_program(void)
{
    run_thread(crashing_main);
}

static void ending_program(void)
{
    exit(1);
}

static void test_thread_exit_is_told(void **state)
{
    (void)state;
    run_program(failing_program);
    assert_non_null(strstr(said, "A thread that is not the test's has ended this program"));
    run_program(crashing_program);
    assert_non_null(strstr(said, "A thread that is not the test's has ended this program"));
}

static void test_thread_exit_of_the_test_is_not(void **state)
{
    (void)state;
    run_program(ending_program);
    assert_null(strstr(said, "A thread that is not"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_thread_exit_is_told),
        cmocka_unit_test(test_thread_exit_of_the_test_is_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
