/* SPDX-License-Identifier: Apache-2.0 */
#include "module.h"

#include <stdio.h>
#include <stdlib.h>

#include "gpu.h"

#define REFERENCE_GRID 2048
#define REFERENCE_BLOCK 256
#define WIDTHS_MAX 32

static struct {
    struct gpu_module *kernels;
    struct gpu_module *reference;
    struct gpu_function *generic[KERNEL_NR];
    struct gpu_function *widths[WIDTHS_MAX];
    struct gpu_function *fill_random;
    struct gpu_function *count_changed;
    struct gpu_function *count_wrong;
    uint64_t *count; /* on the GPU */
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
    char option[(WIDTHS_MAX + 1) * CONCAT_MLA_WIDTHS_OPTION_BYTES];
    const char *options[] = {option, NULL};
    unsigned nr;
    const struct concat_mla_widths *start_set = concat_mla_start_set(&nr);
    snprintf(kernels, sizeof(kernels), "%s/kernels/concat_mla.cu", root);
    snprintf(header, sizeof(header), "%s/kernels/concat_mla_args.h", root);
    snprintf(reference, sizeof(reference), "%s/tests/gpu/reference.cu", root);
    concat_mla_widths_option(start_set, nr, option, sizeof(option));
    module.kernels = gpu_compile(kernels, header, options);
    module.reference = gpu_compile(reference, header, NULL);
}

void module_open(const char *root)
{
    static const unsigned vectors[KERNEL_NR] = {0, 16, 8, 4, 2, 1};
    char name[CONCAT_MLA_NAME_BYTES];
    unsigned nr;
    const struct concat_mla_widths *start_set = concat_mla_start_set(&nr);
    compile(root);
    for (int kernel = KERNEL_16; kernel < KERNEL_NR; kernel++) {
        concat_mla_generic_name(vectors[kernel], name);
        module.generic[kernel] = find(module.kernels, name);
    }
    for (unsigned i = 0; i < nr; i++) {
        concat_mla_widths_name(&start_set[i], name);
        module.widths[i] = find(module.kernels, name);
    }
    module.fill_random = find(module.reference, "fill_random");
    module.count_changed = find(module.reference, "count_changed");
    module.count_wrong = find(module.reference, "count_wrong");
    module.count = gpu_alloc(sizeof(*module.count));
}

void module_close(void)
{
    gpu_free(module.count);
    gpu_unload(module.kernels);
    gpu_unload(module.reference);
}

static enum module_kernel choose(const struct concat_mla_launch *launch, bool generic, struct gpu_function **function)
{
    unsigned nr;
    const struct concat_mla_widths *start_set = concat_mla_start_set(&nr);
    enum module_kernel kernel = KERNEL_16;
    for (unsigned vector = launch->vector_bytes; vector < 16; vector *= 2) {
        kernel++;
    }
    *function = module.generic[kernel];
    for (unsigned i = 0; i < nr && kernel == KERNEL_16 && !generic; i++) {
        if (start_set[i].a_bytes == launch->args.a_bytes && start_set[i].b_bytes == launch->args.b_bytes) {
            *function = module.widths[i];
            return KERNEL_WIDTHS;
        }
    }
    return kernel;
}

enum module_kernel module_launch(const struct concat_mla_launch *launch, bool generic)
{
    struct concat_mla_launch copy = *launch; /* the driver takes pointers to what it does not change */
    struct gpu_function *function;
    enum module_kernel kernel = choose(launch, generic, &function);
    gpu_launch(function, launch->grid, launch->block, (void *[]){&copy.args, &copy.range});
    return kernel;
}

void module_call(const struct concat_mla_args *args, uint64_t bytes_per_ms, bool generic, unsigned *launches)
{
    struct concat_mla_plan plan;
    struct concat_mla_launch launch;
    concat_mla_plan_init(&plan, args, bytes_per_ms);
    while (concat_mla_plan_next(&plan, &launch)) {
        enum module_kernel kernel = module_launch(&launch, generic);
        if (launches) {
            launches[kernel]++;
        }
    }
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
