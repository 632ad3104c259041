/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A child process that owns GPU memory and names it for its parent: a process cannot open its own. It starts CUDA only
 * when it is asked for memory.
 *
 * Owns:     the child; the child its memory, until the next request or its end.
 * Thread:   one.
 * Lifetime: exporter_start, before this process uses CUDA, .. exporter_stop; the child ends with the parent's socket.
 * Errors:   exporter_start: false, errno set. exporter_ask: false, `error` says why.
 */
#ifndef MLACAT_CTL_EXPORTER_H
#define MLACAT_CTL_EXPORTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "gpu.h"

#define EXPORTER_HANDLES_MAX 32

struct exporter {
    pid_t pid; /* 0: not started */
    int fd;
};

bool exporter_start(struct exporter *exporter);
/* A zeroed one is fine. */
void exporter_stop(struct exporter *exporter);

/* `nr` allocations of `bytes` on the device, in place of those of the request before, which must be closed. */
bool exporter_ask(const struct exporter *exporter, const char *uuid, size_t bytes, unsigned nr,
                  struct gpu_handle handles[EXPORTER_HANDLES_MAX], char error[GPU_ERROR_BYTES]);

#endif
