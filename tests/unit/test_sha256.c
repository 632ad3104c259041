/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "sha256.h"

static void assert_digest(struct sha256 *hash, const char *expected)
{
    uint8_t digest[SHA256_BYTES];
    char text[2 * SHA256_BYTES + 1];
    sha256_final(hash, digest);
    for (int i = 0; i < SHA256_BYTES; i++) {
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    }
    assert_string_equal(text, expected);
}

static void assert_text_digest(const char *text, const char *expected)
{
    struct sha256 hash;
    sha256_init(&hash);
    sha256_update(&hash, text, strlen(text));
    assert_digest(&hash, expected);
}

/* The examples of FIPS 180-4 and of NIST's test vectors. */
static void test_sha256_of_published_examples(void **state)
{
    (void)state;
    assert_text_digest("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_text_digest("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_text_digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                       "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    assert_text_digest(
        "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmn"
        "opqrstnopqrstu",
        "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
}

static void test_sha256_of_a_million_letters(void **state)
{
    (void)state;
    char letters[1000];
    struct sha256 hash;
    memset(letters, 'a', sizeof(letters));
    sha256_init(&hash);
    for (int i = 0; i < 1000; i++) {
        sha256_update(&hash, letters, sizeof(letters));
    }
    assert_digest(&hash, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

/* However a message is cut, its digest is the same; lengths around one and two blocks, where the padding changes. */
static void test_sha256_does_not_depend_on_the_pieces(void **state)
{
    (void)state;
    uint8_t message[130];
    for (size_t i = 0; i < sizeof(message); i++) {
        message[i] = (uint8_t)(i * 7 + 1);
    }
    for (size_t size = 50; size <= sizeof(message); size++) {
        uint8_t whole[SHA256_BYTES];
        uint8_t pieces[SHA256_BYTES];
        struct sha256 hash;
        sha256_init(&hash);
        sha256_update(&hash, message, size);
        sha256_final(&hash, whole);
        sha256_init(&hash);
        for (size_t i = 0, step = 1; i < size; i += step, step = step % 5 + 1) {
            sha256_update(&hash, message + i, i + step < size ? step : size - i);
        }
        sha256_final(&hash, pieces);
        assert_memory_equal(whole, pieces, SHA256_BYTES);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sha256_of_published_examples),
        cmocka_unit_test(test_sha256_of_a_million_letters),
        cmocka_unit_test(test_sha256_does_not_depend_on_the_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
