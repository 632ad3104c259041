/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "op.h"

#define BF16 1
#define FP32 5

/* A call under test: change what the case is about, then validate. */
struct call {
    struct op_request request;
    struct op_memory memory[OP_OPERANDS];
    struct op_plan plan;
    struct error err;
};

static uint64_t elems(const struct op_view *view)
{
    return view->shape[0] * view->shape[1] * view->shape[2];
}

static void set_contiguous(struct op_view *view, uint64_t d0, uint64_t d1, uint64_t d2)
{
    *view = (struct op_view){.shape = {d0, d1, d2}, .stride = {(int64_t)(d1 * d2), (int64_t)d2, 1}};
}

/* Three contiguous operands, each in an allocation of its own that it fills. */
static struct call make_call(uint32_t op, uint64_t d0, uint64_t d1, uint64_t first, uint64_t second)
{
    struct call call;
    memset(&call, 0, sizeof(call));
    call.request.op = op;
    call.request.dtype = BF16;
    set_contiguous(&call.request.view[OP_OUT], d0, d1, first + second);
    set_contiguous(&call.request.view[OP_FIRST], d0, d1, first);
    set_contiguous(&call.request.view[OP_SECOND], d0, op == OP_CONCAT_MLA_K ? 1 : d1, second);
    for (uint64_t k = 0; k < OP_OPERANDS; k++) {
        call.memory[k] = (struct op_memory){.allocation = {7, k}, .size_bytes = elems(&call.request.view[k]) * 2};
    }
    return call;
}

/* The same with all operands in one allocation of `bytes`. */
static struct call make_shared_call(uint32_t op, uint64_t d0, uint64_t d1, uint64_t first, uint64_t second,
                                    uint64_t bytes)
{
    struct call call = make_call(op, d0, d1, first, second);
    for (int k = 0; k < OP_OPERANDS; k++) {
        call.memory[k] = (struct op_memory){.allocation = {7, 7}, .size_bytes = bytes};
    }
    return call;
}

static enum mlacat_status validate(struct call *call)
{
    memset(&call->plan, 0xee, sizeof(call->plan));
    return op_validate(&call->request, call->memory, &call->plan, &call->err);
}

static void assert_accepted(struct call *call)
{
    if (validate(call) != MLACAT_OK) {
        fail_msg("refused: %s", call->err.message);
    }
}

/* Refused with INVALID_ARGUMENT, and every word of `words` (separated by '|') is in the message. */
static void assert_refused(struct call *call, const char *words)
{
    char copy[200];
    char *rest = copy;
    assert_int_equal(validate(call), MLACAT_INVALID_ARGUMENT);
    assert_int_equal(call->err.scope, MLACAT_SCOPE_CALL);
    strncpy(copy, words, sizeof(copy) - 1);
    copy[sizeof(copy) - 1] = 0;
    for (char *word = strtok_r(copy, "|", &rest); word; word = strtok_r(NULL, "|", &rest)) {
        if (!strstr(call->err.message, word)) {
            fail_msg("no \"%s\" in: %s", word, call->err.message);
        }
    }
}

static void test_op_tables_are_complete(void **state)
{
    (void)state;
    const struct op_info *k = op_find(OP_CONCAT_MLA_K);
    assert_string_equal(k->name, "concat_mla_k");
    assert_string_equal(k->operand[OP_OUT], "k");
    assert_string_equal(k->operand[OP_FIRST], "k_nope");
    assert_string_equal(k->operand[OP_SECOND], "k_rope");
    assert_true(k->second_broadcast);
    assert_false(op_find(OP_CONCAT_MLA_ABSORB_Q)->second_broadcast);
    assert_null(op_find(0));
    assert_null(op_find(OP_NUMBER_MAX + 1));
    assert_non_null(op_find(OP_NUMBER_MAX));
    uint32_t rows = 0;
    while (op_at(rows)) {
        rows++;
    }
    assert_int_equal(rows, OP_NUMBER_MAX);
    assert_int_equal(dtype_bytes(0), 0);
    assert_int_equal(dtype_bytes(BF16), 2);
    assert_int_equal(dtype_bytes(3), 1);
    assert_int_equal(dtype_bytes(FP32), 4);
    assert_int_equal(dtype_bytes(6), 0);
    assert_string_equal(dtype_name(4), "fp8_e5m2");
    assert_string_equal(dtype_name(99), "unknown");
}

