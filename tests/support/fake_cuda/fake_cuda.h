/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library in place of the CUDA driver (libcuda.so.1), for tests without a GPU. Device memory is shared host memory,
 * streams run their work on the CPU, kernels are concat_mla_host; handles work between processes as the driver's do.
 *
 * $MLACAT_FAKE_CUDA, or fake_cuda_behave, says how it behaves; words separated by ';':
 *     daemon                  aborts when the process breaks a rule of the service (below)
 *     fail=CALL:N:RESULT      the N-th call of an entry point returns this result; N "*": every one. Results that mean
 *                             a lost device (700 and the like) are then the result of every call. RESULT "hang": it
 *                             says so on standard error and never returns
 *     missing=CALL            the driver does not have it
 *     manual                  streams stand still; fake_cuda_run runs them
 *     delay_us=N              each launch takes this long, on a thread of the library
 *     uneven=SEED             ... or anything up to twice as long, so that streams overtake each other
 *     devices=N  memory=BYTES  driver=12020  attribute=NUMBER:VALUE
 *     visible=210             instead of devices: the process sees the host's GPUs 2, 1 and 0, in this order
 *     mig                     the devices are parts of a GPU
 *     same_process            memory can be opened in the process that exported it, which the driver refuses
 *     already_mapped          opening equal handle bytes of new memory fails (208) while the old is open; else it gives
 *                             the old memory again
 *     counts=PATH             a file of struct fake_cuda_count, kept up to date
 *
 * The rules of a daemon:
 *     - it never makes the device wait: no stream waits for a value or an event, no host functions
 *     - after READY it loads and unloads no module, launches no kernel for the first time, waits for no stream. READY
 *       is the first import of memory, or fake_cuda_ready
 *     - while it has streams it closes, frees and unregisters memory on one thread, and 10 ms apart unless there was no
 *       kernel for a while. A few in a row may come sooner: the thread can be stopped between its look and the call
 *     - a kernel waits for a word for 1 ms at most; only what waits for the launch before it begins before its turn
 *     - a launch covers what it should, its operands are aligned, and it reads and writes for about 1 ms at most
 *
 * Owns:     its own state, one for a process.
 * Thread:   any; one lock.
 * Lifetime: the process.
 * Errors:   a broken rule: a line on standard error that begins with "fake driver:", and abort().
 */
#ifndef MLACAT_TESTS_FAKE_CUDA_H
#define MLACAT_TESTS_FAKE_CUDA_H

#include <stdbool.h>
#include <stdint.h>

#include "cuda_api.h"

#define FAKE_HASTE_MAX 3 /* closes in a row that may come too soon */

#pragma GCC visibility push(default)

/* CUstreamBatchMemOpParams; the two operations of 64 bits that there are. */
enum { FAKE_WORD_WAIT = 4, FAKE_WORD_WRITE = 5 };
struct fake_word_op {
    unsigned int operation;
    cuda_address address;
    uint64_t value;
    unsigned int flags;
    cuda_address alias;
    uint64_t unused;
};

/* All entry points, as fake_<name>: for tests that play a client in the same process. */
#define CUDA_CALL(need, name, abi, parameters) int fake_##name parameters;
#include "cuda_api.def"
#define CUDA_CALL(need, name, abi, parameters) int fake_##name parameters;
#include "fake_cuda_more.def"

struct fake_cuda_count {
    char name[56];
    _Atomic uint64_t calls;
};

/* In place of the environment, from now on; counts and READY begin anew, a lost device is whole again, objects stay.
 * NULL: as the environment says. */
void fake_cuda_behave(const char *words);
void fake_cuda_ready(void);

/* Calls of an entry point up to now, those that failed too. A name that there is not aborts. */
uint64_t fake_cuda_calls(const char *name);
/* `manual`: runs at most `most` operations, stream after stream. Returns how many. */
unsigned fake_cuda_run(unsigned most);

/* What a client's stream (NULL: the default one) says when it is asked; what is put on it is done all the same. */
void fake_cuda_capture(struct cuda_stream *stream, bool capturing);

/* Objects that were made and not destroyed. */
struct fake_cuda_live {
    unsigned contexts;    /* retains of the primary ones */
    unsigned allocations; /* of cuMemAlloc */
    unsigned opened;      /* of other processes, each open counted */
    unsigned chunks;      /* handles of cuMemCreate and imports */
    unsigned reserved;    /* address ranges */
    unsigned mapped;      /* chunks in them */
    unsigned registered;  /* host memory */
    unsigned events;      /* of other processes too */
    unsigned streams;
    unsigned modules;
    unsigned pending; /* operations on streams */
};
struct fake_cuda_live fake_cuda_live(void);

#pragma GCC visibility pop

#endif
