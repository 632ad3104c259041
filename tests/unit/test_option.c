/* SPDX-License-Identifier: Apache-2.0 */
#include <grp.h>
#include <pwd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "option.h"

static struct config config;
static struct config before;
static struct error err;

static int setup(void **state)
{
    (void)state;
    memset(&config, 0, sizeof(config));
    memset(&err, 0, sizeof(err));
    return 0;
}

static enum mlacat_status set(enum option_number number, const char *text)
{
    return option_set(&config, (int)number, text, "here", &err);
}

static void assert_message_has(const char *part)
{
    if (!strstr(err.message, part)) {
        fail_msg("\"%s\" is not in \"%s\"", part, err.message);
    }
}

static void test_option_find_by_exact_name(void **state)
{
    (void)state;
    for (int i = 0; i < OPTIONS_NR; i++) {
        assert_int_equal(option_find(option_rows[i].name), i);
    }
    assert_int_equal(option_find("max_client"), -1);
    assert_int_equal(option_find("max-clients"), -1);
    assert_int_equal(option_find(""), -1);
}

static void test_option_every_default_is_valid(void **state)
{
    (void)state;
    for (int i = 0; i < OPTIONS_NR; i++) {
        assert_int_equal(set((enum option_number)i, option_rows[i].value), MLACAT_OK);
        assert_string_equal(config.text[i], option_rows[i].value);
        assert_string_equal(config.source[i], "here");
    }
}

/* Every UINT row at its limits and one past them; 0 - 1 is the largest number of 64 bits. */
static void test_option_numbers_at_their_limits(void **state)
{
    (void)state;
    for (int i = 0; i < OPTIONS_NR; i++) {
        const struct option_row *row = &option_rows[i];
        if (row->type != OPTION_UINT) {
            continue;
        }
        const struct {
            uint64_t value;
            enum mlacat_status status;
        } cases[] = {{row->minimum, MLACAT_OK},
                     {row->maximum, MLACAT_OK},
                     {row->maximum + 1, MLACAT_INVALID_ARGUMENT},
                     {(UINT64_C(1) << 32) + row->minimum, MLACAT_INVALID_ARGUMENT},
                     {row->minimum - 1, MLACAT_INVALID_ARGUMENT}};
        for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
            char text[32];
            uint32_t stored;
            setup(NULL);
            snprintf(text, sizeof(text), "%ju", (uintmax_t)cases[c].value);
            assert_int_equal(set((enum option_number)i, text), cases[c].status);
            memcpy(&stored, (const char *)&config + row->offset, sizeof(stored));
            assert_int_equal(stored, cases[c].status == MLACAT_OK ? cases[c].value : 0);
        }
    }
}

