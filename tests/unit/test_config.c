/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "config.h"
#include "option.h"

/* The default file of this machine is nobody's business here: opening it opens `default_file`, if that is set. */
static const char *default_file;

FILE *__real_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode)
{
    if (strcmp(path, CONFIG_DEFAULT_FILE) == 0) {
        if (!default_file) {
            errno = ENOENT;
            return NULL;
        }
        path = default_file;
    }
    return __real_fopen(path, mode);
}

static char file[] = "/tmp/test_config_XXXXXX";
static struct config config;
static struct config before;
static struct error err;
static enum config_action action;

static int make_file(void **state)
{
    (void)state;
    int fd = mkstemp(file);
    return fd < 0 ? -1 : close(fd);
}

static int remove_file(void **state)
{
    (void)state;
    return unlink(file);
}

static int setup(void **state)
{
    (void)state;
    unsetenv("MLACAT_SOCKET");
    unsetenv("XDG_RUNTIME_DIR");
    default_file = NULL;
    memset(&err, 0, sizeof(err));
    memset(&config, 0xA5, sizeof(config));
    return 0;
}

static void write_file(const char *text)
{
    FILE *out = fopen(file, "w");
    assert_non_null(out);
    assert_true(fputs(text, out) >= 0);
    assert_int_equal(fclose(out), 0);
}

#define ARGUMENTS_MAX 8

/* Splits "--a 1 --b" at its blanks into an argv; '~' in a word stands for a blank. */
static int split(const char *line, char *words, size_t bytes, char *argv[ARGUMENTS_MAX])
{
    char *rest = NULL;
    int argc = 0;
    snprintf(words, bytes, "mlacatd %s", line);
    for (char *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        assert_true(argc < ARGUMENTS_MAX - 1);
        argv[argc++] = word;
        for (char *c = word; *c; c++) {
            *c = *c == '~' ? ' ' : *c;
        }
    }
    argv[argc] = NULL;
    return argc;
}

static enum mlacat_status load(const char *line)
{
    char words[1024];
    char *argv[ARGUMENTS_MAX];
    char *kept[ARGUMENTS_MAX];
    int argc = split(line, words, sizeof(words), argv);
    memcpy(kept, argv, sizeof(argv[0]) * ((size_t)argc + 1));
    enum mlacat_status status = config_load(&config, argc, argv, &action, &err);
    assert_memory_equal(argv, kept, sizeof(argv[0]) * ((size_t)argc + 1));
    return status;
}

/* Loads `text` through --config. */
static enum mlacat_status load_file(const char *text)
{
    char line[128];
    write_file(text);
    snprintf(line, sizeof(line), "--config %s", file);
    return load(line);
}

static void assert_message_has(const char *part)
{
    if (!strstr(err.message, part)) {
        fail_msg("\"%s\" is not in \"%s\"", part, err.message);
    }
}

static void assert_defaults(void)
{
    assert_string_equal(config.socket, "/run/mlacat/mlacatd.sock");
    assert_int_equal(config.socket_mode, 0660);
    assert_int_equal(config.allow.uids_nr, 0);
    assert_int_equal(config.allow.gids_nr, 0);
    assert_string_equal(config.device, "auto");
    assert_int_equal(config.workers, 0);
    assert_int_equal(config.poll, CONFIG_POLL_BALANCED);
    assert_int_equal(config.pin, CONFIG_PIN_AUTO);
    assert_int_equal(config.spin_us, 0);
    assert_int_equal(config.max_clients, 128);
    assert_int_equal(config.max_streams, 64);
    assert_int_equal(config.max_buffers, 4096);
    assert_int_equal(config.max_events, 64);
    assert_int_equal(config.max_mapped, UINT64_C(64) << 30);
    assert_int_equal(config.max_stream_calls, 256);
    assert_int_equal(config.max_calls, 1024);
    assert_int_equal(config.hello_timeout_ms, 5000);
    assert_int_equal(config.drain_timeout_ms, 30000);
    assert_int_equal(config.log_level, LOG_LEVEL_INFO);
}

