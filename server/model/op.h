/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     the ops: their table, and the one validation that every path runs before a call may touch memory.
 * Thread:   any; pure functions over their arguments and constant tables.
 * Lifetime: -
 * Errors:   op_validate: INVALID_ARGUMENT (shape, stride, dtype, extent, overlap), UNIMPLEMENTED (no such op). The
 * message names the operand and both values.
 */
#ifndef MLACAT_MODEL_OP_H
#define MLACAT_MODEL_OP_H

#include <stdbool.h>
#include <stdint.h>

#include "status.h"

#define OP_OPERANDS 3
#define OP_DIMS 3

/* Operands in the order of mlacat_ops.def. */
enum op_operand { OP_OUT, OP_FIRST, OP_SECOND };

enum op_number {
#define MLACAT_OP(number, enum_name, name, out, first, second, second_rows, dim0, dim1, w1, w2) OP_##enum_name = number,
#include "mlacat_ops.def"
};
/* The largest number of the table: for arrays that are indexed by it. */
union op_numbers {
#define MLACAT_OP(number, enum_name, name, out, first, second, second_rows, dim0, dim1, w1, w2) char enum_name[number];
#include "mlacat_ops.def"
};
#define OP_NUMBER_MAX ((uint32_t)sizeof(union op_numbers))

struct op_info {
    uint32_t number;
    const char *name;                 /* "concat_mla_k" */
    const char *operand[OP_OPERANDS]; /* "k", "k_nope", "k_rope" */
    bool second_broadcast;            /* the second input has 1 in place of dim1 */
};

/* NULL if there is no such op. */
const struct op_info *op_find(uint32_t number);
/* Rows of the table in order; NULL past the end. For answers that list the ops. */
const struct op_info *op_at(uint32_t index);
/* Bytes of an element; 0 if there is no such dtype. */
uint32_t dtype_bytes(uint32_t dtype);
/* "bf16"; "unknown" if there is no such dtype. */
const char *dtype_name(uint32_t dtype);

/* One operand as the client describes it: untrusted. */
struct op_view {
    uint64_t offset_bytes; /* of element [0,0,0] from the start of the buffer */
    uint64_t shape[OP_DIMS];
    int64_t stride[OP_DIMS]; /* elements */
};

/* A call as the client describes it: untrusted. */
struct op_request {
    uint32_t op;
    uint32_t dtype;
    struct op_view view[OP_OPERANDS];
};

/* Which memory a buffer is a part of: equal ids are the same bytes, however they were registered or mapped. */
struct op_allocation {
    uint64_t hi;
    uint64_t lo;
};

/* What the service knows of an operand's buffer: trusted. */
struct op_memory {
    struct op_allocation allocation;
    uint64_t allocation_offset_bytes; /* of the buffer in the allocation */
    uint64_t size_bytes;              /* of the buffer */
};

/* A proven call: what a device needs beside base addresses. Strides and widths in bytes. */
struct op_plan {
    uint32_t op;
    uint64_t dim0; /* dim0 and dim1 are 0 when there is nothing in the output: the call succeeds at once */
    uint64_t dim1;
    uint64_t width_bytes[OP_OPERANDS];    /* of one row; the output's is the sum of the inputs' */
    int64_t stride_bytes[OP_OPERANDS][2]; /* 0 where the operand's own extent is 1 (a broadcast input too) */
    uint64_t offset_bytes[OP_OPERANDS];   /* of element [0,0,0] from the start of the buffer */
    bool copy[OP_OPERANDS]; /* inputs: false = in its place already, or of width 0; output: something is copied */
    uint64_t bytes;         /* read and written, each byte of an operand once; for statistics */
};

/*
 * Proves that the call reads only its inputs' buffers, writes only its output's, that no two output rows share a byte
 * and that no byte that is written belongs to an input that is read; fills `plan`.
 *   - strides of dimensions with an extent of 0 or 1 are not looked at; nothing but op, dtype and shapes is looked at
 *     when the output is empty;
 *   - overlap is by allocation and offset, exact for nested strides: not a bounding box;
 *   - an input that already is its destination (same bytes, same strides) is fine and not copied;
 *   - what cannot be proven disjoint within a bounded amount of work is refused, saying so.
 * `plan` is undefined after an error. Never blocks, allocates nothing.
 */
enum mlacat_status op_validate(const struct op_request *request, const struct op_memory memory[OP_OPERANDS],
                               struct op_plan *plan, struct error *err);

#endif
