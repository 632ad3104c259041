/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One call after the other through libmlacat on the host device: prints the median in nanoseconds over rounds of calls.
 * bench_python.py compares the same call from Python with it.
 *
 *     bench_call TOKENS HEADS ROUNDS CALLS        a daemon at its usual place
 */
#include <mlacat/mlacat.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { P = 128, R = 64, ROUNDS_MOST = 1000 };

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void must(enum mlacat_status status)
{
    if (status != MLACAT_OK) {
        fprintf(stderr, "%s\n", mlacat_error_message());
        exit(1);
    }
}

static int compare(const void *a, const void *b)
{
    double left = *(const double *)a;
    double right = *(const double *)b;
    return (left > right) - (left < right);
}

int main(int argc, char **argv)
{
    struct mlacat_client *client;
    struct mlacat_stream *stream;
    struct mlacat_buffer *buffer[3];
    static double seen[ROUNDS_MOST];
    if (argc != 5) {
        fprintf(stderr, "usage: bench_call TOKENS HEADS ROUNDS CALLS\n");
        return 2;
    }
    size_t n = strtoul(argv[1], NULL, 10);
    size_t h = strtoul(argv[2], NULL, 10);
    size_t rounds = strtoul(argv[3], NULL, 10);
    size_t calls = strtoul(argv[4], NULL, 10);
    if (n == 0 || h == 0 || rounds == 0 || rounds > ROUNDS_MOST || calls == 0) {
        fprintf(stderr, "all arguments are at least 1, ROUNDS at most %d\n", ROUNDS_MOST);
        return 2;
    }
    must(mlacat_connect(NULL, &client));
    must(mlacat_stream_open(client, NULL, &stream));
    must(mlacat_buffer_alloc(client, NULL, 2 * n * h * (P + R), &buffer[0]));
    must(mlacat_buffer_alloc(client, NULL, 2 * n * h * P, &buffer[1]));
    must(mlacat_buffer_alloc(client, NULL, 2 * n * R, &buffer[2]));
    struct mlacat_call call = {.size = sizeof(call), .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16};
    call.operand[0] = mlacat_tensor_contiguous(buffer[0], 0, n, h, P + R);
    call.operand[1] = mlacat_tensor_contiguous(buffer[1], 0, n, h, P);
    call.operand[2] = mlacat_tensor_contiguous(buffer[2], 0, n, 1, R);
    for (size_t round = 0; round < rounds; round++) {
        uint64_t began = now_ns();
        for (size_t i = 0; i < calls; i++) {
            must(mlacat_run(stream, &call, NULL));
        }
        seen[round] = (double)(now_ns() - began) / (double)calls;
    }
    qsort(seen, rounds, sizeof(seen[0]), compare);
    printf("%.0f\n", seen[rounds / 2]);
    mlacat_disconnect(client);
    return 0;
}
