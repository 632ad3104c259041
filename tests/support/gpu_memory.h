/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GPU memory that goes by a descriptor, so that one suite runs over every device. With $MLACAT_TEST_DEVICE=cuda each
 * memfd of memfd_make is the CPU's copy of an allocation on the GPU; raw_register and raw_submit_fds then send the
 * allocation's handle where the memfd would go.
 *
 * The allocations are of a process that does nothing else: a test forks, which the driver does not survive, and a
 * device that a test opens in its own process cannot open memory of that process.
 *
 * Owns:     the process; it frees what a test or its child made when that one ends.
 * Thread:   one thread of a process; with gpu_memory_own any.
 * Lifetime: the first call of any function starts the process; it dies with the one that made the first call, which
 *           must come before that one starts CUDA itself and before it forks children that use memory.
 * Errors:   a failed check (require.h). No usable GPU: the program ends with status 77 and the reason.
 */
#ifndef MLACAT_TESTS_GPU_MEMORY_H
#define MLACAT_TESTS_GPU_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "share.h"

/* The device under test is a GPU. Everything else here does nothing, or must not be called, when it is not. */
bool gpu_memory_used(void);
/* The driver is tests/support/fake_cuda. */
bool gpu_memory_is_fake(void);
/* Its UUID. */
const char *gpu_memory_device(void);
/* From now on the memory is this process's own, for tests of libmlacat, which exports from a pointer. */
void gpu_memory_own(void);

/* Makes the memory that goes with a memfd of at least so many bytes; what went with the number before is freed. */
void gpu_memory_make(int fd, size_t bytes);
void gpu_memory_free(int fd);
/* The CPU's copy to the GPU, and back: the first `bytes` that it was made with. */
void gpu_memory_upload(int fd);
void gpu_memory_download(int fd);
/* NULL: nothing was made for it. Valid until it is freed. */
const struct share *gpu_memory_find(int fd);

#endif
