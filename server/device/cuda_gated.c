/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_gated.h"

/* Behind the launch before it, which may let it begin before its own end. */
static int launch_behind(const struct cuda_api *cuda, struct cuda_stream *stream, struct cuda_function *function,
                         unsigned grid, unsigned block, void **parameters)
{
    const struct cuda_launch_attribute attribute = {.id = CUDA_LAUNCH_SERIALIZED_BY_PROGRAM,
                                                    .value = {.serialized_by_program = 1}};
    const struct cuda_launch_config config = {.grid_x = grid,
                                              .grid_y = 1,
                                              .grid_z = 1,
                                              .block_x = block,
                                              .block_y = 1,
                                              .block_z = 1,
                                              .stream = stream,
                                              .attributes = &attribute,
                                              .attributes_nr = 1};
    return cuda->cuLaunchKernelEx(&config, function, parameters, NULL);
}

/* The gate itself waits for all that the stream had before, as any launch without the attribute does. */
int cuda_gated_launch(const struct cuda_gated *gated, const struct cuda_kernels *kernels, const struct cuda_api *cuda,
                      struct cuda_stream *stream, bool *part)
{
    struct cuda_gated all = *gated;
    struct concat_mla_launch copy = *gated->copy;
    struct cuda_function *function = kernels->gated[__builtin_ctz(copy.range.vector_bytes)];
    int result = cuda->cuLaunchKernel(kernels->gate, 1, 1, 1, CONCAT_MLA_GATE_THREADS, 1, 1, 0, stream,
                                      (void *[]){&all.gate, &all.ticket}, NULL);
    *part = result == CUDA_RESULT_OK;
    if (result == CUDA_RESULT_OK) {
        result = launch_behind(cuda, stream, function, copy.grid, copy.block,
                               (void *[]){&copy.args, &copy.range, &all.ticket});
    }
    if (result == CUDA_RESULT_OK) {
        result =
            launch_behind(cuda, stream, kernels->tail, 1, CONCAT_MLA_GATE_THREADS, (void *[]){&all.end, &all.ticket});
    }
    return result;
}
