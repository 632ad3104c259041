/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real daemon in a folder of its own.
 *
 * Owns:     the process, its folder, its configuration file and its log.
 * Thread:   the main thread of the test.
 * Lifetime: server_start -> server_stop; server_kill and server_run between them as often as wanted. A daemon that is
 * left over dies with the test.
 * Errors:   a failed check (require.h), with the log shown when the daemon did not do as expected.
 */
#ifndef MLACAT_TESTS_SERVER_H
#define MLACAT_TESTS_SERVER_H

#include <stdbool.h>
#include <sys/types.h>

#define SERVER_PATH_BYTES 96

struct server {
    pid_t pid; /* 0: does not run */
    char folder[SERVER_PATH_BYTES / 2];
    char socket[SERVER_PATH_BYTES];
    char config[SERVER_PATH_BYTES];
    char log[SERVER_PATH_BYTES];
    /* What a service manager would give; set between server_prepare and server_run. */
    int listen_fd;             /* -1: none; else it becomes descriptor 3 of the daemon */
    const char *notify_socket; /* NULL: none */
    const char *watchdog_us;
};

/* MLACAT_TEST_CONNECTIONS in the environment: the daemon's CUDA_DEVICE_MAX_CONNECTIONS. */

/* The program under test; the environment variable MLACATD names another one. */
const char *server_program(void);

/* Makes the folder. */
void server_prepare(struct server *server);
/* Writes the configuration file: `options` are lines "name = value\n"; the socket is added. */
void server_configure(struct server *server, const char *options);
/* Starts the process and returns at once. */
void server_launch(struct server *server);
/* Starts the process and waits until it takes connections. */
void server_run(struct server *server);
/* All of these; then the daemon has no connection. */
void server_start(struct server *server, const char *options);

/* Waits until it takes connections. */
void server_wait_ready(struct server *server);
/* Waits for the end; returns the wait status. */
int server_wait(struct server *server);
/* SIGKILL, and waits for the end. */
void server_kill(struct server *server);
/* SIGTERM; the daemon must end by itself with status 0. Does nothing if it does not run. */
void server_drain(struct server *server);
/* server_drain, and removes the folder. */
void server_stop(struct server *server);

bool server_log_has(const struct server *server, const char *text);
void server_show_log(const struct server *server);

/* For cmocka: *state is a struct server with the default configuration. */
int server_setup(void **state);
int server_teardown(void **state);
#define WITH_SERVER(test) cmocka_unit_test_setup_teardown(test, server_setup, server_teardown)

#endif
