/* SPDX-License-Identifier: Apache-2.0 */
#include "in_process.h"

#include <stdio.h>

#include "concat_mla_text.h"

/* The call is one launch whatever the memory's speed is. */
#define ANY_BYTES_PER_MS (1ull << 30)

static bool failed(const struct gpu *gpu)
{
    fprintf(stderr, "mlacatctl: %s\n", gpu->error);
    return false;
}

const char *in_process_missing(void)
{
    return concat_mla_text_ptx[0] == '\0' ? "this mlacatctl has no kernel of its own: it was built without nvcc" : NULL;
}

void in_process_plan(const struct concat_mla_args *args, struct concat_mla_launch *launch)
{
    struct concat_mla_plan plan;

    concat_mla_plan_init(&plan, args, ANY_BYTES_PER_MS);
    concat_mla_plan_next(&plan, launch);
}

bool in_process_open(struct in_process *process, struct gpu *gpu, const struct concat_mla_launch *launch)
{
    char name[CONCAT_MLA_NAME_BYTES];

    concat_mla_kernel_name(launch->range.vector_bytes, name);
    return gpu_kernel_open(&process->kernel, gpu, concat_mla_text_ptx, name) || failed(gpu);
}

void in_process_close(struct in_process *process)
{
    gpu_kernel_close(&process->kernel);
}

bool in_process_launch(const struct in_process *process, const struct concat_mla_launch *launch)
{
    struct concat_mla_launch copy = *launch;
    void *parameters[] = {&copy.args, &copy.range};

    return gpu_kernel_launch(&process->kernel, copy.grid, copy.block, parameters) || failed(process->kernel.gpu);
}

bool in_process_wait(const struct in_process *process)
{
    return gpu_kernel_wait(&process->kernel) || failed(process->kernel.gpu);
}

bool in_process_run(const struct in_process *process, const struct concat_mla_launch *launch)
{
    return in_process_launch(process, launch) && in_process_wait(process);
}
