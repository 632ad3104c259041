/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the fake driver share.
 *
 * Owns:     the one state, `fake`.
 * Thread:   everything here but fake_enter is called with the lock held; fake_enter takes it, fake_leave gives it back.
 * Lifetime: the process.
 * Errors:   results as the driver's.
 */
#ifndef MLACAT_TESTS_FAKE_INSIDE_H
#define MLACAT_TESTS_FAKE_INSIDE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "concat_mla_args.h"
#include "fake_cuda.h"

#define FAKE_DEVICES_MAX 8
#define FAKE_WAIT_EQUAL 1 /* CUstreamWaitValue_flags; 0 is greater or equal */
#define FAKE_RULES_MAX 16
#define FAKE_GRAIN ((size_t)2 << 20)
#define FAKE_PACE_NS 10000000
#define FAKE_QUIET_NS UINT64_C(25000000) /* so long without a kernel, and there is nobody to be held up */
/* Host memory has other addresses on the device: whoever mixes them up finds nothing there. */
#define FAKE_HOST_OFFSET ((cuda_address)1 << 60)
#define FAKE_MEMORY_CLOCK_KHZ 1000000
#define FAKE_MEMORY_BUS_BITS 1024

/* Results that cuda_api.h has no name for. */
enum {
    RESULT_NOT_INITIALIZED = 3,
    RESULT_INVALID_DEVICE = 101,
    RESULT_INVALID_IMAGE = 200,
    RESULT_INVALID_CONTEXT = 201,
    RESULT_OPERATING_SYSTEM = 304,
    RESULT_NOT_FOUND = 500,
    RESULT_ILLEGAL_ADDRESS = 700,
    RESULT_ALREADY_REGISTERED = 712,
    RESULT_NOT_REGISTERED = 713,
    RESULT_MISALIGNED_ADDRESS = 716,
    RESULT_NOT_SUPPORTED = 801
};

enum fake_call {
#define CUDA_CALL(need, name, abi, parameters) CALL_##name,
#include "cuda_api.def"
#define CUDA_CALL(need, name, abi, parameters) CALL_##name,
#include "fake_cuda_more.def"
    CALLS_NR
};

struct fake_rule {
    enum fake_call call;
    unsigned nth; /* 0: every one */
    int result;
};

struct fake_behaviour {
    bool daemon;
    bool manual;
    bool same_process;
    bool already_mapped;
    unsigned delay_us;
    uint64_t uneven; /* the state of the random numbers; 0: none */
    int devices;
    int gpus[FAKE_DEVICES_MAX]; /* the host's numbers of them */
    bool mig;
    int driver;
    uint64_t memory_bytes;
    unsigned rules_nr;
    struct fake_rule rules[FAKE_RULES_MAX];
    unsigned attributes_nr;
    int attributes[FAKE_RULES_MAX][2];
    bool missing[CALLS_NR];
};

struct cuda_context {
    int device;
    unsigned retains;
};

enum fake_range_kind { RANGE_ALLOCATION, RANGE_OPENED, RANGE_RESERVED, RANGE_CHUNK, RANGE_HOST };

/* A piece of the device's address space. */
struct fake_range {
    struct fake_range *next;
    enum fake_range_kind kind;
    cuda_address base;
    void *host; /* the same bytes for the CPU */
    size_t bytes;
    int fd; /* ALLOCATION: what a handle names; else -1 */
    int device;
    bool accessible;               /* CHUNK: cuMemSetAccess was called */
    unsigned opens;                /* OPENED */
    uint64_t buffer_id;            /* of this process, never used again */
    uint64_t block_id;             /* of the memory itself */
    cuda_allocation allocation;    /* CHUNK */
    struct cuda_ipc_handle handle; /* OPENED */
};

/* One operation on a stream. */
struct fake_op {
    struct fake_op *next;
    enum {
        OP_KERNEL,
        OP_WRITE_64,
        OP_WAIT_64,
        OP_WAIT_32,
        OP_EVENT,
        OP_HOST_FUNCTION,
        OP_COPY,
        OP_COPY_FROM_HOST,
        OP_COPY_TO_HOST,
        OP_FILL
    } kind;
    uint64_t due_ns;
    struct cuda_function *function;
    uint64_t spin_ns;
    struct concat_mla_many_args many; /* the first one is all that a kernel for one call has */
    struct concat_mla_signal signal;  /* what of it a kernel has; else zeroed */
    struct concat_mla_ticket ticket;  /* of the gate and of what is behind it */
    uint64_t gate_ns;                 /* when it began to wait for the signal's gate; 0: not yet */
    bool lapsed;                      /* it has waited for long enough */
    unsigned grid;
    unsigned block;
    cuda_address address;
    uint64_t value;
    unsigned flags;
    cuda_address from; /* COPY, COPY_TO_HOST; `address` is where to, `value` what FILL writes */
    const void *host_from;
    void *host_to;
    size_t bytes;
    struct cuda_event *event; /* EVENT; `value` is the number of its record */
    void (*host_function)(void *data);
    void *data;
};

