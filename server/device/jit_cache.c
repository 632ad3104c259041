/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An entry is a header and the image; its name is made of its key, so that a seeded cache can be searched without
 * NVRTC: concat_mla-<arch>-<half of the text's hash>-<NVRTC version>.kernel
 */
#include "jit_cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "log.h"

#define NAME_BYTES 128
#define ENTRY_SUFFIX ".kernel"
#define TEMPORARY_PREFIX ".new-"
#define TEMPORARY_MAX_AGE_S 3600 /* older: its writer is dead */
#define ENTRY_PREFIX "concat_mla-"
#define ENTRY_MAX_AGE_S ((time_t)30 * 24 * 3600) /* since its last use */
#define LOOKED_AT_MAX 4096                       /* of a folder that may have become anybody's */

static const char entry_magic[8] = {'M', 'L', 'A', 'C', 'A', 'T', 'K', '1'};

struct entry_header {
    char magic[8];
    uint32_t nvrtc_version;
    uint32_t ptx;
    uint64_t bytes_nr;
    char arch[16];
    uint8_t text[SHA256_BYTES];
    uint8_t checksum[SHA256_BYTES]; /* of the header up to here, and the image */
};
_Static_assert(sizeof(struct entry_header) == 104, "the layout on the disk has no holes");

/* ---- the folder ---- */

/* "" if the environment names none. A path that does not fit, or is relative, names none. */
static void choose_folder(char *folder, size_t bytes_nr)
{
    const char *systemd = getenv("CACHE_DIRECTORY"); /* a list with ':', ours has one row */
    const char *xdg = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    int length = 0;
    if (systemd && systemd[0] == '/') {
        length = snprintf(folder, bytes_nr, "%.*s", (int)strcspn(systemd, ":"), systemd);
    } else if (xdg && xdg[0] == '/') {
        length = snprintf(folder, bytes_nr, "%s/mlacat", xdg);
    } else if (home && home[0] == '/') {
        length = snprintf(folder, bytes_nr, "%s/.cache/mlacat", home);
    }
    if (length <= 0 || (size_t)length >= bytes_nr) {
        folder[0] = '\0';
    }
}

