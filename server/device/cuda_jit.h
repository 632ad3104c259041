/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine code of kernels/concat_mla.cu for one kind of GPU: from the disk cache, from NVRTC in a helper process,
 * or from the PTX that was built in. Knows nothing of the driver: the caller's `load` tries each image in turn.
 *
 * Owns:     the cache directory's entries and, while jit_load runs, one helper process.
 * Thread:   any one that may block, before READY: the helper has a time limit of its own. jit_helper_main: the main
 *           thread of a process that does nothing else.
 * Lifetime: images are valid inside `load` only; nothing is kept after jit_load.
 * Errors:   jit_load: FAILED_PRECONDITION: no image could be had or none could be loaded; the message tells the last
 *           reason of each source. UNAVAILABLE, RESOURCE_EXHAUSTED, DATA_LOSS: `load` said so.
 */
#ifndef MLACAT_DEVICE_CUDA_JIT_H
#define MLACAT_DEVICE_CUDA_JIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

/* argv[1] of the helper: the same binary, run again. main() asks jit_is_helper first of all. */
#define JIT_HELPER_ARGUMENT "--jit-helper"

#define JIT_ARCH_BYTES 16
#define JIT_PATH_BYTES 512
#define JIT_LIMIT_MS 20000

enum jit_source { JIT_FROM_CACHE, JIT_FROM_NVRTC, JIT_FROM_BUILD };

struct jit_image {
    const void *bytes; /* cubin, or PTX with its NUL */
    size_t bytes_nr;
    bool ptx;
    enum jit_source source;
};

/* Compute capability; the rest may be zero. */
struct jit_options {
    int major;
    int minor;
    const char *cache_folder; /* NULL: $CACHE_DIRECTORY, $XDG_CACHE_HOME/mlacat or $HOME/.cache/mlacat; "": none */
    const char *nvrtc;        /* path of libnvrtc; NULL: the system's, 13 before 12 */
    uint32_t limit_ms;        /* for the helper; 0: JIT_LIMIT_MS */
};

/* What happened, for the log. */
struct jit_report {
    enum jit_source source;                 /* of the image that was loaded */
    char arch[JIT_ARCH_BYTES];              /* of the image: "sm_90", or "compute_75" for PTX */
    uint32_t nvrtc_version;                 /* 13000 = 13.0; 0: there is none */
    char nvrtc_reason[ERROR_MESSAGE_BYTES]; /* why NVRTC is absent or failed; "" if it did neither */
    char cache_folder[JIT_PATH_BYTES];      /* "": none */
    char cache_reason[ERROR_MESSAGE_BYTES]; /* why the cache cannot be used or written; "" if it can */
    uint64_t duration_ns;
};

/*
 * Calls `load` with one image after the other until it returns OK: the cache's, NVRTC's, the built-in PTX. UNAVAILABLE,
 * RESOURCE_EXHAUSTED and DATA_LOSS from `load` are the device's fault and end this; any other error is the image's, and
 * a cache entry with it is removed and built again. What NVRTC built goes into the cache once `load` took it; a
 * cache that cannot be written costs a log line. Blocks: milliseconds with a good cache entry, about a second without,
 * at most limit_ms beside what `load` takes.
 */
enum mlacat_status jit_load(const struct jit_options *options,
                            enum mlacat_status (*load)(void *owner, const struct jit_image *image, struct error *err),
                            void *owner, struct jit_report *report, struct error *err);

/* "cache", "nvrtc", "build" */
const char *jit_source_name(enum jit_source source);

bool jit_is_helper(int argc, char *const argv[]);
/* Serves one request from standard input, answers on standard output, logs on standard error. Returns the exit code. */
int jit_helper_main(int argc, char *const argv[]);

#endif
