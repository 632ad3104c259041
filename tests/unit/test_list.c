/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "list.h"

struct item {
    int number;
    struct list_node node;
};

static int take_number(struct list_node *head)
{
    struct list_node *node = list_take(head);
    return node ? LIST_ENTRY(node, struct item, node)->number : -1;
}

static void test_list_is_first_in_first_out(void **state)
{
    (void)state;
    struct list_node head;
    struct item items[3];
    list_init(&head);
    assert_true(list_empty(&head));
    for (int i = 0; i < 3; i++) {
        items[i].number = i;
        list_append(&head, &items[i].node);
        assert_false(list_empty(&head));
    }
    assert_int_equal(take_number(&head), 0);
    assert_int_equal(take_number(&head), 1);
    assert_int_equal(take_number(&head), 2);
    assert_int_equal(take_number(&head), -1);
    assert_true(list_empty(&head));
}

static void test_list_prepend_comes_first(void **state)
{
    (void)state;
    struct list_node head;
    struct item items[3];
    list_init(&head);
    for (int i = 0; i < 3; i++) {
        items[i].number = i;
    }
    list_prepend(&head, &items[1].node);
    list_append(&head, &items[2].node);
    list_prepend(&head, &items[0].node);
    assert_int_equal(take_number(&head), 0);
    assert_int_equal(take_number(&head), 1);
    assert_int_equal(take_number(&head), 2);
    assert_true(list_empty(&head));
}

static void test_list_remove_from_each_place(void **state)
{
    (void)state;
    for (int gone = 0; gone < 3; gone++) {
        struct list_node head;
        struct item items[3];
        list_init(&head);
        for (int i = 0; i < 3; i++) {
            items[i].number = i;
            list_append(&head, &items[i].node);
        }
        list_remove(&items[gone].node);
        for (int i = 0; i < 3; i++) {
            if (i != gone) {
                assert_int_equal(take_number(&head), i);
            }
        }
        assert_true(list_empty(&head));
    }
}

static void test_list_node_off_the_list_may_be_removed_and_added_again(void **state)
{
    (void)state;
    struct list_node head;
    struct item item = {.number = 5};
    list_init(&head);
    list_init(&item.node);
    list_remove(&item.node);
    list_append(&head, &item.node);
    list_remove(&item.node);
    list_remove(&item.node);
    assert_true(list_empty(&item.node));
    assert_true(list_empty(&head));
    list_append(&head, &item.node);
    assert_int_equal(take_number(&head), 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_list_is_first_in_first_out),
        cmocka_unit_test(test_list_prepend_comes_first),
        cmocka_unit_test(test_list_remove_from_each_place),
        cmocka_unit_test(test_list_node_off_the_list_may_be_removed_and_added_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
