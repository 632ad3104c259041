/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <ini.h>
#include <stdlib.h>
#include <string.h>

#include "cpus.h"
#include "min_max.h"
#include "option.h"

/* Where there are CPUs to spare a thread spins for longer: to wake takes as long as a few small calls, and the first
 * launch after it ten times as long as others. Work of milliseconds between the calls of a model's step is common. */
#define SPIN_LONG_CPUS 8
#define SPIN_LONG_US 5000
#define SPIN_SHORT_US 50
/* Not so the loop: it has no part in the calls of rings, and a packet costs a wake-up at worst. */
#define LOOP_SPIN_MOST_NS 1000000
#define SECTION "mlacatd"
#define COMMAND_LINE "command line"

/* What the command line says, by row: NULL where it says nothing. */
struct arguments {
    const char *given[OPTIONS_NR];
    const char *file; /* --config */
    enum config_action action;
};

/* ------------------------------------------------------------------------------------------------ command line */

/* Values of getopt_long past the numbers of the rows. */
enum { ARGUMENT_CONFIG = OPTIONS_NR, ARGUMENT_PRINT, ARGUMENT_HELP, ARGUMENT_VERSION, ARGUMENTS_NR };
#define NAME_BYTES 32

/* "max_clients" -> "max-clients" */
static void argument_name(const char *option_name, char name[NAME_BYTES])
{
    snprintf(name, NAME_BYTES, "%s", option_name);
    for (char *c = name; *c; c++) {
        if (*c == '_') {
            *c = '-';
        }
    }
}

/* getopt_long tells apart only by `optopt` a value that an option does not take (its number) and a name it does not
 * know. */
static enum mlacat_status refuse_argument(int answer, const char *argument, struct error *err)
{
    char shown[64];
    log_quote(argument, shown, sizeof(shown));
    if (answer == ':') {
        return error_set(err, MLACAT_INVALID_ARGUMENT, COMMAND_LINE ": %s needs a value; see mlacatd --help", shown);
    }
    if (optopt != 0 && strncmp(argument, "--", 2) == 0) {
        return error_set(err, MLACAT_INVALID_ARGUMENT, COMMAND_LINE ": %s takes no value; see mlacatd --help", shown);
    }
    return error_set(err, MLACAT_INVALID_ARGUMENT,
                     COMMAND_LINE ": %s is no option, or short for more than one; see mlacatd --help", shown);
}

static enum mlacat_status read_arguments(struct arguments *arguments, int argc, char *const argv[], struct error *err)
{
    char names[OPTIONS_NR][NAME_BYTES];
    struct option table[ARGUMENTS_NR + 1] = {
        [ARGUMENT_CONFIG] = {"config", required_argument, NULL, ARGUMENT_CONFIG},
        [ARGUMENT_PRINT] = {"print-config", no_argument, NULL, ARGUMENT_PRINT},
        [ARGUMENT_HELP] = {"help", no_argument, NULL, ARGUMENT_HELP},
        [ARGUMENT_VERSION] = {"version", no_argument, NULL, ARGUMENT_VERSION},
    };
    for (int i = 0; i < OPTIONS_NR; i++) {
        argument_name(option_rows[i].name, names[i]);
        table[i] = (struct option){names[i], required_argument, NULL, i};
    }
    *arguments = (struct arguments){.action = CONFIG_RUN};
    optind = 0; /* start over: SIGHUP reads the same argv again */
    opterr = 0;
    for (;;) {
        int at = optind > 0 ? optind : 1;
        /* '+': stop at the first word that is no option and leave argv in its order; ':': tell a missing value apart */
        int answer = getopt_long(argc, argv, "+:", table, NULL);
        if (answer == -1) {
            break;
        }
        if (answer == ':' || answer == '?') {
            return refuse_argument(answer, argv[at], err);
        }
        if (answer < OPTIONS_NR) {
            arguments->given[answer] = optarg;
        } else if (answer == ARGUMENT_CONFIG) {
            arguments->file = optarg;
        } else if (answer == ARGUMENT_PRINT) {
            arguments->action = CONFIG_PRINT;
        } else {
            arguments->action = answer == ARGUMENT_HELP ? CONFIG_HELP : CONFIG_VERSION;
            return MLACAT_OK;
        }
    }
    if (optind < argc) {
        char shown[64];
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         COMMAND_LINE ": %s is not an option; options start with --, see mlacatd --help",
                         log_quote(argv[optind], shown, sizeof(shown)));
    }
    return MLACAT_OK;
}

