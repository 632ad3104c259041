/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "measure.h"
#include "table.h"

static void assert_number(double value, double expected)
{
    assert_true(value > expected - 1e-9 && value < expected + 1e-9);
}

static void test_ctl_measure_quantiles_are_nearest_rank(void **state)
{
    struct samples samples;

    (void)state;
    assert_true(samples_init(&samples, 100));
    assert_number(samples_quantile(&samples, 0.5), 0);
    for (int i = 100; i >= 1; i--)
        samples_add(&samples, i);
    assert_true(samples_full(&samples));
    samples_add(&samples, 1000);
    assert_number(samples_quantile(&samples, 0.01), 1);
    assert_number(samples_quantile(&samples, 0.50), 50);
    assert_number(samples_quantile(&samples, 0.99), 99);
    assert_number(samples_quantile(&samples, 1.00), 100);
    samples_fini(&samples);
}

static void test_ctl_measure_quantiles_of_few_samples(void **state)
{
    struct samples samples;

    (void)state;
    assert_true(samples_init(&samples, 3));
    samples_add(&samples, 7);
    assert_number(samples_quantile(&samples, 0.01), 7);
    assert_number(samples_quantile(&samples, 0.99), 7);
    samples_add(&samples, 5);
    samples_add(&samples, 6);
    assert_number(samples_quantile(&samples, 0.5), 6);
    assert_number(samples_quantile(&samples, 0.99), 7);
    samples_fini(&samples);
}

static void test_ctl_measure_process_sees_one_more_of_each(void **state)
{
    struct process_counters before;
    struct process_counters after;
    void *memory;
    int fd;

    (void)state;
    assert_true(measure_process(getpid(), &before));
    assert_true(before.rss_anon_bytes > 0 && before.fds > 0 && before.mappings > 0);
    fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    memory = mmap(NULL, 4096, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    assert_true(measure_process(getpid(), &after));
    assert_int_equal(after.fds, before.fds + 1);
    assert_true(after.mappings > before.mappings);
    munmap(memory, 4096);
    close(fd);
}

static void test_ctl_measure_of_no_process_fails(void **state)
{
    struct process_counters counters;
    uint64_t switches;

    (void)state;
    assert_false(measure_process(0, &counters));
    assert_false(measure_switches(0, &switches));
    assert_true(measure_switches(getpid(), &switches));
}

static void assert_text(void (*make)(double value, char *text, size_t size), double value, const char *expected)
{
    char text[32];

    make(value, text, sizeof(text));
    assert_string_equal(text, expected);
}

static void test_ctl_measure_texts(void **state)
{
    (void)state;
    assert_text(measure_bytes_text, 0, "0 B");
    assert_text(measure_bytes_text, 999, "999 B");
    assert_text(measure_bytes_text, 1000, "1.0 kB");
    assert_text(measure_bytes_text, 336068608, "336 MB");
    assert_text(measure_rate_text, 9.74e9, "9.7 GB/s");
    assert_text(measure_rate_text, 0, "-");
    assert_text(measure_time_text, 12345, "12.3 us");
    assert_text(measure_time_text, 999600, "1.0 ms");
    assert_text(measure_time_text, 0, "-");
}

static void test_ctl_table_aligns_and_prints_its_title_once(void **state)
{
    static const struct table_column columns[] = {{"name", 0, false}, {"n", 3, true}, {"end", 0, false}};
    const char *first[] = {"a", "1", "x"};
    const char *second[] = {"longer", "12345", ""};
    struct table table;
    char text[256] = "";
    FILE *out = fmemopen(text, sizeof(text), "w");

    (void)state;
    assert_non_null(out);
    table_init(&table, columns, 3);
    table_row(&table, first);
    table_row(&table, second);
    table_flush(&table, out);
    table_row(&table, first);
    table_flush(&table, out);
    table_fini(&table);
    fclose(out);
    assert_string_equal(text, "name        n  end\n"
                              "a           1  x\n"
                              "longer  12345\n"
                              "a       1  x\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ctl_measure_quantiles_are_nearest_rank),
        cmocka_unit_test(test_ctl_measure_quantiles_of_few_samples),
        cmocka_unit_test(test_ctl_measure_process_sees_one_more_of_each),
        cmocka_unit_test(test_ctl_measure_of_no_process_fails),
        cmocka_unit_test(test_ctl_measure_texts),
        cmocka_unit_test(test_ctl_table_aligns_and_prints_its_title_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
