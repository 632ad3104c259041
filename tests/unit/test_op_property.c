/* SPDX-License-Identifier: Apache-2.0 */
/*
 * op_validate against brute force: random small calls on small memories, where every byte that a call reads and writes
 * is enumerated. What is accepted is then carried out by the plan, and must give what the op table says.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "op.h"

#define CALLS 150000
#define ALLOCATIONS 3
#define ALLOCATION_BYTES 400

static uint64_t seed = 1;

static uint64_t random_below(uint64_t n)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (seed >> 33) % n;
}

static const uint32_t dtypes[] = {1, 3, 5};

/* Strides of three kinds: packed with gaps in either order of the dimensions (nested), or anything. */
static void random_strides(struct op_view *view)
{
    uint64_t kind = random_below(4);
    uint64_t inner = random_below(2);
    view->stride[2] = random_below(200) == 0 ? (int64_t)random_below(4) - 1 : 1;
    view->stride[inner] = (int64_t)(view->shape[2] + random_below(3));
    view->stride[1 - inner] = (int64_t)(view->shape[inner] * (uint64_t)view->stride[inner] + random_below(3));
    for (int d = 0; d < 2; d++) {
        if (kind == 0) {
            view->stride[d] = (int64_t)random_below(25) - 8;
        } else if (kind == 1 && random_below(2) == 0) {
            view->stride[d] = -view->stride[d];
        } else if (kind == 2 && random_below(3) == 0) {
            view->stride[d] = 0;
        }
        if (view->shape[d] <= 1 && random_below(2) == 0) {
            view->stride[d] = INT64_MIN; /* must not be looked at */
        }
    }
}

/* An offset from which most strides stay inside. */
static uint64_t random_offset(const struct op_view *view, uint64_t element)
{
    int64_t low = 0;
    for (int d = 0; d < 2; d++) {
        if (view->shape[d] > 1 && view->stride[d] < 0) {
            low += view->stride[d] * (int64_t)(view->shape[d] - 1) * (int64_t)element;
        }
    }
    return (uint64_t)(-low + (int64_t)random_below(60) - 2 * (random_below(20) == 0));
}

static void random_call(struct op_request *request, struct op_memory memory[OP_OPERANDS])
{
    uint64_t d0 = random_below(15) == 0 ? 0 : 1 + random_below(4);
    uint64_t d1 = random_below(15) == 0 ? 0 : 1 + random_below(4);
    uint64_t width[OP_OPERANDS] = {0, random_below(5), random_below(4)};
    uint64_t one = random_below(3) == 0; /* all operands in one allocation */
    width[OP_OUT] = width[OP_FIRST] + width[OP_SECOND];
    request->op = 1 + (uint32_t)random_below(OP_NUMBER_MAX);
    request->dtype = dtypes[random_below(3)];
    uint64_t element = dtype_bytes(request->dtype);
    for (int k = 0; k < OP_OPERANDS; k++) {
        struct op_view *view = &request->view[k];
        bool broadcast = k == OP_SECOND && op_find(request->op)->second_broadcast;
        *view = (struct op_view){.shape = {d0, broadcast ? 1 : d1, width[k]}};
        random_strides(view);
        view->offset_bytes = random_offset(view, element);
        memory[k].allocation = (struct op_allocation){0, one ? 0 : random_below(ALLOCATIONS)};
        memory[k].allocation_offset_bytes = random_below(40);
        memory[k].size_bytes = ALLOCATION_BYTES - 40 - random_below(random_below(3) == 0 ? 340 : 40);
        if (k != OP_OUT && random_below(3) == 0) { /* a part of the output's rows, mostly its own */
            *view = request->view[OP_OUT];
            view->shape[1] = broadcast ? 1 : d1;
            view->shape[2] = width[k];
            view->offset_bytes += k == OP_SECOND ? width[OP_FIRST] * element : 0;
            view->offset_bytes += random_below(6) == 0 ? random_below(9) : 0;
            memory[k] = memory[OP_OUT];
        }
    }
}

/* Position of the first byte of row (i, j) in the allocation. */
static int64_t row_at(const struct op_request *request, const struct op_memory *memory, int k, uint64_t i, uint64_t j)
{
    const struct op_view *view = &request->view[k];
    int64_t element = dtype_bytes(request->dtype);
    int64_t at = (int64_t)(memory[k].allocation_offset_bytes + view->offset_bytes);
    if (view->shape[0] > 1) {
        at += (int64_t)i * view->stride[0] * element;
    }
    if (view->shape[1] > 1) {
        at += (int64_t)j * view->stride[1] * element;
    }
    return at;
}