static void test_op_plan_of_contiguous_k(void **state)
{
    (void)state;
    struct call call = make_call(OP_CONCAT_MLA_K, 4, 128, 128, 64);
    assert_accepted(&call);
    assert_int_equal(call.plan.op, OP_CONCAT_MLA_K);
    assert_int_equal(call.plan.dim0, 4);
    assert_int_equal(call.plan.dim1, 128);
    assert_int_equal(call.plan.width_bytes[OP_OUT], 384);
    assert_int_equal(call.plan.width_bytes[OP_FIRST], 256);
    assert_int_equal(call.plan.width_bytes[OP_SECOND], 128);
    assert_int_equal(call.plan.stride_bytes[OP_OUT][0], 128 * 384);
    assert_int_equal(call.plan.stride_bytes[OP_OUT][1], 384);
    assert_int_equal(call.plan.stride_bytes[OP_SECOND][0], 128);
    assert_int_equal(call.plan.stride_bytes[OP_SECOND][1], 0);
    assert_true(call.plan.copy[OP_OUT] && call.plan.copy[OP_FIRST] && call.plan.copy[OP_SECOND]);
    assert_int_equal(call.plan.bytes, 4 * 128 * (384 + 256) + 4 * 128);
}

static void test_op_plan_of_head_major_q(void **state)
{
    (void)state;
    struct call call = make_call(OP_CONCAT_MLA_ABSORB_Q, 32, 16, 512, 64);
    call.request.view[OP_FIRST].stride[0] = 512;
    call.request.view[OP_FIRST].stride[1] = 32 * 512;
    assert_accepted(&call);
    assert_int_equal(call.plan.stride_bytes[OP_FIRST][0], 1024);
    assert_int_equal(call.plan.stride_bytes[OP_FIRST][1], 32 * 1024);
    assert_int_equal(call.plan.bytes, 32 * 16 * 576 * 2 * 2);
}

static void test_op_refuses_unknown_op_and_dtype(void **state)
{
    (void)state;
    struct call call = make_call(OP_CONCAT_MLA_K, 1, 1, 1, 1);
    call.request.op = 77;
    assert_int_equal(validate(&call), MLACAT_UNIMPLEMENTED);
    assert_non_null(strstr(call.err.message, "77"));
    call = make_call(OP_CONCAT_MLA_K, 0, 1, 1, 1); /* an empty call too */
    call.request.dtype = 6;
    assert_refused(&call, "dtype 6|bf16|fp32");
}

static void test_op_refuses_shapes_that_do_not_match(void **state)
{
    (void)state;
    struct call call = make_call(OP_CONCAT_MLA_K, 4, 128, 128, 64);
    call.request.view[OP_FIRST].shape[2] = 127;
    assert_refused(&call, "k_nope shape [4, 128, 127]|k shape [4, 128, 192]|last extent must be 128");
    call = make_call(OP_CONCAT_MLA_K, 4, 128, 128, 64);
    call.request.view[OP_FIRST].shape[0] = 5;
    assert_refused(&call, "k_nope shape [5, 128, 128]|first extent must be 4");
    call = make_call(OP_CONCAT_MLA_K, 4, 128, 128, 64);
    call.request.view[OP_SECOND].shape[1] = 128;
    assert_refused(&call, "k_rope shape [4, 128, 64]|second extent must be 1");
    call = make_call(OP_CONCAT_MLA_ABSORB_Q, 4, 128, 512, 64);
    call.request.view[OP_SECOND].shape[1] = 1;
    assert_refused(&call, "b shape [4, 1, 64]|out shape [4, 128, 576]|second extent must be 128");
    call = make_call(OP_CONCAT_MLA_ABSORB_Q, 4, 128, 512, 64);
    call.request.view[OP_SECOND].shape[2] = 577;
    assert_refused(&call, "b shape [4, 128, 577]|last extent must be at most 576");
    call = make_call(OP_CONCAT_MLA_ABSORB_Q, 0, 128, 512, 64); /* an empty call too */
    call.request.view[OP_FIRST].shape[1] = 3;
    assert_refused(&call, "a shape [0, 3, 512]|second extent must be 128");
    call = make_call(OP_CONCAT_MLA_ABSORB_Q, 1, 1, 2, 2); /* widths whose sum wraps to the output's */
    call.request.view[OP_FIRST].shape[2] = UINT64_MAX - 1;
    call.request.view[OP_SECOND].shape[2] = 6;
    assert_refused(&call, "b shape [1, 1, 6]|at most 4");
}