struct cuda_stream {
    struct cuda_stream *next;
    struct fake_op *ops;
    struct fake_op **last;
    struct cuda_context *context;
    uint64_t id; /* never used again */
    uint64_t busy_until_ns;
    bool destroyed;
    bool is_default; /* of its context: NULL is its name too */
    bool capturing;
};

enum fake_kernel {
    KERNEL_PLAIN, /* concat_mla_V */
    KERNEL_SIGNAL,
    KERNEL_GATED,
    KERNEL_MANY, /* concat_mla_many, and so on */
    KERNEL_GATE,
    KERNEL_TAIL,
    KERNEL_SPIN /* mlacat_spin: a client's kernel that does nothing, for as many ns as it is told */
};

struct cuda_function {
    struct cuda_function *next;
    enum fake_kernel kind;
    unsigned vector_bytes; /* 0: it is not for one vector */
    bool launched;
};

struct cuda_module {
    struct cuda_function *functions;
    int arch; /* 90: sm_90 */
};

struct fake_state {
    pthread_mutex_t lock;
    pthread_cond_t moved; /* an operation ended, or one was added */
    unsigned closing;     /* threads that wait for the device to be idle: nobody launches until then */
    pid_t gpu_process;    /* in which the thread runs that runs streams; 0: none. A fork does not take it along */
    struct fake_behaviour behaviour;
    bool initialized;
    bool ready;
    int sticky; /* the result of every call from now on; 0: none */
    uint64_t calls[CALLS_NR];
    struct fake_cuda_count *counts; /* of the file; NULL: none */
    struct cuda_context contexts[FAKE_DEVICES_MAX];
    struct fake_range *ranges;
    struct cuda_stream *streams;
    uint64_t buffer_ids;
    uint64_t stream_ids;
    uint64_t allocated_bytes;
    unsigned chunks_nr;
    unsigned modules_nr;
    bool control_known;
    pid_t control; /* the thread that closes */
    uint64_t closed_ns;
    uint32_t hasty;         /* closes in a row without their pace */
    uint64_t launched_ns;   /* the last kernel, or its end */
    uint64_t busy_since_ns; /* the first one after a quiet time */
};

extern struct fake_state fake;
extern _Thread_local struct cuda_context *fake_current;

/* fake_behaviour.c */

/* Counts the call. OK: the lock is held, and fake_leave gives it back. Else it is not held, and that is the result. */
int fake_enter(enum fake_call call);
/* The same for a call that needs a current context. */
int fake_enter_context(enum fake_call call);
int fake_leave(int result);
/* The process broke a rule, or uses the driver as nobody may: says so and aborts. */
__attribute__((format(printf, 1, 2), noreturn)) void fake_break(const char *format, ...);
uint64_t fake_now_ns(void);
bool fake_is_sticky(int result);

/* fake_memory.c */
struct fake_range *fake_range_add(enum fake_range_kind kind, cuda_address base, void *host, size_t bytes);
void fake_range_remove(struct fake_range *range);
struct fake_range *fake_range_find(cuda_address address);
/* The bytes for the CPU; NULL: not all of them are memory. */
void *fake_reach(cuda_address address, size_t bytes);
/* Something that stops every stream of a process is about to be done. */
void fake_begin_close(const char *call);
void fake_end_close(void);

/* fake_chunks.c */
int fake_make_file(size_t bytes); /* -1: none */
/* The size of a file that fake_make_file made; false: it is none. */
bool fake_know_file(int fd, size_t *bytes, uint64_t *block_id);
int fake_open_file(pid_t pid, int fd); /* a process's descriptor anew; -1: it has none of that number */

/* fake_event.c */
unsigned fake_events_nr(void);
/* A record of it is put on a stream; its number, 0: there is no such event. fake_event_reach follows. */
uint64_t fake_event_begin(struct cuda_event *event);
void fake_event_reach(struct cuda_event *event, uint64_t record);

/* fake_kernel.c */
void fake_take_parameters(struct fake_op *op, void **parameters);
void fake_check_launch(const struct fake_op *op);
/* 0 or the result that every later call has. */
int fake_run_kernel(const struct fake_op *op);

/* fake_copy.c */
/* As fake_run_kernel. */
int fake_run_copy(const struct fake_op *op);

/* fake_stream.c */
bool fake_streams_idle(void);
/* A kernel was launched, or has run. */
void fake_note_kernel(void);
/* What a client means by NULL too: the default one of the current context. */
int fake_stream_find(struct cuda_stream **stream);
/* A daemon must not make a stream wait. */
void fake_check_may_wait(const char *call);
/* Puts a copy of `op` on a stream. */
int fake_stream_add(struct cuda_stream *stream, const struct fake_op *op);

#endif
