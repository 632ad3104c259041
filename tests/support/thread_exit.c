/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In every cmocka program: cmocka knows of the test in the test's thread only. An assertion that fails in
 * another one, or a signal there, ends the program by exit() without a word: these are that word.
 */
#include <stdlib.h>
#include <unistd.h>

static void on_exit_of_program(void)
{
    static const char text[] = "A thread that is not the test's has ended this program: an assertion failed there, or "
                               "it crashed. With CMOCKA_TEST_ABORT=1 in the environment the program tells which.\n";
    if (gettid() != getpid()) {
        ssize_t written = write(STDERR_FILENO, text, sizeof(text) - 1);
        (void)written;
    }
}

__attribute__((constructor)) static void register_exit(void)
{
    atexit(on_exit_of_program);
}
