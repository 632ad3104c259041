/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stream-ordered calls: a kernel of this process, a call of the service, a kernel of this process, on one CUDA stream,
 * beside three kernels of this process. Each step reads what the one before it has written, so that one which ran too
 * early would be seen: that is checked, for both, before and after the measurement.
 */
#include "bench_order.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"

#define SINGLE_BURST 32
#define FIRST 128u
#define SECOND 64u
#define WIDTH (FIRST + SECOND)
#define ELEMENT_BYTES 2u
#define OUT_BYTES (ORDER_HEADS * WIDTH * ELEMENT_BYTES)
/* The area: what the first step reads, in the form of an output; what all read behind it; the outputs, in order. */
#define SECOND_AT OUT_BYTES
#define OUTPUTS_AT (SECOND_AT + 256u)
/* Longer kernels of one process must not be killed beside others', so 2 ms of work are two of these. */
#define SPIN_NS 1000000u
#define SPINS 2

/* Keeps one warp busy for so many nanoseconds: exactly that, whatever the clock of the processors does. */
static const char spin_text[] = ".version 6.3\n"
                                ".target sm_75\n"
                                ".address_size 64\n"
                                ".visible .entry mlacat_spin(.param .u64 length)\n"
                                "{\n"
                                "    .reg .pred %more;\n"
                                "    .reg .u64 %begin, %now, %length;\n"
                                "    ld.param.u64 %length, [length];\n"
                                "    mov.u64 %begin, %globaltimer;\n"
                                "again:\n"
                                "    mov.u64 %now, %globaltimer;\n"
                                "    sub.u64 %now, %now, %begin;\n"
                                "    setp.lt.u64 %more, %now, %length;\n"
                                "    @%more bra again;\n"
                                "    ret;\n"
                                "}\n";

static bool failed(const struct order *order, const char *what, enum mlacat_status status)
{
    ctl_fail_for(what, status, area_message(&order->bench->device));
    return false;
}

/* ------------------------------------------------------------------------------------------------ one chain */

static bool launch_work(const struct order *order)
{
    uint64_t ns = SPIN_NS;
    void *parameters[] = {&ns};

    for (int i = 0; order->what->work && i < SPINS; i++) {
        if (!gpu_kernel_launch(&order->spin, 1, 32, parameters)) {
            fprintf(stderr, "mlacatctl: %s\n", order->bench->device.gpu.error);
            return false;
        }
    }
    return true;
}

static bool submit_call(const struct order *order, unsigned call)
{
    enum mlacat_status status =
        mlacat_submit_on_stream(order->stream, &order->calls[call], order->bench->device.gpu.stream, NULL);

    return status == MLACAT_OK || (ctl_fail("stream-ordered call", status), false);
}

/* All is enqueued, then waited for. */
static bool run_chain(const struct order *order, bool in_service)
{
    for (unsigned i = 0; i < order->what->chain; i++) {
        const struct concat_mla_launch *step = &order->launches[i * ORDER_STEPS];

        if (!in_process_launch(&order->process, &step[0]) ||
            !(in_service ? submit_call(order, i) : in_process_launch(&order->process, &step[1])) ||
            !in_process_launch(&order->process, &step[2]) || !launch_work(order))
            return false;
    }
    return in_process_wait(&order->process);
}

/* The first one does not count: it wakes the worker, and the clocks. */
static bool measure(const struct order *order, struct samples *samples, bool in_service)
{
    int burst = order->what->chain == 1 ? SINGLE_BURST : 1;

    if (!run_chain(order, in_service))
        return false;
    for (int i = 0; i < burst; i++) {
        uint64_t begin = measure_now_ns();

        if (!run_chain(order, in_service))
            return false;
        samples_add(samples, (double)(measure_now_ns() - begin) / 1e3 / order->what->chain);
    }
    return true;
}

static bool service_side(void *context, struct samples *samples)
{
    return measure(context, samples, true);
}

static bool process_side(void *context, struct samples *samples)
{
    return measure(context, samples, false);
}

static bool run_checked(const struct order *order, const char *name, bool in_service)
{
    struct area_device *device = &order->bench->device;
    enum mlacat_status status;

    order->what->fill(order);
    status = area_upload(device, &order->area, order->area.bytes);
    if (status != MLACAT_OK)
        return failed(order, name, status);
    if (!run_chain(order, in_service))
        return false;
    status = mlacat_stream_status(order->stream);
    if (status != MLACAT_OK) {
        ctl_fail("stream-ordered call", status);
        return false;
    }
    status = area_download(device, &order->area, order->area.bytes);
    return status == MLACAT_OK ? order->what->check(order, name) : failed(order, name, status);
}

static bool both_checked(const struct order *order, const char *name)
{
    return run_checked(order, name, true) && run_checked(order, name, false);
}

/* ------------------------------------------------------------------------------------------------ making it */

/* Without a ring the row gets a note. */
static bool open_order(struct order *order, struct bench_row *row)
{
    struct area_device *device = &order->bench->device;
    enum mlacat_status status = area_stream_open(device, MLACAT_TRANSPORT_RING, &order->stream);

    if (status == MLACAT_UNIMPLEMENTED) {
        row->note = "the service has no rings";
        return true;
    }
    if (status != MLACAT_OK)
        return failed(order, "cannot open a ring", status);
    status = area_new(device, order->what->area_bytes(order), &order->area);
    if (status != MLACAT_OK)
        return failed(order, "cannot make a buffer", status);
    order->what->make(order);
    if (order->what->work && !gpu_kernel_open(&order->spin, &device->gpu, spin_text, "mlacat_spin")) {
        fprintf(stderr, "mlacatctl: %s\n", device->gpu.error);
        return false;
    }
    return in_process_open(&order->process, &device->gpu, &order->launches[0]);
}

