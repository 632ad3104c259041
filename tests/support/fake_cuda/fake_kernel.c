/* SPDX-License-Identifier: Apache-2.0 */
/* A launch of the concat-MLA kernels, row by row on the CPU: where concat_mla.cu would read and write, by its rules. */
#include <limits.h>
#include <stdint.h>
#include <string.h>

#include "concat_mla_host.h"
#include "fake_inside.h"

/* The thread map of concat_mla.cu. */
#define FLAT_THREADS 128
#define WINDOW_THREADS 256
#define WARP_THREADS 32
#define GATE_MOST_NS 1000000 /* nothing of a daemon is longer */
#define LAUNCH_BYTES_MAX ((uint64_t)FAKE_MEMORY_CLOCK_KHZ * 2 * FAKE_MEMORY_BUS_BITS / 8) /* in 1 ms */

static bool is_flat(unsigned vector_bytes)
{
    return vector_bytes >= 8;
}

/* Vectors that a thread copies. */
static unsigned vectors_of(unsigned vector_bytes)
{
    return vector_bytes == 16 ? 2 : vector_bytes == 8 ? 4 : vector_bytes == 4 ? 3 : 6;
}

static uint64_t row_units(const struct concat_mla_args *args, unsigned vector)
{
    uint64_t vectors = (args->a_bytes + args->b_bytes) / vector;
    uint64_t window = WARP_THREADS * vectors_of(vector);
    return is_flat(vector) ? vectors : (vectors + window - 1) / window;
}

static uint64_t units_of_block(unsigned vector, uint64_t threads)
{
    return is_flat(vector) ? threads * vectors_of(vector) : threads / WARP_THREADS;
}

/* The only wait of a daemon's that the device may have. */
static void check_gate(const struct concat_mla_gate *gate)
{
    if (gate->address != 0 && gate->wait_ns > GATE_MOST_NS) {
        fake_break("a kernel was launched to wait %llu ns for a word", gate->wait_ns);
    }
}

/* The kernels before and behind the gated ones. */
static void take_gate(struct fake_op *op, void **parameters)
{
    bool first = op->function->kind == KERNEL_GATE;
    void *words = first ? (void *)&op->signal.gate : &op->signal.end;
    memcpy(words, parameters[0], first ? sizeof(op->signal.gate) : sizeof(op->signal.end));
    memcpy(&op->ticket, parameters[1], sizeof(op->ticket));
    check_gate(&op->signal.gate);
    if (op->grid != 1 || op->block != CONCAT_MLA_GATE_THREADS || op->ticket.number == 0) {
        fake_break("a gate or a tail was launched with %u blocks of %u threads, and the number %llu", op->grid,
                   op->block, op->ticket.number);
    }
}

/* Each stretch of the only block of concat_mla_V_signal is a block of concat_mla_many, as which the launch goes on. */
static void take_signal(struct fake_op *op, const struct concat_mla_signal *signal)
{
    op->signal = *signal;
    if (op->grid != 1 || op->block > CONCAT_MLA_SIGNAL_THREADS ||
        (op->many.range[0].units > 0 && op->block % CONCAT_MLA_MANY_THREADS != 0)) {
        fake_break("concat_mla_%u_signal was launched with %u blocks of %u threads", op->function->vector_bytes,
                   op->grid, op->block);
    }
    check_gate(&signal->gate);
    op->grid = op->block / CONCAT_MLA_MANY_THREADS;
    op->block = CONCAT_MLA_MANY_THREADS;
}

void fake_take_parameters(struct fake_op *op, void **parameters)
{
    if (op->function->kind == KERNEL_SPIN) {
        memcpy(&op->spin_ns, parameters[0], sizeof(op->spin_ns));
        return;
    }
    if (op->function->kind == KERNEL_MANY) {
        memcpy(&op->many, parameters[0], sizeof(op->many));
        return;
    }
    if (op->function->vector_bytes == 0) {
        take_gate(op, parameters);
        return;
    }
    memcpy(&op->many.args[0], parameters[0], sizeof(op->many.args[0]));
    memcpy(&op->many.range[0], parameters[1], sizeof(op->many.range[0]));
    op->many.range[0].vector_bytes = (unsigned char)op->function->vector_bytes;
    op->many.first_block[0] = 0;
    for (unsigned call = 1; call < CONCAT_MLA_MANY_CALLS; call++) {
        op->many.first_block[call] = UINT_MAX;
    }
    if (op->function->kind == KERNEL_SIGNAL) {
        take_signal(op, parameters[2]);
    } else if (op->function->kind == KERNEL_GATED) {
        memcpy(&op->ticket, parameters[2], sizeof(op->ticket));
    }
}

/* A block belongs to the last call that begins at or before it. */
static unsigned blocks_of(const struct fake_op *op, unsigned call)
{
    const unsigned *first = op->many.first_block;
    unsigned end = call + 1 < CONCAT_MLA_MANY_CALLS && first[call + 1] < op->grid ? first[call + 1] : op->grid;
    return first[call] < end ? end - first[call] : 0;
}

static bool is_empty(const struct fake_op *op, unsigned call)
{
    return blocks_of(op, call) == 0 || op->many.range[call].units == 0;
}

/* Returns the bytes of its output. */
static uint64_t check_call(const struct fake_op *op, unsigned call, uint64_t threads)
{
    const struct concat_mla_args *args = &op->many.args[call];
    const struct concat_mla_range *range = &op->many.range[call];
    unsigned vector = range->vector_bytes;
    uint64_t row_bytes = args->a_bytes + args->b_bytes;
    if (vector == 0 || vector > 16 || (vector & (vector - 1)) != 0) {
        fake_break("a call of a launch has vectors of %u bytes", vector);
    }
    if (op->block != threads || blocks_of(op, call) * units_of_block(vector, threads) < range->units) {
        fake_break("a launch of %u blocks of %u threads does not cover %u units", blocks_of(op, call), op->block,
                   range->units);
    }
    if (row_bytes == 0 || args->a_bytes % vector != 0 || args->b_bytes % vector != 0) {
        fake_break("widths of %llu and %llu bytes with vectors of %u", args->a_bytes, args->b_bytes, vector);
    }
    return range->units / row_units(args, vector) * row_bytes;
}