static void test_op_accepts_empty_calls_at_once(void **state)
{
    (void)state;
    static const uint64_t cases[][4] = {
        {0, 128, 128, 64}, {4, 0, 128, 64}, {4, 128, 0, 0}, {0, 0, 0, 0}, {0, 1ull << 63, 2, 2}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (uint32_t op = 1; op <= OP_NUMBER_MAX; op++) {
            struct call call = make_call(op, cases[i][0], cases[i][1], cases[i][2], cases[i][3]);
            for (int k = 0; k < OP_OPERANDS; k++) { /* nothing of the memory is looked at */
                call.request.view[k].offset_bytes = UINT64_MAX;
                call.request.view[k].stride[0] = INT64_MIN;
                call.request.view[k].stride[2] = 5;
                call.memory[k].size_bytes = 0;
            }
            assert_accepted(&call);
            assert_int_equal(call.plan.dim0 * call.plan.dim1, 0);
            assert_false(call.plan.copy[OP_OUT] || call.plan.copy[OP_FIRST] || call.plan.copy[OP_SECOND]);
            assert_int_equal(call.plan.bytes, 0);
        }
    }
}

static void test_op_accepts_an_input_of_width_0(void **state)
{
    (void)state;
    struct call call = make_call(OP_CONCAT_MLA_K, 4, 8, 128, 0);
    call.request.view[OP_SECOND].offset_bytes = UINT64_MAX; /* never looked at */
    call.request.view[OP_SECOND].stride[0] = INT64_MAX;
    assert_accepted(&call);
    assert_true(call.plan.copy[OP_OUT] && call.plan.copy[OP_FIRST]);
    assert_false(call.plan.copy[OP_SECOND]);
    assert_int_equal(call.plan.offset_bytes[OP_SECOND], 0);
    call = make_call(OP_CONCAT_MLA_ABSORB_Q, 4, 8, 0, 64);
    assert_accepted(&call);
    assert_false(call.plan.copy[OP_FIRST]);
    assert_int_equal(call.plan.bytes, 2 * 4 * 8 * 64 * 2);
}

static void test_op_ignores_strides_of_extents_0_and_1(void **state)
{
    (void)state;
    struct call call = make_call(OP_CONCAT_MLA_K, 1, 1, 1, 0);
    for (int k = 0; k < OP_OPERANDS; k++) {
        for (int d = 0; d < OP_DIMS; d++) {
            call.request.view[k].stride[d] = d == 1 ? INT64_MIN : INT64_MAX;
        }
    }
    assert_accepted(&call);
    assert_int_equal(call.plan.stride_bytes[OP_OUT][0], 0);
    assert_int_equal(call.plan.stride_bytes[OP_OUT][1], 0);
    call = make_call(OP_CONCAT_MLA_K, 4, 8, 16, 8); /* of the broadcast dimension: torch puts anything there */
    call.request.view[OP_SECOND].stride[1] = 12345678901234;
    assert_accepted(&call);
}

