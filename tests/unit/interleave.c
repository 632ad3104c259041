/* SPDX-License-Identifier: Apache-2.0 */
#include "interleave.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define STACK_BYTES (64 << 10)
#define BUFFER_STORES 8
#define STEPS_MAX 400
#define VISITED_MAX ((size_t)1 << 22)

enum waits { WAITS_NOT, WAITS_BELL, WAITS_FUTEX, ENDED };

struct store {
    unsigned char *word;
    size_t bytes;
    uint64_t value;
    bool release;
};

struct thread {
    ucontext_t context;
    unsigned char *stack;
    enum waits waits;
    struct store buffer[BUFFER_STORES];
    int buffer_nr;
    uint64_t history; /* of what it has done and seen: with the program, its whole state */
};

static const struct interleave_program *program;
static ucontext_t scheduler;
static struct thread threads[2];
static int running;
static bool bell;
static uint64_t runs;

/* The choices of this run: what was taken, of how many. */
static int choice[STEPS_MAX];
static int choices[STEPS_MAX];
static uint64_t *visited;

static uint64_t mix(uint64_t hash, uint64_t value)
{
    return (hash ^ value) * UINT64_C(0x9e3779b97f4a7c15) ^ (hash >> 29);
}

static void note(uint64_t what)
{
    threads[running].history = mix(threads[running].history, what);
}

static void give_way(void)
{
    swapcontext(&threads[running].context, &scheduler);
}

static bool is_shared(const void *word)
{
    uintptr_t at = (uintptr_t)word - (uintptr_t)program->words;
    return at < program->words_bytes;
}

static void apply(const struct store *store)
{
    memcpy(store->word, &store->value, store->bytes); /* little-endian, as all machines that run the tests */
}

static void flush(struct thread *thread, int index)
{
    apply(&thread->buffer[index]);
    thread->buffer_nr--;
    memmove(&thread->buffer[index], &thread->buffer[index + 1],
            (size_t)(thread->buffer_nr - index) * sizeof(struct store));
}

static void flush_all(struct thread *thread)
{
    while (thread->buffer_nr > 0) {
        flush(thread, 0);
    }
}

/* A release store not before any that came before it; no store before another of its word. */
static bool may_flush(const struct thread *thread, int index)
{
    for (int i = 0; i < index; i++) {
        if (thread->buffer[index].release || thread->buffer[i].word == thread->buffer[index].word) {
            return false;
        }
    }
    return true;
}

/* ------------------------------------------------------------------------------------------ what threads do */

void interleave_store(void *word, size_t bytes, uint64_t value, int order)
{
    struct thread *self = &threads[running];
    struct store store = {word, bytes, value, order != __ATOMIC_RELAXED};
    if (!is_shared(word)) {
        apply(&store);
        return;
    }
    give_way();
    assert(self->buffer_nr < BUFFER_STORES);
    self->buffer[self->buffer_nr++] = store;
    note(value + 2);
}

uint64_t interleave_load(const void *word, size_t bytes, int order)
{
    struct thread *self = &threads[running];
    uint64_t value = 0;
    (void)order; /* loads are never early here */
    if (!is_shared(word)) {
        memcpy(&value, word, bytes);
        return value;
    }
    give_way();
    memcpy(&value, word, bytes);
    for (int i = 0; i < self->buffer_nr; i++) { /* its own stores it sees at once */
        value = self->buffer[i].word == word ? self->buffer[i].value : value;
    }
    note(value + 2);
    return value;
}

void interleave_fence(int order)
{
    if (order == __ATOMIC_SEQ_CST && !program->ignore_fences) {
        flush_all(&threads[running]);
    }
}

void interleave_ring_bell(void)
{
    give_way();
    flush_all(&threads[running]);
    bell = true;
    note(1);
}

static void block(enum waits on)
{
    threads[running].waits = on;
    note(1);
    give_way();
}

void interleave_wait_bell(void)
{
    block(WAITS_BELL);
    bell = false;
    note(1);
}

void interleave_futex_wait(const uint32_t *word, uint32_t value)
{
    give_way();
    flush_all(&threads[running]);
    if (*(const volatile uint32_t *)word == value) {
        block(WAITS_FUTEX);
    }
    note(1);
}

void interleave_futex_wake(void)
{
    struct thread *other = &threads[1 - running];
    give_way();
    flush_all(&threads[running]);
    if (other->waits == WAITS_FUTEX) {
        other->waits = WAITS_NOT;
    }
    note(1);
}

/* ------------------------------------------------------------------------------------------ the search */

