/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "clock.h"
#include "log.h"

static uint64_t now_ns;

uint64_t __wrap_clock_now_ns(void);
uint64_t __wrap_clock_now_ns(void)
{
    return now_ns;
}

/* Standard error is a datagram socket while a line is written: one packet is one write(2). */
static int reader = -1;
static int real_stderr = -1;
static char packet[4 * LOG_LINE_BYTES];

static void capture_start(void)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair), 0);
    reader = pair[0];
    real_stderr = dup(STDERR_FILENO);
    assert_int_equal(dup2(pair[1], STDERR_FILENO), STDERR_FILENO);
    close(pair[1]);
}

static void capture_stop(void)
{
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    close(reader);
}

/* The next packet as text; NULL if there is none. */
static const char *next_packet(void)
{
    ssize_t bytes = recv(reader, packet, sizeof(packet) - 1, MSG_DONTWAIT);
    if (bytes < 0) {
        return NULL;
    }
    packet[bytes] = '\0';
    assert_int_equal(strlen(packet), bytes);
    return packet;
}

/* The next packet from "event=" on. */
static const char *next_event(void)
{
    const char *text = next_packet();
    return text ? strstr(text, "event=") : NULL;
}

static int setup(void **state)
{
    (void)state;
    now_ns = 1;
    unsetenv("JOURNAL_STREAM");
    capture_start();
    log_init(LOG_LEVEL_INFO);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    capture_stop();
    return 0;
}

static void test_log_line_form_on_a_terminal(void **state)
{
    (void)state;
    log_info("client_connected", "pid=%d uid=%d", 12, 7);
    const char *line = next_packet();
    assert_non_null(line);
    static const char form[] = "time=dddd-dd-ddTdd:dd:dd.ddddddZ level=info event=client_connected pid=12 uid=7\n";
    size_t time_bytes = strcspn(form, " ");
    assert_int_equal(strlen(line), strlen(form));
    for (size_t i = strlen("time="); i < time_bytes; i++) {
        assert_true(form[i] == 'd' ? line[i] >= '0' && line[i] <= '9' : line[i] == form[i]);
    }
    assert_string_equal(line + time_bytes, form + time_bytes);
    assert_memory_equal(line, "time=20", strlen("time=20"));
    assert_null(next_packet());
}

