/* SPDX-License-Identifier: Apache-2.0 */
/* jit_load: which image is tried when. This program is its own compile helper. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "concat_mla_text.h"
#include "cuda_jit.h"
#include "jit_folder.h"

#define BUILDERS 4
#define MISSING_NVRTC "/nowhere/libnvrtc.so"

static const char *const kernels[] = {"concat_mla_16",       "concat_mla_8",        "concat_mla_4",
                                      "concat_mla_2",        "concat_mla_1",        "concat_mla_16_signal",
                                      "concat_mla_8_signal", "concat_mla_4_signal", "concat_mla_2_signal",
                                      "concat_mla_1_signal", "concat_mla_many"};

static struct jit_options options;
static struct jit_report report;
static struct error err;
static char calls_path[128];

/* What `load` saw, and what it refuses. */
static int loads_nr;
static enum jit_source loaded_from[3];
static bool refused[3]; /* by source */
static enum mlacat_status refusal;
static char loaded_text[8192];
static bool loaded_ptx;

static enum mlacat_status load(void *owner, const struct jit_image *image, struct error *load_err)
{
    assert_ptr_equal(owner, &options);
    assert_true(loads_nr < 3);
    loaded_from[loads_nr++] = image->source;
    if (refused[image->source]) {
        return error_set(load_err, refusal, "refused image of %s", jit_source_name(image->source));
    }
    size_t bytes_nr = image->bytes_nr < sizeof(loaded_text) - 1 ? image->bytes_nr : sizeof(loaded_text) - 1;
    memcpy(loaded_text, image->bytes, bytes_nr);
    loaded_text[bytes_nr] = '\0';
    loaded_ptx = image->ptx;
    if (image->ptx) {
        assert_int_equal(((const char *)image->bytes)[image->bytes_nr - 1], '\0');
    }
    return MLACAT_OK;
}

static enum mlacat_status run(void)
{
    loads_nr = 0;
    memset(&err, 0, sizeof(err));
    return jit_load(&options, load, &options, &report, &err);
}

/* One image was tried, this one, and taken. */
static void assert_loads_from(enum jit_source source)
{
    assert_int_equal(run(), MLACAT_OK);
    assert_int_equal(loads_nr, 1);
    assert_int_equal(loaded_from[0], source);
    assert_int_equal(report.source, source);
}

static bool has_ptx(void)
{
    return concat_mla_text_ptx[0] != '\0';
}

/* Compilations up to now. */
static int calls_nr(void)
{
    FILE *file = fopen(calls_path, "r");
    int lines_nr = 0;
    for (int c = file ? fgetc(file) : EOF; c != EOF; c = fgetc(file)) {
        lines_nr += c == '\n';
    }
    if (file) {
        fclose(file);
    }
    return lines_nr;
}

static int set_up(void **state)
{
    (void)state;
    jit_folder_make();
    snprintf(calls_path, sizeof(calls_path), "%s.calls", jit_folder_path());
    setenv("MLACAT_FAKE_NVRTC_CALLS", calls_path, 1);
    unsetenv("MLACAT_FAKE_NVRTC");
    memset(refused, 0, sizeof(refused));
    refusal = MLACAT_FAILED_PRECONDITION;
    options = (struct jit_options){.major = 9, .cache_folder = jit_folder_path(), .nvrtc = FAKE_NVRTC};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(calls_path);
    jit_folder_remove();
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    return 0;
}

static void test_cuda_jit_builds_once_and_then_hits_the_cache(void **state)
{
    (void)state;
    assert_loads_from(JIT_FROM_NVRTC);
    assert_int_equal(jit_folder_count(""), 1);
    assert_string_equal(report.arch, "sm_90");
    assert_int_equal(report.nvrtc_version, 13000);
    assert_string_equal(report.cache_folder, jit_folder_path());
    assert_string_equal(report.cache_reason, "");
    assert_string_equal(report.nvrtc_reason, "");
    assert_true(report.duration_ns > 0);
    assert_loads_from(JIT_FROM_CACHE);
    assert_non_null(strstr(loaded_text, "--gpu-architecture=sm_90\n"));
    assert_int_equal(calls_nr(), 1);
}

static void test_cuda_jit_compiles_the_built_in_source(void **state)
{
    (void)state;
    char expected[64];
    snprintf(expected, sizeof(expected), "source=%zu header=%zu", strlen(concat_mla_text_source),
             strlen(concat_mla_text_header));
    assert_non_null(strstr(concat_mla_text_source, "#include \"concat_mla_args.h\""));
    assert_non_null(strstr(concat_mla_text_header, "struct concat_mla_args {"));
    assert_loads_from(JIT_FROM_NVRTC);
    assert_non_null(strstr(loaded_text, expected));
    assert_non_null(strstr(loaded_text, "\n--modify-stack-limit=false\n--no-cache\n"));
}