static void test_config_defaults(void **state)
{
    (void)state;
    assert_int_equal(load(""), MLACAT_OK);
    assert_int_equal(action, CONFIG_RUN);
    assert_defaults();
    assert_string_equal(config.file, "");
    for (int i = 0; i < OPTIONS_NR; i++) {
        assert_string_equal(config.source[i], "default");
    }
}

static void test_config_command_line_wins_over_file_over_default(void **state)
{
    (void)state;
    char line[256];
    char source[128];
    write_file("; comment\n[mlacatd]\n\nmax_clients = 10 ; ten\n  max_streams=11\nmax_calls\t:\t12 # twelve\n");
    snprintf(line, sizeof(line), "--max-clients 19 --config=%s --poll=spin --max-clients=20", file);
    assert_int_equal(load(line), MLACAT_OK);
    assert_int_equal(config.max_clients, 20);
    assert_int_equal(config.max_streams, 11);
    assert_int_equal(config.max_calls, 12);
    assert_int_equal(config.max_buffers, 4096);
    assert_int_equal(config.poll, CONFIG_POLL_SPIN);
    assert_string_equal(config.file, file);
    assert_string_equal(config.source[OPTION_max_clients], "command line");
    snprintf(source, sizeof(source), "%s:5", file);
    assert_string_equal(config.source[OPTION_max_streams], source);
    snprintf(source, sizeof(source), "%s:6", file);
    assert_string_equal(config.source[OPTION_max_calls], source);
    assert_string_equal(config.text[OPTION_max_calls], "12");
    assert_string_equal(config.source[OPTION_max_buffers], "default");
}

static void test_config_default_file_is_read_if_there(void **state)
{
    (void)state;
    write_file("[mlacatd]\nworkers = 3\n");
    default_file = file;
    assert_int_equal(load(""), MLACAT_OK);
    assert_int_equal(config.workers, 3);
    assert_string_equal(config.file, CONFIG_DEFAULT_FILE);
    assert_string_equal(config.source[OPTION_workers], CONFIG_DEFAULT_FILE ":2");
}

static void test_config_socket_default_by_environment(void **state)
{
    (void)state;
    setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    assert_int_equal(load(""), MLACAT_OK);
    assert_string_equal(config.socket, "/run/user/7/mlacat/mlacatd.sock");
    assert_string_equal(config.text[OPTION_socket], config.socket);
    assert_string_equal(config.source[OPTION_socket], "environment XDG_RUNTIME_DIR");

    setenv("MLACAT_SOCKET", "/tmp/a.sock", 1);
    assert_int_equal(load(""), MLACAT_OK);
    assert_string_equal(config.socket, "/tmp/a.sock");
    assert_string_equal(config.source[OPTION_socket], "environment MLACAT_SOCKET");

    assert_int_equal(load("--socket=/tmp/b.sock"), MLACAT_OK);
    assert_string_equal(config.socket, "/tmp/b.sock");
    assert_string_equal(config.source[OPTION_socket], "command line");

    setenv("MLACAT_SOCKET", "", 1);
    setenv("XDG_RUNTIME_DIR", "", 1);
    assert_int_equal(load("--socket="), MLACAT_OK);
    assert_string_equal(config.socket, "/run/mlacat/mlacatd.sock");
    assert_string_equal(config.source[OPTION_socket], "default");
}

static void test_config_socket_from_environment_is_checked(void **state)
{
    (void)state;
    char path[300];
    memset(path, 'x', sizeof(path));
    path[108] = '\0';
    setenv("MLACAT_SOCKET", path, 1);
    assert_int_equal(load(""), MLACAT_INVALID_ARGUMENT);
    assert_message_has("environment MLACAT_SOCKET: socket = ");
    assert_message_has("108 bytes long; 0 to 107 are allowed");
    path[107] = '\0';
    setenv("MLACAT_SOCKET", path, 1);
    assert_int_equal(load(""), MLACAT_OK);
    assert_string_equal(config.socket, path);
}

