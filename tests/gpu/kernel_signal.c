/* SPDX-License-Identifier: Apache-2.0 */
#include "kernel_signal.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu.h"
#include "matrix_case.h"
#include "module.h"

#define TURNS 4u
#define ROWS_BYTES_MAX ((uint64_t)1 << 15) /* of one call's output, for one block */
#define GATED_BYTES_MAX ((uint64_t)1 << 22)
#define POISON 0xa5
#define OPENS_WITHIN_NS UINT64_C(10000000000)
#define LAPSES_AFTER_NS 200000

enum gate { NO_GATE, GATE_LAPSES, GATE_OPENS_LATE, GATES_NR };
static const char *const gate_names[GATES_NR] = {"no gate", "gate lapses", "gate opens late"};

static struct {
    _Atomic uint64_t *end[CONCAT_MLA_END_WORDS];
    _Atomic uint64_t *gate;
    _Atomic uint64_t *lapsed;
    uint64_t launches;
    bool gated; /* they go between a gate and a tail, as of any size can */
} words;

/* The driver's own host memory has one address for CPU and GPU. */
static struct concat_mla_signal next_signal(uint64_t wait_ns)
{
    struct concat_mla_signal signal = {.gate = {.address = 0}};
    words.launches++;
    for (unsigned i = 0; i < CONCAT_MLA_END_WORDS; i++) {
        signal.end.address[i] = (uintptr_t)words.end[i];
        signal.end.value[i] = words.launches + ((uint64_t)(i + 1) << 40);
    }
    if (wait_ns != 0) {
        signal.gate = (struct concat_mla_gate){.address = (uintptr_t)words.gate,
                                               .value = words.launches,
                                               .wait_ns = wait_ns,
                                               .lapsed = (uintptr_t)words.lapsed,
                                               .lapsed_value = words.launches};
    }
    return signal;
}

static void enqueue(const struct concat_mla_launch *launch, const struct concat_mla_signal *signal)
{
    if (words.gated) {
        module_gated(launch, signal, words.launches);
    } else {
        module_signal(launch, signal);
    }
}

static bool have_words(const struct concat_mla_signal *signal)
{
    for (unsigned i = 0; i < CONCAT_MLA_END_WORDS; i++) {
        if (atomic_load(words.end[i]) != signal->end.value[i]) {
            return false;
        }
    }
    return true;
}

static bool has_no_word(const struct concat_mla_signal *signal)
{
    for (unsigned i = 0; i < CONCAT_MLA_END_WORDS; i++) {
        if (atomic_load(words.end[i]) == signal->end.value[i]) {
            return false;
        }
    }
    return true;
}

static bool is_untouched(const struct operand *out)
{
    unsigned char *now = malloc(out->size);
    if (!now) {
        return false;
    }
    gpu_download(now, out->device, out->size);
    bool same = memcmp(now, out->host, out->size) == 0;
    free(now);
    return same;
}

static bool run_and_end(const struct concat_mla_launch *launch)
{
    struct concat_mla_signal signal = next_signal(0);
    enqueue(launch, &signal);
    gpu_sync();
    return have_words(&signal);
}

static bool run_and_lapse(const struct matrix_case *c, const struct concat_mla_launch *launch)
{
    struct concat_mla_signal signal = next_signal(LAPSES_AFTER_NS);
    enqueue(launch, &signal);
    gpu_sync();
    return atomic_load(words.lapsed) == words.launches && has_no_word(&signal) && is_untouched(&c->operand[OUT]) &&
           run_and_end(launch);
}

/* The operands' bytes come when the kernel is there, and then the word. */
static bool run_and_open(const struct matrix_case *c, const struct concat_mla_launch *launch)
{
    struct concat_mla_signal signal = next_signal(OPENS_WITHIN_NS);
    for (int k = OUT; k < OPERANDS; k++) {
        if (c->operand[k].size) {
            gpu_fill(c->operand[k].device, POISON, c->operand[k].size);
        }
    }
    gpu_sync();
    enqueue(launch, &signal);
    for (int k = OUT; k < OPERANDS; k++) {
        if (c->operand[k].size) {
            gpu_upload_beside(c->operand[k].device, c->operand[k].host, c->operand[k].size);
        }
    }
    bool waited = has_no_word(&signal);
    atomic_store(words.gate, signal.gate.value);
    gpu_sync();
    return waited && have_words(&signal) && atomic_load(words.lapsed) != words.launches;
}

