/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     a table of text: aligned columns, a title line, no colours, no trailing blanks.
 * Thread:   one.
 * Lifetime: table_init .. table_fini; copies the cells.
 * Errors:   short memory ends the program: there is nothing else left to print.
 */
#ifndef MLACAT_CTL_TABLE_H
#define MLACAT_CTL_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#define TABLE_COLUMNS_MAX 12

struct table_column {
    const char *title;
    int width;  /* at least; for tables that are printed row by row */
    bool right; /* numbers */
};

struct table {
    const struct table_column *columns;
    size_t columns_nr;
    char **cells; /* rows_nr * columns_nr, not printed yet */
    size_t rows_nr;
    bool titled;
};

/* `columns` must outlive the table. */
void table_init(struct table *table, const struct table_column *columns, size_t nr);
void table_fini(struct table *table);

/* Appends one row: one string for each column. */
void table_row(struct table *table, const char *const *cells);

/* Prints the title, the first time, and the rows added since the last flush; widths are those of these rows. */
void table_flush(struct table *table, FILE *out);

#endif
