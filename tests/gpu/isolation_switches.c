/* SPDX-License-Identifier: Apache-2.0 */
#include "isolation_switches.h"

#include <linux/perf_event.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DATA_PAGES 128            /* a power of two */
#define STINTS 16384              /* that are kept; a power of two */
#define FLAGS_BEHIND_NAME 7       /* fields, in /proc/PID/stat */
#define KERNEL_THREAD 0x00200000u /* PF_KTHREAD */

struct stint {
    uint64_t from_ns;
    uint64_t to_ns;
    uint32_t pid;
    uint32_t tid;
};

struct isolation_switches {
    int fd;
    struct perf_event_mmap_page *page; /* the data is behind it */
    size_t data_bytes;
    uint64_t last_ns; /* of the last switch; 0: not known */
    uint64_t nr;
    struct stint stint[STINTS];
};

/* What the kernel writes when a thread leaves the CPU: PERF_SAMPLE_TID and PERF_SAMPLE_TIME are of that one. */
struct record {
    struct perf_event_header header;
    uint32_t next_pid;
    uint32_t next_tid;
    uint32_t pid;
    uint32_t tid;
    uint64_t time_ns;
};

struct isolation_switches *isolation_switches_open(int cpu)
{
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE,
                                   .size = sizeof(attr),
                                   .config = PERF_COUNT_SW_DUMMY,
                                   .sample_type = PERF_SAMPLE_TID | PERF_SAMPLE_TIME,
                                   .sample_id_all = 1,
                                   .context_switch = 1,
                                   .use_clockid = 1,
                                   .clockid = CLOCK_MONOTONIC};
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    struct isolation_switches *made = calloc(1, sizeof(*made));
    if (!made) {
        return NULL;
    }
    made->data_bytes = DATA_PAGES * page_bytes;
    made->fd = (int)syscall(SYS_perf_event_open, &attr, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC);
    if (made->fd < 0) {
        free(made);
        return NULL;
    }
    made->page = mmap(NULL, page_bytes + made->data_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, made->fd, 0);
    if (made->page == MAP_FAILED) {
        close(made->fd);
        free(made);
        return NULL;
    }
    return made;
}

void isolation_switches_close(struct isolation_switches *switches)
{
    munmap(switches->page, (size_t)sysconf(_SC_PAGESIZE) + switches->data_bytes);
    close(switches->fd);
    free(switches);
}

/* --------------------------------------------------------------------------------------------------------- records */

/* A record may go on at the beginning of the data. */
static void copy_out(const struct isolation_switches *switches, uint64_t at, void *to, size_t bytes)
{
    const unsigned char *data = (const unsigned char *)switches->page + sysconf(_SC_PAGESIZE);
    size_t from = (size_t)(at % switches->data_bytes);
    size_t first = bytes < switches->data_bytes - from ? bytes : switches->data_bytes - from;
    memcpy(to, data + from, first);
    memcpy((unsigned char *)to + first, data, bytes - first);
}

static void note_leave(struct isolation_switches *switches, const struct record *record)
{
    if (switches->last_ns != 0) {
        switches->stint[switches->nr++ % STINTS] =
            (struct stint){switches->last_ns, record->time_ns, record->pid, record->tid};
    }
    switches->last_ns = record->time_ns;
}

void isolation_switches_take(struct isolation_switches *switches)
{
    uint64_t head = __atomic_load_n(&switches->page->data_head, __ATOMIC_ACQUIRE);
    uint64_t at = switches->page->data_tail;
    while (at < head) {
        struct record record = {0};
        copy_out(switches, at, &record.header, sizeof(record.header));
        if (record.header.type == PERF_RECORD_LOST) {
            switches->last_ns = 0;
        } else if (record.header.type == PERF_RECORD_SWITCH_CPU_WIDE && record.header.size == sizeof(record) &&
                   (record.header.misc & PERF_RECORD_MISC_SWITCH_OUT) != 0) {
            copy_out(switches, at, &record, sizeof(record));
            note_leave(switches, &record);
        }
        at += record.header.size;
    }
    __atomic_store_n(&switches->page->data_tail, at, __ATOMIC_RELEASE);
}

/* ------------------------------------------------------------------------------------------------------- who it was */

static void read_text(char *text, size_t text_bytes, const char *path)
{
    FILE *file = fopen(path, "re");
    size_t size = file ? fread(text, 1, text_bytes - 1, file) : 0;
    text[size] = '\0';
    if (file) {
        fclose(file);
    }
}

static void read_name(const struct stint *stint, char name[ISOLATION_NAME_BYTES])
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%u/task/%u/comm", stint->pid, stint->tid);
    read_text(name, ISOLATION_NAME_BYTES, path);
    name[strcspn(name, "\n")] = '\0';
    if (name[0] == '\0') {
        snprintf(name, ISOLATION_NAME_BYTES, stint->pid == 0 ? "idle" : "ended since");
    }
}

/* By "PID (name) state ppid pgrp session tty tpgid flags ...". Pid 0 is the idle thread, or a process that is outside
 * of this container; UINT32_MAX is one that was ending. */
static bool is_other(uint32_t pid, const struct isolation_users *users)
{
    char path[64];
    char text[512] = "";
    if (pid != 0 && pid != UINT32_MAX && !isolation_is_user(users, (pid_t)pid)) {
        snprintf(path, sizeof(path), "/proc/%u/stat", pid);
        read_text(text, sizeof(text), path);
    }
    const char *name = strchr(text, '(');
    const char *field = strrchr(text, ')');
    for (int i = 0; field && i < FLAGS_BEHIND_NAME; i++) {
        field = strchr(field + 1, ' ');
    }
    return name && field && strncmp(name, "(nvidia-cuda-mps", 16) != 0 &&
           (strtoul(field, NULL, 10) & KERNEL_THREAD) == 0;
}

struct isolation_holders isolation_switches_between(struct isolation_switches *switches,
                                                    const struct isolation_users *users, uint64_t from_ns,
                                                    uint64_t to_ns)
{
    struct isolation_holders holders = {0};
    const struct stint *longest = NULL;
    uint32_t asked = 0;
    bool other = false; /* is `asked` */
    isolation_switches_take(switches);
    uint64_t first = switches->nr > STINTS ? switches->nr - STINTS : 0;
    for (uint64_t i = first; i < switches->nr; i++) {
        const struct stint *stint = &switches->stint[i % STINTS];
        uint64_t begin_ns = stint->from_ns > from_ns ? stint->from_ns : from_ns;
        uint64_t end_ns = stint->to_ns < to_ns ? stint->to_ns : to_ns;
        if (begin_ns >= end_ns) {
            continue;
        }
        if (stint->pid != asked) {
            asked = stint->pid;
            other = is_other(asked, users);
        }
        holders.others_ns += other ? end_ns - begin_ns : 0;
        if (end_ns - begin_ns > holders.longest_ns) {
            holders.longest_ns = end_ns - begin_ns;
            holders.longest_is_other = other;
            longest = stint;
        }
    }
    if (longest) {
        read_name(longest, holders.longest);
    }
    return holders;
}
