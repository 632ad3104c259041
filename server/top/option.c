/* SPDX-License-Identifier: Apache-2.0 */
#include "option.h"

#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

/* The member of struct config behind a row, and what its type asks of it. */
#define MEMBER_STRING(name) name
#define MEMBER_UINT(name) name
#define MEMBER_BYTES(name) name
#define MEMBER_OCTAL(name) name
#define MEMBER_UIDS(name) allow
#define MEMBER_GIDS(name) allow
#define MEMBER_CHOICE(name) name

#define FITS_STRING(bytes, maximum) ((maximum) < (bytes))
#define FITS_UINT(bytes, maximum) ((bytes) == sizeof(uint32_t) && (maximum) <= UINT32_MAX)
#define FITS_BYTES(bytes, maximum) ((bytes) == sizeof(uint64_t))
#define FITS_OCTAL(bytes, maximum) FITS_UINT(bytes, maximum)
#define FITS_UIDS(bytes, maximum) ((maximum) <= ALLOW_MAX)
#define FITS_GIDS(bytes, maximum) ((maximum) <= ALLOW_MAX)
#define FITS_CHOICE(bytes, maximum) ((bytes) == sizeof(uint32_t))

#define MEMBER_BYTES_OF(type, name) sizeof(((struct config *)0)->MEMBER_##type(name))
#define OPTION(type, name, value, minimum, maximum, reload, help) \
    _Static_assert(FITS_##type(MEMBER_BYTES_OF(type, name), maximum), #name ": the member cannot hold the value");
#include "options.def"

#define IS_RELOAD true
#define IS_RESTART false
#define OPTION(type, name, value, minimum, maximum, reload, help) \
    {OPTION_##type,                                               \
     #name,                                                       \
     value,                                                       \
     minimum,                                                     \
     maximum,                                                     \
     IS_##reload,                                                 \
     help,                                                        \
     offsetof(struct config, MEMBER_##type(name)),                \
     MEMBER_BYTES_OF(type, name)},
const struct option_row option_rows[OPTIONS_NR] = {
#include "options.def"
};

/* An option that is being set: what an error has to name. */
struct setting {
    const struct option_row *row;
    const char *text;
    const char *source;
    void *member;
    struct error *err;
};

int option_find(const char *name)
{
    for (int i = 0; i < OPTIONS_NR; i++) {
        if (strcmp(option_rows[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

/* Long values are cut, so that what is allowed still fits the message. */
#define SHOWN_BYTES 48
__attribute__((format(printf, 2, 3))) static enum mlacat_status refuse(const struct setting *set, const char *format,
                                                                       ...)
{
    char why[ERROR_MESSAGE_BYTES];
    char shown[SHOWN_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof(why), format, args);
    va_end(args);
    return error_set(set->err, MLACAT_INVALID_ARGUMENT, "%s: %s = %s: %s", set->source, set->row->name,
                     log_quote(set->text, shown, sizeof(shown)), why);
}

/* Digits of `base` from the start of `text`; *end: what follows them. */
static bool parse_digits(const char *text, int base, uint64_t *value, const char **end)
{
    if (!isdigit((unsigned char)text[0])) {
        return false;
    }
    char *stop;
    errno = 0;
    *value = strtoull(text, &stop, base);
    *end = stop;
    return errno == 0 && stop != text;
}

static enum mlacat_status set_string(const struct setting *set)
{
    size_t length = strlen(set->text);
    if (length < set->row->minimum || length > set->row->maximum) {
        return refuse(set, "%zu bytes long; %" PRIu64 " to %" PRIu64 " are allowed", length, set->row->minimum,
                      set->row->maximum);
    }
    for (const char *c = set->text; *c; c++) {
        if (iscntrl((unsigned char)*c) || *c == ';' || *c == '#') {
            return refuse(set, "';', '#' and control characters are not allowed");
        }
    }
    memcpy(set->member, set->text, length + 1);
    return MLACAT_OK;
}

static enum mlacat_status set_uint(const struct setting *set)
{
    uint64_t value;
    const char *end;
    if (!parse_digits(set->text, 10, &value, &end) || *end || value < set->row->minimum || value > set->row->maximum) {
        return refuse(set, "give a whole number from %" PRIu64 " to %" PRIu64, set->row->minimum, set->row->maximum);
    }
    *(uint32_t *)set->member = (uint32_t)value;
    return MLACAT_OK;
}

static enum mlacat_status set_octal(const struct setting *set)
{
    uint64_t value;
    const char *end;
    if (!parse_digits(set->text, 8, &value, &end) || *end || value < set->row->minimum || value > set->row->maximum) {
        return refuse(set, "give an octal number from %#" PRIo64 " to %#" PRIo64, set->row->minimum, set->row->maximum);
    }
    *(uint32_t *)set->member = (uint32_t)value;
    return MLACAT_OK;
}

/* What follows the digits: powers of 1024 by their exact names, so that nobody has to guess what "G" or "kb" means. */
static bool parse_unit(const char *text, uint64_t *unit)
{
    static const char *const units[] = {"", "KiB", "MiB", "GiB", "TiB"};
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcmp(text, units[i]) == 0) {
            *unit = UINT64_C(1) << (10 * i);
            return true;
        }
    }
    return false;
}

static enum mlacat_status set_bytes(const struct setting *set)
{
    uint64_t maximum = set->row->maximum ? set->row->maximum : UINT64_MAX;
    uint64_t value;
    uint64_t unit;
    const char *end;
    if (!parse_digits(set->text, 10, &value, &end) || !parse_unit(end, &unit) ||
        !checked_mul_u64(value, unit, &value) || value < set->row->minimum || value > maximum) {
        return refuse(set, "give bytes from %" PRIu64 " to %" PRIu64 ", plain or with KiB, MiB, GiB or TiB",
                      set->row->minimum, maximum);
    }
    *(uint64_t *)set->member = value;
    return MLACAT_OK;
}

/* A number or a name of the user or group database. -1 as an id means "no one" to the kernel. */
static bool parse_id(const char *text, bool group, uint32_t *id)
{
    uint64_t value;
    const char *end;
    if (parse_digits(text, 10, &value, &end) && *end == '\0') {
        *id = (uint32_t)value;
        return value < UINT32_MAX;
    }
    if (group) {
        const struct group *entry = getgrnam(text);
        *id = entry ? entry->gr_gid : 0;
        return entry != NULL;
    }
    const struct passwd *entry = getpwnam(text);
    *id = entry ? entry->pw_uid : 0;
    return entry != NULL;
}

/* Cuts blanks off both ends, in place. */
static char *trim(char *text)
{
    text += strspn(text, " \t");
    size_t length = strlen(text);
    while (length > 0 && (text[length - 1] == ' ' || text[length - 1] == '\t')) {
        length--;
    }
    text[length] = '\0';
    return text;
}

static enum mlacat_status set_ids(const struct setting *set)
{
    bool group = set->row->type == OPTION_GIDS;
    const char *kind = group ? "group" : "user";
    uint32_t ids[ALLOW_MAX]; /* stored only when all are good */
    uint32_t nr = 0;
    char text[CONFIG_TEXT_BYTES];
    snprintf(text, sizeof(text), "%s", set->text);
    char *rest = text;
    for (char *item; text[0] && (item = strsep(&rest, ",")) != NULL; nr++) {
        item = trim(item);
        if (nr == set->row->maximum) {
            return refuse(set, "more than %" PRIu64 " %ss; allow a group instead", set->row->maximum, kind);
        }
        if (!parse_id(item, group, &ids[nr])) {
            char shown[SHOWN_BYTES];
            return refuse(set, "there is no %s %s; give names or numbers, separated by commas", kind,
                          log_quote(item, shown, sizeof(shown)));
        }
    }
    struct allow_list *allow = set->member;
    memcpy(group ? allow->gids : allow->uids, ids, nr * sizeof(ids[0]));
    *(group ? &allow->gids_nr : &allow->uids_nr) = nr;
    return MLACAT_OK;
}

/* The words before the ':' of the help. */
static int words_length(const struct option_row *row)
{
    return (int)strcspn(row->help, ":");
}

static bool has_words(const struct option_row *row)
{
    return row->type == OPTION_CHOICE;
}

/* The place of `text` among the words, or -1. */
static int find_word(const struct option_row *row, const char *text)
{
    size_t length = strlen(text);
    const char *word = row->help;
    for (int i = 0;; i++) {
        size_t word_length = strcspn(word, "|:");
        if (word_length == length && memcmp(word, text, length) == 0) {
            return i;
        }
        if (word[word_length] != '|') {
            return -1;
        }
        word += word_length + 1;
    }
}

static enum mlacat_status set_word(const struct setting *set)
{
    int place = find_word(set->row, set->text);
    if (place < 0) {
        return refuse(set, "give one of %.*s", words_length(set->row), set->row->help);
    }
    memcpy(set->member, &place, sizeof(place));
    return MLACAT_OK;
}

static enum mlacat_status set_value(const struct setting *set)
{
    if (strlen(set->text) >= CONFIG_TEXT_BYTES) {
        return refuse(set, "longer than %d bytes; shorten it", CONFIG_TEXT_BYTES - 1);
    }
    switch (set->row->type) {
    case OPTION_STRING:
        return set_string(set);
    case OPTION_UINT:
        return set_uint(set);
    case OPTION_BYTES:
        return set_bytes(set);
    case OPTION_OCTAL:
        return set_octal(set);
    case OPTION_UIDS:
    case OPTION_GIDS:
        return set_ids(set);
    case OPTION_CHOICE:
        return set_word(set);
    }
    return refuse(set, "the option table has a type without a reader");
}

enum mlacat_status option_set(struct config *config, int number, const char *text, const char *source,
                              struct error *err)
{
    const struct option_row *row = &option_rows[number];
    const struct setting set = {row, text, source, (char *)config + row->offset, err};
    enum mlacat_status status = set_value(&set);
    if (status == MLACAT_OK) {
        snprintf(config->text[number], sizeof(config->text[number]), "%s", text);
        snprintf(config->source[number], sizeof(config->source[number]), "%s", source);
    }
    return status;
}

void option_copy(struct config *to, const struct config *from, int number)
{
    const struct option_row *row = &option_rows[number];
    if (row->type == OPTION_UIDS) {
        to->allow.uids_nr = from->allow.uids_nr;
        memcpy(to->allow.uids, from->allow.uids, sizeof(to->allow.uids));
    } else if (row->type == OPTION_GIDS) {
        to->allow.gids_nr = from->allow.gids_nr;
        memcpy(to->allow.gids, from->allow.gids, sizeof(to->allow.gids));
    } else {
        memcpy((char *)to + row->offset, (const char *)from + row->offset, row->bytes);
    }
    memcpy(to->text[number], from->text[number], sizeof(to->text[number]));
    memcpy(to->source[number], from->source[number], sizeof(to->source[number]));
}

const char *option_value_name(const struct option_row *row, char *out, size_t out_bytes)
{
    static const char *const names[] = {
        [OPTION_STRING] = "TEXT", [OPTION_UINT] = "NUMBER", [OPTION_BYTES] = "BYTES",
        [OPTION_OCTAL] = "MODE",  [OPTION_UIDS] = "USERS",  [OPTION_GIDS] = "GROUPS",
    };
    if (has_words(row)) {
        snprintf(out, out_bytes, "%.*s", words_length(row), row->help);
        return out;
    }
    return names[row->type];
}

const char *option_meaning(const struct option_row *row)
{
    return has_words(row) ? row->help + words_length(row) + strlen(": ") : row->help;
}
