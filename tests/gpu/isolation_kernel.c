/* SPDX-License-Identifier: Apache-2.0 */
#include "isolation_kernel.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "require.h"

#define PATH_BYTES 1024
#define NS_PER_S UINT64_C(1000000000)
#define NO_CLOCK ((clockid_t)-1) /* cannot be read: some sandboxes have no clocks of other processes */

/* --------------------------------------------------------------------------------------------------------- CPU time */

void isolation_use_add(struct isolation_users *users, pid_t pid)
{
    int nr = atomic_load(&users->nr);
    REQUIRE(nr < ISOLATION_USERS_MAX);
    users->pid[nr] = pid;
    if (clock_getcpuclockid(pid, &users->clock[nr]) != 0) {
        users->clock[nr] = NO_CLOCK;
    }
    atomic_store(&users->nr, nr + 1);
}

bool isolation_is_user(const struct isolation_users *users, pid_t pid)
{
    int nr = atomic_load(&users->nr);
    for (int i = 0; i < nr; i++) {
        if (users->pid[i] == pid) {
            return true;
        }
    }
    return false;
}

bool isolation_use_read(const struct isolation_users *users, struct isolation_use *use)
{
    int nr = atomic_load(&users->nr);
    struct isolation_use sum = {0};
    for (int i = 0; i < nr; i++) {
        struct timespec time;
        if (clock_gettime(users->clock[i], &time) != 0) {
            return false;
        }
        *(i == 0 ? &sum.daemon_ns : &sum.test_ns) += (uint64_t)time.tv_sec * NS_PER_S + (uint64_t)time.tv_nsec;
    }
    *use = sum;
    return true;
}

uint64_t isolation_waited_ns(int schedstat_fd)
{
    char text[128];
    ssize_t size = pread(schedstat_fd, text, sizeof(text) - 1, 0);
    if (size <= 0) {
        return UINT64_MAX;
    }
    text[size] = '\0';
    const char *second = strchr(text, ' ');
    return second != NULL ? strtoull(second, NULL, 10) : UINT64_MAX;
}

/* ----------------------------------------------------------------------------------------------- the cgroup's quota */