static void test_config_bad_arguments_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *line;
        const char *part;
    } cases[] = {
        {"--no-such", "\"--no-such\" is no option"},
        {"--workers=1 --no-such=5", "\"--no-such=5\" is no option"},
        {"--max-c=5", "\"--max-c=5\" is no option, or short for more than one"},
        {"-x", "\"-x\" is no option"},
        {"--workers", "\"--workers\" needs a value"},
        {"--print-config=yes", "\"--print-config=yes\" takes no value"},
        {"start", "\"start\" is not an option"},
        {"--workers 1 start --poll=spin", "\"start\" is not an option"},
        {"-- --poll=spin", "\"--poll=spin\" is not an option"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(load(cases[i].line), MLACAT_INVALID_ARGUMENT);
        assert_message_has("command line: ");
        assert_message_has(cases[i].part);
    }
}

static void test_config_bad_value_is_named(void **state)
{
    (void)state;
    assert_int_equal(load("--max-clients=255"), MLACAT_INVALID_ARGUMENT);
    assert_string_equal(err.message, "command line: max_clients = \"255\": give a whole number from 1 to 254");
    assert_int_equal(load("--spin-us=10001"), MLACAT_INVALID_ARGUMENT);
}

static void test_config_actions(void **state)
{
    (void)state;
    write_file("broken");
    default_file = file;
    assert_int_equal(load("--help"), MLACAT_OK);
    assert_int_equal(action, CONFIG_HELP);
    assert_int_equal(load("--version"), MLACAT_OK);
    assert_int_equal(action, CONFIG_VERSION);
    assert_int_equal(load("--print-config"), MLACAT_INVALID_ARGUMENT);
    default_file = NULL;
    assert_int_equal(load("--print-config --workers=2"), MLACAT_OK);
    assert_int_equal(action, CONFIG_PRINT);
    assert_int_equal(config.workers, 2);
}

static void test_config_file_errors_name_the_line(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *line;
        const char *part;
    } cases[] = {
        {"[mlacatd]\n\nmax_clients = many\n", ":3: ", "max_clients = \"many\": give a whole number from 1 to 254"},
        {"[mlacatd]\nno_such = 1\n", ":2: ", "\"no_such\" is no option"},
        {"[mlacatd]\nmax-clients = 1\n", ":2: ", "\"max-clients\" is no option"},
        {"# x\n[other]\nmax_clients = 1\n", ":3: ", "section \"other\" is not known; options stand under [mlacatd]"},
        {"max_clients = 1\n", ":1: ", "section \"\" is not known"},
        {"[mlacatd]\npoll = spin\nworkers = 1\npoll = spin\n", ":4: ", "poll is set in line 2 already"},
        {"[mlacatd]\npoll = spin\n[mlacatd]\n  poll = sleep\n", ":4: ", "poll is set in line 2 already"},
        {"[mlacatd]\nworkers = 1\n  poll = spin\n  log_level = loud", ":4: ", "error|warning|info|debug"},
        {"[mlacatd]\nworkers\n", ":2: ", "neither"},
        {"\n\n[mlacatd\nworkers = 1\n", ":3: ", "neither"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        memset(&err, 0, sizeof(err));
        assert_int_equal(load_file(cases[i].text), MLACAT_INVALID_ARGUMENT);
        assert_memory_equal(err.message, file, strlen(file));
        assert_memory_equal(err.message + strlen(file), cases[i].line, strlen(cases[i].line));
        assert_message_has(cases[i].part);
    }
}