/* ---------------------------------------------------------------------------------------------------- INI file */

struct ini_file {
    FILE *stream;
    const char *path;
    uint32_t line;               /* of the last line read: the library's handler is not told */
    uint32_t set_at[OPTIONS_NR]; /* line that set the option; 0: none */
    struct config *config;
    struct error *err;
    uint32_t failed_at; /* line that err is about; 0: none */
};

/* Cuts a comment off: from a ';' or '#' that starts the line or follows a blank. */
static void cut_comment(char *text)
{
    for (char *c = text; *c; c++) {
        if ((*c == ';' || *c == '#') && (c == text || c[-1] == ' ' || c[-1] == '\t')) {
            *c = '\0';
            return;
        }
    }
}

/*
 * The library's fgets: counts lines, takes blanks off the front (to the library an indented line continues the value
 * before it) and refuses a line that does not fit, which the library would silently take for two.
 */
static char *read_line(char *out, int out_bytes, void *owner)
{
    struct ini_file *ini = owner;
    char line[1024];
    if (ini->failed_at != 0 || !fgets(line, sizeof(line), ini->stream)) {
        return NULL;
    }
    ini->line++;
    size_t length = strlen(line);
    bool whole = (length > 0 && line[length - 1] == '\n') || getc(ini->stream) == EOF;
    cut_comment(line);
    const char *text = line + strspn(line, " \t");
    length = strlen(text);
    if (!whole || length >= (size_t)out_bytes) {
        error_set(ini->err, MLACAT_INVALID_ARGUMENT, "%s:%u: longer than %d bytes, or not a text; shorten the line",
                  ini->path, ini->line, out_bytes - 1);
        ini->failed_at = ini->line;
        return NULL;
    }
    memcpy(out, text, length + 1);
    return out;
}

static enum mlacat_status take_key(struct ini_file *ini, const char *section, const char *key, const char *value)
{
    char shown[64];
    if (strcmp(section, SECTION) != 0) {
        return error_set(ini->err, MLACAT_INVALID_ARGUMENT,
                         "%s:%u: section %s is not known; options stand under [" SECTION "]", ini->path, ini->line,
                         log_quote(section, shown, sizeof(shown)));
    }
    int number = option_find(key);
    if (number < 0) {
        return error_set(ini->err, MLACAT_INVALID_ARGUMENT, "%s:%u: %s is no option; see mlacatd --help", ini->path,
                         ini->line, log_quote(key, shown, sizeof(shown)));
    }
    if (ini->set_at[number] != 0) {
        return error_set(ini->err, MLACAT_INVALID_ARGUMENT, "%s:%u: %s is set in line %u already; remove one of them",
                         ini->path, ini->line, key, ini->set_at[number]);
    }
    ini->set_at[number] = ini->line;
    char source[CONFIG_SOURCE_BYTES];
    snprintf(source, sizeof(source), "%s:%u", ini->path, ini->line);
    return option_set(ini->config, number, value, source, ini->err);
}

static int on_key(void *owner, const char *section, const char *key, const char *value)
{
    struct ini_file *ini = owner;
    if (ini->failed_at == 0 && take_key(ini, section, key, value) != MLACAT_OK) {
        ini->failed_at = ini->line;
    }
    return ini->failed_at == 0;
}