/* The number behind a name at a line's beginning and a space or tab; `value` stays if it is not there. */
static bool find_number(const char *path, const char *name, uint64_t *value)
{
    char line[256];
    bool found = false;
    size_t length = strlen(name);
    FILE *file = fopen(path, "re");
    while (file != NULL && !found && fgets(line, sizeof(line), file) != NULL) {
        found = strncmp(line, name, length) == 0 && (line[length] == ' ' || line[length] == '\t');
        if (found) {
            *value = strtoull(line + length, NULL, 10);
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return found;
}

static bool read_quota_at(const char *mount, const char *cgroup, struct isolation_quota *quota)
{
    char path[PATH_BYTES];
    uint64_t us = 0;
    if (snprintf(path, sizeof(path), "%s%s/cpu.stat", mount, cgroup) >= (int)sizeof(path) ||
        !find_number(path, "nr_throttled", &quota->times)) {
        return false;
    }
    if (find_number(path, "throttled_usec", &us)) {
        quota->ns = us * 1000; /* v2 */
    } else {
        find_number(path, "throttled_time", &quota->ns); /* v1 */
    }
    quota->known = true;
    return true;
}

/* A container often sees its own cgroup as the root of the mount, and yet its path on the host. */
struct isolation_quota isolation_quota_read(void)
{
    static const char *const mounts[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"};
    struct isolation_quota quota = {0};
    char line[PATH_BYTES];
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file != NULL && !quota.known && fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        const char *controllers = strchr(line, ':');
        const char *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        bool v2 = path == controllers + 1;
        bool v1 = path != NULL && (strncmp(controllers, ":cpu:", 5) == 0 || strncmp(controllers, ":cpu,", 5) == 0);
        for (int i = v2 ? 0 : 1; (v1 || v2) && !quota.known && i < (v2 ? 1 : 3); i++) {
            if (!read_quota_at(mounts[i], path + 1, &quota)) {
                read_quota_at(mounts[i], "", &quota);
            }
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return quota;
}

/* --------------------------------------------------------------------------------------------- the daemon's threads */

static void read_name(const char *path, char *name, size_t name_bytes)
{
    FILE *file = fopen(path, "re");
    if (file == NULL || fgets(name, (int)name_bytes, file) == NULL) {
        name[0] = '\0';
    }
    name[strcspn(name, "\n")] = '\0';
    if (file != NULL) {
        fclose(file);
    }
}

static bool read_thread(pid_t pid, int tid, struct isolation_thread *thread)
{
    char path[PATH_BYTES];
    thread->tid = tid;
    snprintf(path, sizeof(path), "/proc/%d/task/%d/comm", (int)pid, tid);
    read_name(path, thread->name, sizeof(thread->name));
    snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", (int)pid, tid);
    FILE *file = fopen(path, "re");
    bool known = file != NULL && fscanf(file, "%" SCNu64 " %" SCNu64, &thread->ran_ns, &thread->waited_ns) == 2;
    if (file != NULL) {
        fclose(file);
    }
    return known;
}

static void read_threads(struct isolation_kernel *now, pid_t pid)
{
    char path[PATH_BYTES];
    struct dirent *entry;
    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    DIR *dir = opendir(path);
    while (dir != NULL && now->threads < ISOLATION_THREADS_MAX && (entry = readdir(dir)) != NULL) {
        int tid = (int)strtol(entry->d_name, NULL, 10);
        if (tid <= 0 || !read_thread(pid, tid, &now->thread[now->threads])) {
            continue;
        }
        uint64_t switches = 0;
        snprintf(path, sizeof(path), "/proc/%d/task/%d/status", (int)pid, tid);
        find_number(path, "nonvoluntary_ctxt_switches:", &switches);
        now->involuntary += switches;
        now->threads++;
    }
    if (dir != NULL) {
        closedir(dir);
    }
}

/* ----------------------------------------------------------------------------------------------------- what is left */

/* The eighth figure of the line "cpu" of /proc/stat, in ticks; of all of this machine's CPUs together. */
static bool read_stolen(uint64_t *ns)
{
    uint64_t ticks = 0;
    FILE *file = fopen("/proc/stat", "re");
    bool known = file != NULL && fscanf(file, "cpu %*u %*u %*u %*u %*u %*u %*u %" SCNu64, &ticks) == 1;
    if (file != NULL) {
        fclose(file);
    }
    *ns = ticks * (NS_PER_S / (uint64_t)sysconf(_SC_CLK_TCK));
    return known;
}

void isolation_kernel_read(struct isolation_kernel *now, const struct isolation_users *users, pid_t daemon)
{
    *now = (struct isolation_kernel){.at_ns = clock_now_ns()};
    now->use_known = isolation_use_read(users, &now->use);
    read_threads(now, daemon);
    now->quota = isolation_quota_read();
    now->stolen_known = read_stolen(&now->stolen_ns);
}

static const struct isolation_thread *find_thread(const struct isolation_kernel *in, int tid)
{
    static const struct isolation_thread none;
    for (int i = 0; i < in->threads; i++) {
        if (in->thread[i].tid == tid) {
            return &in->thread[i];
        }
    }
    return &none;
}

static void print_threads(const char *phase, const struct isolation_kernel *before,
                          const struct isolation_kernel *after)
{
    uint64_t ran_ns = 0;
    uint64_t waited_ns = 0;
    uint64_t worst_ns = 0;
    const char *worst = "none";
    for (int i = 0; i < after->threads; i++) {
        const struct isolation_thread *now = &after->thread[i];
        const struct isolation_thread *then = find_thread(before, now->tid);
        ran_ns += now->ran_ns - then->ran_ns;
        waited_ns += now->waited_ns - then->waited_ns;
        if (now->waited_ns - then->waited_ns > worst_ns) {
            worst_ns = now->waited_ns - then->waited_ns;
            worst = now->name;
        }
    }
    if (after->threads == 0) {
        printf("%-10s the daemon's threads: not readable\n", phase);
        return;
    }
    printf("%-10s the daemon's %d threads ran %.2f s and waited %.3f s for a CPU (most of all %s: %.3f s); %" PRIu64
           " times one was taken off a CPU\n",
           phase, after->threads, (double)ran_ns / 1e9, (double)waited_ns / 1e9, worst, (double)worst_ns / 1e9,
           after->involuntary - before->involuntary);
}

void isolation_kernel_print(const char *phase, const struct isolation_kernel *before,
                            const struct isolation_kernel *after, int cpus)
{
    double ns = (double)(after->at_ns - before->at_ns);
    print_threads(phase, before, after);
    printf("%-10s CPUs in use, of %d: ", phase, cpus);
    if (before->use_known && after->use_known) {
        printf("daemon %.2f, test %.2f", (double)(after->use.daemon_ns - before->use.daemon_ns) / ns,
               (double)(after->use.test_ns - before->use.test_ns) / ns);
    } else {
        printf("not readable");
    }
    printf("; stopped by the cgroup's quota: ");
    if (after->quota.known) {
        printf("%" PRIu64 " times, %.1f ms", after->quota.times - before->quota.times,
               (double)(after->quota.ns - before->quota.ns) / 1e6);
    } else {
        printf("not readable");
    }
    printf("; taken by a hypervisor: ");
    if (after->stolen_known) {
        printf("%.0f ms\n", (double)(after->stolen_ns - before->stolen_ns) / 1e6);
    } else {
        printf("not readable\n");
    }
}
