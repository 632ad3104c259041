/* SPDX-License-Identifier: Apache-2.0 */
#include "table.h"

#include <stdlib.h>
#include <string.h>

void table_init(struct table *table, const struct table_column *columns, size_t nr)
{
    *table = (struct table){.columns = columns, .columns_nr = nr};
}

static void drop_rows(struct table *table)
{
    for (size_t i = 0; i < table->rows_nr * table->columns_nr; i++)
        free(table->cells[i]);
    free(table->cells);
    table->cells = NULL;
    table->rows_nr = 0;
}

void table_fini(struct table *table)
{
    drop_rows(table);
    *table = (struct table){0};
}

static void *need(void *memory)
{
    if (!memory) {
        fputs("mlacatctl: out of memory while making a table\n", stderr);
        exit(1);
    }
    return memory;
}

void table_row(struct table *table, const char *const *cells)
{
    size_t used = table->rows_nr * table->columns_nr;

    table->cells = need(realloc(table->cells, (used + table->columns_nr) * sizeof(char *)));
    for (size_t i = 0; i < table->columns_nr; i++)
        table->cells[used + i] = need(strdup(cells[i]));
    table->rows_nr++;
}

static void print_line(FILE *out, const struct table *table, const char *const *cells, const int *widths)
{
    size_t nr = table->columns_nr;

    /* Nothing is printed, nor padded, behind the last cell that has text. */
    while (nr > 1 && cells[nr - 1][0] == '\0')
        nr--;
    for (size_t i = 0; i < nr; i++) {
        if (i > 0)
            fputs("  ", out);
        if (table->columns[i].right)
            fprintf(out, "%*s", widths[i], cells[i]);
        else
            fprintf(out, "%-*s", i + 1 == nr ? 0 : widths[i], cells[i]);
    }
    fputc('\n', out);
}

static int larger(int width, const char *text)
{
    int length = (int)strlen(text);

    return length > width ? length : width;
}

void table_flush(struct table *table, FILE *out)
{
    int widths[TABLE_COLUMNS_MAX];
    const char *titles[TABLE_COLUMNS_MAX];

    for (size_t c = 0; c < table->columns_nr; c++) {
        titles[c] = table->columns[c].title;
        widths[c] = larger(table->columns[c].width, titles[c]);
        for (size_t r = 0; r < table->rows_nr; r++)
            widths[c] = larger(widths[c], table->cells[r * table->columns_nr + c]);
    }
    if (!table->titled)
        print_line(out, table, titles, widths);
    table->titled = true;
    for (size_t r = 0; r < table->rows_nr; r++)
        print_line(out, table, (const char *const *)&table->cells[r * table->columns_nr], widths);
    fflush(out);
    drop_rows(table);
}