void fake_check_launch(const struct fake_op *op)
{
    unsigned vector = op->function->vector_bytes;
    bool divided = vector == 0 || op->function->kind == KERNEL_SIGNAL;
    uint64_t threads = divided ? CONCAT_MLA_MANY_THREADS : is_flat(vector) ? FLAT_THREADS : WINDOW_THREADS;
    uint64_t bytes = 0;
    if (vector == 0 && op->function->kind != KERNEL_MANY) {
        return;
    }
    if (op->block > threads) {
        fake_break("a kernel for vectors of %u bytes was launched with blocks of %u threads", vector, op->block);
    }
    for (unsigned call = 0; call < CONCAT_MLA_MANY_CALLS; call++) {
        bytes += is_empty(op, call) ? 0 : check_call(op, call, threads);
    }
    if (fake.behaviour.daemon && bytes * 2 > LAUNCH_BYTES_MAX) {
        fake_break("a launch reads and writes %llu bytes: that is longer than 1 ms", (unsigned long long)(bytes * 2));
    }
}

/* Where the row (q, carry) of an operand begins, as at_row of concat_mla.cu. */
static cuda_address at_row(const void *base, uint64_t q, uint64_t carry, long long stride0, long long stride1,
                           uint64_t dim1)
{
    uint64_t step0 = (uint64_t)stride0 - dim1 * (uint64_t)stride1;
    return (cuda_address)(uintptr_t)base + q * (uint64_t)stride1 + carry * step0;
}

static int run_row(const struct concat_mla_args *args, const struct concat_mla_range *range, uint64_t q)
{
    unsigned vector = range->vector_bytes;
    uint64_t carry = ((range->first_j + q) * range->dim1_multiplier) >> range->dim1_shift;
    cuda_address out = at_row(args->out, q, carry, args->out_stride0, args->out_stride1, args->dim1);
    cuda_address a = at_row(args->a, q, carry, args->a_stride0, args->a_stride1, args->dim1);
    cuda_address b = at_row(args->b, q, carry, args->b_stride0, args->b_stride1, args->dim1);
    if (out % vector != 0 || a % vector != 0 || (args->b_bytes != 0 && b % vector != 0)) {
        return RESULT_MISALIGNED_ADDRESS;
    }
    struct concat_mla_args row = {
        .out = fake_reach(out, args->a_bytes + args->b_bytes),
        .a = args->a_bytes ? fake_reach(a, args->a_bytes) : NULL,
        .b = args->b_bytes ? fake_reach(b, args->b_bytes) : NULL,
        .dim0 = 1,
        .dim1 = 1,
        .a_bytes = args->a_bytes,
        .b_bytes = args->b_bytes,
    };
    if (!row.out || (args->a_bytes && !row.a) || (args->b_bytes && !row.b)) {
        return RESULT_ILLEGAL_ADDRESS;
    }
    concat_mla_host(&row, 0, 1, 0);
    return CUDA_RESULT_OK;
}

static int write_end(const struct concat_mla_end *end)
{
    for (int i = 0; i < CONCAT_MLA_END_WORDS; i++) {
        uint64_t *word = end->address[i] ? fake_reach(end->address[i], sizeof(*word)) : NULL;
        if (end->address[i] % sizeof(*word) != 0) {
            return RESULT_MISALIGNED_ADDRESS;
        }
        if (end->address[i] && !word) {
            return RESULT_ILLEGAL_ADDRESS;
        }
        if (word) {
            __atomic_store_n(word, end->value[i], __ATOMIC_RELEASE);
        }
    }
    return CUDA_RESULT_OK;
}

/* The gate stamps the ticket; the others run only if it is stamped. A result as that of a kernel. */
static int look_at_ticket(const struct fake_op *op, bool *runs)
{
    uint64_t *word = op->ticket.address ? fake_reach(op->ticket.address, sizeof(*word)) : NULL;
    *runs = !op->lapsed && op->function->kind != KERNEL_SPIN;
    if (op->ticket.address && !word) {
        return RESULT_ILLEGAL_ADDRESS;
    }
    if (op->function->kind == KERNEL_GATE) {
        __atomic_store_n(word, op->lapsed ? 0 : op->ticket.number, __ATOMIC_RELEASE);
    } else if (word) {
        *runs = __atomic_load_n(word, __ATOMIC_ACQUIRE) == op->ticket.number;
    }
    return CUDA_RESULT_OK;
}

/* The calls of a launch run in any order: here the last one first, so that who counts on another order sees it. */
int fake_run_kernel(const struct fake_op *op)
{
    bool runs;
    int result = look_at_ticket(op, &runs);
    if (result != CUDA_RESULT_OK || !runs) {
        return result;
    }
    for (unsigned call = CONCAT_MLA_MANY_CALLS; call-- > 0;) {
        const struct concat_mla_args *args = &op->many.args[call];
        const struct concat_mla_range *range = &op->many.range[call];
        uint64_t rows = is_empty(op, call) ? 0 : range->units / row_units(args, range->vector_bytes);
        for (uint64_t q = 0; q < rows && result == CUDA_RESULT_OK; q++) {
            result = run_row(args, range, q);
        }
    }
    return result == CUDA_RESULT_OK ? write_end(&op->signal.end) : result;
}
