/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "jit_cache.h"
#include "jit_folder.h"

#define WRITERS 3
#define ROUNDS 60

static struct jit_cache cache;
static struct jit_cache_key key;
static char code[] = "machine code";

static int set_up(void **state)
{
    (void)state;
    jit_folder_make();
    jit_cache_open(&cache, jit_folder_path());
    key = (struct jit_cache_key){.arch = "sm_90", .nvrtc_version = 13000};
    for (int i = 0; i < SHA256_BYTES; i++) {
        key.text[i] = (uint8_t)(i * 5);
    }
    return cache.open ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    jit_cache_close(&cache);
    jit_folder_remove();
    return 0;
}

static void write_entry(void)
{
    struct jit_cache_image image = {.bytes = code, .bytes_nr = sizeof(code)};
    assert_true(jit_cache_write(&cache, &key, &image));
    assert_int_equal(jit_folder_count(".kernel"), 1);
}

static void assert_missing(void)
{
    struct jit_cache_image image;
    assert_false(jit_cache_read(&cache, &key, &image));
}

static void test_jit_cache_gives_back_what_was_written(void **state)
{
    (void)state;
    struct jit_cache_image image;
    assert_missing();
    write_entry();
    assert_int_equal(jit_folder_count(""), 1); /* and no temporary file beside it */
    assert_true(jit_cache_read(&cache, &key, &image));
    assert_int_equal(image.bytes_nr, sizeof(code));
    assert_memory_equal(image.bytes, code, sizeof(code));
    assert_false(image.ptx);
    assert_int_equal(image.nvrtc_version, 13000);
    free(image.bytes);
    jit_cache_remove(&cache, &key);
    assert_missing();
    assert_int_equal(jit_folder_count(""), 0);
}

static void test_jit_cache_tells_every_part_of_the_key_apart(void **state)
{
    (void)state;
    struct jit_cache_key first = key;
    write_entry();
    key.arch = "sm_90a";
    assert_missing();
    key = first;
    key.nvrtc_version = 12080;
    assert_missing();
    key = first;
    key.text[0] ^= 1;
    assert_missing();
    key = first;
    key.text[SHA256_BYTES - 1] ^= 1; /* not in the name, but in the header: as good as broken */
    assert_missing();
}

static void test_jit_cache_removes_a_broken_entry(void **state)
{
    (void)state;
    static const long offsets[] = {0, 8, 12, 16, 24, 40, 72, -1};
    for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
        write_entry();
        jit_folder_damage(jit_folder_entry(), offsets[i]);
        assert_missing();
        assert_int_equal(jit_folder_count(""), 0);
    }
}

static void test_jit_cache_removes_an_entry_of_wrong_size(void **state)
{
    (void)state;
    static const int changes[] = {-1, 1, -1000, 1000};
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        struct stat st;
        write_entry();
        assert_int_equal(stat(jit_folder_file(jit_folder_entry()), &st), 0);
        off_t size = st.st_size + changes[i];
        assert_int_equal(truncate(jit_folder_file(jit_folder_entry()), size < 0 ? 0 : size), 0);
        assert_missing();
        assert_int_equal(jit_folder_count(""), 0);
    }
}

static void test_jit_cache_mistrusts_what_others_can_write(void **state)
{
    (void)state;
    write_entry();
    assert_int_equal(chmod(jit_folder_file(jit_folder_entry()), 0664), 0);
    assert_missing();
    write_entry();
    assert_int_equal(chmod(jit_folder_file(jit_folder_entry()), 0602), 0);
    assert_missing();
    if (geteuid() == 0) {
        write_entry();
        assert_int_equal(chown(jit_folder_file(jit_folder_entry()), 12345, 12345), 0);
        assert_missing();
    }
}

static void test_jit_cache_takes_no_link_and_no_pipe(void **state)
{
    (void)state;
    char name[256];
    char kept[300];
    write_entry();
    snprintf(name, sizeof(name), "%s", jit_folder_entry());
    snprintf(kept, sizeof(kept), "%s", jit_folder_file("kept"));
    assert_int_equal(rename(jit_folder_file(name), kept), 0);
    assert_int_equal(symlink(kept, jit_folder_file(name)), 0);
    assert_missing();
    assert_int_equal(mkfifo(jit_folder_file(name), 0600), 0);
    assert_missing(); /* and does not wait for a writer */
}