static enum mlacat_status parse_file(struct ini_file *ini)
{
    /* The first line that the library could not parse or that on_key refused. */
    int line = ini_parse_stream(read_line, ini, on_key, ini);
    if (line < 0 || ferror(ini->stream)) {
        return error_set(ini->err, MLACAT_INVALID_ARGUMENT, "%s: cannot be read after line %u: %s", ini->path,
                         ini->line, strerror(errno));
    }
    if (line > 0 && (uint32_t)line != ini->failed_at) {
        return error_set(ini->err, MLACAT_INVALID_ARGUMENT,
                         "%s:%d: neither `name = value`, [section], comment nor empty; correct the line", ini->path,
                         line);
    }
    return ini->failed_at != 0 ? ini->err->code : MLACAT_OK;
}

/* `named`: --config gives the file, so it must be there. */
static enum mlacat_status read_file(struct config *config, const char *path, bool named, struct error *err)
{
    if (strlen(path) >= sizeof(config->file)) {
        return error_set(err, MLACAT_INVALID_ARGUMENT, "--config: the path has %zu bytes; at most %zu are allowed",
                         strlen(path), sizeof(config->file) - 1);
    }
    FILE *stream = fopen(path, "re");
    if (!stream && errno == ENOENT) {
        return named ? error_set(err, MLACAT_NOT_FOUND, "%s: no such file; correct --config or make the file", path)
                     : MLACAT_OK;
    }
    if (!stream) {
        return error_set(err, errno == EACCES ? MLACAT_PERMISSION_DENIED : MLACAT_INVALID_ARGUMENT,
                         "%s: cannot be opened: %s; let the daemon's user read it", path, strerror(errno));
    }
    struct ini_file ini = {.stream = stream, .path = path, .config = config, .err = err};
    enum mlacat_status status = parse_file(&ini);
    fclose(stream);
    if (status == MLACAT_OK) {
        snprintf(config->file, sizeof(config->file), "%s", path);
    }
    return status;
}

/* ------------------------------------------------------------------------------------------------ all together */

/* Where nobody named a socket the environment decides, in the order in which clients look for it. */
static enum mlacat_status set_default_socket(struct config *config, struct error *err)
{
    const char *path = getenv("MLACAT_SOCKET");
    if (path && path[0]) {
        return option_set(config, OPTION_socket, path, "environment MLACAT_SOCKET", err);
    }
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    if (runtime && runtime[0]) {
        char joined[4096];
        snprintf(joined, sizeof(joined), "%s/mlacat/mlacatd.sock", runtime);
        return option_set(config, OPTION_socket, joined, "environment XDG_RUNTIME_DIR", err);
    }
    return option_set(config, OPTION_socket, "/run/mlacat/mlacatd.sock", "default", err);
}

enum mlacat_status config_load(struct config *config, int argc, char *const argv[], enum config_action *action,
                               struct error *err)
{
    struct arguments arguments;
    enum mlacat_status status = read_arguments(&arguments, argc, argv, err);
    *action = arguments.action;
    if (status != MLACAT_OK || *action == CONFIG_HELP || *action == CONFIG_VERSION) {
        return status;
    }
    memset(config, 0, sizeof(*config));
    for (int i = 0; i < OPTIONS_NR && status == MLACAT_OK; i++) {
        status = option_set(config, i, option_rows[i].value, "default", err);
    }
    if (status == MLACAT_OK) {
        const char *file = arguments.file ? arguments.file : CONFIG_DEFAULT_FILE;
        status = read_file(config, file, arguments.file != NULL, err);
    }
    for (int i = 0; i < OPTIONS_NR && status == MLACAT_OK; i++) {
        if (arguments.given[i]) {
            status = option_set(config, i, arguments.given[i], COMMAND_LINE, err);
        }
    }
    if (status == MLACAT_OK && config->socket[0] == '\0') {
        status = set_default_socket(config, err);
    }
    return status;
}

