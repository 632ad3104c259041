/* SPDX-License-Identifier: Apache-2.0 */
/* k[n,h,:] = k_nope[n,h,:] then k_rope[n,0,:], in bf16, run by mlacatd on memory that it shares with this program. */
#include <mlacat/mlacat.h>
#include <stdio.h>

enum { N = 64, H = 16, P = 128, R = 64 }; /* tokens, heads, widths */

int main(void)
{
    struct mlacat_client *client;
    struct mlacat_stream *stream;
    struct mlacat_buffer *k, *nope, *rope;
    if (mlacat_connect(NULL, &client) || mlacat_stream_open(client, NULL, &stream) ||
        mlacat_buffer_alloc(client, NULL, 2 * N * H * (P + R), &k) ||
        mlacat_buffer_alloc(client, NULL, 2 * N * H * P, &nope) || mlacat_buffer_alloc(client, NULL, 2 * N * R, &rope))
        return fprintf(stderr, "%s\n", mlacat_error_message()), 1;
    uint16_t *out = mlacat_buffer_data(k), *a = mlacat_buffer_data(nope), *b = mlacat_buffer_data(rope);
    a[0] = 0x3f80; /* 1.0 */
    b[0] = 0x4000; /* 2.0 */
    struct mlacat_call call = {.size = sizeof(call), .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16};
    call.operand[0] = mlacat_tensor_contiguous(k, 0, N, H, P + R);
    call.operand[1] = mlacat_tensor_contiguous(nope, 0, N, H, P);
    call.operand[2] = mlacat_tensor_contiguous(rope, 0, N, 1, R);
    if (mlacat_run(stream, &call, NULL))
        return fprintf(stderr, "%s\n", mlacat_error_message()), 1;
    printf("k[0,0,0] = 0x%04x, k[0,0,%d] = 0x%04x\n", out[0], P, out[P]);
    int wrong = out[0] != a[0] || out[P] != b[0];
    mlacat_disconnect(client); /* releases its stream and buffers: out, a and b are gone */
    return wrong;
}
