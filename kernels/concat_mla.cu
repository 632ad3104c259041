/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The concat-MLA kernels for GPUs. One text for NVRTC; it needs nothing but concat_mla_args.h.
 *
 *     out[i, j, 0 : a_bytes)               = a[i, j, 0 : a_bytes)
 *     out[i, j, a_bytes : a_bytes+b_bytes) = b[i, j, 0 : b_bytes)      i < dim0, j < dim1
 *
 *     operand  role    element  strides of i and j       addresses, strides and widths are multiples of
 *     out      output  bytes    any, no two rows share   the kernel's vector: 16, 8, 4, 2 or 1 bytes
 *     a        input   bytes    any, 0 and negative too  the same
 *     b        input   bytes    any, 0 and negative too  the same
 *
 * No operand is NULL but b with b_bytes == 0 (concat_mla_launch.c makes other calls so). No byte that is read is
 * written by the same launch, so inputs may go through the read-only path; but not those of concat_mla_V_signal and
 * concat_mla_V_gated, which may begin before a client's kernel has written them.
 *
 * Kernels: concat_mla_V copies one call, or a piece of it, with vectors of V bytes; concat_mla_many copies up to
 * CONCAT_MLA_MANY_CALLS whole calls, each with the vector that its range names, and none of them in two pieces;
 * concat_mla_V_signal copies what one block can, and then tells the CPU that it is done, sooner than a write that the
 * driver puts behind a launch would. It may be there before its turn, and look itself at the word that says that its
 * inputs are. What more blocks copy has two small kernels around it for that: concat_mla_gate, concat_mla_V_gated and
 * concat_mla_tail, from compute capability 9.0 on.
 *
 * Thread map. Two of them; a unit is what the range counts, a block the call's own: of concat_mla_many's grid each call
 * has a stretch.
 *   flat, 16 and 8 bytes: a unit is one vector of the output, in order of rows and, within a row, of addresses. Block k
 *       copies units [k * T * U, (k + 1) * T * U), its thread t units t, t + T, ... So neighbours read and write
 *       neighbouring vectors whatever the widths are, and no lane idles at the end of a row.
 *   windows, 4, 2 and 1 bytes: a unit is a window of 32 * U vectors of a row (the last one is shorter), copied by one
 *       warp, lane l copying vectors l, l + 32, ... The work to find the row, which would take longer than such a small
 *       vector itself, is done once for U of them.
 * Measured on an H200 (docs/performance.md lists the variants; tests/bench/bench_cuda_kernel measures this text): more
 * bytes in flight for each multiprocessor (more vectors a thread, loads that skip the first cache) are slower on large
 * calls, and so is a grid of as many blocks as fit.
 */
#include "concat_mla_args.h"

#define FLAT_THREADS 128
#define WINDOW_THREADS 256
#define WARP_THREADS 32

typedef unsigned long long u64;

/* U of the thread map. */
template <typename V> struct vectors_of;
template <> struct vectors_of<uint4> {
    static const unsigned nr = 2;
};
template <> struct vectors_of<uint2> {
    static const unsigned nr = 4;
};
template <> struct vectors_of<unsigned> {
    static const unsigned nr = 3;
};
template <> struct vectors_of<unsigned short> {
    static const unsigned nr = 6;
};
template <> struct vectors_of<unsigned char> {
    static const unsigned nr = 6;
};

/* A row of the launch: q counts from its first row, `carry` is how many times j began again at 0 up to there. */
struct row {
    unsigned q;
    unsigned carry;
};

static __device__ __forceinline__ unsigned divide(unsigned n, unsigned multiplier, unsigned shift)
{
    return (unsigned)(((u64)n * multiplier) >> shift);
}

static __device__ __forceinline__ struct row find_row(unsigned q, const struct concat_mla_args &args,
                                                      const struct concat_mla_range &range)
{
    return {q, divide(range.first_j + q, range.dim1_multiplier, range.dim1_shift)};
}

/*
 * Where a row of an operand begins: each carry is one step of i and takes back dim1 steps of j. Unsigned, because the
 * sums wrap for negative strides.
 */
