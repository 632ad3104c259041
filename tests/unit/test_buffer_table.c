/* SPDX-License-Identifier: Apache-2.0 */
/* Names that the loop gives and takes away while workers look them up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "buffer_table.h"

#define ROUNDS 20000

/* Only its address matters to the table; the race test looks whether it is in use when it may be. */
struct buffer {
    _Atomic uint32_t live;
};

static struct buffer_table table;
static struct buffer buffers[2];
static bool rings;

static int setup(void **state)
{
    struct error err;
    (void)state;
    rings = false;
    return buffer_table_init(&table, &err) == MLACAT_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    buffer_table_fini(&table);
    return 0;
}

static struct buffer_slot *publish(uint32_t id, uint32_t generation, struct buffer *buffer)
{
    struct buffer_slot *slot = buffer_table_slot(&table, id);
    buffer_slot_publish(slot, generation, buffer);
    return slot;
}

static struct buffer_slot *pin(uint32_t id, uint32_t generation)
{
    return buffer_table_pin(&table, (struct wire_ref){id, generation}, &rings);
}

static void test_buffer_table_finds_names_only(void **state)
{
    (void)state;
    publish(3, 7, &buffers[0]);
    publish(BUFFER_TABLE_SLOTS - 1, 1, &buffers[1]);
    assert_null(pin(3, 6));
    assert_null(pin(3, 0));
    assert_null(pin(4, 7));
    assert_null(pin(4, 0)); /* a free slot has generation 0, which is no name */
    assert_null(pin(BUFFER_TABLE_SLOTS, 1));
    assert_null(pin(UINT32_MAX, 7));
    assert_null(buffer_table_slot(&table, BUFFER_TABLE_SLOTS));
    assert_ptr_equal(pin(3, 7)->buffer, &buffers[0]);
    assert_ptr_equal(pin(BUFFER_TABLE_SLOTS - 1, 1)->buffer, &buffers[1]);
}

static void test_buffer_table_slot_is_used_until_the_last_pin_goes(void **state)
{
    (void)state;
    struct buffer_slot *slot = publish(0, 1, &buffers[0]);
    assert_ptr_equal(pin(0, 1), slot);
    assert_ptr_equal(pin(0, 1), slot);
    assert_false(buffer_slot_unpin(slot)); /* nobody waits */
    assert_ptr_equal(pin(0, 1), slot);
    buffer_slot_withdraw(slot);
    assert_false(buffer_slot_unused(slot));
    rings = false;
    assert_null(pin(0, 1));
    assert_false(rings); /* others have it yet */
    assert_false(buffer_slot_unpin(slot));
    assert_false(buffer_slot_unused(slot));
    assert_true(buffer_slot_unpin(slot));
    assert_true(buffer_slot_unused(slot));
    publish(0, 2, &buffers[1]);
    assert_null(pin(0, 1));
    assert_ptr_equal(pin(0, 2)->buffer, &buffers[1]);
}

/* Memory of the mapping that the table is in. */
static unsigned long table_kib(void)
{
    static const char what[] = "Anonymous:";
    char line[256];
    unsigned long kib = 0;
    bool inside = false;
    FILE *file = fopen("/proc/self/smaps", "r");
    assert_non_null(file);
    while (fgets(line, sizeof(line), file)) {
        char *after;
        uintptr_t begin = strtoul(line, &after, 16);
        if (after > line && *after == '-') { /* "begin-end ...": the mapping that the lines below are about */
            inside = (uintptr_t)table.slots >= begin && (uintptr_t)table.slots < strtoul(after + 1, NULL, 16);
        } else if (inside && strncmp(line, what, sizeof(what) - 1) == 0) {
            kib = strtoul(line + sizeof(what) - 1, NULL, 10);
            break;
        }
    }
    fclose(file);
    return kib;
}

/* Whoever guesses names makes the table no larger and rings nobody. */
static void test_buffer_table_failed_look_costs_nothing(void **state)
{
    (void)state;
    unsigned long before = table_kib();
    for (uint32_t id = 0; id < BUFFER_TABLE_SLOTS; id++) {
        assert_null(pin(id, 1));
    }
    assert_false(rings);
    assert_int_equal(table_kib(), before);
    struct buffer_slot *slot = publish(0, 1, &buffers[0]);
    buffer_slot_withdraw(slot);
    assert_null(pin(0, 1));
    assert_false(rings);
    assert_true(buffer_slot_unused(slot));
}

static _Atomic bool stop;

static void *worker_main(void *arg)
{
    uint32_t *found = arg;
    bool any = false;
    for (uint32_t generation = 1; !atomic_load(&stop); generation = generation % ROUNDS + 1) {
        struct buffer_slot *slot = buffer_table_pin(&table, (struct wire_ref){0, generation}, &any);
        if (!slot) {
            generation = atomic_load(&buffer_table_slot(&table, 0)->generation);
            continue;
        }
        ++*found;
        if (atomic_load(&slot->buffer->live) != generation) {
            *found = UINT32_MAX / 2;
        }
        buffer_slot_unpin(slot);
    }
    return NULL;
}

static void test_buffer_table_never_gives_a_buffer_that_goes(void **state)
{
    pthread_t threads[2];
    uint32_t found[2] = {0};
    (void)state;
    atomic_store(&stop, false);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, worker_main, &found[i]), 0);
    }
    for (uint32_t generation = 1; generation <= ROUNDS; generation++) {
        struct buffer *buffer = &buffers[generation % 2];
        atomic_store(&buffer->live, generation);
        struct buffer_slot *slot = publish(0, generation, buffer);
        if (generation % 16 == 0) {
            sched_yield();
        }
        buffer_slot_withdraw(slot);
        while (!buffer_slot_unused(slot)) {
            sched_yield();
        }
        atomic_store(&buffer->live, 0);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_true(found[i] < UINT32_MAX / 2);
    }
}

#define TABLE_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TABLE_TEST(test_buffer_table_finds_names_only),
        TABLE_TEST(test_buffer_table_slot_is_used_until_the_last_pin_goes),
        TABLE_TEST(test_buffer_table_failed_look_costs_nothing),
        TABLE_TEST(test_buffer_table_never_gives_a_buffer_that_goes),
    };
    alarm(60);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
