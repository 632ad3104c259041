/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "cpus.h"

/* A cgroup tree of our own: <root>/membership, <root>/fs, <root>/fs/outer, <root>/fs/outer/inner */
static char root[] = "/tmp/test_cpus_XXXXXX";
static char membership[64];
static char mount[64];

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* Sets cpu.max of one group; NULL: the file is not there. */
static void set_quota(const char *group, const char *text)
{
    char path[128];
    snprintf(path, sizeof(path), "%s%s/cpu.max", mount, group);
    unlink(path);
    if (text) {
        write_file(path, text);
    }
}

static int make_tree(void **state)
{
    (void)state;
    char path[128];
    assert_non_null(mkdtemp(root));
    snprintf(membership, sizeof(membership), "%s/membership", root);
    snprintf(mount, sizeof(mount), "%s/fs", root);
    assert_int_equal(mkdir(mount, 0700), 0);
    snprintf(path, sizeof(path), "%s/outer", mount);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof(path), "%s/outer/inner", mount);
    assert_int_equal(mkdir(path, 0700), 0);
    return 0;
}

static int remove_tree(void **state)
{
    (void)state;
    static const char *const groups[] = {"/outer/inner", "/outer", ""};
    for (size_t i = 0; i < 3; i++) {
        char path[128];
        set_quota(groups[i], NULL);
        snprintf(path, sizeof(path), "%s%s", mount, groups[i]);
        rmdir(path);
    }
    unlink(membership);
    return rmdir(root);
}

static int clear_quotas(void **state)
{
    (void)state;
    set_quota("", NULL);
    set_quota("/outer", NULL);
    set_quota("/outer/inner", NULL);
    write_file(membership, "4:memory:/elsewhere\n0::/outer/inner\n");
    return 0;
}

static void test_cpus_no_quota_is_no_limit(void **state)
{
    (void)state;
    assert_true(cpus_by_quota(membership, mount) == UINT32_MAX);
    set_quota("/outer/inner", "max 100000\n");
    assert_true(cpus_by_quota(membership, mount) == UINT32_MAX);
    set_quota("/outer/inner", "what is this");
    assert_true(cpus_by_quota(membership, mount) == UINT32_MAX);
    set_quota("/outer/inner", "200000 0\n");
    assert_true(cpus_by_quota(membership, mount) == UINT32_MAX);
    unlink(membership);
    assert_true(cpus_by_quota(membership, mount) == UINT32_MAX);
}

static void test_cpus_quota_is_rounded_down_to_at_least_one(void **state)
{
    (void)state;
    set_quota("/outer/inner", "400000 100000\n");
    assert_int_equal(cpus_by_quota(membership, mount), 4);
    set_quota("/outer/inner", "399999 100000\n");
    assert_int_equal(cpus_by_quota(membership, mount), 3);
    set_quota("/outer/inner", "50000 100000\n");
    assert_int_equal(cpus_by_quota(membership, mount), 1);
}

static void test_cpus_the_smallest_quota_above_counts(void **state)
{
    (void)state;
    set_quota("/outer/inner", "800000 100000\n");
    set_quota("/outer", "300000 100000\n");
    set_quota("", "600000 100000\n");
    assert_int_equal(cpus_by_quota(membership, mount), 3);
    set_quota("/outer", "max 100000\n");
    assert_int_equal(cpus_by_quota(membership, mount), 6);
}

/* In a container the own cgroup is the root of the mount. */
static void test_cpus_container_root(void **state)
{
    (void)state;
    write_file(membership, "0::/\n");
    set_quota("", "500000 100000\n");
    set_quota("/outer", "100000 100000\n");
    assert_int_equal(cpus_by_quota(membership, mount), 5);
}

static void test_cpus_only_the_v2_line_counts(void **state)
{
    (void)state;
    write_file(membership, "1:cpu:/outer\n");
    set_quota("/outer", "200000 100000\n");
    assert_true(cpus_by_quota(membership, mount) == UINT32_MAX);
}

static void test_cpus_usable_is_within_the_machine(void **state)
{
    (void)state;
    uint32_t usable = cpus_usable();
    assert_in_range(usable, 1, (uintmax_t)sysconf(_SC_NPROCESSORS_CONF));
}

static void test_cpus_split_first_from_rest(void **state)
{
    cpu_set_t all;
    cpu_set_t first;
    cpu_set_t rest;
    cpu_set_t sum;
    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    uint32_t cpus_nr = (uint32_t)CPU_COUNT(&all);
    assert_int_equal(cpus_split(cpus_nr, &first, &rest), cpus_nr >= 2);
    assert_false(cpus_split(cpus_nr - 1, &first, &rest));
    assert_int_equal(CPU_COUNT(&first), 1);
    assert_int_equal(CPU_COUNT(&rest), cpus_nr - 1);
    CPU_OR(&sum, &first, &rest);
    assert_true(CPU_EQUAL(&sum, &all));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpus_split_first_from_rest),
        cmocka_unit_test_setup(test_cpus_no_quota_is_no_limit, clear_quotas),
        cmocka_unit_test_setup(test_cpus_quota_is_rounded_down_to_at_least_one, clear_quotas),
        cmocka_unit_test_setup(test_cpus_the_smallest_quota_above_counts, clear_quotas),
        cmocka_unit_test_setup(test_cpus_container_root, clear_quotas),
        cmocka_unit_test_setup(test_cpus_only_the_v2_line_counts, clear_quotas),
        cmocka_unit_test(test_cpus_usable_is_within_the_machine),
    };
    return cmocka_run_group_tests(tests, make_tree, remove_tree);
}