static void test_op_refuses_a_last_stride_other_than_1(void **state)
{
    (void)state;
    static const int64_t strides[] = {0, -1, 2, INT64_MIN, INT64_MAX};
    for (size_t i = 0; i < sizeof(strides) / sizeof(strides[0]); i++) {
        for (int k = 0; k < OP_OPERANDS; k++) {
            struct call call = make_call(OP_CONCAT_MLA_ABSORB_Q, 2, 2, 4, 4);
            call.request.view[k].stride[2] = strides[i];
            assert_refused(&call, "last dimension|must be 1");
        }
    }
}

static void test_op_bounds_are_exact(void **state)
{
    (void)state;
    static const char *const names[] = {"out", "a", "b"};
    for (int k = 0; k < OP_OPERANDS; k++) {
        struct call call = make_call(OP_CONCAT_MLA_ABSORB_Q, 3, 5, 4, 2);
        assert_accepted(&call);
        call.memory[k].size_bytes--;
        assert_refused(&call, names[k]);
        call.memory[k].size_bytes++;
        call.request.view[k].offset_bytes = 1;
        assert_refused(&call, names[k]);
        call.memory[k].size_bytes++; /* an odd address is fine */
        assert_accepted(&call);
        call.request.view[k].stride[0] = -call.request.view[k].stride[0];
        assert_refused(&call, "needs bytes [-");
        call.request.view[k].offset_bytes = elems(&call.request.view[k]) / 3 * 2 * 2; /* the last of three rows */
        assert_accepted(&call);
        call.request.view[k].offset_bytes--;
        assert_refused(&call, "needs bytes [-1, ");
    }
    struct call call = make_call(OP_CONCAT_MLA_K, 1, 1, 1, 1);
    call.memory[OP_OUT].size_bytes = 0;
    assert_refused(&call, "k needs bytes [0, 4) of a buffer of 0 bytes");
}

static void test_op_refuses_what_overflows(void **state)
{
    (void)state;
    static const uint64_t huge[] = {1ull << 31, 1ull << 32, 1ull << 62, 1ull << 63, UINT64_MAX - 1};
    for (size_t i = 0; i < sizeof(huge) / sizeof(huge[0]); i++) {
        for (int d = 0; d < 2; d++) { /* extents: products that wrap, also to something small */
            for (int64_t stride = -1; stride <= 1; stride++) {
                struct call call = make_call(OP_CONCAT_MLA_ABSORB_Q, 2, 2, 4, 4);
                for (int k = 0; k < OP_OPERANDS; k++) {
                    call.request.view[k].shape[d] = huge[i];
                    call.request.view[k].stride[d] = stride * 64;
                    call.memory[k].size_bytes = 4096;
                }
                assert_refused(&call, "");
            }
        }
        struct call call = make_call(OP_CONCAT_MLA_ABSORB_Q, 1, 1, 4, 4);
        call.request.dtype = FP32;
        call.request.view[OP_OUT].shape[2] = huge[i];
        call.request.view[OP_FIRST].shape[2] = huge[i] - 4;
        assert_refused(&call, "");
    }
    for (int k = 0; k < OP_OPERANDS; k++) {
        static const int64_t strides[] = {INT64_MIN, INT64_MIN / 2, INT64_MIN + 1, INT64_MAX, INT64_MAX / 2, 1ll << 61};
        for (size_t i = 0; i < sizeof(strides) / sizeof(strides[0]); i++) {
            struct call call = make_call(OP_CONCAT_MLA_ABSORB_Q, 3, 3, 4, 4);
            call.memory[k].size_bytes = UINT64_MAX;
            call.request.view[k].stride[0] = strides[i];
            call.request.view[k].stride[1] = strides[i];
            assert_refused(&call, "");
        }
        struct call call = make_call(OP_CONCAT_MLA_ABSORB_Q, 3, 3, 4, 4);
        call.memory[k].size_bytes = UINT64_MAX;
        call.request.view[k].offset_bytes = UINT64_MAX;
        assert_refused(&call, "reaches past 64 bits");
        call.request.view[k].offset_bytes = INT64_MAX;
        assert_refused(&call, "reaches past 64 bits");
    }
}

