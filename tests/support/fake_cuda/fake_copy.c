/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies and fills. The host's side is read or written when the stream comes to it, as with page-locked memory: a test
 * that does not wait sees it.
 */
#include <string.h>

#include "fake_inside.h"

static int enqueue(enum fake_call call, struct cuda_stream *stream, const struct fake_op *op)
{
    int result = fake_enter_context(call);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    bool reached = (op->kind == OP_COPY_TO_HOST || fake_reach(op->address, op->bytes)) &&
                   (op->kind == OP_COPY_FROM_HOST || op->kind == OP_FILL || fake_reach(op->from, op->bytes));
    if (!reached && op->bytes > 0) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    while (fake.closing > 0) {
        pthread_cond_wait(&fake.moved, &fake.lock);
    }
    return fake_leave(op->bytes > 0 ? fake_stream_add(stream, op) : CUDA_RESULT_OK);
}

int fake_cuMemcpyHtoDAsync(cuda_address to, const void *from, size_t bytes, struct cuda_stream *stream)
{
    struct fake_op op = {.kind = OP_COPY_FROM_HOST, .address = to, .host_from = from, .bytes = bytes};
    return enqueue(CALL_cuMemcpyHtoDAsync, stream, &op);
}

int fake_cuMemcpyDtoHAsync(void *to, cuda_address from, size_t bytes, struct cuda_stream *stream)
{
    struct fake_op op = {.kind = OP_COPY_TO_HOST, .host_to = to, .from = from, .bytes = bytes};
    return enqueue(CALL_cuMemcpyDtoHAsync, stream, &op);
}

int fake_cuMemcpyDtoDAsync(cuda_address to, cuda_address from, size_t bytes, struct cuda_stream *stream)
{
    struct fake_op op = {.kind = OP_COPY, .address = to, .from = from, .bytes = bytes};
    return enqueue(CALL_cuMemcpyDtoDAsync, stream, &op);
}

int fake_cuMemsetD8Async(cuda_address to, unsigned char byte, size_t bytes, struct cuda_stream *stream)
{
    struct fake_op op = {.kind = OP_FILL, .address = to, .value = byte, .bytes = bytes};
    return enqueue(CALL_cuMemsetD8Async, stream, &op);
}

int fake_run_copy(const struct fake_op *op)
{
    void *to = op->kind == OP_COPY_TO_HOST ? op->host_to : fake_reach(op->address, op->bytes);
    const void *from = op->kind == OP_COPY_FROM_HOST ? op->host_from : op->kind == OP_FILL ? to : NULL;
    if (!from) {
        from = fake_reach(op->from, op->bytes);
    }
    if (!to || !from) {
        return RESULT_ILLEGAL_ADDRESS;
    }
    if (op->kind == OP_FILL) {
        memset(to, (int)op->value, op->bytes);
    } else {
        memmove(to, from, op->bytes);
    }
    return CUDA_RESULT_OK;
}