/* False only if it ran, and something was wrong. Counts in `ran` by the kernel. */
static bool run_case(struct matrix_case *c, enum gate gate, uint64_t bytes_per_ms, unsigned ran[KERNEL_NR])
{
    struct concat_mla_args args = matrix_case_args(c);
    struct concat_mla_plan plan;
    struct concat_mla_launch launch;
    struct concat_mla_launch second;
    concat_mla_plan_init(&plan, &args, bytes_per_ms);
    if (!concat_mla_plan_next(&plan, &launch) || (!words.gated && concat_mla_signal_threads(&launch) == 0) ||
        concat_mla_plan_next(&plan, &second)) {
        return true;
    }
    gpu_sync();
    bool good = gate == NO_GATE       ? run_and_end(&launch)
                : gate == GATE_LAPSES ? run_and_lapse(c, &launch)
                                      : run_and_open(c, &launch);
    if (!good) {
        printf("WRONG: a word, or the output before its time (vectors of %u bytes, %s)\n", launch.range.vector_bytes,
               gate_names[gate]);
    }
    ran[KERNEL_1 - __builtin_ctz(launch.range.vector_bytes)]++;
    return matrix_case_check(c) && good;
}

static bool run_gate(enum gate gate, uint64_t bytes_per_ms, bool tight)
{
    unsigned ran[KERNEL_NR] = {0};
    bool good = true;
    size_t turns = (tight ? 1 : TURNS) * LAYOUT_NR * matrix_widths_nr;
    for (size_t turn = 0; turn < turns; turn++) {
        struct matrix_case c;
        size_t widths = turn / LAYOUT_NR % matrix_widths_nr;
        size_t misalignment = matrix_random() % matrix_misalignments_nr;
        matrix_case_make(&c, widths, (enum layout)(turn % LAYOUT_NR), misalignment, (unsigned)matrix_random(),
                         (words.gated ? GATED_BYTES_MAX : ROWS_BYTES_MAX) >> matrix_random() % 8);
        c.tight = tight;
        matrix_case_open(&c);
        good = run_case(&c, gate, bytes_per_ms, ran) && good;
        matrix_case_close(&c);
    }
    printf("%-16s", gate_names[gate]);
    for (int kernel = KERNEL_16; kernel < KERNEL_NR; kernel++) {
        good = ran[kernel] > 0 && good;
        printf(" %8u", ran[kernel]);
    }
    printf(" %8s\n", good ? "ok" : "WRONG");
    return good;
}

static bool run_gates(uint64_t bytes_per_ms, bool tight)
{
    bool good = true;
    printf("%-16s %8s %8s %8s %8s %8s %8s\n", words.gated ? "gate and tail" : "tells its end", "16", "8", "4", "2", "1",
           "result");
    for (int gate = NO_GATE; gate < (tight ? GATE_OPENS_LATE : GATES_NR); gate++) {
        good = run_gate((enum gate)gate, bytes_per_ms, tight) && good;
    }
    printf("(the columns: launches of each kernel)\n\n");
    return good;
}

bool kernel_signal_run(uint64_t bytes_per_ms, bool tight)
{
    for (unsigned i = 0; i < CONCAT_MLA_END_WORDS; i++) {
        words.end[i] = gpu_word_new();
    }
    words.gate = gpu_word_new();
    words.lapsed = gpu_word_new();
    bool good = run_gates(bytes_per_ms, tight);
    words.gated = module_has_gate();
    good = (!words.gated || run_gates(bytes_per_ms, tight)) && good;
    for (unsigned i = 0; i < CONCAT_MLA_END_WORDS; i++) {
        gpu_word_free(words.end[i]);
    }
    gpu_word_free(words.gate);
    gpu_word_free(words.lapsed);
    return good;
}
