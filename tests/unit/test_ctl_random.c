/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"
#include "random.h"

#define BYTES 100003u

static uint8_t *make(uint64_t seed, enum mlacat_dtype dtype, size_t bytes)
{
    uint8_t *data = malloc(bytes);

    assert_non_null(data);
    random_fill(seed, dtype, data, bytes);
    return data;
}

/* Exponent and fraction of each dtype tell NaN, infinity and denormal. */
struct format {
    enum mlacat_dtype dtype;
    int exponent_bits, fraction_bits;
    int infinities;
};

static const struct format formats[] = {
    {MLACAT_DTYPE_BF16, 8, 7, 1},     {MLACAT_DTYPE_FP16, 5, 10, 1}, {MLACAT_DTYPE_FP8_E4M3, 4, 3, 0},
    {MLACAT_DTYPE_FP8_E5M2, 5, 2, 1}, {MLACAT_DTYPE_FP32, 8, 23, 1},
};

struct found {
    int nan, infinity, denormal, minus_zero;
};

static void classify(const struct format *format, uint32_t bits, struct found *found)
{
    uint32_t fraction_max = (1u << format->fraction_bits) - 1;
    uint32_t exponent_max = (1u << format->exponent_bits) - 1;
    uint32_t fraction = bits & fraction_max;
    uint32_t exponent = (bits >> format->fraction_bits) & exponent_max;
    uint32_t sign = bits >> (format->fraction_bits + format->exponent_bits);

    /* e4m3 gives the largest exponent to numbers, but for the fraction of all ones: NaN. */
    if (exponent == exponent_max)
        found->nan += format->infinities ? fraction != 0 : fraction == fraction_max;
    if (exponent == exponent_max && fraction == 0)
        found->infinity += format->infinities;
    found->denormal += exponent == 0 && fraction != 0;
    found->minus_zero += exponent == 0 && fraction == 0 && sign == 1;
}

static void test_ctl_random_has_every_kind_of_number_in_one_row(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
        size_t element = names_dtype_bytes(formats[i].dtype);
        uint8_t *data = make(5, formats[i].dtype, 128 * element);
        struct found found = {0};

        for (size_t e = 0; e < 128; e++) {
            uint32_t bits = 0;

            for (size_t b = 0; b < element; b++)
                bits |= (uint32_t)data[e * element + b] << (8 * b);
            classify(&formats[i], bits, &found);
        }
        assert_true(found.nan >= 3);
        assert_true(found.denormal >= 2);
        assert_true(found.minus_zero >= 1);
        assert_true(!formats[i].infinities || found.infinity >= 2);
        free(data);
    }
}

static void test_ctl_random_follows_from_seed_and_position(void **state)
{
    uint8_t *data = make(1, MLACAT_DTYPE_BF16, BYTES);
    uint8_t *same = make(1, MLACAT_DTYPE_BF16, BYTES - 40000);
    uint8_t *other = make(2, MLACAT_DTYPE_BF16, BYTES);
    size_t equal = 0;

    (void)state;
    assert_memory_equal(data, same, BYTES - 40000);
    for (size_t i = 0; i < BYTES; i++)
        equal += data[i] == other[i];
    /* The specials and chance, no more. */
    assert_true(equal < BYTES / 8);
    free(data);
    free(same);
    free(other);
}

static void test_ctl_random_rows_differ(void **state)
{
    uint8_t *data = make(1, MLACAT_DTYPE_FP8_E4M3, BYTES);

    (void)state;
    for (size_t row = 1; row < BYTES / 64; row++)
        assert_memory_not_equal(data, data + 64 * row, 64);
    free(data);
}

static void test_ctl_random_sees_a_changed_byte(void **state)
{
    static const size_t places[] = {0, 7, 32767, 32768, 98304, BYTES - 1};
    uint8_t *data = make(9, MLACAT_DTYPE_FP32, BYTES);
    size_t offset = 0;
    uint8_t expected = 0;

    (void)state;
    assert_true(random_unchanged(9, MLACAT_DTYPE_FP32, data, BYTES, &offset, &expected));
    assert_true(random_unchanged(9, MLACAT_DTYPE_FP32, data, 0, &offset, &expected));
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        data[places[i]] ^= 0x80;
        assert_false(random_unchanged(9, MLACAT_DTYPE_FP32, data, BYTES, &offset, &expected));
        assert_int_equal(offset, places[i]);
        assert_int_equal(expected, data[places[i]] ^ 0x80);
        data[places[i]] ^= 0x80;
    }
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ctl_random_has_every_kind_of_number_in_one_row),
        cmocka_unit_test(test_ctl_random_follows_from_seed_and_position),
        cmocka_unit_test(test_ctl_random_rows_differ),
        cmocka_unit_test(test_ctl_random_sees_a_changed_byte),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
