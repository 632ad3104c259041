/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GPU kernels, bit for bit, over widths, heads, layouts, alignments, absent parts and split calls. Every operand
 * lies in an arena of random bytes with guards around it; after a call the whole of each arena must be what the CPU
 * says, so a byte beside the output that changed is found as well as a wrong one in it.
 *
 *     kernel_matrix [root of the source tree] [small | tight | all]
 *         small   what fits into a few MiB, call by call, many calls in one launch, launches that tell their end
 *         tight   the same without guards, for compute-sanitizer: any access beside an operand is an invalid one
 *         all     small, and calls past 2^31 elements and 2^32 bytes (default)
 *
 * Exit status 77 = no GPU here.
 */
#include <stdio.h>
#include <string.h>

#include "gpu.h"
#include "kernel_large.h"
#include "kernel_many.h"
#include "kernel_signal.h"
#include "matrix_case.h"
#include "module.h"

#define ROWS_BYTES_MAX ((uint64_t)3 << 20) /* of one case's output */

static bool tight;

static bool run_case(struct matrix_case *c, unsigned *launches)
{
    matrix_case_open(c);
    struct concat_mla_args args = matrix_case_args(c);
    module_call(&args, c->bytes_per_ms, launches);
    bool good = matrix_case_check(c);
    matrix_case_close(c);
    return good;
}

static bool run_small(void)
{
    unsigned turn = 0;
    unsigned all = 0;
    unsigned good_all = 0;
    printf("%-12s %6s %8s %8s %8s %8s %8s %8s\n", "widths", "cases", "16", "8", "4", "2", "1", "result");
    for (size_t w = 0; w < matrix_widths_nr; w++) {
        unsigned launches[KERNEL_NR] = {0};
        unsigned cases = 0;
        unsigned good = 0;
        for (int layout = 0; layout < LAYOUT_NR; layout++) {
            for (size_t m = 0; m < (tight ? 3 : matrix_misalignments_nr); m++) {
                struct matrix_case c;
                matrix_case_make(&c, w, (enum layout)layout, m, turn++, ROWS_BYTES_MAX);
                c.tight = tight;
                good += run_case(&c, launches);
                cases++;
            }
        }
        printf("%5llu +%5llu %6u %8u %8u %8u %8u %8u %8s\n", (unsigned long long)matrix_widths[w][0],
               (unsigned long long)matrix_widths[w][1], cases, launches[KERNEL_16], launches[KERNEL_8],
               launches[KERNEL_4], launches[KERNEL_2], launches[KERNEL_1], good == cases ? "ok" : "WRONG");
        all += cases;
        good_all += good;
    }
    printf("%u of %u cases are right%s (the other columns: launches of each kernel)\n\n", good_all, all,
           tight ? ", without guards" : ", guard bytes too");
    return all == good_all;
}

int main(int argc, char **argv)
{
    struct gpu_info info;
    char reason[512];
    const char *root = argc > 1 ? argv[1] : ".";
    const char *what = argc > 2 ? argv[2] : "all";
    if (!gpu_open(&info, reason, sizeof(reason))) {
        printf("SKIPPED: %s\n", reason);
        return GPU_SKIPPED;
    }
    printf("%s, sm_%d, driver for CUDA %d.%d, NVRTC %d.%d\n\n", info.name, info.arch, info.driver_version / 1000,
           info.driver_version % 1000 / 10, info.nvrtc_version / 1000, info.nvrtc_version % 1000 / 10);
    tight = strcmp(what, "tight") == 0;
    module_open(root);
    bool good = run_small();
    good = kernel_many_run(info.memory_bytes_per_ms, tight) && good;
    good = kernel_signal_run(info.memory_bytes_per_ms, tight) && good;
    if (strcmp(what, "all") == 0) {
        good = kernel_large_run(info.memory_bytes_per_ms) && good;
    }
    module_close();
    gpu_close();
    printf("%s\n", good ? "all right" : "there are wrong bytes");
    return good ? 0 : 1;
}
