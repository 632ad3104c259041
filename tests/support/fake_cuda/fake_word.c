/* SPDX-License-Identifier: Apache-2.0 */
/* What streams write into words of memory, and wait for them to have. */
#include "fake_inside.h"

int fake_cuStreamWriteValue64(struct cuda_stream *stream, cuda_address address, uint64_t value, unsigned int flags)
{
    int result = fake_enter_context(CALL_cuStreamWriteValue64);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    if (fake_stream_find(&stream) != CUDA_RESULT_OK || address % sizeof(value) != 0 ||
        !fake_reach(address, sizeof(value)) || flags != 0) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    struct fake_op op = {.kind = OP_WRITE_64, .address = address, .value = value};
    result = fake_stream_add(stream, &op);
    return fake_leave(result);
}

static int wait_for(const char *call, struct cuda_stream *stream, const struct fake_op *op)
{
    size_t bytes = op->kind == OP_WAIT_64 ? sizeof(uint64_t) : sizeof(uint32_t);
    fake_check_may_wait(call);
    if (fake_stream_find(&stream) != CUDA_RESULT_OK || op->address % bytes != 0 || !fake_reach(op->address, bytes) ||
        op->flags > FAKE_WAIT_EQUAL) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    return fake_leave(fake_stream_add(stream, op));
}

int fake_cuStreamWaitValue64(struct cuda_stream *stream, cuda_address address, uint64_t value, unsigned int flags)
{
    int result = fake_enter_context(CALL_cuStreamWaitValue64);
    const struct fake_op op = {.kind = OP_WAIT_64, .address = address, .value = value, .flags = flags};
    return result == CUDA_RESULT_OK ? wait_for("cuStreamWaitValue64", stream, &op) : result;
}

int fake_cuStreamWaitValue32(struct cuda_stream *stream, cuda_address address, uint32_t value, unsigned int flags)
{
    int result = fake_enter_context(CALL_cuStreamWaitValue32);
    const struct fake_op op = {.kind = OP_WAIT_32, .address = address, .value = value, .flags = flags};
    return result == CUDA_RESULT_OK ? wait_for("cuStreamWaitValue32", stream, &op) : result;
}

/* All or nothing, as far as the arguments go. */
int fake_cuStreamBatchMemOp(struct cuda_stream *stream, unsigned int nr, struct fake_word_op *ops, unsigned int flags)
{
    int result = fake_enter_context(CALL_cuStreamBatchMemOp);
    if (result != CUDA_RESULT_OK) {
        return result;
    }
    bool good = fake_stream_find(&stream) == CUDA_RESULT_OK && flags == 0 && nr > 0;
    for (unsigned i = 0; good && i < nr; i++) {
        good = (ops[i].operation == FAKE_WORD_WAIT || ops[i].operation == FAKE_WORD_WRITE) &&
               ops[i].address % sizeof(uint64_t) == 0 && fake_reach(ops[i].address, sizeof(uint64_t)) &&
               ops[i].flags <= (ops[i].operation == FAKE_WORD_WAIT ? FAKE_WAIT_EQUAL : 0);
        if (ops[i].operation == FAKE_WORD_WAIT) {
            fake_check_may_wait("cuStreamBatchMemOp");
        }
    }
    if (!good) {
        return fake_leave(CUDA_RESULT_INVALID_VALUE);
    }
    for (unsigned i = 0; i < nr && result == CUDA_RESULT_OK; i++) {
        struct fake_op op = {.kind = ops[i].operation == FAKE_WORD_WAIT ? OP_WAIT_64 : OP_WRITE_64,
                             .address = ops[i].address,
                             .value = ops[i].value,
                             .flags = ops[i].flags};
        result = fake_stream_add(stream, &op);
    }
    return fake_leave(result);
}
