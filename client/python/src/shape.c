/* SPDX-License-Identifier: Apache-2.0 */
#include "shape.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "raise.h"

#define TEXT_BYTES 192 /* VIEW_DIMS numbers of 64 bits */

const struct shape_rule shape_rules[] = {
    {MLACAT_OP_CONCAT_MLA_K, true, {"k", "k_nope", "k_rope"}},
    {MLACAT_OP_CONCAT_MLA_ABSORB_Q, false, {"out", "a", "b"}},
    {MLACAT_OP_CONCAT_MLA_ABSORB_Q, false, {"q_out", "ql_nope", "q_pe"}},
};
const unsigned shape_rules_nr = sizeof(shape_rules) / sizeof(shape_rules[0]);

/* One leading dimension in all operands. */
struct lead {
    int64_t extent;
    int64_t strides[OPERANDS];
};

static const char *shape_text(const struct view *view, char text[TEXT_BYTES])
{
    int at = snprintf(text, TEXT_BYTES, "[");
    for (int i = 0; i < view->dims; i++) {
        at += snprintf(text + at, TEXT_BYTES - (size_t)at, "%s%" PRId64, i == 0 ? "" : ", ", view->shape[i]);
    }
    snprintf(text + at, TEXT_BYTES - (size_t)at, "]");
    return text;
}

/* ---------------------------------------------------------------------------------------------------- checks */

static int check_same(const struct shape_rule *rule, const struct view views[OPERANDS])
{
    if (views[0].read_only) {
        return raise_argument_error("%s is read-only, or a copy that its library made; it is written to",
                                    rule->names[0]);
    }
    for (int k = 1; k < OPERANDS; k++) {
        if (views[k].dtype != views[0].dtype) {
            return raise_type_error("%s has dtype %s, %s has %s; all three must have one dtype", rule->names[k],
                                    mlacat_dtype_name(views[k].dtype), rule->names[0],
                                    mlacat_dtype_name(views[0].dtype));
        }
        if (views[k].device_type != views[0].device_type || views[k].device_id != views[0].device_id) {
            return raise_argument_error("%s is on device %s:%d, %s on %s:%d; all three must be on one device",
                                        rule->names[k], views[k].device_type == DLPACK_CUDA ? "cuda" : "cpu",
                                        views[k].device_id, rule->names[0],
                                        views[0].device_type == DLPACK_CUDA ? "cuda" : "cpu", views[0].device_id);
        }
    }
    return 0;
}

static int refuse_shape(const struct shape_rule *rule, const struct view views[OPERANDS], int operand, const char *why)
{
    char has[TEXT_BYTES];
    char against[TEXT_BYTES];
    return raise_argument_error("%s has shape %s, %s has %s: %s", rule->names[operand],
                                shape_text(&views[operand], has), rule->names[0], shape_text(&views[0], against), why);
}

/* [N, R] where [N, 1, R] is meant. */
static void add_head_dimension(struct view *view)
{
    int last = view->dims - 1;
    view->shape[last + 1] = view->shape[last];
    view->strides[last + 1] = view->strides[last];
    view->shape[last] = 1;
    view->strides[last] = 0;
    view->dims++;
}

static int check_shapes(const struct shape_rule *rule, const struct view views[OPERANDS])
{
    int dims = views[0].dims;
    int least = rule->broadcast ? 2 : 1;
    if (dims < least) {
        return raise_argument_error("%s has %d dimensions; at least %d are needed", rule->names[0], dims, least);
    }
    for (int k = 1; k < OPERANDS; k++) {
        if (views[k].dims != dims) {
            return refuse_shape(rule, views, k, "the number of dimensions differs");
        }
        for (int d = 0; d < dims - 1; d++) {
            bool one = rule->broadcast && k == 2 && d == dims - 2;
            if (views[k].shape[d] != (one ? 1 : views[0].shape[d])) {
                return refuse_shape(rule, views, k,
                                    one ? "the dimension of the heads must be 1 there"
                                        : "all dimensions but the last must be equal");
            }
        }
    }
    int64_t room = views[0].shape[dims - 1] - views[1].shape[dims - 1];
    if (room != views[2].shape[dims - 1]) {
        char text[TEXT_BYTES];
        snprintf(text, sizeof(text), "the last dimension must be that of %s plus that of %s, %" PRId64 " + %" PRId64,
                 rule->names[1], rule->names[2], views[1].shape[dims - 1], views[2].shape[dims - 1]);
        return refuse_shape(rule, views, 1, text);
    }
    return 0;
}