/* The library reads lines of 200 bytes and takes the rest of a longer one for the next line. */
static void test_config_file_long_lines(void **state)
{
    (void)state;
    char text[4096];
    char blanks[1100];
    memset(blanks, ' ', sizeof(blanks));
    snprintf(text, sizeof(text), "[mlacatd]\nsocket = %.*sworkers = 7\n", 190, blanks);
    assert_int_equal(load_file(text), MLACAT_INVALID_ARGUMENT);
    assert_message_has(":2: longer than 199 bytes");
    snprintf(text, sizeof(text), "[mlacatd]\n%.*sworkers = 7\n", 1050, blanks);
    assert_int_equal(load_file(text), MLACAT_INVALID_ARGUMENT);
    assert_message_has(":2: longer than 199 bytes");
    snprintf(text, sizeof(text), "no_section = 1\n%0300d\n", 0); /* the first error is told */
    assert_int_equal(load_file(text), MLACAT_INVALID_ARGUMENT);
    assert_message_has(":1: section");
    snprintf(text, sizeof(text), "[mlacatd]\n%.*sworkers = 7%.*s# %.*s", 300, blanks, 80, blanks, 300, blanks);
    assert_int_equal(load_file(text), MLACAT_OK);
    assert_int_equal(config.workers, 7);
}

static void test_config_file_with_zero_bytes_is_refused(void **state)
{
    (void)state;
    FILE *out = fopen(file, "w");
    char line[128];
    assert_non_null(out);
    assert_int_equal(fwrite("[mlacatd]\nworkers = 1\0 2\nspin_us = 3\n", 1, 37, out), 37);
    assert_int_equal(fclose(out), 0);
    snprintf(line, sizeof(line), "--config %s", file);
    assert_int_equal(load(line), MLACAT_INVALID_ARGUMENT);
    assert_message_has(":2: ");
}

static void test_config_file_that_cannot_be_read(void **state)
{
    (void)state;
    char line[512] = "--config=/tmp/";
    assert_int_equal(load("--config /nonexistent/mlacatd.conf"), MLACAT_NOT_FOUND);
    assert_message_has("/nonexistent/mlacatd.conf");
    assert_int_equal(load("--config /tmp"), MLACAT_INVALID_ARGUMENT);
    assert_message_has("/tmp: cannot be read");
    memset(line + strlen(line), 'x', CONFIG_FILE_BYTES);
    assert_int_equal(load(line), MLACAT_INVALID_ARGUMENT);
    assert_message_has("at most 255");
}

static char *capture(void (*print)(FILE *out))
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    print(out);
    assert_int_equal(fclose(out), 0);
    return text;
}

static void print_config(FILE *out)
{
    config_print(&config, out);
}

static void test_config_print_can_be_read_back(void **state)
{
    (void)state;
    char uids[CONFIG_TEXT_BYTES];
    char line[256];
    for (size_t i = 0; i < sizeof(uids) - 1; i++) {
        uids[i] = i % 4 == 3 ? ',' : '7';
    }
    uids[sizeof(uids) - 1] = '\0';
    snprintf(line, sizeof(line), "--socket /tmp/x.sock --max-mapped=5MiB --allow-uids=%s", uids);
    assert_int_equal(load(line), MLACAT_OK);
    before = config;
    char *text = capture(print_config);
    assert_non_null(strstr(text, "\nmax_mapped = 5MiB ; command line\n"));
    assert_non_null(strstr(text, "\nmax_clients = 128 ; default\n"));
    assert_int_equal(load_file(text), MLACAT_OK);
    free(text);
    assert_memory_equal(config.text, before.text, sizeof(config.text));
    assert_memory_equal(&config.allow.uids, &before.allow.uids, config.allow.uids_nr * sizeof(uid_t));
    assert_true(config.max_mapped == before.max_mapped);
}

static void test_config_help_names_every_option(void **state)
{
    (void)state;
    char *text = capture(config_help);
    for (int i = 0; i < OPTIONS_NR; i++) {
        char name[64];
        snprintf(name, sizeof(name), "--%s ", option_rows[i].name);
        for (char *c = name; *c; c++) {
            *c = *c == '_' ? '-' : *c;
        }
        assert_non_null(strstr(text, name));
        assert_non_null(strstr(text, option_meaning(&option_rows[i])));
    }
    assert_non_null(strstr(text, "* --log-level error|warning|info|debug\n"));
    assert_non_null(strstr(text, "  --socket-mode MODE\n"));
    free(text);
}