void config_print(const struct config *config, FILE *out)
{
    fprintf(out, "[" SECTION "]\n");
    for (int i = 0; i < OPTIONS_NR; i++) {
        fprintf(out, "%s = %s ; %s\n", option_rows[i].name, config->text[i], config->source[i]);
    }
}

void config_help(FILE *out)
{
    fprintf(out, "usage: mlacatd [--option VALUE]...\n"
                 "Serves concat-MLA kernels on memory that clients share.\n\n"
                 "  --config FILE\n        INI file with the options below under [" SECTION
                 "]; default: " CONFIG_DEFAULT_FILE ", if it exists\n"
                 "  --print-config\n        print what would be used and where each value comes from, and exit\n"
                 "  --help, --version\n\n"
                 "In the file '_' stands for '-'. The command line wins over the file. SIGHUP reads both again;\n"
                 "options marked * then take their new value, the others need a restart.\n\n");
    for (int i = 0; i < OPTIONS_NR; i++) {
        const struct option_row *row = &option_rows[i];
        char name[NAME_BYTES];
        char value_name[64];
        argument_name(row->name, name);
        fprintf(out, "%c --%s %s\n        %s", row->reload ? '*' : ' ', name,
                option_value_name(row, value_name, sizeof(value_name)), option_meaning(row));
        fprintf(out, row->value[0] ? " (default: %s)\n" : "\n", row->value);
    }
}

/* Not rate-limited: one reload may change every option, and each change is to be seen. */
static void log_change(enum log_level level, const char *event, int number, const struct config *old,
                       const struct config *new)
{
    char old_text[CONFIG_TEXT_BYTES + 16];
    char new_text[CONFIG_TEXT_BYTES + 16];
    char source[CONFIG_SOURCE_BYTES + 16];
    log_line(NULL, level, event, "option=%s old=%s new=%s source=%s", option_rows[number].name,
             log_quote(old->text[number], old_text, sizeof(old_text)),
             log_quote(new->text[number], new_text, sizeof(new_text)),
             log_quote(new->source[number], source, sizeof(source)));
}

enum mlacat_status config_reload(struct config *config, int argc, char *const argv[], struct error *err)
{
    struct config fresh;
    enum config_action action;
    enum mlacat_status status = config_load(&fresh, argc, argv, &action, err);
    if (status != MLACAT_OK) {
        return status;
    }
    for (int i = 0; i < OPTIONS_NR; i++) {
        bool changed = strcmp(config->text[i], fresh.text[i]) != 0;
        if (changed && option_rows[i].reload) {
            log_change(LOG_LEVEL_INFO, "config_changed", i, config, &fresh);
        } else if (changed) {
            log_change(LOG_LEVEL_WARNING, "config_needs_restart", i, config, &fresh);
        }
        /* Moved also when the text is the same: a user's name may mean another number by now. */
        if (option_rows[i].reload) {
            option_copy(config, &fresh, i);
        }
    }
    memcpy(config->file, fresh.file, sizeof(config->file));
    return MLACAT_OK;
}

uint64_t config_spin_ns(const struct config *config)
{
    uint32_t chosen_us = cpus_usable() >= SPIN_LONG_CPUS ? SPIN_LONG_US : SPIN_SHORT_US;
    return (config->spin_us > 0 ? config->spin_us : chosen_us) * UINT64_C(1000);
}

uint64_t config_loop_spin_ns(const struct config *config)
{
    return min_u64(config_spin_ns(config), LOOP_SPIN_MOST_NS);
}

uint32_t config_workers(const struct config *config)
{
    if (config->workers > 0) {
        return config->workers;
    }
    uint32_t half = cpus_usable() / 2;
    uint32_t most = (uint32_t)option_rows[OPTION_workers].maximum;
    return half < 1 ? 1 : half > most ? most : half;
}
