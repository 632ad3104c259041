/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library for tests/python/gpu/bench_torch.py: the kernels of the service in the runner's own process and on its own
 * stream, which is what a call through the service is compared with.
 */
#include <stdio.h>

#include "gpu.h"
#include "module.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT int mlacat_in_process_open(const char *root);
EXPORT void mlacat_in_process_call(const struct concat_mla_args *args, void *stream);

static struct gpu_info info;

/* 0, or 1 with the reason on standard error. `root` is the source tree. */
EXPORT int mlacat_in_process_open(const char *root)
{
    char reason[512];
    if (!gpu_open(&info, reason, sizeof(reason))) {
        fprintf(stderr, "%s\n", reason);
        return 1;
    }
    module_open(root);
    return 0;
}

EXPORT void mlacat_in_process_call(const struct concat_mla_args *args, void *stream)
{
    gpu_use_stream(stream);
    module_call(args, info.memory_bytes_per_ms, NULL);
}
