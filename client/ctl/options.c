/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"

/* Where an option is good: `run` is three, because its ops take different extents. */
enum {
    ON_PING = 1 << 0,
    ON_INFO = 1 << 1,
    ON_STATS = 1 << 2,
    ON_DRAIN = 1 << 3,
    ON_LOG_LEVEL = 1 << 4,
    ON_K = 1 << 5,
    ON_Q = 1 << 6,
    ON_MODELS = 1 << 7,
    ON_BENCH = 1 << 8,
    ON_SOAK = 1 << 9,
    ON_DOCTOR = 1 << 10,
    ON_ONE = ON_K | ON_Q,
    ON_RUN = ON_ONE | ON_MODELS,
    ON_ALL = (1 << 11) - 1,
};

struct command_row {
    enum ctl_command command;
    const char *name;
    int on;
    const char *argument; /* NULL: takes none */
    uint64_t timeout_ms;  /* without --timeout; 0: no limit */
    const char *summary;
    const char *details;
};

#define REQUEST_MS 10000
#define DOCTOR_MS 60000 /* a driver whose GPUs sleep takes seconds for each to start */

static const struct command_row commands[] = {
    {CTL_PING, "ping", ON_PING, NULL, 1000, "is the service there and ready?",
     "Exit status: 0 ready, 1 alive but not ready (or full, or it refuses this user), 2 not reachable.\n"
     "With --alive: 0 if it answers, whatever it says, 1 if its device is stuck, 2 not reachable."},
    {CTL_INFO, "info", ON_INFO, NULL, REQUEST_MS, "the server, its limits, devices and ops", ""},
    {CTL_STATS, "stats", ON_STATS, NULL, REQUEST_MS, "what the service has done and who uses it", ""},
    {CTL_DRAIN, "drain", ON_DRAIN, NULL, REQUEST_MS, "let the service finish what is in flight and exit",
     "For root and the user of the service. New calls are refused with UNAVAILABLE from then on."},
    {CTL_LOG_LEVEL, "log-level", ON_LOG_LEVEL, "error|warning|info|debug", REQUEST_MS,
     "set the least important line it logs", "For root and the user of the service. Holds until the service restarts."},
    {CTL_RUN, "run", ON_RUN, "concat_mla_k|concat_mla_absorb_q|models", 0,
     "time a call; with --verify check each byte of its result",
     "`run models` runs both ops at the shapes of real models and verifies each. \"K\" and \"Q\" below: only for\n"
     "concat_mla_k, only for concat_mla_absorb_q. Exit status 1: a call failed or a byte differs."},
    {CTL_BENCH, "bench", ON_BENCH, NULL, 0, "measure, each figure beside its reference of the same run",
     "Measurement and reference alternate; both figures are medians. p90, p99, p99.9: nine of ten, 99 of 100, 999 of\n"
     "1000 samples were at least as good. Rows whose name begins with host. need no service."},
    {CTL_SOAK, "soak", ON_SOAK, NULL, 0, "many calls and registrations; does the service's memory stay flat?",
     "Exit status 1: a call failed, one of the last results is wrong, or memory, descriptors or mappings of the\n"
     "service or of this client have grown."},
    {CTL_DOCTOR, "doctor", ON_DOCTOR, NULL, DOCTOR_MS, "what an operator must know: is all as the service needs it?",
     "Looks at the service, the GPU driver, MPS and limits; says of each check what it found and what to do. Exit\n"
     "status: 0, 1 if a check failed. Run it as the user of the clients; as root it sees more of the service."},
};

enum option_kind { KIND_FLAG, KIND_STRING, KIND_UINT, KIND_REAL, KIND_LIST, KIND_DTYPE };

struct option_row {
    const char *name;
    enum option_kind kind;
    int on;
    size_t member;
    uint64_t minimum;
    uint64_t maximum;
    const char *value; /* its name in the help; NULL for a flag */
    const char *help;
};

#define M(member) offsetof(struct ctl_options, member)
#define EXTENT_MAX (1ull << 31)
#define ANY UINT64_MAX

