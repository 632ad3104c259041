/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>

#include "queue.h"

#define SLOTS 8
#define ITEMS 20000

static void test_mailbox_room_is_the_power_of_two_that_is_enough(void **state)
{
    static const struct {
        uint32_t items;
        uint32_t room;
    } cases[] = {{0, 1},
                 {1, 1},
                 {2, 2},
                 {3, 4},
                 {4, 4},
                 {5, 8},
                 {133120, 262144},
                 {(UINT32_C(1) << 22) - 1, UINT32_C(1) << 22},
                 {256 * 16384, UINT32_C(1) << 22}, /* every client at its limit */
                 {256 * 16384 + 1, UINT32_C(1) << 23},
                 {UINT32_C(1) << 31, UINT32_C(1) << 31}};
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(mailbox_room(cases[i].items), cases[i].room);
    }
}

static void test_mailbox_keeps_order_and_refuses_when_full(void **state)
{
    struct mailbox mailbox;
    struct error err;
    int items[SLOTS + 1];
    (void)state;
    assert_int_equal(mailbox_init(&mailbox, SLOTS, &err), MLACAT_OK);
    assert_true(mailbox_empty(&mailbox));
    assert_null(mailbox_take(&mailbox));
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < SLOTS; i++) {
            assert_true(mailbox_post(&mailbox, &items[i]));
        }
        assert_false(mailbox_post(&mailbox, &items[SLOTS]));
        assert_false(mailbox_empty(&mailbox));
        for (int i = 0; i < SLOTS; i++) {
            assert_ptr_equal(mailbox_take(&mailbox), &items[i]);
        }
        assert_null(mailbox_take(&mailbox));
    }
    mailbox_fini(&mailbox);
}

static void test_mailbox_survives_the_wrap_of_its_indices(void **state)
{
    struct mailbox mailbox;
    struct error err;
    int item;
    (void)state;
    assert_int_equal(mailbox_init(&mailbox, SLOTS, &err), MLACAT_OK);
    mailbox.tail = mailbox.head = UINT32_MAX - 3;
    mailbox.head_seen = mailbox.tail_seen = UINT32_MAX - 3;
    for (int i = 0; i < SLOTS; i++) {
        assert_true(mailbox_post(&mailbox, &item));
    }
    assert_false(mailbox_post(&mailbox, &item));
    for (int i = 0; i < SLOTS; i++) {
        assert_ptr_equal(mailbox_take(&mailbox), &item);
    }
    assert_null(mailbox_take(&mailbox));
    mailbox_fini(&mailbox);
}

struct pair {
    struct mailbox there;
    struct mailbox back;
    struct doorbell there_bell;
    struct doorbell back_bell;
};

static void *take_sleeping(struct mailbox *mailbox, struct doorbell *doorbell)
{
    for (;;) {
        void *item = mailbox_take(mailbox);
        if (item) {
            return item;
        }
        doorbell_arm(doorbell);
        if (!mailbox_empty(mailbox)) {
            doorbell_disarm(doorbell);
            continue;
        }
        doorbell_sleep(doorbell);
    }
}

static void *echo_main(void *arg)
{
    struct pair *pair = arg;
    for (uintptr_t i = 1; i <= ITEMS; i++) {
        void *item = take_sleeping(&pair->there, &pair->there_bell);
        while (!mailbox_post(&pair->back, item)) {
            doorbell_ring(&pair->back_bell);
            spin_pause(0);
        }
        doorbell_ring(&pair->back_bell);
    }
    return NULL;
}

/* A lost wake-up hangs the test: its time limit ends it. */
static void test_doorbell_loses_no_wake_up(void **state)
{
    static struct pair pair;
    struct error err;
    pthread_t thread;
    uintptr_t sent = 0;
    (void)state;
    assert_int_equal(mailbox_init(&pair.there, SLOTS, &err), MLACAT_OK);
    assert_int_equal(mailbox_init(&pair.back, SLOTS, &err), MLACAT_OK);
    assert_int_equal(doorbell_init(&pair.there_bell, &err), MLACAT_OK);
    assert_int_equal(doorbell_init(&pair.back_bell, &err), MLACAT_OK);
    assert_int_equal(pthread_create(&thread, NULL, echo_main, &pair), 0);
    for (uintptr_t got = 1; got <= ITEMS; got++) {
        /* One to four in flight: both sides sleep often. */
        while (sent < ITEMS && sent - got + 1 < got % 4 + 1) {
            assert_true(mailbox_post(&pair.there, (void *)++sent));
            doorbell_ring(&pair.there_bell);
        }
        assert_int_equal((uintptr_t)take_sleeping(&pair.back, &pair.back_bell), got);
    }
    pthread_join(thread, NULL);
    mailbox_fini(&pair.there);
    mailbox_fini(&pair.back);
    doorbell_fini(&pair.there_bell);
    doorbell_fini(&pair.back_bell);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mailbox_room_is_the_power_of_two_that_is_enough),
        cmocka_unit_test(test_mailbox_keeps_order_and_refuses_when_full),
        cmocka_unit_test(test_mailbox_survives_the_wrap_of_its_indices),
        cmocka_unit_test(test_doorbell_loses_no_wake_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
