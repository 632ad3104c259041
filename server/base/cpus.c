/* SPDX-License-Identifier: Apache-2.0 */
#include "cpus.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define PATH_BYTES 4096
#define CPUS_MOST (1u << 16)

/* The own cgroup v2, "/system.slice/mlacatd.service" say: the line "0::<path>". */
static bool own_cgroup(const char *membership, char path[PATH_BYTES])
{
    FILE *file = fopen(membership, "re");
    if (!file) {
        return false;
    }
    bool found = false;
    while (!found && fgets(path, PATH_BYTES, file)) {
        found = strncmp(path, "0::", 3) == 0;
    }
    fclose(file);
    if (found) {
        path[strcspn(path, "\n")] = '\0';
        memmove(path, path + 3, strlen(path + 3) + 1);
    }
    return found;
}

/* One file cpu.max: "<quota us> <period us>", or "max <period us>" for no limit. */
static uint32_t read_cpu_max(const char *mount, const char *cgroup)
{
    char path[2 * PATH_BYTES];
    snprintf(path, sizeof(path), "%s%s/cpu.max", mount, cgroup);
    FILE *file = fopen(path, "re");
    if (!file) {
        return UINT32_MAX;
    }
    uint64_t quota = 0;
    uint64_t period = 0;
    bool limited = fscanf(file, "%" SCNu64 " %" SCNu64, &quota, &period) == 2 && period > 0;
    fclose(file);
    if (!limited || quota / period >= UINT32_MAX) {
        return UINT32_MAX;
    }
    uint32_t cpus = (uint32_t)(quota / period);
    return cpus > 0 ? cpus : 1;
}

uint32_t cpus_by_quota(const char *membership, const char *mount)
{
    char cgroup[PATH_BYTES];
    if (!own_cgroup(membership, cgroup)) {
        return UINT32_MAX;
    }
    uint32_t least = UINT32_MAX;
    for (;;) {
        uint32_t here = read_cpu_max(mount, cgroup);
        least = here < least ? here : least;
        char *slash = strrchr(cgroup, '/');
        if (!slash) {
            return least;
        }
        *slash = '\0';
    }
}

static uint32_t cpus_by_affinity(void)
{
    /* The kernel refuses (EINVAL) a mask smaller than its own. */
    for (size_t most = 1024; most <= CPUS_MOST; most *= 2) {
        cpu_set_t *set = CPU_ALLOC(most);
        if (!set) {
            return UINT32_MAX;
        }
        size_t bytes = CPU_ALLOC_SIZE(most);
        bool ok = sched_getaffinity(0, bytes, set) == 0;
        bool too_small = !ok && errno == EINVAL;
        int cpus = ok ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (!too_small) {
            return cpus > 0 ? (uint32_t)cpus : UINT32_MAX;
        }
    }
    return UINT32_MAX;
}

uint32_t cpus_usable(void)
{
    uint32_t affinity = cpus_by_affinity();
    uint32_t quota = cpus_by_quota("/proc/self/cgroup", "/sys/fs/cgroup");
    uint32_t least = affinity < quota ? affinity : quota;
    return least == UINT32_MAX ? 1 : least;
}

bool cpus_split(uint32_t most, cpu_set_t *first, cpu_set_t *rest)
{
    CPU_ZERO(first);
    if (sched_getaffinity(0, sizeof(*rest), rest) != 0) {
        return false; /* more CPUs than a cpu_set_t has room for */
    }
    int cpus_nr = CPU_COUNT(rest);
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, rest)) {
            CPU_SET(cpu, first);
            CPU_CLR(cpu, rest);
            break;
        }
    }
    return cpus_nr >= 2 && cpus_nr <= (int)most;
}
