/* SPDX-License-Identifier: Apache-2.0 */
#include "measure.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

uint64_t measure_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

bool samples_init(struct samples *samples, size_t capacity)
{
    *samples = (struct samples){.value = calloc(capacity, sizeof(double)), .capacity = capacity};
    return samples->value != NULL;
}

void samples_fini(struct samples *samples)
{
    free(samples->value);
    *samples = (struct samples){0};
}

void samples_add(struct samples *samples, double value)
{
    if (samples->nr < samples->capacity)
        samples->value[samples->nr++] = value;
}

bool samples_full(const struct samples *samples)
{
    return samples->nr == samples->capacity;
}

static int ascending(const void *left, const void *right)
{
    double a = *(const double *)left;
    double b = *(const double *)right;

    return (a > b) - (a < b);
}

double samples_quantile(struct samples *samples, double q)
{
    size_t rank;

    if (samples->nr == 0)
        return 0;
    qsort(samples->value, samples->nr, sizeof(double), ascending);
    rank = (size_t)ceil(q * (double)samples->nr);
    if (rank < 1)
        rank = 1;
    if (rank > samples->nr)
        rank = samples->nr;
    return samples->value[rank - 1];
}

/* Adds the numbers of all lines of `path` that begin with one of the names. */
static bool sum_status_lines(const char *path, const char *const *names, size_t nr, uint64_t *sum)
{
    FILE *file = fopen(path, "re");
    char line[256];
    bool found = false;

    if (!file)
        return false;
    while (fgets(line, sizeof(line), file)) {
        for (size_t i = 0; i < nr; i++) {
            size_t length = strlen(names[i]);

            if (strncmp(line, names[i], length) != 0)
                continue;
            *sum += strtoull(line + length, NULL, 10);
            found = true;
        }
    }
    fclose(file);
    return found;
}

static bool count_entries(const char *path, uint64_t *count)
{
    DIR *dir = opendir(path);

    if (!dir)
        return false;
    *count = 0;
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;)
        *count += entry->d_name[0] != '.';
    closedir(dir);
    return true;
}

static bool count_lines(const char *path, uint64_t *count)
{
    FILE *file = fopen(path, "re");
    int byte;

    if (!file)
        return false;
    *count = 0;
    while ((byte = getc_unlocked(file)) != EOF)
        *count += byte == '\n';
    fclose(file);
    return true;
}

bool measure_process(pid_t pid, struct process_counters *counters)
{
    static const char *const rss[] = {"RssAnon:"};
    uint64_t kib = 0;
    char path[64];

    *counters = (struct process_counters){0};
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    if (!sum_status_lines(path, rss, 1, &kib))
        return false;
    counters->rss_anon_bytes = kib * 1024;
    snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    if (!count_entries(path, &counters->fds))
        return false;
    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    return count_lines(path, &counters->mappings);
}

bool measure_switches(pid_t pid, uint64_t *switches)
{
    static const char *const names[] = {"voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"};
    char path[320];
    bool found = false;
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    dir = opendir(path);
    if (!dir)
        return false;
    *switches = 0;
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), "/proc/%d/task/%s/status", (int)pid, entry->d_name);
        found = sum_status_lines(path, names, 2, switches) || found;
    }
    closedir(dir);
    return found;
}

uint64_t measure_own_writes(void)
{
    static const char *const names[] = {"syscw:"};
    uint64_t writes = 0;

    sum_status_lines("/proc/self/io", names, 1, &writes);
    return writes;
}

uint64_t measure_own_switches(void)
{
    struct rusage usage;

    if (getrusage(RUSAGE_SELF, &usage) != 0)
        return 0;
    return (uint64_t)usage.ru_nvcsw + (uint64_t)usage.ru_nivcsw;
}

static void unit_text(double value, const char *const *units, size_t nr, char *text, size_t size)
{
    size_t unit = 0;

    for (; unit + 1 < nr && value >= 999.5; unit++)
        value /= 1000;
    snprintf(text, size, "%.*f %s", value >= 99.95 || (unit == 0 && value == floor(value)) ? 0 : 1, value, units[unit]);
}

void measure_bytes_text(double bytes, char *text, size_t size)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};

    unit_text(bytes, units, 5, text, size);
}

void measure_rate_text(double bytes_per_s, char *text, size_t size)
{
    static const char *const units[] = {"B/s", "kB/s", "MB/s", "GB/s", "TB/s"};

    if (bytes_per_s > 0)
        unit_text(bytes_per_s, units, 5, text, size);
    else
        snprintf(text, size, "-");
}

void measure_time_text(double ns, char *text, size_t size)
{
    static const char *const units[] = {"ns", "us", "ms", "s"};

    if (ns > 0)
        unit_text(ns, units, 4, text, size);
    else
        snprintf(text, size, "-");
}
