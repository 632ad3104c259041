/* SPDX-License-Identifier: Apache-2.0 */
#include "trial.h"

#include <inttypes.h>
#include <stdio.h>

#include "measure.h"
#include "names.h"
#include "random.h"
#include "reference.h"

#define REPEAT_MIN 3
#define REPEAT_MAX 100

enum mlacat_status trial_open(struct trial *trial)
{
    enum mlacat_status status = area_open(&trial->device, trial->client, trial->uuid);

    return status == MLACAT_OK ? area_stream_open(&trial->device, MLACAT_TRANSPORT_AUTO, &trial->stream) : status;
}

void trial_close(struct trial *trial)
{
    mlacat_stream_close(trial->stream);
    trial->stream = NULL;
    for (int i = 0; i < SHAPE_OPERANDS; i++)
        area_free(&trial->device, &trial->area[i]);
    area_close(&trial->device);
}

enum mlacat_status trial_reserve(struct trial *trial, const struct shape_layout *layout)
{
    for (int i = 0; i < SHAPE_OPERANDS; i++) {
        uint64_t bytes = layout->operand[i].buffer_bytes;
        enum mlacat_status status;

        if (trial->area[i].bytes >= bytes)
            continue;
        area_free(&trial->device, &trial->area[i]);
        trial->dtype = (enum mlacat_dtype)0;
        status = area_new(&trial->device, bytes, &trial->area[i]);
        if (status != MLACAT_OK)
            return status;
    }
    return MLACAT_OK;
}

/* Contents follow from seed, dtype and position, so areas that were filled once serve every shape of the dtype. */
static enum mlacat_status fill_inputs(struct trial *trial, enum mlacat_dtype dtype)
{
    if (trial->dtype == dtype)
        return MLACAT_OK;
    for (int i = SHAPE_FIRST; i < SHAPE_OPERANDS; i++) {
        const struct area *area = &trial->area[i];
        enum mlacat_status status;

        random_fill(trial->seed + (uint64_t)i, dtype, area->data, area->bytes);
        status = area_upload(&trial->device, area, area->bytes);
        if (status != MLACAT_OK)
            return status;
    }
    trial->dtype = dtype;
    return MLACAT_OK;
}

static bool inputs_unchanged(const struct trial *trial, const struct shape *shape, const struct shape_layout *layout,
                             uint8_t *const data[3], struct difference *difference)
{
    for (int i = SHAPE_FIRST; i < SHAPE_OPERANDS; i++) {
        size_t offset;
        uint8_t expected;

        if (random_unchanged(trial->seed + (uint64_t)i, trial->dtype, data[i], layout->operand[i].buffer_bytes, &offset,
                             &expected))
            continue;
        *difference = (struct difference){.where = names_op(shape->op)->operand[i],
                                          .kind = DIFFERENCE_INPUT,
                                          .offset = offset,
                                          .bytes = 1,
                                          .expected = {expected},
                                          .found = {data[i][offset]}};
        return false;
    }
    return true;
}

static bool fail(struct trial_result *result, enum mlacat_status status, const char *message)
{
    result->outcome = TRIAL_FAILED;
    snprintf(result->text, sizeof(result->text), "%s: %s", mlacat_status_name(status), message);
    return false;
}

static bool verify(struct trial *trial, const struct shape *shape, const struct shape_layout *layout,
                   uint8_t *const data[3], struct trial_result *result)
{
    struct difference difference;

    for (int i = 0; i < SHAPE_OPERANDS; i++) {
        enum mlacat_status status = area_download(&trial->device, &trial->area[i], layout->operand[i].buffer_bytes);

        if (status != MLACAT_OK)
            return fail(result, status, area_message(&trial->device));
    }
    result->outcome = TRIAL_VERIFIED;
    snprintf(result->text, sizeof(result->text), "verified");
    if (inputs_unchanged(trial, shape, layout, data, &difference) && reference_check(shape, layout, data, &difference))
        return true;
    result->outcome = TRIAL_WRONG;
    reference_text(&difference, result->text, sizeof(result->text));
    return false;
}

/* One call, timed into `samples` unless that is NULL. */
static bool call_once(struct trial *trial, const struct mlacat_call *call, struct samples *samples,
                      struct trial_result *result)
{
    struct mlacat_result ended = {.size = sizeof(ended)};
    uint64_t begin = measure_now_ns();
    enum mlacat_status status = mlacat_run(trial->stream, call, &ended);

