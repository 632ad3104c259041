/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One option: its row of options.def, and how its text becomes a value in struct config.
 *
 * Owns:     the expanded option table.
 * Thread:   the main thread (user and group names are looked up).
 * Lifetime: static.
 * Errors:   INVALID_ARGUMENT that names the source, the option, the value and what is allowed.
 */
#ifndef MLACAT_TOP_OPTION_H
#define MLACAT_TOP_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config.h"
#include "status.h"

/* Numbers of the rows: OPTION_socket and so on. */
#define OPTION(type, name, value, minimum, maximum, reload, help) OPTION_##name,
enum option_number {
#include "options.def"
    OPTIONS_NR
};
_Static_assert(OPTIONS_NR <= CONFIG_OPTIONS_MAX, "raise CONFIG_OPTIONS_MAX");

enum option_type { OPTION_STRING, OPTION_UINT, OPTION_BYTES, OPTION_OCTAL, OPTION_UIDS, OPTION_GIDS, OPTION_CHOICE };

struct option_row {
    enum option_type type;
    const char *name;
    const char *value; /* the default */
    uint64_t minimum;
    uint64_t maximum;
    bool reload;
    const char *help;
    size_t offset; /* of the member in struct config */
    size_t bytes;  /* its size */
};

extern const struct option_row option_rows[OPTIONS_NR];

/* The row's number, or -1 if there is no such option. */
int option_find(const char *name);

/* Checks `text` and stores value, text and source (cut if too long) in `config`; after an error nothing has changed. */
enum mlacat_status option_set(struct config *config, int number, const char *text, const char *source,
                              struct error *err);

/* Copies value, text and source of one option. */
void option_copy(struct config *to, const struct config *from, int number);

/* What stands for the value in the help: "NUMBER", or the words to choose from. The text is in `out` or static. */
const char *option_value_name(const struct option_row *row, char *out, size_t out_bytes);
/* What the option means: the help without the words to choose from. */
const char *option_meaning(const struct option_row *row);

#endif