static void test_cuda_jit_rebuilds_a_broken_entry(void **state)
{
    (void)state;
    assert_loads_from(JIT_FROM_NVRTC);
    assert_int_equal(jit_folder_count(""), 1);
    jit_folder_damage(jit_folder_entry(), -1);
    assert_loads_from(JIT_FROM_NVRTC);
    assert_loads_from(JIT_FROM_CACHE);
    assert_int_equal(calls_nr(), 2);
}

static void test_cuda_jit_rebuilds_an_entry_that_the_driver_refuses(void **state)
{
    (void)state;
    assert_loads_from(JIT_FROM_NVRTC);
    refused[JIT_FROM_CACHE] = true;
    assert_int_equal(run(), MLACAT_OK);
    assert_int_equal(loads_nr, 2);
    assert_int_equal(loaded_from[0], JIT_FROM_CACHE);
    assert_int_equal(loaded_from[1], JIT_FROM_NVRTC);
    assert_int_equal(jit_folder_count(""), 1);
}

/* A device that is lost or out of memory says nothing about the image. */
static void test_cuda_jit_gives_up_when_it_is_the_device(void **state)
{
    (void)state;
    static const enum mlacat_status statuses[] = {MLACAT_UNAVAILABLE, MLACAT_RESOURCE_EXHAUSTED, MLACAT_DATA_LOSS};
    assert_loads_from(JIT_FROM_NVRTC);
    refused[JIT_FROM_CACHE] = true;
    for (size_t i = 0; i < sizeof(statuses) / sizeof(statuses[0]); i++) {
        refusal = statuses[i];
        assert_int_equal(run(), refusal);
        assert_string_equal(err.message, "refused image of cache");
        assert_int_equal(loads_nr, 1);
    }
    assert_int_equal(calls_nr(), 1);
    refused[JIT_FROM_CACHE] = false;
    assert_loads_from(JIT_FROM_CACHE); /* it is still there */
}

static void test_cuda_jit_keeps_nothing_that_the_driver_refused(void **state)
{
    (void)state;
    refused[JIT_FROM_NVRTC] = true;
    run();
    assert_int_equal(loaded_from[0], JIT_FROM_NVRTC);
    assert_int_equal(jit_folder_count(""), 0);
}

static void test_cuda_jit_goes_on_without_a_cache(void **state)
{
    (void)state;
    options.cache_folder = "";
    assert_loads_from(JIT_FROM_NVRTC);
    assert_string_equal(report.cache_folder, "");
    options.cache_folder = "/proc/self"; /* cannot be written, not even by root */
    assert_loads_from(JIT_FROM_NVRTC);
    assert_non_null(strstr(report.cache_reason, "cannot make a file"));
}

static void test_cuda_jit_uses_a_seeded_cache_without_nvrtc(void **state)
{
    (void)state;
    assert_loads_from(JIT_FROM_NVRTC);
    options.nvrtc = MISSING_NVRTC;
    assert_loads_from(JIT_FROM_CACHE);
    assert_int_equal(report.nvrtc_version, 0);
    assert_non_null(strstr(report.nvrtc_reason, MISSING_NVRTC));
    refused[JIT_FROM_CACHE] = true;
    run();
    assert_int_equal(jit_folder_count(""), 0); /* found by its version and removed */
}

static void test_cuda_jit_falls_back_to_the_built_in_ptx(void **state)
{
    (void)state;
    options.nvrtc = MISSING_NVRTC;
    if (!has_ptx()) {
        assert_int_equal(run(), MLACAT_FAILED_PRECONDITION);
        assert_non_null(strstr(err.message, "built without nvcc"));
        return;
    }
    assert_loads_from(JIT_FROM_BUILD);
    assert_true(loaded_ptx);
    assert_string_equal(report.arch, "compute_75");
    for (size_t i = 0; i < sizeof(kernels) / sizeof(kernels[0]); i++) {
        char entry[64];
        snprintf(entry, sizeof(entry), ".entry %s(", kernels[i]);
        assert_non_null(strstr(concat_mla_text_ptx, entry));
    }
    assert_int_equal(jit_folder_count(""), 0);
}

static void test_cuda_jit_tells_every_reason_when_nothing_helps(void **state)
{
    (void)state;
    refused[JIT_FROM_NVRTC] = true;
    refused[JIT_FROM_BUILD] = true;
    assert_int_equal(run(), MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(err.message, "compute capability 9.0; cache: no entry; NVRTC: refused image of nvrtc; "));
    assert_non_null(strstr(err.message, has_ptx() ? "PTX: refused image of build" : "PTX: none"));
}

static void test_cuda_jit_gives_up_on_a_helper_that_hangs(void **state)
{
    (void)state;
    setenv("MLACAT_FAKE_NVRTC", "hang", 1);
    options.limit_ms = 300;
    assert_int_equal(run(), has_ptx() ? MLACAT_OK : MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(report.nvrtc_reason, "longer than 300 ms"));
}

static void test_cuda_jit_outlives_a_helper_that_crashes(void **state)
{
    (void)state;
    setenv("MLACAT_FAKE_NVRTC", "crash", 1);
    assert_int_equal(run(), has_ptx() ? MLACAT_OK : MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(report.nvrtc_reason, "signal 6"));
}