    if (samples)
        samples_add(samples, (double)(measure_now_ns() - begin));
    if (status == MLACAT_OK)
        return true;
    return fail(result, status, ended.ended ? ended.message : mlacat_error_message());
}

static bool call_timed(struct trial *trial, const struct mlacat_call *call, struct samples *samples,
                       struct trial_result *result)
{
    uint64_t until = measure_now_ns() + trial->budget_ns;

    while (!samples_full(samples)) {
        if (trial->repeat == 0 && samples->nr >= REPEAT_MIN && measure_now_ns() >= until)
            break;
        if (!call_once(trial, call, samples, result))
            return false;
    }
    result->p50_ns = samples_quantile(samples, 0.5);
    result->p99_ns = samples_quantile(samples, 0.99);
    result->samples = samples->nr;
    if (result->p50_ns > 0)
        result->bytes_per_s = (double)result->bytes / (result->p50_ns / 1e9);
    return true;
}

static bool prepare(struct trial *trial, const struct shape *shape, struct shape_layout *layout, uint8_t *data[3],
                    struct trial_result *result)
{
    enum mlacat_status status;

    if (!shape_layout(shape, layout))
        return fail(result, MLACAT_INVALID_ARGUMENT,
                    "the tensors would be larger than 2^46 bytes; take smaller extents");
    status = trial_reserve(trial, layout);
    if (status == MLACAT_OK)
        status = fill_inputs(trial, shape->dtype);
    if (status != MLACAT_OK)
        return fail(result, status, area_message(&trial->device));
    for (int i = 0; i < SHAPE_OPERANDS; i++)
        data[i] = trial->area[i].data;
    reference_poison(shape, layout, data);
    status = area_upload(&trial->device, &trial->area[SHAPE_OUT], layout->operand[SHAPE_OUT].buffer_bytes);
    return status == MLACAT_OK || fail(result, status, area_message(&trial->device));
}

void trial_run(struct trial *trial, const struct shape *shape, struct trial_result *result)
{
    struct mlacat_call call = {.size = sizeof(call), .op = shape->op, .dtype = shape->dtype};
    struct shape_layout layout;
    struct samples samples;
    uint8_t *data[SHAPE_OPERANDS];

    *result = (struct trial_result){.outcome = TRIAL_UNVERIFIED, .text = "not verified", .bytes = shape_bytes(shape)};
    if (!prepare(trial, shape, &layout, data, result))
        return;
    if (!samples_init(&samples, trial->repeat > 0 ? trial->repeat : REPEAT_MAX)) {
        fail(result, MLACAT_RESOURCE_EXHAUSTED, "out of memory for the samples; give a smaller --repeat");
        return;
    }
    for (int i = 0; i < SHAPE_OPERANDS; i++)
        call.operand[i] = ctl_tensor(&layout.operand[i], trial->area[i].buffer);
    if (call_once(trial, &call, NULL, result) && (!trial->verify || verify(trial, shape, &layout, data, result)) &&
        call_timed(trial, &call, &samples, result) && trial->verify)
        verify(trial, shape, &layout, data, result);
    samples_fini(&samples);
}

const char *trial_layout_name(const struct shape *shape)
{
    return shape->strided ? "strided" : "contiguous";
}

json_t *trial_json(const struct shape *shape, const struct trial_result *result)
{
    return json_pack("{s:s, s:[I,I,I,I], s:s, s:s, s:I, s:f, s:f, s:f, s:I, s:b, s:s}", "op", names_op(shape->op)->name,
                     "shape", (json_int_t)shape->dim0, (json_int_t)shape->dim1, (json_int_t)shape->first,
                     (json_int_t)shape->second, "dtype", names_dtype(shape->dtype), "layout", trial_layout_name(shape),
                     "bytes", (json_int_t)result->bytes, "bytes_per_s", result->bytes_per_s, "p50_us",
                     result->p50_ns / 1e3, "p99_us", result->p99_ns / 1e3, "samples", (json_int_t)result->samples,
                     "verified", result->outcome == TRIAL_VERIFIED, "result", result->text);
}
