/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     what all commands share: exit codes, the connection, error and JSON output; the list of commands.
 * Thread:   one.
 * Lifetime: -
 * Errors:   printed on stderr as "mlacatctl: ...".
 */
#ifndef MLACAT_CTL_COMMON_H
#define MLACAT_CTL_COMMON_H

#include <jansson.h>
#include <stdbool.h>

#include "options.h"
#include "shape.h"

enum { CTL_OK = 0, CTL_FAILED = 1, CTL_UNREACHABLE = 2, CTL_USAGE = 64 };

/* How to connect as the options say. */
struct mlacat_connect_options ctl_connect_options(const struct ctl_options *options, const char *name);

/* Connects as the options say; false: printed why, and the exit status is CTL_UNREACHABLE. */
bool ctl_connect(const struct ctl_options *options, struct mlacat_client **client);

/* Prints `what` and the library's last error; returns CTL_FAILED. */
int ctl_fail(const char *what, enum mlacat_status status);
/* The same with a message of its own. */
int ctl_fail_for(const char *what, enum mlacat_status status, const char *message);

/* Prints and gives back the value. */
void ctl_print_json(json_t *value);

/* "5f3a..." of the 16 bytes of a boot id. */
void ctl_boot_id_text(const uint8_t boot_id[16], char text[33]);

/* One operand of a layout, in `buffer`. */
struct mlacat_tensor ctl_tensor(const struct shape_operand *operand, struct mlacat_buffer *buffer);

/* Each returns the exit status of the program. */
int cmd_ping(const struct ctl_options *options);
int cmd_info(const struct ctl_options *options);
int cmd_stats(const struct ctl_options *options);
int cmd_drain(const struct ctl_options *options);
int cmd_log_level(const struct ctl_options *options);
int cmd_run(const struct ctl_options *options);
int cmd_models(const struct ctl_options *options);
int cmd_bench(const struct ctl_options *options);
int cmd_soak(const struct ctl_options *options);
int cmd_doctor(const struct ctl_options *options);

#endif
