/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checks that work in a test and in its child processes, children that cannot outlive their test, and waiting for a
 * condition.
 *
 * Owns:     nothing.
 * Thread:   the main thread of the test or of a child.
 * Lifetime: child_start -> child_join or child_kill; a child that is left over dies with the test.
 * Errors:   a failed check fails the test; in a child it prints and ends the child with status 1.
 */
#ifndef MLACAT_TESTS_REQUIRE_H
#define MLACAT_TESTS_REQUIRE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* How long anything may take that is expected to happen. Only failing tests wait that long. */
#define WAIT_MS 60000

#define REQUIRE(condition, ...)                                            \
    do {                                                                   \
        if (!(condition)) {                                                \
            require_fail(__FILE__, __LINE__, #condition, " " __VA_ARGS__); \
        }                                                                  \
    } while (0)

__attribute__((format(printf, 4, 5), noreturn)) void require_fail(const char *file, int line, const char *condition,
                                                                  const char *format, ...);

/* Polls a condition until it holds; what is polled is something that the kernel or the daemon tells. */
#define WAIT_UNTIL(condition)                                                    \
    do {                                                                         \
        uint64_t wait_end_ms_ = now_ms() + WAIT_MS;                              \
        while (!(condition)) {                                                   \
            if (now_ms() >= wait_end_ms_) {                                      \
                require_fail(__FILE__, __LINE__, #condition, "never came true"); \
            }                                                                    \
            nap();                                                               \
        }                                                                        \
    } while (0)

uint64_t now_ms(void);
/* A millisecond, between two looks at a condition. */
void nap(void);

/* A number from the environment, or `fallback`. */
uint64_t env_number(const char *name, uint64_t fallback);

/* Built with a sanitizer: memory figures mean nothing. */
bool has_sanitizer(void);

struct child {
    pid_t pid;
    int ready_fd;
};

/* Runs main(arg) in a child process; it ends with status 0 when main returns. */
void child_start(struct child *child, void (*main)(void *arg), void *arg);
/* In the child: lets child_wait_ready return. */
void child_ready(void);
/* In the child: waits for its end by SIGKILL. */
__attribute__((noreturn)) void child_park(void);
void child_wait_ready(struct child *child);
/* SIGKILL, and waits until it is gone. */
void child_kill(struct child *child);
/* Waits for the end; the status must be 0. */
void child_join(struct child *child);

#endif
