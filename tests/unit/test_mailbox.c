/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>

#include "doorbell.h"
#include "list.h"
#include "mailbox.h"

#define ITEMS 20000

struct letter {
    struct mail mail;
    uint32_t number;
};

static uint32_t number_of(struct mail *mail)
{
    return LIST_ENTRY(mail, struct letter, mail)->number;
}

static void test_mailbox_keeps_the_order(void **state)
{
    static struct mailbox mailbox; /* zeroed: empty */
    struct letter letters[9];
    uint32_t posted = 0;
    uint32_t taken = 0;
    (void)state;
    assert_true(mailbox_empty(&mailbox));
    assert_null(mailbox_take(&mailbox));
    /* Posts between takes: the receiver holds some that it took and some are posted. */
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < 3; i++) {
            letters[posted].number = posted;
            mailbox_post(&mailbox, &letters[posted].mail);
            posted++;
        }
        assert_false(mailbox_empty(&mailbox));
        assert_int_equal(number_of(mailbox_take(&mailbox)), taken++);
        assert_int_equal(number_of(mailbox_take(&mailbox)), taken++);
    }
    while (taken < posted) {
        assert_int_equal(number_of(mailbox_take(&mailbox)), taken++);
    }
    assert_true(mailbox_empty(&mailbox));
    assert_null(mailbox_take(&mailbox));
}

struct pair {
    struct mailbox there;
    struct mailbox back;
    struct doorbell there_bell;
    struct doorbell back_bell;
};

static struct mail *take_sleeping(struct mailbox *mailbox, struct doorbell *doorbell)
{
    for (;;) {
        struct mail *item = mailbox_take(mailbox);
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
    for (int i = 0; i < ITEMS; i++) {
        mailbox_post(&pair->back, take_sleeping(&pair->there, &pair->there_bell));
        doorbell_ring(&pair->back_bell);
    }
    return NULL;
}

/* A lost wake-up hangs the test: its time limit ends it. */
static void test_doorbell_loses_no_wake_up(void **state)
{
    static struct pair pair;
    static struct letter letters[ITEMS];
    struct error err;
    pthread_t thread;
    uint32_t sent = 0;
    (void)state;
    assert_int_equal(doorbell_init(&pair.there_bell, &err), MLACAT_OK);
    assert_int_equal(doorbell_init(&pair.back_bell, &err), MLACAT_OK);
    assert_int_equal(pthread_create(&thread, NULL, echo_main, &pair), 0);
    for (uint32_t got = 0; got < ITEMS; got++) {
        /* One to four in flight: both sides sleep often. */
        while (sent < ITEMS && sent - got < got % 4 + 1) {
            letters[sent].number = sent;
            mailbox_post(&pair.there, &letters[sent++].mail);
            doorbell_ring(&pair.there_bell);
        }
        assert_int_equal(number_of(take_sleeping(&pair.back, &pair.back_bell)), got);
    }
    pthread_join(thread, NULL);
    doorbell_fini(&pair.there_bell);
    doorbell_fini(&pair.back_bell);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mailbox_keeps_the_order),
        cmocka_unit_test(test_doorbell_loses_no_wake_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
