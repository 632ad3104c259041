/* SPDX-License-Identifier: Apache-2.0 */
#include "require.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static bool in_child;
static int child_ready_fd = -1;

void require_fail(const char *file, int line, const char *condition, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (in_child) {
        fprintf(stderr, "child %d: %s:%d: %s: %s (errno: %s)\n", (int)getpid(), file, line, condition, text,
                strerror(errno));
        _exit(1);
    }
    print_error("%s:%d: %s: %s (errno: %s)\n", file, line, condition, text, strerror(errno));
    _fail(file, line);
    abort(); /* cmocka has jumped away */
}

uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

uint64_t env_number(const char *name, uint64_t fallback)
{
    const char *text = getenv(name);
    return text && text[0] ? strtoull(text, NULL, 10) : fallback;
}

bool has_sanitizer(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    return true;
#else
    return false;
#endif
#else
    return false;
#endif
}

void child_start(struct child *child, void (*main)(void *arg), void *arg)
{
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    fflush(NULL);
    pid_t parent = getpid();
    child->pid = fork();
    REQUIRE(child->pid >= 0);
    if (child->pid == 0) {
        in_child = true;
        close(ends[0]);
        child_ready_fd = ends[1];
        REQUIRE(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && getppid() == parent);
        main(arg);
        _exit(0);
    }
    close(ends[1]);
    child->ready_fd = ends[0];
}

void child_ready(void)
{
    REQUIRE(write(child_ready_fd, "r", 1) == 1);
}

void child_park(void)
{
    for (;;) {
        pause();
    }
}

void child_wait_ready(struct child *child)
{
    char byte;
    REQUIRE(read(child->ready_fd, &byte, 1) == 1, "child %d ended before it was ready", (int)child->pid);
}

static int wait_for_end(struct child *child)
{
    int status = 0;
    uint64_t end_ms = now_ms() + 3 * WAIT_MS;
    pid_t ended;
    while ((ended = waitpid(child->pid, &status, WNOHANG)) == 0 && now_ms() < end_ms) {
        nap();
    }
    REQUIRE(ended == child->pid, "child %d does not end", (int)child->pid);
    close(child->ready_fd);
    return status;
}

void child_kill(struct child *child)
{
    REQUIRE(kill(child->pid, SIGKILL) == 0);
    wait_for_end(child);
}

void child_join(struct child *child)
{
    int status = wait_for_end(child);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %d ended with wait status 0x%x", (int)child->pid,
            (unsigned)status);
}