static void test_op_refuses_output_rows_that_overlap(void **state)
{
    (void)state;
    struct call call = make_call(OP_CONCAT_MLA_ABSORB_Q, 4, 4, 4, 4);
    call.request.view[OP_OUT].stride[1] = 0;
    assert_refused(&call, "out has stride 0 in dimension 1 of extent 4");
    call.request.view[OP_OUT].stride[1] = 7;
    assert_refused(&call, "out rows overlap each other");
    call.request.view[OP_OUT].stride[1] = 8;
    assert_accepted(&call);
    call.request.view[OP_OUT].stride[0] = 31;
    assert_refused(&call, "out rows overlap each other|62");
    call.memory[OP_OUT].size_bytes = 4096;
    call.request.view[OP_OUT].stride[0] = 8; /* both dimensions step over the same rows */
    assert_refused(&call, "out rows overlap each other");
    call.request.view[OP_OUT].stride[0] = 40; /* interleaved: 0 16 32 48 with 0 40 80 120, in elements of 8 */
    call.request.view[OP_OUT].stride[1] = 16;
    assert_accepted(&call);
    call.request.view[OP_OUT].stride[0] = 8; /* head-major */
    call.request.view[OP_OUT].stride[1] = 32;
    assert_accepted(&call);
}

static void test_op_overlap_needs_one_allocation(void **state)
{
    (void)state;
    struct call call = make_shared_call(OP_CONCAT_MLA_ABSORB_Q, 4, 4, 4, 4, 4096);
    assert_refused(&call, "a, in bytes [0, 128)|overlaps|out, in bytes [0, 256)");
    call.memory[OP_FIRST].allocation.lo = 8;
    assert_refused(&call, "b, in bytes [0, 128)");
    call.memory[OP_SECOND].allocation.hi = 8;
    assert_accepted(&call);
    /* Two registrations of one allocation: their offsets in it decide. */
    call = make_shared_call(OP_CONCAT_MLA_ABSORB_Q, 4, 4, 4, 4, 4096);
    call.memory[OP_FIRST].allocation_offset_bytes = 256;
    call.memory[OP_SECOND].allocation_offset_bytes = 256;
    assert_accepted(&call);
    call.memory[OP_FIRST].allocation_offset_bytes = 255;
    assert_refused(&call, "a, in bytes|overlaps");
}

static void test_op_accepts_rows_that_interleave(void **state)
{
    (void)state;
    /* One container [N, H, 192 + 128 + 64]: k, k_nope and k_rope side by side in its rows. */
    struct call call = make_shared_call(OP_CONCAT_MLA_K, 1000, 16, 128, 64, 1000 * 16 * 384 * 2);
    static const uint64_t column[OP_OPERANDS] = {0, 192, 320};
    for (int k = 0; k < OP_OPERANDS; k++) {
        call.request.view[k].offset_bytes = column[k] * 2;
        call.request.view[k].stride[0] = 16 * 384;
        call.request.view[k].stride[1] = 384;
    }
    assert_accepted(&call);
    call.request.view[OP_FIRST].offset_bytes -= 2;
    assert_refused(&call, "k_nope|overlaps");
    call.request.view[OP_FIRST].offset_bytes += 2;
    call.request.view[OP_SECOND].offset_bytes += 2 * 64 - 1; /* now reaches one byte into k of the next head */
    assert_refused(&call, "k_rope|overlaps");
}

