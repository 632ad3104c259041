/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "call.h"

static void test_call_goes_round(void **state)
{
    struct call call = {0};
    (void)state;
    call_set_state(&call, CALL_BOUND);
    call_set_state(&call, CALL_SUBMITTED);
    call_set_state(&call, CALL_DONE);
    call_set_state(&call, CALL_FREE);
    call_set_state(&call, CALL_BOUND);
    call_set_state(&call, CALL_FREE);
    assert_int_equal(call.state, CALL_FREE);
}

static void test_call_is_claimed_by_the_first(void **state)
{
    struct call call = {0};
    (void)state;
    assert_true(call_take(&call));
    assert_false(call_withdraw(&call, CALL_WITHDRAWN_CANCEL));
    assert_false(call_take(&call));
    call.claim = CALL_WAITING;
    assert_true(call_withdraw(&call, CALL_WITHDRAWN_DEADLINE));
    assert_false(call_take(&call));
    assert_false(call_withdraw(&call, CALL_WITHDRAWN_CANCEL));
    assert_int_equal(call.claim, CALL_WITHDRAWN_DEADLINE);
}

static void test_call_withdrawn_says_why(void **state)
{
    struct error err;
    (void)state;
    call_withdrawn_error(CALL_WITHDRAWN_CANCEL, &err);
    assert_int_equal(err.code, MLACAT_CANCELLED);
    assert_int_equal(err.scope, MLACAT_SCOPE_CALL);
    call_withdrawn_error(CALL_WITHDRAWN_DEADLINE, &err);
    assert_int_equal(err.code, MLACAT_DEADLINE_EXCEEDED);
    assert_non_null(strstr(err.message, "deadline_us"));
    call_withdrawn_error(CALL_WITHDRAWN_GONE, &err);
    assert_int_equal(err.code, MLACAT_ABORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_call_goes_round),
        cmocka_unit_test(test_call_is_claimed_by_the_first),
        cmocka_unit_test(test_call_withdrawn_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