static void test_cuda_jit_speaks_to_an_old_nvrtc(void **state)
{
    (void)state;
    setenv("MLACAT_FAKE_NVRTC", "version=12040", 1);
    assert_loads_from(JIT_FROM_NVRTC);
    assert_null(strstr(loaded_text, "--no-cache"));
    assert_loads_from(JIT_FROM_CACHE);
    setenv("MLACAT_FAKE_NVRTC", "version=12090", 1);
    assert_loads_from(JIT_FROM_NVRTC); /* another version, another entry */
    assert_non_null(strstr(loaded_text, "--no-cache"));
    assert_int_equal(jit_folder_count(""), 2);
}

static void test_cuda_jit_builds_ptx_for_a_gpu_newer_than_nvrtc(void **state)
{
    (void)state;
    options.major = 12;
    options.minor = 1;
    assert_loads_from(JIT_FROM_NVRTC);
    assert_string_equal(report.arch, "compute_90");
    assert_true(loaded_ptx);
    assert_loads_from(JIT_FROM_CACHE);
    assert_true(loaded_ptx);
}

static void test_cuda_jit_for_a_gpu_that_nvrtc_has_forgotten(void **state)
{
    (void)state;
    setenv("MLACAT_FAKE_NVRTC", "oldest=90", 1);
    options.major = 8;
    options.minor = 6;
    assert_int_equal(run(), has_ptx() ? MLACAT_OK : MLACAT_FAILED_PRECONDITION);
    assert_non_null(strstr(report.nvrtc_reason, "NVRTC 13.0 knows no GPU as old as compute capability 86"));
    assert_int_equal(calls_nr(), 0);
}

/* Daemons that start together with an empty cache: each gets its kernels, and one entry stays. */
static void test_cuda_jit_builders_at_the_same_time(void **state)
{
    (void)state;
    for (int i = 0; i < BUILDERS; i++) {
        if (fork() == 0) {
            _exit(run() == MLACAT_OK && loads_nr == 1 ? 0 : 1);
        }
    }
    for (int i = 0; i < BUILDERS; i++) {
        int status;
        assert_true(wait(&status) > 0);
        assert_int_equal(status, 0);
    }
    assert_int_equal(jit_folder_count(""), 1);
    assert_loads_from(JIT_FROM_CACHE);
}

/* The true source with the true compiler, where there is one. */
static void test_cuda_jit_with_the_real_nvrtc(void **state)
{
    (void)state;
    size_t bytes_nr;
    options.nvrtc = NULL;
    assert_int_equal(run(), has_ptx() || !report.nvrtc_reason[0] ? MLACAT_OK : MLACAT_FAILED_PRECONDITION);
    if (report.nvrtc_version == 0) {
        print_message("skipped: %s\n", report.nvrtc_reason);
        skip();
    }
    assert_string_equal(report.nvrtc_reason, "");
    assert_int_equal(report.source, JIT_FROM_NVRTC);
    assert_memory_equal(loaded_text, "\177ELF", 4);
    assert_int_equal(jit_folder_count(""), 1);
    char *entry = jit_folder_read(jit_folder_entry(), &bytes_nr);
    for (size_t i = 0; i < sizeof(kernels) / sizeof(kernels[0]); i++) {
        assert_non_null(memmem(entry, bytes_nr, kernels[i], strlen(kernels[i]) + 1));
    }
    free(entry);
    assert_loads_from(JIT_FROM_CACHE);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(int argc, char *argv[])
{
    const struct CMUnitTest tests[] = {
        TEST(test_cuda_jit_builds_once_and_then_hits_the_cache),
        TEST(test_cuda_jit_compiles_the_built_in_source),
        TEST(test_cuda_jit_rebuilds_a_broken_entry),
        TEST(test_cuda_jit_rebuilds_an_entry_that_the_driver_refuses),
        TEST(test_cuda_jit_gives_up_when_it_is_the_device),
        TEST(test_cuda_jit_keeps_nothing_that_the_driver_refused),
        TEST(test_cuda_jit_goes_on_without_a_cache),
        TEST(test_cuda_jit_uses_a_seeded_cache_without_nvrtc),
        TEST(test_cuda_jit_falls_back_to_the_built_in_ptx),
        TEST(test_cuda_jit_tells_every_reason_when_nothing_helps),
        TEST(test_cuda_jit_gives_up_on_a_helper_that_hangs),
        TEST(test_cuda_jit_outlives_a_helper_that_crashes),
        TEST(test_cuda_jit_speaks_to_an_old_nvrtc),
        TEST(test_cuda_jit_builds_ptx_for_a_gpu_newer_than_nvrtc),
        TEST(test_cuda_jit_for_a_gpu_that_nvrtc_has_forgotten),
        TEST(test_cuda_jit_builders_at_the_same_time),
        TEST(test_cuda_jit_with_the_real_nvrtc),
    };
    if (jit_is_helper(argc, argv)) {
        return jit_helper_main(argc, argv);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