/* deploy/mlacatd.conf: as it is, and with the '#' taken off each option (which no blank follows, unlike in a remark).
 */
static void test_config_example_file_is_the_defaults(void **state)
{
    (void)state;
    char line[512];
    char text[16384] = "";
    size_t used = 0;
    assert_int_equal(load("--config=" EXAMPLE_FILE), MLACAT_OK);
    assert_defaults();

    FILE *example = fopen(EXAMPLE_FILE, "r");
    assert_non_null(example);
    while (fgets(line, sizeof(line), example)) {
        bool is_option = line[0] == '#' && line[1] >= 'a' && line[1] <= 'z';
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s", line + is_option);
        assert_true(used < sizeof(text));
    }
    fclose(example);
    assert_int_equal(load_file(text), MLACAT_OK);
    assert_defaults();
    for (int i = 0; i < OPTIONS_NR; i++) {
        if (i != OPTION_socket) { /* empty in the file, so decided afterwards */
            assert_string_equal(config.text[i], option_rows[i].value);
            assert_memory_equal(config.source[i], file, strlen(file));
        }
    }
    assert_non_null(strstr(text, "\nsocket =\n"));
}

static int log_reader = -1;
static char log_lines[8192];

/* Reloads from the file; log_lines: what was logged. */
static enum mlacat_status reload(const char *text)
{
    int pair[2];
    char line[128];
    char words[256];
    char *argv[ARGUMENTS_MAX];
    write_file(text);
    snprintf(line, sizeof(line), "--config %s --max-buffers=77", file);
    int argc = split(line, words, sizeof(words), argv);

    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
    log_reader = pair[0];
    int real_stderr = dup(STDERR_FILENO);
    dup2(pair[1], STDERR_FILENO);
    enum mlacat_status status = config_reload(&config, argc, argv, &err);
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    close(pair[1]);

    size_t used = 0;
    ssize_t bytes;
    while ((bytes = recv(log_reader, log_lines + used, sizeof(log_lines) - 1 - used, MSG_DONTWAIT)) > 0) {
        used += (size_t)bytes;
    }
    log_lines[used] = '\0';
    close(log_reader);
    return status;
}

static void load_first(void)
{
    char line[128];
    write_file("[mlacatd]\nmax_streams = 10\nallow_uids = 1,2\nworkers = 2\n");
    snprintf(line, sizeof(line), "--config %s --max-buffers=77", file);
    assert_int_equal(load(line), MLACAT_OK);
}

static void test_config_reload_moves_what_may_change(void **state)
{
    (void)state;
    load_first();
    assert_int_equal(reload("[mlacatd]\nworkers = 2\nallow_uids = 3\n\nlog_level = debug\nmax_buffers = 5\n"),
                     MLACAT_OK);
    assert_int_equal(config.max_streams, 64);
    assert_string_equal(config.source[OPTION_max_streams], "default");
    assert_int_equal(config.allow.uids_nr, 1);
    assert_int_equal(config.allow.uids[0], 3);
    assert_int_equal(config.log_level, LOG_LEVEL_DEBUG);
    assert_non_null(strstr(config.source[OPTION_log_level], ":5"));
    assert_int_equal(config.max_buffers, 77);
    assert_non_null(strstr(log_lines, "level=info event=config_changed option=max_streams old=\"10\" new=\"64\" "
                                      "source=\"default\"\n"));
    assert_non_null(strstr(log_lines, "event=config_changed option=allow_uids old=\"1,2\" new=\"3\""));
    assert_non_null(strstr(log_lines, "event=config_changed option=log_level old=\"info\" new=\"debug\""));
    assert_null(strstr(log_lines, "max_buffers"));
    assert_null(strstr(log_lines, "workers"));
}

