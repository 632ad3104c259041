/* SPDX-License-Identifier: Apache-2.0 */
#include "proc.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "require.h"

/* Calls `visit` for each entry of /proc/PID/<folder>; returns their number. */
static uint32_t each_entry(pid_t pid, const char *folder, void (*visit)(const char *path, void *arg), void *arg)
{
    char path[512];
    struct dirent *entry;
    uint32_t entries_nr = 0;
    snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, folder);
    DIR *dir = opendir(path);
    REQUIRE(dir != NULL, "%s", path);
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] == '.') {
            continue;
        }
        entries_nr++;
        if (visit != NULL) {
            snprintf(path, sizeof(path), "/proc/%d/%s/%s", (int)pid, folder, entry->d_name);
            visit(path, arg);
        }
    }
    closedir(dir);
    return entries_nr;
}

uint32_t proc_fds(pid_t pid)
{
    return each_entry(pid, "fd", NULL, NULL);
}

uint32_t proc_maps(pid_t pid, const char *text)
{
    char line[1024];
    uint32_t lines_nr = 0;
    snprintf(line, sizeof(line), "/proc/%d/maps", (int)pid);
    FILE *file = fopen(line, "re");
    REQUIRE(file != NULL, "%s", line);
    while (fgets(line, sizeof(line), file) != NULL) {
        lines_nr += strstr(line, text) != NULL;
    }
    fclose(file);
    return lines_nr;
}

static uint64_t read_field(const char *path, const char *field)
{
    char line[256];
    uint64_t value = 0;
    bool found = false;
    size_t length = strlen(field);
    FILE *file = fopen(path, "re");
    while (file != NULL && !found && fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, field, length) == 0 && line[length] == ':') {
            value = strtoull(line + length + 1, NULL, 10);
            found = true;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    REQUIRE(found, "%s has no %s", path, field);
    return value;
}

uint64_t proc_status_kib(pid_t pid, const char *field)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    return read_field(path, field);
}

/* Of the threads whose name begins with `thread`. */
struct schedstat {
    const char *thread;
    uint64_t ran_ns;
    uint64_t waited_ns;
};

static void add_schedstat(const char *path, void *arg)
{
    char name[600];
    char thread[32] = "";
    struct schedstat *sum = arg;
    struct schedstat one;
    snprintf(name, sizeof(name), "%s/comm", path);
    FILE *file = fopen(name, "re");
    REQUIRE(file != NULL && fgets(thread, sizeof(thread), file) != NULL, "%s", name);
    fclose(file);
    if (strncmp(thread, sum->thread, strlen(sum->thread)) != 0) {
        return;
    }
    snprintf(name, sizeof(name), "%s/schedstat", path);
    file = fopen(name, "re");
    REQUIRE(file != NULL && fscanf(file, "%" SCNu64 " %" SCNu64, &one.ran_ns, &one.waited_ns) == 2, "%s", name);
    fclose(file);
    sum->ran_ns += one.ran_ns;
    sum->waited_ns += one.waited_ns;
}

uint64_t proc_cpu_ns(pid_t pid)
{
    struct schedstat sum = {"", 0, 0};
    each_entry(pid, "task", add_schedstat, &sum);
    return sum.ran_ns;
}

uint64_t proc_waited_ns(pid_t pid, const char *thread)
{
    struct schedstat sum = {thread, 0, 0};
    each_entry(pid, "task", add_schedstat, &sum);
    return sum.waited_ns;
}

static void add_switches(const char *path, void *arg)
{
    char name[600];
    snprintf(name, sizeof(name), "%s/status", path);
    *(uint64_t *)arg += read_field(name, "voluntary_ctxt_switches") + read_field(name, "nonvoluntary_ctxt_switches");
}

uint64_t proc_switches(pid_t pid)
{
    uint64_t switches = 0;
    each_entry(pid, "task", add_switches, &switches);
    return switches;
}

static void add_running(const char *path, void *arg)
{
    char name[600];
    char state = 0;
    snprintf(name, sizeof(name), "%s/stat", path);
    FILE *file = fopen(name, "re");
    REQUIRE(file != NULL && fscanf(file, "%*d (%*[^)]) %c", &state) == 1, "%s", name);
    fclose(file);
    *(uint32_t *)arg += state == 'R';
}

uint32_t proc_running(pid_t pid)
{
    uint32_t running_nr = 0;
    each_entry(pid, "task", add_running, &running_nr);
    return running_nr;
}
