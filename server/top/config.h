/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's configuration: defaults, then the INI file, then the command line; the last one named wins.
 *
 * Owns:     plain values and where each came from.
 * Thread:   the main thread.
 * Lifetime: a value; config_load fills a new one, config_reload compares it with the one in force.
 * Errors:   INVALID_ARGUMENT that names the option, the value, the file and line or "command line", and what is
 * allowed; NOT_FOUND: the file named by --config is not there; PERMISSION_DENIED: the file may not be read.
 */
#ifndef MLACAT_TOP_CONFIG_H
#define MLACAT_TOP_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "listener.h"
#include "log.h"
#include "status.h"

/* In the order of their words in options.def. */
enum config_pin { CONFIG_PIN_AUTO, CONFIG_PIN_NEVER };
enum config_poll { CONFIG_POLL_SPIN, CONFIG_POLL_BALANCED, CONFIG_POLL_SLEEP };

#define CONFIG_DEFAULT_FILE "/etc/mlacat/mlacatd.conf"
#define CONFIG_OPTIONS_MAX 32
/* The text of one value: with its name it fits a line of the INI reader (200 bytes), so --print-config can be read
 * back. */
#define CONFIG_TEXT_BYTES 176
#define CONFIG_FILE_BYTES 256
#define CONFIG_SOURCE_BYTES (CONFIG_FILE_BYTES + 16) /* "<file>:<line>" */

struct config {
    /* one member a row of options.def */
    char socket[128];
    uint32_t socket_mode;
    struct allow_list allow; /* allow_uids, allow_gids */
    char device[176];
    uint32_t workers; /* as configured; config_workers says how many */
    enum config_poll poll;
    enum config_pin pin;
    uint32_t spin_us;
    uint32_t max_clients;
    uint32_t max_streams;
    uint32_t max_buffers;
    uint32_t max_events;
    uint64_t max_mapped;
    uint32_t max_stream_calls;
    uint32_t max_calls;
    uint32_t import_rate;
    uint32_t hello_timeout_ms;
    uint32_t drain_timeout_ms;
    enum log_level log_level;

    /* For --print-config, by row: the text of each value, and its source: "default", "environment MLACAT_SOCKET",
     * "command line", "/etc/mlacat/mlacatd.conf:12". */
    char text[CONFIG_OPTIONS_MAX][CONFIG_TEXT_BYTES];
    char source[CONFIG_OPTIONS_MAX][CONFIG_SOURCE_BYTES];
    char file[CONFIG_FILE_BYTES]; /* the INI file; "" if there is none */
};

enum config_action { CONFIG_RUN, CONFIG_PRINT, CONFIG_HELP, CONFIG_VERSION };

/*
 * Reads everything. The INI file is --config FILE, else CONFIG_DEFAULT_FILE if that exists. argv is not changed.
 * *action: what the command line asks for beside running (--print-config, --help, --version). For --help and --version
 * nothing else is read and *config is not filled, so they work beside a broken file.
 */
enum mlacat_status config_load(struct config *config, int argc, char *const argv[], enum config_action *action,
                               struct error *err);

/* `name = value ; source` for each option, in the order of options.def: valid as an INI file. */
void config_print(const struct config *config, FILE *out);
void config_help(FILE *out);

/*
 * Reads everything again and moves the values that may change while running into `config`; logs each change, and each
 * option that changed but needs a restart. The caller puts the new values to use (log_set_level too). After an error
 * `config` is as it was.
 */
enum mlacat_status config_reload(struct config *config, int argc, char *const argv[], struct error *err);

/* How long workers spin after an event: what is configured, or by the number of CPUs. The loop: a millisecond at most.
 */
uint64_t config_spin_ns(const struct config *config);
uint64_t config_loop_spin_ns(const struct config *config);

/* Threads for a device: `workers`, or for 0 half of the CPUs that the process may use; 1 to the option's maximum. */
uint32_t config_workers(const struct config *config);

#endif