static const struct option_row rows[] = {
    {"socket", KIND_STRING, ON_ALL, M(socket), 0, 0, "PATH",
     "the service's socket; default: $MLACAT_SOCKET, else the usual places"},
    {"json", KIND_FLAG, ON_ALL, M(json), 0, 0, NULL, "print JSON"},
    {"help", KIND_FLAG, ON_ALL, M(help), 0, 0, NULL, "print this and exit"},
    {"version", KIND_FLAG, ON_ALL, M(version), 0, 0, NULL, "print the version and exit"},
    {"timeout", KIND_UINT, ON_ALL, M(timeout_ms), 1, 86400000, "MS",
     "milliseconds until it gives up with exit status 2; default: ping 1000, doctor 60000, run, bench and soak no "
     "limit, others 10000"},
    {"alive", KIND_FLAG, ON_PING, M(alive), 0, 0, NULL, "ask only whether it lives: for liveness probes"},
    {"wait", KIND_REAL, ON_DRAIN, M(wait_s), 0, 86400, "SECONDS",
     "wait until it has exited; exit status 1 if it has not by then"},
    {"tokens", KIND_LIST, ON_K | ON_MODELS, M(tokens), 0, EXTENT_MAX, "N",
     "K: tokens (4096); models: a list (1,128,4096)"},
    {"heads", KIND_UINT, ON_K, M(heads), 0, EXTENT_MAX, "H", "K: heads (128)"},
    {"nope", KIND_UINT, ON_ONE, M(nope), 0, EXTENT_MAX, "P",
     "K: width of k_nope (128); Q with --strided: width before b in each row (128)"},
    {"rope", KIND_UINT, ON_K, M(rope), 0, EXTENT_MAX, "R", "K: width of k_rope (64)"},
    {"v", KIND_UINT, ON_K, M(v), 0, EXTENT_MAX, "V", "K with --strided: width of v behind each k_nope (128)"},
    {"dim0", KIND_UINT, ON_Q, M(dim0), 0, EXTENT_MAX, "D0", "Q: tokens (32)"},
    {"dim1", KIND_UINT, ON_Q, M(dim1), 0, EXTENT_MAX, "D1", "Q: heads (128)"},
    {"a", KIND_UINT, ON_Q, M(a), 0, EXTENT_MAX, "A", "Q: width of a (512)"},
    {"b", KIND_UINT, ON_Q, M(b), 0, EXTENT_MAX, "B", "Q: width of b (64)"},
    {"dtype", KIND_DTYPE, ON_ONE, M(dtype), 0, 0, "NAME", "K, Q: element type (bf16)"},
    {"strided", KIND_FLAG, ON_ONE, M(strided), 0, 0, NULL, "K, Q: the strides of real callers, not contiguous tensors"},
    {"gap", KIND_UINT, ON_ONE, M(gap), 0, EXTENT_MAX, "ELEMS", "K, Q: elements left between output rows (0)"},
    {"verify", KIND_FLAG, ON_RUN, M(verify), 0, 0, NULL, "check every byte (models: always)"},
    {"seed", KIND_UINT, ON_RUN, M(seed), 0, ANY, "N", "seed of the random inputs (1)"},
    {"repeat", KIND_UINT, ON_RUN, M(repeat), 1, 1000000, "N", "timed calls; default: 3 to 100, by their size"},
    {"device", KIND_STRING, ON_RUN | ON_BENCH | ON_SOAK, M(device), 0, 0, "UUID",
     "the device, as `mlacatctl info` names it; default: the first available"},
    {"filter", KIND_STRING, ON_BENCH, M(filter), 0, 0, "TEXT", "only rows whose name has TEXT in it"},
    {"seconds", KIND_REAL, ON_BENCH, M(seconds), 0, 3600, "S", "time for each row (1)"},
    {"quick", KIND_FLAG, ON_BENCH, M(quick), 0, 0, NULL,
     "short rows and small buffers: a smoke test, whose figures mean little"},
    {"histogram", KIND_STRING, ON_BENCH, M(histogram), 0, 0, "FILE",
     "write the samples of all rows in us and us/call to FILE as JSON, for a plot"},
    {"calls", KIND_UINT, ON_SOAK, M(calls), 0, ANY, "N", "calls (1000000)"},
    {"registrations", KIND_UINT, ON_SOAK, M(registrations), 0, ANY, "N", "register and release cycles (100000)"},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define PRINT_ERROR(error, ...) (snprintf((error), CTL_ERROR_BYTES, __VA_ARGS__), false)

static const struct command_row *find_command(enum ctl_command command)
{
    for (size_t i = 0; i < COUNT(commands); i++)
        if (commands[i].command == command)
            return &commands[i];
    return NULL;
}

const char *options_command_name(enum ctl_command command)
{
    const struct command_row *row = find_command(command);

    return row ? row->name : "";
}

static const struct option_row *find_option(const char *name, size_t length)
{
    for (size_t i = 0; i < COUNT(rows); i++)
        if (strlen(rows[i].name) == length && memcmp(rows[i].name, name, length) == 0)
            return &rows[i];
    return NULL;
}

/* One whole number that ends where `text` or its comma does. */
static bool parse_uint(const char *text, uint64_t minimum, uint64_t maximum, uint64_t *value, const char **end)
{
    char *stop;
    unsigned long long number;

    if (text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    number = strtoull(text, &stop, 10);
    *end = stop;
    *value = number;
    return errno == 0 && number >= minimum && number <= maximum;
}

static bool parse_list(const struct option_row *row, const char *text, struct ctl_list *list)
{
    list->nr = 0;
    for (const char *at = text;; at++) {
        if (list->nr == CTL_LIST_MAX || !parse_uint(at, row->minimum, row->maximum, &list->value[list->nr], &at))
            return false;
        list->nr++;
        if (*at == '\0')
            return true;
        if (*at != ',')
            return false;
    }
}

static bool parse_real(const struct option_row *row, const char *text, double *value)
{
    char *stop;

    *value = strtod(text, &stop);
    return stop != text && *stop == '\0' && isfinite(*value) && *value >= (double)row->minimum &&
           *value <= (double)row->maximum;
}

static bool set_value(const struct option_row *row, const char *text, struct ctl_options *options, char *error)
{
    void *member = (char *)options + row->member;
    const char *end = "";

    switch (row->kind) {
    case KIND_FLAG:
        *(bool *)member = true;
        return true;
    case KIND_STRING:
        *(const char **)member = text;
        return text[0] != '\0' || PRINT_ERROR(error, "--%s is empty; give a %s", row->name, row->value);
    case KIND_UINT:
        if (parse_uint(text, row->minimum, row->maximum, member, &end) && *end == '\0')
            return true;
        return PRINT_ERROR(error, "--%s: \"%.64s\" is not a whole number from %llu to %llu", row->name, text,
                           (unsigned long long)row->minimum, (unsigned long long)row->maximum);
    case KIND_LIST:
        if (parse_list(row, text, member))
            return true;
        return PRINT_ERROR(
            error, "--%s: \"%.64s\" is not a list of 1 to %d whole numbers from %llu to %llu, like 1,128", row->name,
            text, CTL_LIST_MAX, (unsigned long long)row->minimum, (unsigned long long)row->maximum);
    case KIND_REAL:
        if (parse_real(row, text, member))
            return true;
        return PRINT_ERROR(error, "--%s: \"%.64s\" is not a number from %llu to %llu", row->name, text,
                           (unsigned long long)row->minimum, (unsigned long long)row->maximum);
    case KIND_DTYPE:
        *(enum mlacat_dtype *)member = names_dtype_number(text);
        if (*(enum mlacat_dtype *)member != 0)
            return true;
        return PRINT_ERROR(error, "--dtype: \"%.64s\" is not known; one of %s", text, names_all_dtypes());
    }
    return false;
}

static bool take_word(const char *word, struct ctl_options *options, char *error)
{
    const struct command_row *row;

    if (options->command == CTL_NONE) {
        for (size_t i = 0; i < COUNT(commands); i++)
            if (strcmp(commands[i].name, word) == 0)
                options->command = commands[i].command;
        return options->command != CTL_NONE ||
               PRINT_ERROR(error, "\"%.64s\" is no command; see mlacatctl --help", word);
    }
    row = find_command(options->command);
    if (!row->argument)
        return PRINT_ERROR(error, "%s takes no argument; \"%.64s\" is one too many", row->name, word);
    if (options->argument)
        return PRINT_ERROR(error, "%s takes one argument; \"%.64s\" is one too many", row->name, word);
    options->argument = word;
    return true;
}

static bool is_level(const char *word)
{
    static const char *const levels[] = {"error", "warning", "info", "debug"};

    for (size_t i = 0; i < COUNT(levels); i++)
        if (strcmp(levels[i], word) == 0)
            return true;
    return false;
}

/* What the word after the command means, and the command's own defaults. *on becomes where options must be good. */
static bool resolve(struct ctl_options *options, int *on, char *error)
{
    const struct command_row *row = find_command(options->command);
    const char *word = options->argument;

    *on = row->on;
    if (options->timeout_ms == 0)
        options->timeout_ms = row->timeout_ms;
    if (row->argument && !word)
        return PRINT_ERROR(error, "%s needs an argument: one of %s", row->name, row->argument);
    if (options->command == CTL_LOG_LEVEL && !is_level(word))
        return PRINT_ERROR(error, "log-level: \"%.64s\" is no level; one of %s", word, row->argument);
    if (options->command != CTL_RUN)
        return true;
    options->models = strcmp(word, "models") == 0;
    options->op = names_op_number(word);
    if (!options->models && options->op == 0)
        return PRINT_ERROR(error, "run: \"%.64s\" is no op; one of %s, or models", word, names_all_ops());
    *on = options->models ? ON_MODELS : options->op == MLACAT_OP_CONCAT_MLA_K ? ON_K : ON_Q;
    return true;
}

static bool check(struct ctl_options *options, const bool seen[COUNT(rows)], char *error)
{
    int on;

    if (!resolve(options, &on, error))
        return false;
    for (size_t i = 0; i < COUNT(rows); i++)
        if (seen[i] && (rows[i].on & on) == 0)
            return PRINT_ERROR(error, "--%s is not an option of %s%s%s", rows[i].name,
                               options_command_name(options->command), options->argument ? " " : "",
                               options->argument ? options->argument : "");
    if (options->command == CTL_RUN && !options->models && options->tokens.nr > 1)
        return PRINT_ERROR(error, "--tokens: one number for %s; a list is for run models", options->argument);
    return true;
}

static void set_defaults(struct ctl_options *options)
{
    *options = (struct ctl_options){
        .wait_s = -1,
        .dtype = MLACAT_DTYPE_BF16,
        .heads = 128,
        .nope = 128,
        .rope = 64,
        .v = 128,
        .dim0 = 32,
        .dim1 = 128,
        .a = 512,
        .b = 64,
        .seed = 1,
        .seconds = 1,
        .calls = 1000000,
        .registrations = 100000,
    };
}

/* Takes the option argv[*at], and the word after it where that is its value. */
static bool take_option(int argc, char *const argv[], int *at, struct ctl_options *options, bool *seen, char *error)
{
    const char *name = argv[*at] + 2;
    const char *equals = strchr(name, '=');
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    const struct option_row *row = find_option(name, length);

    if (!row)
        return PRINT_ERROR(error, "unknown option \"%.64s\"; see mlacatctl --help", argv[*at]);
    seen[row - rows] = true;
    if (row->kind == KIND_FLAG && equals)
        return PRINT_ERROR(error, "--%s takes no value", row->name);
    if (row->kind == KIND_FLAG)
        return set_value(row, NULL, options, error);
    if (equals)
        return set_value(row, equals + 1, options, error);
    if (*at + 1 >= argc)
        return PRINT_ERROR(error, "--%s needs a value: %s", row->name, row->value);
    return set_value(row, argv[++*at], options, error);
}

bool options_parse(int argc, char *const argv[], struct ctl_options *options, char error[CTL_ERROR_BYTES])
{
    bool seen[COUNT(rows)] = {false};

    error[0] = '\0';
    set_defaults(options);
    for (int i = 1; i < argc; i++) {
        bool taken;

        if (argv[i][0] == '-' && argv[i][1] == 'h' && argv[i][2] == '\0')
            taken = options->help = true;
        else if (argv[i][0] != '-')
            taken = take_word(argv[i], options, error);
        else if (argv[i][1] == '-')
            taken = take_option(argc, argv, &i, options, seen, error);
        else
            taken = PRINT_ERROR(error, "unknown option \"%.64s\"; options begin with --", argv[i]);
        if (!taken)
            return false;
    }
    if (options->help || options->version)
        return true;
    if (options->command == CTL_NONE)
        return PRINT_ERROR(error, "no command given; see mlacatctl --help");
    return check(options, seen, error);
}

static void print_option(FILE *out, const struct option_row *row)
{
    char left[48];

    snprintf(left, sizeof(left), "--%s%s%s", row->name, row->value ? " " : "", row->value ? row->value : "");
    fprintf(out, "  %-20s %s\n", left, row->help);
}

void options_help(FILE *out, enum ctl_command command)
{
    const struct command_row *row = find_command(command);

    if (row) {
        fprintf(out, "Usage: mlacatctl %s%s%s [options]\n%s\n", row->name, row->argument ? " " : "",
                row->argument ? row->argument : "", row->summary);
        if (row->details[0] != '\0')
            fprintf(out, "%s\n", row->details);
        fputs("\nOptions:\n", out);
        for (size_t i = 0; i < COUNT(rows); i++)
            if (rows[i].on & row->on)
                print_option(out, &rows[i]);
        return;
    }
    fputs("Usage: mlacatctl COMMAND [options]\nTalks to a running mlacatd.\n\nCommands:\n", out);
    for (size_t i = 0; i < COUNT(commands); i++)
        fprintf(out, "  %-20s %s\n", commands[i].name, commands[i].summary);
    fputs("\nOptions of every command (mlacatctl COMMAND --help lists the others):\n", out);
    for (size_t i = 0; i < COUNT(rows); i++)
        if (rows[i].on == ON_ALL)
            print_option(out, &rows[i]);
    fputs("\nExit status: 0 done, 1 failed, 2 the service is not reachable, 64 wrong usage.\n", out);
}