template <typename P>
static __device__ __forceinline__ P *at_row(P *base, struct row row, long long stride0, long long stride1, u64 dim1)
{
    return base + (long long)(row.q * (u64)stride1 + row.carry * ((u64)stride0 - dim1 * (u64)stride1));
}

/* FRESH: what others may have written since the kernel began. */
template <bool FRESH, typename V> static __device__ __forceinline__ V load(const V *from)
{
    return FRESH ? *from : __ldg(from);
}

#define ROW_OF(x) (V *)at_row((unsigned char *)args.x, row, args.x##_stride0, args.x##_stride1, args.dim1)
#define CONST_ROW_OF(x) \
    (const V *)at_row((const unsigned char *)args.x, row, args.x##_stride0, args.x##_stride1, args.dim1)

template <typename V, unsigned THREADS, bool FRESH>
static __device__ __forceinline__ void copy_flat(const struct concat_mla_args &args,
                                                 const struct concat_mla_range &range, unsigned block, unsigned thread)
{
    const unsigned nr = vectors_of<V>::nr;
    const unsigned a_vectors = (unsigned)(args.a_bytes / sizeof(V));
    const unsigned row_vectors = (unsigned)((args.a_bytes + args.b_bytes) / sizeof(V));
    const unsigned first = block * (THREADS * nr) + thread;
    V value[nr];
    V *to[nr];
#pragma unroll
    for (unsigned u = 0; u < nr; u++) {
        const unsigned x = first + u * THREADS;
        to[u] = nullptr;
        if (x < range.units) {
            const unsigned q = divide(x, range.row_multiplier, range.row_shift);
            const unsigned c = x - q * row_vectors;
            const struct row row = find_row(q, args, range);
            to[u] = ROW_OF(out) + c;
            value[u] =
                c < a_vectors ? load<FRESH>(CONST_ROW_OF(a) + c) : load<FRESH>(CONST_ROW_OF(b) + (c - a_vectors));
        }
    }
#pragma unroll
    for (unsigned u = 0; u < nr; u++) {
        if (to[u]) {
            *to[u] = value[u];
        }
    }
}

template <typename V, unsigned THREADS, bool FRESH>
static __device__ __forceinline__ void
copy_window(const struct concat_mla_args &args, const struct concat_mla_range &range, unsigned block, unsigned thread)
{
    const unsigned nr = vectors_of<V>::nr;
    const unsigned a_vectors = (unsigned)(args.a_bytes / sizeof(V));
    const unsigned row_vectors = (unsigned)((args.a_bytes + args.b_bytes) / sizeof(V));
    const unsigned row_windows = (row_vectors + WARP_THREADS * nr - 1) / (WARP_THREADS * nr);
    const unsigned x = block * (THREADS / WARP_THREADS) + thread / WARP_THREADS;
    if (x >= range.units) {
        return;
    }
    const unsigned q = divide(x, range.row_multiplier, range.row_shift);
    const unsigned first = (x - q * row_windows) * (WARP_THREADS * nr) + thread % WARP_THREADS;
    const struct row row = find_row(q, args, range);
    const V *a = CONST_ROW_OF(a);
    const V *b = CONST_ROW_OF(b);
    V *out = ROW_OF(out);
    V value[nr];
#pragma unroll
    for (unsigned u = 0; u < nr; u++) {
        const unsigned c = first + u * WARP_THREADS;
        if (c < row_vectors) {
            value[u] = c < a_vectors ? load<FRESH>(a + c) : load<FRESH>(b + (c - a_vectors));
        }
    }
#pragma unroll
    for (unsigned u = 0; u < nr; u++) {
        const unsigned c = first + u * WARP_THREADS;
        if (c < row_vectors) {
            out[c] = value[u];
        }
    }
}

#define KERNEL(name, body, vector, threads)                                                                           \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ struct concat_mla_args args,   \
                                                               const __grid_constant__ struct concat_mla_range range) \
    {                                                                                                                 \
        body<vector, threads, false>(args, range, blockIdx.x, threadIdx.x);                                           \
    }

