/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "options.h"

static struct ctl_options options;
static char error[CTL_ERROR_BYTES];

#define PARSE(...) parse((char *const[]){"mlacatctl", __VA_ARGS__, NULL})

static bool parse(char *const *argv)
{
    int argc = 0;

    while (argv[argc])
        argc++;
    return options_parse(argc, argv, &options, error);
}

static void assert_refused(bool parsed, const char *part)
{
    assert_false(parsed);
    if (!strstr(error, part))
        fail_msg("\"%s\" does not name \"%s\"", error, part);
}

static void test_ctl_options_defaults(void **state)
{
    (void)state;
    assert_true(PARSE("run", "concat_mla_k"));
    assert_int_equal(options.command, CTL_RUN);
    assert_int_equal(options.op, MLACAT_OP_CONCAT_MLA_K);
    assert_int_equal(options.dtype, MLACAT_DTYPE_BF16);
    assert_int_equal(options.heads, 128);
    assert_int_equal(options.tokens.nr, 0);
    assert_int_equal(options.repeat, 0);
    assert_null(options.socket);
    assert_false(options.verify);
    assert_true(PARSE("drain"));
    assert_true(options.wait_s < 0);
}

static void test_ctl_options_time_limit_is_the_commands(void **state)
{
    (void)state;
    assert_true(PARSE("ping"));
    assert_int_equal(options.timeout_ms, 1000);
    assert_false(options.alive);
    assert_true(PARSE("stats"));
    assert_int_equal(options.timeout_ms, 10000);
    assert_true(PARSE("drain", "--wait", "60"));
    assert_int_equal(options.timeout_ms, 10000);
    assert_true(PARSE("soak"));
    assert_int_equal(options.timeout_ms, 0);
    assert_true(PARSE("run", "models"));
    assert_int_equal(options.timeout_ms, 0);
    assert_true(PARSE("run", "models", "--timeout", "7"));
    assert_int_equal(options.timeout_ms, 7);
    assert_true(PARSE("ping", "--alive", "--timeout=7"));
    assert_int_equal(options.timeout_ms, 7);
    assert_true(options.alive);
    assert_refused(PARSE("info", "--alive"), "--alive is not an option of info");
    assert_refused(PARSE("info", "--timeout", "0"), "from 1");
}

static void test_ctl_options_takes_values_in_both_forms_and_any_place(void **state)
{
    (void)state;
    assert_true(PARSE("--socket=/run/x", "run", "--tokens", "0", "concat_mla_k", "--heads=12", "--dtype", "fp8_e4m3",
                      "--verify", "--strided", "--json", "--seed", "18446744073709551615"));
    assert_string_equal(options.socket, "/run/x");
    assert_int_equal(options.tokens.nr, 1);
    assert_int_equal(options.tokens.value[0], 0);
    assert_int_equal(options.heads, 12);
    assert_int_equal(options.dtype, MLACAT_DTYPE_FP8_E4M3);
    assert_true(options.verify && options.strided && options.json);
    assert_true(options.seed == UINT64_MAX);
    assert_true(PARSE("drain", "--wait", "2.5"));
    assert_true(options.wait_s > 2.49 && options.wait_s < 2.51);
}

