/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The folder of compiled kernels: one file an entry, never changed once it has its name.
 *
 * Owns:     the folder's descriptor; the entries belong to whoever runs the daemon, and a package may put some there.
 * Thread:   any, one at a time. Several processes may share the folder: an entry appears whole (rename) or not at all,
 *           and the last of several equal ones stays.
 * Lifetime: open -> read/write/remove -> close. close accepts a zeroed cache.
 * Errors:   none that stop anybody: a folder or an entry that cannot be used is logged, and as good as not there.
 */
#ifndef MLACAT_DEVICE_JIT_CACHE_H
#define MLACAT_DEVICE_JIT_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sha256.h"
#include "status.h"

#define JIT_CACHE_PATH_BYTES 512
/* A larger entry is broken. */
#define JIT_CACHE_IMAGE_MAX ((size_t)64 << 20)

struct jit_cache {
    bool open;
    int folder_fd;
    char folder[JIT_CACHE_PATH_BYTES]; /* "" if the environment names none */
    char reason[ERROR_MESSAGE_BYTES];  /* why the cache cannot be used, or the last write failed; "" if all is well */
};

/* What an entry was built from. */
struct jit_cache_key {
    const char *arch;           /* "sm_90" */
    uint8_t text[SHA256_BYTES]; /* of sources and options */
    uint32_t nvrtc_version;     /* 13000 = 13.0; 0, for reading only: whichever there is, the newest first */
};

struct jit_cache_image {
    void *bytes; /* malloc'ed */
    size_t bytes_nr;
    bool ptx;
    uint32_t nvrtc_version;
};

/*
 * `folder` NULL: the first of $CACHE_DIRECTORY (systemd), $XDG_CACHE_HOME/mlacat and $HOME/.cache/mlacat that is set;
 * "": no cache. Makes the folder and its parent if they are missing. The close removes entries of the daemon's user
 * that nobody has read for 30 days.
 */
void jit_cache_open(struct jit_cache *cache, const char *folder);
void jit_cache_close(struct jit_cache *cache);

/*
 * False: there is no such entry. One that others than root and the daemon's user could have written, or whose checksum
 * is wrong, is removed and counts as missing: what is loaded from here runs with access to every client's memory.
 */
bool jit_cache_read(struct jit_cache *cache, const struct jit_cache_key *key, struct jit_cache_image *image);
/* True: the entry is on the disk. */
bool jit_cache_write(struct jit_cache *cache, const struct jit_cache_key *key, const struct jit_cache_image *image);
void jit_cache_remove(struct jit_cache *cache, const struct jit_cache_key *key);

#endif
