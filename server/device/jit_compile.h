/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVRTC at arm's length: the daemon's binary runs again as a helper that loads NVRTC and compiles one text. In the
 * daemon NVRTC would change limits of the whole process, keep a hundred MiB mapped, and take the daemon down with it.
 *
 * Owns:     the helper process and its socket.
 * Thread:   any one that may block; the helper dies with the thread that started it.
 * Lifetime: start -> run (once) -> stop. stop accepts a zeroed compiler, and after a failed start nothing is left.
 * Errors:   UNAVAILABLE: no NVRTC here. DEADLINE_EXCEEDED: the time limit passed. INTERNAL: the helper crashed or broke
 *           the rules. INVALID_ARGUMENT: NVRTC refuses the text; its log goes to standard error too.
 */
#ifndef MLACAT_DEVICE_JIT_COMPILE_H
#define MLACAT_DEVICE_JIT_COMPILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "jit_text.h"
#include "status.h"

struct jit_compiler {
    pid_t helper; /* 0: none */
    int fd;
    uint64_t deadline_ns;
    uint32_t limit_ms;
    uint32_t nvrtc_version; /* 13000 = 13.0 */
    uint32_t archs_nr;
    uint32_t archs[JIT_ARCHS_MAX]; /* 90 = sm_90, in rising order */
};

/* `nvrtc`: path of the library; NULL: the system's. `limit_ms` is for everything from here to the image. */
enum mlacat_status jit_compiler_start(struct jit_compiler *compiler, const char *nvrtc, uint32_t limit_ms,
                                      struct error *err);
/* OK: image->bytes is the caller's to free. */
enum mlacat_status jit_compiler_run(struct jit_compiler *compiler, const struct jit_text *text,
                                    struct jit_compiled *image, struct error *err);
void jit_compiler_stop(struct jit_compiler *compiler);

#endif