static void test_jit_cache_without_nvrtc_takes_the_newest(void **state)
{
    (void)state;
    static const uint32_t versions[] = {12080, 13000, 12090};
    struct jit_cache_image image;
    for (size_t i = 0; i < 3; i++) {
        struct jit_cache_image written = {.bytes = code, .bytes_nr = sizeof(code), .ptx = true};
        key.nvrtc_version = versions[i];
        assert_true(jit_cache_write(&cache, &key, &written));
    }
    key.nvrtc_version = 0;
    assert_true(jit_cache_read(&cache, &key, &image));
    assert_int_equal(image.nvrtc_version, 13000);
    assert_true(image.ptx);
    free(image.bytes);
    char newest[] = "concat_mla-sm_90-00050a0f14191e23282d32373c41464b-13000.kernel";
    jit_folder_damage(newest, -1);
    assert_true(jit_cache_read(&cache, &key, &image)); /* the newest is broken: the one before it */
    assert_int_equal(image.nvrtc_version, 12090);
    free(image.bytes);
}

static void test_jit_cache_in_a_folder_that_cannot_be_written(void **state)
{
    (void)state;
    struct jit_cache_image image = {.bytes = code, .bytes_nr = sizeof(code)};
    write_entry();
    jit_cache_close(&cache);
    /* Root may write everywhere but in /proc. */
    if (geteuid() == 0) {
        jit_cache_open(&cache, "/proc/self");
    } else {
        assert_int_equal(chmod(jit_folder_path(), 0500), 0);
        jit_cache_open(&cache, jit_folder_path());
        assert_true(jit_cache_read(&cache, &key, &image));
        free(image.bytes);
        image.bytes = code;
    }
    assert_true(cache.open);
    assert_false(jit_cache_write(&cache, &key, &image));
    assert_non_null(strstr(cache.reason, "cannot make a file"));
}

/* A file may have so few bytes that the rest of the entry finds no room. */
static void test_jit_cache_on_a_full_disk_leaves_nothing(void **state)
{
    (void)state;
    static char large[4096];
    const struct jit_cache_image image = {.bytes = large, .bytes_nr = sizeof(large)};
    struct jit_cache_key other = key;
    struct rlimit before;
    write_entry();
    other.nvrtc_version++;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    struct rlimit full = {.rlim_cur = 1024, .rlim_max = before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &full), 0);
    bool written = jit_cache_write(&cache, &other, &image);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_false(written);
    assert_non_null(strstr(cache.reason, "File too large"));
    assert_int_equal(jit_folder_count(""), 1);            /* what was there before */
    assert_true(jit_cache_write(&cache, &other, &image)); /* there is room again */
    assert_int_equal(jit_folder_count(""), 2);
}

static void test_jit_cache_without_a_folder_is_empty(void **state)
{
    (void)state;
    struct jit_cache_image image = {.bytes = code, .bytes_nr = sizeof(code)};
    jit_cache_close(&cache);
    jit_folder_write("file", "", 0);
    jit_cache_open(&cache, jit_folder_file("file"));
    assert_false(cache.open);
    assert_non_null(strstr(cache.reason, strerror(ENOTDIR)));
    jit_cache_open(&cache, "");
    assert_false(cache.open);
    assert_false(jit_cache_write(&cache, &key, &image));
    assert_missing();
    jit_cache_remove(&cache, &key);
    jit_cache_close(&cache);
}

static void assert_folder(const char *expected)
{
    jit_cache_close(&cache);
    jit_cache_open(&cache, NULL);
    assert_string_equal(cache.folder, expected);
}

static void test_jit_cache_folder_from_the_environment(void **state)
{
    (void)state;
    char home[300];
    char below[320];
    snprintf(home, sizeof(home), "%s", jit_folder_file("home"));
    assert_int_equal(mkdir(home, 0700), 0);
    assert_int_equal(setenv("HOME", home, 1), 0);
    unsetenv("XDG_CACHE_HOME");
    unsetenv("CACHE_DIRECTORY");
    snprintf(below, sizeof(below), "%s/.cache/mlacat", home);
    assert_folder(below);
    assert_true(cache.open);
    setenv("XDG_CACHE_HOME", "relative", 1);
    assert_folder(below);
    setenv("XDG_CACHE_HOME", home, 1);
    snprintf(below, sizeof(below), "%s/mlacat", home);
    assert_folder(below);
    snprintf(below, sizeof(below), "%s:/elsewhere", jit_folder_path());
    setenv("CACHE_DIRECTORY", below, 1);
    assert_folder(jit_folder_path());
    unsetenv("CACHE_DIRECTORY");
    unsetenv("XDG_CACHE_HOME");
    setenv("HOME", "", 1);
    assert_folder("");
    assert_non_null(strstr(cache.reason, "$XDG_CACHE_HOME"));
    static const char *const made[] = {"home/.cache/mlacat", "home/.cache", "home/mlacat"};
    for (size_t i = 0; i < sizeof(made) / sizeof(made[0]); i++) {
        assert_int_equal(rmdir(jit_folder_file(made[i])), 0);
    }
}