static void test_option_bad_values_are_refused(void **state)
{
    (void)state;
    static const struct {
        enum option_number number;
        const char *text;
        const char *allowed;
    } cases[] = {
        {OPTION_max_clients, "", "1 to 254"},
        {OPTION_max_clients, "abc", "1 to 254"},
        {OPTION_max_clients, "5x", "1 to 254"},
        {OPTION_max_clients, "-1", "1 to 254"},
        {OPTION_max_clients, "+5", "1 to 254"},
        {OPTION_max_clients, " 5", "1 to 254"},
        {OPTION_max_clients, "0x10", "1 to 254"},
        {OPTION_max_clients, "99999999999999999999999", "1 to 254"},
        {OPTION_socket_mode, "0778", "0 to 0777"},
        {OPTION_socket_mode, "01000", "0 to 0777"},
        {OPTION_socket_mode, "9", "0 to 0777"},
        {OPTION_socket_mode, "rw", "0 to 0777"},
        {OPTION_max_mapped, "4095", "4096"},
        {OPTION_max_mapped, "64kib", "KiB, MiB, GiB or TiB"},
        {OPTION_max_mapped, "1G", "KiB, MiB, GiB or TiB"},
        {OPTION_max_mapped, "GiB", "KiB, MiB, GiB or TiB"},
        {OPTION_max_mapped, "16777216TiB", "18446744073709551615"},
        {OPTION_max_mapped, "16777217TiB", "18446744073709551615"},
        {OPTION_max_mapped, "18446744073709551616", "18446744073709551615"},
        {OPTION_poll, "fast", "spin|balanced|sleep"},
        {OPTION_poll, "spin|balanced", "spin|balanced|sleep"},
        {OPTION_poll, "", "spin|balanced|sleep"},
        {OPTION_poll, "spi", "spin|balanced|sleep"},
        {OPTION_poll, "sleep:", "spin|balanced|sleep"},
        {OPTION_device, "", "0 bytes long; 1 to 175 are allowed"},
        {OPTION_log_level, "INFO", "error|warning|info|debug"},
        {OPTION_allow_uids, "no-such-user-here", "no user \"no-such-user-here\""},
        {OPTION_allow_uids, "0,,1", "no user \"\""},
        {OPTION_allow_uids, "0,", "no user \"\""},
        {OPTION_allow_uids, "root x", "no user \"root x\""},
        {OPTION_allow_uids, "4294967295", "no user"},
        {OPTION_allow_uids, "4294967296", "no user"},
        {OPTION_allow_gids, "no-such-group-here", "no group \"no-such-group-here\""},
        {OPTION_socket, "/a;b", "';', '#' and control characters"},
        {OPTION_socket, "/a\nb", "';', '#' and control characters"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char named[64];
        setup(NULL);
        assert_int_equal(set(cases[i].number, cases[i].text), MLACAT_INVALID_ARGUMENT);
        assert_int_equal(err.code, MLACAT_INVALID_ARGUMENT);
        snprintf(named, sizeof(named), "here: %s = \"", option_rows[cases[i].number].name);
        assert_memory_equal(err.message, named, strlen(named));
        assert_message_has(cases[i].allowed);
    }
}

static void test_option_octal(void **state)
{
    (void)state;
    assert_int_equal(set(OPTION_socket_mode, "0600"), MLACAT_OK);
    assert_int_equal(config.socket_mode, 0600);
    assert_int_equal(set(OPTION_socket_mode, "777"), MLACAT_OK);
    assert_int_equal(config.socket_mode, 0777);
    assert_int_equal(set(OPTION_socket_mode, "0"), MLACAT_OK);
    assert_int_equal(config.socket_mode, 0);
}

static void test_option_bytes_units(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {{"4096", 4096},
                 {"4KiB", 4096},
                 {"3MiB", UINT64_C(3) << 20},
                 {"2GiB", UINT64_C(2) << 30},
                 {"16777215TiB", UINT64_C(16777215) << 40},
                 {"18446744073709551615", UINT64_MAX}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(set(OPTION_max_mapped, cases[i].text), MLACAT_OK);
        assert_true(config.max_mapped == cases[i].bytes);
    }
}

static void test_option_words_are_their_enums(void **state)
{
    (void)state;
    static const char *const polls[] = {"spin", "balanced", "sleep"};
    for (int i = CONFIG_POLL_SPIN; i <= CONFIG_POLL_SLEEP; i++) {
        assert_int_equal(set(OPTION_poll, polls[i]), MLACAT_OK);
        assert_int_equal(config.poll, i);
    }
    for (int i = LOG_LEVEL_ERROR; i <= LOG_LEVEL_DEBUG; i++) {
        assert_int_equal(set(OPTION_log_level, log_level_name((enum log_level)i)), MLACAT_OK);
        assert_int_equal(config.log_level, i);
    }
    assert_int_equal(set(OPTION_device, "host"), MLACAT_OK);
    assert_string_equal(config.device, "host");
}

static void test_option_string_fills_its_member(void **state)
{
    (void)state;
    char path[109];
    memset(path, 'x', sizeof(path));
    path[107] = '\0';
    assert_int_equal(set(OPTION_socket, path), MLACAT_OK);
    assert_string_equal(config.socket, path);
    path[107] = 'x';
    path[108] = '\0';
    assert_int_equal(set(OPTION_socket, path), MLACAT_INVALID_ARGUMENT);
    assert_message_has("108 bytes long; 0 to 107 are allowed");
}

static void test_option_ids_by_name_and_number(void **state)
{
    (void)state;
    const struct passwd *user = getpwuid(0);
    const struct group *group = getgrgid(0);
    char text[128];
    if (!user || !group) {
        print_message("uid 0 or gid 0 has no name on this machine\n");
        skip();
    }
    snprintf(text, sizeof(text), "%s, 1000 ,4294967294", user->pw_name);
    assert_int_equal(set(OPTION_allow_uids, text), MLACAT_OK);
    assert_int_equal(set(OPTION_allow_gids, group->gr_name), MLACAT_OK);
    assert_int_equal(config.allow.uids_nr, 3);
    assert_int_equal(config.allow.uids[0], 0);
    assert_int_equal(config.allow.uids[1], 1000);
    assert_int_equal(config.allow.uids[2], 4294967294);
    assert_int_equal(config.allow.gids_nr, 1);
    assert_int_equal(config.allow.gids[0], 0);
    assert_int_equal(set(OPTION_allow_uids, ""), MLACAT_OK);
    assert_int_equal(config.allow.uids_nr, 0);
    assert_int_equal(config.allow.gids_nr, 1);
}

static void test_option_ids_at_most_sixty_four(void **state)
{
    (void)state;
    char text[2 * ALLOW_MAX + 2];
    for (size_t i = 0; i < sizeof(text); i++) {
        text[i] = i % 2 ? ',' : '1';
    }
    text[2 * ALLOW_MAX + 1] = '\0'; /* one more than allowed */
    assert_int_equal(set(OPTION_allow_gids, text), MLACAT_INVALID_ARGUMENT);
    assert_message_has("more than 64 groups");
    text[2 * ALLOW_MAX - 1] = '\0';
    assert_int_equal(set(OPTION_allow_gids, text), MLACAT_OK);
    assert_int_equal(config.allow.gids_nr, ALLOW_MAX);
}

static void test_option_text_that_is_too_long_is_refused(void **state)
{
    (void)state;
    char text[CONFIG_TEXT_BYTES + 1];
    memset(text, '1', sizeof(text));
    text[CONFIG_TEXT_BYTES] = '\0';
    assert_int_equal(set(OPTION_allow_uids, text), MLACAT_INVALID_ARGUMENT);
    assert_message_has("longer than 175 bytes");
}

static void test_option_error_changes_nothing(void **state)
{
    (void)state;
    assert_int_equal(set(OPTION_allow_uids, "7"), MLACAT_OK);
    before = config;
    assert_int_equal(set(OPTION_allow_uids, "8,no-such-user-here"), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(set(OPTION_socket, "/a\n"), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(set(OPTION_max_mapped, "16777216TiB"), MLACAT_INVALID_ARGUMENT);
    assert_memory_equal(&config, &before, sizeof(config));
}

/* Users and groups share one member, so copying one must leave the other. */
static void test_option_copy_moves_one_option(void **state)
{
    (void)state;
    static struct config to;
    assert_int_equal(set(OPTION_allow_uids, "1,2"), MLACAT_OK);
    assert_int_equal(set(OPTION_allow_gids, "3"), MLACAT_OK);
    assert_int_equal(set(OPTION_max_mapped, "1MiB"), MLACAT_OK);
    option_copy(&to, &config, OPTION_allow_uids);
    assert_int_equal(to.allow.uids_nr, 2);
    assert_int_equal(to.allow.uids[1], 2);
    assert_int_equal(to.allow.gids_nr, 0);
    assert_string_equal(to.text[OPTION_allow_uids], "1,2");
    assert_string_equal(to.source[OPTION_allow_uids], "here");
    option_copy(&to, &config, OPTION_allow_gids);
    option_copy(&to, &config, OPTION_max_mapped);
    assert_memory_equal(&to, &config, sizeof(to));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_option_find_by_exact_name, setup),
        cmocka_unit_test_setup(test_option_every_default_is_valid, setup),
        cmocka_unit_test_setup(test_option_numbers_at_their_limits, setup),
        cmocka_unit_test_setup(test_option_bad_values_are_refused, setup),
        cmocka_unit_test_setup(test_option_octal, setup),
        cmocka_unit_test_setup(test_option_bytes_units, setup),
        cmocka_unit_test_setup(test_option_words_are_their_enums, setup),
        cmocka_unit_test_setup(test_option_string_fills_its_member, setup),
        cmocka_unit_test_setup(test_option_ids_by_name_and_number, setup),
        cmocka_unit_test_setup(test_option_ids_at_most_sixty_four, setup),
        cmocka_unit_test_setup(test_option_text_that_is_too_long_is_refused, setup),
        cmocka_unit_test_setup(test_option_error_changes_nothing, setup),
        cmocka_unit_test_setup(test_option_copy_moves_one_option, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