KERNEL(concat_mla_16, copy_flat, uint4, FLAT_THREADS)
KERNEL(concat_mla_8, copy_flat, uint2, FLAT_THREADS)
KERNEL(concat_mla_4, copy_window, unsigned, WINDOW_THREADS)
KERNEL(concat_mla_2, copy_window, unsigned short, WINDOW_THREADS)
KERNEL(concat_mla_1, copy_window, unsigned char, WINDOW_THREADS)

/* The last call that begins at or before this block: five steps, the same for the whole block. */
static __device__ __forceinline__ unsigned find_call(const struct concat_mla_many_args &many)
{
    unsigned call = 0;
#pragma unroll
    for (unsigned step = CONCAT_MLA_MANY_CALLS / 2; step > 0; step /= 2) {
        if (many.first_block[call + step] <= blockIdx.x) {
            call += step;
        }
    }
    return call;
}

extern "C" __global__ void __launch_bounds__(CONCAT_MLA_MANY_THREADS)
    concat_mla_many(const __grid_constant__ struct concat_mla_many_args many)
{
    const unsigned call = find_call(many);
    const unsigned block = blockIdx.x - many.first_block[call];
    const struct concat_mla_args &args = many.args[call];
    const struct concat_mla_range &range = many.range[call];
    switch (range.vector_bytes) {
    case 16:
        return copy_flat<uint4, CONCAT_MLA_MANY_THREADS, false>(args, range, block, threadIdx.x);
    case 8:
        return copy_flat<uint2, CONCAT_MLA_MANY_THREADS, false>(args, range, block, threadIdx.x);
    case 4:
        return copy_window<unsigned, CONCAT_MLA_MANY_THREADS, false>(args, range, block, threadIdx.x);
    case 2:
        return copy_window<unsigned short, CONCAT_MLA_MANY_THREADS, false>(args, range, block, threadIdx.x);
    case 1:
        return copy_window<unsigned char, CONCAT_MLA_MANY_THREADS, false>(args, range, block, threadIdx.x);
    }
}

/*
 * Waits for the word, but not for ever: it is a client's. The same answer for all threads of the block. The load that
 * sees the word acquires: what the client wrote before it is known to thread 0, and by the barrier to the others. Only
 * who lapses needs a fence, which is a trip to host memory and back: all that the block wrote comes before it is told.
 */
static __device__ __forceinline__ bool pass(const struct concat_mla_gate &gate)
{
    __shared__ bool passed;
    if (gate.address == 0) {
        return true;
    }
    if (threadIdx.x == 0) {
        u64 value, begin, now;
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
        do {
            asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(gate.address) : "memory");
            asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
        } while ((long long)(value - gate.value) < 0 && now - begin < gate.wait_ns);
        passed = (long long)(value - gate.value) >= 0;
        if (!passed) {
            asm volatile("fence.acq_rel.sys;" ::: "memory");
            asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(gate.lapsed), "l"(gate.lapsed_value) : "memory");
        }
    }
    __syncthreads();
    return passed;
}

/*
 * The barrier and the fence put all that the block wrote before either word, for the whole system. The words are in no
 * order among themselves: a second fence between them would take as long as the first, a trip to host memory and back.
 */
static __device__ __forceinline__ void tell(const struct concat_mla_end &end)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("fence.acq_rel.sys;" ::: "memory");
#pragma unroll
        for (unsigned i = 0; i < CONCAT_MLA_END_WORDS; i++) {
            if (end.address[i] != 0) {
                asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(end.address[i]), "l"(end.value[i]) : "memory");
            }
        }
    }
}

/* The only block; each stretch of CONCAT_MLA_MANY_THREADS of its threads does what a block of concat_mla_many does. */
#define SIGNAL_KERNEL(name, body, vector)                                                                           \
    extern "C" __global__ void __launch_bounds__(CONCAT_MLA_SIGNAL_THREADS) name(                                   \
        const __grid_constant__ struct concat_mla_args args, const __grid_constant__ struct concat_mla_range range, \
        const __grid_constant__ struct concat_mla_signal signal)                                                    \
    {                                                                                                               \
        if (pass(signal.gate)) {                                                                                    \
            body<vector, CONCAT_MLA_MANY_THREADS, true>(args, range, threadIdx.x / CONCAT_MLA_MANY_THREADS,         \
                                                        threadIdx.x % CONCAT_MLA_MANY_THREADS);                     \
            tell(signal.end);                                                                                       \
        }                                                                                                           \
    }