static bool can_run(const struct thread *thread)
{
    return thread->waits == WAITS_NOT || (thread->waits == WAITS_BELL && bell);
}

/* Choice 0 and 1: a thread runs on; then: a store of a buffer reaches memory. */
static int list_choices(int list[2 + 2 * BUFFER_STORES])
{
    int nr = 0;
    for (int t = 0; t < 2; t++) {
        if (can_run(&threads[t])) {
            list[nr++] = t;
        }
    }
    for (int t = 0; t < 2; t++) {
        for (int i = 0; i < threads[t].buffer_nr; i++) {
            if (may_flush(&threads[t], i)) {
                list[nr++] = 2 + t * BUFFER_STORES + i;
            }
        }
    }
    return nr;
}

static void take(int what)
{
    if (what >= 2) {
        flush(&threads[(what - 2) / BUFFER_STORES], (what - 2) % BUFFER_STORES);
        return;
    }
    running = what;
    threads[what].waits = WAITS_NOT;
    swapcontext(&scheduler, &threads[what].context);
}

/* true: seen before. 0 marks a free place. */
static bool visit(void)
{
    uint64_t key = mix(1, bell);
    const unsigned char *words = program->words;
    for (size_t i = 0; i < program->words_bytes; i++) {
        key = words[i] ? mix(key, i << 8 | words[i]) : key;
    }
    for (int t = 0; t < 2; t++) {
        key = mix(mix(key, threads[t].history), threads[t].waits);
        for (int i = 0; i < threads[t].buffer_nr; i++) {
            key = mix(mix(key, (uintptr_t)threads[t].buffer[i].word), threads[t].buffer[i].value);
        }
        key = mix(key, 5);
    }
    key |= 1;
    size_t place = (size_t)(key >> 20) % VISITED_MAX;
    while (visited[place] != 0 && visited[place] != key) {
        place = (place + 1) % VISITED_MAX;
    }
    bool seen = visited[place] == key;
    visited[place] = key;
    return seen;
}

static void thread_main(int index)
{
    note(1);
    program->main[index]();
    threads[index].waits = ENDED;
    give_way();
}

static void start(void)
{
    program->reset();
    bell = false;
    for (int t = 0; t < 2; t++) {
        threads[t].waits = WAITS_NOT;
        threads[t].buffer_nr = 0;
        threads[t].history = 0;
        getcontext(&threads[t].context);
        threads[t].context.uc_stack.ss_sp = threads[t].stack;
        threads[t].context.uc_stack.ss_size = STACK_BYTES;
        threads[t].context.uc_link = NULL;
        makecontext(&threads[t].context, (void (*)(void))(uintptr_t)thread_main, 1, t);
    }
}

/* One run: the first `fixed` choices as given, then the first of each; *steps: how many there were. */
static enum interleave_end run(int fixed, int *steps)
{
    int list[2 + 2 * BUFFER_STORES];
    start();
    for (int step = 0;; step++) {
        int nr = list_choices(list);
        *steps = step;
        if (nr == 0) {
            return threads[0].waits == ENDED && threads[1].waits == ENDED ? INTERLEAVE_FINE : INTERLEAVE_STUCK;
        }
        assert(step < STEPS_MAX);
        if (step >= fixed) {
            if (visit()) {
                return INTERLEAVE_FINE;
            }
            choice[step] = 0;
            choices[step] = nr;
        }
        take(list[choice[step]]);
    }
}

static void tell(int steps)
{
    printf("stuck after");
    for (int i = 0; i < steps; i++) {
        printf(" %d/%d", choice[i], choices[i]);
    }
    printf("\n");
}

enum interleave_end interleave(const struct interleave_program *which)
{
    enum interleave_end end = INTERLEAVE_FINE;
    int fixed = 0;
    program = which;
    runs = 0;
    visited = calloc(VISITED_MAX, sizeof(*visited));
    for (int t = 0; t < 2; t++) {
        threads[t].stack = malloc(STACK_BYTES);
        assert(visited && threads[t].stack);
    }
    do {
        int steps;
        runs++;
        end = run(fixed, &steps);
        if (end == INTERLEAVE_STUCK && program->tell) {
            tell(steps);
        }
        while (steps > 0 && choice[steps - 1] + 1 == choices[steps - 1]) {
            steps--;
        }
        if (steps > 0) {
            choice[steps - 1]++;
        }
        fixed = steps;
    } while (fixed > 0 && end == INTERLEAVE_FINE);
    for (int t = 0; t < 2; t++) {
        free(threads[t].stack);
    }
    free(visited);
    return end;
}

uint64_t interleave_runs(void)
{
    return runs;
}
