/* SPDX-License-Identifier: Apache-2.0 */
#include "module.h"

#include <stdio.h>
#include <stdlib.h>

#include "gpu.h"

#define REFERENCE_GRID 2048
#define REFERENCE_BLOCK 256

static struct {
    struct gpu_module *kernels;
    struct gpu_module *reference;
    struct gpu_function *vector[KERNEL_NR];
    struct gpu_function *signal[KERNEL_NR];
    struct gpu_function *gated[KERNEL_NR];
    struct gpu_function *gate; /* NULL: there is none, and none of the gated and no tail */
    struct gpu_function *tail;
    struct gpu_function *many;
    struct gpu_function *fill_random;
    struct gpu_function *count_changed;
    struct gpu_function *count_wrong;
    uint64_t *count;  /* on the GPU */
    uint64_t *ticket; /* on the GPU */
} module;

static struct gpu_function *find(struct gpu_module *from, const char *name)
{
    struct gpu_function *function = gpu_find(from, name);
    if (!function) {
        fprintf(stderr, "there is no kernel %s\n", name);
        exit(1);
    }
    return function;
}

static void compile(const char *root)
{
    char kernels[4096];
    char reference[4096];
    char header[4096];
    snprintf(kernels, sizeof(kernels), "%s/kernels/concat_mla.cu", root);
    snprintf(header, sizeof(header), "%s/kernels/concat_mla_args.h", root);
    snprintf(reference, sizeof(reference), "%s/tests/gpu/reference.cu", root);
    module.kernels = gpu_compile(kernels, header, NULL);
    module.reference = gpu_compile(reference, header, NULL);
}

static void find_gated(const unsigned vectors[KERNEL_NR])
{
    char name[CONCAT_MLA_NAME_BYTES];
    module.gate = gpu_find(module.kernels, CONCAT_MLA_GATE_NAME);
    for (int kernel = KERNEL_16; kernel < KERNEL_NR && module.gate; kernel++) {
        concat_mla_gated_name(vectors[kernel], name);
        module.gated[kernel] = find(module.kernels, name);
    }
    module.tail = module.gate ? find(module.kernels, CONCAT_MLA_TAIL_NAME) : NULL;
}

void module_open(const char *root)
{
    static const unsigned vectors[KERNEL_NR] = {16, 8, 4, 2, 1};
    char name[CONCAT_MLA_NAME_BYTES];
    compile(root);
    for (int kernel = KERNEL_16; kernel < KERNEL_NR; kernel++) {
        concat_mla_kernel_name(vectors[kernel], name);
        module.vector[kernel] = find(module.kernels, name);
        concat_mla_signal_name(vectors[kernel], name);
        module.signal[kernel] = find(module.kernels, name);
    }
    find_gated(vectors);
    module.many = find(module.kernels, CONCAT_MLA_MANY_NAME);
    module.fill_random = find(module.reference, "fill_random");
    module.count_changed = find(module.reference, "count_changed");
    module.count_wrong = find(module.reference, "count_wrong");
    module.count = gpu_alloc(sizeof(*module.count));
    module.ticket = gpu_alloc(sizeof(*module.ticket));
}

void module_close(void)
{
    gpu_free(module.count);
    gpu_free(module.ticket);
    gpu_unload(module.kernels);
    gpu_unload(module.reference);
}

static int kernel_of(const struct concat_mla_launch *launch)
{
    return KERNEL_1 - __builtin_ctz(launch->range.vector_bytes);
}

void module_call(const struct concat_mla_args *args, uint64_t bytes_per_ms, unsigned *launches)
{
    struct concat_mla_plan plan;
    struct concat_mla_launch launch;
    concat_mla_plan_init(&plan, args, bytes_per_ms);
    while (concat_mla_plan_next(&plan, &launch)) {
        int kernel = kernel_of(&launch);
        gpu_launch(module.vector[kernel], launch.grid, launch.block, (void *[]){&launch.args, &launch.range});
        if (launches) {
            launches[kernel]++;
        }
    }
}

void module_many(struct concat_mla_many *many)
{
    if (many->grid > 0) {
        gpu_launch(module.many, many->grid, CONCAT_MLA_MANY_THREADS, (void *[]){&many->args});
    }
}

void module_signal(const struct concat_mla_launch *launch, const struct concat_mla_signal *signal)
{
    struct concat_mla_launch one = *launch;
    struct concat_mla_signal end = *signal;
    gpu_launch(module.signal[kernel_of(&one)], 1, concat_mla_signal_threads(&one),
               (void *[]){&one.args, &one.range, &end});
}

bool module_has_gate(void)
{
    return module.gate;
}

void module_gated(const struct concat_mla_launch *launch, const struct concat_mla_signal *signal, uint64_t number)
{
    struct concat_mla_launch one = *launch;
    struct concat_mla_signal words = *signal;
    struct concat_mla_ticket ticket = {.address = (uintptr_t)module.ticket, .number = number};
    gpu_launch(module.gate, 1, CONCAT_MLA_GATE_THREADS, (void *[]){&words.gate, &ticket});
    gpu_launch_behind(module.gated[kernel_of(&one)], one.grid, one.block, (void *[]){&one.args, &one.range, &ticket});
    gpu_launch_behind(module.tail, 1, CONCAT_MLA_GATE_THREADS, (void *[]){&words.end, &ticket});
}

void module_fill_random(void *to, uint64_t size, uint64_t seed)
{
    gpu_launch(module.fill_random, REFERENCE_GRID, REFERENCE_BLOCK, (void *[]){&to, &size, &seed});
}

static uint64_t count(struct gpu_function *function, void **arguments)
{
    uint64_t nr = 0;
    gpu_fill(module.count, 0, sizeof(*module.count));
    gpu_launch(function, REFERENCE_GRID, REFERENCE_BLOCK, arguments);
    gpu_download(&nr, module.count, sizeof(nr));
    return nr;
}

uint64_t module_count_changed(const void *at, uint64_t begin, uint64_t end, uint64_t seed)
{
    return count(module.count_changed, (void *[]){&at, &begin, &end, &seed, &module.count});
}

uint64_t module_count_wrong(const struct concat_mla_args *args)
{
    struct concat_mla_args copy = *args;
    return count(module.count_wrong, (void *[]){&copy, &module.count});
}