static void test_config_reload_warns_of_what_needs_a_restart(void **state)
{
    (void)state;
    load_first();
    before = config;
    assert_int_equal(
        reload("[mlacatd]\nmax_streams = 10\nallow_uids = 1,2\nworkers = 4\nspin_us = 20\nsocket_mode = 0600\n"),
        MLACAT_OK);
    assert_non_null(strstr(log_lines, "level=warning event=config_needs_restart option=workers old=\"2\" new=\"4\""));
    assert_non_null(strstr(log_lines, "event=config_needs_restart option=spin_us old=\"0\" new=\"20\""));
    assert_non_null(strstr(log_lines, "event=config_needs_restart option=socket_mode old=\"0660\" new=\"0600\""));
    assert_null(strstr(log_lines, "config_changed"));
    assert_memory_equal(&config, &before, sizeof(config));
}

static void test_config_reload_error_changes_nothing(void **state)
{
    (void)state;
    load_first();
    before = config;
    assert_int_equal(reload("[mlacatd]\nmax_buffers = 20\nmax_streams = nine\n"), MLACAT_INVALID_ARGUMENT);
    assert_message_has(":3: max_streams = \"nine\"");
    assert_memory_equal(&config, &before, sizeof(config));
    assert_string_equal(log_lines, "");
}

static int count_changes(void)
{
    int changes = 0;
    for (const char *at = log_lines; (at = strstr(at, "event=config_changed")) != NULL; at++) {
        changes++;
    }
    return changes;
}

/* More changes at a time than one place in the code may log in a window. */
static void test_config_reload_logs_every_change(void **state)
{
    (void)state;
    load_first();
    assert_int_equal(reload("[mlacatd]\nallow_uids=5\nallow_gids=5\nmax_streams=5\nmax_events=5\nmax_mapped=5GiB\n"
                            "max_stream_calls=5\nmax_calls=5\nmax_clients=5\nimport_rate=5\n"
                            "hello_timeout_ms=50\ndrain_timeout_ms=5\nlog_level=error\nworkers=2\n"),
                     MLACAT_OK);
    assert_int_equal(count_changes(), 12);
    assert_int_equal(reload("[mlacatd]\nallow_uids=6\nallow_gids=6\nmax_streams=6\nmax_events=6\nmax_mapped=6GiB\n"
                            "max_stream_calls=6\nmax_calls=6\nmax_clients=6\nimport_rate=6\n"
                            "hello_timeout_ms=60\ndrain_timeout_ms=6\nlog_level=warning\nworkers=2\n"),
                     MLACAT_OK);
    assert_int_equal(count_changes(), 12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_config_defaults, setup),
        cmocka_unit_test_setup(test_config_command_line_wins_over_file_over_default, setup),
        cmocka_unit_test_setup(test_config_default_file_is_read_if_there, setup),
        cmocka_unit_test_setup(test_config_socket_default_by_environment, setup),
        cmocka_unit_test_setup(test_config_socket_from_environment_is_checked, setup),
        cmocka_unit_test_setup(test_config_bad_arguments_are_named, setup),
        cmocka_unit_test_setup(test_config_bad_value_is_named, setup),
        cmocka_unit_test_setup(test_config_actions, setup),
        cmocka_unit_test_setup(test_config_file_errors_name_the_line, setup),
        cmocka_unit_test_setup(test_config_file_long_lines, setup),
        cmocka_unit_test_setup(test_config_file_with_zero_bytes_is_refused, setup),
        cmocka_unit_test_setup(test_config_file_that_cannot_be_read, setup),
        cmocka_unit_test_setup(test_config_print_can_be_read_back, setup),
        cmocka_unit_test_setup(test_config_help_names_every_option, setup),
        cmocka_unit_test_setup(test_config_example_file_is_the_defaults, setup),
        cmocka_unit_test_setup(test_config_reload_moves_what_may_change, setup),
        cmocka_unit_test_setup(test_config_reload_warns_of_what_needs_a_restart, setup),
        cmocka_unit_test_setup(test_config_reload_error_changes_nothing, setup),
        cmocka_unit_test_setup(test_config_reload_logs_every_change, setup),
    };
    return cmocka_run_group_tests(tests, make_file, remove_file);
}