static void test_ctl_options_lists(void **state)
{
    (void)state;
    assert_true(PARSE("run", "models", "--tokens", "1,128,4096"));
    assert_true(options.models);
    assert_int_equal(options.tokens.nr, 3);
    assert_int_equal(options.tokens.value[2], 4096);
    assert_refused(PARSE("run", "models", "--tokens", "1,,2"), "1,,2");
    assert_refused(PARSE("run", "models", "--tokens", "1,"), "1,");
    assert_refused(PARSE("run", "models", "--tokens", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17"), "1 to 16");
    assert_refused(PARSE("run", "concat_mla_k", "--tokens", "1,2"), "one number");
}

static void test_ctl_options_numbers_at_their_edges(void **state)
{
    (void)state;
    assert_true(PARSE("run", "concat_mla_k", "--heads", "2147483648"));
    assert_refused(PARSE("run", "concat_mla_k", "--heads", "2147483649"), "2147483649");
    assert_refused(PARSE("run", "concat_mla_k", "--heads", "-1"), "\"-1\"");
    assert_refused(PARSE("run", "concat_mla_k", "--heads", "+1"), "\"+1\"");
    assert_refused(PARSE("run", "concat_mla_k", "--heads", "1x"), "\"1x\"");
    assert_refused(PARSE("run", "concat_mla_k", "--heads", ""), "--heads");
    assert_refused(PARSE("run", "concat_mla_k", "--repeat", "0"), "from 1");
    assert_refused(PARSE("run", "concat_mla_k", "--seed", "18446744073709551616"), "--seed");
    assert_refused(PARSE("bench", "--seconds", "nan"), "nan");
    assert_refused(PARSE("bench", "--seconds", "-1"), "-1");
    assert_refused(PARSE("bench", "--seconds", "1s"), "1s");
}

static void test_ctl_options_refuses_what_does_not_belong(void **state)
{
    (void)state;
    assert_refused(PARSE("run", "concat_mla_k", "--dim0", "3"), "--dim0");
    assert_refused(PARSE("run", "concat_mla_absorb_q", "--heads", "3"), "--heads");
    assert_refused(PARSE("run", "models", "--dtype", "bf16"), "--dtype");
    assert_refused(PARSE("ping", "--verify"), "--verify is not an option of ping");
    assert_refused(PARSE("ping", "again"), "\"again\"");
    assert_refused(PARSE("run", "concat_mla_k", "models"), "\"models\"");
    assert_refused(PARSE("run", "concat_mla_v"), "concat_mla_absorb_q");
    assert_refused(PARSE("run"), "needs an argument");
    assert_refused(PARSE("log-level", "loud"), "debug");
    assert_refused(PARSE("run", "concat_mla_k", "--dtype", "fp7"), "fp8_e4m3");
    assert_refused(PARSE("pong"), "\"pong\"");
    assert_refused(PARSE("ping", "--sock", "/x"), "--sock");
    assert_refused(PARSE("ping", "-s"), "-s");
    assert_refused(PARSE("ping", "--socket"), "PATH");
    assert_refused(PARSE("ping", "--socket="), "--socket");
    assert_refused(PARSE("ping", "--json=yes"), "takes no value");
    assert_refused(PARSE("--json"), "no command");
}

static void test_ctl_options_help_needs_nothing_else(void **state)
{
    (void)state;
    assert_true(PARSE("--help"));
    assert_true(options.help);
    assert_true(PARSE("run", "-h"));
    assert_int_equal(options.command, CTL_RUN);
    assert_true(PARSE("--version"));
    assert_true(options.version);
}

static char *help_of(enum ctl_command command)
{
    static char text[8192];
    FILE *out = fmemopen(text, sizeof(text), "w");

    assert_non_null(out);
    options_help(out, command);
    fclose(out);
    return text;
}

static void test_ctl_options_help_lists_what_is_taken(void **state)
{
    (void)state;
    assert_non_null(strstr(help_of(CTL_NONE), "log-level"));
    assert_non_null(strstr(help_of(CTL_NONE), "--timeout MS"));
    assert_null(strstr(help_of(CTL_NONE), "--alive"));
    assert_non_null(strstr(help_of(CTL_RUN), "--dim0 D0"));
    assert_null(strstr(help_of(CTL_PING), "--dim0"));
    assert_non_null(strstr(help_of(CTL_PING), "--timeout MS"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ctl_options_defaults),
        cmocka_unit_test(test_ctl_options_time_limit_is_the_commands),
        cmocka_unit_test(test_ctl_options_takes_values_in_both_forms_and_any_place),
        cmocka_unit_test(test_ctl_options_lists),
        cmocka_unit_test(test_ctl_options_numbers_at_their_edges),
        cmocka_unit_test(test_ctl_options_refuses_what_does_not_belong),
        cmocka_unit_test(test_ctl_options_help_needs_nothing_else),
        cmocka_unit_test(test_ctl_options_help_lists_what_is_taken),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