static int check_strides(const struct shape_rule *rule, const struct view views[OPERANDS])
{
    int last = views[0].dims - 1;
    for (int d = 0; d <= last; d++) {
        if (views[0].shape[d] == 0) {
            return 0; /* strides of an array without elements mean nothing */
        }
    }
    for (int k = 0; k < OPERANDS; k++) {
        if (views[k].shape[last] > 1 && views[k].strides[last] != 1) {
            return raise_argument_error("%s has stride %lld in its last dimension; it must be 1", rule->names[k],
                                        (long long)views[k].strides[last]);
        }
    }
    for (int d = 0; d < last; d++) {
        if (views[0].shape[d] > 1 && views[0].strides[d] == 0) {
            return raise_argument_error("%s has stride 0 in dimension %d of extent %lld: its rows are one memory",
                                        rule->names[0], d, (long long)views[0].shape[d]);
        }
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------------------- joining */

static bool can_join(const struct lead *outer, const struct lead *inner)
{
    for (int k = 0; k < OPERANDS; k++) {
        int64_t step;
        if (__builtin_mul_overflow(inner->strides[k], inner->extent, &step) || outer->strides[k] != step) {
            return false;
        }
    }
    return true;
}

/* Joins neighbours until `most` are left. Returns how many there are then. */
static int join(struct lead *leads, int nr, int most)
{
    for (int i = nr - 1; i > 0 && nr > most; i--) {
        if (can_join(&leads[i - 1], &leads[i])) {
            leads[i].extent *= leads[i - 1].extent;
            memmove(&leads[i - 1], &leads[i], (size_t)(nr - i) * sizeof(*leads));
            nr--;
        }
    }
    return nr;
}

/* The leading dimensions as two; those of extent 1 say nothing. */
static int fill_leads(const struct shape_rule *rule, const struct view views[OPERANDS], struct mlacat_call *call)
{
    struct lead leads[VIEW_DIMS];
    int last = views[0].dims - 1;
    int kept = rule->broadcast ? 1 : 0; /* dimensions that stay as they are, the innermost */
    int nr = 0;
    for (int d = 0; d < last; d++) {
        if (views[0].shape[d] == 1 && d < last - kept) {
            continue;
        }
        struct lead lead = {.extent = views[0].shape[d]};
        for (int k = 0; k < OPERANDS; k++) {
            lead.strides[k] = views[k].shape[d] == 1 ? 0 : views[k].strides[d];
        }
        leads[nr++] = lead;
    }
    int free_nr = join(leads, nr - kept, 2 - kept);
    if (free_nr > 2 - kept) {
        return raise_argument_error(
            "the %d leading dimensions of %s cannot be seen as %d without a copy, in all three; "
            "pass views of 3 dimensions",
            last - kept, rule->names[0], 2 - kept);
    }
    if (kept != 0) {
        leads[free_nr] = leads[nr - 1];
    }
    nr = free_nr + kept;
    for (int i = 0; i < 2; i++) {
        /* Missing ones go to the front. */
        const struct lead *lead = i < 2 - nr ? NULL : &leads[i - (2 - nr)];
        for (int k = 0; k < OPERANDS; k++) {
            bool one = lead == NULL || (rule->broadcast && k == 2 && i == 1);
            call->operand[k].shape[i] = one ? 1 : (uint64_t)lead->extent;
            call->operand[k].strides[i] = lead == NULL ? 0 : lead->strides[k];
        }
    }
    return 0;
}

static bool has_no_element(const struct view *view)
{
    for (int d = 0; d < view->dims; d++) {
        if (view->shape[d] == 0) {
            return true;
        }
    }
    return false;
}

int shape_call(const struct shape_rule *rule, struct view views[OPERANDS], struct mlacat_call *call)
{
    if (rule->broadcast && views[2].dims >= 1 && views[2].dims == views[0].dims - 1) {
        add_head_dimension(&views[2]);
    }
    if (check_same(rule, views) < 0 || check_shapes(rule, views) < 0 || check_strides(rule, views) < 0) {
        return -1;
    }
    *call = (struct mlacat_call){.size = sizeof(*call), .op = rule->op, .dtype = views[0].dtype};
    for (int k = 0; k < OPERANDS; k++) {
        call->operand[k].shape[2] = (uint64_t)views[k].shape[views[k].dims - 1];
        call->operand[k].strides[2] = 1;
    }
    if (has_no_element(&views[0])) {
        call->operand[0].shape[0] = 0;
        return 0; /* how its dimensions lie does not matter */
    }
    return fill_leads(rule, views, call);
}

bool shape_is_empty(const struct mlacat_call *call)
{
    const uint64_t *shape = call->operand[0].shape;
    return shape[0] == 0 || shape[1] == 0 || shape[2] == 0;
}

/* ---------------------------------------------------------------------------------------------------- halves */

bool shape_can_halve(const struct mlacat_call *call)
{
    return call->operand[0].shape[0] > 1 || call->operand[0].shape[1] > 1;
}

/* The dimension in which the operand reaches further. */
static int longer_dimension(const struct mlacat_tensor *tensor)
{
    uint64_t reach[2];
    for (int d = 0; d < 2; d++) {
        uint64_t stride = (uint64_t)(tensor->strides[d] < 0 ? -tensor->strides[d] : tensor->strides[d]);
        reach[d] = stride * (tensor->shape[d] - 1);
    }
    return reach[0] >= reach[1] ? 0 : 1;
}

void shape_halve(int operand, struct mlacat_call *first, struct mlacat_call *second, struct view views[OPERANDS])
{
    int d = longer_dimension(&first->operand[operand]);
    uint64_t rows = first->operand[0].shape[d];
    if (rows == 1) {
        d = 1 - d;
        rows = first->operand[0].shape[d];
    }
    for (int k = 0; k < OPERANDS; k++) {
        if (first->operand[k].shape[d] != rows) {
            continue; /* one row for all */
        }
        int64_t half = (int64_t)(rows / 2);
        first->operand[k].shape[d] = rows / 2;
        second->operand[k].shape[d] = rows - rows / 2;
        views[k].address +=
            (uintptr_t)(half * first->operand[k].strides[d] * (int64_t)mlacat_dtype_bytes(first->dtype));
    }
}

/* ---------------------------------------------------------------------------------------------------- memory */

int shape_extent(const struct shape_rule *rule, int operand, const struct view *view, const struct mlacat_call *call,
                 struct extent *extent)
{
    const struct mlacat_tensor *tensor = &call->operand[operand];
    int64_t low = 0;
    int64_t high = (int64_t)tensor->shape[2];
    int64_t bytes = (int64_t)mlacat_dtype_bytes(call->dtype);
    bool wrong = false;
    for (int d = 0; d < 2; d++) {
        int64_t step = 0;
        wrong |= __builtin_mul_overflow((int64_t)tensor->shape[d] - 1, tensor->strides[d], &step);
        wrong |= __builtin_add_overflow(step < 0 ? low : high, step, step < 0 ? &low : &high);
    }
    int64_t address = (int64_t)view->address;
    wrong |= __builtin_mul_overflow(low, bytes, &low) || __builtin_mul_overflow(high, bytes, &high) ||
             __builtin_add_overflow(low, address, &low) || __builtin_add_overflow(high, address, &high);
    if (wrong || low < 0) {
        return raise_argument_error("%s reaches past the address space; its strides are wrong", rule->names[operand]);
    }
    *extent = (struct extent){(uintptr_t)low, (uintptr_t)high};
    return 0;
}