static void test_op_does_not_copy_an_input_in_place(void **state)
{
    (void)state;
    struct call call = make_shared_call(OP_CONCAT_MLA_ABSORB_Q, 5, 4, 6, 2, 5 * 4 * 8 * 2 + 5 * 4 * 6 * 2);
    for (int k = OP_FIRST; k <= OP_SECOND; k++) {
        call.request.view[k].stride[0] = 32;
        call.request.view[k].stride[1] = 8;
    }
    call.request.view[OP_SECOND].offset_bytes = 12;
    assert_accepted(&call); /* both are where they belong */
    assert_false(call.plan.copy[OP_OUT] || call.plan.copy[OP_FIRST] || call.plan.copy[OP_SECOND]);
    assert_int_equal(call.plan.bytes, 0);

    call.request.view[OP_FIRST].offset_bytes = 5 * 4 * 8 * 2; /* only b is */
    call.request.view[OP_FIRST].stride[0] = 24;
    call.request.view[OP_FIRST].stride[1] = 6;
    assert_accepted(&call);
    assert_true(call.plan.copy[OP_OUT] && call.plan.copy[OP_FIRST] && !call.plan.copy[OP_SECOND]);
    assert_int_equal(call.plan.bytes, 2 * 5 * 4 * 12);

    call.request.view[OP_SECOND].offset_bytes = 14; /* nearly in its place: b would be read where it is written */
    call.memory[OP_SECOND].size_bytes += 2;
    assert_refused(&call, "b, in bytes|overlaps");
    call.request.view[OP_SECOND].offset_bytes = 12;
    call.request.view[OP_SECOND].stride[1] = 16; /* same start, other rows: every other row's b, and beyond */
    call.request.view[OP_SECOND].stride[0] = 8;
    assert_refused(&call, "b, in bytes|overlaps");
}

static void test_op_broadcast_input_is_in_place_only_without_heads(void **state)
{
    (void)state;
    for (uint64_t heads = 1; heads <= 2; heads++) {
        struct call call = make_shared_call(OP_CONCAT_MLA_K, 3, heads, 4, 2, 3 * heads * 6 * 2);
        call.memory[OP_FIRST].allocation.lo = 1;
        call.request.view[OP_SECOND].offset_bytes = 8;
        call.request.view[OP_SECOND].stride[0] = (int64_t)heads * 6;
        if (heads == 1) {
            assert_accepted(&call);
            assert_false(call.plan.copy[OP_SECOND]);
        } else {
            assert_refused(&call, "k_rope|overlaps");
        }
    }
}

static void test_op_says_what_it_cannot_prove(void **state)
{
    (void)state;
    /* Four long dimensions whose strides have nothing in common. */
    struct call call = make_shared_call(OP_CONCAT_MLA_ABSORB_Q, 10000, 100, 1, 1, INT64_MAX);
    call.request.dtype = 3;
    call.request.view[OP_OUT].stride[0] = 1000000000039;
    call.request.view[OP_OUT].stride[1] = 1000003;
    call.request.view[OP_FIRST].offset_bytes = 500;
    call.request.view[OP_FIRST].stride[0] = 1000000000061;
    call.request.view[OP_FIRST].stride[1] = 1000033;
    assert_refused(&call, "a, in bytes|cannot be proven disjoint from|out");
    call.memory[OP_FIRST].allocation.lo = 1;
    call.memory[OP_SECOND].allocation.lo = 1;
    assert_accepted(&call);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_op_tables_are_complete),
        cmocka_unit_test(test_op_plan_of_contiguous_k),
        cmocka_unit_test(test_op_plan_of_head_major_q),
        cmocka_unit_test(test_op_refuses_unknown_op_and_dtype),
        cmocka_unit_test(test_op_refuses_shapes_that_do_not_match),
        cmocka_unit_test(test_op_accepts_empty_calls_at_once),
        cmocka_unit_test(test_op_accepts_an_input_of_width_0),
        cmocka_unit_test(test_op_ignores_strides_of_extents_0_and_1),
        cmocka_unit_test(test_op_refuses_a_last_stride_other_than_1),
        cmocka_unit_test(test_op_bounds_are_exact),
        cmocka_unit_test(test_op_refuses_what_overflows),
        cmocka_unit_test(test_op_refuses_output_rows_that_overlap),
        cmocka_unit_test(test_op_overlap_needs_one_allocation),
        cmocka_unit_test(test_op_accepts_rows_that_interleave),
        cmocka_unit_test(test_op_does_not_copy_an_input_in_place),
        cmocka_unit_test(test_op_broadcast_input_is_in_place_only_without_heads),
        cmocka_unit_test(test_op_says_what_it_cannot_prove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
