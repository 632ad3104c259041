/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nobody can tell that calls of a stream do not run one after the other: random calls on a few buffers that overlap all
 * the time, in batches of any size, against the same calls on copies, one by one.
 */
#include "device_row.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BUFFERS 3
#define BUFFER_BYTES ((size_t)256 << 10)
#define CROWD_BYTES 4096 /* where most operands are in a crowded round */
#define ROUNDS 40
#define ROUND_CALLS 150

static struct {
    unsigned char *pages[2];
    size_t page_bytes;
    struct device_words words;
    struct device_stream *stream;
    struct imported buffer[BUFFERS];
    unsigned char *copy[BUFFERS];
    uint64_t submitted;
    uint64_t ended;
    uint64_t seed;
} o;

static uint64_t random_below(uint64_t end)
{
    o.seed = o.seed * 6364136223846793005u + 1442695040888963407u;
    return (o.seed >> 33) % end;
}

static struct device_pages *register_page(unsigned char **page)
{
    struct device_pages *pages;
    struct error err;
    *page = mmap(NULL, o.page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(*page, MAP_FAILED);
    assert_int_equal(row.ops->pages_register(row.device, *page, o.page_bytes, &pages, &err), DEVICE_OK);
    return pages;
}

static int order_setup(void **state)
{
    struct error err;
    if (row_setup(state) != 0) {
        return -1;
    }
    o.page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    o.words.fence_pages = register_page(&o.pages[0]);
    o.words.client_pages = register_page(&o.pages[1]);
    o.words.fence = (uint64_t *)(void *)(o.pages[0] + 128);
    o.words.done = (uint64_t *)(void *)(o.pages[1] + 512);
    o.submitted = o.ended = 0;
    o.seed = 1;
    for (int i = 0; i < BUFFERS; i++) {
        o.buffer[i] = row_memory_new(BUFFER_BYTES);
        o.copy[i] = malloc(BUFFER_BYTES);
        assert_non_null(o.copy[i]);
        for (size_t at = 0; at < BUFFER_BYTES; at++) {
            o.copy[i][at] = (unsigned char)random_below(256);
        }
        memcpy(o.buffer[i].client.bytes, o.copy[i], BUFFER_BYTES);
    }
    return row.ops->stream_open(row.device, &o.words, &o.stream, &err) == MLACAT_OK ? 0 : -1;
}

static int order_teardown(void **state)
{
    row.ops->stream_close(o.stream);
    row.ops->pages_release(row.device, o.words.fence_pages);
    row.ops->pages_release(row.device, o.words.client_pages);
    for (int i = 0; i < 2; i++) {
        munmap(o.pages[i], o.page_bytes);
    }
    for (int i = 0; i < BUFFERS; i++) {
        row_memory_free(&o.buffer[i]);
        free(o.copy[i]);
    }
    return row_teardown(state);
}

/* ------------------------------------------------------------------------------------------- calls */

struct random_call {
    struct op_request request;
    int buffer[OP_OPERANDS];
    struct device_call call;
};

static void lay_out(struct op_view *view, const uint64_t shape[3], uint64_t element, bool crowded)
{
    int64_t step = (int64_t)(shape[2] + random_below(3));
    memcpy(view->shape, shape, sizeof(view->shape));
    view->stride[2] = 1;
    view->stride[1] = step;
    view->stride[0] = step * (int64_t)shape[1];
    view->offset_bytes = random_below(crowded ? CROWD_BYTES : BUFFER_BYTES);
    if (random_below(2)) {
        view->offset_bytes &= ~UINT64_C(15);
    }
    if (shape[0] > 1 && random_below(4) == 0) {
        view->offset_bytes += (shape[0] - 1) * (uint64_t)view->stride[0] * element;
        view->stride[0] = -view->stride[0];
    }
}

/* Few bytes, or with luck so many that they are more than one launch. */
static void choose_shape(uint64_t shape[3], uint64_t *first)
{
    uint64_t rows = random_below(12) == 0 ? 200 : 4;
    uint64_t width = random_below(4) == 0 ? 400 : 40;
    shape[0] = 1 + random_below(rows);
    shape[1] = 1 + random_below(3);
    shape[2] = 1 + random_below(width);
    *first = random_below(shape[2] + 1);
}

/* What the op and the device take; whatever else comes out is thrown away. */
static void make_call(struct random_call *made, bool crowded)
{
    struct op_memory memory[OP_OPERANDS];
    struct error err;
    do {
        uint64_t shape[3];
        uint64_t first;
        const struct op_info *op = op_at((uint32_t)random_below(OP_NUMBER_MAX));
        memset(made, 0, sizeof(*made));
        made->request.op = op->number;
        made->request.dtype = 1 + (uint32_t)random_below(5);
        uint64_t element = dtype_bytes(made->request.dtype);
        choose_shape(shape, &first);
        lay_out(&made->request.view[OP_OUT], shape, element, crowded);
        lay_out(&made->request.view[OP_FIRST], (const uint64_t[3]){shape[0], shape[1], first}, element, crowded);
        lay_out(&made->request.view[OP_SECOND],
                (const uint64_t[3]){shape[0], op->second_broadcast ? 1 : shape[1], shape[2] - first}, element, crowded);
        for (int k = 0; k < OP_OPERANDS; k++) {
            made->buffer[k] = (int)random_below(BUFFERS);
            memory[k] = o.buffer[made->buffer[k]].info.memory;
            made->call.memory[k] = o.buffer[made->buffer[k]].memory;
        }
    } while (op_validate(&made->request, memory, &made->call.plan, &err) != MLACAT_OK);
}

static unsigned char *row_of(const struct random_call *made, int operand, uint64_t i, uint64_t j)
{
    const struct op_view *view = &made->request.view[operand];
    int64_t at = (view->shape[0] > 1 ? (int64_t)i * view->stride[0] : 0) +
                 (view->shape[1] > 1 ? (int64_t)j * view->stride[1] : 0);
    int64_t element = dtype_bytes(made->request.dtype);
    return o.copy[made->buffer[operand]] + (int64_t)view->offset_bytes + at * element;
}

static void run_on_copies(const struct random_call *made)
{
    const uint64_t *shape = made->request.view[OP_OUT].shape;
    uint64_t element = dtype_bytes(made->request.dtype);
    for (uint64_t i = 0; i < shape[0]; i++) {
        for (uint64_t j = 0; j < shape[1]; j++) {
            unsigned char *out = row_of(made, OP_OUT, i, j);
            for (int k = OP_FIRST; k <= OP_SECOND; k++) {
                uint64_t bytes = made->request.view[k].shape[2] * element;
                memmove(out, row_of(made, k, i, j), bytes); /* it may be in its place */
                out += bytes;
            }
        }
    }
}

/* ------------------------------------------------------------------------------------------- running */

static void poll_some(void)
{
    struct device_completion done[8];
    struct error err;
    int nr = row.ops->poll(o.stream, done, 1 + (int)random_below(8), &err);
    assert_true(nr >= 0);
    for (int i = 0; i < nr; i++) {
        assert_ptr_equal(done[i].cookie, (void *)(uintptr_t)++o.ended);
        assert_int_equal(done[i].error.code, MLACAT_OK);
    }
    assert_true(__atomic_load_n(o.words.fence, __ATOMIC_ACQUIRE) >= o.ended);
}

static void submit_all(const struct device_call *calls, uint32_t nr)
{
    struct error err;
    for (int polls = 0; nr > 0 && polls < row.polls_max; polls++) {
        uint32_t taken = nr;
        enum device_answer answer = row.ops->submit(o.stream, calls, &taken, &err);
        assert_true(answer == DEVICE_OK ? taken >= 1 : answer == DEVICE_AGAIN && taken == 0);
        calls += taken;
        nr -= taken;
        if (nr > 0 || random_below(3) == 0) {
            poll_some();
        }
    }
    assert_int_equal(nr, 0);
}

static void run_round(bool crowded)
{
    static struct random_call made;
    static struct device_call calls[DEVICE_BATCH];
    for (uint32_t nr = 0, all = 0; all < ROUND_CALLS; all += nr) {
        nr = 1 + (uint32_t)random_below(DEVICE_BATCH);
        for (uint32_t i = 0; i < nr; i++) {
            make_call(&made, crowded);
            made.call.sequence = ++o.submitted;
            made.call.cookie = (void *)(uintptr_t)o.submitted;
            made.call.tell_done = random_below(3) == 0;
            calls[i] = made.call;
            run_on_copies(&made);
        }
        submit_all(calls, nr);
    }
    for (int polls = 0; o.ended < o.submitted && polls < row.polls_max; polls++) {
        poll_some();
    }
    assert_int_equal(__atomic_load_n(o.words.fence, __ATOMIC_ACQUIRE), o.submitted);
}

static void test_device_order_is_that_of_submission(void **state)
{
    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        run_round(round % 2 == 0);
        for (int i = 0; i < BUFFERS; i++) {
            if (memcmp(o.copy[i], o.buffer[i].client.bytes, BUFFER_BYTES) != 0) {
                fail_msg("round %d: wrong bytes in buffer %d", round, i);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_device_order_is_that_of_submission, order_setup, order_teardown),
    };
    return ROW_RUN_TESTS("device order", tests);
}
