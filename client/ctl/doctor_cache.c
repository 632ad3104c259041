/* SPDX-License-Identifier: Apache-2.0 */
/* The folder of compiled kernels: found as the daemon finds it, in its environment and in its view of the files. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "doctor.h"
#include "measure.h"

#define ENTRY_SUFFIX ".kernel"
#define FREE_MINIMUM ((uint64_t)16 << 20)
#define OTHERS_WRITE 0022

struct folder {
    char path[DOCTOR_PATH_BYTES];      /* as the daemon calls it */
    char path_here[DOCTOR_PATH_BYTES]; /* the same folder, for us */
};

/* False: none of the variables names one. */
static bool choose_folder(const struct doctor *doctor, char *path, size_t size, bool *readable)
{
    char value[DOCTOR_PATH_BYTES / 2];

    if (doctor_daemon_variable(doctor, "CACHE_DIRECTORY", value, sizeof(value), readable) && value[0] == '/') {
        snprintf(path, size, "%.*s", (int)strcspn(value, ":"), value);
        return true;
    }
    if (doctor_daemon_variable(doctor, "XDG_CACHE_HOME", value, sizeof(value), readable) && value[0] == '/') {
        snprintf(path, size, "%s/mlacat", value);
        return true;
    }
    if (doctor_daemon_variable(doctor, "HOME", value, sizeof(value), readable) && value[0] == '/') {
        snprintf(path, size, "%s/.cache/mlacat", value);
        return true;
    }
    return false;
}

static void count_entries(const char *path, unsigned *entries, uint64_t *bytes)
{
    DIR *folder = opendir(path);
    struct dirent *entry;

    *entries = 0;
    *bytes = 0;
    while (folder && (entry = readdir(folder)) != NULL) {
        size_t length = strlen(entry->d_name);
        struct stat st;

        if (length > strlen(ENTRY_SUFFIX) && strcmp(entry->d_name + length - strlen(ENTRY_SUFFIX), ENTRY_SUFFIX) == 0 &&
            fstatat(dirfd(folder), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
            *entries += 1;
            *bytes += (uint64_t)st.st_size;
        }
    }
    if (folder)
        closedir(folder);
}

static void judge(struct doctor *doctor, const struct folder *folder, const struct stat *st)
{
    struct statvfs disk = {0};
    unsigned entries;
    uint64_t bytes;
    uint64_t free_bytes;
    char bytes_text[32];
    char free_text[32];
    bool foreign = st->st_uid != doctor->uid && st->st_uid != 0;
    bool writable = doctor->uid == 0 || (st->st_uid == doctor->uid && (st->st_mode & S_IWUSR) != 0);
    bool open = (st->st_mode & OTHERS_WRITE) != 0;
    bool full;

    count_entries(folder->path_here, &entries, &bytes);
    free_bytes = statvfs(folder->path_here, &disk) == 0 ? (uint64_t)disk.f_bavail * disk.f_frsize : FREE_MINIMUM;
    full = free_bytes < FREE_MINIMUM;
    measure_bytes_text((double)bytes, bytes_text, sizeof(bytes_text));
    measure_bytes_text((double)free_bytes, free_text, sizeof(free_text));
    doctor_found(doctor, "cache", foreign || open || !writable || full ? DOCTOR_WARN : DOCTOR_OK,
                 "%.200s: owner uid %u, mode %04o, kernels: %u (%s), %s free", folder->path, st->st_uid,
                 st->st_mode & 07777u, entries, bytes_text, free_text);
    if (foreign || open)
        doctor_advise(doctor,
                      "others than uid %u can write there, and what lies there runs with access to every "
                      "client's memory: chown %u, chmod 0700",
                      doctor->uid, doctor->uid);
    else if (!writable)
        doctor_advise(doctor,
                      "mlacatd (uid %u) cannot write there, so kernels that are not in it are built at each "
                      "start; CacheDirectory= of its unit makes one that it can",
                      doctor->uid);
    else if (full)
        doctor_advise(doctor, "make room on that disk: kernels that cannot be kept are built at each start");
}

void doctor_cache(struct doctor *doctor)
{
    struct folder folder;
    bool readable = false;
    struct stat st;

    if (doctor->pid == 0 || !doctor->serves_gpu) {
        doctor_found(doctor, "cache", DOCTOR_SKIPPED, "%s",
                     !doctor->client      ? "there is no connection to mlacatd"
                     : doctor->serves_gpu ? "mlacatd is in another pid namespace"
                                          : "mlacatd serves no GPU, so it compiles no kernels");
        return;
    }
    if (!choose_folder(doctor, folder.path, sizeof(folder.path), &readable)) {
        doctor_found(doctor, "cache", readable ? DOCTOR_WARN : DOCTOR_SKIPPED,
                     readable ? "none: mlacatd has none of CACHE_DIRECTORY, XDG_CACHE_HOME and HOME"
                              : "the environment of mlacatd cannot be read; be root or its user");
        if (readable)
            doctor_advise(doctor, "name a folder in one of them: without it kernels are built at each start");
        return;
    }
    snprintf(folder.path_here, sizeof(folder.path_here), "/proc/%d/root%.4000s", (int)doctor->pid, folder.path);
    if (stat(folder.path_here, &st) < 0) {
        doctor_found(doctor, "cache", DOCTOR_WARN, "%.200s: %s", folder.path, strerror(errno));
        doctor_advise(doctor,
                      "let mlacatd (uid %u) make it, or make it for it; until then kernels are built at each "
                      "start",
                      doctor->uid);
        return;
    }
    judge(doctor, &folder, &st);
}