static bool in_bounds(const struct op_request *request, const struct op_memory *memory, int k)
{
    const struct op_view *view = &request->view[k];
    int64_t width = (int64_t)(view->shape[2] * dtype_bytes(request->dtype));
    int64_t begin = (int64_t)memory[k].allocation_offset_bytes;
    for (uint64_t i = 0; i < view->shape[0]; i++) {
        for (uint64_t j = 0; j < view->shape[1]; j++) {
            int64_t at = row_at(request, memory, k, i, j);
            if (width > 0 && (at < begin || at + width > begin + (int64_t)memory[k].size_bytes)) {
                return false;
            }
        }
    }
    return true;
}

/* What each byte of the allocations is to a call. */
struct use {
    unsigned char row[ALLOCATIONS][ALLOCATION_BYTES]; /* belongs to an output row */
    unsigned char written[ALLOCATIONS][ALLOCATION_BYTES];
    bool copy[OP_OPERANDS];
};

/* False if two output rows share a byte. Needs operands in bounds. */
static bool mark_output(const struct op_request *request, const struct op_memory *memory, struct use *use)
{
    const uint64_t *shape = request->view[OP_OUT].shape;
    uint64_t element = dtype_bytes(request->dtype);
    uint64_t first = request->view[OP_FIRST].shape[2] * element;
    uint64_t allocation = memory[OP_OUT].allocation.lo;
    for (uint64_t i = 0; i < shape[0]; i++) {
        for (uint64_t j = 0; j < shape[1]; j++) {
            int64_t at = row_at(request, memory, OP_OUT, i, j);
            for (uint64_t t = 0; t < shape[2] * element; t++) {
                if (use->row[allocation][at + (int64_t)t]) {
                    return false;
                }
                use->row[allocation][at + (int64_t)t] = 1;
                use->written[allocation][at + (int64_t)t] = use->copy[t < first ? OP_FIRST : OP_SECOND];
            }
        }
    }
    return true;
}

/* Each row of the input is where it would be copied to. */
static bool is_in_place(const struct op_request *request, const struct op_memory *memory, int k)
{
    const uint64_t *shape = request->view[OP_OUT].shape;
    uint64_t before = k == OP_SECOND ? request->view[OP_FIRST].shape[2] * dtype_bytes(request->dtype) : 0;
    if (memory[k].allocation.lo != memory[OP_OUT].allocation.lo) {
        return false;
    }
    for (uint64_t i = 0; i < shape[0]; i++) {
        for (uint64_t j = 0; j < shape[1]; j++) {
            if (row_at(request, memory, k, i, j) != row_at(request, memory, OP_OUT, i, j) + (int64_t)before) {
                return false;
            }
        }
    }
    return true;
}

static bool reads_what_is_written(const struct op_request *request, const struct op_memory *memory, int k,
                                  const struct use *use)
{
    const uint64_t *shape = request->view[k].shape;
    for (uint64_t i = 0; i < shape[0]; i++) {
        for (uint64_t j = 0; j < shape[1]; j++) {
            int64_t at = row_at(request, memory, k, i, j);
            for (uint64_t t = 0; t < shape[2] * dtype_bytes(request->dtype); t++) {
                if (use->written[memory[k].allocation.lo][at + (int64_t)t]) {
                    return true;
                }
            }
        }
    }
    return false;
}

static bool is_good(const struct op_request *request, const struct op_memory *memory, struct use *use)
{
    const uint64_t *shape = request->view[OP_OUT].shape;
    memset(use, 0, sizeof(*use));
    if (shape[0] * shape[1] * shape[2] == 0) {
        return true;
    }
    for (int k = 0; k < OP_OPERANDS; k++) {
        const struct op_view *view = &request->view[k];
        if ((view->shape[2] > 1 && view->stride[2] != 1) || !in_bounds(request, memory, k)) {
            return false;
        }
    }
    for (int k = OP_FIRST; k <= OP_SECOND; k++) {
        use->copy[k] = request->view[k].shape[2] > 0 && !is_in_place(request, memory, k);
    }
    use->copy[OP_OUT] = use->copy[OP_FIRST] || use->copy[OP_SECOND];
    if (!mark_output(request, memory, use)) {
        return false;
    }
    for (int k = OP_FIRST; k <= OP_SECOND; k++) {
        if (use->copy[k] && reads_what_is_written(request, memory, k, use)) {
            return false;
        }
    }
    return true;
}

