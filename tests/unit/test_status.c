/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "status.h"

/* The numbers are gRPC's and stand in binaries of others: this list must never change, only grow. */
static void test_status_numbers_are_canonical(void **state)
{
    (void)state;
    static const char *const canonical[] = {
        "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
        "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
        "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
        "DATA_LOSS", "UNAUTHENTICATED"};
    for (size_t i = 0; i < sizeof(canonical) / sizeof(canonical[0]); i++) {
        assert_string_equal(status_name((enum mlacat_status)i), canonical[i]);
        assert_true(strlen(status_text((enum mlacat_status)i)) > 0);
    }
}

static void test_status_unknown_number_is_unknown(void **state)
{
    (void)state;
    const int numbers[] = {17, 99, -1, INT32_MAX};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        enum mlacat_status code = (enum mlacat_status)numbers[i];
        assert_string_equal(status_name(code), "UNKNOWN");
        assert_string_equal(status_text(code), status_text(MLACAT_UNKNOWN));
        assert_int_equal(status_scope(code), MLACAT_SCOPE_CALL);
        assert_string_equal(scope_name((enum mlacat_scope)numbers[i]), "UNKNOWN");
    }
}

static void test_status_scope_is_the_tables(void **state)
{
    (void)state;
    assert_int_equal(status_scope(MLACAT_OK), MLACAT_SCOPE_NONE);
    assert_int_equal(status_scope(MLACAT_INVALID_ARGUMENT), MLACAT_SCOPE_CALL);
    assert_int_equal(status_scope(MLACAT_DATA_LOSS), MLACAT_SCOPE_SESSION);
    assert_string_equal(scope_name(MLACAT_SCOPE_NONE), "NONE");
    assert_string_equal(scope_name(MLACAT_SCOPE_SESSION), "SESSION");
    assert_string_equal(scope_name(MLACAT_SCOPE_DEVICE), "DEVICE");
}

static void test_status_error_set_fills_and_returns_the_code(void **state)
{
    (void)state;
    struct error err = {0};
    assert_int_equal(error_set(&err, MLACAT_NOT_FOUND, "buffer %d is gone", 7), MLACAT_NOT_FOUND);
    assert_int_equal(err.code, MLACAT_NOT_FOUND);
    assert_int_equal(err.scope, MLACAT_SCOPE_CALL);
    assert_string_equal(err.message, "buffer 7 is gone");

    assert_int_equal(error_set_scoped(&err, MLACAT_NOT_FOUND, MLACAT_SCOPE_SESSION, "no %s", "frame"),
                     MLACAT_NOT_FOUND);
    assert_int_equal(err.scope, MLACAT_SCOPE_SESSION);
    assert_string_equal(err.message, "no frame");
}

static void test_status_error_set_takes_its_own_message(void **state)
{
    (void)state;
    struct error err = {0};
    error_set(&err, MLACAT_INTERNAL, "disk full");
    error_set(&err, MLACAT_UNAVAILABLE, "start: %s", err.message);
    assert_string_equal(err.message, "start: disk full");
}

static void test_status_long_message_is_cut(void **state)
{
    (void)state;
    struct error err = {0};
    char text[2 * ERROR_MESSAGE_BYTES];
    memset(text, 'a', sizeof(text));
    text[ERROR_MESSAGE_BYTES - 1] = '\0';
    error_set(&err, MLACAT_INTERNAL, "%s", text);
    assert_int_equal(strlen(err.message), ERROR_MESSAGE_BYTES - 1);
    text[ERROR_MESSAGE_BYTES - 1] = 'a';
    text[sizeof(text) - 1] = '\0';
    error_set(&err, MLACAT_INTERNAL, "%s", text);
    assert_int_equal(strlen(err.message), ERROR_MESSAGE_BYTES - 1);
}

/* Each character length, shifted so that the cut falls on every one of its bytes. */
static void test_status_cut_keeps_characters_whole(void **state)
{
    (void)state;
    static const char *const characters[] = {"\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80"};
    for (size_t c = 0; c < 3; c++) {
        size_t length = strlen(characters[c]);
        for (size_t shift = 0; shift < length; shift++) {
            char text[2 * ERROR_MESSAGE_BYTES] = "";
            memset(text, 'a', shift);
            for (size_t at = shift; at + length < sizeof(text); at += length) {
                memcpy(text + at, characters[c], length + 1);
            }
            struct error err = {0};
            error_set(&err, MLACAT_INTERNAL, "%s", text);
            size_t cut = strlen(err.message);
            assert_int_equal((cut - shift) % length, 0);
            assert_true(cut < ERROR_MESSAGE_BYTES && cut + length >= ERROR_MESSAGE_BYTES);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_status_numbers_are_canonical),
        cmocka_unit_test(test_status_unknown_number_is_unknown),
        cmocka_unit_test(test_status_scope_is_the_tables),
        cmocka_unit_test(test_status_error_set_fills_and_returns_the_code),
        cmocka_unit_test(test_status_error_set_takes_its_own_message),
        cmocka_unit_test(test_status_long_message_is_cut),
        cmocka_unit_test(test_status_cut_keeps_characters_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