bool bench_order_run(struct bench *bench, struct bench_row *row, const struct order_case *what)
{
    struct order *order;
    bool good;

    row->note = in_process_missing();
    if (row->note)
        return true;
    order = calloc(1, sizeof(*order));
    if (!order) {
        fprintf(stderr, "mlacatctl: %s: no memory\n", row->name);
        return false;
    }
    order->bench = bench;
    order->what = what;
    good = open_order(order, row) && (row->note || (both_checked(order, row->name) &&
                                                    bench_pairs(bench, row, service_side, process_side, order) &&
                                                    both_checked(order, row->name)));
    bench_remark_difference(row);
    mlacat_stream_close(order->stream);
    gpu_kernel_close(&order->spin);
    in_process_close(&order->process);
    area_free(&bench->device, &order->area);
    free(order);
    return good;
}

/* ------------------------------------------------------------------------------------------------ small calls */

/* Step `step` reads the output of the one before it, or the input. */
static size_t output_at(unsigned step)
{
    return OUTPUTS_AT + step * (size_t)OUT_BYTES;
}

static size_t input_at(unsigned step)
{
    return step == 0 ? 0 : output_at(step - 1);
}

static void make_launch(struct order *order, unsigned step)
{
    uint8_t *memory = (uint8_t *)(uintptr_t)order->area.address;
    const struct concat_mla_args args = {.out = memory + output_at(step),
                                         .a = memory + input_at(step),
                                         .b = memory + SECOND_AT,
                                         .dim0 = 1,
                                         .dim1 = ORDER_HEADS,
                                         .out_stride0 = OUT_BYTES,
                                         .out_stride1 = WIDTH * ELEMENT_BYTES,
                                         .a_stride0 = OUT_BYTES,
                                         .a_stride1 = WIDTH * ELEMENT_BYTES,
                                         .a_bytes = FIRST * ELEMENT_BYTES,
                                         .b_bytes = SECOND * ELEMENT_BYTES};

    in_process_plan(&args, &order->launches[step]);
}

/* The same as the launch of its step. */
static void make_call(struct order *order, unsigned index)
{
    struct mlacat_call *call = &order->calls[index];
    struct mlacat_buffer *buffer = order->area.buffer;
    unsigned step = index * ORDER_STEPS + 1;

    *call = (struct mlacat_call){.size = sizeof(*call), .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16};
    call->operand[0] = mlacat_tensor_contiguous(buffer, output_at(step), 1, ORDER_HEADS, WIDTH);
    call->operand[1] = mlacat_tensor_contiguous(buffer, input_at(step), 1, ORDER_HEADS, WIDTH);
    call->operand[1].shape[2] = FIRST;
    call->operand[2] = mlacat_tensor_contiguous(buffer, SECOND_AT, 1, 1, SECOND);
}

static size_t chain_bytes(const struct order *order)
{
    return output_at(order->what->chain * ORDER_STEPS);
}

static void make_chain(struct order *order)
{
    for (unsigned step = 0; step < order->what->chain * ORDER_STEPS; step++)
        make_launch(order, step);
    for (unsigned i = 0; i < order->what->chain; i++)
        make_call(order, i);
}

static void fill_chain(const struct order *order)
{
    random_fill(order->bench->options->seed, MLACAT_DTYPE_BF16, order->area.data, OUTPUTS_AT);
    memset(order->area.data + OUTPUTS_AT, ORDER_POISON, order->area.bytes - OUTPUTS_AT);
}

/* The part that the first step reads goes through all steps, and each puts the second one behind it. */
static bool check_chain(const struct order *order, const char *name)
{
    const uint8_t *input = order->area.data;
    const uint8_t *second = order->area.data + SECOND_AT;

    for (size_t row = 0; row < order->what->chain * (size_t)ORDER_STEPS * ORDER_HEADS; row++) {
        size_t head = row % ORDER_HEADS * WIDTH * ELEMENT_BYTES;
        const uint8_t *out = order->area.data + OUTPUTS_AT + row * WIDTH * ELEMENT_BYTES;

        if (memcmp(out, input + head, (size_t)FIRST * ELEMENT_BYTES) == 0 &&
            memcmp(out + (size_t)FIRST * ELEMENT_BYTES, second, (size_t)SECOND * ELEMENT_BYTES) == 0)
            continue;
        fprintf(stderr, "mlacatctl: %s: the result of step %zu of %u is wrong in row %zu\n", name, row / ORDER_HEADS,
                order->what->chain * ORDER_STEPS, row % ORDER_HEADS);
        return false;
    }
    return true;
}

#define CHAIN(length, with_work)                                                                                   \
    {                                                                                                              \
        .chain = (length), .work = (with_work), .area_bytes = chain_bytes, .make = make_chain, .fill = fill_chain, \
        .check = check_chain                                                                                       \
    }

bool bench_order_single(struct bench *bench, struct bench_row *row)
{
    static const struct order_case what = CHAIN(1, false);

    return bench_order_run(bench, row, &what);
}

bool bench_order_chained(struct bench *bench, struct bench_row *row)
{
    static const struct order_case what = CHAIN(ORDER_CHAIN_MAX, false);

    return bench_order_run(bench, row, &what);
}

bool bench_order_work(struct bench *bench, struct bench_row *row)
{
    static const struct order_case what = CHAIN(ORDER_CHAIN_MAX, true);

    return bench_order_run(bench, row, &what);
}