/* Carries out the plan, byte by byte, on `bytes`. */
static void run_plan(const struct op_plan *plan, const struct op_memory *memory,
                     unsigned char bytes[ALLOCATIONS][ALLOCATION_BYTES])
{
    unsigned char *base[OP_OPERANDS];
    for (int k = 0; k < OP_OPERANDS; k++) {
        base[k] = bytes[memory[k].allocation.lo] + memory[k].allocation_offset_bytes + plan->offset_bytes[k];
    }
    for (uint64_t r = 0; r < plan->dim0 * plan->dim1; r++) {
        int64_t i = (int64_t)(r / plan->dim1);
        int64_t j = (int64_t)(r % plan->dim1);
        unsigned char *out = base[OP_OUT] + i * plan->stride_bytes[OP_OUT][0] + j * plan->stride_bytes[OP_OUT][1];
        for (int k = OP_FIRST; k <= OP_SECOND; k++) {
            if (plan->copy[k]) {
                memcpy(out + (k == OP_SECOND ? plan->width_bytes[OP_FIRST] : 0),
                       base[k] + i * plan->stride_bytes[k][0] + j * plan->stride_bytes[k][1], plan->width_bytes[k]);
            }
        }
    }
}

/* The accepted call gives the op table's result and touches nothing else. */
static void check_effect(const struct op_request *request, const struct op_memory *memory, const struct op_plan *plan,
                         const struct use *use)
{
    static unsigned char before[ALLOCATIONS][ALLOCATION_BYTES];
    static unsigned char after[ALLOCATIONS][ALLOCATION_BYTES];
    for (size_t i = 0; i < sizeof(before); i++) {
        (&before[0][0])[i] = (unsigned char)random_below(256);
    }
    memcpy(after, before, sizeof(after));
    run_plan(plan, memory, after);
    const uint64_t *shape = request->view[OP_OUT].shape;
    uint64_t element = dtype_bytes(request->dtype);
    uint64_t first = request->view[OP_FIRST].shape[2] * element;
    uint64_t second = request->view[OP_SECOND].shape[2] * element;
    for (uint64_t i = 0; i < shape[0]; i++) {
        for (uint64_t j = 0; j < shape[1] && shape[2] > 0; j++) {
            const unsigned char *out = after[memory[OP_OUT].allocation.lo] + row_at(request, memory, OP_OUT, i, j);
            const unsigned char *a = before[memory[OP_FIRST].allocation.lo];
            const unsigned char *b = before[memory[OP_SECOND].allocation.lo];
            if (first > 0) {
                assert_memory_equal(out, a + row_at(request, memory, OP_FIRST, i, j), first);
            }
            if (second > 0) {
                assert_memory_equal(out + first, b + row_at(request, memory, OP_SECOND, i, j), second);
            }
        }
    }
    for (size_t i = 0; i < sizeof(before); i++) {
        assert_true((&use->row[0][0])[i] || (&before[0][0])[i] == (&after[0][0])[i]);
    }
}

static void test_op_validate_agrees_with_brute_force(void **state)
{
    (void)state;
    unsigned accepted = 0;
    unsigned in_place = 0;
    unsigned unproven = 0;
    for (int n = 0; n < CALLS; n++) {
        struct op_request request;
        struct op_memory memory[OP_OPERANDS];
        struct op_plan plan;
        struct error err;
        static struct use use;
        random_call(&request, memory);
        bool good = is_good(&request, memory, &use);
        enum mlacat_status status = op_validate(&request, memory, &plan, &err);
        if (status != MLACAT_OK && strstr(err.message, "cannot be proven")) {
            unproven++;
        }
        if ((status == MLACAT_OK) != good) {
            fail_msg("call %d: brute force says %s, op_validate says %s", n, good ? "good" : "bad",
                     status == MLACAT_OK ? "good" : err.message);
        }
        if (!good) {
            continue;
        }
        accepted++;
        for (int k = 0; k < OP_OPERANDS; k++) {
            assert_int_equal(plan.copy[k], use.copy[k]);
        }
        in_place += plan.dim0 > 0 && plan.copy[OP_FIRST] + plan.copy[OP_SECOND] < 2;
        check_effect(&request, memory, &plan, &use);
    }
    printf("calls %d, accepted %u, of these with an input in place or of width 0 %u, not proven %u\n", CALLS, accepted,
           in_place, unproven);
    assert_in_range(accepted, CALLS / 10, CALLS - CALLS / 10);
    assert_in_range(in_place, CALLS / 100, CALLS);
    assert_int_equal(unproven, 0); /* on so small numbers there is always a proof */
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        seed = strtoull(argv[1], NULL, 0);
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_op_validate_agrees_with_brute_force)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
