/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the contract tests need of a row of the device table: the row, and how a client makes memory for it. Every test
 * of this folder runs over every row; a new device is a new row in device_row.c.
 *
 * Owns:     an open device with one stream, and the client's side of the memory, for the length of a test.
 * Thread:   one.
 * Lifetime: row_setup -> row_teardown around each test; row_memory_new -> row_memory_free inside.
 * Errors:   a failed step fails the test.
 */
#ifndef MLACAT_TESTS_DEVICE_ROW_H
#define MLACAT_TESTS_DEVICE_ROW_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "device.h"

/* The client's side of one buffer: it sees the bytes, and can hand out descriptors. */
struct client_memory {
    int fd;
    unsigned char *bytes;
    size_t size;
};

struct imported {
    struct client_memory client;
    struct device_memory *memory;
    struct memory_info info;
};

/* One event of the client. */
struct row_events {
    void (*make)(uint8_t handle[MEMORY_HANDLE_BYTES]);
    void (*record)(void); /* it completes when: */
    void (*come)(void);   /* waits for that */
    void (*destroy)(void);
};

/* The row under test and what is open of it. */
struct row {
    const char *name;
    const struct device_ops *ops;
    struct device *device;
    struct device_info info;
    struct device_stream *stream;
    int polls_max;                   /* that row_poll_all makes before it gives up */
    const struct row_events *events; /* NULL: the device has none */
    bool works_in_poll;              /* a call of some size is not done at the first poll */
};

extern struct row row;

int row_setup(void **state);
int row_teardown(void **state);

/* A memfd with these seals beside F_SEAL_SEAL's absence, mapped here. */
struct client_memory client_memory_new(size_t size, int seals);
void client_memory_free(struct client_memory *client);

/* A good request for all of `client`, with a descriptor of its own. */
struct memory_request client_request(const struct client_memory *client);

/* New client memory, imported. */
struct imported row_memory_new(size_t size);
void row_memory_free(struct imported *memory);

/* Submits one call. */
enum device_answer row_submit(struct device_stream *stream, const struct device_call *call, struct error *err);
/* Submits the call and polls until it has completed; fails the test if it completes more than once or never. */
struct device_completion row_run(const struct device_call *call);
/* Polls until `nr` completions are there. */
void row_poll_all(struct device_completion *done, int nr);

/* Open descriptors of this process. */
int open_fds(void);

/* Runs the tests once for each row; the exit code of main. */
int row_run_tests(const char *group, const struct CMUnitTest *tests, size_t nr);
#define ROW_RUN_TESTS(group, tests) row_run_tests(group, tests, sizeof(tests) / sizeof((tests)[0]))
#define ROW_TEST(test) cmocka_unit_test_setup_teardown(test, row_setup, row_teardown)

#endif
