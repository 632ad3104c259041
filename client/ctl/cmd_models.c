/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>

#include "common.h"
#include "measure.h"
#include "models.h"
#include "names.h"
#include "table.h"
#include "trial.h"

#define BUDGET_NS 20000000u
#define TEXT 64

struct tour {
    struct ctl_list tokens;
    struct trial trial;
    struct table table;
    json_t *rows; /* with --json */
    size_t rows_nr;
    size_t verified_nr;
};

/* Wide enough for every row, because each is printed when it is done. */
static const struct table_column columns[] = {
    {"model", 15, false}, {"op", 19, false}, {"dtype", 8, false}, {"layout", 10, false}, {"shape", 17, false},
    {"bytes", 8, true},   {"rate", 9, true}, {"p50", 8, true},    {"p99", 8, true},      {"result", 0, false},
};

static const enum mlacat_dtype dtypes[] = {MLACAT_DTYPE_BF16, MLACAT_DTYPE_FP8_E4M3};

typedef bool (*shape_cb)(struct tour *tour, const struct model *model, const struct shape *shape);

static bool each_of_model(struct tour *tour, const struct model *model, enum mlacat_dtype dtype, shape_cb run)
{
    for (int op = 1; op < MLACAT_OP_END_; op++)
        for (int strided = 0; strided <= 1; strided++)
            for (size_t i = 0; i < tour->tokens.nr; i++) {
                struct shape shape =
                    models_shape(model, (enum mlacat_op)op, dtype, strided != 0, tour->tokens.value[i]);

                if (!run(tour, model, &shape))
                    return false;
            }
    return true;
}

/* The dtype is the outer loop: the inputs then are made twice and not for each row. */
static bool each(struct tour *tour, shape_cb run)
{
    for (size_t d = 0; d < sizeof(dtypes) / sizeof(dtypes[0]); d++)
        for (size_t m = 0; m < models_nr; m++)
            if (!each_of_model(tour, &models[m], dtypes[d], run))
                return false;
    return true;
}

/* Each buffer at its largest from the beginning: growing would make all inputs anew. */
static bool reserve(struct tour *tour, const struct model *model, const struct shape *shape)
{
    struct shape_layout layout;
    enum mlacat_status status;

    if (!shape_layout(shape, &layout)) {
        fprintf(stderr, "mlacatctl: %s at %llu tokens would need 2^46 bytes; give smaller --tokens\n", model->name,
                (unsigned long long)shape->dim0);
        return false;
    }
    for (int i = 0; i < SHAPE_OPERANDS; i++)
        if (tour->trial.area[i].bytes > layout.operand[i].buffer_bytes)
            layout.operand[i].buffer_bytes = tour->trial.area[i].bytes;
    status = trial_reserve(&tour->trial, &layout);
    return status == MLACAT_OK ||
           (ctl_fail_for("cannot make the buffers", status, area_message(&tour->trial.device)), false);
}

static bool run_row(struct tour *tour, const struct model *model, const struct shape *shape)
{
    struct trial_result result;
    char text[5][TEXT];
    const char *cells[] = {model->name,
                           names_op(shape->op)->name,
                           names_dtype(shape->dtype),
                           trial_layout_name(shape),
                           text[0],
                           text[1],
                           text[2],
                           text[3],
                           text[4],
                           result.text};

    trial_run(&tour->trial, shape, &result);
    tour->rows_nr++;
    tour->verified_nr += result.outcome == TRIAL_VERIFIED;
    if (tour->rows) {
        json_t *row = trial_json(shape, &result);

        json_object_set_new(row, "model", json_string(model->name));
        json_array_append_new(tour->rows, row);
        return true;
    }
    shape_text(shape, text[0], TEXT);
    measure_bytes_text((double)result.bytes, text[1], TEXT);
    measure_rate_text(result.bytes_per_s, text[2], TEXT);
    measure_time_text(result.p50_ns, text[3], TEXT);
    measure_time_text(result.p99_ns, text[4], TEXT);
    table_row(&tour->table, cells);
    table_flush(&tour->table, stdout);
    return true;
}

static void print_end(struct tour *tour, double seconds)
{
    if (tour->rows) {
        ctl_print_json(json_pack("{s:O, s:I, s:I, s:f}", "rows", tour->rows, "count", (json_int_t)tour->rows_nr,
                                 "verified", (json_int_t)tour->verified_nr, "seconds", seconds));
        return;
    }
    if (tour->verified_nr == tour->rows_nr)
        printf("\n%zu rows, every byte of all of them verified, in %.1f s\n", tour->rows_nr, seconds);
    else
        printf("\n%zu rows, %zu of them NOT verified, in %.1f s\n", tour->rows_nr, tour->rows_nr - tour->verified_nr,
               seconds);
}

/* The whole tour over an open client. */
static int travel(struct tour *tour)
{
    uint64_t begin = measure_now_ns();
    enum mlacat_status status = trial_open(&tour->trial);

    if (status != MLACAT_OK)
        return ctl_fail_for("cannot open a stream", status, area_message(&tour->trial.device));
    if (!each(tour, reserve) || !each(tour, run_row))
        return CTL_FAILED;
    print_end(tour, (double)(measure_now_ns() - begin) / 1e9);
    return tour->verified_nr == tour->rows_nr ? CTL_OK : CTL_FAILED;
}

int cmd_models(const struct ctl_options *options)
{
    struct tour tour = {.tokens = {.value = {1, 128, 4096}, .nr = 3},
                        .trial = {.uuid = options->device,
                                  .seed = options->seed,
                                  .repeat = options->repeat,
                                  .budget_ns = BUDGET_NS,
                                  .verify = true}};
    int result;

    if (options->tokens.nr > 0)
        tour.tokens = options->tokens;
    if (!ctl_connect(options, &tour.trial.client))
        return CTL_UNREACHABLE;
    table_init(&tour.table, columns, sizeof(columns) / sizeof(columns[0]));
    if (options->json)
        tour.rows = json_array();
    result = travel(&tour);
    table_fini(&tour.table);
    json_decref(tour.rows);
    trial_close(&tour.trial);
    mlacat_disconnect(tour.trial.client);
    return result;
}
