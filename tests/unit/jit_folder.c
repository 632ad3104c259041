/* SPDX-License-Identifier: Apache-2.0 */
#include "jit_folder.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64];
static char last_entry[256];

void jit_folder_make(void)
{
    snprintf(folder, sizeof(folder), "/tmp/mlacat-jit-XXXXXX");
    assert_non_null(mkdtemp(folder));
}

const char *jit_folder_path(void)
{
    return folder;
}

const char *jit_folder_file(const char *name)
{
    static char path[sizeof(folder) + sizeof(last_entry)];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

void jit_folder_remove(void)
{
    chmod(folder, 0700);
    while (jit_folder_count("") > 0) {
        assert_int_equal(remove(jit_folder_file(last_entry)), 0);
    }
    assert_int_equal(rmdir(folder), 0);
}

int jit_folder_count(const char *suffix)
{
    int nr = 0;
    DIR *listing = opendir(folder);
    assert_non_null(listing);
    for (struct dirent *entry = readdir(listing); entry; entry = readdir(listing)) {
        size_t length = strlen(entry->d_name);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 && length >= strlen(suffix) &&
            strcmp(entry->d_name + length - strlen(suffix), suffix) == 0) {
            snprintf(last_entry, sizeof(last_entry), "%s", entry->d_name);
            nr++;
        }
    }
    closedir(listing);
    return nr;
}

const char *jit_folder_entry(void)
{
    return last_entry;
}

void jit_folder_damage(const char *name, long offset)
{
    FILE *file = fopen(jit_folder_file(name), "r+");
    assert_non_null(file);
    assert_int_equal(fseek(file, offset, offset < 0 ? SEEK_END : SEEK_SET), 0);
    int byte = fgetc(file);
    assert_int_not_equal(byte, EOF);
    assert_int_equal(fseek(file, -1, SEEK_CUR), 0);
    assert_int_not_equal(fputc(byte ^ 1, file), EOF);
    assert_int_equal(fclose(file), 0);
}

char *jit_folder_read(const char *name, size_t *bytes_nr)
{
    struct stat st;
    FILE *file = fopen(jit_folder_file(name), "r");
    assert_non_null(file);
    assert_int_equal(fstat(fileno(file), &st), 0);
    char *bytes = calloc((size_t)st.st_size + 1, 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, (size_t)st.st_size, file), st.st_size);
    fclose(file);
    *bytes_nr = (size_t)st.st_size;
    return bytes;
}

void jit_folder_write(const char *name, const void *bytes, size_t bytes_nr)
{
    FILE *file = fopen(jit_folder_file(name), "w");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, bytes_nr, file), bytes_nr);
    assert_int_equal(fclose(file), 0);
}
