/* SPDX-License-Identifier: Apache-2.0 */
#include "kernel_many.h"

#include <stdio.h>

#include "matrix_case.h"
#include "module.h"

#define BATCHES 200
#define TIGHT_BATCHES 20
#define ROWS_BYTES_MAX ((uint64_t)1 << 18) /* of one call's output */

static struct matrix_case cases[CONCAT_MLA_MANY_CALLS];

/* Calls of any widths, layout, alignment and size. */
static void open_cases(unsigned nr, bool tight)
{
    for (unsigned i = 0; i < nr; i++) {
        size_t widths = matrix_random() % matrix_widths_nr;
        enum layout layout = (enum layout)(matrix_random() % LAYOUT_NR);
        size_t misalignment = matrix_random() % matrix_misalignments_nr;
        uint64_t rows_bytes = ROWS_BYTES_MAX >> matrix_random() % 12;
        matrix_case_make(&cases[i], widths, layout, misalignment, (unsigned)matrix_random(), rows_bytes);
        cases[i].tight = tight;
        matrix_case_open(&cases[i]);
    }
}

static bool run_batch(unsigned nr, uint64_t bytes_per_ms)
{
    static struct concat_mla_many many;
    bool good = true;
    concat_mla_many_init(&many, bytes_per_ms);
    for (unsigned i = 0; i < nr; i++) {
        struct concat_mla_args args = matrix_case_args(&cases[i]);
        if (!concat_mla_many_add(&many, &args)) {
            printf("WRONG: call %u of %u does not fit\n", i, nr);
            return false;
        }
    }
    module_many(&many);
    for (unsigned i = 0; i < nr; i++) {
        good = matrix_case_check(&cases[i]) && good;
    }
    return good;
}

bool kernel_many_run(uint64_t bytes_per_ms, bool tight)
{
    unsigned batches = tight ? TIGHT_BATCHES : BATCHES;
    unsigned calls = 0;
    unsigned good = 0;
    for (unsigned batch = 0; batch < batches; batch++) {
        unsigned nr = batch % CONCAT_MLA_MANY_CALLS + 1;
        open_cases(nr, tight);
        good += run_batch(nr, bytes_per_ms);
        for (unsigned i = 0; i < nr; i++) {
            matrix_case_close(&cases[i]);
        }
        calls += nr;
    }
    printf("%u of %u launches of many calls (%u calls) are right\n\n", good, batches, calls);
    return good == batches;
}