__attribute__((format(printf, 2, 3))) static void complain(struct jit_cache *cache, const char *format, ...)
{
    char folder[JIT_CACHE_PATH_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(cache->reason, sizeof(cache->reason), format, args);
    va_end(args);
    log_warning("kernel_cache", "folder=%s reason=\"%s\"", log_quote(cache->folder, folder, sizeof(folder)),
                cache->reason);
}

static void make_folder(const char *folder)
{
    char parent[JIT_CACHE_PATH_BYTES];
    snprintf(parent, sizeof(parent), "%s", folder);
    char *slash = strrchr(parent, '/');
    if (slash && slash != parent) {
        *slash = '\0';
        mkdir(parent, 0700);
    }
    mkdir(folder, 0700); /* whatever went wrong, the open that follows says it */
}

static bool begins_with(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

static bool ends_with(const char *name, const char *suffix)
{
    size_t length = strlen(name);
    return length >= strlen(suffix) && strcmp(name + length - strlen(suffix), suffix) == 0;
}

/* How old a file of this name may become; 0: it is none of ours. */
static time_t max_age_s(const char *name)
{
    if (begins_with(name, TEMPORARY_PREFIX)) {
        return TEMPORARY_MAX_AGE_S;
    }
    return begins_with(name, ENTRY_PREFIX) && ends_with(name, ENTRY_SUFFIX) ? ENTRY_MAX_AGE_S : 0;
}

/* What a writer left that was killed, and entries that nobody used for long: of other GPUs, compilers, versions. */
static void remove_old(struct jit_cache *cache)
{
    int fd = openat(cache->folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = fd >= 0 ? fdopendir(fd) : NULL;
    if (!listing) {
        if (fd >= 0) {
            close(fd);
        }
        return;
    }
    time_t now = time(NULL);
    struct dirent *entry;
    for (int looked_at = 0; looked_at < LOOKED_AT_MAX && (entry = readdir(listing)); looked_at++) {
        time_t max_age = max_age_s(entry->d_name);
        struct stat st;
        if (max_age != 0 && fstatat(cache->folder_fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            now - st.st_mtime > max_age && st.st_uid == geteuid()) {
            unlinkat(cache->folder_fd, entry->d_name, 0);
        }
    }
    closedir(listing);
}

void jit_cache_open(struct jit_cache *cache, const char *folder)
{
    memset(cache, 0, sizeof(*cache));
    if (folder) {
        if ((size_t)snprintf(cache->folder, sizeof(cache->folder), "%s", folder) >= sizeof(cache->folder)) {
            complain(cache, "the path has more than %zu bytes: use a shorter one", sizeof(cache->folder) - 1);
            return;
        }
    } else {
        choose_folder(cache->folder, sizeof(cache->folder));
    }
    if (cache->folder[0] == '\0') {
        snprintf(cache->reason, sizeof(cache->reason), "none of $CACHE_DIRECTORY, $XDG_CACHE_HOME and $HOME names one");
        return;
    }
    make_folder(cache->folder);
    cache->folder_fd = open(cache->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (cache->folder_fd < 0) {
        complain(cache, "cannot open it: %s; kernels are built at each start", strerror(errno));
        return;
    }
    cache->open = true;
}

void jit_cache_close(struct jit_cache *cache)
{
    if (cache->open) {
        remove_old(cache); /* now: what was read since the start is not old any more */
        close(cache->folder_fd);
        cache->open = false;
    }
}

/* ---- names ---- */

/* All of the name but the version and the suffix. */
static void entry_prefix(const struct jit_cache_key *key, char name[NAME_BYTES])
{
    int length = snprintf(name, NAME_BYTES, ENTRY_PREFIX "%.15s-", key->arch);
    for (int i = 0; i < SHA256_BYTES / 2; i++) {
        length += snprintf(name + length, NAME_BYTES - (size_t)length, "%02x", key->text[i]);
    }
    snprintf(name + length, NAME_BYTES - (size_t)length, "-");
}

static void entry_name(const struct jit_cache_key *key, char name[NAME_BYTES])
{
    entry_prefix(key, name);
    size_t length = strlen(name);
    snprintf(name + length, NAME_BYTES - length, "%" PRIu32 ENTRY_SUFFIX, key->nvrtc_version);
}

/* The newest NVRTC version that an entry for `key` below `limit` was built with; 0: there is none. */
static uint32_t newest_version(struct jit_cache *cache, const struct jit_cache_key *key, uint32_t limit)
{
    char prefix[NAME_BYTES];
    uint32_t newest = 0;
    entry_prefix(key, prefix);
    int fd = openat(cache->folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = fd >= 0 ? fdopendir(fd) : NULL;
    if (!listing) {
        if (fd >= 0) {
            close(fd);
        }
        return 0;
    }
    for (struct dirent *entry = readdir(listing); entry; entry = readdir(listing)) {
        if (strncmp(entry->d_name, prefix, strlen(prefix)) == 0) {
            char *end;
            unsigned long version = strtoul(entry->d_name + strlen(prefix), &end, 10);
            if (strcmp(end, ENTRY_SUFFIX) == 0 && version > newest && version < limit) {
                newest = (uint32_t)version;
            }
        }
    }
    closedir(listing);
    return newest;
}

/* ---- entries ---- */

static void checksum_of(const struct entry_header *header, const void *bytes, uint8_t checksum[SHA256_BYTES])
{
    struct sha256 hash;
    sha256_init(&hash);
    sha256_update(&hash, header, offsetof(struct entry_header, checksum));
    sha256_update(&hash, bytes, header->bytes_nr);
    sha256_final(&hash, checksum);
}

static struct entry_header make_header(const struct jit_cache_key *key, const struct jit_cache_image *image)
{
    struct entry_header header = {.nvrtc_version = key->nvrtc_version, .ptx = image->ptx, .bytes_nr = image->bytes_nr};
    memcpy(header.magic, entry_magic, sizeof(header.magic));
    memcpy(header.text, key->text, sizeof(header.text));
    snprintf(header.arch, sizeof(header.arch), "%s", key->arch);
    checksum_of(&header, image->bytes, header.checksum);
    return header;
}

static bool read_all(int fd, void *bytes, size_t bytes_nr)
{
    char *to = bytes;
    while (bytes_nr > 0) {
        ssize_t got = read(fd, to, bytes_nr);
        if (got <= 0) {
            if (got < 0 && errno == EINTR) {
                continue;
            }
            return false;
        }
        to += got;
        bytes_nr -= (size_t)got;
    }
    return true;
}

static bool write_all(int fd, const void *bytes, size_t bytes_nr)
{
    const char *from = bytes;
    while (bytes_nr > 0) {
        ssize_t put = write(fd, from, bytes_nr);
        if (put < 0) {
            if (errno == EINTR) {
                continue;
            }
            return false;
        }
        from += put;
        bytes_nr -= (size_t)put;
    }
    return true;
}

/* Why the file may not be used; NULL: it may. */
static const char *mistrust(const struct stat *st)
{
    if (!S_ISREG(st->st_mode)) {
        return "it is no regular file";
    }
    if ((st->st_uid != geteuid() && st->st_uid != 0) || (st->st_mode & (S_IWGRP | S_IWOTH))) {
        return "others than root and the daemon's user can write it";
    }
    if (st->st_size <= (off_t)sizeof(struct entry_header) ||
        (size_t)st->st_size > sizeof(struct entry_header) + JIT_CACHE_IMAGE_MAX) {
        return "its size is wrong";
    }
    return NULL;
}

/* Reads what stands in the file. NULL: good; else what is wrong with it. image->bytes is to be freed in any case. */
static const char *read_entry(int fd, const struct jit_cache_key *key, struct jit_cache_image *image)
{
    struct entry_header header;
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return strerror(errno);
    }
    const char *wrong = mistrust(&st);
    if (wrong) {
        return wrong;
    }
    if (!read_all(fd, &header, sizeof(header)) || memcmp(header.magic, entry_magic, sizeof(entry_magic)) != 0 ||
        header.bytes_nr != (uint64_t)st.st_size - sizeof(header)) {
        return "its header is wrong";
    }
    image->bytes_nr = header.bytes_nr;
    image->ptx = header.ptx != 0;
    image->nvrtc_version = key->nvrtc_version;
    image->bytes = malloc(image->bytes_nr);
    if (!image->bytes) {
        return "there is no memory for it";
    }
    if (!read_all(fd, image->bytes, image->bytes_nr)) {
        return "it is shorter than it says";
    }
    struct entry_header expected = make_header(key, image);
    return memcmp(&header, &expected, sizeof(header)) == 0 ? NULL : "its checksum or its key is wrong";
}

static bool read_version(struct jit_cache *cache, const struct jit_cache_key *key, struct jit_cache_image *image)
{
    char name[NAME_BYTES];
    memset(image, 0, sizeof(*image));
    entry_name(key, name);
    /* O_NONBLOCK: a pipe in that place must not hold the daemon up. */
    int fd = openat(cache->folder_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) {
        return false;
    }
    const char *wrong = fd < 0 ? strerror(errno) : read_entry(fd, key, image);
    if (fd >= 0) {
        futimens(fd, NULL); /* it is in use; a package's file stays as it is, and is not removed either */
        close(fd);
    }
    if (wrong) {
        log_warning("kernel_cache", "entry=%s action=rebuild reason=\"%s\"", name, wrong);
        free(image->bytes);
        memset(image, 0, sizeof(*image));
        unlinkat(cache->folder_fd, name, 0);
    }
    return !wrong;
}

bool jit_cache_read(struct jit_cache *cache, const struct jit_cache_key *key, struct jit_cache_image *image)
{
    struct jit_cache_key exact = *key;
    if (!cache->open) {
        return false;
    }
    if (key->nvrtc_version != 0) {
        return read_version(cache, key, image);
    }
    exact.nvrtc_version = UINT32_MAX;
    while ((exact.nvrtc_version = newest_version(cache, key, exact.nvrtc_version)) != 0) {
        if (read_version(cache, &exact, image)) {
            return true;
        }
    }
    return false;
}

/* The name is new to this folder, whoever else writes there: pids repeat in other containers. */
static int open_temporary(struct jit_cache *cache, char name[NAME_BYTES])
{
    uint64_t random = 0;
    if (getrandom(&random, sizeof(random), 0) != (ssize_t)sizeof(random)) {
        return -1;
    }
    snprintf(name, NAME_BYTES, TEMPORARY_PREFIX "%016" PRIx64, random);
    return openat(cache->folder_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
}

bool jit_cache_write(struct jit_cache *cache, const struct jit_cache_key *key, const struct jit_cache_image *image)
{
    char temporary[NAME_BYTES];
    char name[NAME_BYTES];
    if (!cache->open) {
        return false;
    }
    struct entry_header header = make_header(key, image);
    entry_name(key, name);
    int fd = open_temporary(cache, temporary);
    if (fd < 0) {
        complain(cache, "cannot make a file there: %s; kernels are built at each start", strerror(errno));
        return false;
    }
    bool written =
        write_all(fd, &header, sizeof(header)) && write_all(fd, image->bytes, image->bytes_nr) && fsync(fd) == 0;
    int error = errno;
    if (close(fd) != 0 && written) {
        written = false;
        error = errno;
    }
    if (written && renameat(cache->folder_fd, temporary, cache->folder_fd, name) != 0) {
        written = false;
        error = errno;
    }
    if (!written) {
        unlinkat(cache->folder_fd, temporary, 0);
        complain(cache, "cannot write %.80s: %s; kernels are built at each start", name, strerror(error));
        return false;
    }
    fsync(cache->folder_fd);
    return true;
}

void jit_cache_remove(struct jit_cache *cache, const struct jit_cache_key *key)
{
    char name[NAME_BYTES];
    if (cache->open) {
        entry_name(key, name);
        unlinkat(cache->folder_fd, name, 0);
    }
}
