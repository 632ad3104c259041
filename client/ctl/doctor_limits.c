/* SPDX-License-Identifier: Apache-2.0 */
/* What the daemon's process may use, from /proc and the cgroup tree. */
#include <dirent.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "doctor.h"
#include "measure.h"

#define CGROUP_MOUNT "/sys/fs/cgroup"
#define FILES_MINIMUM 4096 /* below: some clients with buffers of many descriptors are enough to run out */
#define LOCKED_MINIMUM ((uint64_t)1 << 20)
#define CPUS_MINIMUM 2
#define NO_LIMIT UINT64_MAX

/* The soft limit of a line of /proc/PID/limits; false: it cannot be read. */
static bool read_limit(pid_t pid, const char *name, uint64_t *limit)
{
    char path[64];
    char line[256];
    size_t length = strlen(name);
    bool found = false;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/limits", (int)pid);
    file = fopen(path, "re");
    while (file && !found && fgets(line, sizeof(line), file)) {
        const char *word;

        if (strncmp(line, name, length) != 0)
            continue;
        word = line + length + strspn(line + length, " ");
        found = true;
        *limit = strncmp(word, "unlimited", strlen("unlimited")) == 0 ? NO_LIMIT : strtoull(word, NULL, 10);
    }
    if (file)
        fclose(file);
    return found;
}

static void check_files(struct doctor *doctor)
{
    uint64_t limit;

    if (!read_limit(doctor->pid, "Max open files", &limit)) {
        doctor_found(doctor, "files", DOCTOR_SKIPPED, "/proc/%d/limits cannot be read", (int)doctor->pid);
        return;
    }
    if (limit == NO_LIMIT)
        doctor_found(doctor, "files", DOCTOR_OK, "mlacatd may open any number of descriptors");
    else
        doctor_found(doctor, "files", limit < FILES_MINIMUM ? DOCTOR_WARN : DOCTOR_OK,
                     "mlacatd may open %" PRIu64 " descriptors", limit);
    if (limit < FILES_MINIMUM)
        doctor_advise(doctor,
                      "raise RLIMIT_NOFILE of mlacatd to %d or more (ulimit -n, LimitNOFILE=): a buffer can "
                      "take 64 descriptors while it is registered",
                      FILES_MINIMUM);
}

static void check_locked(struct doctor *doctor)
{
    uint64_t limit;
    char text[32] = "any amount";

    if (!read_limit(doctor->pid, "Max locked memory", &limit)) {
        doctor_found(doctor, "memlock", DOCTOR_SKIPPED, "/proc/%d/limits cannot be read", (int)doctor->pid);
        return;
    }
    if (limit != NO_LIMIT)
        measure_bytes_text((double)limit, text, sizeof(text));
    doctor_found(doctor, "memlock", limit < LOCKED_MINIMUM ? DOCTOR_WARN : DOCTOR_OK, "mlacatd may lock %s of memory",
                 text);
    if (limit < LOCKED_MINIMUM)
        doctor_advise(doctor, "raise RLIMIT_MEMLOCK of mlacatd to 1 MiB or more (ulimit -l, LimitMEMLOCK=): pages that "
                              "the GPU writes to are locked");
}

/* ----------------------------------------------------------------------------------------------------- CPUs */

/* Adds the CPUs of a list like "0-3,8". */
static void add_cpus(char *list, cpu_set_t *set)
{
    for (char *part; (part = strsep(&list, ",")) != NULL;) {
        char *end;
        unsigned long first = strtoul(part, &end, 10);
        unsigned long last = *end == '-' ? strtoul(end + 1, NULL, 10) : first;

        for (unsigned long cpu = first; cpu <= last && cpu < CPU_SETSIZE; cpu++)
            CPU_SET(cpu, set);
    }
}

static void add_thread(pid_t pid, const char *thread, cpu_set_t *set)
{
    static const char key[] = "Cpus_allowed_list:";
    char path[DOCTOR_PATH_BYTES];
    char line[4096];
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/task/%s/status", (int)pid, thread);
    file = fopen(path, "re");
    while (file && fgets(line, sizeof(line), file))
        if (strncmp(line, key, strlen(key)) == 0)
            add_cpus(line + strlen(key), set);
    if (file)
        fclose(file);
}

/* CPUs that any thread may run on: mlacatd binds some of its threads to some of its CPUs. 0: it cannot be read. */
static unsigned count_affinity(pid_t pid)
{
    char path[64];
    struct dirent *entry;
    cpu_set_t set;
    DIR *threads;

    CPU_ZERO(&set);
    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    threads = opendir(path);
    while (threads && (entry = readdir(threads)) != NULL)
        if (entry->d_name[0] != '.')
            add_thread(pid, entry->d_name, &set);
    if (threads)
        closedir(threads);
    return (unsigned)CPU_COUNT(&set);
}

/* Lowers *cpus to the quota of one cgroup v2. */
static void apply_quota(const char *cgroup, double *cpus)
{
    char path[DOCTOR_PATH_BYTES + 64];
    double quota;
    double period;
    FILE *file;

    snprintf(path, sizeof(path), CGROUP_MOUNT "%s/cpu.max", cgroup);
    file = fopen(path, "re");
    if (file && fscanf(file, "%lf %lf", &quota, &period) == 2 && period > 0 && quota / period < *cpus)
        *cpus = quota / period;
    if (file)
        fclose(file);
}

/* Of the process's cgroup and those above it. */
static void apply_quotas(pid_t pid, double *cpus)
{
    char path[64];
    char line[DOCTOR_PATH_BYTES];
    bool found = false;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)pid);
    file = fopen(path, "re");
    while (file && !found && fgets(line, sizeof(line), file))
        found = strncmp(line, "0::", 3) == 0;
    if (file)
        fclose(file);
    if (!found)
        return;
    line[strcspn(line, "\n")] = '\0';
    for (char *slash = line; slash; slash = strrchr(line + 3, '/')) {
        if (slash != line)
            *slash = '\0';
        apply_quota(line + 3, cpus);
    }
}

static void check_cpus(struct doctor *doctor)
{
    unsigned affinity = count_affinity(doctor->pid);
    double cpus = affinity;

    if (affinity == 0) {
        doctor_found(doctor, "cpus", DOCTOR_SKIPPED, "/proc/%d/task cannot be read", (int)doctor->pid);
        return;
    }
    apply_quotas(doctor->pid, &cpus);
    doctor_found(doctor, "cpus", cpus < CPUS_MINIMUM ? DOCTOR_WARN : DOCTOR_OK,
                 "mlacatd may use %.4g CPUs (by affinity %u, by cgroup %s)", cpus, affinity,
                 cpus < affinity ? "fewer" : "no fewer");
    if (cpus < CPUS_MINIMUM)
        doctor_advise(doctor,
                      "give it %d CPUs or more (taskset, CPUQuota=, the container's cpu limit): its workers spin "
                      "while they wait for the device, and its event loop needs a CPU beside them",
                      CPUS_MINIMUM);
}

void doctor_limits(struct doctor *doctor)
{
    if (doctor->pid == 0) {
        const char *why = doctor->client ? "mlacatd is in another pid namespace" : "there is no connection to mlacatd";

        doctor_found(doctor, "files", DOCTOR_SKIPPED, "%s", why);
        doctor_found(doctor, "memlock", DOCTOR_SKIPPED, "%s", why);
        doctor_found(doctor, "cpus", DOCTOR_SKIPPED, "%s", why);
        return;
    }
    check_files(doctor);
    check_locked(doctor);
    check_cpus(doctor);
}