static void test_jit_cache_removes_what_a_dead_writer_left(void **state)
{
    (void)state;
    struct timespec old[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    jit_folder_write(".new-0123", "x", 1);
    jit_folder_write(".new-4567", "x", 1);
    assert_int_equal(utimensat(AT_FDCWD, jit_folder_file(".new-0123"), old, 0), 0);
    jit_cache_close(&cache);
    jit_cache_open(&cache, jit_folder_path());
    assert_int_equal(jit_folder_count(""), 1); /* the young one may be in use */
    assert_string_equal(jit_folder_entry(), ".new-4567");
}

static void reopen(void)
{
    jit_cache_close(&cache);
    jit_cache_open(&cache, jit_folder_path());
}

static void set_age_days(const char *name, time_t days)
{
    const time_t then = time(NULL) - days * 24 * 3600;
    const struct timespec times[2] = {{.tv_sec = then}, {.tv_sec = then}};
    assert_int_equal(utimensat(AT_FDCWD, jit_folder_file(name), times, 0), 0);
}

/* Of GPUs and compilers that are not here any more. What others put into the folder is not ours. */
static void test_jit_cache_removes_entries_that_nobody_uses(void **state)
{
    struct jit_cache_image image;
    char mine[128];
    (void)state;
    write_entry();
    snprintf(mine, sizeof(mine), "%s", jit_folder_entry());
    set_age_days(mine, 29);
    reopen();
    assert_int_equal(jit_folder_count(""), 1);
    set_age_days(mine, 31);
    assert_true(jit_cache_read(&cache, &key, &image)); /* in use again */
    free(image.bytes);
    jit_folder_write("concat_mla-sm_80-0123-12000.kernel", "x", 1);
    jit_folder_write("concat_mla-notes.txt", "x", 1);
    jit_folder_write("others.kernel", "x", 1);
    set_age_days("concat_mla-sm_80-0123-12000.kernel", 31);
    set_age_days("concat_mla-notes.txt", 31);
    set_age_days("others.kernel", 31);
    reopen();
    assert_int_equal(jit_folder_count(""), 3);
    assert_true(jit_cache_read(&cache, &key, &image));
    free(image.bytes);
    set_age_days(mine, 31);
    reopen();
    assert_int_equal(jit_folder_count(""), 2);
    assert_missing();
}

/* The same entry written by several processes, each its own bytes, while this one reads: always one of them, whole. */
static void test_jit_cache_entry_appears_whole(void **state)
{
    (void)state;
    enum { BYTES = 100000 };
    char *bytes = calloc(BYTES, 1);
    assert_non_null(bytes);
    int reads_nr = 0;
    for (int writer = 0; writer < WRITERS; writer++) {
        if (fork() == 0) {
            struct jit_cache_image image = {.bytes = bytes, .bytes_nr = BYTES};
            bool good = true;
            memset(bytes, writer, BYTES);
            for (int i = 0; i < ROUNDS; i++) {
                good &= jit_cache_write(&cache, &key, &image);
            }
            _exit(good ? 0 : 1);
        }
    }
    for (int ended = 0; ended < WRITERS;) {
        struct jit_cache_image image;
        int status;
        if (jit_cache_read(&cache, &key, &image)) {
            assert_int_equal(image.bytes_nr, BYTES);
            free(image.bytes);
            reads_nr++;
        } else {
            assert_int_equal(reads_nr, 0); /* once there, it stays: nothing was found broken and removed */
        }
        if (waitpid(-1, &status, WNOHANG) > 0) {
            assert_int_equal(status, 0);
            ended++;
        }
    }
    assert_true(reads_nr > 0);
    assert_int_equal(jit_folder_count(""), 1);
    free(bytes);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_jit_cache_gives_back_what_was_written),      TEST(test_jit_cache_tells_every_part_of_the_key_apart),
        TEST(test_jit_cache_removes_a_broken_entry),           TEST(test_jit_cache_removes_an_entry_of_wrong_size),
        TEST(test_jit_cache_mistrusts_what_others_can_write),  TEST(test_jit_cache_takes_no_link_and_no_pipe),
        TEST(test_jit_cache_without_nvrtc_takes_the_newest),   TEST(test_jit_cache_in_a_folder_that_cannot_be_written),
        TEST(test_jit_cache_on_a_full_disk_leaves_nothing),    TEST(test_jit_cache_without_a_folder_is_empty),
        TEST(test_jit_cache_folder_from_the_environment),      TEST(test_jit_cache_removes_what_a_dead_writer_left),
        TEST(test_jit_cache_removes_entries_that_nobody_uses), TEST(test_jit_cache_entry_appears_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