SIGNAL_KERNEL(concat_mla_16_signal, copy_flat, uint4)
SIGNAL_KERNEL(concat_mla_8_signal, copy_flat, uint2)
SIGNAL_KERNEL(concat_mla_4_signal, copy_window, unsigned)
SIGNAL_KERNEL(concat_mla_2_signal, copy_window, unsigned short)
SIGNAL_KERNEL(concat_mla_1_signal, copy_window, unsigned char)

/*
 * Three launches, each of which may begin before the one before it has ended. The gate lets the copy begin only when
 * it has passed: no more than one warp waits for a client's word. The copy lets the tail begin at once, which is there
 * then when the last block has ended. Each waits until all of the one before it has ended, and sees all that it wrote.
 * So the copy has ended, and the gate before it, when the tail goes on; and who waits for the tail waits for all three.
 */
#if __CUDA_ARCH__ >= 900
static __device__ __forceinline__ void begin_next()
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

static __device__ __forceinline__ void end_previous()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

static __device__ __forceinline__ void stamp(const struct concat_mla_ticket &ticket, u64 number)
{
    if (threadIdx.x == 0) {
        asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(ticket.address), "l"(number) : "memory");
    }
}

/* Through the first cache: that of the GPU cannot give one word to all blocks of a large copy in time. */
static __device__ __forceinline__ bool is_stamped(const struct concat_mla_ticket &ticket)
{
    u64 number;
    asm volatile("ld.global.u64 %0, [%1];" : "=l"(number) : "l"(ticket.address) : "memory");
    return number == ticket.number;
}

/* Not through the first cache, which may keep what the ticket was before. */
static __device__ __forceinline__ bool is_stamped_now(const struct concat_mla_ticket &ticket)
{
    u64 number;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(number) : "l"(ticket.address) : "memory");
    return number == ticket.number;
}

extern "C" __global__ void __launch_bounds__(CONCAT_MLA_GATE_THREADS)
    concat_mla_gate(const __grid_constant__ struct concat_mla_gate gate,
                    const __grid_constant__ struct concat_mla_ticket ticket)
{
    stamp(ticket, 0); /* before it is told that it lapses: then the word may have another owner */
    if (pass(gate)) {
        stamp(ticket, ticket.number);
    }
    begin_next();
}

#define GATED_KERNEL(name, body, vector, threads)                                                                   \
    extern "C" __global__ void __launch_bounds__(threads) name(                                                     \
        const __grid_constant__ struct concat_mla_args args, const __grid_constant__ struct concat_mla_range range, \
        const __grid_constant__ struct concat_mla_ticket ticket)                                                    \
    {                                                                                                               \
        begin_next();                                                                                               \
        end_previous();                                                                                             \
        if (is_stamped(ticket)) {                                                                                   \
            body<vector, threads, true>(args, range, blockIdx.x, threadIdx.x);                                      \
        }                                                                                                           \
    }

GATED_KERNEL(concat_mla_16_gated, copy_flat, uint4, FLAT_THREADS)
GATED_KERNEL(concat_mla_8_gated, copy_flat, uint2, FLAT_THREADS)
GATED_KERNEL(concat_mla_4_gated, copy_window, unsigned, WINDOW_THREADS)
GATED_KERNEL(concat_mla_2_gated, copy_window, unsigned short, WINDOW_THREADS)
GATED_KERNEL(concat_mla_1_gated, copy_window, unsigned char, WINDOW_THREADS)

/* Looks at the ticket while the copy still runs; and again behind it where it saw no stamp: the gate has lapsed, or its
 * stamp was still on its way. */
extern "C" __global__ void __launch_bounds__(CONCAT_MLA_GATE_THREADS)
    concat_mla_tail(const __grid_constant__ struct concat_mla_end end,
                    const __grid_constant__ struct concat_mla_ticket ticket)
{
    const bool early = is_stamped_now(ticket);
    end_previous();
    if (__syncthreads_or(early) || __syncthreads_or(is_stamped_now(ticket))) {
        tell(end);
    }
}
#endif
