/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tables of proto/: numbers and names as clients know them, no number or name twice, and the same in the public
 * header, which expands the same tables.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "mlacat/mlacat.h"

struct row {
    unsigned number;
    const char *name;
};

#define MLACAT_STATUS(name, number, scope, text) {number, #name},
static const struct row statuses[] = {
#include "mlacat_status.def"
};

#define MLACAT_SCOPE(name, number, text) {number, #name},
static const struct row scopes[] = {
#include "mlacat_status.def"
};

#define MLACAT_OP(number, enum_name, name, out, first, second, second_rows, dim0, dim1, w1, w2) {number, #name},
static const struct row ops[] = {
#include "mlacat_ops.def"
};

#define MLACAT_DTYPE(number, enum_name, name, bytes) {number, #name},
static const struct row dtypes[] = {
#include "mlacat_dtypes.def"
};

/* What has been published. Rows may be added at the end; a row here never changes. */
static const struct row published_statuses[] = {
    {0, "OK"},           {1, "CANCELLED"},          {2, "UNKNOWN"},          {3, "INVALID_ARGUMENT"},
    {5, "NOT_FOUND"},    {4, "DEADLINE_EXCEEDED"},  {6, "ALREADY_EXISTS"},   {7, "PERMISSION_DENIED"},
    {10, "ABORTED"},     {8, "RESOURCE_EXHAUSTED"}, {11, "OUT_OF_RANGE"},    {9, "FAILED_PRECONDITION"},
    {14, "UNAVAILABLE"}, {12, "UNIMPLEMENTED"},     {16, "UNAUTHENTICATED"}, {13, "INTERNAL"},
    {15, "DATA_LOSS"},
};
static const struct row published_scopes[] = {
    {0, "NONE"}, {1, "CALL"}, {2, "BUFFER"}, {3, "STREAM"}, {4, "SESSION"}, {5, "DEVICE"},
};
static const struct row published_ops[] = {{1, "concat_mla_k"}, {2, "concat_mla_absorb_q"}};
static const struct row published_dtypes[] = {
    {1, "bf16"}, {2, "fp16"}, {3, "fp8_e4m3"}, {4, "fp8_e5m2"}, {5, "fp32"},
};

#define NR(table) (sizeof(table) / sizeof((table)[0]))

static void check_unique(const struct row *table, size_t nr)
{
    for (size_t i = 0; i < nr; i++) {
        for (size_t j = i + 1; j < nr; j++) {
            if (table[i].number == table[j].number)
                fail_msg("%s and %s both have number %u", table[i].name, table[j].name, table[i].number);
            if (strcmp(table[i].name, table[j].name) == 0)
                fail_msg("%s is there twice", table[i].name);
        }
        /* The wire, the ring and the C API carry codes in 16 bits. */
        assert_in_range(table[i].number, 0, UINT16_MAX);
    }
}

static void check_published(const struct row *published, size_t published_nr, const struct row *table, size_t nr)
{
    for (size_t i = 0; i < published_nr; i++) {
        size_t j = 0;
        while (j < nr && strcmp(published[i].name, table[j].name) != 0)
            j++;
        if (j == nr)
            fail_msg("%s = %u was published and is gone", published[i].name, published[i].number);
        else if (published[i].number != table[j].number)
            fail_msg("%s was published as %u and is now %u", published[i].name, published[i].number, table[j].number);
    }
}

static void test_tables_numbers_and_names_are_unique(void **state)
{
    (void)state;
    check_unique(statuses, NR(statuses));
    check_unique(scopes, NR(scopes));
    check_unique(ops, NR(ops));
    check_unique(dtypes, NR(dtypes));
}

static void test_tables_published_rows_are_unchanged(void **state)
{
    (void)state;
    check_published(published_statuses, NR(published_statuses), statuses, NR(statuses));
    check_published(published_scopes, NR(published_scopes), scopes, NR(scopes));
    check_published(published_ops, NR(published_ops), ops, NR(ops));
    check_published(published_dtypes, NR(published_dtypes), dtypes, NR(dtypes));
}

/* 0 means "not given" in the protocol, so no op and no element type may have it. */
static void test_tables_zero_is_no_op_and_no_dtype(void **state)
{
    (void)state;
    for (size_t i = 0; i < NR(ops); i++)
        assert_int_not_equal(ops[i].number, 0);
    for (size_t i = 0; i < NR(dtypes); i++)
        assert_int_not_equal(dtypes[i].number, 0);
}

static unsigned end_of(const struct row *table, size_t nr)
{
    unsigned end = 0;
    for (size_t i = 0; i < nr; i++)
        end = table[i].number >= end ? table[i].number + 1 : end;
    return end;
}

/* The header's end marks are written by hand: a new row must move them. */
static void test_tables_public_header_ends_where_the_tables_do(void **state)
{
    (void)state;
    assert_int_equal(MLACAT_STATUS_END_, end_of(statuses, NR(statuses)));
    assert_int_equal(MLACAT_SCOPE_END_, end_of(scopes, NR(scopes)));
    assert_int_equal(MLACAT_OP_END_, end_of(ops, NR(ops)));
    assert_int_equal(MLACAT_DTYPE_END_, end_of(dtypes, NR(dtypes)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables_numbers_and_names_are_unique),
        cmocka_unit_test(test_tables_published_rows_are_unchanged),
        cmocka_unit_test(test_tables_zero_is_no_op_and_no_dtype),
        cmocka_unit_test(test_tables_public_header_ends_where_the_tables_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
