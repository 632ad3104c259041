/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arguments of every concat-MLA kernel, by value: CPU and GPU alike. Everything is in bytes, so that a kernel
 * knows nothing of element types.
 *
 *     out[i, j, 0 : a_bytes)               = a[i, j, 0 : a_bytes)
 *     out[i, j, a_bytes : a_bytes+b_bytes) = b[i, j, 0 : b_bytes)      i < dim0, j < dim1
 *
 * where x[i, j, t] is the byte at x + i * x_stride0 + j * x_stride1 + t. A stride of 0 broadcasts an input (k_rope over
 * the heads). A part whose pointer is NULL is not copied: its bytes in the output are not touched. Strides may be
 * negative. The caller has proven that outputs overlap neither each other nor an input that is read, and that no
 * address overflows.
 */
#ifndef CONCAT_MLA_ARGS_H
#define CONCAT_MLA_ARGS_H

struct concat_mla_args {
    void *out;
    const void *a;
    const void *b;
    unsigned long long dim0;
    unsigned long long dim1;
    long long out_stride0;
    long long out_stride1;
    long long a_stride0;
    long long a_stride1;
    long long b_stride0;
    long long b_stride1;
    unsigned long long a_bytes;
    unsigned long long b_bytes;
};

/*
 * Which part of a call one GPU launch copies, by value beside the arguments: `units` units from row (i, j) =
 * (first_i, first_j), whose addresses are what the pointers in that launch's arguments hold. Unit x belongs to row
 *     q = x / (units of a row) counted from there, which is (first_i + t / dim1, t % dim1) with t = first_j + q
 * The divisions are multiplications: n / d == (n * multiplier) >> shift, in 64 bits, for all n < 2^31. So units,
 * first_j and t are less than 2^31; a longer call is several launches. concat_mla_launch.h fills it.
 */
struct concat_mla_range {
    unsigned units;
    unsigned first_j;
    unsigned row_multiplier;
    unsigned dim1_multiplier; /* 0: all rows have i = first_i */
    unsigned char row_shift;
    unsigned char dim1_shift;
    unsigned char vector_bytes; /* 16, 8, 4, 2 or 1 */
    unsigned char reserved;
};

/*
 * Many calls for one launch, by value. Call k has the blocks from first_block[k] up to first_block[k + 1], the last one
 * up to the end of the grid; in the unused rest first_block is UINT_MAX, and nothing else of it is read. A zeroed one
 * copies nothing. 4096 bytes is what a kernel may be given.
 */
#define CONCAT_MLA_MANY_CALLS 32 /* a power of two */
#define CONCAT_MLA_MANY_THREADS 128

struct concat_mla_many_args {
    struct concat_mla_args args[CONCAT_MLA_MANY_CALLS];
    struct concat_mla_range range[CONCAT_MLA_MANY_CALLS];
    unsigned first_block[CONCAT_MLA_MANY_CALLS];
};

/* Words that the GPU writes when all copies of a launch are done. */
#define CONCAT_MLA_END_WORDS 2

struct concat_mla_end {
    unsigned long long address[CONCAT_MLA_END_WORDS]; /* as the GPU knows them; 0: none */
    unsigned long long value[CONCAT_MLA_END_WORDS];
};

/*
 * What a launch waits for before it reads anything: that the word, in memory that others write, has reached
 * `value` (as a signed difference: it may wrap). After `wait_ns` nanoseconds it lapses: all that it does is to write
 * `lapsed_value` into the word `lapsed`.
 */
struct concat_mla_gate {
    unsigned long long address; /* as the GPU knows it; 0: nothing to wait for */
    unsigned long long value;
    unsigned long long wait_ns;
    unsigned long long lapsed; /* as the GPU knows it */
    unsigned long long lapsed_value;
};

/* Beside the arguments and the range of a launch that one block copies, and that tells its end itself. */
#define CONCAT_MLA_SIGNAL_THREADS (6 * CONCAT_MLA_MANY_THREADS) /* at most */

struct concat_mla_signal {
    struct concat_mla_end end;
    struct concat_mla_gate gate;
};

#define CONCAT_MLA_GATE_THREADS 32 /* of the gate and of the tail, one block each */

/*
 * What a gate in front of a launch of many blocks says to it, and to the tail behind it: it stamps the word, in the
 * GPU's memory, with 0, and with `number` when it has passed; without the number they do nothing. One is never used
 * again with the same word, and is not 0: whoever comes late to a word that has another owner by then does nothing.
 */
struct concat_mla_ticket {
    unsigned long long address; /* as the GPU knows it */
    unsigned long long number;
};

#ifdef __cplusplus
static_assert(sizeof(struct concat_mla_args) == 104, "the host and the device compiler agree on the layout");
static_assert(sizeof(struct concat_mla_range) == 20, "the host and the device compiler agree on the layout");
static_assert(sizeof(struct concat_mla_many_args) == 4096, "what a kernel may be given");
static_assert(sizeof(struct concat_mla_signal) == 72, "the host and the device compiler agree on the layout");
static_assert(sizeof(struct concat_mla_ticket) == 16, "the host and the device compiler agree on the layout");
#else
_Static_assert(sizeof(struct concat_mla_args) == 104, "the host and the device compiler agree on the layout");
_Static_assert(sizeof(struct concat_mla_range) == 20, "the host and the device compiler agree on the layout");
_Static_assert(sizeof(struct concat_mla_many_args) == 4096, "what a kernel may be given");
_Static_assert(sizeof(struct concat_mla_signal) == 72, "the host and the device compiler agree on the layout");
_Static_assert(sizeof(struct concat_mla_ticket) == 16, "the host and the device compiler agree on the layout");
#endif

#endif
