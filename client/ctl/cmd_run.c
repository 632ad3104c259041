/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "common.h"
#include "measure.h"
#include "names.h"
#include "table.h"
#include "trial.h"

#define BUDGET_NS 500000000u
#define TEXT 64

/* Width of the compressed Q and KV in front of k_rope in a row of the fused down-projection. */
#define LEAD_K (1536u + 512u)
#define TOKENS 4096u

static struct shape shape_of(const struct ctl_options *options)
{
    struct shape shape = {
        .op = options->op, .dtype = options->dtype, .gap = options->gap, .strided = options->strided, .v = options->v};

    if (options->op == MLACAT_OP_CONCAT_MLA_K) {
        shape.dim0 = options->tokens.nr > 0 ? options->tokens.value[0] : TOKENS;
        shape.dim1 = options->heads;
        shape.first = options->nope;
        shape.second = options->rope;
        shape.lead = LEAD_K;
    } else {
        shape.dim0 = options->dim0;
        shape.dim1 = options->dim1;
        shape.first = options->a;
        shape.second = options->b;
        shape.lead = options->nope;
    }
    return shape;
}

static void print_row(const struct shape *shape, const struct trial_result *result)
{
    static const struct table_column columns[] = {{"op", 0, false},     {"shape", 0, false}, {"dtype", 0, false},
                                                  {"layout", 0, false}, {"bytes", 0, true},  {"rate", 0, true},
                                                  {"p50", 0, true},     {"p99", 0, true},    {"result", 0, false}};
    char extents[TEXT];
    char bytes[TEXT];
    char rate[TEXT];
    char p50[TEXT];
    char p99[TEXT];
    const char *cells[] = {names_op(shape->op)->name,
                           extents,
                           names_dtype(shape->dtype),
                           trial_layout_name(shape),
                           bytes,
                           rate,
                           p50,
                           p99,
                           result->text};
    struct table table;

    shape_text(shape, extents, sizeof(extents));
    measure_bytes_text((double)result->bytes, bytes, sizeof(bytes));
    measure_rate_text(result->bytes_per_s, rate, sizeof(rate));
    measure_time_text(result->p50_ns, p50, sizeof(p50));
    measure_time_text(result->p99_ns, p99, sizeof(p99));
    table_init(&table, columns, 9);
    table_row(&table, cells);
    table_flush(&table, stdout);
    table_fini(&table);
}

int cmd_run(const struct ctl_options *options)
{
    struct trial trial = {.uuid = options->device,
                          .seed = options->seed,
                          .repeat = options->repeat,
                          .budget_ns = BUDGET_NS,
                          .verify = options->verify};
    struct shape shape = shape_of(options);
    struct trial_result result;
    enum mlacat_status status;

    if (!ctl_connect(options, &trial.client))
        return CTL_UNREACHABLE;
    status = trial_open(&trial);
    if (status != MLACAT_OK) {
        ctl_fail_for("cannot open a stream", status, area_message(&trial.device));
        trial_close(&trial);
        mlacat_disconnect(trial.client);
        return CTL_FAILED;
    }
    trial_run(&trial, &shape, &result);
    trial_close(&trial);
    mlacat_disconnect(trial.client);
    if (options->json)
        ctl_print_json(trial_json(&shape, &result));
    else if (result.outcome == TRIAL_FAILED)
        fprintf(stderr, "mlacatctl: %s: %s\n", names_op(shape.op)->name, result.text);
    else
        print_row(&shape, &result);
    return result.outcome >= TRIAL_UNVERIFIED ? CTL_OK : CTL_FAILED;
}