static void test_log_priorities_for_the_journal(void **state)
{
    (void)state;
    struct stat st;
    char stream[64];
    assert_int_equal(fstat(STDERR_FILENO, &st), 0);
    snprintf(stream, sizeof(stream), "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    setenv("JOURNAL_STREAM", stream, 1);
    log_init(LOG_LEVEL_DEBUG);
    log_error("e", "n=%d", 1);
    assert_string_equal(next_packet(), "<3>event=e n=1\n");
    log_warning("e", "n=%d", 2);
    assert_string_equal(next_packet(), "<4>event=e n=2\n");
    log_info("e", "n=%d", 3);
    assert_string_equal(next_packet(), "<6>event=e n=3\n");
    log_debug("e", "n=%d", 4);
    assert_string_equal(next_packet(), "<7>event=e n=4\n");

    /* An inherited variable that names another file. */
    snprintf(stream, sizeof(stream), "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino + 1);
    setenv("JOURNAL_STREAM", stream, 1);
    log_init(LOG_LEVEL_DEBUG);
    log_info("e", "n=%d", 5);
    assert_memory_equal(next_packet(), "time=", 5);
}

static void test_log_level_filters(void **state)
{
    (void)state;
    log_debug("hidden", "n=%d", 1);
    assert_null(next_packet());
    log_set_level(LOG_LEVEL_ERROR);
    assert_int_equal(log_get_level(), LOG_LEVEL_ERROR);
    log_warning("hidden", "n=%d", 1);
    assert_null(next_packet());
    log_error("shown", "n=%d", 1);
    assert_string_equal(next_event(), "event=shown n=1\n");
}

static void test_log_level_names_round_trip(void **state)
{
    (void)state;
    for (int i = LOG_LEVEL_ERROR; i <= LOG_LEVEL_DEBUG; i++) {
        enum log_level level = LOG_LEVEL_INFO;
        assert_true(log_level_parse(log_level_name((enum log_level)i), &level));
        assert_int_equal(level, i);
    }
    enum log_level level = LOG_LEVEL_WARNING;
    assert_false(log_level_parse("Info", &level));
    assert_false(log_level_parse("", &level));
    assert_int_equal(level, LOG_LEVEL_WARNING);
    assert_string_equal(log_level_name((enum log_level)9), "unknown");
}

static void test_log_control_bytes_never_reach_the_output(void **state)
{
    (void)state;
    for (int c = 1; c < 256; c++) {
        log_line(NULL, LOG_LEVEL_INFO, "e", "text=a%cb", c);
        const char *line = next_event();
        char expected[32];
        snprintf(expected, sizeof(expected), "event=e text=a%cb\n", c >= ' ' && c <= '~' ? c : '?');
        assert_string_equal(line, expected);
    }
}

static void test_log_long_line_is_cut_and_marked(void **state)
{
    (void)state;
    char text[2 * LOG_LINE_BYTES];
    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    log_info("long", "text=%s", text);
    const char *line = next_packet();
    assert_int_equal(strlen(line), LOG_LINE_BYTES);
    assert_string_equal(line + LOG_LINE_BYTES - 5, "x...\n");
    assert_null(next_packet());

    /* The longest line that fits is not marked, one byte more is. */
    log_line(NULL, LOG_LEVEL_INFO, "long", "text=%s", "");
    size_t fits = LOG_LINE_BYTES - strlen(next_packet());
    log_line(NULL, LOG_LEVEL_INFO, "long", "text=%.*s", (int)fits, text);
    line = next_packet();
    assert_int_equal(strlen(line), LOG_LINE_BYTES);
    assert_string_equal(line + LOG_LINE_BYTES - 5, "xxxx\n");
    log_line(NULL, LOG_LEVEL_INFO, "long", "text=%.*s", (int)fits + 1, text);
    line = next_packet();
    assert_int_equal(strlen(line), LOG_LINE_BYTES);
    assert_string_equal(line + LOG_LINE_BYTES - 5, "x...\n");
}

static void log_often(int times)
{
    for (int i = 0; i < times; i++) {
        log_error("flood", "i=%d", i);
    }
}

static int count_packets(void)
{
    int packets = 0;
    while (next_packet()) {
        packets++;
    }
    return packets;
}

static void test_log_rate_limit_for_one_place(void **state)
{
    (void)state;
    const uint64_t window = LOG_RATE_SECONDS * UINT64_C(1000000000);
    log_often(LOG_RATE_LINES + 7);
    assert_int_equal(count_packets(), LOG_RATE_LINES);
    log_info("elsewhere", "n=%d", 1);
    assert_int_equal(count_packets(), 1);

    now_ns += window - 1;
    log_often(1);
    assert_int_equal(count_packets(), 0);
    now_ns += 1;
    log_often(1);
    assert_string_equal(next_event(), "event=flood left_out=8 i=0\n");
    log_often(1);
    assert_string_equal(next_event(), "event=flood i=0\n");
}

static void test_log_hidden_lines_do_not_use_up_the_rate(void **state)
{
    (void)state;
    struct log_site site = {0};
    for (int i = 0; i < 2 * LOG_RATE_LINES; i++) {
        log_line(&site, LOG_LEVEL_DEBUG, "quiet", "i=%d", i);
    }
    log_line(&site, LOG_LEVEL_INFO, "heard", "n=%d", 1);
    assert_string_equal(next_event(), "event=heard n=1\n");
}

static void *flood(void *owner)
{
    for (int i = 0; i < 100; i++) {
        log_line(owner, LOG_LEVEL_INFO, "flood", "i=%d", i);
    }
    return NULL;
}

/* Every line is either written or counted as left out, whichever thread asked for it. Under TSAN: no race. */
static void test_log_threads_share_one_place(void **state)
{
    (void)state;
    static struct log_site site;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, flood, &site), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    int lines = 0;
    int told = 0;
    for (const char *event = next_event(); event; event = next_event()) {
        const char *left_out = strstr(event, "left_out=");
        told += left_out ? (int)strtol(left_out + strlen("left_out="), NULL, 10) : 0;
        lines++;
    }
    assert_in_range(lines, LOG_RATE_LINES, 4 * LOG_RATE_LINES);
    assert_int_equal(lines + told + (int)site.left_out, 400);
}

static void test_log_keeps_errno(void **state)
{
    (void)state;
    close(STDERR_FILENO);
    errno = EDOM;
    log_info("lost", "n=%d", 1);
    assert_int_equal(errno, EDOM);
}

static void test_log_quote_escapes(void **state)
{
    (void)state;
    char out[64];
    assert_string_equal(log_quote("plain text = ok", out, sizeof(out)), "\"plain text = ok\"");
    assert_string_equal(log_quote("a\"b\\c\n\x7f\xc3", out, sizeof(out)), "\"a\\\"b\\\\c\\x0a\\x7f\\xc3\"");
    assert_string_equal(log_quote("", out, sizeof(out)), "\"\"");
    assert_string_equal(log_quote(NULL, out, sizeof(out)), "\"\"");
    assert_ptr_equal(log_quote("x", out, sizeof(out)), out);
}

static void test_log_quote_cuts_to_size(void **state)
{
    (void)state;
    char out[LOG_QUOTE_MIN_BYTES + 4];
    out[LOG_QUOTE_MIN_BYTES] = '#';
    assert_string_equal(log_quote("abcde", out, LOG_QUOTE_MIN_BYTES), "\"abcde\"");
    assert_string_equal(log_quote("abcdef", out, LOG_QUOTE_MIN_BYTES), "\"ab...\"");
    assert_string_equal(log_quote("\n\n\n", out, LOG_QUOTE_MIN_BYTES), "\"...\"");
    assert_int_equal(out[LOG_QUOTE_MIN_BYTES], '#');
    assert_string_equal(log_quote("a\n\n\n", out, sizeof(out)), "\"a\\x0a...\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_log_line_form_on_a_terminal, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_priorities_for_the_journal, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_level_filters, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_level_names_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_control_bytes_never_reach_the_output, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_long_line_is_cut_and_marked, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_rate_limit_for_one_place, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_hidden_lines_do_not_use_up_the_rate, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_threads_share_one_place, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_keeps_errno, setup, teardown),
        cmocka_unit_test(test_log_quote_escapes),
        cmocka_unit_test(test_log_quote_cuts_to_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
