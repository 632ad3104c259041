/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel tests fill and check with on the GPU. Slow and plain on purpose: it shares nothing with the kernels
 * under test but the meaning of concat_mla_args.
 */
#include "concat_mla_args.h"

typedef unsigned long long u64;

#define FIRST ((u64)blockIdx.x * blockDim.x + threadIdx.x)
#define STEP ((u64)gridDim.x * blockDim.x)

/* Byte `index` of the random bytes of a seed. */
static __device__ unsigned char random_byte(u64 index, u64 seed)
{
    u64 x = (index / 8 + 1) * 0x9e3779b97f4a7c15ull + seed * 0xd1342543de82ef95ull;
    x = (x ^ (x >> 32)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 29)) * 0x94d049bb133111ebull;
    return (unsigned char)((x ^ (x >> 32)) >> (index % 8 * 8));
}

extern "C" __global__ void fill_random(unsigned char *to, u64 size, u64 seed)
{
    for (u64 index = FIRST; index < size; index += STEP) {
        to[index] = random_byte(index, seed);
    }
}

/* Adds to *wrong how many of the bytes [begin, end) are no longer what fill_random wrote. */
extern "C" __global__ void count_changed(const unsigned char *at, u64 begin, u64 end, u64 seed, u64 *wrong)
{
    u64 nr = 0;
    for (u64 index = begin + FIRST; index < end; index += STEP) {
        nr += at[index] != random_byte(index, seed);
    }
    if (nr) {
        atomicAdd(wrong, nr);
    }
}

/* Adds to *wrong how many bytes of the output of a call are not what they must be. */
extern "C" __global__ void count_wrong(const struct concat_mla_args args, u64 *wrong)
{
    u64 row_bytes = args.a_bytes + args.b_bytes;
    u64 nr = 0;
    for (u64 index = FIRST; index < args.dim0 * args.dim1 * row_bytes; index += STEP) {
        u64 row = index / row_bytes;
        u64 t = index % row_bytes;
        long long i = (long long)(row / args.dim1);
        long long j = (long long)(row % args.dim1);
        const unsigned char *out = (const unsigned char *)args.out + i * args.out_stride0 + j * args.out_stride1;
        const unsigned char *a = (const unsigned char *)args.a + i * args.a_stride0 + j * args.a_stride1;
        const unsigned char *b = (const unsigned char *)args.b + i * args.b_stride0 + j * args.b_stride1;
        nr += out[t] != (t < args.a_bytes ? a[t] : b[t - args.a_bytes]);
    }
    if (nr) {
        atomicAdd(wrong, nr);
    }
}
