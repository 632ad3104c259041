/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     the command line: the table of commands, the table of options, the text of --help.
 * Thread:   one.
 * Lifetime: strings of struct ctl_options point into argv.
 * Errors:   options_parse writes one line that says what was wrong, with which value, and what to do.
 */
#ifndef MLACAT_CTL_OPTIONS_H
#define MLACAT_CTL_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "mlacat/mlacat.h"

enum ctl_command {
    CTL_NONE,
    CTL_PING,
    CTL_INFO,
    CTL_STATS,
    CTL_DRAIN,
    CTL_LOG_LEVEL,
    CTL_RUN,
    CTL_BENCH,
    CTL_SOAK,
    CTL_DOCTOR,
};

#define CTL_LIST_MAX 16
#define CTL_ERROR_BYTES 320

struct ctl_list {
    uint64_t value[CTL_LIST_MAX];
    size_t nr;
};

struct ctl_options {
    enum ctl_command command;
    const char *argument; /* the word after the command: what to run, the log level */
    bool help;
    bool version;
    bool json;
    const char *socket;
    uint64_t timeout_ms; /* 0: no limit */
    bool alive;
    double wait_s; /* < 0: do not wait */

    bool models;       /* run models */
    enum mlacat_op op; /* run <op> */
    enum mlacat_dtype dtype;
    const char *device;
    struct ctl_list tokens;
    uint64_t heads, nope, rope, v;
    uint64_t dim0, dim1, a, b;
    uint64_t gap;
    uint64_t seed;
    uint64_t repeat; /* 0: chosen by the size of the call */
    bool strided;
    bool verify;

    const char *filter;
    double seconds;
    bool quick;
    const char *histogram;

    uint64_t calls;
    uint64_t registrations;
};

/* Fills `options`, defaults included. False: `error` says why. */
bool options_parse(int argc, char *const argv[], struct ctl_options *options, char error[CTL_ERROR_BYTES]);

/* The text of --help for one command; for CTL_NONE of the whole. */
void options_help(FILE *out, enum ctl_command command);

/* "run"; "" for CTL_NONE. */
const char *options_command_name(enum ctl_command command);

#endif
