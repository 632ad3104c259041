/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "handles.h"

static struct handles handles;

static int setup(void **state)
{
    (void)state;
    handles_init(&handles);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    handles_fini(&handles);
    return 0;
}

static struct wire_ref add(void *object)
{
    struct wire_ref ref;
    struct error err;
    assert_int_equal(handles_add(&handles, object, 100, "things", &ref, &err), MLACAT_OK);
    return ref;
}

static void test_handles_find_what_was_added(void **state)
{
    int objects[40];
    struct wire_ref refs[40];
    (void)state;
    for (int i = 0; i < 40; i++) {
        refs[i] = add(&objects[i]);
    }
    for (int i = 0; i < 40; i++) {
        assert_ptr_equal(handles_find(&handles, refs[i]), &objects[i]);
        assert_int_not_equal(refs[i].generation, 0);
        handles_remove(&handles, refs[i]);
    }
}

static void test_handles_never_give_a_name_twice(void **state)
{
    int object;
    (void)state;
    struct wire_ref first = add(&object);
    handles_remove(&handles, first);
    struct wire_ref second = add(&object);
    assert_int_equal(second.id, first.id);
    assert_int_not_equal(second.generation, first.generation);
    assert_null(handles_find(&handles, first));
    assert_ptr_equal(handles_find(&handles, second), &object);
    handles_remove(&handles, second);
}

static void test_handles_find_nothing_for_wrong_names(void **state)
{
    int object;
    (void)state;
    assert_null(handles_find(&handles, (struct wire_ref){0, 0}));
    struct wire_ref ref = add(&object);
    assert_null(handles_find(&handles, (struct wire_ref){ref.id, 0}));
    assert_null(handles_find(&handles, (struct wire_ref){ref.id, ref.generation + 1}));
    assert_null(handles_find(&handles, (struct wire_ref){ref.id + 1, ref.generation}));
    assert_null(handles_find(&handles, (struct wire_ref){UINT32_MAX, 1}));
    handles_remove(&handles, ref);
}

static void test_handles_retire_a_slot_without_generations(void **state)
{
    int object;
    (void)state;
    struct wire_ref ref = add(&object);
    handles_remove(&handles, ref);
    handles.slots[ref.id].generation = UINT32_MAX;
    struct wire_ref last = add(&object);
    assert_int_equal(last.id, ref.id);
    assert_int_equal(last.generation, UINT32_MAX);
    handles_remove(&handles, last);
    struct wire_ref next = add(&object);
    assert_int_not_equal(next.id, last.id);
    assert_null(handles_find(&handles, last));
    handles_remove(&handles, next);
}

static void test_handles_refuse_past_the_limit(void **state)
{
    int object;
    struct wire_ref refs[3];
    struct error err;
    (void)state;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(handles_add(&handles, &object, 2, "buffers", &refs[i], &err), MLACAT_OK);
    }
    assert_int_equal(handles_add(&handles, &object, 2, "buffers", &refs[2], &err), MLACAT_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(err.message, "max_buffers"));
    handles_remove(&handles, refs[0]);
    assert_int_equal(handles_add(&handles, &object, 2, "buffers", &refs[0], &err), MLACAT_OK);
    handles_remove(&handles, refs[0]);
    handles_remove(&handles, refs[1]);
}

/* The question alone: nothing is added, and it has the same answer as adding. */
static void test_handles_check_says_what_add_would(void **state)
{
    int object;
    struct error err;
    (void)state;
    assert_int_equal(handles_check(&handles, 0, "streams", &err), MLACAT_RESOURCE_EXHAUSTED);
    assert_int_equal(handles_check(&handles, 1, "streams", &err), MLACAT_OK);
    assert_int_equal(handles_check(&handles, 1, "streams", &err), MLACAT_OK);
    assert_int_equal(handles.used_nr, 0);
    struct wire_ref ref = add(&object);
    assert_int_equal(handles_check(&handles, 1, "streams", &err), MLACAT_RESOURCE_EXHAUSTED);
    assert_string_equal(err.message, "this client has 1 streams, the limit is 1: release some, or raise max_streams");
    assert_int_equal(handles_check(&handles, 2, "streams", &err), MLACAT_OK);
    handles_remove(&handles, ref);
    assert_int_equal(handles_check(&handles, 1, "streams", &err), MLACAT_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_handles_find_what_was_added, setup, teardown),
        cmocka_unit_test_setup_teardown(test_handles_never_give_a_name_twice, setup, teardown),
        cmocka_unit_test_setup_teardown(test_handles_find_nothing_for_wrong_names, setup, teardown),
        cmocka_unit_test_setup_teardown(test_handles_retire_a_slot_without_generations, setup, teardown),
        cmocka_unit_test_setup_teardown(test_handles_refuse_past_the_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_handles_check_says_what_add_would, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
